"""What the tests of the scripts share: their modules, under the short names that they import each other by."""

import importlib
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "tools" / "tiny"


@pytest.fixture(scope="module")
def tiny_tool():
    """`importlib.import_module` with tools/tiny on the path; afterwards their short names are free again."""
    before, sys.path[:0] = set(sys.modules), [str(FOLDER)]
    yield importlib.import_module
    sys.path.remove(str(FOLDER))
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").is_relative_to(FOLDER.parent):
            del sys.modules[name]
