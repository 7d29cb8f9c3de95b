"""The check is valid for kinds of picture side by side: garments alone, and figures from neck to foot in one pose."""

import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d, affine_grid, grid_sample, interpolate
from violations import dimmed, on_ground, shift, side_light, zoom

from onbrand.core import Fitter, Prior, Provenance
from onbrand.datasets.garments import garments
from onbrand.evaluation.likelihood import kind_values
from onbrand.evaluation.pose import overlap, silhouettes_of
from onbrand.evaluation.reference import judge, learn


def load(split, count):
    """Pictures `(count, 3, 128, 128)` in [0, 1] and their classes."""
    pictures, rows = garments(split)
    taken = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:count].sort().values
    tensor = torch.from_numpy(pictures[taken.numpy()]).permute(0, 3, 1, 2).float() / 255
    return tensor, [rows[i]["class"] for i in taken.tolist()]


def small(pictures):
    """Stands in for a latent: the picture at 16 x 16, `(B, 3, 16, 16)`."""
    return adaptive_avg_pool2d(pictures, 16)


@pytest.fixture(scope="module")
def photos():
    return load("train", 1200)


@pytest.fixture(scope="module")
def reference(photos):
    pictures, classes = photos
    return learn(pictures, classes=classes)


@pytest.fixture(scope="module")
def kinds(photos):
    """A prior of the four kinds, and the ranges learned with it."""
    pictures, classes = photos
    fitter = Fitter((3, 16, 16), 3)
    fitter.update(small(pictures), classes)
    prior = Prior(fitter.finish(), Provenance("", 1.0, 0.0, (128, 128), "", False, (255, 255, 255)))
    return prior, learn(pictures, kind_values(prior, small(pictures), classes), classes=classes)


@pytest.fixture(scope="module")
def unseen():
    return load("test", 400)


@pytest.fixture(scope="module")
def figures(unseen):
    pictures, classes = unseen
    rows = [i for i, name in enumerate(classes) if name.endswith("person")][:100]
    return pictures[rows], [classes[i] for i in rows]


def warped(pictures, matrix):
    """Under an affine map of the frame's coordinates, filled up with white."""
    grid = affine_grid(torch.tensor(matrix).expand(len(pictures), 2, 3), pictures.shape, align_corners=False)
    return 1 - grid_sample(1 - pictures, grid, align_corners=False)


VIOLATIONS = {
    "ground 240": ("ground", lambda p: on_ground(p, (240, 240, 240))),
    "shift 12 of 128 right": ("centring", lambda p: shift(p, 12, 0)),
    "half out": ("cropping", lambda p: shift(p, -64, 0)),
    "zoomed, head to knee": ("cropping", lambda p: zoom(p, 1.3)),
    "from the waist up": ("pose", lambda p: interpolate(p[:, :, :64, 32:96], scale_factor=2, mode="bilinear")),
    "leaning": ("pose", lambda p: warped(p, [[1, 0.3, 0], [0, 1.0, 0]])),
    "half as wide": ("pose", lambda p: warped(p, [[2.0, 0, 0], [0, 1.0, 0]])),
    "relit from the left": ("light", lambda p: side_light(p, 0.4)),
    "dimmed": ("light", lambda p: dimmed(p, 0.8)),
}
"""Each with the property that it breaks."""


def test_real_pictures_of_every_kind_pass_each_property(reference, unseen):
    pictures, classes = unseen
    found = judge(reference, pictures, classes=classes)
    shares = {name: column[found.judged[name]].float().mean().item() for name, column in found.passed.items()}
    assert set(shares) == {"ground", "centring", "cropping", "fill", "light", "pose"}
    assert min(shares.values()) >= 0.995, shares


def test_real_pictures_are_of_their_kind_and_not_of_the_other(kinds, unseen):
    """A man's and a woman's garment may look alike, and pass as either; a garment never passes as a figure."""
    (prior, reference), (pictures, classes) = kinds, unseen

    def passed(asked):
        found = judge(reference, pictures, kind_values(prior, small(pictures), asked), asked)
        return found.passed["kind"].float()

    assert passed(classes).mean() >= 0.99
    swap = {"garment": "person", "person": "garment"}
    assert passed([f"{gender} {swap[view]}" for gender, view in map(str.split, classes)]).mean() <= 0.05


def test_figures_have_a_pose_and_garments_none(reference):
    assert set(reference.bounds) == {"male garment", "female garment", "male person", "female person"}
    assert set(reference.poses) == {"male person", "female person"}


@pytest.mark.parametrize("violation", VIOLATIONS)
def test_violations_of_figures_fail_their_property(reference, figures, violation):
    pictures, classes = figures
    name, broken = VIOLATIONS[violation]
    passed = judge(reference, broken(pictures), classes=classes).passed[name]
    assert 1 - passed.float().mean().item() >= 0.95


def test_what_resembles_the_pose_is_mostly_seen(reference, unseen, figures):
    """A long dress, upside down or alone, is near a figure's silhouette: the kind of picture tells them apart."""
    pictures, classes = figures
    assert judge(reference, pictures.flip(2), classes=classes).passed["pose"].float().mean() < 0.2
    rows = [i for i, name in enumerate(unseen[1]) if name.endswith("garment")][:100]
    asked = [unseen[1][i].replace("garment", "person") for i in rows]
    assert judge(reference, unseen[0][rows], classes=asked).passed["pose"].float().mean() < 0.2


def test_white_clothes_on_white_are_in_the_silhouette():
    pictures, rows = garments("train")
    men = [i for i, row in enumerate(rows) if row["class"] == "male person"]
    drawn = silhouettes_of(torch.from_numpy(pictures[men]).permute(0, 3, 1, 2).float() / 255)
    lies = overlap(drawn, drawn.mean(0))
    white = torch.tensor([rows[i]["colour"] == "white" and rows[i]["print"] == "plain" for i in men])
    assert white.sum() > 20 and lies[white].mean() > lies[~white].mean() - 0.02
