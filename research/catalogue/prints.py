"""Prints drawn on the cloth: how much of the second colour each point of it takes."""

from __future__ import annotations

import numpy as np


def second_share(name: str, u: np.ndarray, v: np.ndarray, scale: float = 1.0, split: float = 0.0) -> np.ndarray:
    """Share `(n,)` of the second colour, 0, 0.5 or 1, at cloth coordinates in decimetres; `split` is a height."""
    u, v = u / scale, v / scale
    if name == "plain":
        return np.zeros(len(u), np.float32)
    if name == "striped":
        return _band(v, 0.66, 0.5)
    if name == "pinstriped":
        return _band(u + 0.12, 0.56, 0.3)
    if name == "checked":
        return 0.5 * (_band(u, 0.78, 0.5) + _band(v, 0.78, 0.5))
    if name == "dotted":
        row = np.floor(v / 0.42)
        across = (u / 0.84 + 0.5 * (row % 2)) % 1 - 0.5
        along = (v / 0.42) % 1 - 0.5
        return (np.hypot(across * 0.84, along * 0.42) < 0.175).astype(np.float32)
    if name == "colour-block":
        return (v * scale < split).astype(np.float32)
    raise ValueError(f"a print is plain, striped, pinstriped, checked, dotted or colour-block; got {name!r}")


def _band(t: np.ndarray, period: float, share: float) -> np.ndarray:
    return ((t / period) % 1 < share).astype(np.float32)
