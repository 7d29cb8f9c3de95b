"""What prose, comments and scripts refer to is there: files of the repository, sections of a page, names of modules."""

import importlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = "docs|research|benchmarks|examples|tests|src|tools"
TEXTS = {".py", ".pyi", ".md", ".toml", ".yaml", ".yml", ".ipynb", ".j2", ".cff", ""}
PASSED_OVER = {"mkdocs.yml", "docs/index.md", "tests/test_references.py"}
"""The first two name paths from docs/, which mkdocs looks up; this one is wrong on purpose."""


def texts() -> dict[str, str]:
    """File -> text of the repository's texts, their lines joined; not of the archive, which is another version's."""
    folders = [ROOT / name for name in ROOMS.split("|")]
    paths = [*ROOT.glob("*.*"), ROOT / "Makefile", *(path for folder in folders for path in folder.rglob("*"))]
    return {
        name: re.sub(r"\n[\s#>]*", " ", path.read_text())
        for path in paths
        if (name := str(path.relative_to(ROOT))) not in PASSED_OVER
        and path.suffix in TEXTS
        and path.is_file()
        and not path.name.startswith(".coverage")  # which `make coverage` leaves
        and not path.is_relative_to(ROOT / "tests/archive")
    }


def missing_files(text: str) -> list[str]:
    """Paths from the repository's root that a text names and that are not there; patterns are passed over."""
    paths = re.findall(rf"(?<![\w/.\-])((?:{ROOMS})/[\w./*<>{{}}\-]*)", text)
    return [path for path in paths if not set("*<>{}") & set(path) and not (ROOT / path.rstrip("./")).exists()]


def missing_sections(text: str) -> list[str]:
    """`docs/PAGE.md, section N` of which the page has no such heading."""
    pairs = re.findall(r"(docs/[\w/\-]+\.md), sections? (\d+)", text)
    return [f"{page} {number}" for page, number in pairs if f"\n## {number}. " not in (ROOT / page).read_text()]


def missing_modules(text: str) -> list[str]:
    """Dotted names that begin with `onbrand.` and lead nowhere."""
    return [
        name for name in set(re.findall(r"(?<![\w/.\-])onbrand(?:\.[a-z_]\w*)+", text)) if not leads_somewhere(name)
    ]


def leads_somewhere(name: str) -> bool:
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:count]))
        except ImportError:
            continue
        for part in parts[count:]:
            if not hasattr(value, part):
                return part in getattr(value, "__annotations__", {})
            value = getattr(value, part)
        return True
    return False


@pytest.mark.parametrize("missing", [missing_files, missing_sections, missing_modules])
def test_what_is_referred_to_is_there(missing: Callable[[str], list[str]]) -> None:
    tests = "tests/" if missing is missing_modules else "no file"  # they give wrong modules on purpose
    by_file = {file: missing(text) for file, text in texts().items() if not file.startswith(tests)}
    assert {file: names for file, names in by_file.items() if names} == {}


@pytest.mark.parametrize(
    ("missing", "text", "expected"),
    [
        (missing_files, "see docs/method.md and docs/index.md.", ["docs/method.md"]),
        (
            missing_sections,
            "docs/concepts/method.md, section 99, docs/concepts/method.md, section 1",
            ["docs/concepts/method.md 99"],
        ),
        (missing_modules, "`onbrand.core.nothing`, onbrand.core.Prior", ["onbrand.core.nothing"]),
    ],
)
def test_the_test_above_can_fail(missing: Callable[[str], list[str]], text: str, expected: list[str]) -> None:
    assert missing(text) == expected
