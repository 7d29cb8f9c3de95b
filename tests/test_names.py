"""The public face: the stub says what there is, and every name of it is there, loaded on first use."""

import subprocess
import sys
from pathlib import Path

import pytest

import onbrand
import onbrand.core

FRONT = Path(onbrand.__file__)


def test_every_name_is_there_and_is_no_module() -> None:
    for name in onbrand.__all__:
        assert name == "__version__" or name in dir(onbrand)
        assert not str(getattr(onbrand, name)).startswith("<module"), name


def test_the_core_names_are_all_at_the_front() -> None:
    assert set(onbrand.core.__all__) - set(onbrand.__all__) == {"expand"}


def test_no_name_is_hidden_by_a_folder() -> None:
    """A sub-package, once imported, takes its name: a function of that name at the front would vanish."""
    assert not {path.stem for path in FRONT.parent.iterdir()} & set(onbrand.__all__)


def test_the_package_is_typed_and_loads_no_torch() -> None:
    assert (FRONT.parent / "py.typed").exists()
    code = "import sys, onbrand; print(dir(onbrand), 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.endswith("False\n")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        onbrand.nonsense  # noqa: B018
