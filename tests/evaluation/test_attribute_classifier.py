"""The shipped readers read held-out pictures as well as their score.json say, and survive saving."""

import json
from importlib import resources

import numpy as np
import pytest
import torch

from onbrand.datasets.fashion import COLOURS, KINDS, brand_picture, photos
from onbrand.datasets.garments import garments, shown
from onbrand.evaluation.text import AttributeClassifier, all_right, open_judge
from onbrand.evaluation.text import read as judged


def test_the_photos_reader_meets_its_score_on_held_out_photos():
    said = json.loads((resources.files("onbrand") / "assets/photos-reader/score.json").read_text())
    (grey, kinds), colours = photos("test"), list(COLOURS)
    tinted = np.stack([brand_picture(grey[i], colours[i % 12]) for i in range(600)])
    read = open_judge("photos").read(torch.from_numpy(tinted).permute(0, 3, 1, 2).float() / 255)
    kind = np.mean([KINDS[k] == r for k, r in zip(kinds, read["kind"], strict=False)])
    colour = np.mean([colours[i % 12] == r for i, r in enumerate(read["colour"])])
    assert abs(kind - said["kind"]) < 0.04 and abs(colour - said["colour"]) < 0.02
    assert kind > 0.85 and colour > 0.97


def test_saved_reader_reads_the_same(tmp_path):
    torch.manual_seed(0)
    reader = AttributeClassifier({"kind": ["a", "b"], "colour": ["c", "d", "e"]}, width=4).eval()
    reader.save(tmp_path)
    pictures = torch.rand(8, 3, reader.side, reader.side)
    for name, logits in AttributeClassifier.load(tmp_path)(pictures).items():
        assert torch.allclose(logits, reader(pictures)[name], atol=5e-3)


def test_no_reader_there_says_what_a_reader_is(tmp_path):
    with pytest.raises(ValueError, match="reader.json"):
        AttributeClassifier.load(tmp_path)


def test_the_garments_reader_meets_its_score_on_held_out_pictures_and_its_captions():
    said = json.loads((resources.files("onbrand") / "assets/garment-reader/score.json").read_text())["test"]
    pictures, rows = garments("test")
    pixels = torch.from_numpy(pictures[:200]).permute(0, 3, 1, 2).float() / 255
    reader = open_judge("garments")
    read = reader.read(pixels)
    for name, labels in reader.attributes.items():
        share = np.mean([row[name] == got for row, got in zip(rows, read[name], strict=False)])
        assert set(read[name]) <= set(labels) and abs(share - said[name]) < 0.08
    right = judged(reader, pixels, [row["text"] for row in rows[:200]], [shown(row) for row in rows[:200]])
    assert all_right(right).mean() > said["all"]  # a caption names some of what is read


def test_a_side_that_cannot_be_halved_to_32_is_refused():
    with pytest.raises(ValueError, match="side must be 32 times a power of two, got 96"):
        AttributeClassifier({"kind": ["a", "b"]}, side=96)
    assert AttributeClassifier({"kind": ["a", "b"]}, width=4, side=64).eval()(torch.rand(2, 3, 80, 80))[
        "kind"
    ].shape == (2, 2)
