"""A brand of several ratios through every verb: fit, diagnose, train, generate, check; of one ratio as ever."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from onbrand import api
from onbrand.core.prior import Prior, load_all
from onbrand.data.images import open_image
from worlds import COLOURS, raises, tiny_pipeline

WIDE, SQUARE = (16, 32), (24, 24)
"""Of the buckets, of one area; the model's own size is 16 x 16."""


def write_photos(folder: Path, counts: dict[tuple[str, tuple[int, int]], int], seed: int = 0) -> Path:
    """Photos of coloured blocks: (class, (H, W)) -> how many."""
    folder.mkdir(parents=True)
    rows, rng = [], np.random.default_rng(seed)
    for (class_name, (height, width)), count in counts.items():
        for i in range(count):
            image, name = Image.new("RGB", (width, height), (255, 255, 255)), f"{class_name} {height} {i:03d}.png"
            left, top = int(rng.integers(2, width // 2)), int(rng.integers(2, height // 2))
            colour, shade = list(COLOURS)[i % 3], (i % 250, 0, int(rng.integers(250)))
            ImageDraw.Draw(image).rectangle((left, top, left + width // 3, top + height // 3), COLOURS[colour])
            image.putpixel((left, top), shade)  # no two are alike
            image.save(folder / name)
            rows.append({"file_name": name, "text": f"{class_name}, {colour}", "class": class_name})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def home(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """photos/ of two ratios, model/, and brand/, fitted with buckets."""
    folder = tmp_path_factory.mktemp(request.param)
    counts = {("block", (30, 30)): 70, ("block", (20, 40)): 55, ("bag", (20, 40)): 9, ("bag", (30, 30)): 52}
    write_photos(folder / "photos", counts)
    tiny_pipeline(family=request.param).save_pretrained(folder / "model")
    fit(folder, folder / "brand", enable_bucket=True)
    return folder


def fit(home: Path, out: Path, photos: str = "photos", **options: Any) -> dict[str, Any]:
    return api.fit(home / photos, home / "model", out, k=3, resolution=24, device="cpu", **options)


def files_of(folder: Path) -> dict[str, bytes]:
    """A folder's files but its cache and what names the folder."""
    paths = [path for path in folder.rglob("*") if path.is_file() and "latents" not in path.parts]
    files = {str(path.relative_to(folder)): path.read_bytes() for path in paths}
    return files | {"fit.json": json.dumps(json.loads(files["fit.json"]) | {"command": ""}).encode()}


def test_a_brand_has_a_prior_for_each_ratio(home: Path) -> None:
    brand, content = home / "brand", json.loads((home / "brand" / "fit.json").read_text())
    prior = load_all(brand)
    assert [one.size for one in prior.all] == [SQUARE, WIDE] and prior is prior.all[0]
    assert set(prior.classes) == {"block", "bag"}
    assert prior.at(WIDE).classes == ("block",)  # nine bags are too few: they are padded into the square
    assert prior.gaussians["bag"].count == 61 and prior.at(WIDE).gaussians["block"].count == 55
    assert prior.at(WIDE).shape == (4, 8, 16) and prior.at(WIDE).at(SQUARE) is prior
    assert prior.fingerprint == Prior.load(brand / "prior.safetensors").fingerprint
    assert content["resolution"] == [24, 24] and content["used"] == 131
    (other,) = content["buckets"]
    assert (other["resolution"], other["used"], list(other["classes"])) == ([16, 32], 55, ["block"])
    assert open_image(brand / "means" / "16x32" / "block.png").size == (32, 16)
    assert open_image(brand / "means" / "block.png").size == (24, 24)
    unseen = json.loads((brand / "buckets" / "16x32" / "unseen.json").read_text())
    assert unseen["prior"] == prior.at(WIDE).fingerprint and len(unseen["photos"]) == 55


def test_a_prior_of_a_bucket_is_that_of_its_photos_alone(home: Path, tmp_path: Path) -> None:
    write_photos(tmp_path / "wide", {("block", (30, 30)): 70, ("block", (20, 40)): 55})
    for file in (tmp_path / "wide").glob("block 30 *"):
        file.unlink()
    lines = (tmp_path / "wide" / "metadata.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "wide" / "metadata.jsonl").write_text("".join(line for line in lines if "block 20" in line))
    api.fit(tmp_path / "wide", home / "model", tmp_path / "brand", k=3, resolution=WIDE, device="cpu")
    alone, own = Prior.load(tmp_path / "brand" / "prior.safetensors"), load_all(home / "brand").at(WIDE)
    assert torch.allclose(alone.mean("block"), own.mean("block"), atol=1e-5)


def test_fitted_again_the_brand_is_the_same_and_without_the_flag_as_before(home: Path, tmp_path: Path) -> None:
    fit(home, tmp_path / "again", enable_bucket=True)
    assert files_of(tmp_path / "again") == files_of(home / "brand")
    assert len(load_all(tmp_path / "again").all) == 2
    fit(home, tmp_path / "again")  # what was there of other sizes goes
    assert not (tmp_path / "again" / "buckets").exists() and len(load_all(tmp_path / "again").all) == 1
    assert "buckets" not in json.loads((tmp_path / "again" / "fit.json").read_text())


def test_photos_of_one_ratio_have_one_bucket_that_is_an_ordinary_prior(home: Path, tmp_path: Path) -> None:
    write_photos(home / "alike", {("block", (30, 30)): 60}) if not (home / "alike").exists() else None
    fit(home, tmp_path / "with", "alike", enable_bucket=True)
    fit(home, tmp_path / "without", "alike")
    assert files_of(tmp_path / "with") == files_of(tmp_path / "without")


@pytest.mark.parametrize("step", [5, 16, 7])
def test_a_step_that_does_not_go_is_refused(home: Path, tmp_path: Path, step: int) -> None:
    with raises("option", "bucket_reso_steps", step):
        fit(home, tmp_path / "brand", enable_bucket=True, bucket_reso_steps=step)
    assert not (tmp_path / "brand").exists()
    with raises("option", "bucket_reso_steps", "enable_bucket"):
        fit(home, tmp_path / "brand", bucket_reso_steps=8)


def test_a_bucket_of_another_brand_is_refused(home: Path, tmp_path: Path) -> None:
    prior = load_all(home / "brand")
    (tmp_path / "buckets" / "16x32").mkdir(parents=True)
    prior.save(tmp_path / "prior.safetensors")
    prior.save(tmp_path / "buckets" / "16x32" / "prior.safetensors")
    with raises("prior", "buckets/16x32", "fit again"):
        load_all(tmp_path)


@pytest.mark.parametrize("size", [(24, 16), (16, 16), (32, 16)])
def test_another_size_is_refused_with_those_that_there_are(home: Path, size: tuple[int, int]) -> None:
    prior = load_all(home / "brand")
    with raises("prior", f"{size[0]}x{size[1]}", "24x24", "16x32"):
        prior.at(size)


def test_diagnose_measures_each_bucket(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = api.diagnose(home / "brand")
    content = json.loads((home / "brand" / "leak.json").read_text())
    assert set(content["classes"]) == {"block", "bag"} and content["buckets"] == result["buckets"]
    (other,) = content["buckets"]
    assert other["resolution"] == [16, 32] and set(other["classes"]) == {"block"} and other["findings"]
    assert "16 x 32" in capsys.readouterr().out
