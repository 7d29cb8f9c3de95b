"""Stable Diffusion 1 and 2: one text encoder, whose last hidden states the network attends to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diffusers import StableDiffusionControlNetPipeline, StableDiffusionPipeline
from torch import Tensor, nn

from onbrand.models.tokens import beginning


class SD:
    """Stable Diffusion 1.5, 2.0, 2.1 and what was fine-tuned from them; `Family` says what each member is."""

    name = "Stable Diffusion 1 or 2"
    pipelines = (StableDiffusionPipeline, StableDiffusionControlNetPipeline)
    parts: Mapping[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    encoders: tuple[str, ...] = ("text_encoder",)
    tokenizers: tuple[str, ...] = ("tokenizer",)
    files: Mapping[str, str] = {"v1": "cond_stage_model.", "v2": "cond_stage_model."}
    guidance = 7.5
    noise_offsets: Mapping[str, float] = {}
    asks: Mapping[str, Any] = {}
    lora_names = ""
    cache_name = "sd"

    def upcasts(self, vae_config: Mapping[str, Any]) -> bool:
        return False

    def pooled_width(self, unet_config: Mapping[str, Any]) -> int | None:
        return None

    def read(
        self, encoders: Sequence[nn.Module], tokens: Sequence[Tensor], masks: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        uses_mask = masks is not None and getattr(encoders[0].config, "use_attention_mask", False)
        output = encoders[0](tokens[0], attention_mask=masks[0] if masks and uses_mask else None)
        return output.last_hidden_state, output.pooler_output

    def drops_to_zero(self, pipe: Any) -> bool:
        return False

    def beside(self, pooled: Tensor | None, x_t: Tensor, factor: int) -> dict[str, Any]:
        return {}

    def size_of_call(self, size: tuple[int, int]) -> dict[str, int]:
        return {}

    def call(
        self, pipe: Any, prompts: Sequence[str], negative: Sequence[str] | None, size: tuple[int, int]
    ) -> dict[str, Any]:
        # no more of each than counts: the pipeline would tokenise a book to its end
        texts = [
            None if one is None else [beginning(text, pipe.tokenizer.model_max_length) for text in one]
            for one in (prompts, negative)
        ]
        return {"prompt": texts[0], "negative_prompt": texts[1]}

    def text_in_one_file(self, pipe: Any) -> dict[str, tuple[str, bool]]:
        is_v2 = pipe.unet.config.cross_attention_dim == 1024  # noqa: PLR2004  (by which diffusers tells them apart)
        beginning = "cond_stage_model.model." if is_v2 else "cond_stage_model.transformer.text_model."
        return {"text_encoder": (beginning, is_v2)}

    def kohya(self, unet_config: Mapping[str, Any], prediction_type: str) -> tuple[dict[str, str], dict[str, str]]:
        is_v2 = bool(unet_config["use_linear_projection"])
        version = "sd_v1" if not is_v2 else "sd_v2_768_v" if prediction_type == "v_prediction" else "sd_v2"
        return {"lora_te1_": "lora_te_"}, {"ss_base_model_version": version, "ss_v2": str(is_v2)}
