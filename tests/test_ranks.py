"""The processes of one run: they share its work, give what one process gives, and end together."""

from __future__ import annotations

import itertools
import json
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.distributed import TCPStore

from onbrand import ranks
from onbrand.api import generate
from onbrand.api._output import LOCK, claimed
from onbrand.core.prior import Prior
from onbrand.data.latents import FOLDER as LATENTS
from onbrand.errors import OnbrandError
from onbrand.ranks import claims, each, from_first, gather, is_first_to_say, rank, sharing, world
from onbrand.sampling.manifest import PART
from processes import Run, command, complete, complete_together, contents, launched, prepare, until
from worlds import raises, write_blocks, write_world

STARTS = itertools.count(100)
KILLS, COUNT = 20, 300
"""Of a proof; photos, more than one process encodes at a time."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of its own: other tests take the shared world as it was."""
    return prepare(write_world(tmp_path_factory.mktemp("ranks")))


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """What a launcher has its processes meet at."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    yield store.port
    ranks._store.cache_clear()


@pytest.fixture
def two(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is the first of two, in a start of its own."""
    place = {"WORLD_SIZE": 2, "RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    place |= {"TORCHELASTIC_USE_AGENT_STORE": True, "TORCHELASTIC_RESTART_COUNT": next(STARTS)}
    for name, value in place.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(ranks, "_numbers", itertools.repeat(0))
    ranks._store.cache_clear()


def endings(runs: list[Run], seconds: float = 60) -> list[int | None]:
    return [run.wait(seconds) for run in runs]


def errors(runs: list[Run]) -> list[str]:
    return [line for run in runs for line in run.errors]


def test_one_process_shares_with_nobody() -> None:
    assert (rank(), world()) == (0, 1) and gather("a") == ["a"] and from_first(lambda: 3) == 3
    assert list(claims([1, 2])) == [1, 2] and is_first_to_say("a") and is_first_to_say("a")
    with sharing():
        assert list(each(str, [1, 2, 3])) == ["1", "2", "3"]


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize("count", [0, 1, 2, 7])
@pytest.mark.parametrize("turns", ["abababababab", "aaaaaaaabb", "abbbbbbbba"])
def test_each_item_is_taken_once_whoever_is_faster(count: int, turns: str) -> None:
    processes = {"a": claims(range(count)), "b": claims(range(count))}
    taken = [item for turn in turns if (item := next(processes[turn], None)) is not None]
    assert taken == list(range(count))


@pytest.mark.usefixtures("two")
def test_a_run_that_is_started_again_takes_from_the_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torchrun --max-restarts` keeps its store."""
    assert list(claims("abc")) == ["a", "b", "c"] and list(claims("abc")) == []
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    ranks._store.cache_clear()
    assert list(claims("abc")) == ["a", "b", "c"]


@pytest.mark.usefixtures("two")
def test_a_line_of_several_processes_is_said_once() -> None:
    assert [is_first_to_say(line) for line in ("one", "one", "two", "one")] == [True, False, True, False]


@pytest.mark.usefixtures("two")
def test_where_nobody_can_tell_a_line_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for port in ("", "none"):
        monkeypatch.setenv("MASTER_PORT", port)
        assert is_first_to_say("one")
    monkeypatch.delenv("MASTER_ADDR")
    assert is_first_to_say("one")


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize("missing", [["MASTER_ADDR"], ["RANK"], ["RANK", "MASTER_ADDR", "MASTER_PORT"]])
def test_processes_that_cannot_meet_are_one_line(
    monkeypatch: pytest.MonkeyPatch, missing: list[str], tmp_path: Path
) -> None:
    for name in missing:
        monkeypatch.delenv(name)
    with raises("processes", "one of 2 processes", *missing, "accelerate launch or torchrun"):
        generate(prompt="a", model="tiny", output_dir=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize("verb", ["merge", "export", "report", "diagnose", "data", "compare"])
def test_what_is_no_work_for_several_says_so(verb: str, tmp_path: Path) -> None:
    from onbrand.cli import VERBS, parse

    one = next(one for one in VERBS if one.__name__ == verb)
    way = "several times" if verb == "compare" else "by itself"
    with raises("processes", verb, "2 processes", way):
        one.run(parse(one, [str(word) for word in command(verb, tmp_path, tmp_path / "out")[1:]]))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_processes_make_the_images_of_one(home: Path, tmp_path: Path) -> None:
    words = command("generate", home, tmp_path / "out")
    complete(words, tmp_path / "alone")
    alone = contents(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "one")
    runs = complete_together(words, tmp_path / "two")
    assert contents(tmp_path / "out") == alone
    assert "wrote 12 images" in runs[0].out and "(0 were there)" in runs[0].out


@pytest.mark.slow
def test_what_two_processes_left_is_gone_on_with_by_one(home: Path, tmp_path: Path) -> None:
    """As after a kill: lines of a second process, the last one torn, and a batch that nobody made."""
    out = tmp_path / "out"
    words = command("generate", home, out)
    complete(words, tmp_path / "alone")
    alone, lines = contents(out), (out / "manifest.jsonl").read_bytes().splitlines(keepends=True)
    (out / "manifest.jsonl").write_bytes(b"".join(lines[8:]))
    (out / PART.format(1)).write_bytes(b"".join(lines[:3]) + lines[3][:40])
    run = complete(words, tmp_path / "again")
    assert "wrote 5 images" in run.out and contents(out) == alone


@pytest.fixture(scope="module")
def fit(home: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[object], Prior]:
    """A fit of photos that two processes share, but for its folder, and the prior that one process gives."""
    out = tmp_path_factory.mktemp("fit")
    write_blocks(out / "photos", COUNT)
    for number, file in enumerate(sorted((out / "photos").glob("*.png"))):  # all others, but the first and the last
        with Image.open(file) as image:
            image.putpixel((0, 0), (255, number % (COUNT - 1) % 256, number // 256))
            image.save(file)
    words: list[object] = ["fit", out / "photos", "--model", home / "model", "--k", 4, "--output_dir"]
    complete([*words, out / "one"], out / "log")
    return words, Prior.load(out / "one")


def assert_same(one: Prior, two: Prior) -> None:
    """The same photos have been counted, each once."""
    assert list(one.gaussians) == list(two.gaussians)
    for name, gaussian in one.gaussians.items():
        other, size = two.gaussians[name], float(gaussian.mean.abs().max())
        assert other.count == gaussian.count == COUNT // 2
        torch.testing.assert_close(other.mean, gaussian.mean, rtol=1e-6, atol=1e-6 * size)
        torch.testing.assert_close(other.variances, gaussian.variances, rtol=1e-6, atol=0)
        assert other.total == pytest.approx(gaussian.total, rel=1e-6)


@pytest.mark.slow
def test_two_processes_fit_the_prior_of_one(fit: tuple[list[object], Prior], tmp_path: Path) -> None:
    complete_together([*fit[0], tmp_path / "two"], tmp_path / "log")
    writers = {file.name[:3] for file in (tmp_path / "two" / LATENTS).rglob("*.safetensors")}
    assert writers == {"000", "001"}, "both have encoded"
    assert_same(fit[1], Prior.load(tmp_path / "two"))


@pytest.mark.slow
def test_two_processes_train_as_one(home: Path, tmp_path: Path) -> None:
    """By the verb; accumulation and the other methods: training/test_resume."""
    out = tmp_path / "out"
    complete_together([*command("train", home, out), "--train_batch_size", 1], tmp_path / "log")
    one, two = (
        [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        for folder in (home / "lora", out)
    )
    for name in ("loss", "loss_outside", "passed"):
        assert [line[name] for line in two] == pytest.approx([line[name] for line in one], abs=1e-5)
    assert (out / "model").is_dir() and not (out / LOCK).exists()


@pytest.mark.slow
@pytest.mark.parametrize("fitted", [True, False], ids=["a fitted brand", "a prior alone"])
def test_two_processes_check_as_one(home: Path, tmp_path: Path, fitted: bool) -> None:
    """Numbers and bytes; the ranges of the photos are learned in both ways."""
    words = command("check", home, home / "images")
    if not fitted:
        words = [*words[:-1], home / "brand" / "prior.safetensors"]
    files = [home / "images" / name for name in ("check.json", "check.png")]
    (home / "brand" / "reference.json").unlink(missing_ok=True)
    complete(words, tmp_path / "alone")
    alone = [file.read_bytes() for file in files]
    for file in (*files, home / "brand" / "reference.json"):
        file.unlink(missing_ok=True)
    complete_together(words, tmp_path / "two")
    assert [file.read_bytes() for file in files] == alone


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["fit", "generate"])
def test_another_run_is_refused_in_one_line(verb: str, home: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with claimed(out, verb), launched(command(verb, home, out), tmp_path / "log") as runs:
        assert endings(runs) == [2, 2]
        assert sorted(path.name for path in out.iterdir()) == [LOCK]
    (line,) = errors(runs)
    assert f"another run writes into {out}" in line


@pytest.mark.slow
def test_an_error_of_all_is_said_once(home: Path, tmp_path: Path) -> None:
    words = command("generate", home, tmp_path / "out")
    with launched([*words, "--start", "text", "--k", 2], tmp_path / "log") as runs:
        assert endings(runs) == [2, 2] and len(errors(runs)) == 1, errors(runs)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.prove), 1])
def test_a_process_that_is_killed_ends_the_other_with_one_line(home: Path, tmp_path: Path, victim: int) -> None:
    out = tmp_path / "out"
    words = [*command("generate", home, out), "--num_images_per_prompt", 60, "--batch_size", 1]
    with launched(words, tmp_path / "log") as runs:
        until(lambda: len(list(out.glob("*.png"))) > 4)
        runs[victim].send(signal.SIGKILL)
        start = time.monotonic()
        assert endings(runs)[victim] == -signal.SIGKILL and endings(runs)[1 - victim] == 2
        assert time.monotonic() - start < 30
    (line,) = errors(runs)
    assert line.startswith("onbrand: error: another process of this run has ended") and "goes on" in line
    complete(words, tmp_path / "again")
    lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(60)) and not list(out.glob(PART.format("*")))


def test_an_error_of_the_first_is_everybodys(home: Path) -> None:
    def fails() -> Any:
        raise OnbrandError("folder", "it is full")

    with raises("folder", "it is full"):
        from_first(fails)


@pytest.mark.prove
@pytest.mark.parametrize("verb", ["fit", "generate"])
def test_one_of_two_processes_or_both_killed_anywhere(
    verb: str, home: Path, fit: tuple[list[object], Prior], tmp_path: Path
) -> None:
    """Gone on with by one to three processes."""
    seed = random.randrange(2**32)
    print(f"moments from seed {seed}")
    draw, out, log, kills = random.Random(seed), tmp_path / "out", tmp_path / "log", 0
    words = [*fit[0], out] if verb == "fit" else [*command("generate", home, out), "--batch_size", 1]
    complete(words, log)
    images, start = contents(out), time.monotonic()
    shutil.rmtree(out)
    complete_together(words, log)
    seconds = time.monotonic() - start
    while kills < KILLS:
        shutil.rmtree(out)
        with launched(words, log) as runs:
            time.sleep(draw.uniform(0, seconds))
            for run in draw.choice([runs[:1], runs[1:], runs]):
                run.send(signal.SIGKILL)
            codes = endings(runs)
        assert set(codes) <= {0, 2, -signal.SIGKILL} and len(errors(runs)) == codes.count(2), (codes, errors(runs))
        kills += codes.count(-signal.SIGKILL)
        complete_together(words, log, draw.choice([1, 2, 3]))
        if verb == "fit":
            assert_same(fit[1], Prior.load(out))
        else:
            assert contents(out) == images, codes
