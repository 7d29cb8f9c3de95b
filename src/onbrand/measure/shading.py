"""Numbers of a product's shading and colours from which its light can be told."""

import torch
from torch import Tensor
from torch.nn.functional import avg_pool3d, max_pool2d

from onbrand.measure.relight import frame

BIN, CELLS = 4.0, (26, 50, 50)
"""Side of a cell of Lab, and cells along L* 0..100, a* and b* -100..100."""
QUANTILES = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)
RARE = (-5.0, -4.0, -3.5, -3.0)
"""log10 of a colour's share of the brand's products, below which it is rare."""
EVEN = 10.0
"""A pixel is even where its 3 x 3 neighbourhood spans less than this in each of L*, a*, b*."""
FEWEST = 30
"""Pixels of a product inside its edge; where it has fewer, all of its pixels are taken."""
ENOUGH = 100
"""Even pixels that make a full case; fewer weigh less."""
CAUCHY, ROUNDS = 2.0, 5
"""Width of the robust plane's weights, in L*, and rounds of reweighting."""


def shading(lab: Tensor, product: Tensor, colours: Tensor) -> Tensor:
    """Features `(B, F)` of products `(B, H, W)` in lab `(B, 3, H, W)`; colours as `count_colours` gives them.

    Quantiles of L*, a*, b* and of L* about a plane fitted robustly; that plane's slope across and down; L* of the
    thirds of the product toward eight sides; how common its colours are for the brand, overall and toward each side,
    and how many are rare.
    """
    inside = _inside(product)
    even = inside & _even(lab)
    across, down = frame(product)
    rare = _rarity(lab, inside, even, colours, _thirds(across, down))
    # every second pixel both ways is enough for quantiles and planes, and four times as fast
    lightness, a, b = lab[:, :, ::2, ::2].flatten(2).unbind(1)
    where, across, down = (part[:, ::2, ::2].flatten(1) for part in (_inside(product), across, down))
    few = where.sum(1) < 5
    where = torch.where(few[:, None], product[:, ::2, ::2].flatten(1), where)
    levels = _quantiles(lightness, where, QUANTILES)
    middle = levels[:, 3:4]
    slope, left = _plane(lightness, where, across, down, middle)
    weight = where & (lightness >= levels[:, 1:2]) & (lightness <= levels[:, 5:6])
    mean = _mean(lightness, weight)
    thirds = [_mean(lightness, weight & third) - mean for third in _thirds(across, down)]
    parts = [
        middle, levels - middle, _quantiles(a, where, (0.1, 0.5, 0.9)), _quantiles(b, where, (0.1, 0.5, 0.9)),
        slope, slope.norm(dim=1, keepdim=True), _quantiles(left, where, QUANTILES), torch.stack(thirds, 1),
        where.float().mean(1, keepdim=True), rare,
    ]  # fmt: skip
    return torch.cat(parts, 1).nan_to_num(0.0, 0.0, 0.0)


def count_colours(lab: Tensor, product: Tensor) -> Tensor:
    """Share of the products' pixels inside their edges that fall in each cell of Lab or its 26 neighbours, flat.

    Products `(B, H, W)` in lab `(B, 3, H, W)` count alike, small ones less.
    """
    inside = _inside(product)
    weight = inside / inside.sum((1, 2), keepdim=True).clamp(min=ENOUGH) / max(len(lab), 1)
    counts = torch.zeros(CELLS[0] * CELLS[1] * CELLS[2], device=lab.device)
    counts.scatter_add_(0, _cell(lab).flatten(), weight.flatten())
    return (avg_pool3d(counts.view(1, 1, *CELLS), 3, 1, 1) * 27).flatten()


def _rarity(lab: Tensor, inside: Tensor, even: Tensor, colours: Tensor, thirds: list[Tensor]) -> Tensor:
    common = (colours + 1e-6).log10()[_cell(lab)]
    means = [_mean(common, inside, ENOUGH), _mean(common, even, ENOUGH), even.sum((1, 2)) / ENOUGH]
    means += [_mean((common < rare).float(), where, ENOUGH) for rare in RARE for where in (inside, even)]
    means += [_mean(common, even & third, ENOUGH) for third in thirds]
    return torch.stack(means, 1)


def _thirds(across: Tensor, down: Tensor) -> list[Tensor]:
    """Masks of the product's box toward eight sides."""
    return [side for along in (across, down, across + down, across - down) for side in (along < -0.12, along > 0.12)]


def _cell(lab: Tensor) -> Tensor:
    """Index of each pixel's cell, `(B, H, W)`."""
    moved = torch.stack([lab[:, 0], lab[:, 1] + 100, lab[:, 2] + 100], 1)
    first, second, third = (moved / BIN).long().unbind(1)
    n, m, k = CELLS
    return (first.clamp(0, n - 1) * m + second.clamp(0, m - 1)) * k + third.clamp(0, k - 1)


def _inside(product: Tensor) -> Tensor:
    """The product less its outermost pixels; all of it where hardly any would be left."""
    inner = -max_pool2d(-product[:, None].float(), 3, 1, 1)[:, 0] > 0
    return torch.where((inner.sum((1, 2)) < FEWEST)[:, None, None], product, inner)


def _even(lab: Tensor) -> Tensor:
    return (max_pool2d(lab, 3, 1, 1) + max_pool2d(-lab, 3, 1, 1)).amax(1) < EVEN


def _quantiles(values: Tensor, where: Tensor, shares: tuple[float, ...]) -> Tensor:
    """`(B, len(shares))` of values `(B, N)` over a mask, the nearest of them; inf where it is empty."""
    ordered = torch.where(where, values, torch.inf).sort(1).values
    last = (where.sum(1, keepdim=True) - 1).clamp(min=0)
    return ordered.gather(1, (torch.tensor(shares, device=values.device) * last).round().long())


def _plane(
    values: Tensor, where: Tensor, across: Tensor, down: Tensor, middle: Tensor
) -> tuple[Tensor, Tensor]:
    """Slope `(B, 2)` of a plane through most of the values `(B, N)` (Cauchy weights), and what is left about it."""
    base = torch.stack([torch.ones_like(across), across, down], 2)
    left = values - middle
    small = 1e-3 * torch.eye(3, device=values.device)
    for _ in range(ROUNDS):
        weighted = base * (where / (left.square() + CAUCHY**2))[:, :, None]
        plane = torch.linalg.solve(weighted.mT @ base + small, weighted.mT @ values[:, :, None])
        left = values - (base @ plane)[:, :, 0]
    return plane[:, 1:, 0], left


def _mean(values: Tensor, where: Tensor, least: int = 1) -> Tensor:
    """`(B,)` mean over a mask; with fewer than `least` pixels it shrinks toward 0."""
    many = where.flatten(1).sum(1).clamp(min=least)
    return (values * where).flatten(1).sum(1) / many
