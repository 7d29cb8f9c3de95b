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
EVEN = 6.0
"""A pixel is even where it differs by less than this from its four neighbours in each of L*, a*, b*."""
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
    cells, even = _cell(lab), inside & _even(lab)
    # every second pixel both ways is enough for what follows, and four times as fast
    lightness, a, b = lab[:, :, ::2, ::2].flatten(2).unbind(1)
    cells, inside, even, product, across, down = (
        part[:, ::2, ::2].flatten(1) for part in (cells, inside, even, product, *frame(product))
    )
    inside = torch.where((inside.sum(1) < 5)[:, None], product, inside)
    sides = torch.stack(
        [side for along in (across, down, across + down, across - down) for side in (along < -0.12, along > 0.12)], 1
    ).float()
    levels = _quantiles(lightness, inside, QUANTILES)
    middle = levels[:, 3:4]
    slope, left = _plane(lightness, inside, across, down, middle)
    usual = inside & (lightness >= levels[:, 1:2]) & (lightness <= levels[:, 5:6])
    toward = _means(sides * usual[:, None], lightness) - _means(usual[:, None].float(), lightness)
    common = (colours + 1e-6).log10()[cells]
    both = torch.stack([inside, even], 1).float()
    rare = [_means(both, (common < level).float(), ENOUGH / 4) for level in RARE]
    parts = [
        middle, levels - middle, _quantiles(a, inside, (0.1, 0.5, 0.9)), _quantiles(b, inside, (0.1, 0.5, 0.9)),
        slope, slope.norm(dim=1, keepdim=True), _quantiles(left, inside, QUANTILES), toward, both.mean(2),
        _means(both, common, ENOUGH / 4), _means(sides * even[:, None], common, ENOUGH / 4), *rare,
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
    """Pixels whose neighbourhood is nearly of one colour, `(B, H, W)`."""
    span = torch.zeros_like(lab[:, 0])
    for low, high in ((lab[..., :-1], lab[..., 1:]), (lab[..., :-1, :], lab[..., 1:, :])):
        step = (high - low).abs().amax(1)
        wide = low.shape[-1] < lab.shape[-1]
        for first in (0, 1):  # a step counts for the pixels on both of its sides
            part = span[..., first : first + step.shape[-1]] if wide else span[..., first : first + step.shape[-2], :]
            torch.maximum(part, step, out=part)
    return span < EVEN


def _quantiles(values: Tensor, where: Tensor, shares: tuple[float, ...]) -> Tensor:
    """`(B, len(shares))` of values `(B, N)` over a mask, the nearest of them; inf where it is empty."""
    ordered = torch.where(where, values, torch.inf).sort(1).values
    last = (where.sum(1, keepdim=True) - 1).clamp(min=0)
    return ordered.gather(1, (torch.tensor(shares, device=values.device) * last).round().long())


def _plane(values: Tensor, where: Tensor, across: Tensor, down: Tensor, middle: Tensor) -> tuple[Tensor, Tensor]:
    """Slope `(B, 2)` of a plane through most of the values `(B, N)` (Cauchy weights), and what is left about it."""
    base = torch.stack([torch.ones_like(across), across, down], 2)
    left = values - middle
    small = 1e-3 * torch.eye(3, device=values.device)
    for _ in range(ROUNDS):
        weighted = base * (where / (left.square() + CAUCHY**2))[:, :, None]
        plane = torch.linalg.solve(weighted.mT @ base + small, weighted.mT @ values[:, :, None])
        left = values - (base @ plane)[:, :, 0]
    return plane[:, 1:, 0], left


def _means(weights: Tensor, values: Tensor, least: float = 1.0) -> Tensor:
    """`(B, M)` means of values `(B, N)` under weights `(B, M, N)`; where these sum to less than `least`, toward 0."""
    return (weights @ values[:, :, None])[:, :, 0] / weights.sum(2).clamp(min=least)
