"""What the camera sees of a body: its skin, shells of cloth over it, its shoes, as pixel buffers drawn once."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from body import Body
from cloth import Ease, shell
from raster import Buffer, draw, normals

SIDE = 1280
"""Side of the canvas, pixels: ten times a picture's."""
MARGIN = 1 / 16
"""Free share of a picture's side on each side."""
X, Y, Z, ARM, U, V, NX, NY, NZ = range(9)
"""Columns of a buffer's values: place in the rest pose, arm coordinate, cloth coordinates, normal in the pose."""


@dataclass(frozen=True, eq=False)
class View:
    """One surface over trunk and legs, and over the arms; its inside where it is open."""

    trunk: Buffer
    arms: Buffer
    inside: Buffer | None = None

    def half(self) -> View:
        """The same at half the canvas."""
        return View(self.trunk.half(), self.arms.half(), self.inside and self.inside.half())


@dataclass(eq=False)
class Camera:
    """A level, distant camera on one body: all its pictures have one scale."""

    body: Body
    _kept: dict[Hashable, View] = field(default_factory=dict)

    @cached_property
    def low(self) -> float:
        """Height of the soles of the shoes: figures stand from here to `body.top`."""
        worn = self.body.posed(shell(self.body, "helper-tights", SHOE))
        return float(worn[np.unique(self.body.mesh.triangles("helper-tights"))][:, 1].min())

    def skin(self) -> View:
        """The skin, neck to foot, at half the canvas."""
        return self._once("skin", lambda: self._see("body", self.body.rest, False).half())

    def shoes(self) -> View:
        """Cloth about the feet, at half the canvas."""
        return self._once(
            "shoes", lambda: self._see("helper-tights", shell(self.body, "helper-tights", SHOE), False).half()
        )

    def cloth(self, group: str, ease: Ease, half: bool) -> View:
        """A shell's view, on the whole canvas or half of it."""
        whole = self._once((group, ease), lambda: self._see(group, shell(self.body, group, ease), True))
        return self._once((group, ease, "half"), whole.half) if half else whole

    def _once(self, key: Hashable, make: Callable[[], View]) -> View:
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def _see(self, group: str, rest: np.ndarray, inside: bool) -> View:
        body, triangles = self.body, self.body.mesh.triangles(group)
        posed = body.posed(rest)
        triangles = triangles[rest[triangles][..., 1].max(1) < body.top + 0.8]
        scale = SIDE * (1 - 2 * MARGIN) / (body.top - self.low)
        row = SIDE * MARGIN + (body.top - posed[:, 1]) * scale
        points = np.stack([SIDE / 2 + posed[:, 0] * scale, row, posed[:, 2]], 1)
        values = np.column_stack([rest, body.arm, normals(posed, triangles)])
        arm = body.arm[triangles].mean(1) > -0.05
        parts = [_spread(body, draw(points, triangles[which], values, SIDE)) for which in (~arm, arm)]
        back = _spread(body, draw(points, triangles, values, SIDE, back=True)) if inside else None
        return View(parts[0], parts[1], back)


SHOE = Ease(off=0.06, smooth=3)


def _spread(body: Body, buffer: Buffer) -> Buffer:
    """The buffer with cloth coordinates among its values: x and y on trunk and legs, about and down the arm on sleeves.

    Found for each pixel, as they jump at the seam of a sleeve.
    """
    a = buffer.values
    u, v, arm = a[:, X].copy(), a[:, Y].copy(), a[:, ARM]
    for sign, side in ((1, "l"), (-1, "r")):
        shoulder, elbow = body.at(f"{side}-shoulder"), body.at(f"{side}-elbow")
        reach = float(np.linalg.norm(elbow - shoulder))
        down = (elbow - shoulder)[:2] / np.linalg.norm((elbow - shoulder)[:2])
        here = (arm > -0.03) & (a[:, X] * sign > 0)
        dx, dy = a[here, X] - shoulder[0], a[here, Y] - shoulder[1]
        along = np.where(arm[here] > 1, reach * arm[here], dx * down[0] + dy * down[1])
        u[here] = dx * -down[1] + dy * down[0]
        v[here] = shoulder[1] - along
    values = np.column_stack([a[:, : ARM + 1], u, v, a[:, ARM + 1 :]]).astype(np.float32)
    return Buffer(buffer.side, buffer.index, buffer.z, values)
