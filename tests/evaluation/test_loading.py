"""What a check learns from: the photos, and the same as the model's own autoencoder leaves them."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from onbrand import api
from onbrand.api._inputs import open_prior
from onbrand.data.images import open_image, to_tensor
from onbrand.data.records import read_folder
from onbrand.datasets.garments import write_garments
from onbrand.evaluation import loading
from onbrand.evaluation.likelihood import unseen_values
from onbrand.evaluation.loading import open_images, open_reference
from onbrand.evaluation.reference import learn
from onbrand.io import read_json
from onbrand.models import pipeline
from onbrand.reporting import folder as report
from worlds import MANIFEST_LINE, raises

pytestmark = [
    pytest.mark.filterwarnings("ignore:real photos kept back pass less often"),
    pytest.mark.filterwarnings("ignore:.*its mean shows those images"),  # 30 of a class
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """photos/ and new/, 120 of each, and brand/, fitted to photos/ as they are and mirrored."""
    folder = tmp_path_factory.mktemp("loading")
    for name, split in (("photos", "train"), ("new", "validation")):
        write_garments(folder / name, split, 120)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        api.fit(folder / "photos", "tiny", folder / "brand", k=16, random_flip=True)
    return folder


@pytest.fixture(scope="module")
def pipe() -> Any:
    """The shipped model, whose autoencoder the brand was fitted with."""
    return pipeline.load("tiny")


def rows_of(photos: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (photos / "metadata.jsonl").read_text().splitlines()]


def pixels_of(files: Sequence[Path]) -> torch.Tensor:
    """`(B, 3, 128, 128)` in [-1, 1]."""
    return torch.stack([to_tensor(open_image(file)) for file in files])  # type: ignore[arg-type]


@pytest.mark.slow
def test_with_a_prior_photos_may_look_as_the_autoencoder_leaves_them(folder: Path, pipe: Any) -> None:
    photos, brand = folder / "photos", folder / "brand"
    prior = open_prior(brand)
    reference = open_reference(photos, (128, 128), prior, pipe, brand)

    pixels = pixels_of(sorted(photos.glob("*.png")))
    with torch.no_grad():
        decoded = pipe.vae.decode(pipe.vae.encode(pixels).latent_dist.mode()).sample.clamp(-1, 1)
    images = {"images": (pixels + 1) / 2, "classes": [row["class"] for row in rows_of(photos)]}
    truth, narrow = learn(**images, decoded=(decoded + 1) / 2), learn(**images)
    for class_name, ranges in truth.bounds.items():
        for name, bounds in ranges.items():
            assert reference.bounds[class_name][name] == pytest.approx(bounds, abs=1e-3), (class_name, name)
        assert ranges["light_mean"] != narrow.bounds[class_name]["light_mean"]
    assert open_reference(photos, (128, 128), prior, pipe, brand).bounds == reference.bounds, "written and read"


def test_likelihoods_of_the_photos_are_those_of_a_prior_that_has_not_seen_them(folder: Path, pipe: Any) -> None:
    photos, brand = folder / "photos", folder / "brand"
    content = json.loads((brand / "unseen.json").read_text())
    files = [photos / row["file_name"] for row in rows_of(photos) if row["class"] == "male person"]
    pixels = pixels_of(files)
    x0 = [loading.encode_x0(pipe, (side + 1) / 2) for side in (pixels, pixels.flip(3))]
    truth = unseen_values(open_prior(brand), x0[0], "male person", x0[1])["class_likelihood"]  # type: ignore[arg-type]
    values = [content["photos"][sha256(file.read_bytes()).hexdigest()]["class_likelihood"] for file in files]
    assert len(content["photos"]) == 120 and values == pytest.approx(truth.tolist(), abs=1e-3)


@pytest.mark.slow
def test_the_brands_next_photos_pass_however_few_the_prior_has_seen(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, new, brand = folder / "photos", folder / "new", tmp_path / "brand"
    shutil.copytree(folder / "brand", brand)
    first = api.check(new, photos, prior=brand).content
    expected = first["held_out"]["diversity"]
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("diversity")]
    assert line.endswith(f"{expected:.3g}") and expected == pytest.approx(first["measures"]["diversity"]["value"], 0.15)
    assert expected < 0.8, "what the prior has seen lies along its components more than new photos"
    unseen = read_json(brand / "unseen.json")
    (brand / "unseen.json").write_text(json.dumps({"prior": "another", "photos": unseen["photos"], "schema": 2}))
    with pytest.warns(UserWarning, match="fewer than 500 of female garment"):
        second = api.check(new, photos, prior=brand).content
    rates = [content["properties"]["class"]["rate"] for content in (first, second)]
    distances = [content["measures"]["out_of_distribution"]["value"] for content in (first, second)]
    assert rates[0] > 0.9 > 0.5 > rates[1] and distances[0] < 0.05 < 0.5 < distances[1]
    assert abs(first["held_out"]["class"] - rates[0]) < 0.1


def test_no_diversity_is_expected_of_photos_that_fit_told_nothing_of(folder: Path, tmp_path: Path) -> None:
    others = write_garments(tmp_path / "others", "test", 24)
    content = api.check(others, others, prior=folder / "brand").content
    assert "diversity" not in content["held_out"]


def test_ranges_are_learnt_again_by_other_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = write_garments(tmp_path / "photos", "train", 40)
    calls = []
    monkeypatch.setattr(loading, "learn", lambda *args, **options: calls.append(1) or learn(*args, **options))
    for version in (7, 7, 8):
        monkeypatch.setattr(loading, "RULES", version)
        open_reference(photos, (128, 128), None, None, tmp_path / "kept")
    assert len(calls) == 2


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder of one image and its manifest; beside the folder an image that is nobody's business."""
    folder = tmp_path / "images"
    folder.mkdir()
    for file, colour in ((folder / "00000.png", "red"), (tmp_path / "secret.png", "blue")):
        Image.new("RGB", (20, 20), colour).save(file)
    write_line(folder, "00000.png")
    return folder


def write_line(folder: Path, name: str) -> None:
    line = MANIFEST_LINE | {"index": 0, "file": name, "prompt": "a square", "class": ""}
    (folder / "manifest.jsonl").write_text(json.dumps(line) + "\n")


@pytest.mark.parametrize(
    "name", ["../secret.png", "ABSOLUTE", "x/../../secret.png", "link.png", "links/secret.png", None]
)
def test_a_check_opens_nothing_outside_of_the_folder(
    outside: Path, name: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = outside.parent / "secret.png"
    name = str(secret) if name == "ABSOLUTE" else name
    if name and "link" in name:
        (outside / name.split("/")[0]).symlink_to(secret if name == "link.png" else outside.parent)
    write_line(outside, name)
    monkeypatch.setattr(loading, "open_image", lambda file, *_: pytest.fail(f"opened {file}"))
    with raises("folder", "manifest.jsonl" if name is None or "link" not in name else "nothing outside"):
        loading.open_images(outside, (16, 16), None)


def test_a_check_of_a_folder_without_a_manifest_follows_no_link_out_of_it(outside: Path) -> None:
    (outside / "manifest.jsonl").unlink()
    assert len(loading.open_images(outside, (16, 16), None).files) == 1
    (outside / "00001.png").symlink_to(outside.parent / "secret.png")
    for look in (lambda: loading.open_images(outside, (16, 16), None), lambda: loading.size_of_first(outside)):
        with raises("folder", "00001.png", "nothing outside"):
            look()


def test_control_images_may_lie_elsewhere_if_they_are_what_they_were(outside: Path) -> None:
    secret = outside.parent / "secret.png"
    line = json.loads((outside / "manifest.jsonl").read_text()) | {"conditioning": [str(secret)]}
    digest = sha256(secret.read_bytes()).hexdigest()
    for digests, count in (([digest], 1), (["0" * 64], 0), ([], 0), (None, 0)):
        (outside / "manifest.jsonl").write_text(json.dumps(line | {"conditioning_sha256": digests}) + "\n")
        with warnings.catch_warnings(record=True) as messages:
            warnings.simplefilter("always")
            images = loading.open_images(outside, (16, 16), None)
        assert len(images.conditioning[0]) == count and len(messages) == 1 - count


@pytest.mark.parametrize("name", ["/dev/zero", "/nonexistent", "/"])
def test_a_control_image_that_is_no_file_is_not_read(outside: Path, name: str) -> None:
    line = json.loads((outside / "manifest.jsonl").read_text())
    line |= {"conditioning": [name], "conditioning_sha256": ["0" * 64]}
    (outside / "manifest.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.warns(UserWarning, match="1 control images are not what the manifest says"):
        assert loading.open_images(outside, (16, 16), None).conditioning == [[]]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 photos: the fewest that ranges are learned from, and some more."""
    return write_garments(tmp_path_factory.mktemp("few") / "photos", "train", 24)


def spoil(folder: Path) -> list[str]:
    """Spoils a folder's images 3, 4, 7 and 9, and names two more that never were; the names in order."""
    Image.new("RGB", (12, 36), "white").save(folder / "00003.png")
    (folder / "00004.png").write_bytes((folder / "00004.png").read_bytes()[:-300])
    (folder / "00007.png").write_bytes(b"")
    (folder / "00009.png").unlink()
    return ["00003.png", "00004.png", "00007.png", "00009.png"]


def manifest_of(folder: Path) -> None:
    """Makes the images of a folder those of a manifest, as `generate` writes it."""
    rows = rows_of(folder)
    lines = [
        MANIFEST_LINE | {"index": i, "file": row["file_name"], "prompt": row["text"], "class": row["class"], "seed": i}
        for i, row in enumerate(rows)
    ]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "metadata.jsonl").unlink()


@pytest.mark.parametrize("kind", ["metadata", "files", "manifest"])
def test_images_that_do_not_open_are_listed_in_their_places_and_the_others_are_opened(
    photos: Path, tmp_path: Path, kind: str
) -> None:
    folder = tmp_path / "images"
    shutil.copytree(photos, folder)
    if kind == "files":
        (folder / "metadata.jsonl").unlink()
    if kind == "manifest":
        manifest_of(folder)
    names = spoil(folder)
    missing = [] if kind == "files" else ["00009.png"]  # nothing names it then
    images = open_images(folder, (128, 128), None)
    assert [str(error.file) for error in images.refused.values()] == names[:3] + missing
    assert images.count == len(images.files) + len(images.refused) == 24 - (kind == "files")
    assert len(images.files) == len(images.pixels) == len(images.prompts) == 20 and not set(names) & set(images.files)
    assert [place for place, _ in zip(images.refused, range(3), strict=False)] == [3, 4, 7]
    tiles, captions = images.tiles(8)
    grey = [place for place, tile in enumerate(tiles) if np.ptp(np.asarray(tile)) == 0]
    assert grey == [3, 4, 7] and [captions[place] for place in grey] == names[:3]


def test_where_nothing_opens_there_is_nothing_to_check(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    with raises("image", tmp_path, "1 cannot be opened", "a.png"):
        open_images(tmp_path, (128, 128), None)


@pytest.mark.slow
def test_a_check_counts_what_does_not_open_as_not_passing_and_judges_the_others_as_before(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images" / "row"
    shutil.copytree(photos, folder)
    manifest_of(folder)
    before = api.check(folder, photos).content
    assert "refused" not in before and "opens" not in before["properties"]
    names = spoil(folder)
    capsys.readouterr()
    result = api.check(folder, photos, require=0.9)
    content, out = result.content, capsys.readouterr().out
    assert content == {key: value for key, value in read_json(folder / "check.json").items() if key != "schema"}
    assert [entry["file"] for entry in content["refused"]] == names
    assert content["count"] == content["all"]["n"] == 24 and content["properties"]["opens"]["rate"] == 20 / 24
    assert not result.passed and content["all"]["rate"] <= 20 / 24
    former, now = ({entry["file"]: entry for entry in one["images"]} for one in (before, content))
    assert list(former) == list(now)
    for name, entry in now.items():
        assert entry == (former[name] if name not in names else {"file": name, "failed": ["opens"], "values": {}})
    assert content["properties"]["fill"]["n"] == 20
    assert f"{photos}: 24 of 24 images have a caption" in out
    assert "4 cannot be opened, and pass nothing" in out and all(f"  {name}: " in out for name in names)
    assert [row for row in report.properties(*rows_to_report(folder)) if row.title == "Open as images"]


def rows_to_report(folder: Path) -> tuple[Any, Any]:
    """What a report reads of a row of images, less those that it cannot draw."""
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    drawn = [line for line in lines if (folder / line["file"]).is_file() and line["index"] not in (3, 4, 7)]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in drawn))
    rows, *_ = report.read_rows({"row": folder}, {})
    return rows, {"row": folder}


def test_as_json_a_check_says_what_it_found_beside_it(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(photos, tmp_path / "images")
    api.check(tmp_path / "images", photos, json=True)
    out, err = capsys.readouterr()
    assert json.loads(out)["count"] == 24
    assert f"{photos}: 24 of 24 images have a caption" in err and f"{tmp_path / 'images'}: 24 of 24 images" in err


def test_photos_that_do_not_open_are_said_where_ranges_are_learned(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    (tmp_path / "photos/00002.png").write_bytes(b"no image")
    reference = open_reference(tmp_path / "photos", (128, 128), None, None, None)
    error = capsys.readouterr().err
    assert "1 of 24 photos cannot be opened" in error and f"{tmp_path / 'photos/00002.png'}: not an image" in error
    assert sum(reference.count) == 23 and len(read_folder(photos)[0]) == 24


def test_links_to_nothing_are_refused_and_the_other_photos_learnt_from(photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "photos", ignore=shutil.ignore_patterns("metadata.jsonl"))
    (tmp_path / "photos/gone.png").symlink_to("nowhere.png")
    (tmp_path / "photos/round.png").symlink_to("round.png")
    refused = {one.file.name: one.reason for one in read_folder(tmp_path / "photos")[1]}
    assert refused == {"gone.png": "a link to nothing", "round.png": "a link to nothing"}
    assert sum(open_reference(tmp_path / "photos", (128, 128), None, None, None).count) == 24


def test_the_first_check_of_a_brand_has_the_numbers_of_every_later_one(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for i in range(24):
        image = Image.new("RGB", (32, 32), "white")
        image.paste((200, 30, 9 * i), (8, 6, 20 + i % 3, 25))
        image.save(tmp_path / "photos" / f"{i}.png")
    first, later = (open_reference(tmp_path / "photos", (32, 32), None, None, tmp_path) for _ in range(2))
    assert (tmp_path / "reference.json").is_file() and first.poses
    assert all(torch.equal(pose, later.poses[name]) for name, pose in first.poses.items())
    assert first.to_json() == later.to_json()
