"""A body: the base mesh under shape targets, its landmarks, and the one pose that all figures and garments share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from mesh import Mesh, joint

SHAPES = {
    "slim": {"averagemuscle-averageweight": 0.35, "averagemuscle-minweight": 0.65},
    "average": {"averagemuscle-averageweight": 1.0},
    "athletic": {"averagemuscle-averageweight": 0.35, "maxmuscle-averageweight": 0.65},
    "sturdy": {"averagemuscle-averageweight": 0.35, "maxmuscle-maxweight": 0.4, "averagemuscle-maxweight": 0.25},
    "full": {"averagemuscle-maxweight": 1.0},
}
"""Body shape -> weights of MakeHuman's muscle and weight targets; they sum to 1."""

ARM = ("upperarm", "lowerarm", "hand", "thumb", "index", "middle", "ring", "pinky")
LEG = ("thigh", "calf", "foot", "ball")
ARMS_DOWN, LEGS_IN, ELBOWS_BACK, PALMS_IN = 0.44, 0.05, 0.6, 0.9
"""The pose, radians from the mesh's own: arms 15 degrees off the body, feet under the hips, palms to the thighs."""


@dataclass(frozen=True, eq=False)
class Body:
    """One shape of one gender, neck to foot."""

    mesh: Mesh
    gender: str
    shape: str

    @cached_property
    def rest(self) -> np.ndarray:
        """Vertices `(V, 3)` in the rest pose."""
        shift = self.mesh.vertices.copy()
        parts = {f"macrodetails/{r}-{self.gender}-young": 1 / 3 for r in ("african", "asian", "caucasian")}
        parts |= {f"macrodetails/universal-{self.gender}-young-{k}": w for k, w in SHAPES[self.shape].items()}
        for name, weight in parts.items():
            which, delta = self.mesh.target(name)
            shift[which] += weight * delta
        return shift

    def at(self, name: str) -> np.ndarray:
        """A joint's place `(3,)` in the rest pose."""
        return joint(self.mesh, self.rest, name)

    @cached_property
    def neck(self) -> float:
        """Height of the neck joint."""
        return float(self.at("neck")[1])

    @cached_property
    def hip(self) -> float:
        """Height of the hip joints."""
        return float(self.at("l-upper-leg")[1])

    @cached_property
    def ankle(self) -> float:
        """Height of the ankle joints."""
        return float(self.at("l-ankle")[1])

    @cached_property
    def waist(self) -> float:
        """Height of the narrowest part of the trunk, about the navel."""
        return self.hip + 0.27 * (self.neck - self.hip)

    @cached_property
    def foot(self) -> float:
        """Height of the ground."""
        return float(self.rest[np.unique(self.mesh.triangles("body"))][:, 1].min())

    @property
    def top(self) -> float:
        """Where a figure's neck ends."""
        return self.neck + 0.0225 * (self.neck - self.foot)

    @cached_property
    def arm(self) -> np.ndarray:
        """Arm coordinate `(V,)`: 0 at the shoulder, 1 at the elbow, 2 at the wrist, down to -0.5 on the trunk."""
        weight, along = self.mesh.weight(*ARM), np.zeros(len(self.rest))
        for side, sign in (("l", 1), ("r", -1)):
            a, e, h = (self.at(f"{side}-{name}") for name in ("shoulder", "elbow", "hand"))
            u = ((self.rest - a) * (e - a)).sum(1) / ((e - a) ** 2).sum()
            v = 1 + ((self.rest - e) * (h - e)).sum(1) / ((h - e) ** 2).sum()
            along = np.where(self.rest[:, 0] * sign > 0, np.where(u < 1, u, np.maximum(v, 1)), along)
        return weight * along - (1 - weight) * 0.5

    def posed(self, vertices: np.ndarray) -> np.ndarray:
        """Vertices `(V, 3)` given in the rest pose, in the catalogue's pose."""
        out = vertices.copy()
        legs = np.ones(len(out))
        legs[np.unique(self.mesh.triangles("helper-skirt"))] = 0  # a skirt hangs from the hips, not from the legs
        for side, sign in (("l", 1), ("r", -1)):
            shoulder, elbow, wrist = (self.at(f"{side}-{name}") for name in ("shoulder", "elbow", "hand"))
            hand = self.mesh.weight(*ARM[2:], side=f"_{side}")
            out = _turn(out, hand, wrist, wrist - elbow, sign * PALMS_IN)
            fore = self.mesh.weight(*ARM[1:], side=f"_{side}")
            out = _turn(out, fore, elbow, np.array([1.0, sign * 0.9, 0.0]), ELBOWS_BACK)
            out = _turn(out, self.mesh.weight(*ARM, side=f"_{side}"), shoulder, (0, 0, 1), -sign * ARMS_DOWN)
            leg = legs * self.mesh.weight(*LEG, side=f"_{side}")
            out = _turn(out, leg, self.at(f"{side}-upper-leg"), (0, 0, 1), -sign * LEGS_IN)
        return out


def _turn(
    vertices: np.ndarray, weight: np.ndarray, centre: np.ndarray, axis: np.ndarray | tuple[int, ...], angle: float
) -> np.ndarray:
    """Rotate by `angle` about an axis through `centre`, each vertex by its weight (Rodrigues, linear blend)."""
    k = np.asarray(axis, float) / np.linalg.norm(axis)
    v = vertices - centre
    dot = v[:, :1] * k[0] + v[:, 1:2] * k[1] + v[:, 2:] * k[2]
    turned = v * np.cos(angle) + np.cross(k, v) * np.sin(angle) + k * dot * (1 - np.cos(angle))
    return vertices + weight[:, None] * (turned - v)
