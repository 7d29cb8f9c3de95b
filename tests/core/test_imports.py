"""core alone: torch, safetensors and the standard library, in a fresh interpreter; the front door loads no torch."""

import json
import pkgutil
import subprocess
import sys

from onbrand import core

HEAVY = (
    "pydantic",
    "diffusers",
    "transformers",
    "peft",
    "PIL",
    "accelerate",
    "datasets",
    "scipy",
    "sklearn",
    "matplotlib",
)
NAMES = sorted(part.name for part in pkgutil.iter_modules(core.__path__))


def modules_of(code: str) -> set[str]:
    """Top-level modules in sys.modules after `code` ran in a fresh interpreter."""
    script = f"{code}\nimport json, sys; print(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(result.stdout.splitlines()[-1]))


def test_core_loads_nothing_heavy() -> None:
    modules = modules_of("\n".join(f"import onbrand.core.{name}" for name in NAMES))
    assert {"onbrand", "torch", "safetensors"} <= modules and {"prior", "offset", "findings"} <= set(NAMES)
    assert not modules & set(HEAVY)


def test_the_test_above_can_fail() -> None:
    assert modules_of("import onbrand.core, PIL.Image") & set(HEAVY) == {"PIL"}


def test_the_front_door_loads_no_torch() -> None:
    modules = modules_of("import onbrand; onbrand.__version__; dir(onbrand)")
    assert "onbrand" in modules and not modules & {"torch", "numpy", "safetensors", *HEAVY}


def test_a_name_loads_what_it_needs() -> None:
    assert "torch" in modules_of("import onbrand; onbrand.matched_noise")
