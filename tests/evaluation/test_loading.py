"""What a check learns from: the photos, and the same as the model's own autoencoder leaves them."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

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


@pytest.mark.filterwarnings("ignore:real photos kept back pass less often")
@pytest.mark.filterwarnings("ignore:.*its mean shows those images")  # 25 of a kind
def test_with_a_prior_photos_may_look_as_the_autoencoder_leaves_them(tmp_path: Path) -> None:
    photos = write_garments(tmp_path / "photos", "train", 100)
    api.fit(photos, "tiny", tmp_path / "brand", k=2)
    prior, pipe = open_prior(tmp_path / "brand"), pipeline.load("tiny")
    found = open_reference(photos, (128, 128), prior, pipe, tmp_path / "brand")

    pixels = torch.stack([to_tensor(open_image(file)) for file in sorted(photos.glob("*.png"))])  # type: ignore[arg-type]
    with torch.no_grad():
        decoded = pipe.vae.decode(pipe.vae.encode(pixels).latent_dist.mode()).sample.clamp(-1, 1)
    classes = [json.loads(line)["class"] for line in (photos / "metadata.jsonl").read_text().splitlines()]
    shown = {"images": (pixels + 1) / 2, "classes": classes}
    truth, narrow = learn(**shown, decoded=(decoded + 1) / 2), learn(**shown)
    for kind, numbers in truth.bounds.items():
        for name, bounds in numbers.items():
            assert found.bounds[kind][name] == pytest.approx(bounds, abs=1e-3), (kind, name)
        assert numbers["light_mean"] != narrow.bounds[kind]["light_mean"]
    assert open_reference(photos, (128, 128), prior, pipe, tmp_path / "brand").bounds == found.bounds, "kept and read"


@pytest.mark.filterwarnings("ignore:real photos kept back pass less often")
@pytest.mark.filterwarnings("ignore:.*its mean shows those images")
def test_the_brands_next_photos_pass_however_few_the_prior_has_seen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, new = (write_garments(tmp_path / split, split, 120) for split in ("train", "validation"))
    brand = tmp_path / "brand"
    api.fit(photos, "tiny", brand, k=16, random_flip=True)
    content = json.loads((brand / "unseen.json").read_text())
    rows = [json.loads(line) for line in (photos / "metadata.jsonl").read_text().splitlines()]
    files = [photos / row["file_name"] for row in rows if row["class"] == "male person"]
    pipe = pipeline.load("tiny")
    pixels = torch.stack([to_tensor(open_image(file)) for file in files])  # type: ignore[arg-type]
    x0 = [loading.encode_x0(pipe, (side + 1) / 2) for side in (pixels, pixels.flip(3))]
    truth = unseen_values(open_prior(brand), x0[0], "male person", x0[1])["class_likelihood"]  # type: ignore[arg-type]
    found = [content["photos"][sha256(file.read_bytes()).hexdigest()]["class_likelihood"] for file in files]
    assert len(content["photos"]) == 120 and found == pytest.approx(truth.tolist(), abs=1e-3)

    capsys.readouterr()
    fresh = api.check(new, photos, prior=brand).content
    expected = fresh["held_out"]["diversity"]
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("diversity")]
    assert line.endswith(f"{expected:.3g}") and expected == pytest.approx(fresh["measures"]["diversity"]["value"], 0.15)
    assert expected < 0.8, "what the prior has seen lies along its components more than new photos"
    (brand / "unseen.json").write_text(json.dumps(content | {"prior": "another"}))
    with pytest.warns(UserWarning, match="fewer than 500 of female garment"):
        before = api.check(new, photos, prior=brand).content
    kinds = [one["properties"]["class"]["rate"] for one in (fresh, before)]
    strays = [one["measures"]["out_of_distribution"]["value"] for one in (fresh, before)]
    assert kinds[0] > 0.9 > 0.5 > kinds[1] and strays[0] < 0.05 < 0.5 < strays[1]
    assert abs(fresh["held_out"]["class"] - kinds[0]) < 0.1


@pytest.mark.filterwarnings("ignore:real photos kept back pass less often")
@pytest.mark.filterwarnings("ignore:.*its mean shows those images")
def test_no_diversity_is_expected_of_photos_that_fit_told_nothing_of(tmp_path: Path) -> None:
    photos, others = (write_garments(tmp_path / split, split, 100) for split in ("train", "validation"))
    api.fit(photos, "tiny", tmp_path / "brand", k=2)
    assert "diversity" in api.check(others, photos, prior=tmp_path / "brand").content["held_out"]
    assert "diversity" not in api.check(photos, others, prior=tmp_path / "brand").content["held_out"]


@pytest.mark.filterwarnings("ignore:real photos kept back pass less often")
def test_ranges_are_learnt_again_by_other_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = write_garments(tmp_path / "photos", "train", 40)
    learnt = []
    monkeypatch.setattr(loading, "learn", lambda *args, **options: learnt.append(1) or learn(*args, **options))
    for version in (7, 7, 8):
        monkeypatch.setattr(loading, "RULES", version)
        open_reference(photos, (128, 128), None, None, tmp_path / "kept")
    assert len(learnt) == 2
