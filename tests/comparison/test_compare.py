"""The comparison on a tiny pipeline of the real classes: what is made, made once, shared, and what broke."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image, ImageDraw

import onbrand
from onbrand.comparison.baselines import paste
from onbrand.comparison.jobs import Job, work
from onbrand.comparison.methods import CompareConfig
from onbrand.comparison.tables import passed
from onbrand.core import Prior
from onbrand.evaluation.statistics import difference
from tiny import tiny_pipeline

CONFIG = CompareConfig(fine_tuning=4, batch=4, lr=1e-3, sampling=2, guidance=1, at_a_time=8)
METHODS = [
    "stock/noise", "plain:2/mean", "plain/mean", "plain/noise", "plain/noise+pasted", "mean-window/mean+8",
    "mean-constant/mean", "small-alpha/noise", "zero-snr/noise", "plain/leak-dct", "plain/image@held",
    "zero-constant/zero", "mean-constant:lora2:lr0.01/mean", "plain/text-few25+look1",
]  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 photos of coloured blocks in two kinds, 12 held out, a tiny model."""
    folder, rng = tmp_path_factory.mktemp("versus"), np.random.default_rng(0)
    for name, count in (("photos", 60), ("held", 12)):
        (folder / name).mkdir()
        rows = []
        for i in range(count):
            kind = ("block", "tall block")[i % 2]
            picture = Image.new("RGB", (20, 20), (255, 255, 255))
            left, top = rng.integers(3, 6, 2).tolist()
            box = (left, top, left + 9, top + (9 if kind == "block" else 12))
            ImageDraw.Draw(picture).rectangle(box, (200, 30, 40))
            picture.save(folder / name / f"{i:03d}.png")
            rows.append({"file_name": f"{i:03d}.png", "text": f"{kind}, red", "class": kind})
        (folder / name / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tiny_pipeline().save_pretrained(folder / "model")
    return folder


def given(world: Path, **more: object) -> dict[str, object]:
    return {
        "photos": world / "photos", "model": world / "model", "out": world / "out", "methods": METHODS,
        "held": world / "held", "sets": {"held": str(world / "held" / "metadata.jsonl")},
        "questions": {"Is the mean better?": ["plain/mean", "plain/noise", "stock/noise"]}, "config": CONFIG,
    } | more  # fmt: skip


@pytest.fixture(scope="module")
def compared(world: Path) -> dict[str, object]:
    with pytest.warns(UserWarning, match="its mean shows those pictures"):
        return onbrand.compare(**given(world))  # type: ignore[arg-type]


def test_every_method_is_in_the_table(world: Path, compared: dict[str, object]) -> None:
    table = compared["methods"]
    assert set(table) == {"real", "autoencoder", *METHODS} - {"mean-window/mean+8"}
    assert compared["failed"].keys() == {"pictures: mean-window/mean+8"}, "876 lies outside its window"
    assert "OB003" in compared["failed"]["pictures: mean-window/mean+8"]
    entry = table["plain/mean"]["ground"]
    assert entry["n"] == 24 and entry["low"] <= entry["value"] <= entry["high"]
    assert json.loads((world / "out" / "compare.json").read_text())["methods"] == table


def test_real_pictures_are_checked_as_the_autoencoder_returns_them(world: Path, compared: dict[str, object]) -> None:
    (real,), (back,) = ((world / "out" / "pictures").glob(f"{name}-*") for name in ("real", "autoencoder"))
    vae, names = tiny_pipeline().vae, [f"{i:03d}.png" for i in range(12)]
    shown = [VaeImageProcessor.pil_to_numpy(Image.open(folder / name).resize((16, 16), Image.Resampling.LANCZOS))
             for folder in (real, back) for name in names]  # fmt: skip
    given, found = (VaeImageProcessor.numpy_to_pt(np.concatenate(part)) for part in (shown[:12], shown[12:]))
    with torch.no_grad():
        expected = vae.decode(vae.encode(given * 2 - 1).latent_dist.mode()).sample.clamp(-1, 1) / 2 + 0.5
    assert (found - expected).abs().max() < 0.01 < (found - given).abs().max()
    assert compared["methods"]["autoencoder"]["ground"]["n"] == 12
    first = [line.split(" | ")[0] for line in (world / "out" / "compare.md").read_text().splitlines()]
    at = first.index("| real pictures, held out")
    assert first[at - 2].startswith("| training") and first[at + 1] == "| the same, through the autoencoder"


def test_a_question_is_answered_in_pairs(world: Path, compared: dict[str, object]) -> None:
    folders = {name: next((world / "out" / "pictures").glob(f"plain_{name}-*")) for name in ("mean", "noise")}
    found = difference(*(passed(folders[name], "ground") for name in ("mean", "noise")))
    text = (world / "out" / "compare.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| plain/noise |"))
    assert f"{found.value:+.3f}".replace("0.", ".") in row
    assert "figures/question-1.webp" in text and (world / "out" / "figures" / "question-1.webp").is_file()
    assert (world / "out" / "figures" / "fine-tuning-steps.png").is_file()
    assert "![Mismatch and ground](figures/mismatch.png)" in text, "the methods' mismatches differ"
    page = (world / "out" / "report.html").read_text()
    assert "plain training, from class mean" in page and "Real pictures of the brand" in page


def test_what_passes_by_picture(tmp_path: Path) -> None:
    told = [("b.png", ["ground"]), ("a.png", []), ("c.png", ["text"])]
    entries = [{"file": file, "failed": failed} for file, failed in told]
    (tmp_path / "check.json").write_text(json.dumps({"pictures": entries}))
    assert passed(tmp_path, "all").tolist() == [1, 0, 0] and passed(tmp_path, "ground").tolist() == [1, 0, 1]


def test_a_prior_of_few_photos_has_as_many_of_each_class(world: Path, compared: dict[str, object]) -> None:
    (folder,) = (world / "out" / "priors").glob("few25-*")
    assert [one.count for one in Prior.load(folder / "prior.safetensors").gaussians.values()] == [25, 25]
    whole = Prior.load(world / "out" / "brand" / "prior.safetensors")
    assert [one.count for one in whole.gaussians.values()] == [30, 30]


def test_the_mismatch_is_told_beforehand(compared: dict[str, object]) -> None:
    told = compared["mismatch"]
    assert told["plain/text-few25+look1"] is None, "nobody knows beforehand what the network will propose"
    assert told["plain/image@held"] == told["mean-constant/mean"] == 0 and told["plain/leak-dct"] is None
    assert told["plain/noise"] > told["small-alpha/noise"] > told["zero-snr/noise"] == pytest.approx(0, abs=1e-6)


def test_a_longer_training_goes_on_from_a_shorter_one(world: Path, compared: dict[str, object]) -> None:
    short, long = sorted((world / "out" / "runs").glob("plain-*"), key=lambda run: int(run.name.rpartition("-")[2]))
    lines = [(run / "log.jsonl").read_text().splitlines() for run in (short, long)]
    logs = [[json.loads(line)["loss"] for line in one] for one in lines]
    assert [len(log) for log in logs] == [2, 4] and logs[1][:2] == logs[0]


def test_a_start_of_zero_is_trained_and_sampled_with_a_prior_of_zeros(world: Path, compared: dict[str, object]) -> None:
    from onbrand.core import Prior

    brand = Prior.load(world / "out" / "brand" / "prior.safetensors")
    zero = Prior.load(next((world / "out" / "priors").glob("zero-*")) / "prior.safetensors")
    assert float(zero.mean(zero.classes).abs().max()) == 0 and zero.classes == brand.classes
    (file,) = (world / "out" / "runs").glob("zero-constant-*/model/onbrand/config.json")
    assert json.loads(file.read_text())["prior"] == zero.fingerprint


def test_the_rivals_schedules(world: Path, compared: dict[str, object]) -> None:
    from onbrand.models.pipeline import load

    models = world / "out" / "models"
    zero, small = (load(next(models.glob(f"{name}-*"))).scheduler for name in ("zero-snr", "small-alpha"))
    assert zero.alphas_cumprod[-1] < 1e-6 and zero.config.prediction_type == "v_prediction"
    assert zero.config.timestep_spacing == "trailing"
    assert small.alphas_cumprod[-1].item() == pytest.approx(1 / (4 * 8 * 8), rel=1e-3)
    assert small.alphas_cumprod[0].item() == pytest.approx(1 - 0.00085, rel=1e-5)


def test_a_row_with_its_ground_replaced_is_the_same_row(world: Path, compared: dict[str, object]) -> None:
    made = next((world / "out" / "pictures").glob("plain_noise+pasted-*-unpasted"))
    plain = next((world / "out" / "pictures").glob("plain_noise-*"))
    assert (made / "00003.png").read_bytes() == (plain / "00003.png").read_bytes()
    assert compared["methods"]["plain/noise+pasted"]["ground"]["n"] == 24


def test_a_folder_is_pasted_on_white(tmp_path: Path) -> None:
    picture = Image.new("RGB", (16, 16), (90, 120, 140))
    ImageDraw.Draw(picture).rectangle((5, 5, 10, 10), (200, 30, 40))
    (tmp_path / "made").mkdir()
    picture.save(tmp_path / "made" / "00000.png")
    line = json.dumps({"index": 0, "file": "00000.png", "prompt": "block", "class": "block"})
    (tmp_path / "made" / "manifest.jsonl").write_text(line + "\n")
    paste(tmp_path / "made", tmp_path / "out", (16, 16))
    out = np.asarray(Image.open(tmp_path / "out" / "00000.png"))
    assert (out[:3] == 255).all() and out[8, 8].tolist() == [200, 30, 40]
    assert (tmp_path / "out" / "manifest.jsonl").read_text() == line + "\n"


def test_again_nothing_is_made_and_a_new_method_only_adds(
    world: Path, compared: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    methods = [name for name in METHODS if "+8" not in name]
    before = {file: file.stat().st_mtime_ns for file in (world / "out").rglob("*.png") if "figures" not in file.parts}
    again = onbrand.compare(**given(world, methods=[*methods, "plain/mean+4"]))  # type: ignore[arg-type]
    shown = capsys.readouterr().out
    assert "fine-tuning" not in shown and shown.count("pictures: ") == 1
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert set(again["methods"]) == {"real", "autoencoder", *methods, "plain/mean+4"} and not again["failed"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"methods": ["plain/mean", "plain/mean"]}, "named once each.*plain/mean"),
        ({"methods": []}, "named once each"),
        ({"questions": {"why": ["plain/pca9"]}}, "unknown \\['plain/pca9'\\]"),
        ({"methods": ["plain/mean@other"], "questions": {}}, "@set is one of held: got other"),
        ({"sets": {"held": "nowhere.jsonl"}}, "no file of requests at nowhere.jsonl"),
        ({"held": "nowhere"}, "held is a folder of real pictures; got nowhere"),
        ({"prompts": __file__}, "line 1: a request is a line of JSON"),
        ({"reader": "garments", "clip": "garments"}, "one reader and one CLIPModel at most"),
    ],
)
def test_wrong_input_is_refused_before_any_work(
    world: Path, tmp_path: Path, more: dict[str, object], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        onbrand.compare(**given(world, out=tmp_path / "out", **more))  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_a_request_of_no_class_is_found_before_a_training(
    world: Path, compared: dict[str, object], tmp_path: Path
) -> None:
    (tmp_path / "asked.jsonl").write_text(json.dumps({"prompt": "a block", "class": "elsewhere"}))
    more = {"out": tmp_path / "out", "prompts": tmp_path / "asked.jsonl", "prior": world / "out" / "brand"}
    with pytest.raises(ValueError, match="elsewhere"):
        onbrand.compare(**given(world, **more))  # type: ignore[arg-type]
    assert not (tmp_path / "out" / "runs").exists()


WORKER = """
import sys, time
from pathlib import Path
from onbrand.comparison.baselines import paste
from onbrand.comparison.jobs import Job, work
from onbrand.core import Prior
folder, name = Path(sys.argv[1]), sys.argv[2]
def make(mark):
    with (folder / "log").open("a") as log:
        log.write(f"{name} {mark.name}\\n")
    time.sleep(0.2)
    mark.touch()
marks = [folder / f"m{i}" for i in range(8)]
work([Job(m.name, m, lambda m=m: make(m)) for m in marks], folder / "locks", lambda words: None)
assert all(mark.exists() for mark in marks)
"""


def test_two_processes_share_the_work(tmp_path: Path) -> None:
    both = [subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path), name]) for name in "ab"]
    assert [process.wait(60) for process in both] == [0, 0]
    lines = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert sorted(mark for _, mark in lines) == [f"m{i}" for i in range(8)], "each once"


def test_what_fails_is_listed_with_what_needed_it_and_the_rest_goes_on(tmp_path: Path) -> None:
    def broken() -> None:
        raise FloatingPointError("the loss is nan")

    a, b, c, d = (tmp_path / name for name in "abcd")
    jobs = [Job("a", a, broken), Job("b", b, b.touch, needs=a), Job("c", c, c.touch), Job("d", d, lambda: None)]
    failed = work(jobs, tmp_path / "locks", lambda words: None)
    assert failed == {"a": "the loss is nan", "b": "its training failed", "d": f"it left no {d}"}
    assert c.exists() and not b.exists()


@pytest.mark.filterwarnings("ignore:.*its mean shows those pictures")
def test_where_every_row_fails_it_ends_with_why(world: Path, tmp_path: Path, capsys: Any) -> None:
    more = {"out": tmp_path / "out", "methods": ["mean-window:2/mean+8"], "held": None, "sets": None, "questions": None}
    result = onbrand.compare(**given(world, **more))  # type: ignore[arg-type]
    assert list(result["failed"]) == ["pictures: mean-window:2/mean+8"] and result["methods"] == {}
    shown = capsys.readouterr().out
    assert "failed: pictures: mean-window:2/mean+8: OB003" in shown and "compare.json: no row was made" in shown
    assert not (tmp_path / "out" / "report.html").exists()
