"""What a check learns from: the photos, and the same as the model's own autoencoder leaves them."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch

from onbrand import api
from onbrand.api._inputs import open_prior
from onbrand.data.images import open_image, to_tensor
from onbrand.datasets.garments import write_garments
from onbrand.evaluation import loading
from onbrand.evaluation.likelihood import unseen_values
from onbrand.evaluation.loading import open_reference
from onbrand.evaluation.reference import learn
from onbrand.models import pipeline

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
    unseen = json.loads((brand / "unseen.json").read_text())
    (brand / "unseen.json").write_text(json.dumps(unseen | {"prior": "another"}))
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
