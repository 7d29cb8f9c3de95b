"""What is a model family's own: its pipelines, how it reads text, what its network is given beside the latents.

Everything else asks the family of a pipeline (`family_of`) and never which one it is. A new one is a file beside these
and an entry of FAMILIES (CONTRIBUTING.md, "How to add").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from onbrand.errors import OnbrandError
from onbrand.models.families.sd import SD
from onbrand.models.families.sdxl import SDXL


class Family(Protocol):
    """A kind of model. It has no state: what differs from model to model is read off the pipeline."""

    name: str
    """In words, as an error says it."""
    pipelines: tuple[Any, Any]
    """diffusers' classes: of text alone, and of text and ControlNets."""
    parts: Mapping[str, Any]
    """Options of these classes beside the model's parts, for what is not used."""
    encoders: tuple[str, ...]
    """The text encoders, by their names in the pipeline, in the order in which the network reads them."""
    tokenizers: tuple[str, ...]
    """Their tokenizers."""
    files: Mapping[str, str]
    """diffusers' names of its checkpoints in one file -> how the names of their text encoders' weights begin."""
    guidance: float
    """Guidance scale where none is asked for."""
    noise_offsets: Mapping[str, float]
    """Hub ids of models that are known to be trained with offset noise -> how wide."""
    asks: Mapping[str, Any]
    """What the UNet's configuration says of inputs beside latents, timestep and text."""
    lora_names: str
    """Names in a LoRA that only this family has, as a regular expression; "": it has none."""
    cache_name: str
    """What kohya ends the names of its cached latents with."""

    def upcasts(self, vae_config: Mapping[str, Any]) -> bool:
        """Whether the VAE computes in float32 whatever the others do."""

    def pooled_width(self, unet_config: Mapping[str, Any]) -> int | None:
        """Numbers of the pooled text that the network reads; None: it reads none."""

    def read(
        self, encoders: Sequence[nn.Module], tokens: Sequence[Tensor], masks: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Tokens (B, L) and their masks, a tensor an encoder -> hidden (B, L, E) that the network attends to, pooled
        (B, P). Tokens of -1 are a caption that was dropped."""

    def drops_to_zero(self, pipe: Any) -> bool:
        """Whether an empty caption is zeros and not the encoders' reading of ""."""

    def beside(self, pooled: Tensor | None, x_t: Tensor, factor: int) -> dict[str, Any]:
        """What the network is called with beside x_t (B, C, h, w), timesteps and hidden, in training; factor: of the
        VAE."""

    def size_of_call(self, size: tuple[int, int]) -> dict[str, int]:
        """What the pipeline is called with for images (H, W) beside latents of that size."""

    def call(
        self, pipe: Any, prompts: Sequence[str], negative: Sequence[str] | None, size: tuple[int, int]
    ) -> dict[str, Any]:
        """What the pipeline is called with for images (H, W) of these prompts; negative: None without guidance."""

    def text_in_one_file(self, pipe: Any) -> dict[str, tuple[str, bool]]:
        """Text encoder -> how its weights' names begin in a checkpoint of one file, and whether they are OpenCLIP's."""

    def kohya(self, unet_config: Mapping[str, Any], prediction_type: str) -> tuple[dict[str, str], dict[str, str]]:
        """Kohya's names of the text encoders' layers (beginnings, by those that diffusers gives them), and what its
        metadata says of the base model."""


FAMILIES: tuple[Family, ...] = (SD(), SDXL())


def family_of(pipe: Any) -> Family:
    """The family of a pipeline.

    Raises:
        OnbrandError: the pipeline is of none.
    """
    for family in FAMILIES:
        if isinstance(pipe, family.pipelines):
            return family
    raise OnbrandError("model", f"{known()}; got a {type(pipe).__name__}")


def encoders_of(pipe: Any) -> dict[str, Any]:
    """The pipeline's text encoders, by name, in the order in which its network reads them."""
    return {name: getattr(pipe, name) for name in family_of(pipe).encoders}


def factor_of(pipe: Any) -> int:
    """By how much the VAE shrinks a side: 8 of these."""
    return int(2 ** (len(pipe.vae.config.block_out_channels) - 1))


def known() -> str:
    """The families, as a sentence."""
    return f"a model is of {' or of '.join(family.name for family in FAMILIES)}, and makes images of text"
