"""Forge: an always visible script that starts txt2img from a class mean of the brand.

`onbrand export` copies it into extensions/onbrand/scripts, beside the means. It sets `p.modified_noise`, which Forge
takes in the place of its own noise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
import torch
from modules import scripts, shared
from safetensors.torch import load_file
from torch import Tensor

NONE = "none"
MEANS: dict[str, Tensor] = {
    f"{file.stem}: {name}": x_start
    for file in sorted((Path(__file__).parents[1] / "priors").glob("*.safetensors"))
    for name, x_start in load_file(file).items()
}
"""Brand and class -> x_start `(C, h, w)`, scaled."""


class Start(scripts.Script):  # type: ignore[misc]
    """Brand and class that the images start from."""

    def title(self) -> str:
        """As the page says it."""
        return "onbrand"

    def show(self, is_img2img: bool) -> Any:
        """In txt2img alone; img2img at denoising strength 1 starts from the mean's image."""
        return False if is_img2img else scripts.AlwaysVisible

    def ui(self, is_img2img: bool) -> list[Any]:
        """One choice."""
        with gr.Accordion("onbrand", open=False):
            return [gr.Dropdown([NONE, *MEANS], value=NONE, label="Start from")]

    def process_before_every_sampling(self, p: Any, start: str = NONE, *_: Any, noise: Tensor, **__: Any) -> None:
        """Set `p.modified_noise` such that the first state is Eq. 8's, with the noise's channel means taken out."""
        if start == NONE or getattr(p, "is_hr_pass", False):
            return
        x_start = MEANS[start].to(noise)
        if x_start.shape != noise.shape[1:]:
            height, width = (8 * side for side in x_start.shape[1:])
            raise ValueError(f"onbrand: {start} starts images of width {width} and height {height}: set these")
        p.modified_noise = entered(p, x_start, noise - noise.mean((2, 3), keepdim=True))
        p.extra_generation_params["onbrand start"] = start


def entered(p: Any, x_start: Tensor, eps: Tensor) -> Tensor:
    """What Forge's sampler must take for its noise `(B, C, h, w)` to start from x_start under eps (Eq. 8)."""
    if hasattr(p.sampler, "get_timesteps"):  # DDIM, PLMS, UniPC: a state of variance 1
        timesteps = p.sampler.get_timesteps(p, p.steps)
        abar: Tensor = p.sd_model.alphas_cumprod.cpu()[int(timesteps.max())].to(eps)
        return abar.sqrt() * x_start + (1 - abar).sqrt() * eps
    sigma: Tensor = p.sampler.get_sigmas(p, p.steps)[0].to(eps)
    scale: Tensor = p.sampler.model_wrap.predictor.noise_scaling(
        sigma, torch.ones_like(sigma), torch.zeros_like(sigma), max_denoise=shared.opts.sgm_noise_multiplier
    )
    return (x_start + sigma * eps) / scale
