"""How cloth hangs: a garment's shell, from the mesh's tights or skirt, let out from the body by its fit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from body import Body
from raster import normals

BINS = 160


@dataclass(frozen=True)
class Ease:
    """How far a shell leaves the body, each 0 (follows it) to 1 (hangs from its widest part) or beyond."""

    trunk: float = 0.0
    sleeve: float = 0.0
    leg: float = 0.0
    flare: float = 0.0
    off: float = 0.05
    """Distance from the body everywhere, decimetres."""
    smooth: int = 6
    """Rounds of Laplacian smoothing: cloth spans what muscles do not."""


def shell(body: Body, group: str, ease: Ease) -> np.ndarray:
    """Vertices `(V, 3)` in the rest pose with those of `group` hung on the body."""
    triangles = body.mesh.triangles(group)
    out = _smooth(body.rest, triangles, ease.smooth)
    out = out + (ease.off + 0.012 * ease.smooth) * normals(out, triangles)
    used = np.zeros(len(out), bool)
    used[np.unique(triangles)] = True
    if group == "helper-skirt":
        return _flared(body, out, used, triangles, ease.flare)
    trunk = used & (body.arm < -0.2)
    out = _hung_trunk(body, out, trunk, ease.trunk)
    if ease.leg:
        out = _hung_legs(body, out, trunk, ease.leg)
    if ease.sleeve:
        out = _hung_sleeves(body, out, used, ease.sleeve)
    return out


def _smooth(vertices: np.ndarray, triangles: np.ndarray, rounds: int) -> np.ndarray:
    edges = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
    edges = np.concatenate([edges, edges[:, ::-1]])
    count = np.bincount(edges[:, 0], minlength=len(vertices))
    count[_rim(triangles)] = 0  # open ends stay where they are
    out = vertices.copy()
    for _ in range(rounds):
        mean = np.stack([np.bincount(edges[:, 0], out[edges[:, 1], d], len(out)) for d in range(3)], 1)
        out = np.where(count[:, None] > 0, 0.5 * out + 0.5 * mean / np.maximum(count, 1)[:, None], out)
    return out


def _profile(height: np.ndarray, extent: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """The largest `extent` about each height of `grid`, smoothed; `grid` falls."""
    step = abs(grid[1] - grid[0])
    near = np.abs(height[:, None] - grid[None]) <= 1.5 * max(step, 0.12)
    top = np.where(near, extent[:, None], -np.inf).max(0)
    known = np.isfinite(top)
    return _soft(np.interp(-grid, -grid[known], top[known]), 5)


def _soft(values: np.ndarray, width: int) -> np.ndarray:
    padded = np.pad(values, width, mode="edge")
    return np.convolve(padded, np.ones(2 * width + 1) / (2 * width + 1), "valid")


def _scale(y: np.ndarray, grid: np.ndarray, ratio: np.ndarray) -> np.ndarray:
    return np.interp(-y, -grid, ratio)


def _hung_trunk(body: Body, v: np.ndarray, trunk: np.ndarray, ease: float) -> np.ndarray:
    """From the chest down cloth falls straight: no narrower than what is above, in part `ease`."""
    chest, crotch = body.neck - 0.27 * (body.neck - body.hip), body.hip - 0.35
    grid = np.linspace(body.neck, crotch, BINS)
    torso = trunk & (v[:, 1] > crotch - 0.2)
    out = v.copy()
    centre = 0.5 * (_profile(v[torso, 1], v[torso, 2], grid) - _profile(v[torso, 1], -v[torso, 2], grid))
    sides = ((0, np.abs(v[:, 0]), None), (2, v[:, 2], 1), (2, -v[:, 2], -1))
    for axis, extent, sign in sides:
        middle = np.zeros(BINS) if sign is None else sign * centre
        width = _profile(v[torso, 1], extent[torso], grid) - middle
        hung = width.copy()
        below = grid < chest
        hung[below] = np.maximum.accumulate(width[below])
        drop = np.clip((chest - grid) / (chest - crotch), 0, 1)
        ratio = _soft(1 + ease * (np.maximum(hung / width, 1) - 1) + 0.05 * ease * np.minimum(drop * 4, 1), 4)
        here = trunk & (v[:, 1] < chest + 0.5)
        if sign is not None:
            here &= sign * (v[:, 2] - np.interp(-v[:, 1], -grid, centre)) > 0
        base = 0 if sign is None else np.interp(-v[here, 1], -grid, centre)
        # below the crotch the legs' own ease takes over
        fade = np.clip((v[here, 1] - (crotch - 1.0)) / 1.0, 0, 1)
        out[here, axis] = base + (v[here, axis] - base) * (1 + fade * (_scale(v[here, 1], grid, ratio) - 1))
    return out


def _hung_legs(body: Body, v: np.ndarray, trunk: np.ndarray, ease: float) -> np.ndarray:
    """Legs of cloth: tapering at 0.5, straight from the thigh at 1, wider beyond."""
    out = v.copy()
    thigh, ankle = body.hip - 0.55, body.ankle
    grid = np.linspace(thigh, ankle, BINS)
    for sign, side in ((1, "l"), (-1, "r")):
        joints = np.array([body.at(f"{side}-{name}") for name in ("ankle", "knee", "upper-leg")])
        here = trunk & (v[:, 0] * sign > 0) & (v[:, 1] < body.hip + 0.3)
        x = np.interp(v[:, 1], joints[:, 1], joints[:, 0])
        z = np.interp(v[:, 1], joints[:, 1], joints[:, 2])
        low = here & (v[:, 1] < thigh + 0.2)
        width = _profile(v[low, 1], np.abs(v[low, 0] - x[low]), grid)
        fall = (thigh - grid) / (thigh - ankle)
        hung = width[0] * np.interp(ease, [0.0, 0.5, 1.0, 1.5], [0.45, 0.56, 0.76, 1.02]) ** fall
        ratio = _soft(np.maximum(hung / width, 1) + 0.03, 4)
        fade = np.clip((body.hip - 0.1 - v[here, 1]) / 1.3, 0, 1)
        grow = 1 + fade * (_scale(v[here, 1], grid, ratio) - 1)
        out[here, 0] = x[here] + (v[here, 0] - x[here]) * grow
        out[here, 2] = z[here] + (v[here, 2] - z[here]) * grow
        inner = here & (out[:, 0] * sign < 0.06) & (v[:, 0] * sign > 0.06)
        out[inner, 0] = 0.06 * sign
    return out


def _hung_sleeves(body: Body, v: np.ndarray, used: np.ndarray, ease: float) -> np.ndarray:
    """Sleeves let out about the arm's axis, most at their middle."""
    out = v.copy()
    for sign, side in ((1, "l"), (-1, "r")):
        a, e, h = (body.at(f"{side}-{name}") for name in ("shoulder", "elbow", "hand"))
        here = used & (v[:, 0] * sign > 0) & (body.arm > -0.2)
        along = np.clip(body.arm[here], 0, 2)[:, None]
        axis = np.where(along < 1, a + along * (e - a), e + (along - 1) * (h - e))
        grow = ease * np.interp(body.arm[here], [-0.1, 0.35, 1.1, 1.7, 1.95], [0, 0.28, 0.36, 0.34, 0.05])
        out[here] = axis + (v[here] - axis) * (1 + grow[:, None])
    return out


def _flared(body: Body, v: np.ndarray, used: np.ndarray, triangles: np.ndarray, flare: float) -> np.ndarray:
    """A skirt: narrowed towards the knee below 0, an A-line above."""
    out = _stretched(body, v, triangles)
    drop = np.clip((body.hip + 0.2 - v[used, 1]) / (body.hip - body.ankle), 0, 1)
    grow = 1 + flare * drop if flare < 0 else 1 + flare * drop**0.85
    out[used, 0] *= grow
    out[used, 2] *= grow
    return _taken_in(body, out, used)


def _taken_in(body: Body, v: np.ndarray, used: np.ndarray) -> np.ndarray:
    """From the hips up a skirt is no wider than the trunk with a little ease."""
    tights = np.zeros(len(v), bool)
    tights[np.unique(body.mesh.triangles("helper-tights"))] = True
    tights &= body.arm < -0.2
    out, grid = v.copy(), np.linspace(body.waist + 0.7, body.hip, 40)
    for axis, sign in ((0, 0), (2, 1), (2, -1)):
        extent = np.abs(v[:, 0]) if axis == 0 else sign * v[:, 2]
        rest = np.abs(body.rest[:, 0]) if axis == 0 else sign * body.rest[:, 2]
        near = tights & (body.rest[:, 1] > body.hip - 0.5)
        inner = _profile(body.rest[near, 1], rest[near], grid) + 0.12
        outer = _profile(v[used, 1], extent[used], grid)
        ratio = _soft(np.minimum(inner / outer, 1), 3)
        here = used & (v[:, 1] > body.hip) & (extent > 0)
        fade = np.clip((v[here, 1] - body.hip) / 0.8, 0, 1)
        out[here, axis] *= 1 + fade * (_scale(v[here, 1], grid, ratio) - 1)
    return out


def _stretched(body: Body, v: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """The skirt's open ends pulled past waist and ankle, so that every cut lies inside the shell."""
    rim = v[_rim(triangles), 1]
    top, bottom = rim[rim > body.hip].min(), rim[rim < body.hip].max()
    out, y = v.copy(), v[:, 1] - body.hip
    up, down = (body.waist + 0.9 - body.hip) / (top - body.hip), (body.hip - body.ankle) / (body.hip - bottom)
    out[:, 1] = body.hip + y * np.where(y > 0, max(up, 1.0), max(down, 1.0))
    return out


def _rim(triangles: np.ndarray) -> np.ndarray:
    """The vertices of open ends: those of edges that only one triangle has."""
    edges = np.sort(np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]]), 1)
    pairs, count = np.unique(edges, axis=0, return_counts=True)
    return np.unique(pairs[count == 1])
