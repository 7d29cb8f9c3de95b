"""The public face: every name is there, lazily, and is what type checkers are told."""

import ast
from importlib import import_module
from pathlib import Path

import pytest

import onbrand
import onbrand.core

FRONT = Path(onbrand.__file__)


def told() -> dict[str, str]:
    """Name -> module, as the imports under TYPE_CHECKING tell it."""
    guard = next(node for node in ast.parse(FRONT.read_text()).body if isinstance(node, ast.If))
    return {
        alias.asname or "": node.module or ""
        for node in guard.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname == alias.name
    }


def test_checkers_and_readers_see_the_same_names():
    assert set(told()) | {"__version__"} == set(onbrand.__all__)


def test_every_name_is_the_one_it_is_said_to_be():
    for name, module in told().items():
        home = import_module(module)
        assert getattr(onbrand, name) is (import_module(f"{module}.{name}") if name == "api" else getattr(home, name))
        assert name in dir(onbrand)


def test_the_core_names_are_all_at_the_front():
    assert set(onbrand.core.__all__) - set(onbrand.__all__) == {"expand"}


def test_no_name_is_hidden_by_a_folder():
    """A sub-package, once imported, takes its name: a function of that name at the front would vanish."""
    folders = {path.stem for path in FRONT.parent.iterdir()} - {"__init__", "api"}
    assert not folders & set(onbrand.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'onbrand' has no attribute 'nonsense'"):
        onbrand.nonsense  # noqa: B018
