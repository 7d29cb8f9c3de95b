"""check against what pictures were made from: known shifts in the garment are the numbers of check.json and table."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from onbrand import api
from onbrand.comparison.tables import MEASURES, Line, legend, markdown, scores, table_of

SHIFTS = (0, 2, 4, 6, 8, 100)
"""In 1/255, of a picture's garment; one more picture was made from edges, one from nothing."""


@pytest.fixture
def made(tmp_path):
    """A folder as `generate` writes it, of squares on white, and photos of the like."""
    rng = np.random.default_rng(0)
    for name in ("photos", "made", "given"):
        (tmp_path / name).mkdir()
    for i in range(60):
        picture = np.full((64, 64, 3), 255, np.uint8)
        picture[16:48, 16:48] = rng.integers(40, 140, 3)
        Image.fromarray(picture).save(tmp_path / "photos" / f"{i:03d}.png")
    lines = []
    for i in range(8):
        picture = np.full((64, 64, 3), 255, np.uint8)
        picture[16:48, 16:48] = 90
        garment = np.zeros((64, 64, 4), np.uint8)
        garment[20:40, 20:40] = (*picture[20, 20], 255)
        mode = garment if i < 6 else np.zeros((64, 64, 3), np.uint8)
        Image.fromarray(mode).save(tmp_path / "given" / f"{i}.png")
        if i < 6:
            picture[20:40, 20:40] += SHIFTS[i]
        Image.fromarray(picture).save(tmp_path / "made" / f"{i:05d}.png")
        conditioning = None if i == 7 else [str(tmp_path / "given" / f"{i}.png")]
        lines.append(
            {"index": i, "file": f"{i:05d}.png", "prompt": "a square", "class": "", "conditioning": conditioning}
        )
    (tmp_path / "made" / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "made"


def test_the_garments_differences_are_told_with_their_interval(made, capsys):
    api.check(made, made.parent / "photos")
    said = json.loads((made / "check.json").read_text())
    kept, near = said["measures"]["region"], said["measures"]["region_near"]
    assert kept["value"] == pytest.approx(np.mean(SHIFTS)) and kept["of"] == near["of"] == 6
    assert kept["low"] < kept["value"] < kept["high"] and kept["median"] == pytest.approx(4)
    assert near["value"] == pytest.approx(3 / 6), "4 is near"
    assert [entry["values"].get("region") for entry in said["pictures"]] == [*map(pytest.approx, SHIFTS), None, None]
    assert not any("region" in entry["failed"] for entry in said["pictures"]), "told, not judged"
    shown = capsys.readouterr().out
    assert "\ngarment kept " in shown and "\ngarments within 4/255 " in shown


def test_pictures_made_from_nothing_have_no_such_number(made):
    lines = [json.loads(line) for line in (made / "manifest.jsonl").read_text().splitlines()]
    for line in lines:
        del line["conditioning"]  # as before there was any
    (made / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "region" not in api.check(made, made.parent / "photos").content["measures"]


def test_a_garment_that_is_gone_is_said(made):
    (made.parent / "given" / "3.png").unlink()
    with pytest.raises(ValueError, match=r"every control picture must open; .*3\.png: missing"):
        api.check(made, made.parent / "photos")


def test_a_comparison_shows_it_where_a_row_has_it(made):
    api.check(made, made.parent / "photos")
    other = made.parent / "plain"
    other.mkdir()
    checked = json.loads((made / "check.json").read_text())
    for name in ("region", "region_near"):
        del checked["measures"][name]
    (other / "check.json").write_text(json.dumps(checked))
    lines = [Line("plain", "plain", "noise", other), Line("worn", "controlnet", "mean", made)]
    table = table_of(lines, {})
    assert scores(made)["region"]["value"] == pytest.approx(20)
    head, _, plain, worn = markdown(table, lines, MEASURES).splitlines()
    assert head.endswith("| region | region_near |") and plain.endswith("|  |  |")
    assert worn.split("|")[-3].strip().startswith("20.000 (")
    assert "*region*: garment kept. " in legend([other, made]), "said, though the first row has none"
    assert "region" not in markdown(table, lines[:1], MEASURES)


def test_a_folder_of_real_people_is_compared_with_its_own_conditions(made):
    folder = made.parent / "real"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes((made / "00003.png").read_bytes())
    row = {"text": "a square", "conditioning_file_name": "given/0.png"}
    (folder / "given").mkdir()
    (folder / "given" / "0.png").write_bytes((made.parent / "given" / "0.png").read_bytes())
    (folder / "metadata.jsonl").write_text(
        "".join(json.dumps({"file_name": n, **row}) + "\n" for n in ("a.png", "b.png"))
    )
    said = api.check(folder, made.parent / "photos").content["measures"]["region"]
    assert said["value"] == pytest.approx(6) and said["of"] == 2


def test_conditions_of_another_size_are_padded_as_pictures_are(made):
    from onbrand.evaluation.loading import open_pictures
    from onbrand.evaluation.region import region_differences

    opened = open_pictures(made, (64, 96), None)
    assert torch.allclose(
        region_differences(opened.pixels, opened.conditioning)[:6], torch.tensor(SHIFTS).float(), atol=1e-3
    )
