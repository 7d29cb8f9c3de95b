"""What `generate` can be told: names as diffusers' pipelines have them. No torch."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Annotated, Literal

import tyro

from onbrand.errors import OnbrandError
from onbrand.options._base import (
    Count,
    Dtype,
    File,
    Need,
    NotNegative,
    Number,
    Range,
    Rate,
    Size,
    Spacing,
    Word,
    check_options,
    own_first,
)

MOST = 100_000
"""Images of one prompt: their requests are held in memory, and their names have five digits."""
Start = Literal["noise", "mean", "pca", "text", "image"]


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """Where images start and how they are sampled, whatever the prompts and the model.

    Attributes:
        start: what x_start is: noise (none), the class mean, a draw of its first principal components (pca), the mean
            given the prompt (text), or each request's own image (image). Default: what the weights were trained with;
            for plain weights text if the prior was fitted with captions, else mean
        k: principal components of start pca, or those that start image is projected on. Default: as many as the
            weights were trained with, else 3 (pca) or the whole latent (image)
        residual: with start text, also draw what the text leaves open
        zero_mean: take each channel's mean out of the starting noise, which the network reads as a tint of the
            background. Default: yes, except for start noise
        look_ahead: how often the network is asked, before sampling, what it would draw from its start; sampling starts
            from its answer. Only for weights trained as usual. Default: for these 2 from start mean, 1 from start
            text, else 0
        look_ahead_projection: keep only what lies in the class's principal components of that answer
        literal: the paper's alpha_T, abar at T - 1, instead of the abar of the first inference timestep
        num_inference_steps: of the sampler
        scheduler: diffusers scheduler class, such as DPMSolverMultistepScheduler. Default: the model's own
        timestep_spacing: how the timesteps are spaced. Default: the scheduler's own
        use_karras_sigmas: Karras sigmas on or off. Default: as the scheduler's config says
        guidance_scale: of classifier-free guidance; 1 or less: none. Default: 7.5, of Stable Diffusion XL 5
        eta: DDIM's eta in [0, 1]: 0 deterministic, 1 as random as DDPM
        batch_size: images made at a time; the last bits of an image depend on it
        controlnet_conditioning_scale: weight of the control images: one for all ControlNets, or one for each
        overlay: lay the opaque part of each control image (a garment cut out) over the finished image
        handoff: below the window that the weights were trained with, go on from the noise drawn instead of the one
            estimated (window gain; DDIM, Euler, DPM++ 2M or UniPC)
        trace: how many images, from the first on, also leave x_t and x0_hat of every step
    """

    start: Start | None = None
    k: Count | None = None
    residual: bool = False
    zero_mean: bool | None = None
    look_ahead: Number | None = None
    look_ahead_projection: bool = True
    literal: bool = False
    num_inference_steps: Count = 20
    scheduler: Word | None = None
    timestep_spacing: Spacing | None = None
    use_karras_sigmas: bool | None = None
    guidance_scale: NotNegative | None = None
    eta: Rate = 0.0
    batch_size: Count = 8
    controlnet_conditioning_scale: float | tuple[float, ...] = 1.0
    overlay: bool = False
    handoff: bool = False
    trace: Number = 0

    def __post_init__(self) -> None:
        check_options(self, NEEDS)
        if self.handoff and self.eta:
            raise OnbrandError(
                "option", f"the hand-off finds x0_hat from a step without new noise; got eta {self.eta}: set it to 0"
            )


NEEDS = (
    Need(("k",), "start", "start pca or image", lambda start: start in (None, "pca", "image")),
    Need(("residual",), "start", "start text", lambda start: start in (None, "text")),
    Need(("literal",), "start", "start mean, pca, text or image", lambda start: start != "noise"),
    Need(("look_ahead_projection",), "look_ahead", "look_ahead of 1 or more", lambda looks: looks is None or looks > 0),
    Need(("eta",), "scheduler", "scheduler DDIMScheduler", lambda name: name in (None, "DDIMScheduler")),
    Need(("overlay", "controlnet_conditioning_scale"), "ControlNets", "a ControlNet", lambda number: number > 0),
    Need(("negative_prompt",), "guidance_scale", "guidance_scale above 1", lambda scale: scale is None or scale > 1),
    Need(("attributes", "max_draws"), "against", "against", lambda place: place is not None),
    Need(("num_images_per_prompt",), "prompt", "prompt", lambda prompt: prompt is not None),
)
"""What a setting needs to have an effect; start, look_ahead and scheduler may be left to the model (None)."""


@own_first
@dataclass(frozen=True)
class GenerateOptions(SamplingSettings):
    """What `generate` can be told.

    Attributes:
        prompts: file of requests: a .txt of prompts, or one JSON object a line: prompt; optionally class, seed,
            negative_prompt, height, width, image, conditioning (the control image, or a list of them)
        model: model or run folder, or Hub id, to generate with; a LoRA's brings the model it was trained on
        output_dir: folder for the images
        prior: the brand's folder (or its prior.safetensors) or Hub id. Default: the one saved beside the LoRA, the
            ControlNet or the model
        prompt: one prompt instead of a file
        negative_prompt: what guidance leads away from, of that prompt and of requests that say none
        num_images_per_prompt: images of that prompt, with the seeds seed, seed + 1, ...
        seed: first seed of that prompt, or of requests without one
        resolution: of the images in pixels: a size that the brand was fitted at, with start noise any. Default: each
            request's height and width, else the brand's, of several that of the most photos, else the model's own
        lora: a LoRA for the model: its file, its run folder or Hub id
        lora_scale: weight of the LoRA; 1: as trained
        controlnet: ControlNets for the model: folders, run folders or Hub ids. Default: what a run folder given as
            model brings
        device: cuda, cpu, ... Default: a GPU if there is one
        dtype: of the weights
        offload: each part of the model waits on the CPU until it is called, and the VAE takes one image at a time,
            large ones in tiles: for a GPU of little memory
        model_config: as for `fit`
        against: folder of the brand's photos: an image that fails what `check` finds against them, with the same prior,
            is drawn again from its next seed. Default: none is
        max_draws: draws of an image, at most; if none passes, the one that fails least stays and is listed
        attributes: with against, an attribute classifier, as for `check`
    """

    prompts: Annotated[File | None, tyro.conf.Positional] = None
    _: KW_ONLY
    model: File
    output_dir: File
    prior: File | None = None
    prompt: str | None = None
    negative_prompt: str = ""
    num_images_per_prompt: Annotated[int, Range(1, MOST)] = 1
    seed: Number = 0
    resolution: Size = None
    lora: File | None = None
    lora_scale: float = 1.0
    controlnet: tuple[File, ...] = ()
    device: Word | None = None
    dtype: Dtype = "float32"
    offload: bool = False
    model_config: File | None = None
    against: File | None = None
    max_draws: Count = 4
    attributes: File | None = None
