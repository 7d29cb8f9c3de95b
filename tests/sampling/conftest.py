"""A prior of two classes for every test of sampling."""

from typing import Any

import pytest

from worlds import tiny_prior


@pytest.fixture(scope="session")
def prior(pipe: Any) -> Any:
    return tiny_prior(pipe, ("garment", "garment on a person"))
