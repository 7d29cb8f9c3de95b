"""From the large canvas to the picture: soft shade in hollows, then 128x128 on a ground of exactly 255."""

from __future__ import annotations

import numpy as np
from PIL import Image
from views import MARGIN

SIZE = 128
HOLLOW = 22
"""Reach of the shade in hollows, pixels of the canvas."""


def develop(rgb: np.ndarray, depth: np.ndarray, box: tuple[int, int, int, int] | None) -> np.ndarray:
    """A picture `(128, 128, 3)` uint8 of a square canvas: `rgb (n * n, 3)` in [0, 1], `depth (n * n,)`, ground -inf.

    `box` (left, top, right, bottom) is brought to the middle, its longer side filling all but the margins; without one
    the canvas is the frame.
    """
    side = int(len(depth) ** 0.5)
    cover = np.isfinite(depth).reshape(side, side)
    if box is None:
        _level(cover)
        pad, frame = 0, (0.0, 0.0, float(side), float(side))
    else:
        left, top, right, bottom = (float(edge) for edge in box)
        whole = max(right - left, bottom - top) / (1 - 2 * MARGIN)
        x, y = (left + right - whole) / 2, (top + bottom - whole) / 2
        pad = int(max(0.0, -x, -y, x + whole - side, y + whole - side)) + 2
        frame = (x + pad, y + pad, x + pad + whole, y + pad + whole)
    cover = np.pad(cover, pad)
    far = np.pad(np.where(np.isfinite(depth), depth, 0).reshape(side, side), pad)
    colours = np.pad(rgb.reshape(side, side, 3), ((pad, pad), (pad, pad), (0, 0)))
    colours = colours * (_hollows(far, cover) * cover)[..., None]
    planes = [*colours.transpose(2, 0, 1), cover.astype(np.float32)]
    box_filter = Image.Resampling.BOX
    r, g, b, part = (
        np.asarray(Image.fromarray(np.ascontiguousarray(p)).resize((SIZE, SIZE), box_filter, frame)) for p in planes
    )
    # where nothing is, part is 0 and the sum exactly 1
    out = np.stack([r, g, b], -1) + (1 - part)[..., None]
    return np.clip(out * 255 + 0.5, 0, 255).astype(np.uint8)


def region(own: np.ndarray) -> np.ndarray:
    """Pixels `(128, 128)` bool of which `own (n * n,)` covers more than half, on a square canvas that is the frame."""
    side = int(len(own) ** 0.5)
    plane = own.reshape(side, side).astype(np.float32)
    _level(plane)
    return np.asarray(Image.fromarray(plane).resize((SIZE, SIZE), Image.Resampling.BOX)) > 0.5


def _level(plane: np.ndarray) -> None:
    """Nothing stands above the margin: the cut of the neck is level."""
    plane[: round(len(plane) * MARGIN)] = 0


def _hollows(depth: np.ndarray, cover: np.ndarray) -> np.ndarray:
    """Factor on light `(n, n)`: darker where the surroundings stand nearer to the camera than the surface."""
    weight = cover.astype(np.float32)
    near = _blurred(depth * weight) / np.maximum(_blurred(weight), 1e-3)
    return (1 - np.clip((near - depth) * 0.42, 0, 0.3)).astype(np.float32)


def _blurred(plane: np.ndarray) -> np.ndarray:
    for axis in (0, 1):
        border = [(0, 0), (0, 0)]
        border[axis] = (HOLLOW + 1, HOLLOW)
        total = np.cumsum(np.pad(plane.astype(np.float64), border), axis)
        n, window = total.shape[axis], 2 * HOLLOW + 1
        plane = np.take(total, range(window, n), axis) - np.take(total, range(n - window), axis)
        plane = plane / window
    return plane.astype(np.float32)
