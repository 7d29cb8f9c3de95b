"""The cut of background and product: connected parts as a flood fills them, products as they were drawn."""

from typing import Any

import pytest
import torch

from onbrand.evaluation.segmentation import border, connected, cut, pasted, without_specks
from worlds import raises


def flood(mask: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
    """The part of a mask `(B, H, W)` that a flood from the seeds fills, swept along columns and rows until it stays."""
    part = mask & seeds
    while True:
        larger = sweep(sweep(part, mask).mT, mask.mT).mT
        if torch.equal(larger, part):
            return part
        part = larger


def sweep(part: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`part` carried down and up all columns as far as the mask lasts."""
    rows, free = part.transpose(0, 1).contiguous(), mask.transpose(0, 1).contiguous()
    for i in range(1, len(rows)):
        rows[i] |= rows[i - 1] & free[i]
    for i in range(len(rows) - 2, -1, -1):
        rows[i] |= rows[i + 1] & free[i]
    return rows.transpose(0, 1)


@pytest.mark.parametrize("density", [0.3, 0.45, 0.6, 0.7])
def test_connected_is_what_a_flood_fills(density: Any) -> None:
    noise = torch.Generator().manual_seed(0)
    masks, seeds = torch.rand(60, 23, 31, generator=noise) < density, torch.rand(60, 23, 31, generator=noise) < 0.01
    border_seeds = torch.zeros_like(masks)
    border_seeds[:, [0, -1]] = border_seeds[:, :, [0, -1]] = True
    expected = flood(masks, border_seeds)
    assert 0.05 < expected.float().mean() < density and torch.equal(connected(masks), expected)
    assert torch.equal(connected(masks, seeds), flood(masks, seeds)) and not torch.equal(seeds & masks, seeds)


def test_masks_without_a_part_and_batches_without_a_mask_stay_empty() -> None:
    assert not connected(torch.zeros(2, 9, 9, dtype=torch.bool)).any()
    assert connected(torch.zeros(0, 9, 9, dtype=torch.bool)).shape == (0, 9, 9)


def test_a_spiral_is_followed_to_its_end() -> None:
    rows = [
        "#########",
        "        #",
        "####### #",
        "#     # #",
        "# ### # #",
        "# #   # #",
        "# ##### #",
        "#       #",
        "#########",
    ]
    mask = torch.tensor([[pixel == " " for pixel in row] for row in rows])[None]
    assert torch.equal(connected(mask), mask)
    mask[0, 1, 0] = False  # its only way out
    assert not connected(mask).any()


def test_specks_go_and_lines_stay() -> None:
    mask = torch.zeros(1, 12, 12, dtype=torch.bool)
    mask[0, 2, 2:4] = True  # a speck of two pixels
    mask[0, 6, 2:10] = True  # a strap, one pixel wide
    expected = mask.clone()
    expected[0, 2] = False
    expected[0, 6, [2, 9]] = False  # its ends have one neighbour only
    assert torch.equal(without_specks(mask), expected)


def test_product_is_what_was_drawn_and_owns_the_background_it_encloses() -> None:
    image = torch.ones(1, 3, 32, 32)
    image[:, :, 8:24, 8:24] = torch.tensor([0.8, 0.1, 0.1]).view(3, 1, 1)
    image[:, :, 14:18, 14:18] = 1.0
    parts = cut(image)
    box = torch.zeros(1, 32, 32, dtype=torch.bool)
    box[0, 8:24, 8:24] = True
    assert torch.equal(parts.product, box) and torch.equal(parts.background, ~box)


def test_the_background_is_the_images_own_whatever_its_colour() -> None:
    image = torch.tensor([0.2, 0.3, 0.8]).view(1, 3, 1, 1).repeat(1, 1, 16, 16)
    image[:, :, 5:9, 5:9] = 1.0
    assert cut(image).product.sum() == 16


def test_border_has_each_outer_pixel_once() -> None:
    numbers = torch.arange(30.0).view(1, 1, 5, 6)
    assert sorted(border(numbers).flatten().tolist()) == [n for n in range(30) if n // 6 in (0, 4) or n % 6 in (0, 5)]


def test_images_too_small_to_cut_are_refused() -> None:
    with raises("value", "8 pixels", "(7, 9)"):
        cut(torch.ones(1, 3, 7, 9))


def dressed(cloth: float, smear: float = 1.0) -> torch.Tensor:
    """White background, a body with dark sides and pale clothes of sRGB `cloth` between them, a smear beside it."""
    image = torch.ones(1, 3, 32, 32)
    image[..., 8:24, 8:24] = cloth
    image[..., 8:24, 8:10] = image[..., 8:24, 22:24] = 0.2
    image[..., 12:20, 27:30] = smear
    return image


@pytest.mark.parametrize(("cloth", "whole"), [(0.97, False), (0.93, True), (0.8, True)])  # dE 2.7, 6.3, 18
def test_pale_clothes_are_no_background_where_the_background_is_even(cloth: Any, whole: Any) -> None:
    parts = cut(dressed(cloth))
    box = torch.zeros(1, 32, 32, dtype=torch.bool)
    box[0, 8:24, 8:24] = True
    if not whole:
        box[0, 8:24, 10:22] = False
    assert torch.equal(~parts.background, box)
    assert parts.product[0, 8:24, 10:22].all() == (cloth == 0.8)  # pale ones make no box


def test_a_smear_of_the_background_is_background_and_an_uneven_background_is_all_background() -> None:
    assert cut(dressed(0.8, smear=0.93)).background[0, 12:20, 27:30].all()
    uneven = dressed(0.8)
    uneven[..., ::2, ::2] = uneven[..., ::2, ::2].where(uneven[..., ::2, ::2] < 1, torch.tensor(0.93))
    parts = cut(uneven)
    assert torch.equal(~parts.background, parts.product) and parts.product.sum() == 16 * 16


def test_pale_clothes_stay_when_the_background_is_replaced() -> None:
    assert torch.allclose(pasted(dressed(0.93))[..., 12:20, 12:20], torch.tensor(0.93))
