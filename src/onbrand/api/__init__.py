"""The nine verbs, one function each, mostly wiring: what the command line does, from Python."""

from onbrand.api.brand import fit
from onbrand.api.comparison import compare
from onbrand.api.diagnosis import diagnose
from onbrand.api.merging import merge
from onbrand.api.page import report
from onbrand.api.pictures import generate
from onbrand.api.run import train
from onbrand.api.samples import data
from onbrand.api.verdict import check

__all__ = ["check", "compare", "data", "diagnose", "fit", "generate", "merge", "report", "train"]
