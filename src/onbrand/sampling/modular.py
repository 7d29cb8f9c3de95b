"""A block of diffusers' modular pipelines for Stable Diffusion XL: the run starts where the brand's images start."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any

from diffusers import ModularPipelineBlocks, StableDiffusionXLPipeline
from diffusers.modular_pipelines import InputParam, OutputParam

from onbrand.sampling.start import start

if TYPE_CHECKING:
    from onbrand.core.prior import Prior

PARTS = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet")


class StartStep(ModularPipelineBlocks):  # type: ignore[misc]  # diffusers has no types
    """Writes `latents` as `onbrand.start` does, between the blocks `set_timesteps` and `prepare_latents`.

    The pipeline is then called with `seeds`, one an image. Its components are those of the blocks around it.

    Args:
        prior: the brand's.
        settings: of `onbrand.start`: start, k, classes, look_ahead, trained_start ...
    """

    model_name = "stable-diffusion-xl"

    def __init__(self, prior: Prior, **settings: Any) -> None:
        super().__init__()
        self.prior, self.settings = prior, settings

    @property
    def description(self) -> str:
        """What the block does."""
        return "Step that starts the run where the images of onbrand's prior start (Eq. 8 to 10)"

    @property
    def inputs(self) -> list[InputParam]:
        """What the pipeline is called with, and what `set_timesteps` leaves."""
        return [
            InputParam("prompt", required=True),
            InputParam("negative_prompt"),
            InputParam("seeds", required=True, description="One an image: prompts times num_images_per_prompt."),
            InputParam("num_images_per_prompt", default=1),
            InputParam("num_inference_steps", default=50),
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        """The latents that `prepare_latents` takes."""
        return [OutputParam("latents", description="The first state, before the scheduler scales it (B, C, h, w)")]

    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        """Write the latents into the state."""
        block = self.get_block_state(state)
        # onbrand.start reads a pipeline, and a look ahead runs it: one of the same networks, a scheduler of its own
        parts = {name: getattr(components, name) for name in PARTS}
        zeros = components.config.get("force_zeros_for_empty_prompt", True)
        pipe = StableDiffusionXLPipeline(
            **parts, scheduler=deepcopy(components.scheduler), force_zeros_for_empty_prompt=zeros, add_watermarker=False
        )
        pipe.register_to_config(_name_or_path=components.unet.config.get("_name_or_path"))  # how it was trained
        pipe.set_progress_bar_config(disable=True)
        prompts, negative = (
            [text for text in texts for _ in range(block.num_images_per_prompt)] if isinstance(texts, list) else texts
            for texts in (block.prompt, block.negative_prompt)
        )
        block.latents = start(
            pipe, self.prior, prompts, seeds=block.seeds, num_inference_steps=block.num_inference_steps,
            guidance_scale=components.guider.guidance_scale, negative_prompt=negative, **self.settings,
        )  # fmt: skip
        self.set_block_state(state, block)
        return components, state
