"""`python -m onbrand` is `onbrand`."""

import sys

from onbrand.cli import main

sys.exit(main())
