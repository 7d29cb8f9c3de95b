"""Stable Diffusion XL's whole architecture, weights drawn at random, through onbrand on this machine: time and memory.

python benchmarks/sdxl.py [--side 1024] [--width 1] [--out sdxl.json]

One step of a LoRA under bfloat16 with gradient checkpointing, and one guided image of 2 steps in bfloat16, each in a
process of its own, with the fit that comes before.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from onbrand.api._memory import peak_memory
from onbrand.models import pipeline
from onbrand.options.generate import SamplingSettings
from onbrand.options.train import TrainSettings
from onbrand.sampling.requests import Request
from onbrand.sampling.sampler import sample
from onbrand.training.loop import train
from sd15 import laid, measure, wide

PARTS = {"LoRA, one step, bfloat16": "lora", "an image of 2 steps, bfloat16": "generate"}


def unet_xl(width: float = 1.0) -> UNet2DConditionModel:
    """The UNet of stable-diffusion-xl-base-1.0, its channels times `width`."""
    head = 64 if width == 1 else 8
    channels = tuple(head * max(1, count // head) for count in wide(width, 320, 640, 1280))
    first, second = text_widths(width)
    return UNet2DConditionModel(
        sample_size=128, block_out_channels=channels, layers_per_block=2, norm_num_groups=32 if width == 1 else 8,
        attention_head_dim=tuple(count // head for count in channels), use_linear_projection=True,
        transformer_layers_per_block=(1, 2, 10), cross_attention_dim=first + second,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        addition_embed_type="text_time", addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=second + 6 * 256,
    )  # fmt: skip


def text_widths(width: float) -> tuple[int, int]:
    """Widths of the two text encoders: heads of 64."""
    return round(width * 768 / 64) * 64, round(width * 1280 / 64) * 64


def sdxl(width: float = 1.0) -> StableDiffusionXLPipeline:
    """The configuration of stable-diffusion-xl-base-1.0, its channels times `width`, random weights.

    The tokenizers are the shipped model's, of fewer words: SDXL's own are not to be had without a network.
    """
    first, second = text_widths(width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = unet_xl(width)
        vae = AutoencoderKL(
            sample_size=1024, block_out_channels=wide(width, 128, 256, 512, 512), layers_per_block=2,
            latent_channels=4, norm_num_groups=32 if width == 1 else 8, scaling_factor=0.13025, force_upcast=True,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        )  # fmt: skip
        tokenizers = [pipeline.load("tiny").tokenizer for _ in range(2)]
        for tokenizer in tokenizers:
            tokenizer.model_max_length = 77
        ends = {"bos_token_id": tokenizers[0].bos_token_id, "eos_token_id": tokenizers[0].eos_token_id}
        encoder = CLIPTextModel(CLIPTextConfig(
            vocab_size=49408, hidden_size=first, intermediate_size=4 * first, projection_dim=768, num_hidden_layers=12,
            num_attention_heads=first // 64, max_position_embeddings=77, **ends,
        ))  # fmt: skip
        other = CLIPTextModelWithProjection(CLIPTextConfig(
            vocab_size=49408, hidden_size=second, intermediate_size=4 * second, projection_dim=second,
            hidden_act="gelu", num_hidden_layers=32, num_attention_heads=second // 64,
            max_position_embeddings=77, **ends,
        ))  # fmt: skip
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1
    )
    pipe = StableDiffusionXLPipeline(
        vae=vae.eval(), text_encoder=encoder.eval(), text_encoder_2=other.eval(), tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1], unet=unet.eval(), scheduler=scheduler, force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def do(part: str, width: float, side: int, folder: Path) -> dict[str, float]:
    """One part's "seconds" (of the step or the image) and "peak_memory_gb", "parameters" of the UNet, and how many
    are "learned"."""
    pipe = sdxl(width)
    result: dict[str, float] = {"parameters": sum(weight.numel() for weight in pipe.unet.parameters())}
    records, store, prior = laid(pipe, folder / "images", side)
    if PARTS[part] == "generate":
        for module in (pipe.unet, pipe.text_encoder, pipe.text_encoder_2):  # the VAE stays as its configuration says
            module.to(torch.bfloat16)
        begin = time.perf_counter()
        config = SamplingSettings(start="mean", look_ahead=0, num_inference_steps=2)
        (image,) = sample(pipe, prior, [Request("a shirt 0", 0)], config)
        assert image.image.size == (side, side) and image.finite
        return result | {"seconds": time.perf_counter() - begin, **peak_memory(pipe.device)}
    config = TrainSettings(
        start="mean", gain="constant", max_train_steps=1, train_batch_size=1, method="lora", rank=8,
        mixed_precision="bf16", gradient_checkpointing=True,
    )  # fmt: skip
    steps = train(pipe, records, store, prior, config, folder / "run")
    step = next(steps)
    result["learned"] = sum(weight.numel() for weight in pipe.unet.parameters() if weight.requires_grad)
    steps.close()
    return result | {"seconds": step.seconds, **peak_memory(pipe.device)}


if __name__ == "__main__":
    measure(__file__, __doc__, PARTS, do, side=1024)
