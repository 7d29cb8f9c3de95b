"""The verdict over all pictures: what a prompt does not ask for; variety and distance where the truth is known."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from onbrand import api
from onbrand.api.inputs import open_prior
from onbrand.api.judging import judge_pictures, spread_of
from onbrand.api.materials import Pictures, open_reference
from onbrand.data.catalogue import COLOURS, KINDS, brand_picture, caption
from onbrand.data.catalogue import photos as catalogue_photos
from onbrand.measure.reader import Reader
from onbrand.measure.reference import learn
from onbrand.models import bundle
from tiny import tiny_pipeline, tiny_prior


def test_text_is_judged_where_it_is_asked_for() -> None:
    grey, kinds = catalogue_photos("test")
    colours = [list(COLOURS)[i % 12] for i in range(40)]
    images = [Image.fromarray(brand_picture(grey[i], colours[i])) for i in range(40)]
    pixels = (
        torch.stack([torch.tensor(brand_picture(grey[i], colours[i])) for i in range(40)]).permute(0, 3, 1, 2) / 255
    )
    right = [caption(int(kinds[i]), colours[i]) for i in range(40)]
    wrong = [caption((int(kinds[i]) + 5) % len(KINDS), colours[i]) for i in range(40)]
    reference = learn(pixels)
    asked = {"right": right, "wrong": wrong, "silent": ["a thing"] * 40, "half": right[:20] + [""] * 20}
    made = {}
    for name, prompts in asked.items():
        pictures = Pictures([str(i) for i in range(40)], images, pixels, prompts, [""] * 40)
        made[name] = judge_pictures(pictures, reference, None, None, Reader.load())
    told = [{"colour": colour} for colour in colours[:40]]  # outweighs the prompt, whose kind is wrong
    pictures = Pictures([str(i) for i in range(40)], images, pixels, wrong, [""] * 40, told)
    said = judge_pictures(pictures, reference, None, None, Reader.load())
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
    """Drawn figures, which share a pose, beside products, which do not; and pictures of noise, which are neither."""
    photos, rows = tmp_path / "photos", []
    grey, kinds = catalogue_photos("train")
    photos.mkdir()
    for i in range(120):
        picture = figure(i) if i < 60 else brand_picture(grey[i], list(COLOURS)[i % 12])
        Image.fromarray(picture).save(photos / f"{i:03d}.png")
        words = "figure, standing" if i < 60 else f"product, {caption(int(kinds[i]), list(COLOURS)[i % 12])}"
        rows.append({"file_name": f"{i:03d}.png", "text": words, "class": words.split(",")[0]})
    (photos / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    api.fit(photos, "pilot", tmp_path / "brand", k=4)
    prior, pipe = open_prior(tmp_path / "brand"), bundle.load("pilot")
    reference = open_reference(photos, (64, 64), prior, pipe, tmp_path / "brand")

    noise = np.random.default_rng(0).integers(0, 256, (10, 64, 64, 3), np.uint8)
    arrays = [*(figure(i) for i in range(12)), *(brand_picture(grey[i], "red") for i in range(60, 68)), *noise]
    images = [Image.fromarray(array) for array in arrays]
    pixels = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255
    classes = ["figure"] * 12 + ["product"] * 18
    made = Pictures([str(i) for i in range(30)], images, pixels, [""] * 30, classes)
    said = judge_pictures(made, reference, prior, pipe)
    assert said["properties"]["pose"]["of"] == 12 and said["properties"]["pose"]["share"] == 1
    assert said["properties"]["ground"]["of"] == 30
    assert said["measures"]["stray"]["value"] == pytest.approx(10 / 30, abs=0.1)


def figure(seed: int) -> np.ndarray:
    """A drawn figure `(64, 64, 3)` uint8 on white: a body and two legs, its colour the seed's."""
    picture = np.full((64, 64, 3), 255, np.uint8)
    colour = np.random.default_rng(seed).integers(20, 180, 3)
    for left, right, top, bottom in ((22, 42, 8, 34), (24, 30, 34, 58), (34, 40, 34, 58)):
        picture[top:bottom, left:right] = colour
    return picture
