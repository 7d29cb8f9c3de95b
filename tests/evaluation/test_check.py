"""The verdict over all pictures: what a prompt does not ask for; variety and distance where the truth is known."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from onbrand import api
from onbrand.api._inputs import open_prior
from onbrand.datasets.fashion import COLOURS, brand_picture, caption
from onbrand.datasets.fashion import photos as catalogue_photos
from onbrand.datasets.garments import VALUES, garments
from onbrand.evaluation.check import judge_pictures, poses_of, spread_of
from onbrand.evaluation.joints import Stance, stand
from onbrand.evaluation.loading import Pictures, open_reference
from onbrand.evaluation.reference import learn
from onbrand.evaluation.text import open_judge
from onbrand.models import pipeline
from tiny import tiny_pipeline, tiny_prior


class KindAndColour:
    """The reader of garments, of whose attributes a prompt's words name two without doubt."""

    def __init__(self) -> None:
        self.reader = open_judge("garments")
        self.attributes = {name: self.reader.attributes[name] for name in ("kind", "colour")}

    def __call__(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: self.reader(pixels)[name] for name in self.attributes}


def test_text_is_judged_where_it_is_asked_for() -> None:
    pictures, rows = garments("test")
    plain = [i for i, row in enumerate(rows) if row["print"] == "plain"][:40]
    images = [Image.fromarray(pictures[i]) for i in plain]
    pixels = torch.from_numpy(pictures[plain]).permute(0, 3, 1, 2).float() / 255
    kinds = VALUES["kind"]
    right = [f"{rows[i]['colour']} {rows[i]['kind']}, to order" for i in plain]
    wrong = [f"a {rows[i]['colour']} {kinds[(kinds.index(rows[i]['kind']) + 3) % len(kinds)]}" for i in plain]
    reference, reader = learn(pixels), KindAndColour()
    asked = {"right": right, "wrong": wrong, "silent": ["a thing"] * 40, "half": right[:20] + [""] * 20}
    made = {}
    for name, prompts in asked.items():
        shown = Pictures([str(i) for i in range(40)], images, pixels, prompts, [""] * 40)
        made[name] = judge_pictures(shown, reference, None, None, [reader])
    told = [{"colour": rows[i]["colour"]} for i in plain]  # outweighs the prompt, whose kind is wrong
    shown = Pictures([str(i) for i in range(40)], images, pixels, wrong, [""] * 40, told)
    said = judge_pictures(shown, reference, None, None, [reader])
    assert said["properties"]["text"]["share"] > 0.9 and set(said["attributes"]) == {"colour"}
    assert set(made["right"]["attributes"]) == {"kind", "colour"} and made["wrong"]["attributes"]["kind"]["share"] < 0.1
    share = {name: said["properties"].get("text", {}).get("share") for name, said in made.items()}
    assert share["right"] > 0.8 and share["wrong"] < 0.1 and share["silent"] is None
    assert made["half"]["properties"]["text"]["of"] == 20
    # what is not asked for cannot fail
    assert not any("text" in entry["failed"] for entry in made["silent"]["pictures"])
    assert made["silent"]["all"]["share"] >= made["right"]["all"]["share"] > made["wrong"]["all"]["share"]


def test_draws_from_the_prior_have_all_its_variety_and_no_distance() -> None:
    prior = tiny_prior(tiny_pipeline(), ("a", "b"))
    draws = {
        name: prior.gaussians[name].draw(n, 3, torch.Generator().manual_seed(n)) for name, n in (("a", 300), ("b", 900))
    }
    x0, classes = torch.cat(list(draws.values())), ["a"] * 300 + ["b"] * 900
    brand = spread_of(prior, x0, classes, {})
    assert brand["diversity"]["value"] == pytest.approx(1, abs=0.1) and brand["frechet"]["value"] < 0.1
    # half as far from the mean in one of the two classes: a quarter of its variance
    narrow = torch.cat([prior.mean("a") + (draws["a"] - prior.mean("a")) / 2, draws["b"]])
    found = spread_of(prior, narrow, classes, {})["diversity"]
    assert (
        found["value"] == pytest.approx(0.25 * 0.25 + 0.75, abs=0.1) and found["low"] < found["value"] < found["high"]
    )
    assert found["components"]["a"] == pytest.approx([0.25] * 3, abs=0.06)
    # moved by 2 in one component: the distance is the square
    moved = torch.cat([draws["a"], draws["b"]]) + 2 * prior.gaussians["a"].components[0].view(prior.shape)
    only = spread_of(prior, moved[:300], ["a"] * 300, {})["frechet"]["value"]
    assert only == pytest.approx(4, abs=0.8)


def test_a_property_counts_the_kinds_that_have_it_and_strays_belong_to_none(tmp_path) -> None:
    """Drawn figures, which share a pose, beside photos of products, which do not; and noise, which is neither."""
    photos, rows = tmp_path / "photos", []
    grey, kinds = catalogue_photos("train")
    photos.mkdir()
    for i in range(120):
        picture = figure(i) if i < 60 else brand_picture(grey[i], list(COLOURS)[i % 12], 128)
        Image.fromarray(picture).save(photos / f"{i:03d}.png")
        words = "figure, standing" if i < 60 else f"product, {caption(int(kinds[i]), list(COLOURS)[i % 12])}"
        rows.append({"file_name": f"{i:03d}.png", "text": words, "class": words.split(",")[0]})
    (photos / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    api.fit(photos, "tiny", tmp_path / "brand", k=4)
    prior, pipe = open_prior(tmp_path / "brand"), pipeline.load("tiny")
    reference = open_reference(photos, (128, 128), prior, pipe, tmp_path / "brand")

    noise = np.random.default_rng(0).integers(0, 256, (10, 128, 128, 3), np.uint8)
    arrays = [*(figure(i) for i in range(12)), *(brand_picture(grey[i], "red", 128) for i in range(60, 68)), *noise]
    images = [Image.fromarray(array) for array in arrays]
    pixels = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255
    classes = ["figure"] * 12 + ["product"] * 18
    made = Pictures([str(i) for i in range(30)], images, pixels, [""] * 30, classes)
    said = judge_pictures(made, reference, prior, pipe)
    assert said["properties"]["pose"]["of"] == 12 and said["properties"]["pose"]["share"] == 1
    assert said["properties"]["ground"]["of"] == 30
    assert said["measures"]["stray"]["value"] == pytest.approx(10 / 30, abs=0.1)


def test_poses_are_counted_where_people_were_asked_for() -> None:
    """Three figures, one without a person, and three garments, one with a person; distances in closed form."""
    standing = torch.tensor([[[4.0, 2], [8, 2]], [[3, 5], [9, 5]], [[2, 8], [10, 8]], [[5, 8], [7, 8]],
                             [[5, 12], [7, 12]], [[5, 16], [7, 16]]])  # fmt: skip
    raised, nobody = standing.clone(), torch.full_like(standing, torch.nan)
    raised[2, :, 1] -= 6  # the wrists by a torso: sqrt(2 / 12) away
    stances = {"figure": Stance(stand(standing[None])[0], 0.5)}
    joints = torch.stack([standing, raised, nobody, nobody, nobody, raised])
    said = poses_of(stances, joints, ["figure"] * 3 + ["garment"] * 3, {})
    assert said["person"]["value"] == pytest.approx(4 / 6) and said["person"]["of"] == 6
    assert said["pose_spread"]["value"] == pytest.approx(math.sqrt((0 + 2 / 12 / 0.25) / 2)), "of those that it finds"
    assert said["pose_spread"]["of"] == 2


def figure(seed: int) -> np.ndarray:
    """A drawn figure `(128, 128, 3)` uint8 on white: a body and two legs, its colour the seed's."""
    picture = np.full((128, 128, 3), 255, np.uint8)
    colour = np.random.default_rng(seed).integers(20, 180, 3)
    for left, right, top, bottom in ((44, 84, 16, 68), (48, 60, 68, 116), (68, 80, 68, 116)):
        picture[top:bottom, left:right] = colour
    return picture
