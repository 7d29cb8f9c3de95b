"""A brand's ranges drawn over an image: where its background is, the product's box and centre, and what is allowed."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from onbrand.evaluation.colour import distance, lab_of
from onbrand.evaluation.loading import pixels_of
from onbrand.evaluation.properties import NEAR, box_of
from onbrand.evaluation.reference import Reference
from onbrand.evaluation.segmentation import cut
from onbrand.io import read_json

SIDE = 640
"""Pixels of the longer side of what is drawn."""
TINT = 70
"""Of 255: how strongly the background is coloured."""
GOOD, BAD, BOX, ALLOWED = (20, 150, 90), (220, 40, 40), (30, 90, 220), (150, 150, 150)


def reference_of(brand: Path) -> Reference | None:
    """What the brand's photos gave the last check; None before the first."""
    content = read_json(brand / "reference.json").get("reference")
    return None if content is None else Reference.from_json(json.dumps(content))


def drawn(image: Image.Image, reference: Reference, class_name: str) -> Image.Image:
    """The image with its background tinted (green: of the brand's colour, red: not), the product's box and centre in
    blue, and in grey what the box must keep within and where the centre may lie."""
    width, height = image.size
    one, ranges = cut(pixels_of([image], (height, width))), reference.bounds[reference.group(class_name)]
    scale = SIDE / max(width, height)
    canvas = image.convert("RGB").resize((round(width * scale), round(height * scale)), Image.Resampling.LANCZOS)
    w, h = canvas.size
    near = (distance(one.lab, lab_of(reference.background, one.lab.device)) <= NEAR)[0]
    for mask, colour in ((one.background[0] & near, GOOD), (one.background[0] & ~near, BAD)):
        alpha = Image.fromarray(mask.numpy().astype(np.uint8) * TINT).resize((w, h), Image.Resampling.NEAREST)
        canvas.paste(Image.new("RGB", (w, h), colour), mask=alpha)
    draw = ImageDraw.Draw(canvas)
    if (margin := ranges.get("margin", (0.0, 1.0))[0]) > 0:
        draw.rectangle((margin * w, margin * h, (1 - margin) * w, (1 - margin) * h), outline=ALLOWED, width=2)
    if {"centre_x", "centre_y"} <= set(ranges):
        (x0, x1), (y0, y1) = ranges["centre_x"], ranges["centre_y"]
        draw.rectangle(((0.5 + x0) * w, (0.5 + y0) * h, (0.5 + x1) * w, (0.5 + y1) * h), outline=ALLOWED, width=2)
    left, right, top, bottom = (float(side) for side in box_of(one))
    if math.isfinite(left):  # there is a product
        draw.rectangle((left * w, top * h, right * w - 1, bottom * h - 1), outline=BOX, width=2)
        x, y = (left + right) / 2 * w, (top + bottom) / 2 * h
        draw.line((x - 9, y, x + 9, y), BOX, 2)
        draw.line((x, y - 9, x, y + 9), BOX, 2)
    return canvas
