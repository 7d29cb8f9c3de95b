"""The verdict over all images: what a prompt does not ask for; diversity and distance where the truth is known."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from onbrand import api
from onbrand.api._inputs import open_prior
from onbrand.datasets.fashion import COLOURS, brand_image, caption
from onbrand.datasets.fashion import photos as catalogue_photos
from onbrand.datasets.garments import VALUES, garments
from onbrand.evaluation.check import _joined, judge_images, poses_of, spread_of
from onbrand.evaluation.joints import Stance, stand
from onbrand.evaluation.loading import Images, open_reference
from onbrand.evaluation.reference import learn
from onbrand.evaluation.text import AttributeClassifier, open_judge
from onbrand.models import pipeline
from worlds import tiny_pipeline, tiny_prior


def kind_and_colour() -> AttributeClassifier:
    """The classifier of garments, less the attributes that a prompt's words name in doubt."""
    classifier = open_judge("garments")
    assert isinstance(classifier, AttributeClassifier)
    for name in set(classifier.attributes) - {"kind", "colour"}:
        del classifier.attributes[name], classifier.heads[name]
    return classifier


def test_text_is_judged_where_it_is_asked_for() -> None:
    images, rows = garments("test")
    plain = [i for i, row in enumerate(rows) if row["print"] == "plain"][:40]
    photographs = [Image.fromarray(images[i]) for i in plain]
    pixels = torch.from_numpy(images[plain]).permute(0, 3, 1, 2).float() / 255
    kinds = VALUES["kind"]
    right = [f"{rows[i]['colour']} {rows[i]['kind']}, to order" for i in plain]
    wrong = [f"a {rows[i]['colour']} {kinds[(kinds.index(rows[i]['kind']) + 3) % len(kinds)]}" for i in plain]
    reference, classifier = learn(pixels), kind_and_colour()
    by_name = {"right": right, "wrong": wrong, "silent": ["a thing"] * 40, "half": right[:20] + [""] * 20}
    contents = {}
    for name, prompts in by_name.items():
        sample = Images([str(i) for i in range(40)], photographs, pixels, prompts, [""] * 40)
        contents[name] = judge_images(sample, {(128, 128): reference}, None, None, [classifier])
    labels = [{"colour": rows[i]["colour"]} for i in plain]  # outweighs the prompt, whose kind is wrong
    sample = Images([str(i) for i in range(40)], photographs, pixels, wrong, [""] * 40, labels)
    content = judge_images(sample, {(128, 128): reference}, None, None, [classifier])
    assert content["properties"]["text"]["rate"] > 0.9 and set(content["attributes"]) == {"colour"}
    assert (
        set(contents["right"]["attributes"]) == {"kind", "colour"}
        and contents["wrong"]["attributes"]["kind"]["rate"] < 0.1
    )
    rates = {name: content["properties"].get("text", {}).get("rate") for name, content in contents.items()}
    assert rates["right"] > 0.8 and rates["wrong"] < 0.1 and rates["silent"] is None
    assert contents["half"]["properties"]["text"]["n"] == 20
    # what is not asked for cannot fail
    assert not any("text" in entry["failed"] for entry in contents["silent"]["images"])
    assert contents["silent"]["all"]["rate"] >= contents["right"]["all"]["rate"] > contents["wrong"]["all"]["rate"]


def test_draws_from_the_prior_have_all_its_diversity_and_no_distance() -> None:
    prior = tiny_prior(tiny_pipeline(), ("a", "b"))
    draws = {
        name: prior.gaussians[name].draw(n, 3, torch.Generator().manual_seed(n)) for name, n in (("a", 300), ("b", 900))
    }
    x0, classes = torch.cat(list(draws.values())), ["a"] * 300 + ["b"] * 900
    brand = spread_of([(prior, x0, classes)], {})
    assert brand["diversity"]["value"] == pytest.approx(1, abs=0.1) and brand["frechet"]["value"] < 0.1
    # half as far from the mean in one of the two classes: a quarter of its variance
    narrow = torch.cat([prior.mean("a") + (draws["a"] - prior.mean("a")) / 2, draws["b"]])
    measure = spread_of([(prior, narrow, classes)], {})["diversity"]
    assert (
        measure["value"] == pytest.approx(0.25 * 0.25 + 0.75, abs=0.1)
        and measure["low"] < measure["value"] < measure["high"]
    )
    assert measure["components"]["a"] == pytest.approx([0.25] * 3, abs=0.06)
    # moved by 2 in one component: the distance is the square
    offset = torch.cat([draws["a"], draws["b"]]) + 2 * prior.gaussians["a"].components[0].view(prior.shape)
    only = spread_of([(prior, offset[:300], ["a"] * 300)], {})["frechet"]["value"]
    assert only == pytest.approx(4, abs=0.8)


@pytest.mark.slow
def test_a_property_counts_the_classes_that_have_it_and_what_is_out_of_distribution_has_none(tmp_path: Path) -> None:
    """Drawn figures, which share a pose, beside photos of products, which do not; and noise, which is neither."""
    photos, rows = tmp_path / "photos", []
    grey, kinds = catalogue_photos("train")
    photos.mkdir()
    for i in range(120):
        image = figure(i) if i < 60 else brand_image(grey[i], list(COLOURS)[i % 12], 128)
        Image.fromarray(image).save(photos / f"{i:03d}.png")
        words = "figure, standing" if i < 60 else f"product, {caption(int(kinds[i]), list(COLOURS)[i % 12])}"
        rows.append({"file_name": f"{i:03d}.png", "text": words, "class": words.split(",", maxsplit=1)[0]})
    (photos / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    api.fit(photos, "tiny", tmp_path / "brand", k=4)
    prior, pipe = open_prior(tmp_path / "brand"), pipeline.load("tiny")
    reference = open_reference(photos, (128, 128), prior, pipe, tmp_path / "brand")

    noise = np.random.default_rng(0).integers(0, 256, (10, 128, 128, 3), np.uint8)
    arrays = [*(figure(i) for i in range(12)), *(brand_image(grey[i], "red", 128) for i in range(60, 68)), *noise]
    images = [Image.fromarray(array) for array in arrays]
    pixels = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255
    classes = ["figure"] * 12 + ["product"] * 18
    sample = Images([str(i) for i in range(30)], images, pixels, [""] * 30, classes)
    content = judge_images(sample, {(128, 128): reference}, prior, pipe)
    assert content["properties"]["pose"]["n"] == 12 and content["properties"]["pose"]["rate"] == 1
    assert content["properties"]["background"]["n"] == 30
    assert content["measures"]["out_of_distribution"]["value"] == pytest.approx(10 / 30, abs=0.1)


def test_poses_are_counted_where_people_were_asked_for() -> None:
    """Three figures, one without a person, and three garments, one with a person; distances in closed form."""
    person = torch.tensor([[[4.0, 2], [8, 2]], [[3, 5], [9, 5]], [[2, 8], [10, 8]], [[5, 8], [7, 8]],
                             [[5, 12], [7, 12]], [[5, 16], [7, 16]]])  # fmt: skip
    arms_up, nobody = person.clone(), torch.full_like(person, torch.nan)
    arms_up[2, :, 1] -= 6  # the wrists by a torso: sqrt(2 / 12) away
    stances = {"figure": Stance(stand(person[None])[0], 0.5)}
    joints = torch.stack([person, arms_up, nobody, nobody, nobody, arms_up])
    measures = poses_of(stances, joints, ["figure"] * 3 + ["garment"] * 3, {})
    assert measures["person"]["value"] == pytest.approx(4 / 6) and measures["person"]["n"] == 6
    assert measures["pose_spread"]["value"] == pytest.approx(math.sqrt((0 + 2 / 12 / 0.25) / 2)), (
        "of those that it finds"
    )
    assert measures["pose_spread"]["n"] == 2


def figure(seed: int) -> np.ndarray:
    """A drawn figure `(128, 128, 3)` uint8 on white: a body and two legs, its colour the seed's."""
    image = np.full((128, 128, 3), 255, np.uint8)
    colour = np.random.default_rng(seed).integers(20, 180, 3)
    for left, right, top, bottom in ((44, 84, 16, 68), (48, 60, 68, 116), (68, 80, 68, 116)):
        image[top:bottom, left:right] = colour
    return image


def test_spread_over_sizes_is_the_mean_of_theirs_by_their_images() -> None:
    prior, cells = tiny_prior(tiny_pipeline(), ("a",), k=3), []
    for count, width in ((40, 1), (10, 2)):
        draws = prior.gaussians["a"].draw(count, 3, torch.Generator().manual_seed(count))
        cells.append((prior, prior.mean("a") + width * (draws - prior.mean("a")), ["a"] * count))
    both, alone = spread_of(cells, {}), [spread_of([cell], {}) for cell in cells]
    for name in ("diversity", "frechet"):
        first, second = (one[name]["value"] for one in alone)
        assert first != pytest.approx(second, rel=1e-3)
        assert both[name]["value"] == pytest.approx(0.8 * first + 0.2 * second) and both[name]["n"] == 50
    assert len(both["diversity"]["components"]) == 2


def test_columns_of_sizes_go_to_their_places_with_gaps_where_a_size_has_none() -> None:
    columns = _joined([{"a": torch.tensor([1.0, 2.0])}, {}], [[2, 0], [1]])
    assert columns["a"].nan_to_num(-1).tolist() == [2, -1, 1]
