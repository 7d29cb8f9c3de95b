"""The cut of ground and product: connected parts as scipy finds them, products as they were drawn."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from onbrand.evaluation.segmentation import border, connected, cut, pasted, without_specks


def scipy_connected(mask: np.ndarray) -> np.ndarray:
    labels, _ = ndimage.label(mask)
    outer = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    return np.isin(labels, outer[outer > 0])


@pytest.mark.parametrize("density", [0.45, 0.6, 0.7])
def test_connected_is_scipys(density):
    masks = torch.rand(40, 23, 31, generator=torch.Generator().manual_seed(0)) < density
    expected = np.stack([scipy_connected(mask) for mask in masks.numpy()])
    assert 0.05 < expected.mean() < density and np.array_equal(connected(masks).numpy(), expected)


def test_a_spiral_is_followed_to_its_end():
    rows = "#########,        #,####### #,#     # #,# ### # #,# #   # #,# ##### #,#       #,#########".split(",")
    mask = torch.tensor([[pixel == " " for pixel in row] for row in rows])[None]
    assert torch.equal(connected(mask), mask)
    mask[0, 1, 0] = False  # its only way out
    assert not connected(mask).any()


def test_specks_go_and_lines_stay():
    mask = torch.zeros(1, 12, 12, dtype=torch.bool)
    mask[0, 2, 2:4] = True  # a speck of two pixels
    mask[0, 6, 2:10] = True  # a strap, one pixel wide
    expected = mask.clone()
    expected[0, 2] = False
    expected[0, 6, [2, 9]] = False  # its ends have one neighbour only
    assert torch.equal(without_specks(mask), expected)


def test_product_is_what_was_drawn_and_owns_the_ground_it_encloses():
    picture = torch.ones(1, 3, 32, 32)
    picture[:, :, 8:24, 8:24] = torch.tensor([0.8, 0.1, 0.1]).view(3, 1, 1)
    picture[:, :, 14:18, 14:18] = 1.0
    found = cut(picture)
    box = torch.zeros(1, 32, 32, dtype=torch.bool)
    box[0, 8:24, 8:24] = True
    assert torch.equal(found.product, box) and torch.equal(found.ground, ~box)


def test_the_ground_is_the_pictures_own_whatever_its_colour():
    picture = torch.tensor([0.2, 0.3, 0.8]).view(1, 3, 1, 1).repeat(1, 1, 16, 16)
    picture[:, :, 5:9, 5:9] = 1.0
    assert cut(picture).product.sum() == 16


def test_border_has_each_outer_pixel_once():
    numbers = torch.arange(30.0).view(1, 1, 5, 6)
    assert sorted(border(numbers).flatten().tolist()) == [n for n in range(30) if n // 6 in (0, 4) or n % 6 in (0, 5)]


def test_pictures_too_small_to_cut_are_refused():
    with pytest.raises(ValueError, match="at least 8 pixels"):
        cut(torch.ones(1, 3, 7, 9))


def dressed(cloth: float, smear: float = 1.0) -> torch.Tensor:
    """White ground, a body with dark sides and pale clothes of sRGB `cloth` between them, a smear beside it."""
    picture = torch.ones(1, 3, 32, 32)
    picture[..., 8:24, 8:24] = cloth
    picture[..., 8:24, 8:10] = picture[..., 8:24, 22:24] = 0.2
    picture[..., 12:20, 27:30] = smear
    return picture


@pytest.mark.parametrize(("cloth", "kept"), [(0.97, False), (0.93, True), (0.8, True)])  # dE 2.7, 6.3, 18
def test_pale_clothes_are_no_ground_where_the_ground_is_even(cloth, kept):
    found = cut(dressed(cloth))
    box = torch.zeros(1, 32, 32, dtype=torch.bool)
    box[0, 8:24, 8:24] = True
    if not kept:
        box[0, 8:24, 10:22] = False
    assert torch.equal(~found.ground, box)
    assert found.product[0, 8:24, 10:22].all() == (cloth == 0.8)  # pale ones make no box


def test_a_smear_of_the_ground_is_ground_and_an_uneven_ground_is_all_ground():
    assert cut(dressed(0.8, smear=0.93)).ground[0, 12:20, 27:30].all()
    uneven = dressed(0.8)
    uneven[..., ::2, ::2] = uneven[..., ::2, ::2].where(uneven[..., ::2, ::2] < 1, torch.tensor(0.93))
    found = cut(uneven)
    assert torch.equal(~found.ground, found.product) and found.product.sum() == 16 * 16


def test_pale_clothes_stay_when_the_ground_is_replaced():
    assert torch.allclose(pasted(dressed(0.93))[..., 12:20, 12:20], torch.tensor(0.93))
