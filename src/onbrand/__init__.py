"""Keep the brand's look: start diffusion from the prior your pictures have, and train with the same start.

The names below load on first use: `import onbrand` itself loads no torch. The verbs (fit, diagnose, train, generate,
check, report) are functions of `onbrand.api`: three of them share their names with the floors they stand on.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onbrand import api as api
    from onbrand.core import Conditional as Conditional
    from onbrand.core import ConditionalFitter as ConditionalFitter
    from onbrand.core import Finding as Finding
    from onbrand.core import Fitter as Fitter
    from onbrand.core import Gaussian as Gaussian
    from onbrand.core import Leak as Leak
    from onbrand.core import Prior as Prior
    from onbrand.core import Provenance as Provenance
    from onbrand.core import add_noise as add_noise
    from onbrand.core import constant as constant
    from onbrand.core import estimate as estimate
    from onbrand.core import findings as findings
    from onbrand.core import handoff as handoff
    from onbrand.core import matched_noise as matched_noise
    from onbrand.core import measure_leak as measure_leak
    from onbrand.core import ratio as ratio
    from onbrand.core import remove_noise as remove_noise
    from onbrand.core import target as target
    from onbrand.core import window as window
    from onbrand.core import x_init as x_init
    from onbrand.generate.fresh import matched_steps as matched_steps
    from onbrand.generate.handoff import HandOff as HandOff
    from onbrand.generate.start import start as start

__version__ = "0.1.0"

_HOMES = {
    "onbrand.core": (
        "Conditional ConditionalFitter Finding Fitter Gaussian Leak Prior Provenance add_noise constant estimate "
        "findings handoff matched_noise measure_leak ratio remove_noise target window x_init"
    ),
    "onbrand.generate.fresh": "matched_steps",
    "onbrand.generate.handoff": "HandOff",
    "onbrand.generate.start": "start",
}
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}

__all__ = ["__version__", "api", *_HOME]


def __getattr__(name: str) -> object:
    if name == "api":
        return import_module("onbrand.api")
    if name not in _HOME:
        raise AttributeError(f"module 'onbrand' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
