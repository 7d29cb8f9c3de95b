"""Joints: closed forms on drawn people; the real net, where POSE_NET names its file, on the catalogue's figures."""

import math
import os
import zipfile
from pathlib import Path

import pytest
import torch

from onbrand.evaluation.joints import JOINTS, MODEL, BlazePose, Stance, learn_stances, stand
from worlds import raises

PERSON = torch.tensor(
    [[[4.0, 2], [8, 2]], [[3, 5], [9, 5]], [[2, 8], [10, 8]], [[5, 8], [7, 8]], [[5, 12], [7, 12]], [[5, 16], [7, 16]]]
)
"""Shoulders to ankles; the torso is 6 long, from (6, 2) to (6, 8)."""


def test_place_size_and_side_fall_out() -> None:
    stance = stand(PERSON[None])
    assert stance[0, JOINTS.index("shoulders")].tolist() == [
        [pytest.approx(-2 / 6), -1.0],
        [pytest.approx(2 / 6), -1.0],
    ]
    copy = PERSON * 3 + torch.tensor([20.0, -5.0])
    torch.testing.assert_close(stand(copy[None]), stance)
    torch.testing.assert_close(stand(PERSON.flip(1)[None]), stance)  # seen as a back: left and right exchanged


def test_distance_in_closed_form() -> None:
    arms_up = PERSON.clone()
    arms_up[JOINTS.index("wrists"), :, 1] -= 6  # both by one torso: 2 of 12 joints
    stance = Stance(stand(PERSON[None])[0], 1.0)
    nobody = torch.full_like(PERSON, torch.nan)
    distances = stance.distances(torch.stack([PERSON, arms_up, nobody]))
    assert distances[:2].tolist() == pytest.approx([0.0, math.sqrt(2 / 12)], abs=1e-6) and distances[2].isnan()


def test_a_class_has_a_stance_where_the_net_finds_people_in_its_photos() -> None:
    nobody = torch.full_like(PERSON, torch.nan)
    arms_apart = PERSON.clone()
    arms_apart[JOINTS.index("wrists")] += torch.tensor([[-6.0, 0], [6, 0]])
    joints = torch.stack([PERSON, nobody, arms_apart, nobody, nobody, PERSON, PERSON])
    stances = learn_stances(lambda images: joints, torch.zeros(7, 3, 8, 8), ["a", "b", "a", "b", "b", "b", "b"])
    assert set(stances) == {"a"}
    assert stances["a"].spread == pytest.approx(math.sqrt(2 * 0.5**2 / 12), rel=1e-5)  # each is half of it off


def test_what_is_no_pose_net_is_said(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    with raises("pose", MODEL, "mediapipe", tmp_path / "none.tflite"):
        BlazePose(tmp_path / "none.tflite")
    with zipfile.ZipFile(tmp_path / "other.whl", "w") as wheel:
        wheel.writestr("something.py", "")
    with raises("pose", MODEL, "mediapipe 0.10.21", tmp_path / "other.whl"):
        BlazePose(tmp_path / "other.whl")


@pytest.mark.skipif("POSE_NET" not in os.environ, reason="POSE_NET names no pose net")
def test_the_net_finds_the_catalogues_people_and_their_shift() -> None:
    from onbrand.datasets.garments import garments

    images, rows = garments("test")
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    net = BlazePose(os.environ["POSE_NET"])
    figures, products = (
        [i for i, row in enumerate(rows) if row["view"] == view][:40] for view in ("figure", "garment")
    )
    joints = net(pixels[figures])
    assert joints.isfinite().flatten(1).all(1).float().mean() >= 0.95
    assert net(pixels[products]).isfinite().flatten(1).all(1).float().mean() <= 0.25
    shoulders, ankles = joints[:, 0, :, 1].nanmean(), joints[:, -1, :, 1].nanmean()
    assert 10 < shoulders < 30 and 95 < ankles < 120, "in pixels of the image, downwards"
    wide = net(torch.nn.functional.pad(pixels[figures], (16, 16), value=1.0))  # a wider frame: padded to a square
    assert (wide - joints - torch.tensor([16.0, 0])).abs().nanmedian() < 2
