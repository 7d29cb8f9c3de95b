"""The shipped attribute classifiers read held-out images as well as their score.json say, and survive saving."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from onbrand.datasets.fashion import COLOURS, KINDS, brand_image, photos
from onbrand.datasets.garments import garments, shown
from onbrand.evaluation.text import AttributeClassifier, all_right, open_judge
from onbrand.evaluation.text import read as judge_text
from worlds import raises


def test_the_photos_classifier_meets_its_score_on_held_out_photos() -> None:
    scores = json.loads((resources.files("onbrand") / "assets/photos-reader/score.json").read_text())
    (grey, kinds), colours = photos("test"), list(COLOURS)
    images = np.stack([brand_image(grey[i], colours[i % 12]) for i in range(600)])
    readings = open_judge("photos").read(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)
    kind_share = np.mean([KINDS[k] == r for k, r in zip(kinds, readings["kind"], strict=False)])
    colour_share = np.mean([colours[i % 12] == r for i, r in enumerate(readings["colour"])])
    assert abs(kind_share - scores["kind"]) < 0.04 and abs(colour_share - scores["colour"]) < 0.02
    assert kind_share > 0.85 and colour_share > 0.97


def test_saved_classifier_reads_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    classifier = AttributeClassifier({"kind": ["a", "b"], "colour": ["c", "d", "e"]}, width=4).eval()
    classifier.save(tmp_path)
    images = torch.rand(8, 3, classifier.side, classifier.side)
    for name, logits in AttributeClassifier.load(tmp_path)(images).items():
        assert torch.allclose(logits, classifier(images)[name], atol=5e-3)


def test_a_folder_without_a_classifier_says_what_it_holds(tmp_path: Path) -> None:
    with raises("classifier", "reader.json", "safetensors", tmp_path):
        AttributeClassifier.load(tmp_path)


def test_the_garments_classifier_meets_its_score_on_held_out_images_and_its_captions() -> None:
    scores = json.loads((resources.files("onbrand") / "assets/garment-reader/score.json").read_text())["test"]
    images, rows = garments("test")
    pixels = torch.from_numpy(images[:200]).permute(0, 3, 1, 2).float() / 255
    classifier = open_judge("garments")
    readings = classifier.read(pixels)
    for name, labels in classifier.attributes.items():
        share = np.mean([row[name] == label for row, label in zip(rows, readings[name], strict=False)])
        assert set(readings[name]) <= set(labels) and abs(share - scores[name]) < 0.08
    right = judge_text(classifier, pixels, [row["text"] for row in rows[:200]], [shown(row) for row in rows[:200]])
    assert all_right(right).mean() > scores["all"]  # a caption names some of what is read


def test_a_side_that_cannot_be_halved_to_32_is_refused() -> None:
    with raises("classifier", "side", 32, 96):
        AttributeClassifier({"kind": ["a", "b"]}, side=96)
    assert AttributeClassifier({"kind": ["a", "b"]}, width=4, side=64).eval()(torch.rand(2, 3, 80, 80))[
        "kind"
    ].shape == (2, 2)


@pytest.mark.parametrize(
    ("file", "content", "values"),
    [
        ("reader.json", "{", ("no JSON",)),
        ("reader.json", '{"attributes": {}, "width": 4}', ("attributes",)),
        ("reader.json", '{"attributes": {"colour": []}, "width": 4}', ("attributes.colour",)),
        ("reader.json", '{"attributes": {"colour": ["a", "b"]}, "width": "wide"}', ("width", "'wide'")),
        ("reader.json", '{"attributes": {"colour": ["a", "b"]}, "width": 1000000}', ("width", "1000000")),
        ("reader.json", '{"attributes": {"__class__": ["a", "b"]}, "width": 4}', ("__class__",)),
        ("reader.json", '{"attributes": {"colour": ["a", "b", "c"]}, "width": 4}', ("size mismatch",)),
        ("reader.safetensors", "", ("header",)),
        ("reader.safetensors", "nan", ("not finite",)),
    ],
)
def test_a_damaged_classifier_is_refused(tmp_path: Path, file: str, content: str, values: Any) -> None:
    classifier = AttributeClassifier({"colour": ["kind", "ground"]}, width=4)
    classifier.save(tmp_path)
    assert AttributeClassifier.load(tmp_path).attributes == {"colour": ["kind", "ground"]}, "labels are nobody's keys"
    if content == "nan":
        with torch.no_grad():
            classifier.heads["colour"].bias[0] = torch.nan
        classifier.save(tmp_path)
    else:
        (tmp_path / file).write_text(content)
    with raises("classifier", tmp_path, *values, "anew"):
        AttributeClassifier.load(tmp_path)
