"""The method on tensors: torch and safetensors alone, importable without the rest of the house."""

from onbrand.core.findings import Finding, findings
from onbrand.core.fit import Fitter
from onbrand.core.gaussian import Gaussian
from onbrand.core.leak import Leak, measure_leak
from onbrand.core.offset import constant, handoff, matched_noise, ratio, window, x_init
from onbrand.core.prior import Prior, Provenance
from onbrand.core.process import add_noise, estimate, expand, remove_noise, target
from onbrand.core.text import Conditional, ConditionalFitter
from onbrand.core.trainers import BrandNoise

__all__ = [
    "BrandNoise",
    "Conditional",
    "ConditionalFitter",
    "Finding",
    "Fitter",
    "Gaussian",
    "Leak",
    "Prior",
    "Provenance",
    "add_noise",
    "constant",
    "estimate",
    "expand",
    "findings",
    "handoff",
    "matched_noise",
    "measure_leak",
    "ratio",
    "remove_noise",
    "target",
    "window",
    "x_init",
]
