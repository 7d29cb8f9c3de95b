"""One tiny pipeline for every test of the models floor."""

import pytest

from tiny import tiny_pipeline


@pytest.fixture(scope="session")
def pipe():
    return tiny_pipeline()
