"""The verbs, a file each, wiring alone; `compare` stands above them, in `onbrand.comparison`."""

from onbrand.api._check import check
from onbrand.api._data import data
from onbrand.api._diagnose import diagnose
from onbrand.api._export import export
from onbrand.api._fit import fit
from onbrand.api._generate import generate
from onbrand.api._merge import merge
from onbrand.api._patch import patch
from onbrand.api._push import push
from onbrand.api._report import report
from onbrand.api._train import train

__all__ = ["check", "data", "diagnose", "export", "fit", "generate", "merge", "patch", "push", "report", "train"]
