"""One tiny pipeline for every test of the models floor."""

from typing import Any

import pytest

from tiny import tiny_pipeline


@pytest.fixture(scope="session")
def pipe() -> Any:
    return tiny_pipeline()
