"""Keep the brand's look: start diffusion from the prior your photos have, and train with the same start.

The verbs (fit, diagnose, train, generate, check, compare, merge, export, patch, push, report) and the method's own
functions, each loaded on first use: `import onbrand` loads no torch. `__init__.pyi` lists what there is.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, _names = lazy_loader.attach_stub(__name__, __file__)
__all__ = ["__version__", *_names]  # noqa: PLE0604  (of the stub)
