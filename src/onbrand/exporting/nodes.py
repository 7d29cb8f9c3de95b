"""ComfyUI's nodes: where the brand's images start, the noise that carries a start, and the check.

`onbrand export` copies this file and the few that it imports into custom_nodes/onbrand, where torch and safetensors do.
It has the form that ComfyUI of every version loads (NODE_CLASS_MAPPINGS) and imports nothing of ComfyUI.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from onbrand.core.offset import matched_noise
from onbrand.core.prior import FILE, Prior
from onbrand.errors import OnbrandError
from onbrand.sampling.noise import generator_for, noise_for

FOLDER = Path(__file__).parents[4] / "models" / "onbrand"
"""ComfyUI's folder of priors, seen from custom_nodes/onbrand/onbrand/exporting/."""
CATEGORY = "onbrand"
PRIOR = "ONBRAND_PRIOR"
"""The type of a prior between nodes."""
SD2 = 1024
"""Width of Stable Diffusion 2's text embedding, which ComfyUI projects and diffusers, and with it a prior, does not."""
SEED = ("INT", {"default": 0, "min": 0, "max": 2**53 - 1, "control_after_generate": True})
WHERE = {
    "class_name": ("STRING", {"default": "", "tooltip": "a class of the prior; empty: the one that the prompt names"}),
    "prompt": ("STRING", {"default": "", "tooltip": "its first words name the class, as in onbrand's own prompts"}),
    "width": ("INT", {"default": 0, "min": 0, "max": 16384, "tooltip": "a size that was fitted; 0: the prior's own"}),
    "height": ("INT", {"default": 0, "min": 0, "max": 16384}),
    "batch_size": ("INT", {"default": 1, "min": 1, "max": 4096}),
}
"""Inputs that say which start."""
Latent = dict[str, Any]
"""ComfyUI's LATENT: samples `(B, C, h, w)`, unscaled, and what other nodes add."""


def latent_of(prior: Prior, x0: Tensor) -> Latent:
    """x0 `(B, C, h, w)`, scaled, as ComfyUI has it: unscaled, as the VAE takes it."""
    return {"samples": x0.float() / prior.provenance.scaling_factor + prior.provenance.shift_factor}


class LoadPrior:
    """A brand's prior, out of models/onbrand."""

    CATEGORY, FUNCTION, RETURN_TYPES = CATEGORY, "load", (PRIOR,)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The brands that are there."""
        return {"required": {"prior": (sorted(file.parent.name for file in FOLDER.glob(f"*/{FILE}")),)}}

    @classmethod
    def IS_CHANGED(cls, prior: str) -> int:
        """Another number once the brand has been fitted again."""
        return (FOLDER / prior / FILE).stat().st_mtime_ns

    def load(self, prior: str) -> tuple[Prior]:
        """The prior; it knows those of the brand's other sizes."""
        return (Prior.load(FOLDER / prior),)


class Start:
    """x_start: the class mean, or with a conditioning what the class looks like given that text."""

    CATEGORY, FUNCTION, RETURN_TYPES = CATEGORY, "start", ("LATENT",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """As ComfyUI asks for them."""
        return {"required": {"prior": (PRIOR,), **WHERE}, "optional": {"conditioning": ("CONDITIONING",)}}

    def start(self, prior: Prior, batch_size: int = 1, conditioning: Any = None, **where: Any) -> tuple[Latent]:
        """The same x_start for the whole batch; where: the rest of WHERE."""
        prior, name = _place(prior, **where)
        x_start = prior.mean(name) if conditioning is None else _mean_given(prior, name, conditioning)
        return (latent_of(prior, x_start.repeat(batch_size, 1, 1, 1)),)


class Draw:
    """x_start: a draw from a class's first k components, another one for each image (Eq. 9)."""

    CATEGORY, FUNCTION, RETURN_TYPES = CATEGORY, "draw", ("LATENT",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """As ComfyUI asks for them."""
        k = ("INT", {"default": 3, "min": 0, "max": 4096, "tooltip": "components, as many as were fitted at most"})
        return {"required": {"prior": (PRIOR,), **WHERE, "k": k, "seed": SEED}}

    def draw(self, prior: Prior, batch_size: int = 1, k: int = 3, seed: int = 0, **where: Any) -> tuple[Latent]:
        """Images of the seeds seed, seed + 1, ..., each as `onbrand generate --start pca` draws it."""
        prior, name = _place(prior, **where)
        prior.check_k(name, k)
        gaussian = prior.gaussians[name]
        draws = [gaussian.draw(1, k, generator_for(seed + i, "x_start")) for i in range(batch_size)]
        return (latent_of(prior, torch.cat(draws)),)


@dataclass(frozen=True, eq=False)
class MatchedNoise:
    """A NOISE that carries a start, whatever latent it is added to: the sampler's first state is Eq. 8's."""

    seed: int
    model: Any
    sigma: float
    """Of the sampler's first step."""
    start: Tensor
    """`(B or 1, C, h, w)`, unscaled."""
    zero_mean: bool

    def generate_noise(self, latent: Latent) -> Tensor:
        """Noise `(B, C, h, w)` on the CPU, of the latent's seeds seed, seed + 1, ...: those of `onbrand generate`.

        A sampler starts at x0 + scale noise, where scale is sigma, or sqrt(1 + sigma^2) if sigma is the model's
        largest. This noise makes it x_start + sigma eps, of which sqrt(abar) is what the network sees.

        Raises:
            OnbrandError: a start of another size or batch than the latent, or a model that a start cannot enter.
        """
        x0, sampling = latent["samples"].float().cpu(), self.model.get_model_object("model_sampling")
        if self.start.shape[1:] != x0.shape[1:] or len(self.start) not in (1, len(x0)):
            raise OnbrandError(
                "start",
                f"start and latent must have one size and batch: got {tuple(self.start.shape)} and "
                f"{tuple(x0.shape)}; give the start as the sampler's latent too",
            )
        largest = float(sampling.sigma_max)
        is_largest = self.sigma > largest or math.isclose(self.sigma, largest, rel_tol=1e-5)
        one, zero, sigma = torch.ones(1), torch.zeros(1), torch.tensor(self.sigma)
        weight = float(sampling.noise_scaling(sigma, zero, one, is_largest))
        scale = float(sampling.noise_scaling(sigma, one, zero, is_largest))
        if weight != 1:
            raise OnbrandError(
                "start",
                f"this model is no Stable Diffusion 1, 2 or XL: a latent enters it with weight {weight:g}; take "
                "RandomNoise",
            )
        scaled = self.model.get_model_object("process_latent_in")
        x_start = scaled(self.start).expand_as(x0)
        x0 = scaled(x0) if bool(x0.any()) else x0  # ComfyUI leaves an empty latent as it is
        indices = latent.get("batch_index", range(len(x0)))
        eps = noise_for([self.seed + int(i) for i in indices], x0.shape[1:], self.zero_mean)
        return matched_noise(eps, x0, x_start, 1 / self.sigma) * (self.sigma / scale)


class Noise:
    """For SamplerCustomAdvanced: noise that starts it from x_start, at the first of its sigmas."""

    CATEGORY, FUNCTION, RETURN_TYPES = CATEGORY, "noise", ("NOISE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """As ComfyUI asks for them."""
        tip = "take each channel's mean out of the noise, which the network would read as a tint of the background"
        return {
            "required": {
                "model": ("MODEL",),
                "sigmas": ("SIGMAS",),
                "start": ("LATENT",),
                "noise_seed": SEED,
                "zero_mean": ("BOOLEAN", {"default": True, "tooltip": tip}),
            }
        }

    def noise(
        self, model: Any, sigmas: Tensor, start: Latent, noise_seed: int = 0, zero_mean: bool = True
    ) -> tuple[MatchedNoise]:
        """The noise, made once the sampler's latent is known."""
        if not len(sigmas) or not float(sigmas[0]) > 0:
            raise OnbrandError("start", "the sigmas hold no step to start at; set denoise above 0")
        return (MatchedNoise(noise_seed, model, float(sigmas[0]), start["samples"].float().cpu(), zero_mean),)


class Check:
    """`onbrand check` of images against the brand's photos; needs onbrand itself in ComfyUI's Python."""

    CATEGORY, FUNCTION, RETURN_TYPES, RETURN_NAMES = CATEGORY, "check", ("STRING", "FLOAT"), ("report", "rate")
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """As ComfyUI asks for them."""
        return {
            "required": {
                "images": ("IMAGE",),
                "photos": ("STRING", {"default": "", "tooltip": "folder of the brand's photos"}),
            }
        }

    def check(self, images: Tensor, photos: str) -> dict[str, Any]:
        """The table as text, and the rate of images that pass; images `(B, H, W, 3)` in [0, 1]."""
        try:
            from PIL import Image

            from onbrand import check  # its public face: here it is another program's
            from onbrand.io import write_png
            from onbrand.reporting.table import lines_of
        except ImportError as error:
            raise OnbrandError(
                "check", f"the check needs onbrand itself ({error}): pip install onbrand in ComfyUI's own Python"
            ) from error
        with TemporaryDirectory() as folder:
            for number, pixels in enumerate((images.cpu().clamp(0, 1) * 255).round().byte().numpy()):
                write_png(Path(folder) / f"{number:04d}.png", Image.fromarray(pixels))
            result = check(folder, photos)
        report = "\n".join(lines_of(result.content))
        return {"ui": {"text": [report]}, "result": (report, result.rate)}


NODE_CLASS_MAPPINGS = {
    "OnbrandLoadPrior": LoadPrior, "OnbrandStart": Start, "OnbrandDraw": Draw, "OnbrandNoise": Noise,
    "OnbrandCheck": Check,
}  # fmt: skip
NODE_DISPLAY_NAME_MAPPINGS = {
    "OnbrandLoadPrior": "Load Prior (onbrand)", "OnbrandStart": "Start (onbrand)", "OnbrandDraw": "PCA Draw (onbrand)",
    "OnbrandNoise": "Matched Noise (onbrand)", "OnbrandCheck": "Check (onbrand)",
}  # fmt: skip


def _place(prior: Prior, class_name: str = "", prompt: str = "", width: int = 0, height: int = 0) -> tuple[Prior, str]:
    """The prior of the size, and the class."""
    if bool(width) != bool(height):
        raise OnbrandError("start", f"width and height go together: got {width} and {height}; give both, or 0 and 0")
    return prior.at((height, width)) if height else prior, class_name or prior.class_of(prompt)


def _mean_given(prior: Prior, name: str, conditioning: Any) -> Tensor:
    """The class's mean x_start `(1, C, h, w)` given a CONDITIONING, by its pooled text."""
    pooled = conditioning[0][1].get("pooled_output")
    prior.check_k(name, 0)
    if pooled is None or name not in prior.text:
        lack = (
            "the conditioning has no pooled text" if pooled is None else f"class {name!r} was fitted without captions"
        )
        raise OnbrandError("start", f"{lack}: leave the conditioning out, and the start is the class mean")
    if len(prior.text[name].text_mean) == SD2:
        raise OnbrandError(
            "start",
            "ComfyUI gives Stable Diffusion 2's pooled text projected, which the prior has not seen: leave the "
            "conditioning out, and the start is the class mean",
        )
    return prior.text[name].mean(prior.gaussians[name], pooled[:1].float().cpu())
