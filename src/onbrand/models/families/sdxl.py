"""Stable Diffusion XL: two text encoders, and a UNet that also reads pooled text, size and crop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import StableDiffusionXLControlNetPipeline, StableDiffusionXLPipeline
from torch import Tensor, nn

from onbrand.models.tokens import tokenized


class SDXL:
    """Stable Diffusion XL and what was fine-tuned from it (Podell et al. 2023, arXiv 2307.01952); `Family` says what
    each member is.

    Photos are padded and never cropped, so the size conditioning is that of the image itself, in training as in
    generation: (H, W) original, (0, 0) crop, (H, W) target.
    """

    name = "Stable Diffusion XL"
    pipelines = (StableDiffusionXLPipeline, StableDiffusionXLControlNetPipeline)
    parts: Mapping[str, Any] = {"feature_extractor": None, "add_watermarker": False}
    encoders: tuple[str, ...] = ("text_encoder", "text_encoder_2")
    tokenizers: tuple[str, ...] = ("tokenizer", "tokenizer_2")
    files: Mapping[str, str] = {"xl_base": "conditioner."}
    guidance = 5.0
    noise_offsets: Mapping[str, float] = {"stabilityai/stable-diffusion-xl-base-1.0": 0.0357}
    asks: Mapping[str, Any] = {"addition_embed_type": "text_time"}
    lora_names = r"(^|_)te2_|text_encoder_2|clip_g|conditioner_embedders|label_emb|add_embedding"
    cache_name = "sdxl"

    def upcasts(self, vae_config: Mapping[str, Any]) -> bool:
        return bool(vae_config.get("force_upcast", True))  # SDXL's own VAE overflows in float16

    def pooled_width(self, unet_config: Mapping[str, Any]) -> int | None:
        numbers = int(unet_config["projection_class_embeddings_input_dim"])
        return numbers - 6 * int(unet_config["addition_time_embed_dim"])

    def read(
        self, encoders: Sequence[nn.Module], tokens: Sequence[Tensor], masks: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        outputs = [
            encoder(ids.clamp(min=0), output_hidden_states=True) for encoder, ids in zip(encoders, tokens, strict=True)
        ]
        hidden, pooled = torch.cat([output.hidden_states[-2] for output in outputs], -1), outputs[-1].text_embeds
        kept = tokens[0].ge(0).any(1)  # a dropped caption's tokens are -1, and zeros are what it is read as
        return torch.where(kept[:, None, None], hidden, 0.0), torch.where(kept[:, None], pooled, 0.0)

    def drops_to_zero(self, pipe: Any) -> bool:
        return bool(pipe.config.force_zeros_for_empty_prompt)

    def beside(self, pooled: Tensor | None, x_t: Tensor, factor: int) -> dict[str, Any]:
        height, width = factor * x_t.shape[-2], factor * x_t.shape[-1]
        ids = torch.tensor([[height, width, 0, 0, height, width]], dtype=x_t.dtype, device=x_t.device)
        return {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": ids.expand(len(x_t), -1)}}

    def size_of_call(self, size: tuple[int, int]) -> dict[str, int]:
        return {"height": size[0], "width": size[1]}

    def call(
        self, pipe: Any, prompts: Sequence[str], negative: Sequence[str] | None, size: tuple[int, int]
    ) -> dict[str, Any]:
        hidden, pooled = self._encode(pipe, prompts)
        call = {"prompt_embeds": hidden, "pooled_prompt_embeds": pooled, **self.size_of_call(size)}
        if negative is None:
            return call
        others = self._encode(pipe, negative)
        if self.drops_to_zero(pipe):
            empty = [not text for text in negative]
            for part in others:
                part[empty] = 0.0
        return call | {"negative_prompt_embeds": others[0], "negative_pooled_prompt_embeds": others[1]}

    def text_in_one_file(self, pipe: Any) -> dict[str, tuple[str, bool]]:
        return {
            "text_encoder": ("conditioner.embedders.0.transformer.text_model.", False),
            "text_encoder_2": ("conditioner.embedders.1.model.", True),
        }

    def kohya(self, unet_config: Mapping[str, Any], prediction_type: str) -> tuple[dict[str, str], dict[str, str]]:
        return {}, {"ss_base_model_version": "sdxl_base_v1-0", "ss_v2": "False"}

    def _encode(self, pipe: Any, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Hidden and pooled of texts, by the encoders as they are, a LoRA among them."""
        encoders = [getattr(pipe, name) for name in self.encoders]
        tokenizers = [getattr(pipe, name) for name in self.tokenizers]
        tokens = [
            tokenized(one, texts, one.model_max_length).input_ids.to(pipe._execution_device) for one in tokenizers
        ]
        return self.read(encoders, tokens)
