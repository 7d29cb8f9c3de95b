"""Puts tests/ on the path (for worlds.py), shares one world, and lets pass what diffusers and transformers do that is
deprecated."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def pytest_configure(config: pytest.Config) -> None:
    os.environ["ONBRAND_FAMILY"] = config.getoption("--family")
    for message in (
        "__array__ implementation doesn't accept a copy",  # numpy 2, of diffusers
        "__array_wrap__ must accept context",
        "Deprecated in 0.9.0",  # tokenizers 0.22, of how transformers reads vocab.json and merges.txt
    ):
        config.addinivalue_line("filterwarnings", f"ignore:{message}:DeprecationWarning")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--help-text", action="store_true", help="write tests/help/*.txt anew, to be looked at")
    parser.addoption("--family", default="sd", help="of the tiny pipeline: sd, sd2 or sdxl (worlds.FAMILIES)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that no process begins one when the others have nothing left."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def pipe() -> DiffusionPipeline:
    """The tiny pipeline; a test that changes one makes its own."""
    from worlds import tiny_pipeline  # diffusers takes seconds, which a test of core or io need not wait for

    return tiny_pipeline()


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 photos of coloured blocks, 12 held out, a tiny model; a test writes only files of its own name there."""
    from worlds import write_world

    return write_world(tmp_path_factory.mktemp("world"))
