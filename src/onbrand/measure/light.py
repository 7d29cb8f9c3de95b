"""The product's light: how bright it is, and how much a picture looks like one of the brand's in another light."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, binary_cross_entropy_with_logits

from onbrand.measure.cut import LOOSE, Cut, cuts
from onbrand.measure.lab import distance, to_lab
from onbrand.measure.relight import relight, soften
from onbrand.measure.shading import count_colours, shading

SIDE = 64
"""Light is read off pictures averaged down to this longer side, pixels."""
LOW = 8
"""Side of the low-pass picture."""
WIDTH, STEPS, BATCH, RATE = 32, 800, 512, 5e-3
"""Of the network: hidden units, and its training."""
COPIES = 2
"""Relit copies of each picture, and of its softer version, that it learns from."""
FEWEST = 60
"""Pictures needed to tell the brand's light from another one."""
BEYOND = 6.0
"""Features are cut this many standard deviations from their mean."""


@dataclass(frozen=True, eq=False)
class Light:
    """The colours of the brand's products, and a network of one hidden layer that tells its light from another."""

    colours: Tensor
    """As shading.count_colours gives them."""
    shift: Tensor
    """`(F,)` mean of each feature."""
    scale: Tensor
    """`(F,)` standard deviation of each feature."""
    hidden: Tensor
    """`(WIDTH, F + 1)` weights and, last, biases."""
    out: Tensor
    """`(WIDTH + 1,)` weights and, last, the bias."""

    def score(self, cut: Cut) -> dict[str, Tensor]:
        """light_relit `(B,)`: log-odds that the picture is one of the brand's relit; nan where there is no product."""
        _, lab, product = small(cut)
        features = ((shading(lab, product, self.colours) - self.shift) / self.scale).clamp(-BEYOND, BEYOND)
        hidden = nn.functional.silu(features @ self.hidden[:, :-1].T + self.hidden[:, -1])
        return {"light_relit": torch.where(product.any(2).any(1), hidden @ self.out[:-1] + self.out[-1], torch.nan)}


def brightness(cut: Cut) -> dict[str, Tensor]:
    """Of the product's L*, `(B,)` each: mean, spread over its pixels, and spread of its low-pass picture (8 x 8 means);
    nan where there is no product."""
    product, lightness = solid(cut).float(), cut.lab[:, 0]
    many = product.sum((1, 2))
    mean = (lightness * product).sum((1, 2)) / many
    spread = ((lightness - mean[:, None, None]).square() * product).sum((1, 2)) / many
    weight = adaptive_avg_pool2d(product, LOW)
    low = adaptive_avg_pool2d(product * lightness, LOW) / weight.clamp(min=1e-6)
    around = ((low - mean[:, None, None]).square() * weight).sum((1, 2)) / weight.sum((1, 2))
    return {"light_mean": mean, "light_spread": spread.sqrt(), "light_low": around.sqrt()}


@torch.no_grad()
def fit_light(pictures: Tensor, seed: int = 0) -> Light | None:
    """Learn the brand's light from its pictures `(B, 3, H, W)` in [0, 1]; None for fewer than FEWEST.

    The network is shown the pictures, and the same a little softer, against copies of both relit (relight.py). How
    common a colour is for the brand is counted for either half of the pictures on the other half, as it will be for
    pictures it has never seen.
    """
    if len(pictures) < FEWEST:
        return None
    generator = torch.Generator().manual_seed(seed)
    versions: list[list[Tensor]] = [[] for _ in range(2 + 2 * COPIES)]
    masks = []
    for cut in cuts(pictures):
        own, lab, product = small(cut)
        soft = soften(own)
        copies = [relight(part, product, generator) for part in (own, soft) for _ in range(COPIES)]
        masks.append(product)
        for version, part in zip(versions, [lab, to_lab(soft), *map(to_lab, copies)], strict=True):
            version.append(part)
    labs, product = [torch.cat(parts) for parts in versions], torch.cat(masks)
    halves = slice(0, None, 2), slice(1, None, 2)
    counted = [count_colours(labs[0][half], product[half]) for half in halves[::-1]]
    features = [
        torch.cat([_shading(lab[half], product[half], colours) for half, colours in zip(halves, counted, strict=True)])
        for lab in labs
    ]
    return _train(torch.cat(features[:2]), torch.cat(features[2:]), count_colours(labs[0], product), seed)


def small(cut: Cut) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures averaged down to SIDE, their Lab, and the solid product there; as they are where they are small."""
    product, (height, width) = solid(cut), cut.pictures.shape[2:]
    if max(height, width) <= SIDE:
        return cut.pictures, cut.lab, product
    size = tuple(max(1, round(side * SIDE / max(height, width))) for side in (height, width))
    pictures = adaptive_avg_pool2d(cut.pictures, size).clamp(0, 1)
    return pictures, to_lab(pictures), adaptive_avg_pool2d(product.float()[:, None], size)[:, 0] > 0.5


def solid(cut: Cut) -> Tensor:
    """The product without the ground that it encloses, `(B, H, W)`."""
    return cut.product & (distance(cut.lab, cut.own) > LOOSE)


def _shading(lab: Tensor, product: Tensor, colours: Tensor) -> Tensor:
    return torch.cat([shading(a, b, colours) for a, b in zip(lab.split(128), product.split(128), strict=True)])


def _train(real: Tensor, other: Tensor, colours: Tensor, seed: int) -> Light:
    """Logistic loss on both kinds weighted alike; AdamW, one cycle."""
    shift, scale = real.mean(0), real.std(0) + 1e-3
    table = ((torch.cat([real, other]) - shift) / scale).clamp(-BEYOND, BEYOND)
    wanted = torch.cat([torch.zeros(len(real)), torch.ones(len(other))]).to(table)
    weight = torch.where(wanted > 0, len(table) / len(other) / 2, len(table) / len(real) / 2)
    generator = torch.Generator().manual_seed(seed)
    features = table.shape[1]
    first = (torch.randn(WIDTH, features, generator=generator) / features**0.5).to(table)
    hidden = torch.cat([first, torch.zeros_like(first[:, :1])], 1).requires_grad_()
    out = torch.cat([torch.randn(WIDTH, generator=generator) / WIDTH**0.5, torch.zeros(1)]).to(table).requires_grad_()
    optimizer = torch.optim.AdamW([hidden, out], lr=RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS)
    with torch.enable_grad():
        for _ in range(STEPS):
            rows = torch.randint(len(table), (BATCH,), generator=generator).to(table.device)
            active = nn.functional.silu(table[rows] @ hidden[:, :-1].T + hidden[:, -1])
            logits = active @ out[:-1] + out[-1]
            loss = binary_cross_entropy_with_logits(logits, wanted[rows], weight[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return Light(colours, shift, scale, hidden.detach(), out.detach())
