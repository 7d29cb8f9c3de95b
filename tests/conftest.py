"""Puts tests/ on the path (for worlds.py), shares one world, and lets pass what diffusers and transformers do that is
deprecated."""

from pathlib import Path

import pytest
from diffusers import StableDiffusionPipeline

from worlds import tiny_pipeline, write_world


def pytest_configure(config: pytest.Config) -> None:
    for message in (
        "__array__ implementation doesn't accept a copy",  # numpy 2, of diffusers
        "__array_wrap__ must accept context",
        "Deprecated in 0.9.0",  # tokenizers 0.22, of how transformers reads vocab.json and merges.txt
    ):
        config.addinivalue_line("filterwarnings", f"ignore:{message}:DeprecationWarning")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--help-text", action="store_true", help="write tests/help/*.txt anew, to be looked at")


@pytest.fixture(scope="session")
def pipe() -> StableDiffusionPipeline:
    """The tiny pipeline; a test that changes one makes its own."""
    return tiny_pipeline()


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 photos of coloured blocks, 12 held out, a tiny model; a test writes only files of its own name there."""
    return write_world(tmp_path_factory.mktemp("world"))
