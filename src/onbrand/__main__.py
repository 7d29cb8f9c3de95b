"""`python -m onbrand` is `onbrand`."""

import sys

from onbrand.launcher import end_with_launcher

end_with_launcher()  # first: what follows takes seconds, in which the launcher may end

from onbrand.cli import main  # noqa: E402

sys.exit(main())
