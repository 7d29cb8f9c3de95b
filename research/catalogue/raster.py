"""Triangles to pixels: a z-buffer in numpy that keeps only the covered pixels, with attributes interpolated in each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Buffer:
    """The nearest surface of one part on a square canvas, covered pixels only."""

    side: int
    """Side of the canvas, pixels."""
    index: np.ndarray
    """`(n,)` int64: row * side + column, rising."""
    z: np.ndarray
    """`(n,)` float32, larger is nearer."""
    values: np.ndarray
    """`(n, k)` float32, the vertices' attributes."""

    def half(self) -> Buffer:
        """Every other row and column: the same view at half the side."""
        row, column = np.divmod(self.index, self.side)
        keep = (row % 2 == 0) & (column % 2 == 0)
        index = (row[keep] // 2) * (self.side // 2) + column[keep] // 2
        return Buffer(self.side // 2, index, self.z[keep], self.values[keep])

    def where(self, keep: np.ndarray) -> Buffer:
        """The pixels of a mask `(n,)`."""
        return Buffer(self.side, self.index[keep], self.z[keep], self.values[keep])


def normals(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Vertex normals `(V, 3)` of unit length, area-weighted; zero where no triangle touches."""
    a, b, c = (vertices[triangles[:, k]] for k in range(3))
    face = np.cross(b - a, c - a)
    out = np.stack(
        [sum(np.bincount(triangles[:, k], face[:, d], len(vertices)) for k in range(3)) for d in range(3)], 1
    )
    return out / (np.linalg.norm(out, axis=1, keepdims=True) + 1e-9)


def draw(points: np.ndarray, triangles: np.ndarray, values: np.ndarray, side: int, back: bool = False) -> Buffer:
    """Rasterise the triangles that face the camera, or with `back` those that face away.

    `points (V, 3)` are pixels right and down and the depth towards the camera; `values (V, k)` are interpolated.
    """
    x, y = points[triangles][..., 0], points[triangles][..., 1]
    area = (y[:, 1] - y[:, 2]) * (x[:, 0] - x[:, 2]) + (x[:, 2] - x[:, 1]) * (y[:, 0] - y[:, 2])
    facing = area > 1e-9 if back else area < -1e-9
    triangles, x, y, area = triangles[facing], x[facing], y[facing], area[facing]
    left, low = np.floor(x.min(1)).astype(int), np.floor(y.min(1)).astype(int)
    size = np.maximum(np.ceil(x.max(1)).astype(int) - left, np.ceil(y.max(1)).astype(int) - low) + 1
    zbuffer = np.full(side * side, -np.inf, np.float32)
    face, weights = np.zeros(side * side, np.int64), np.zeros((side * side, 3), np.float32)
    for small, large in zip((0, 4, 8, 16, 32, 64, 128), (4, 8, 16, 32, 64, 128, 1 << 30), strict=True):
        chosen = np.flatnonzero((size > small) & (size <= large))
        if not len(chosen):
            continue
        box = int(size[chosen].max())
        chunk = max(1, 2_000_000 // (box * box))
        for start in range(0, len(chosen), chunk):
            i = chosen[start : start + chunk]
            column = left[i][:, None, None] + np.arange(box)[None, None, :]
            row = low[i][:, None, None] + np.arange(box)[None, :, None]
            px, py = column + 0.5, row + 0.5

            def corner(v: np.ndarray, i: np.ndarray = i) -> np.ndarray:
                return v[i][:, None, None]

            dx, dy = px - corner(x[:, 2]), py - corner(y[:, 2])
            l0 = (corner(y[:, 1] - y[:, 2]) * dx + corner(x[:, 2] - x[:, 1]) * dy) / corner(area)
            l1 = (corner(y[:, 2] - y[:, 0]) * dx + corner(x[:, 0] - x[:, 2]) * dy) / corner(area)
            l2 = 1 - l0 - l1
            inside = (l0 >= -1e-6) & (l1 >= -1e-6) & (l2 >= -1e-6)
            inside &= (column >= 0) & (column < side) & (row >= 0) & (row < side)
            if not inside.any():
                continue
            t, r, c = np.nonzero(inside)
            w = np.stack([l0[inside], l1[inside], l2[inside]], 1).astype(np.float32)
            f = i[t]
            z = (points[triangles[f], 2] * w).sum(1).astype(np.float32)
            pixel = (low[f] + r) * side + left[f] + c
            # the nearest of this chunk's surfaces in each pixel stands last, and then meets what is there
            order = np.lexsort((z, pixel))
            last = order[np.append(pixel[order][1:] != pixel[order][:-1], True)]
            last = last[z[last] > zbuffer[pixel[last]]]
            zbuffer[pixel[last]], face[pixel[last]], weights[pixel[last]] = z[last], f[last], w[last]
    index = np.flatnonzero(np.isfinite(zbuffer))
    corners = values[triangles[face[index]]].astype(np.float32)
    return Buffer(side, index, zbuffer[index], (corners * weights[index][..., None]).sum(1))
