"""A real disk of 12 sizes, from none to nearly enough: one line, nothing half-written, the same command goes on."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from onbrand.io import DRAFT
from processes import FOLDERS, begin, command, complete, contents, prepare

PAGE = 4096
"""Bytes by which the disk's size is counted."""


@pytest.fixture(scope="module")
def home(world: Path) -> Path:
    return prepare(world)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk in memory."""
    place = tmp_path / "disk"
    place.mkdir()
    answer = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(place)], capture_output=True, text=True)
    if answer.returncode:
        pytest.skip(f"no disk may be mounted here: {answer.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def resize(disk: Path, pages: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={pages * PAGE}", str(disk)], check=True)


def taken(disk: Path) -> int:
    """Pages that are in use."""
    return shutil.disk_usage(disk).used // PAGE


@pytest.mark.prove
@pytest.mark.parametrize(
    "verb", ["fit", "diagnose", "train", "generate", "check", "compare", "merge", "export", "report", "data"]
)
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(
    verb: str, home: Path, disk: Path, tmp_path: Path
) -> None:
    out, log, inputs = disk / "out", tmp_path / "log", home / FOLDERS.get(verb, "none")
    words, large = command(verb, home, out), 20_000

    def lay() -> int:
        """The folder as the verb finds it; how many pages that takes."""
        resize(disk, large)
        shutil.rmtree(out, ignore_errors=True)
        if verb in FOLDERS:
            shutil.copytree(inputs, out)
        return taken(disk)

    before = lay()
    complete(words, log)
    whole, need = contents(out), taken(disk) - before
    outcomes = []
    for twelfth in range(12):
        lay()
        pages = max(1, before + need * twelfth // 12)
        resize(disk, pages)
        run = begin(words, log)
        code, lines = run.wait(), run.errors
        rest = contents(out) if out.is_dir() else {}
        outcomes.append((pages - before, code, lines))
        half = [name for name, data in rest.items() if not part_of(name, data, whole)]
        assert not half, (half, outcomes[-1])
        if verb == "diagnose":  # what it writes is but kept for a report
            assert code == 0 and not lines
        else:
            assert code == 2 and len(lines) == 1 and lines[0].endswith("[space]"), outcomes[-1]
            assert str(out) in lines[0]
        resize(disk, large)
        complete(words, log)
        assert contents(out) == whole, outcomes[-1]
    print(f"{verb} needs {need} pages", *outcomes, sep="\n")


def part_of(name: str, data: bytes, whole: dict[str, bytes]) -> bool:
    """Whether a file is whole, or lines of a whole one."""
    lines = name.endswith(".jsonl") and whole.get(name, b"").startswith(data)
    return not DRAFT.fullmatch(os.path.basename(name)) and (whole.get(name) == data or lines)
