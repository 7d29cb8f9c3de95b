"""The shipped reader reads held-out real photos as well as its score.json says, and survives saving."""

import json
from importlib import resources

import numpy as np
import pytest
import torch

from onbrand.data.catalogue import COLOURS, KINDS, brand_picture, photos
from onbrand.measure.reader import Reader


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    grey, _ = photos("test")
    colours = list(COLOURS)
    tinted = np.stack([brand_picture(grey[i], colours[i % 12]) for i in range(600)])
    return torch.from_numpy(tinted).permute(0, 3, 1, 2).float() / 255


def test_shipped_reader_meets_its_score_on_held_out_photos(pictures):
    said = json.loads((resources.files("onbrand") / "assets/reader/score.json").read_text())
    read = Reader.load().read(pictures)
    _, kinds = photos("test")
    kind = np.mean([KINDS[k] == r for k, r in zip(kinds, read["kind"], strict=False)])
    colour = np.mean([list(COLOURS)[i % 12] == r for i, r in enumerate(read["colour"])])
    assert abs(kind - said["kind"]) < 0.04 and abs(colour - said["colour"]) < 0.02
    assert kind > 0.85 and colour > 0.97


def test_saved_reader_reads_the_same(pictures, tmp_path):
    torch.manual_seed(0)
    reader = Reader({"kind": ["a", "b"], "colour": ["c", "d", "e"]}, width=4).eval()
    reader.save(tmp_path)
    for name, logits in Reader.load(tmp_path)(pictures[:8]).items():
        assert torch.allclose(logits, reader(pictures[:8])[name], atol=5e-3)


def test_no_reader_there_says_what_a_reader_is(tmp_path):
    with pytest.raises(ValueError, match="reader.json"):
        Reader.load(tmp_path)
