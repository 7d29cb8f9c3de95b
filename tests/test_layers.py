"""The layers: a file imports from its own layer and from those below, and only models knows diffusers."""

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "onbrand"
LAYERS = [
    {"core", "options", "hub", "io", "schemas", "errors", "ranks"},
    {"data", "datasets"},
    {"models"},
    {"sampling"},
    {"evaluation"},
    {"reporting"},
    {"training", "exporting"},
    {"api"},
    {"comparison", "ui"},
    {"cli", "launcher"},
]
VERBS = ("fit", "diagnose", "train", "generate", "check", "merge", "export", "patch", "push", "report", "data")
LONGEST = 80
"""Lines of a verb's file."""
GUARDED = {"diffusers", "transformers", "peft"}
CORE = {"torch", "safetensors", "onbrand"} | set(sys.stdlib_module_names)
EXCEPTIONS = {"sampling/modular.py": "a block is a class of diffusers'"}
"""File beside models/ that imports a guarded library when run -> why. TYPE_CHECKING needs no exception."""


def imports(tree: ast.AST, package: list[str], checking: bool = False) -> Iterator[tuple[str, int, bool]]:
    """(module, line, only under TYPE_CHECKING) for every import at any depth of a file in `package`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno, checking) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            # `from onbrand import api` takes a module or a name: the name says which
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "onbrand" else [module]
            yield from ((name, node.lineno, checking) for name in names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from imports(ast.Module(node.body, []), package, checking=True)
            yield from imports(ast.Module(node.orelse, []), package, checking)
        else:
            yield from imports(node, package, checking)


def layer_of(path: Path, source: Path) -> int:
    """A file's layer; the package's front door (`__init__`, `__main__`) stands above all."""
    name = path.relative_to(source).parts[0].removesuffix(".py")
    return layer_number(name)


def layer_number(name: str) -> int:
    """The number of the layer that a package belongs to; len(LAYERS) for what is no package."""
    return next((number for number, packages in enumerate(LAYERS) if name in packages), len(LAYERS))


def breaches(source: Path, exceptions: dict[str, str] = EXCEPTIONS) -> list[str]:
    """Every import that the rules forbid, as "file:line: why"."""
    lines = []
    for path in sorted(source.rglob("*.py")):
        where, layer = path.relative_to(source), layer_of(path, source)
        if layer == len(LAYERS) and where.as_posix() not in ("__init__.py", "__main__.py"):
            lines.append(f"{where}:1: belongs to no layer")
        package = ["onbrand", *where.parts[:-1]]
        for module, line, checking in imports(ast.parse(path.read_text(encoding="utf-8")), package):
            top, _, rest = module.partition(".")
            target = rest.partition(".")[0]
            if top == "onbrand" and layer < layer_number(target) < len(LAYERS):
                lines.append(f"{where}:{line}: {where.parts[0]} imports up from {target}")
            elif top in GUARDED and not checking and where.parts[0] != "models" and where.as_posix() not in exceptions:
                lines.append(f"{where}:{line}: {top} outside models")
            elif where.parts[0] == "core" and top not in CORE:
                lines.append(f"{where}:{line}: core imports {top}")
    return lines


def test_imports_only_go_down() -> None:
    assert breaches(SOURCE) == []


def graph(source: Path) -> dict[str, set[str]]:
    """Module -> the modules of its package that it imports when it runs, at any depth of it."""
    files = {
        ".".join(["onbrand", *path.relative_to(source).with_suffix("").parts]): path for path in source.rglob("*.py")
    }
    edges: dict[str, set[str]] = {}
    for module, path in files.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        modules = {name for name, _, checking in imports(tree, module.split(".")[:-1]) if not checking}
        # `from onbrand.models import pipeline` takes a module or a name: each that is a module counts
        names = {
            f"{node.module}.{alias.name}"
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module
            for alias in node.names
        }
        edges[module] = (modules | names) & set(files) - {module}
    return edges


def test_no_circle() -> None:
    list(TopologicalSorter(graph(SOURCE)).static_order())  # CycleError names one


def test_a_circle_is_seen(tmp_path: Path) -> None:
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "a.py").write_text("def f():\n    from onbrand.core import b")
    (tmp_path / "core" / "b.py").write_text("import onbrand.core.a")
    with pytest.raises(CycleError):
        list(TopologicalSorter(graph(tmp_path)).static_order())


def test_every_layer_is_there_and_was_read() -> None:
    packages = {path.relative_to(SOURCE).parts[0].removesuffix(".py") for path in SOURCE.rglob("*.py")}
    assert packages >= set().union(*LAYERS)
    assert all((SOURCE / name).exists() and why for name, why in EXCEPTIONS.items())


WRONG = {
    "up": ("core/a.py", "from onbrand.data.records import Record"),
    "up, inside a function": ("data/a.py", "def f():\n    import onbrand.training.loop"),
    "up, for types only": (
        "models/a.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import onbrand.api",
    ),
    "up, by name": ("reporting/a.py", "from onbrand import cli"),
    "up, relatively": ("data/a.py", "from ..training.loop import train"),
    "up, relatively, by name": ("data/a.py", "from .. import training"),
    "diffusers outside models": (
        "training/a.py",
        "try:\n    from diffusers.training_utils import EMAModel\nfinally:\n    pass",
    ),
    "transformers in a method": ("sampling/a.py", "class A:\n    def f(self):\n        import transformers"),
    "more than torch in core": ("core/a.py", "import numpy as np"),
    "types from diffusers in core": ("core/a.py", "import typing\nif typing.TYPE_CHECKING:\n    import diffusers"),
    "else of a type check": ("training/a.py", "if TYPE_CHECKING:\n    pass\nelse:\n    import peft"),
    "no layer": ("utils.py", ""),
}
RIGHT = {
    "core/a.py": "import json\nfrom safetensors.torch import save_file\nfrom onbrand.core.b import c\nfrom . import d",
    "models/a.py": "import diffusers\nfrom onbrand.data import records\nfrom ..core import Prior\nfrom . import bundle",
    "training/a.py": "import accelerate\nif TYPE_CHECKING:\n    from diffusers import UNet2DConditionModel",
    "cli.py": "from onbrand import __version__, api",
    "__init__.py": "def f():\n    from onbrand.api import fit",
}


@pytest.mark.parametrize("case", WRONG)
def test_a_breach_is_seen(case: Any, tmp_path: Path) -> None:
    name, code = WRONG[case]
    for path, content in {**RIGHT, name: code}.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(content)
    lines = breaches(tmp_path)
    assert len(lines) == 1 and lines[0].startswith(f"{name}:")


def test_a_clean_tree_and_a_reasoned_exception_pass(tmp_path: Path) -> None:
    for path, content in {**RIGHT, "training/b.py": "import diffusers"}.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(content)
    assert breaches(tmp_path) == ["training/b.py:1: diffusers outside models"]
    assert breaches(tmp_path, {"training/b.py": "a reason"}) == []


def test_a_verb_is_wiring() -> None:
    lengths = {name: len((SOURCE / "api" / f"_{name}.py").read_text().splitlines()) for name in VERBS}
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}
