"""Every property and measure of the check, said once; and the numbers that pixels give: docs/concepts/properties.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from onbrand.errors import OnbrandError
from onbrand.evaluation.colour import distance, lab_of
from onbrand.evaluation.pose import overlap, silhouette
from onbrand.evaluation.segmentation import BATCH, LOOSE, Cut, bands, border, cut, grown, sides
from onbrand.ranks import each

NEAR = 3.0
"""Background within this dE of the brand's colour counts as the brand's: about what an eye sees side by side."""
MARKET = 0.85
"""The rule of many markets: the product fills at least this share of the frame's longer side."""
RGB = tuple[int, int, int]
Slack = tuple[float | None, float | None]


@dataclass(frozen=True, eq=False)
class Brand:
    """What images are measured against."""

    background: RGB = (255, 255, 255)
    """Colour of the brand's background, 0..255."""
    poses: Tensor | None = None
    """`(B, S, S)` mean silhouette of each image's class, in [0, 1]; None if no class has a pose."""


@dataclass(frozen=True)
class Property:
    """What an image keeps or not: it passes if all of the property's numbers lie in their ranges."""

    name: str
    """Its key in check.json, and its name on the contact sheet."""
    title: str
    """What is said of the images that pass, for a person who sells them."""
    rule: str
    """When an image passes; {attributes} stands for what the attribute classifier reads."""
    numbers: Mapping[str, Slack] = field(default_factory=dict)
    """Numbers that decide it -> how far below the lowest and above the highest value of the photos each may lie, in its
    own units; None: any distance. Empty if no range decides: an attribute classifier judges the text."""
    numbers_of: Callable[[Cut, Brand], dict[str, Tensor]] | None = None
    """Gives the numbers, `(B,)` each, and others that describe the images and decide nothing; None if they are not
    measured on pixels."""
    decoded: bool = True
    """Whether photos as the autoencoder leaves them widen the ranges."""
    headline: bool = False
    """Whether a report shows it beside the images."""


@dataclass(frozen=True)
class Measure:
    """A number of all images together, which no range judges."""

    name: str
    title: str
    rule: str
    """What the number is, and which value is good; {name} and {limit} stand for what was measured with."""
    headline: bool = False


@torch.no_grad()
def measure(images: Tensor, background: RGB = (255, 255, 255), poses: Tensor | None = None) -> dict[str, Tensor]:
    """Measure every number of PROPERTIES that pixels give.

    Args:
        images: `(B, 3, H, W)` in [0, 1], B > 0.
        background: RGB 0..255 of the brand's background.
        poses: `(B, S, S)` mean silhouette of each image's class, in [0, 1]; pose_overlap is left out without it.

    Returns:
        Name -> `(B,)` float on the CPU; nan if the image has no product to measure.

    Raises:
        OnbrandError: no images, or images of another shape or range.
    """
    if not len(images):
        raise OnbrandError("value", "there must be images to measure: got none")
    functions = [one.numbers_of for one in PROPERTIES if one.numbers_of]

    def numbers_of(rows: slice) -> dict[str, Tensor]:
        part, brand = cut(images[rows]), Brand(background, None if poses is None else poses[rows])
        return {name: column.cpu() for function in functions for name, column in function(part, brand).items()}

    parts = list(each(numbers_of, [slice(first, first + BATCH) for first in range(0, len(images), BATCH)]))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def background_of(cut: Cut, brand: Brand) -> dict[str, Tensor]:
    """Measure how much of the background has the brand's colour, and how light and even it is.

    Args:
        cut: the images.
        brand: gives the colour.

    Returns:
        `(B,)` each:
        background_near: share of the background within NEAR of the brand's colour; a rim round the product is left out.
        background_border: the same share of four bands along the frame, as wide as the rim; the worst band is left
        out, for a product may touch it.
        background_share: background within NEAR, as share of the image.
        background_mean, background_spread: mean and standard deviation of L*.
        background_pure: share of the background that has the brand's colour exactly, in 8 bits.
    """
    near = distance(cut.lab, lab_of(brand.background, cut.lab.device)) <= NEAR
    open_background = cut.background & ~grown(~cut.background, rim(cut))
    by_side = torch.stack([band.float().mean((1, 2)) for band in bands(near, rim(cut))], 1)
    exact = torch.tensor(brand.background, device=cut.lab.device).view(1, 3, 1, 1)
    pure = ((cut.images * 255).round() == exact).all(1)
    mean = _mean(cut.lab[:, 0], open_background)
    spread = (_mean(cut.lab[:, 0].square(), open_background) - mean.square()).clamp(min=0).sqrt()
    return {
        "background_near": _mean(near, open_background).nan_to_num(0.0),
        "background_border": (by_side.sum(1) - by_side.amin(1)) / 3,
        "background_share": (near & cut.background).float().mean((1, 2)),
        "background_mean": mean,
        "background_spread": spread,
        "background_pure": _mean(pure, open_background).nan_to_num(0.0),
    }


def centring_of(cut: Cut, _: Brand) -> dict[str, Tensor]:
    """centre_x, centre_y `(B,)`: the centre of the product's box less the frame's, as shares of width and height.

    Right and down are positive; nan without a product.
    """
    left, right, top, bottom = box_of(cut)
    return {"centre_x": (left + right) / 2 - 0.5, "centre_y": (top + bottom) / 2 - 0.5}


def cropping_of(cut: Cut, _: Brand) -> dict[str, Tensor]:
    """Margin `(B,)`: least distance of the product's box from the frame, as share of width or height, nan without a
    product; border_product `(B,)`: share of the border's pixels that are product."""
    left, right, top, bottom = box_of(cut)
    return {
        "margin": torch.stack([left, 1 - right, top, 1 - bottom]).amin(0),
        "border_product": border(cut.product[:, None]).float().mean((1, 2)),
    }


def fill_of(cut: Cut, _: Brand) -> dict[str, Tensor]:
    """Fill `(B,)`: the larger of the two shares of the frame's width and height that the product's box takes;
    market `(B,)`: 1 if fill reaches MARKET, else 0. Both are nan without a product."""
    left, right, top, bottom = box_of(cut)
    fill = torch.maximum(right - left, bottom - top)
    return {"fill": fill, "market": torch.where(fill.isnan(), torch.nan, (fill >= MARKET).float())}


def box_of(cut: Cut) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Left, right, top and bottom of the product `(B,)`, as shares of width and height; nan without a product."""
    return *_extent(cut.product.any(1)), *_extent(cut.product.any(2))


def rim(cut: Cut) -> int:
    """Width in pixels, 1/32 of the frame, of the rim round the product, which anti-aliasing and the VAE blur."""
    return max(1, round(min(cut.lab.shape[2:]) / 32))


def _mean(values: Tensor, where: Tensor) -> Tensor:
    """Mean `(B,)` of values `(B, H, W)` over a mask; nan if it is empty."""
    return (values * where).sum((1, 2)) / where.sum((1, 2))


def _extent(occupied: Tensor) -> tuple[Tensor, Tensor]:
    """First and last edge `(B,)` of what is occupied in `(B, n)`, as shares of n; nan if nothing is."""
    n = occupied.shape[1]
    place = torch.arange(n, device=occupied.device)
    low = torch.where(occupied, place, n).amin(1).float()
    high = torch.where(occupied, place + 1, -1).amax(1).float()
    some = occupied.any(1)
    return torch.where(some, low / n, torch.nan), torch.where(some, high / n, torch.nan)


LOW = 8
"""Side of the low-pass image."""


def light_of(cut: Cut, _: Brand) -> dict[str, Tensor]:
    """Measure L* of the product and of the frame.

    Args:
        cut: the images.

    Returns:
        `(B,)` each, in L*; nan for the product's numbers without a product:
        light_mean, light_spread: mean and standard deviation over the product.
        light_low: spread of its low-pass image, means over 8 x 8 cells weighted by the product in them.
        light_sides: the darkest of the frame's four sides, each the median of its pixels. A set that is lit from one
        side, or too little, is dark on one.
    """
    product, lightness = solid(cut).float(), cut.lab[:, 0]
    area = product.sum((1, 2))
    mean = (lightness * product).sum((1, 2)) / area
    spread = ((lightness - mean[:, None, None]).square() * product).sum((1, 2)) / area
    weight = adaptive_avg_pool2d(product, LOW)
    low = adaptive_avg_pool2d(product * lightness, LOW) / weight.clamp(min=1e-6)
    variance = ((low - mean[:, None, None]).square() * weight).sum((1, 2)) / weight.sum((1, 2))
    medians = torch.stack([side.median(-1).values for side in sides(lightness)], 1)
    return {
        "light_mean": mean,
        "light_spread": spread.sqrt(),
        "light_low": variance.sqrt(),
        "light_sides": medians.amin(1),
    }


def solid(cut: Cut) -> Tensor:
    """`(B, H, W)` bool: the product without the background inside it."""
    return cut.product & (distance(cut.lab, cut.own) > LOOSE)


def pose_of(cut: Cut, brand: Brand) -> dict[str, Tensor]:
    """pose_overlap `(B,)` in [0, 1]: overlap of the silhouette with its class's mean; {} if no class has a pose."""
    if brand.poses is None:
        return {}
    return {"pose_overlap": overlap(silhouette(cut), brand.poses.to(cut.images.device))}


ALL = ("pass every check", "The image passes every check below: it can be published as it is.")
"""Title and rule of an image that passes every property."""
OPENS = ("open as images", "The file can be read and shown; what cannot passes nothing.")
"""Title and rule of a property, "opens", that is said only of a folder in which a file does not."""
PROPERTIES = (
    Property(
        "background", "on the brand's background",
        "The background has the brand's colour, within dE 3, over as much of the image as in your photos.",
        {"background_near": (0.05, None), "background_border": (0.1, None), "background_share": (0.02, 0.02)},
        background_of, decoded=False, headline=True,
    ),
    Property(
        "centring", "centred",
        "The product is centred: its middle is as near the middle of the frame as in your photos.",
        {"centre_x": (0.015, 0.015), "centre_y": (0.015, 0.015)},
        centring_of,
    ),
    Property(
        "cropping", "not cropped",
        "The product is whole: its margin to the frame is as wide as in your photos.",
        {"margin": (0.016, None), "border_product": (None, 0.005)},
        cropping_of,
    ),
    Property(
        "fill", "fill the frame",
        "The product is the right size: it takes as much of the frame as in your photos.",
        {"fill": (0.035, 0.035)},
        fill_of,
    ),
    Property(
        "light", "lit like your photos",
        "The light is right: the brightness and the contrast of the product, and the darkest side of the frame, are "
        "within the range of your photos.",
        {"light_mean": (2.0, 2.0), "light_spread": (2.0, 2.0), "light_low": (2.0, 2.0), "light_sides": (4.0, 4.0)},
        light_of,
    ),
    Property(
        "pose", "in the brand's pose",
        "The pose is right: the silhouette overlaps the mean silhouette of its class as much as in your photos.",
        {"pose_overlap": (0.03, None)},
        pose_of,
    ),
    Property(
        "class", "in the requested class",
        "The image looks like the requested class: its likelihood under that class, and its lead over the others, are "
        "within the range of your photos.",
        {"class_lead": (0.02, None), "class_likelihood": (0.05, None)},
    ),
    Property(
        "text", "show what the prompt asks for",
        "The image shows what the prompt names. An attribute classifier reads: {attributes}.",
        headline=True,
    ),
)  # fmt: skip
"""Every property, in the order in which tables show them. A new one is a function and an entry here."""
MEASURES = (
    Measure("clip", "CLIP similarity", "The cosine between image and prompt, by {name}. More is better."),
    Measure(
        "out_of_distribution", "like no class",
        "The rate of images that are less likely under every class than 99.5 % of its photos. Your photos give 0.005.",
    ),
    Measure(
        "diversity", "diversity",
        "The variance of the images over the variance of your photos, in the prior's components. 1 is as diverse as "
        "your photos; 0 is one image again and again.",
        headline=True,
    ),
    Measure(
        "frechet", "distance from your photos",
        "The Fréchet distance to your photos in the prior's components. It is not an FID. Less is better.",
    ),
    Measure(
        "region", "difference from the garment",
        "The mean difference from the garment in the control image, where it shows, in 1/255. 0 is that garment.",
    ),
    Measure(
        "region_near", "garments within {limit}/255",
        "The rate of images whose garment differs from the control image's by {limit}/255 or less.",
    ),
    Measure(
        "person", "a person if the class has one",
        "The rate of images in which a pose net finds a person if, and only if, the photos of the class show one.",
    ),
    Measure(
        "pose_spread", "spread of poses",
        "The distance of people's joints from the mean pose of your photos, over that of your photos. 1 is as varied.",
    ),
)  # fmt: skip
"""Every measure, in the order in which tables show them."""
WORDS = {one.name: (one.title, one.rule) for one in (*PROPERTIES, *MEASURES)}
SLACK = {number: slack for one in PROPERTIES for number, slack in one.numbers.items()}
HEADLINES = ("all", *(one.name for one in (*PROPERTIES, *MEASURES) if one.headline))
"""Scores that a report shows beside the images; the first three stand on its first screen."""
