"""What a check learns from: the photos, and the same as the model's own autoencoder leaves them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from onbrand import api
from onbrand.api.inputs import open_prior
from onbrand.api.materials import open_reference
from onbrand.data.catalogue import CLASS, write_folder
from onbrand.data.images import open_picture, to_tensor
from onbrand.measure.reference import learn
from onbrand.models import bundle


def test_with_a_prior_photos_may_look_as_the_autoencoder_leaves_them(tmp_path: Path) -> None:
    photos = write_folder(tmp_path / "photos", "train", 60)
    api.fit(photos, "pilot", tmp_path / "brand", k=2)
    prior, pipe = open_prior(tmp_path / "brand"), bundle.load("pilot")
    found = open_reference(photos, (64, 64), prior, pipe, tmp_path / "brand")

    pixels = torch.stack([to_tensor(open_picture(file)) for file in sorted(photos.glob("*.png"))])  # type: ignore[arg-type]
    with torch.no_grad():
        decoded = pipe.vae.decode(pipe.vae.encode(pixels).latent_dist.mode()).sample.clamp(-1, 1)
    truth, narrow = learn((pixels + 1) / 2, decoded=(decoded + 1) / 2), learn((pixels + 1) / 2)
    for name, bounds in truth.bounds[""].items():
        assert found.bounds[CLASS][name] == pytest.approx(bounds, abs=1e-3), name
    assert truth.bounds[""]["light_mean"] != narrow.bounds[""]["light_mean"]
    assert open_reference(photos, (64, 64), prior, pipe, tmp_path / "brand").bounds == found.bounds, "kept and read"
