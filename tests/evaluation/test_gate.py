"""Images that fail are drawn again: as `check` judges them, to the same bytes after any stop, and its cost told."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageEnhance

import onbrand
from onbrand.cli import main
from onbrand.errors import OnbrandError
from onbrand.evaluation.gate import open_gate
from onbrand.models import pipeline
from onbrand.options.generate import GenerateOptions, SamplingSettings
from onbrand.sampling.draws import FINITE, Gate, draw, gain_of, number_of, seed_of, words_of
from onbrand.sampling.manifest import read_manifest, remake, write_images
from onbrand.sampling.requests import Request
from onbrand.sampling.sampler import GeneratedImage, plan
from worlds import raises, tiny_pipeline, write_blocks

COUNT = 12
QUICK: dict[str, Any] = {"start": "noise", "num_inference_steps": 2, "guidance_scale": 1.0, "batch_size": 5}


@pytest.fixture(scope="module")
def brand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model/; photos/, images of the model with less contrast, so that about half of its other images pass; brand/."""
    folder = tmp_path_factory.mktemp("gate")
    tiny_pipeline().save_pretrained(folder / "model")
    options = {"prompt": "block", "num_images_per_prompt": 40, "seed": 1000, **QUICK}
    onbrand.generate(model=folder / "model", output_dir=folder / "own", **options)
    (folder / "photos").mkdir()
    rows = []
    for file in sorted((folder / "own").glob("*.png")):
        with Image.open(file) as image:
            ImageEnhance.Contrast(image).enhance(0.75).save(folder / "photos" / file.name)
        rows.append({"file_name": file.name, "text": "block, red", "class": "block"})
    (folder / "photos" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.warns(UserWarning, match="its mean shows those images"):
        onbrand.fit(folder / "photos", folder / "model", folder / "brand", k=3)
    (folder / "prompts.txt").write_text("block, red\n" * COUNT)
    return folder


def generate(brand: Path, out: Path, **options: Any) -> dict[int, dict[str, Any]]:
    """The manifest of a gated run."""
    settings = {"against": brand / "photos", "prior": brand / "brand", "max_draws": 3} | QUICK | options
    onbrand.generate(brand / "prompts.txt", model=brand / "model", output_dir=out, **settings)
    return read_manifest(out)


@pytest.fixture(scope="module")
def gated(brand: Path) -> Path:
    generate(brand, brand / "gated")
    return brand / "gated"


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("0*.png"))}


@pytest.mark.parametrize("prior", [True, False])
def test_a_check_gives_the_rates_that_the_gate_told(
    brand: Path, tmp_path: Path, prior: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    place = brand / "brand" if prior else None
    entries = generate(brand, tmp_path / "images", prior=place)
    gain = json.loads((tmp_path / "images" / "run.json").read_text())["gate"]
    shown = capsys.readouterr().out
    checked = onbrand.check(tmp_path / "images", brand / "photos", prior=place)
    assert checked.rate == gain["rate"] > gain["rate_first"] > 0, "some pass at once, some later"
    last = {entry["file"]: entry["draws"][number_of(entry)]["failed"] for entry in entries.values()}
    assert {entry["file"]: entry["failed"] for entry in checked.content["images"]} == last
    assert gain["never"] == [{"file": file, "failed": failed} for file, failed in last.items() if failed] != []
    assert gain["drawn"] == sum(len(entry["draws"]) for entry in entries.values())
    assert f"{gain['rate_first']:.1%} pass every check at the first draw, {gain['rate']:.1%} in the end" in shown
    assert f"{gain['drawn'] / (COUNT * gain['rate']):.2f} for each that passes" in shown
    assert f"  {gain['never'][0]['file']}: " in shown
    assert generate(brand, tmp_path / "one", prior=place, max_draws=1).keys() == entries.keys()
    first = onbrand.check(tmp_path / "one", brand / "photos", prior=place)
    assert first.rate == gain["rate_first"], "one draw judges, and draws nothing again"


@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"dtype": "bfloat16", "offload": True}, {"offload": True}])
def test_in_half_precision_and_tiled_the_check_gives_the_same(brand: Path, tmp_path: Path, options: Any) -> None:
    """The gate's autoencoder is the check's, in float32 and whole."""
    entries = generate(brand, tmp_path / "p", **options)
    checked = onbrand.check(tmp_path / "p", brand / "photos", prior=brand / "brand")
    failed = [entry["draws"][number_of(entry)]["failed"] for _, entry in sorted(entries.items())]
    assert [entry["failed"] for entry in checked.content["images"]] == failed


def test_what_passes_at_once_is_the_image_of_a_run_without_a_gate(brand: Path, gated: Path, tmp_path: Path) -> None:
    entries = read_manifest(gated)
    plain = generate(brand, tmp_path / "plain", against=None, max_draws=4)
    assert not any("draws" in entry for entry in plain.values())
    assert not any(
        "gate" in json.loads((tmp_path / "plain" / name).read_text()) for name in ("run.json", "config.json")
    )
    ours, theirs = bytes_of(gated), bytes_of(tmp_path / "plain")
    same = {entry["file"] for entry in entries.values() if not number_of(entry)}
    assert {file for file in ours if ours[file] == theirs[file]} == same and 0 < len(same) < COUNT


def test_each_image_says_its_draws_and_the_seed_that_was_used(gated: Path) -> None:
    for index, entry in read_manifest(gated).items():
        seeds = [one["seed"] for one in entry["draws"]]
        assert seeds == [seed_of(index, number) for number in range(len(seeds))]
        assert all(one["failed"] for one in entry["draws"][:-1]) and 1 <= len(seeds) <= 3
        counts = [len(one["failed"]) for one in entry["draws"]]
        assert number_of(entry) == counts.index(min(counts)), "the one that fails least, the first of equals"


@pytest.mark.parametrize("count", [1, 4, 5, 7])
def test_stopped_and_gone_on_with_to_the_same_bytes_and_lines(
    brand: Path, gated: Path, tmp_path: Path, count: int
) -> None:
    pipe, prior = pipeline.load(brand / "model"), onbrand.Prior.load(brand / "brand")
    requests = [Request("block, red", seed) for seed in range(COUNT)]

    def images() -> Any:
        return write_images(
            tmp_path / "p", pipe, prior, requests, SamplingSettings(**QUICK),
            open_gate=lambda work: open_gate(work, brand / "photos", 3, brand=brand / "brand"),
        )  # fmt: skip

    begun = images()
    for _ in range(count):
        next(begun)
    begun.close()
    with (tmp_path / "p" / "manifest.jsonl").open("ab") as lines:
        lines.write(b'{"index": 9, "dr')  # what a kill cut short
    assert [image.index for image in images()] == list(range(count, COUNT))
    assert bytes_of(tmp_path / "p") == bytes_of(gated)
    assert (tmp_path / "p" / "manifest.jsonl").read_bytes() == (gated / "manifest.jsonl").read_bytes()


@pytest.mark.parametrize("size", [1, 12])
def test_the_batch_decides_nothing(brand: Path, gated: Path, tmp_path: Path, size: int) -> None:
    entries = generate(brand, tmp_path / "p", batch_size=size)
    draws = {index: (entry["seed"], entry["draws"]) for index, entry in entries.items()}
    assert draws == {index: (entry["seed"], entry["draws"]) for index, entry in read_manifest(gated).items()}


def test_any_draw_is_remade_to_the_byte(brand: Path, gated: Path, tmp_path: Path) -> None:
    pipe, prior = pipeline.load(brand / "model"), onbrand.Prior.load(brand / "brand")
    entries = read_manifest(gated)
    numbers = {number_of(entry): index for index, entry in entries.items()}
    assert {0, 1} <= set(numbers)
    for index in numbers.values():
        image = remake(gated, index, pipe, prior)
        image.image.save(tmp_path / "again.png")
        assert (tmp_path / "again.png").read_bytes() == (gated / f"{index:05d}.png").read_bytes()
        assert (image.index, image.request.seed) == (index, entries[index]["seed"])


@pytest.mark.parametrize(
    ("options", "values"),
    [({"max_draws": 2}, ("gate.max_draws", "was 3", "is 2")),
     ({"against": None, "max_draws": 4}, ("gate.max_draws", "is None")),
     ({"attributes": "garments"}, ("gate.attributes", "garments"))],
)  # fmt: skip
def test_another_gate_is_another_run(brand: Path, gated: Path, options: Any, values: Any) -> None:
    before = bytes_of(gated)
    with raises("folder", gated, *values):
        generate(brand, gated, **options)
    assert bytes_of(gated) == before


def test_a_brand_that_nothing_passes_ends_and_lists_every_image(
    brand: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_blocks(tmp_path / "photos", 24)
    words = f"generate {brand / 'prompts.txt'} --model {brand / 'model'} --output_dir {tmp_path / 'p'} --start noise "
    words += f"--against {tmp_path / 'photos'} --max_draws 2 --num_inference_steps 1 --guidance_scale 1"
    assert main(words.split()) == 0
    shown = capsys.readouterr().out
    assert "0.0% pass every check at the first draw, 0.0% in the end; 24 images drawn\n" in shown
    assert "12 never passed, all in run.json:" in shown
    gain = json.loads((tmp_path / "p" / "run.json").read_text())["gate"]
    assert len(gain["never"]) == COUNT and gain["drawn_per_pass"] is None and len(bytes_of(tmp_path / "p")) == COUNT


@pytest.mark.parametrize(
    ("line", "options", "code", "values"),
    [
        ({}, {"attributes": "photos"}, "classifier", ("photos reads", "leave attributes out")),
        ({"attributes": {"colour": "plaid"}}, {"attributes": "garments"}, "classifier", ("colour", "'plaid'", "red")),
        ({}, {"attributes": "garments-clip"}, "classifier", ("garments-clip", "reader.json")),
        ({}, {"attributes": "nowhere"}, "classifier", ("nowhere",)),
        ({}, {"against": "none"}, "data", ("none", "does not exist")),
        ({}, {"against": "few"}, "value", ("at least 20 images", "got 3")),
        ({"class": "hat"}, {}, "prior", ("hat", "block")),
    ],
)
def test_what_cannot_be_judged_is_said_before_any_image(
    brand: Path, tmp_path: Path, line: Any, options: Any, code: str, values: Any
) -> None:
    (tmp_path / "r.jsonl").write_text(json.dumps({"prompt": "block", "seed": 1, **line}) + "\n")
    write_blocks(tmp_path / "few", 3)
    folders = {"against": tmp_path / options["against"]} if "against" in options else {}
    settings = {"against": brand / "photos", "prior": brand / "brand"} | QUICK | options | folders
    with raises(code, *values):
        onbrand.generate(tmp_path / "r.jsonl", model=brand / "model", output_dir=tmp_path / "p", **settings)
    assert not list(tmp_path.glob("p/*.png")) and not (tmp_path / "p" / "manifest.jsonl").exists()


def test_an_image_of_no_size_known_before(brand: Path, pipe: Any, tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    request = Request("block", 1, image=str(tmp_path / "a.png"), place="prompts.txt line 1")
    work = plan(pipe, None, [request], SamplingSettings(start="image"))
    with raises("request", "prompts.txt line 1", "resolution"):
        open_gate(work, brand / "photos", 2)


@pytest.mark.parametrize("name", ["max_draws", "attributes"])
def test_settings_of_a_gate_need_one(name: str) -> None:
    with raises("option", name, "against"):
        GenerateOptions(model="tiny", output_dir="p", prompt="a", **{name: 7 if name == "max_draws" else "garments"})


def test_the_next_seed_follows_from_the_seed_alone() -> None:
    seeds = [seed_of(seed, number) for seed in (0, 1, 7, 2**63 - 1) for number in range(1, 5)]
    assert seed_of(7, 0) == 7 and len(set(seeds)) == 16 and all(0 <= seed < 2**53 for seed in seeds)
    assert seed_of(7, 1) == 8473587200983024, "a manifest's draws are the same with every version"


def drawn(failures: dict[int, list[tuple[str, ...]]], most: int) -> list[GeneratedImage]:
    """What `draw` leaves of images that fail so at each draw; FINITE: of numbers that are none."""
    counts = dict.fromkeys(failures, 0)

    def make(indices: Sequence[int], requests: Sequence[Request]) -> list[GeneratedImage]:
        images = []
        for index, request in zip(indices, requests, strict=True):
            finite = FINITE not in failures[index][counts[index]]
            image = Image.new("RGB", (1, 1))
            images.append(GeneratedImage(index, request, None, image, torch.zeros(1), (0, 1), finite))
            counts[index] += 1
        return images

    def judge(images: Sequence[GeneratedImage]) -> list[list[str]]:
        assert images and all(image.finite for image in images)
        return [list(failures[image.index][counts[image.index] - 1]) for image in images]

    requests = [Request("a", 10 + index) for index in range(max(failures) + 1)]
    return draw(Gate(judge, most, {}), list(failures), requests, make)


def test_the_draw_that_fails_least_stays_and_one_of_numbers_at_all() -> None:
    images = drawn({
        2: [("light", "pose"), ("light",), ("pose",)],
        3: [(FINITE,), ("light", "pose"), (FINITE,)],
        4: [(FINITE,)] * 3,
        5: [("light",), ()],
    }, 3)  # fmt: skip
    assert [image.request.seed for image in images] == [seed_of(12, 1), seed_of(13, 1), 14, seed_of(15, 1)]
    assert [len(image.draws) for image in images] == [3, 3, 3, 2]
    assert [image.finite for image in images] == [True, True, False, True]
    assert {image.batch for image in images} == {(2, 4)}


def test_an_image_that_is_never_finite_is_an_error_and_the_others_are_there(brand: Path, tmp_path: Path) -> None:
    pipe = tiny_pipeline()
    token = pipe.tokenizer("4", add_special_tokens=False).input_ids[0]
    with torch.no_grad():
        pipe.text_encoder.get_input_embeddings().weight[token] = torch.nan
    requests = [replace(Request("block", 1), prompt=f"block {number}", seed=number) for number in range(3, 6)]
    settings = SamplingSettings(**QUICK)
    with raises("image", "1 of 3", "(1)"):
        list(
            write_images(
                tmp_path / "p",
                pipe,
                None,
                requests,
                settings,
                open_gate=lambda work: open_gate(work, brand / "photos", 2),
            )  # fmt: skip
        )
    assert set(read_manifest(tmp_path / "p")) == {0, 2}


def test_what_a_gate_gained_is_nothing_without_one() -> None:
    assert gain_of([{"seed": 1, "file": "a.png"}]) == {}
    entries = [{"seed": 1, "file": f"{i}\n.png", "draws": [{"seed": 1, "failed": ["pose"]}]} for i in range(23)]
    lines = words_of(gain_of(entries))
    assert len(lines) == 23 and lines[2] == "  0\\n.png: pose" and lines[-1] == "  ... and 3 more"


@pytest.mark.parametrize("draws", [[{"seed": 5, "failed": []}], [{"seed": -1, "failed": []}], [{"seed": 1}], {}])
def test_damaged_draws_are_named(gated: Path, tmp_path: Path, draws: Any) -> None:
    entry = read_manifest(gated)[0]
    (tmp_path / "manifest.jsonl").write_text(json.dumps({**entry, "seed": 1, "draws": draws}) + "\n")
    with pytest.raises(OnbrandError, match=r"manifest.jsonl line 1 is damaged: .*(draws|seed)"):
        read_manifest(tmp_path)
