"""Two runs of the same command at once, verb by verb: one of them works, or they share the work; nothing is doubled."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from onbrand.api._output import LOCK
from processes import FOLDERS, begin, command, complete, contents, prepare, until


@pytest.fixture(scope="module")
def home(world: Path) -> Path:
    return prepare(world)


def lay(verb: str, home: Path, out: Path) -> Path:
    """`out` as a verb finds it."""
    shutil.rmtree(out, ignore_errors=True)
    if verb in FOLDERS:
        shutil.copytree(home / FOLDERS[verb], out)
    return out


def holds(out: Path) -> bool:
    return (out / LOCK).is_file() and (out / LOCK).stat().st_size > 0


@pytest.mark.prove
@pytest.mark.parametrize("verb", ["fit", "train", "generate", "check", "merge", "export", "data"])
def test_the_second_is_refused_and_the_first_is_as_alone(verb: str, home: Path, tmp_path: Path) -> None:
    out = lay(verb, home, tmp_path / "out")
    words = command(verb, home, out)
    complete(words, tmp_path / "alone")
    alone = contents(out)
    lay(verb, home, out)
    first = begin(words, tmp_path / "1")
    until(holds, out)
    first.send(signal.SIGSTOP)
    second = begin(words, tmp_path / "2")
    assert second.wait() == 2
    (line,) = second.errors
    for part in ("another run writes into", str(out), f"(onbrand {verb}, process {first.process.pid} on", "since 20"):
        assert part in line
    first.send(signal.SIGCONT)
    assert first.wait() == 0, first.errors
    assert contents(out) == alone
    for _ in range(3):  # and begun in the same moment
        lay(verb, home, out)
        runs = [begin(words, tmp_path / str(number)) for number in (1, 2)]
        codes = sorted(run.wait() or 0 for run in runs)
        assert codes in ([0, 2], [0, 0]), [run.errors for run in runs]  # 0, 0: one after the other
        assert contents(out) == alone


@pytest.mark.prove
@pytest.mark.parametrize("verb", ["diagnose", "report", "compare"])
def test_both_may_and_the_result_is_as_alone(verb: str, home: Path, tmp_path: Path) -> None:
    out = lay(verb, home, tmp_path / "out")
    words = command(verb, home, out)
    jobs = complete(words, tmp_path / "alone").out.count("] ")
    alone = contents(out)
    for _ in range(3):
        lay(verb, home, out)
        runs = [begin(words, tmp_path / str(number)) for number in (1, 2)]
        assert [run.wait() for run in runs] == [0, 0], [run.errors for run in runs]
        assert contents(out) == alone
        assert verb != "compare" or sum(run.out.count("] ") for run in runs) == jobs > 2, "work is done once"
