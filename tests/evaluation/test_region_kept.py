"""check against what images were made from: known shifts in the garment are the numbers of check.json and table."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from onbrand import api
from onbrand.comparison.tables import OVERALL, Line, legend, markdown, scores, table_of
from onbrand.io import digest
from worlds import MANIFEST_LINE

SHIFTS = (0, 2, 4, 6, 8, 100)
"""In 1/255, of an image's garment; one more image was made from edges, one from nothing."""


@pytest.fixture
def images(tmp_path: Path) -> Any:
    """A folder as `generate` writes it, of squares on white, and photos of the like."""
    rng = np.random.default_rng(0)
    for name in ("photos", "images", "conditions"):
        (tmp_path / name).mkdir()
    for i in range(60):
        image = np.full((64, 64, 3), 255, np.uint8)
        image[16:48, 16:48] = rng.integers(40, 140, 3)
        Image.fromarray(image).save(tmp_path / "photos" / f"{i:03d}.png")
    lines = []
    for i in range(8):
        image = np.full((64, 64, 3), 255, np.uint8)
        image[16:48, 16:48] = 90
        garment = np.zeros((64, 64, 4), np.uint8)
        garment[20:40, 20:40] = (*image[20, 20], 255)
        mode = garment if i < 6 else np.zeros((64, 64, 3), np.uint8)
        Image.fromarray(mode).save(tmp_path / "conditions" / f"{i}.png")
        if i < 6:
            image[20:40, 20:40] += SHIFTS[i]
        Image.fromarray(image).save(tmp_path / "images" / f"{i:05d}.png")
        conditioning = None if i == 7 else [str(tmp_path / "conditions" / f"{i}.png")]
        line = {"index": i, "file": f"{i:05d}.png", "prompt": "a square", "class": "", "conditioning": conditioning}
        digests = [digest(Path(file).read_bytes()) for file in conditioning or ()]
        lines.append(MANIFEST_LINE | line | {"conditioning_sha256": digests})
    (tmp_path / "images" / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "images"


def test_the_garments_differences_are_told_with_their_interval(images: Any, capsys: pytest.CaptureFixture[str]) -> None:
    api.check(images, images.parent / "photos")
    content = json.loads((images / "check.json").read_text())
    region, near = content["measures"]["region"], content["measures"]["region_near"]
    assert region["value"] == pytest.approx(np.mean(SHIFTS)) and region["n"] == near["n"] == 6
    assert region["low"] < region["value"] < region["high"] and region["median"] == pytest.approx(4)
    assert near["value"] == pytest.approx(3 / 6), "4 is near"
    assert [entry["values"].get("region") for entry in content["images"]] == [*map(pytest.approx, SHIFTS), None, None]
    assert not any("region" in entry["failed"] for entry in content["images"]), "told, not judged"
    output = capsys.readouterr().out
    assert "\ndifference from the garment " in output and "\ngarments within 4/255 " in output


def test_images_made_from_nothing_have_no_such_number(images: Any) -> None:
    lines = [json.loads(line) for line in (images / "manifest.jsonl").read_text().splitlines()]
    for line in lines:
        del line["conditioning"]  # as before there was any
    (images / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "region" not in api.check(images, images.parent / "photos").content["measures"]


def test_a_garment_that_is_gone_or_another_is_said_and_the_others_are_measured(images: Any) -> None:
    """Nobody is led to a file of his own: what a manifest names elsewhere counts only if it is what it was."""
    (images.parent / "conditions" / "3.png").unlink()
    (images.parent / "conditions" / "0.png").write_bytes((images / "00000.png").read_bytes())
    with pytest.warns(UserWarning, match="2 control images .* not there, .*0.png first"):
        content = api.check(images, images.parent / "photos").content
    assert content["measures"]["region"]["n"] == 4


def test_a_comparison_shows_it_where_a_row_has_it(images: Any) -> None:
    api.check(images, images.parent / "photos")
    other = images.parent / "plain"
    other.mkdir()
    content = json.loads((images / "check.json").read_text())
    for name in ("region", "region_near"):
        del content["measures"][name]
    (other / "check.json").write_text(json.dumps(content))
    lines = [Line("plain", "plain", "noise", other), Line("worn", "controlnet", "mean", images)]
    table = table_of(lines, {})
    assert scores(images)["region"]["value"] == pytest.approx(20)
    head, _, plain, try_on = markdown(table, lines, OVERALL).splitlines()
    assert head.endswith("| region | region_near |") and plain.endswith("|  |  |")
    assert try_on.split("|")[-3].strip().startswith("20.000 (")
    assert "*region*: difference from the garment. " in legend([other, images]), "said, though the first row has none"
    assert "region" not in markdown(table, lines[:1], OVERALL)


def test_a_folder_of_real_people_is_compared_with_its_own_conditions(images: Any) -> None:
    folder = images.parent / "real"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes((images / "00003.png").read_bytes())
    row = {"text": "a square", "conditioning_file_name": "conditions/0.png"}
    (folder / "conditions").mkdir()
    (folder / "conditions" / "0.png").write_bytes((images.parent / "conditions" / "0.png").read_bytes())
    (folder / "metadata.jsonl").write_text(
        "".join(json.dumps({"file_name": n, **row}) + "\n" for n in ("a.png", "b.png"))
    )
    content = api.check(folder, images.parent / "photos").content["measures"]["region"]
    assert content["value"] == pytest.approx(6) and content["n"] == 2


def test_conditions_of_another_size_are_padded_as_images_are(images: Any) -> None:
    from onbrand.evaluation.loading import open_images
    from onbrand.evaluation.region import region_differences

    sample = open_images(images, (64, 96), None)
    assert torch.allclose(
        region_differences(sample.pixels, sample.conditioning)[:6], torch.tensor(SHIFTS).float(), atol=1e-3
    )
