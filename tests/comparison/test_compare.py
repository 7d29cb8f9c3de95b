"""The comparison on a tiny pipeline of the real classes: what is made, made once, shared, and what broke."""

from __future__ import annotations

import json
import re
import time
from functools import partial
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
from onbrand.comparison.tables import Line, passed, write
from onbrand.core import Prior
from onbrand.errors import OnbrandError
from onbrand.evaluation.statistics import difference
from onbrand.options.compare import CompareSettings
from processes import SERVER
from worlds import CHECK, MANIFEST_LINE, raises, tiny_pipeline

CONFIG = CompareSettings(
    max_train_steps=4, train_batch_size=4, learning_rate=1e-3, num_inference_steps=2, guidance_scale=1, batch_size=8
)
pytestmark = pytest.mark.slow
METHODS = [
    "stock/noise", "plain:2/mean", "plain/mean", "plain/noise", "plain/noise+pasted", "mean-window/mean+8",
    "mean-constant/mean", "small-alpha/noise", "zero-snr/noise", "plain/leak-dct", "plain/image@held",
    "zero-constant/zero", "mean-constant:lora2:lr0.01/mean", "plain/text-few25+look1",
]  # fmt: skip


def arguments(world: Path, **more: object) -> dict[str, object]:
    return {
        "images": world / "photos", "model": world / "model", "output_dir": world / "out", "methods": METHODS,
        "reference_images": world / "held_out", "prompt_sets": {"held": str(world / "held_out" / "metadata.jsonl")},
        "questions": {"Is the mean better?": ["plain/mean", "plain/noise", "stock/noise"]}, **vars(CONFIG),
    } | more  # fmt: skip


@pytest.fixture(scope="module")
def compared(world: Path) -> dict[str, object]:
    with pytest.warns(UserWarning, match="its mean shows those images"):
        return onbrand.compare(**arguments(world))  # type: ignore[arg-type]


def test_every_method_is_in_the_table(world: Path, compared: dict[str, object]) -> None:
    table = compared["methods"]
    assert set(table) == {"real", "autoencoder", *METHODS} - {"mean-window/mean+8"}
    assert compared["failed"].keys() == {"images: mean-window/mean+8"}, "876 lies outside its window"
    assert "OB003" in compared["failed"]["images: mean-window/mean+8"]
    entry = table["plain/mean"]["background"]
    assert entry["n"] == 24 and entry["low"] <= entry["value"] <= entry["high"]
    assert json.loads((world / "out" / "compare.json").read_text())["methods"] == table


def test_real_images_are_checked_as_the_autoencoder_returns_them(world: Path, compared: dict[str, object]) -> None:
    (real,), (back,) = ((world / "out" / "images").glob(f"{name}-*") for name in ("real", "autoencoder"))
    vae, names = tiny_pipeline().vae, [f"{i:03d}.png" for i in range(12)]
    shown = [VaeImageProcessor.pil_to_numpy(Image.open(folder / name).resize((16, 16), Image.Resampling.LANCZOS))
             for folder in (real, back) for name in names]  # fmt: skip
    originals, returned = (VaeImageProcessor.numpy_to_pt(np.concatenate(part)) for part in (shown[:12], shown[12:]))
    with torch.no_grad():
        expected = vae.decode(vae.encode(originals * 2 - 1).latent_dist.mode()).sample.clamp(-1, 1) / 2 + 0.5
    assert (returned - expected).abs().max() < 0.01 < (returned - originals).abs().max()
    assert compared["methods"]["autoencoder"]["background"]["n"] == 12
    first = [line.split(" | ")[0] for line in (world / "out" / "compare.md").read_text().splitlines()]
    at = first.index("| real images, held out")
    assert first[at - 2].startswith("| training") and first[at + 1] == "| the same, through the autoencoder"


def test_a_question_is_answered_in_pairs(world: Path, compared: dict[str, object]) -> None:
    folders = {name: next((world / "out" / "images").glob(f"plain_{name}-*")) for name in ("mean", "noise")}
    found = difference(*(passed(folders[name], "background") for name in ("mean", "noise")))
    text = (world / "out" / "compare.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| plain/noise |"))
    assert f"{found.value:+.3f}".replace("0.", ".") in row
    assert "figures/question-1.webp" in text and (world / "out" / "figures" / "question-1.webp").is_file()
    assert (world / "out" / "figures" / "fine-tuning-steps.png").is_file()
    assert "![Mismatch and background](figures/mismatch.png)" in text, "the methods' mismatches differ"
    page = (world / "out" / "report.html").read_text()
    assert "plain training, from class mean" in page and "Real images of the brand" in page


def test_what_passes_by_image(tmp_path: Path) -> None:
    told = [("b.png", ["background"]), ("a.png", []), ("c.png", ["text"])]
    entries = [{"file": file, "failed": failed, "values": {}} for file, failed in told]
    (tmp_path / "check.json").write_text(json.dumps(CHECK | {"images": entries}))
    assert passed(tmp_path, "all").tolist() == [1, 0, 0] and passed(tmp_path, "background").tolist() == [1, 0, 1]


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


def test_the_baselines_schedules(world: Path, compared: dict[str, object]) -> None:
    from onbrand.models.pipeline import load

    models = world / "out" / "models"
    zero, small = (load(next(models.glob(f"{name}-*"))).scheduler for name in ("zero-snr", "small-alpha"))
    assert zero.alphas_cumprod[-1] < 1e-6 and zero.config.prediction_type == "v_prediction"
    assert zero.config.timestep_spacing == "trailing"
    assert small.alphas_cumprod[-1].item() == pytest.approx(1 / (4 * 8 * 8), rel=1e-3)
    assert small.alphas_cumprod[0].item() == pytest.approx(1 - 0.00085, rel=1e-5)


def test_a_row_with_its_background_replaced_is_the_same_row(world: Path, compared: dict[str, object]) -> None:
    made = next((world / "out" / "images").glob("plain_noise+pasted-*-unpasted"))
    plain = next((world / "out" / "images").glob("plain_noise-*"))
    assert (made / "00003.png").read_bytes() == (plain / "00003.png").read_bytes()
    assert compared["methods"]["plain/noise+pasted"]["background"]["n"] == 24


def test_a_folder_is_pasted_on_white(tmp_path: Path) -> None:
    image = Image.new("RGB", (16, 16), (90, 120, 140))
    ImageDraw.Draw(image).rectangle((5, 5, 10, 10), (200, 30, 40))
    (tmp_path / "made").mkdir()
    image.save(tmp_path / "made" / "00000.png")
    line = json.dumps(MANIFEST_LINE | {"index": 0, "file": "00000.png", "prompt": "block", "class": "block"})
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
    own = world / "own.yaml"
    own.write_text("same: {train: {start: noise}, generate: {start: mean}}")
    names = [*methods, "plain/mean+4", str(own)]
    again = onbrand.compare(**arguments(world, methods=names))  # type: ignore[arg-type]
    shown = capsys.readouterr().out
    assert "fine-tuning" not in shown and shown.count("images: ") == 1
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert set(again["methods"]) == {"real", "autoencoder", *methods, "plain/mean+4", "same"} and not again["failed"]
    assert again["methods"]["same"] == again["methods"]["plain/mean"], "another name for the same work"


@pytest.mark.filterwarnings("ignore:.*its mean shows those images")
def test_a_method_of_ones_own_is_trained_and_sampled(world: Path, compared: dict[str, object]) -> None:
    own = world / "more.yaml"
    own.write_text(
        "mine:\n  words: a cosine\n  train: {max_train_steps: 2, lr_scheduler: cosine, lr_warmup_steps: 0}\n"
        "  generate: {guidance_scale: 3}\n  prompts: held\nleft-to-the-verbs: {}\n"
    )
    more = {"methods": [str(own), "plain/mean"], "questions": {"Mine?": ["mine", "plain/mean"]}}
    result = onbrand.compare(**arguments(world, **more))  # type: ignore[arg-type]
    assert set(result["methods"]) == {"real", "autoencoder", "mine", "left-to-the-verbs", "plain/mean"}
    assert result["mismatch"]["mine"] is None, "its start is left to the verbs"
    (folder,) = (world / "out" / "images").glob("mine-*")
    assert json.loads((folder / "manifest.jsonl").read_text().splitlines()[0])["guidance_scale"] == 3
    assert (world / "out" / "compare.json").is_file() and result["rows"]["mine"]["training"] == "a cosine"


def test_a_sampler_that_the_model_cannot_follow_is_refused_before_any_work(world: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("mine: {generate: {start: mean, scheduler: NoScheduler}}")
    more = {"methods": str(own), "questions": {}, "output_dir": tmp_path / "out"}
    with raises("method", "'mine'", "NoScheduler"):
        onbrand.compare(**arguments(world, **more))  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "code", "values"),
    [
        ({"methods": ["plain/mean", "plain/mean"]}, "comparison", ("twice ['plain/mean']")),
        (
            {"methods": "plain/mean,plain/noise,plain/mean"},
            "comparison",
            ("twice ['plain/mean']", "unknown ['stock/noise']"),
        ),
        ({"methods": []}, "comparison", ("twice []", "plain/noise")),
        ({"questions": {"why": ["plain/pca9"]}}, "comparison", ("unknown ['plain/pca9']",)),
        ({"methods": "none.yaml", "questions": {}}, "method", ("none.yaml", "YAML")),
        ({"methods": ["plain/mean@other"], "questions": {}}, "comparison", ("@set", "held", "other")),
        ({"prompt_sets": {"held": "nowhere.jsonl"}}, "comparison", ("requests", "nowhere.jsonl")),
        ({"reference_images": "nowhere"}, "comparison", ("reference_images", "nowhere")),
        ({"prompts": __file__}, "request", (__file__, "JSON")),
        ({"attributes": "garments", "clip": "garments"}, "value", ("one attribute classifier", "garments, garments")),
    ],
)
def test_wrong_input_is_refused_before_any_work(
    world: Path, tmp_path: Path, more: dict[str, object], code: str, values: tuple[str, ...]
) -> None:
    with raises(code, *values):
        onbrand.compare(**arguments(world, output_dir=tmp_path / "out", **more))  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_a_request_of_no_class_is_found_before_a_training(
    world: Path, compared: dict[str, object], tmp_path: Path
) -> None:
    (tmp_path / "asked.jsonl").write_text(json.dumps({"prompt": "a block", "class": "elsewhere"}))
    more = {"output_dir": tmp_path / "out", "prompts": tmp_path / "asked.jsonl", "prior": world / "out" / "brand"}
    with raises("prior", "elsewhere"):
        onbrand.compare(**arguments(world, **more))  # type: ignore[arg-type]
    assert not (tmp_path / "out" / "runs").exists()


def share(folder: Path, name: str) -> None:
    """The child: work on eight jobs, each of which says who did it."""
    marks = [folder / f"m{i}" for i in range(8)]

    def make(mark: Path) -> None:
        with (folder / "log").open("a") as log:
            log.write(f"{name} {mark.name}\n")
        time.sleep(0.2)
        mark.touch()

    work([Job(mark.name, mark, partial(make, mark)) for mark in marks], folder / "locks", lambda words: None)
    assert all(mark.exists() for mark in marks)


def test_two_processes_share_the_work(tmp_path: Path) -> None:
    both = [SERVER.Process(target=share, args=(tmp_path, name)) for name in "ab"]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    lines = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert sorted(mark for _, mark in lines) == [f"m{i}" for i in range(8)], "each once"
    assert {name for name, _ in lines} == {"a", "b"}


def test_what_fails_is_listed_with_what_needed_it_and_the_rest_goes_on(tmp_path: Path) -> None:
    def broken() -> None:
        raise OnbrandError("training", "the loss is nan")

    a, b, c, d = (tmp_path / name for name in "abcd")
    jobs = [Job("a", a, broken), Job("b", b, b.touch, needs=a), Job("c", c, c.touch), Job("d", d, lambda: None)]
    failed = work(jobs, tmp_path / "locks", lambda words: None)
    assert failed == {"a": "the loss is nan", "b": "its training failed", "d": f"the work left no {d}"}
    assert c.exists() and not b.exists()


def test_a_full_disk_ends_it_for_there_is_no_space_for_the_others_either(tmp_path: Path) -> None:
    def full() -> None:
        raise OnbrandError("space", "there is no space left")

    with raises("space", "no space left"):
        work([Job("a", tmp_path / "a", full), Job("b", tmp_path / "b", pytest.fail)], tmp_path / "locks", print)


@pytest.mark.parametrize(
    "name", ["a|b", "[x](http://y)", "<script>", "*b*", "`c`", "tab\tnew\nline", "\\|", "pay $x^{$"]
)
def test_a_name_stands_in_a_table_and_a_figure_as_it_is(tmp_path: Path, name: str) -> None:
    entry = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9}
    content = {"title": "t", "rule": "r", "rate": 0.5, "low": 0.4, "high": 0.6, "n": 9}
    check = CHECK | {"count": 9, "all": content, "properties": {"background": content}, "attributes": {name: content}}
    check |= {"images": [{"file": "00000.png", "failed": [], "values": {}}]}
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "check.json").write_text(json.dumps(check))
        Image.new("RGB", (16, 16)).save(tmp_path / folder / "00000.png")
    lines = [Line(name, name, name, tmp_path / "one", nats=1.0), Line("two", "two", "two", tmp_path / "two", nats=2.0)]
    table = {line.name: {"background": entry, "all": entry, f"text: {name}": entry} for line in lines}
    text = write(tmp_path / "figures", table, lines, {name: [name, "two"]}, {name: {name: {1.0: name, 2.0: "two"}}})
    rows = [re.sub(r"\\.", "", line) for line in text.splitlines() if line.startswith("|")]
    assert len({row.count("|") for row in rows if row.startswith("| ")}) <= 3 and "<script" not in text
    assert all(line.startswith(("|", "#", "-", "!", "From", "Rates")) for line in text.splitlines() if line), (
        "no line more"
    )
    names = sorted(file.name for file in (tmp_path / "figures").iterdir())
    assert len(names) == 3 and "question-1.webp" in names and "mismatch.png" in names


@pytest.mark.filterwarnings("ignore:.*its mean shows those images")
def test_where_every_row_fails_it_ends_with_why(world: Path, tmp_path: Path, capsys: Any) -> None:
    more = {"output_dir": tmp_path / "out", "methods": ["mean-window:2/mean+8"], "reference_images": None}
    more |= {"prompt_sets": {}, "questions": {}}
    result = onbrand.compare(**arguments(world, **more))  # type: ignore[arg-type]
    assert list(result["failed"]) == ["images: mean-window:2/mean+8"] and result["methods"] == {}
    shown = capsys.readouterr().out
    assert "failed: images: mean-window:2/mean+8: OB003" in shown and "compare.json: no row was made" in shown
    assert not (tmp_path / "out" / "report.html").exists()
