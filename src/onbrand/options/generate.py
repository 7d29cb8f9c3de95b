"""How pictures are made: one small dataclass. Imports no torch: the flags are read off it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Start = Literal["noise", "mean", "pca", "text", "image"]
Spacing = Literal["leading", "trailing", "linspace"]


@dataclass(frozen=True)
class GenerateConfig:
    """Where pictures start and how they are sampled.

    Attributes:
        start: x_start: none (noise), the class mean, a draw of its first components (pca), the class's mean given the
            prompt (text), or each request's own picture (image); null: what the weights were trained with, and for
            plain weights text where the prior was fitted with captions, else mean
        k: components of a pca start, or that an image start is projected on; null: as many as the weights were
            trained with, else 3 (pca), or the whole latent (image)
        residual: with start text, also draw what the text leaves open
        zero_mean: take each channel's mean out of the starting noise, which the network reads as a tint of the ground;
            null: yes, but for a start from noise
        look_ahead: how often the network is asked, before sampling, what it would draw from the start that it was
            given; sampling starts from its answer. For weights trained as usual; null: for these twice from start mean,
            once from text, else not at all
        look_ahead_projection: keep of that answer what lies in the class's components; false: all of it
        literal: the paper's alpha_T, abar at T-1, instead of the abar of the first inference timestep
        steps: inference steps
        scheduler: diffusers scheduler class, as DPMSolverMultistepScheduler; null: the model's own
        spacing: how its timesteps are spaced; null: as its config says
        karras: Karras sigmas on or off; null: as its config says
        guidance: classifier-free guidance scale; 1 or less: none
        eta: DDIM's eta in [0, 1]: 0 deterministic, 1 as random as DDPM
        batch: pictures made at a time; the last bits of a picture depend on it
        controlnet_scale: how strongly control pictures count: one number for all ControlNets, or one for each
        overlay: lay what control pictures show, where they have transparency (a garment cut out), over the picture made
        handoff: out of the window that the weights were trained with, go on from the noise drawn instead of the one
            estimated (window gain; DDIM, Euler, DPM++ 2M or UniPC)
        trace: how many pictures, from the first on, also leave x_t and x0_hat of every step
    """

    start: Start | None = None
    k: int | None = None
    residual: bool = False
    zero_mean: bool | None = None
    look_ahead: int | None = None
    look_ahead_projection: bool = True
    literal: bool = False
    steps: int = 20
    scheduler: str | None = None
    spacing: Spacing | None = None
    karras: bool | None = None
    guidance: float = 7.5
    eta: float = 0.0
    batch: int = 8
    controlnet_scale: float | tuple[float, ...] = 1.0
    overlay: bool = False
    handoff: bool = False
    trace: int = 0

    def __post_init__(self) -> None:
        if self.start is not None and self.start not in get_args(Start):
            raise ValueError(f"start must be one of {', '.join(get_args(Start))}; got {self.start!r}")
        if self.spacing is not None and self.spacing not in get_args(Spacing):
            raise ValueError(f"spacing must be one of {', '.join(get_args(Spacing))}; got {self.spacing!r}")
        for name, least in (("steps", 1), ("batch", 1), ("trace", 0), ("guidance", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}; got {getattr(self, name)}")
        if self.look_ahead is not None and self.look_ahead < 0:
            raise ValueError(f"look_ahead counts looks, 0 or more; got {self.look_ahead}")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must lie in [0, 1]; got {self.eta}")
        if self.handoff and self.eta:
            raise ValueError(f"the hand-off finds x0_hat from a step without fresh noise: leave eta 0; got {self.eta}")
