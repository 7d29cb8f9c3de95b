"""The check is valid for classes of image side by side: garments alone, and figures from neck to foot in one pose."""

from typing import Any

import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d, affine_grid, grid_sample, interpolate
from violations import dimmed, on_background, shift, side_light, zoom

from onbrand.core import Fitter, Prior, Provenance
from onbrand.datasets.garments import garments
from onbrand.evaluation.likelihood import class_values
from onbrand.evaluation.pose import overlap, silhouettes_of
from onbrand.evaluation.reference import judge, learn


def load(split: Any, count: Any) -> Any:
    """Images `(count, 3, 128, 128)` in [0, 1] and their classes."""
    images, rows = garments(split)
    indices = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:count].sort().values
    tensor = torch.from_numpy(images[indices.numpy()]).permute(0, 3, 1, 2).float() / 255
    return tensor, [rows[i]["class"] for i in indices.tolist()]


def small(images: Any) -> Any:
    """Stands in for a latent: the image at 16 x 16, `(B, 3, 16, 16)`."""
    return adaptive_avg_pool2d(images, 16)


@pytest.fixture(scope="module")
def photos() -> Any:
    return load("train", 1200)


@pytest.fixture(scope="module")
def prior_and_reference(photos: Any) -> Any:
    """A prior of the four classes, and the ranges learned with it."""
    images, classes = photos
    fitter = Fitter((3, 16, 16), 3)
    fitter.update(small(images), classes)
    prior = Prior(fitter.finish(), Provenance("", 1.0, 0.0, (128, 128), "", False, (255, 255, 255)))
    return prior, learn(images, class_values(prior, small(images), classes), classes=classes)


@pytest.fixture(scope="module")
def reference(prior_and_reference: Any) -> Any:
    return prior_and_reference[1]


@pytest.fixture(scope="module")
def new_images() -> Any:
    return load("test", 400)


@pytest.fixture(scope="module")
def figures(new_images: Any) -> Any:
    images, classes = new_images
    rows = [i for i, name in enumerate(classes) if name.endswith("person")][:100]
    return images[rows], [classes[i] for i in rows]


def warp(images: Any, matrix: Any) -> Any:
    """Under an affine map of the frame's coordinates, filled up with white."""
    grid = affine_grid(torch.tensor(matrix).expand(len(images), 2, 3), images.shape, align_corners=False)
    return 1 - grid_sample(1 - images, grid, align_corners=False)


VIOLATIONS = {
    "background 240": ("background", lambda p: on_background(p, (240, 240, 240))),
    "shift 12 of 128 right": ("centring", lambda p: shift(p, 12, 0)),
    "half out": ("cropping", lambda p: shift(p, -64, 0)),
    "zoomed, head to knee": ("cropping", lambda p: zoom(p, 1.3)),
    "from the waist up": ("pose", lambda p: interpolate(p[:, :, :64, 32:96], scale_factor=2, mode="bilinear")),
    "leaning": ("pose", lambda p: warp(p, [[1, 0.3, 0], [0, 1.0, 0]])),
    "half as wide": ("pose", lambda p: warp(p, [[2.0, 0, 0], [0, 1.0, 0]])),
    "relit from the left": ("light", lambda p: side_light(p, 0.4)),
    "dimmed": ("light", lambda p: dimmed(p, 0.8)),
}
"""Each with the property that it breaks."""


@pytest.mark.slow
def test_real_images_of_every_class_pass_each_property(reference: Any, new_images: Any) -> None:
    images, classes = new_images
    verdict = judge(reference, images, classes=classes)
    shares = {name: column[verdict.judged[name]].float().mean().item() for name, column in verdict.passed.items()}
    assert set(shares) == {"background", "centring", "cropping", "fill", "light", "pose"}
    assert min(shares.values()) >= 0.995, shares


@pytest.mark.slow
def test_real_images_are_of_their_class_and_not_of_the_other(prior_and_reference: Any, new_images: Any) -> None:
    """A man's and a woman's garment may look alike, and pass as either; a garment never passes as a figure."""
    (prior, reference), (images, classes) = prior_and_reference, new_images

    def passes(requests: Any) -> Any:
        verdict = judge(reference, images, class_values(prior, small(images), requests), requests)
        return verdict.passed["class"].float()

    assert passes(classes).mean() >= 0.99
    swap = {"garment": "person", "person": "garment"}
    assert passes([f"{gender} {swap[view]}" for gender, view in map(str.split, classes)]).mean() <= 0.05


def test_figures_have_a_pose_and_garments_none(reference: Any) -> None:
    assert set(reference.bounds) == {"male garment", "female garment", "male person", "female person"}
    assert set(reference.poses) == {"male person", "female person"}


@pytest.mark.parametrize("violation", VIOLATIONS)
def test_violations_of_figures_fail_their_property(reference: Any, figures: Any, violation: Any) -> None:
    images, classes = figures
    name, violate = VIOLATIONS[violation]
    passes = judge(reference, violate(images), classes=classes).passed[name]
    assert 1 - passes.float().mean().item() >= 0.95


def test_what_resembles_the_pose_is_mostly_seen(reference: Any, new_images: Any, figures: Any) -> None:
    """A long dress, upside down or alone, is near a figure's silhouette: the class of image tells them apart."""
    images, classes = figures
    assert judge(reference, images.flip(2), classes=classes).passed["pose"].float().mean() < 0.2
    rows = [i for i, name in enumerate(new_images[1]) if name.endswith("garment")][:100]
    requests = [new_images[1][i].replace("garment", "person") for i in rows]
    assert judge(reference, new_images[0][rows], classes=requests).passed["pose"].float().mean() < 0.2


def test_white_clothes_on_white_are_in_the_silhouette() -> None:
    images, rows = garments("train")
    men = [i for i, row in enumerate(rows) if row["class"] == "male person"]
    silhouettes = silhouettes_of(torch.from_numpy(images[men]).permute(0, 3, 1, 2).float() / 255)
    overlaps = overlap(silhouettes, silhouettes.mean(0))
    white = torch.tensor([rows[i]["colour"] == "white" and rows[i]["print"] == "plain" for i in men])
    assert white.sum() > 20 and overlaps[white].mean() > overlaps[~white].mean() - 0.02
