"""One tiny pipeline and a prior of two classes for every test of the generate floor."""

from typing import Any

import pytest

from tiny import tiny_pipeline, tiny_prior


@pytest.fixture(scope="session")
def pipe() -> Any:
    return tiny_pipeline()


@pytest.fixture(scope="session")
def prior(pipe: Any) -> Any:
    return tiny_prior(pipe, ("garment", "garment on a person"))
