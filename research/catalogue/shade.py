"""Light on cloth and skin: a soft key from above left, sky and floor, folds as small tilts of the surface."""

from __future__ import annotations

import numpy as np
from views import NX, NZ, U, V

KEY = np.array([-0.42, 0.55, 0.72], np.float32)
KEY /= np.sqrt((KEY**2).sum())


def light(normal: np.ndarray) -> np.ndarray:
    """Brightness `(n,)`, about 0.55 to 1.08, of surfaces with these unit normals `(n, 3)`."""
    key = normal[:, 0] * KEY[0] + normal[:, 1] * KEY[1] + normal[:, 2] * KEY[2]
    sky = 0.5 + 0.5 * normal[:, 1]
    edge = 1 - np.clip(normal[:, 2], 0, 1)
    return 0.50 + 0.44 * np.clip(0.35 + 0.65 * key, 0, 1) ** 1.2 + 0.15 * sky - 0.14 * edge**2


def tilted(a: np.ndarray, waves: np.ndarray, amount: np.ndarray | float) -> np.ndarray:
    """Unit normals `(n, 3)` of values `a (n, 9)` under folds: rows of `waves` are (ku, kv, phase, bend, weight)."""
    u, v = a[:, U], a[:, V]
    du, dv = np.zeros_like(u), np.zeros_like(u)
    for ku, kv, phase, bend, weight in waves:
        slope = weight * np.cos(ku * u + kv * v + phase + bend * np.sin(0.9 * v + 1.7 * phase))
        du += ku * slope
        dv += kv * slope
    normal = a[:, NX : NZ + 1].copy()
    normal[:, 0] -= amount * du
    normal[:, 1] -= amount * dv
    return normal / np.sqrt((normal**2).sum(1, keepdims=True))


def folds(part: str, rng: np.random.Generator) -> np.ndarray:
    """Waves `(w, 5)` for a part: long drapes down a top, creases about knees, pleats down a skirt."""
    shape = {
        "top": ((0.9, 2.2, 1.0), (2.2, 0.9, 0.8), (3.4, 2.6, 0.35)),
        "legs": ((1.2, 2.4, 1.0), (0.6, 3.6, 0.5), (3.2, 1.2, 0.5)),
        "skirt": ((3.1, 0.15, 1.0), (5.0, 0.2, 0.6), (1.8, 0.8, 0.4)),
    }[part]
    rows = []
    for ku, kv, weight in shape:
        for sign in (1, -1):
            stretch = rng.uniform(0.8, 1.25)
            side = sign if part != "skirt" else 1
            rows.append((ku * stretch, side * kv * stretch, rng.uniform(0, 6.28), rng.uniform(0.2, 1.0), weight))
    return np.array(rows, np.float32) * np.array([1, 1, 1, 1, 0.048], np.float32)


def lit(base: np.ndarray, brightness: np.ndarray) -> np.ndarray:
    """Colours `(n, 3)` in [0, 1] under a brightness; dark cloth keeps a sheen, white cloth its shape."""
    b = brightness[:, None]
    sheen = np.clip(b - 0.78, 0, 1) * 0.28 * (1 - base)
    return np.clip(base * np.minimum(b, 1.06) + sheen, 0, 0.985)
