"""What the tests of the scripts share: their modules, under the short names that they import each other by."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

TOOLS = Path(__file__).parents[2] / "research"


def importer(folder: Any) -> Iterator[Any]:
    """`importlib.import_module` with a folder of scripts on the path; afterwards their short names are free again."""
    names, sys.path[:0] = set(sys.modules), [str(folder)]
    yield importlib.import_module
    sys.path.remove(str(folder))
    for name in set(sys.modules) - names:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").is_relative_to(TOOLS):
            del sys.modules[name]


@pytest.fixture(scope="module")
def tiny_tool() -> Iterator[Any]:
    yield from importer(TOOLS / "tiny")


@pytest.fixture(scope="module")
def tool() -> Iterator[Any]:
    yield from importer(TOOLS)
