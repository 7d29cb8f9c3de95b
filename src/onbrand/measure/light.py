"""The product's light: how bright it is, and how much a picture looks like one of the brand's in another light."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, binary_cross_entropy_with_logits

from onbrand.measure.cut import LOOSE, Cut, cuts
from onbrand.measure.lab import distance, to_lab
from onbrand.measure.relight import relight, soften
from onbrand.measure.shading import count_colours, shading

SIDE = 64
"""Light is read off pictures averaged down to this longer side, pixels."""
LOW = 8
"""Side of the low-pass picture."""
WIDTH, STEPS, BATCH, RATE = 32, 500, 512, 1e-2
"""Of each network: hidden units, and its training."""
FOLDS = 4
"""Parts of the pictures; what is said of one is learned on the others."""
FEWEST = 60
"""Pictures needed to tell the brand's light from another one."""
BEYOND = 6.0
"""Features are cut this many standard deviations from their mean."""


@dataclass(frozen=True, eq=False)
class Light:
    """The colours of the brand's products, and small networks, taken together, that tell its light from another."""

    colours: Tensor
    """As shading.count_colours gives them."""
    shift: Tensor
    """`(F,)` mean of each feature."""
    scale: Tensor
    """`(F,)` standard deviation of each feature."""
    hidden: Tensor
    """`(FOLDS, WIDTH, F + 1)` weights and, last, biases of each network."""
    out: Tensor
    """`(FOLDS, WIDTH + 1)` weights and, last, the bias of each."""

    def score(self, cut: Cut) -> dict[str, Tensor]:
        """light_relit `(B,)`: log-odds that the picture is one of the brand's relit; nan where there is no product."""
        _, lab, product = small(cut)
        logits = self.logits(shading(lab, product, self.colours))
        return {"light_relit": torch.where(product.any(2).any(1), logits, torch.nan)}

    def logits(self, features: Tensor) -> Tensor:
        """Log-odds `(B,)` of features `(B, F)` as shading.shading gives them."""
        rows = ((features - self.shift) / self.scale).clamp(-BEYOND, BEYOND)
        return torch.stack([_forward(rows, *net) for net in zip(self.hidden, self.out, strict=True)]).mean(0)


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
def fit_light(pictures: Tensor, seed: int = 0, decoded: Tensor | None = None) -> tuple[Light, Tensor] | None:
    """Learn the brand's light from its pictures `(B, 3, H, W)` in [0, 1]; None for fewer than FEWEST.

    Networks of one hidden layer, each on all but one fold of the pictures, are shown them, and the same a little softer
    (or `decoded`: the same as a VAE leaves them), against copies of both relit (relight.py). The colours that a picture
    is compared with are counted on other folds than its own, as they will be for pictures never seen. Also returns
    log-odds `(B,)` of the pictures themselves, the higher one of both versions, by the network that has not seen them:
    what a threshold can be read from.
    """
    if len(pictures) < FEWEST:
        return None
    generator = torch.Generator().manual_seed(seed)
    parts = []
    others = iter(cuts(decoded)) if decoded is not None else None
    for cut in cuts(pictures):
        own, lab, product = small(cut)
        soft = small(next(others))[0] if others else soften(own)
        relit = [to_lab(relight(version, product, generator)) for version in (own, soft)]
        parts.append((product, lab, to_lab(soft), *relit))
    product, *versions = (torch.cat(part) for part in zip(*parts, strict=True))
    fold = torch.arange(len(pictures), device=product.device) % FOLDS
    counted = torch.stack([count_colours(versions[0][fold == i], product[fold == i]) for i in range(FOLDS)])
    table = torch.stack([_fold_shading(lab, product, fold, counted) for lab in versions], 1)
    real = table[:, :2].flatten(0, 1)
    shift, scale = real.mean(0), real.std(0) + 1e-3
    rows = ((table - shift) / scale).clamp(-BEYOND, BEYOND)
    nets = [_train(rows[fold != i], seed + i) for i in range(FOLDS)]
    unseen = torch.full((len(pictures),), torch.nan, device=product.device)
    for i, net in enumerate(nets):
        unseen[fold == i] = _forward(rows[fold == i, :2], *net).amax(1)
    hidden, out = (torch.stack(part) for part in zip(*nets, strict=True))
    light = Light(count_colours(versions[0], product), shift, scale, hidden, out)
    return light, torch.where(product.any(2).any(1), unseen, torch.nan).cpu()


def small(cut: Cut) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures averaged down to SIDE, their Lab, and the solid product there; as they are where they are small."""
    product, (height, width) = solid(cut), cut.pictures.shape[2:]
    if max(height, width) <= SIDE:
        return cut.pictures, cut.lab, product
    size = (max(1, round(height * SIDE / max(height, width))), max(1, round(width * SIDE / max(height, width))))
    pictures = adaptive_avg_pool2d(cut.pictures, size).clamp(0, 1)
    return pictures, to_lab(pictures), adaptive_avg_pool2d(product.float()[:, None], size)[:, 0] > 0.5


def solid(cut: Cut) -> Tensor:
    """The product without the ground that it encloses, `(B, H, W)`."""
    return cut.product & (distance(cut.lab, cut.own) > LOOSE)


def _fold_shading(lab: Tensor, product: Tensor, fold: Tensor, counted: Tensor) -> Tensor:
    """Features `(B, F)`, each picture's by the colours of the other folds; counted is `(FOLDS, cells)`."""
    features: list[Tensor] = [torch.empty(0)] * len(lab)
    for i in range(FOLDS):
        colours = (counted.sum(0) - counted[i]) / (FOLDS - 1)
        for rows in (fold == i).nonzero()[:, 0].split(128):
            for row, values in zip(rows.tolist(), shading(lab[rows], product[rows], colours), strict=True):
                features[row] = values
    return torch.stack(features)


def _train(table: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Weights of a network by logistic loss on `(B, 4, F)`: picture, softer picture, and either relit. AdamW, one
    cycle."""
    rows, features = table.flatten(0, 1), table.shape[2]
    wanted = torch.tensor([0.0, 0.0, 1.0, 1.0]).to(rows).repeat(len(table))
    generator = torch.Generator().manual_seed(seed)
    hidden = (torch.randn(WIDTH, features + 1, generator=generator) / features**0.5).to(rows).requires_grad_()
    out = (torch.randn(WIDTH + 1, generator=generator) / WIDTH**0.5).to(rows).requires_grad_()
    optimizer = torch.optim.AdamW([hidden, out], lr=RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS)
    with torch.enable_grad():
        for _ in range(STEPS):
            drawn = torch.randint(len(rows), (BATCH,), generator=generator).to(rows.device)
            loss = binary_cross_entropy_with_logits(_forward(rows[drawn], hidden, out), wanted[drawn])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return hidden.detach(), out.detach()


def _forward(rows: Tensor, hidden: Tensor, out: Tensor) -> Tensor:
    # tanh, not a rectifier: no picture is odder than all else, so that the tail of real ones stays short
    return torch.tanh(rows @ hidden[:, :-1].T + hidden[:, -1]) @ out[:-1] + out[-1]
