"""Puts tests/ on the path (for tiny.py), and lets pass what diffusers' schedulers make numpy 2 warn of."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    for message in ("__array__ implementation doesn't accept a copy", "__array_wrap__ must accept context"):
        config.addinivalue_line("filterwarnings", f"ignore:{message}:DeprecationWarning")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--help-text", action="store_true", help="write tests/help/*.txt anew, to be looked at")
