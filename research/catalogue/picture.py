"""A picture: layers of skin and cloth laid over each other, lit, and brought to 128x128 on a ground of exactly 255."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from body import Body
from develop import develop, region
from garment import Cut, edges, inside, sewn
from prints import second_share
from raster import Buffer
from shade import folds, light, lit, tilted
from views import ARM, NX, NZ, Camera, U, V, View, Y

Colour = tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Cloth:
    """A piece of a garment: how it is cut and dyed."""

    cut: Cut
    colour: Colour
    second: Colour = (1.0, 1.0, 1.0)
    print: str = "plain"
    split: float = 0.0
    """Height where a colour-block changes."""
    seed: tuple[int, ...] = (0,)
    """Of its folds."""


@dataclass(eq=False)
class Canvas:
    """Dense planes of one picture in the making; the ground has depth -inf."""

    side: int
    rgb: np.ndarray = field(init=False)
    depth: np.ndarray = field(init=False)
    own: np.ndarray = field(init=False)
    """Whether the garment is what is seen."""

    def __post_init__(self) -> None:
        self.rgb = np.zeros((self.side * self.side, 3), np.float32)
        self.depth = np.full(self.side * self.side, -np.inf, np.float32)
        self.own = np.zeros(self.side * self.side, bool)

    def lay(self, buffer: Buffer, colours: np.ndarray, own: bool = False) -> None:
        """Lay pixels over what is there, whatever its depth."""
        self.rgb[buffer.index] = colours
        self.depth[buffer.index] = buffer.z
        self.own[buffer.index] = own


def figure(
    camera: Camera, skin: Colour, shoes: Colour, below: list[Cloth], pieces: list[Cloth]
) -> tuple[np.ndarray, np.ndarray]:
    """A person in a garment, its `pieces` over what is worn `below`, the lowest first: neck to foot, at full height.

    The picture `(128, 128, 3)` uint8, and the garment's region in it `(128, 128)` bool: most of a pixel shows it.
    """
    body, clothes = camera.body, [*below, *pieces]
    trunk, arms = Canvas(640), Canvas(640)
    views = [camera.cloth(*cloth.cut.shell, half=True) for cloth in clothes]
    for canvas, part in ((trunk, "trunk"), (arms, "arms")):
        bare: Buffer = getattr(camera.skin(), part)
        bare = bare.where(bare.values[:, Y] < body.top)
        # a wrist is seen some way into its sleeve
        bare, shadow = _under(bare, clothes, body, 0.4 if part == "arms" else 0.02)
        canvas.lay(bare, _skin(bare.values, skin, shadow))
        if part == "trunk":
            feet = camera.shoes().trunk
            feet = feet.where(feet.values[:, Y] < body.ankle - 0.05 + 0.12 * feet.values[:, 2])
            feet, shadow = _under(feet, clothes, body)
            sole = np.where(feet.values[:, Y] < body.foot + 0.16, 0.72, 1.0)
            leather = np.asarray(shoes, np.float32) * sole[:, None]
            canvas.lay(feet, lit(leather, light(feet.values[:, NX : NZ + 1]) * shadow))
        for k, (cloth, view) in enumerate(zip(clothes, views, strict=True)):
            buffer: Buffer = getattr(view, part)
            buffer, shadow = _under(_cut(buffer, cloth, body), clothes[k + 1 :], body)
            canvas.lay(buffer, _cloth(buffer.values, cloth, body) * shadow[:, None], own=k >= len(below))
    joined = _joined(trunk, arms)
    return develop(joined.rgb, joined.depth, None), region(joined.own)


def garment(camera: Camera, clothes: list[Cloth]) -> np.ndarray:
    """The clothes alone, worn by nobody: `(128, 128, 3)` uint8, the longer side always filling the frame."""
    body = camera.body
    trunk, arms = Canvas(1280), Canvas(1280)
    for cloth in clothes:
        view: View = camera.cloth(*cloth.cut.shell, half=False)
        assert view.inside is not None
        back = view.inside.where(view.inside.values[:, NZ] < -0.3)  # not the rim of the silhouette
        back = _cut(back, cloth, body)
        trunk.lay(back, _cloth(back.values, cloth, body, back=True))
    for k, cloth in enumerate(clothes):
        view = camera.cloth(*cloth.cut.shell, half=False)
        for canvas, buffer in ((trunk, view.trunk), (arms, view.arms)):
            buffer, shadow = _under(_cut(buffer, cloth, body), clothes[k + 1 :], body)
            canvas.lay(buffer, _cloth(buffer.values, cloth, body) * shadow[:, None])
    joined = _joined(trunk, arms)
    rows, columns = np.nonzero(np.isfinite(joined.depth).reshape(1280, 1280))
    box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    return develop(joined.rgb, joined.depth, box)


def _cut(buffer: Buffer, cloth: Cloth, body: Body) -> Buffer:
    return buffer.where(inside(edges(cloth.cut, body, buffer.values)) > 0)


def _under(buffer: Buffer, over: list[Cloth], body: Body, reach: float = 0.02) -> tuple[Buffer, np.ndarray]:
    """What clothes laid over it leave to be seen, to `reach` inside their edges, and the shadow `(n,)` of these."""
    shadow = np.ones(len(buffer.index), np.float32)
    for cloth in over:
        d = inside(edges(cloth.cut, body, buffer.values))
        shadow = np.where(d > reach, 0, shadow * (1 - 0.34 * np.exp(np.minimum(d, 0) / 0.16)))
    keep = shadow > 0
    return buffer.where(keep), shadow[keep]


def _skin(a: np.ndarray, tone: Colour, shadow: np.ndarray) -> np.ndarray:
    base = np.broadcast_to(np.asarray(tone, np.float32), (len(a), 3))
    brightness = light(a[:, NX : NZ + 1]) * shadow
    # light that has gone through skin is redder in the half shade
    warm = np.clip(1.0 - brightness, 0, 0.4)[:, None] * np.asarray([0.10, -0.02, -0.04], np.float32)
    return np.clip(lit(base, brightness) + warm * base, 0, 0.985)


def _cloth(a: np.ndarray, cloth: Cloth, body: Body, back: bool = False) -> np.ndarray:
    turned = np.arcsin(np.clip(a[:, NX], -1, 1))
    u = a[:, U] + (turned - a[:, NX]) * np.where(a[:, ARM] > -0.03, 0.3, 0.8)
    share = second_share(cloth.print, u, a[:, V], split=cloth.split)[:, None]
    base = np.asarray(cloth.colour, np.float32) * (1 - share) + np.asarray(cloth.second, np.float32) * share
    if back:
        return base * 0.5 + 0.04
    part = cloth.cut.part
    amount: np.ndarray | float = {"slim": 0.6, "regular": 1.0, "loose": 1.35}[cloth.cut.fit]
    if part == "skirt":
        amount = amount * np.clip((body.waist - a[:, Y]) / 4.0, 0.1, 1) * {"slim": 0.4}.get(cloth.cut.fit, 1.5)
    normal = tilted(a, folds(part, np.random.default_rng(cloth.seed)), amount)
    found = edges(cloth.cut, body, a)
    return lit(base, light(normal) * sewn(cloth.cut, body, a, found))


def _joined(trunk: Canvas, arms: Canvas) -> Canvas:
    nearer = arms.depth > trunk.depth
    for plane, other in ((trunk.rgb, arms.rgb), (trunk.depth, arms.depth), (trunk.own, arms.own)):
        plane[nearer] = other[nearer]
    return trunk
