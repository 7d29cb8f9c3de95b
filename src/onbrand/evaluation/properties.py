"""Numbers that describe a picture: its ground, and where the product stands in the frame; docs/properties.md."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from onbrand.evaluation.colour import distance, lab_of
from onbrand.evaluation.pose import overlap, silhouette
from onbrand.evaluation.segmentation import LOOSE, Cut, bands, border, cuts, grown, sides

NEAR = 3.0
"""Ground this close to the brand's colour, in dE, is the brand's: about what an eye sees side by side."""
MARKET = 0.85
"""The market rule many sell under: the product fills at least this share of the frame's longer side."""
STATISTICS: dict[str, tuple[str, ...]] = {
    "ground": ("ground_near", "ground_border", "ground_share"),
    "centring": ("centre_x", "centre_y"),
    "cropping": ("margin", "border_product"),
    "fill": ("fill",),
    "light": ("light_mean", "light_spread", "light_low", "light_sides"),
    "pose": ("pose_overlap",),
    "kind": ("kind_lead", "kind_likelihood"),
}
"""The numbers that decide each property. Others that `measure` gives (ground_mean, ...) are told, not judged."""


@torch.no_grad()
def measure(
    pictures: Tensor, ground: tuple[int, int, int] = (255, 255, 255), poses: Tensor | None = None
) -> dict[str, Tensor]:
    """All numbers of pictures `(B, 3, H, W)` in [0, 1], each `(B,)`; nan where there is no product to measure.

    ground: the brand's ground colour, RGB 0..255. poses: the mean silhouette `(B, S, S)` of each picture's class, for
    pose_overlap. ValueError where pictures are of another shape or range.
    """
    if not len(pictures):
        raise ValueError("there must be pictures to measure: got none")
    parts, done = [], 0
    for part in cuts(pictures):
        numbers = {**ground_of(part, ground), **place_of(part), **light_of(part)}
        if poses is not None:
            expected = poses[done : done + len(part.pictures)].to(part.pictures.device)
            numbers["pose_overlap"] = overlap(silhouette(part), expected)
        parts.append(numbers)
        done += len(part.pictures)
    return {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}


def ground_of(cut: Cut, brand: tuple[int, int, int]) -> dict[str, Tensor]:
    """Of the ground: how much is the brand's colour, its lightness, evenness, and how much is that colour exactly.

    ground_near: share of ground, a rim round the product left out, within NEAR of the brand's colour · ground_border:
    the same share of four bands as wide as the rim along the frame, the worst one left out, for
    a product may touch it · ground_share: near
    ground as share of the picture · ground_mean, ground_spread: mean and standard deviation of L* · ground_pure:
    share of ground that is the brand's colour exactly, in 8 bits.
    """
    near = distance(cut.lab, lab_of(brand, cut.lab.device)) <= NEAR
    open_ground = cut.ground & ~grown(~cut.ground, rim(cut))
    by_side = torch.stack([band.float().mean((1, 2)) for band in bands(near, rim(cut))], 1)
    exact = torch.tensor(brand, device=cut.lab.device).view(1, 3, 1, 1)
    pure = ((cut.pictures * 255).round() == exact).all(1)
    mean = _share(cut.lab[:, 0], open_ground)
    spread = (_share(cut.lab[:, 0].square(), open_ground) - mean.square()).clamp(min=0).sqrt()
    return {
        "ground_near": _share(near, open_ground).nan_to_num(0.0),
        "ground_border": (by_side.sum(1) - by_side.amin(1)) / 3,
        "ground_share": (near & cut.ground).float().mean((1, 2)),
        "ground_mean": mean,
        "ground_spread": spread,
        "ground_pure": _share(pure, open_ground).nan_to_num(0.0),
    }


def place_of(cut: Cut) -> dict[str, Tensor]:
    """Of the product's box, as shares of the frame's width and height; nan where there is no product.

    centre_x, centre_y: its centre less the frame's, right and down positive · margin: its least distance from the
    frame · border_product: share of the border's pixels that are product · fill: its longer side, as share of the
    frame's (the larger of the two shares) · market: 1 where fill reaches MARKET, else 0.
    """
    left, right = _extent(cut.product.any(1))
    top, bottom = _extent(cut.product.any(2))
    fill = torch.maximum(right - left, bottom - top)
    return {
        "centre_x": (left + right) / 2 - 0.5,
        "centre_y": (top + bottom) / 2 - 0.5,
        "margin": torch.stack([left, 1 - right, top, 1 - bottom]).amin(0),
        "border_product": border(cut.product[:, None]).float().mean((1, 2)),
        "fill": fill,
        "market": torch.where(fill.isnan(), torch.nan, (fill >= MARKET).float()),
    }


def rim(cut: Cut) -> int:
    """Pixels next to the product that are neither, 1/32 of the frame: anti-aliasing, and what a VAE leaves there."""
    return max(1, round(min(cut.lab.shape[2:]) / 32))


def _share(values: Tensor, where: Tensor) -> Tensor:
    """Mean of values `(B, H, W)` over a mask; nan where it is empty."""
    return (values * where).sum((1, 2)) / where.sum((1, 2))


def _extent(occupied: Tensor) -> tuple[Tensor, Tensor]:
    """First and last edge of what is occupied in `(B, n)`, as shares of n; nan where nothing is."""
    n = occupied.shape[1]
    place = torch.arange(n, device=occupied.device)
    low = torch.where(occupied, place, n).amin(1).float()
    high = torch.where(occupied, place + 1, -1).amax(1).float()
    some = occupied.any(1)
    return torch.where(some, low / n, torch.nan), torch.where(some, high / n, torch.nan)


LOW = 8
"""Side of the low-pass picture."""


def light_of(cut: Cut) -> dict[str, Tensor]:
    """Of L*, `(B,)` each; nan for the product's numbers where there is none.

    light_mean, light_spread: mean and standard deviation over the product · light_low: spread of its low-pass picture
    (means over 8 x 8 cells, weighted by the product in them) · light_sides: the darkest of the frame's four sides, each
    the median of its pixels: a set that is lit from one side, or too little, is dark on one.
    """
    product, lightness = solid(cut).float(), cut.lab[:, 0]
    many = product.sum((1, 2))
    mean = (lightness * product).sum((1, 2)) / many
    spread = ((lightness - mean[:, None, None]).square() * product).sum((1, 2)) / many
    weight = adaptive_avg_pool2d(product, LOW)
    low = adaptive_avg_pool2d(product * lightness, LOW) / weight.clamp(min=1e-6)
    around = ((low - mean[:, None, None]).square() * weight).sum((1, 2)) / weight.sum((1, 2))
    frame = torch.stack([side.median(-1).values for side in sides(lightness)], 1)
    return {
        "light_mean": mean,
        "light_spread": spread.sqrt(),
        "light_low": around.sqrt(),
        "light_sides": frame.amin(1),
    }


def solid(cut: Cut) -> Tensor:
    """The product without the ground that it encloses, `(B, H, W)`."""
    return cut.product & (distance(cut.lab, cut.own) > LOOSE)
