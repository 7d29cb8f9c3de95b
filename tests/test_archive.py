"""What an earlier version wrote (archive/make.py) is resumed, loaded, checked, reported and found again by this one."""

from __future__ import annotations

import html
import json
import shlex
import shutil
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image

from onbrand import cli
from onbrand.core import Prior
from onbrand.io import read_json, upgrade

ARCHIVE = Path(__file__).parent / "archive" / "v0"
EXPECTED: dict[str, Any] = json.loads((ARCHIVE / "expected.json").read_text())
"""What that version made of it all."""
WORDS = {"command", "versions", "title", "rule", "sentence", "remedy"}
"""Of what is written, what may be said otherwise: the rest is numbers and names."""
SCHEDULE = DDIMScheduler.from_pretrained(ARCHIVE / "model" / "scheduler").alphas_cumprod.numpy()
same_schedule = pytest.mark.skipif(
    sha256(SCHEDULE.tobytes()).hexdigest() != EXPECTED["schedule"],
    reason="this processor rounds the noise schedule otherwise, and a run is resumed with the schedule it began with",
)
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*its mean shows those images"),
    pytest.mark.filterwarnings("ignore:.*will start from the mean"),
    pytest.mark.filterwarnings("ignore:real photos kept back pass less often"),
]


def onbrand(*words: str) -> None:
    """A command line, which has to succeed."""
    assert cli.main(list(words)) == 0, words


def again(file: str | Path) -> None:
    """The command that stands in a file, as it stands there."""
    onbrand(*shlex.split(read(file)["command"])[1:])


def fingerprint_of(prior: str | Path) -> str:
    """What a prior is known by, read anew."""
    return Prior.load(prior).fingerprint


def read(file: str | Path) -> dict[str, Any]:
    return read_json(Path(file))


def lines(file: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(file).read_text().splitlines()]


def pixels(file: str | Path) -> np.ndarray:
    """(H, W, 3) in 0..255."""
    return np.asarray(Image.open(file)).astype(int)


def same(actual: Any, expected: Any) -> None:
    """Asserts that all that is expected is there, to 1e-5; there may be more."""
    if isinstance(expected, dict):
        for name in expected.keys() - WORDS:
            same(actual[name], expected[name])
    elif isinstance(expected, list):
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            same(one, other)
    elif isinstance(expected, float):
        assert actual == pytest.approx(expected, rel=1e-5, abs=1e-5, nan_ok=True)
    else:
        assert actual == expected


@pytest.fixture(autouse=True)
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A copy of the archive, moved elsewhere, as the working directory; one thread, as when it was made."""
    shutil.copytree(ARCHIVE, tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_prior_is_the_one_that_was_fitted_and_its_latents_are_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert fingerprint_of("brand/prior.safetensors") == EXPECTED["fingerprint"]
    again("brand/fit.json")
    assert "32 photos used (0 encoded now), 0 refused" in capsys.readouterr().out


def test_a_brand_is_diagnosed_as_it_was() -> None:
    again("brand/leak.json")
    same(read("brand/leak.json"), upgrade(EXPECTED["leak"]))


@same_schedule
def test_a_killed_run_is_resumed_to_its_end() -> None:
    before = lines("run/log.jsonl")
    assert [line["step"] for line in before] == [1, 2, 3, 4, 5] and not Path("run/model").exists()
    again("run/run.json")
    after = lines("run/log.jsonl")
    assert [line["step"] for line in after] == [1, 2, 3, 4, 5, 6]
    assert [line["seconds"] for line in after[:4]] == [line["seconds"] for line in before[:4]], "not begun anew"
    assert [line["loss"] for line in after] == pytest.approx(EXPECTED["losses"], abs=1e-6)
    # the trained weights start where they were trained to start
    onbrand("generate", "--model", "run", "--prompt", "block, red", "--out", "made", "--guidance", "1")
    (image,) = lines("made/manifest.jsonl")
    assert (image["start"], image["fingerprints"]["prior"]) == ("mean", EXPECTED["fingerprint"])


@same_schedule
def test_a_lora_is_finished_and_makes_the_image_that_it_made() -> None:
    log = Path("lora/log.jsonl").read_bytes()
    again("lora/run.json")
    assert Path("lora/log.jsonl").read_bytes() == log, "nothing is left to do"
    onbrand("generate", "--prompt", "block, blue", "--model", "lora", "--out", "made", "--guidance", "1")
    assert np.abs(pixels("made/00000.png") - np.array(EXPECTED["lora"])).max() <= 1


def test_the_one_image_that_is_missing_is_made(capsys: pytest.CaptureFixture[str]) -> None:
    manifest, name = Path("images/manifest.jsonl").read_bytes(), EXPECTED["missing"]["file"]
    there = {file: file.stat().st_mtime_ns for file in Path("images").glob("*.png")}
    assert {file.name for file in there} == EXPECTED["images"].keys() - {name}
    again("images/run.json")
    assert "wrote 1 images to images (5 were there)" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in there} == there
    assert all(sha256(file.read_bytes()).hexdigest() == EXPECTED["images"][file.name] for file in there)
    assert np.abs(pixels(f"images/{name}") - np.array(EXPECTED["missing"]["pixels"])).max() <= 1
    assert Path("images/manifest.jsonl").read_bytes().startswith(manifest)
    assert lines("images/manifest.jsonl")[5]["file"] == name


def test_images_are_judged_as_they_were() -> None:
    again("images/run.json")
    again("images/check.json")
    same(read("images/check.json"), upgrade(EXPECTED["check"]))
    # real ones, which pass some of it
    (real,) = Path("compare/pictures").glob("real-*")
    content = read(real / "check.json")
    assert content["properties"]["background"]["rate"] == 1
    again(real / "check.json")
    same(read(real / "check.json"), content)


@pytest.mark.parametrize("folder", ["brand", "run", "lora", "images", "compare"])
def test_a_page_is_written_of_each_folder(folder: str) -> None:
    onbrand("report", folder)
    page = html.unescape(Path(folder, "report.html").read_text())
    files = [file for name in ("fit", "leak", "run", "check") for file in Path(folder).rglob(f"{name}.json")]
    assert files and all(read(file)["command"] in page for file in files)


def test_a_comparison_finds_all_that_was_made(capsys: pytest.CaptureFixture[str]) -> None:
    def times() -> dict[Path, int]:
        folders = {"runs": "runs", "pictures": "images", "images": "images"}
        files = ((name, file) for name in folders for file in Path("compare", name).rglob("*") if file.is_file())
        return {
            Path(folders[name], file.relative_to(Path("compare", name))): file.stat().st_mtime_ns
            for name, file in files
        }

    before = times()
    again("compare/compare.json")
    assert times() == before, "nothing is made anew"
    assert "fine-tuning" not in capsys.readouterr().out
    assert read("compare/compare.json")["methods"] == upgrade({"methods": EXPECTED["compare"]})["methods"]
    assert Path("compare/report.html").is_file() and Path("compare/compare.md").is_file()


@same_schedule
def test_a_longer_training_goes_on_from_one_that_was_made() -> None:
    (short,) = Path("compare/runs").glob("plain-*")
    words = shlex.split(read("compare/compare.json")["command"])[1:]
    words[words.index("--methods") + 1] = "plain:2/mean,plain:4/mean"
    onbrand(*words)
    (long,) = set(Path("compare/runs").glob("plain-*")) - {short}
    assert lines(long / "log.jsonl")[:2] == lines(short / "log.jsonl") and len(lines(long / "log.jsonl")) == 4
