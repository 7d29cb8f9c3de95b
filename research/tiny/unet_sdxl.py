"""onbrand-tiny's world under a network of SDXL's class: a StableDiffusionXLPipeline, its UNet taught here alone.

    OMP_NUM_THREADS=1 python -m torch.distributed.run --nproc-per-node 2 research/tiny/unet_sdxl.py
    python research/tiny/check.py --model runs/tiny-sdxl/pipeline --out runs/tiny-sdxl/check
    cp -r runs/tiny-sdxl/pipeline src/onbrand/assets/tiny-xl

The first took 2.4 hours of two cores, and goes on where it was if it is killed or out of time (--seconds), with as many
processes as before. By one process: --batch 32. What it leaves ships as --model tiny-xl.

The autoencoder and the first text encoder are onbrand-tiny's, the second is the small CLIP's, all as they are. The UNet
begins with onbrand-tiny's weights wherever names and shapes agree. Half of the pictures are shown as SDXL's were: an
original of another size and shape, enlarged, then cropped, and the network is told of it.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from PIL import Image
from steps import place
from transformers import CLIPTextModelWithProjection
from unet import View, encoded, flags, in_turn, save, schedule, teach
from world import SIZE

from onbrand.evaluation.text import open_judge
from onbrand.models.pipeline import load

SHIFT = 8
"""The SNR is raised by this at every t: 4,096 numbers then leak as SDXL base's 65,536 do.

At the first of 20 steps d * abar is 253 (sigma squared of a mean of rms 1). SDXL's is 534; its offset noise of .0357
makes noise 21.9 times as wide in the channels' means, which here hold .56 of a class mean's energy (.47 to .65): 249.
"""
TIME = 32
"""Numbers that each of the six sizes is told in; SDXL: 256."""


def scheduler() -> EulerDiscreteScheduler:
    """SDXL's own (Euler, leading, offset 1), its SNR times SHIFT; with what its file says to other schedulers."""
    return EulerDiscreteScheduler.from_config(
        schedule(SHIFT).config, timestep_spacing="leading", interpolation_type="linear", use_karras_sigmas=False
    )


def build(hidden: int, pooled: int, channels: tuple[int, ...] = (32, 64, 96)) -> UNet2DConditionModel:
    """SDXL's pattern: no attention at the highest resolution, the most of it at the lowest; going up, like SSD-1B's,
    with fewer layers, so that all of the pipeline is less than 12 MB."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=32, in_channels=4, out_channels=4, block_out_channels=channels, layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2), reverse_transformer_layers_per_block=(1, 1, 1),
        attention_head_dim=(1, 2, 4), norm_num_groups=16, use_linear_projection=True, cross_attention_dim=hidden,
        addition_embed_type="text_time", addition_time_embed_dim=TIME,
        projection_class_embeddings_input_dim=pooled + 6 * TIME,
    )  # fmt: skip


def inherit(unet: UNet2DConditionModel, source: UNet2DConditionModel) -> int:
    """Give the UNet the source's weights of the same name and shape; how many numbers.

    The source has one level more: its lowest is left out. Its projections are convolutions of 1x1.
    """
    state, deeper = unet.state_dict(), len(source.up_blocks) - len(unet.up_blocks)
    names = {f"up_blocks.{i}.": f"up_blocks.{i + deeper}." for i in range(len(unet.up_blocks))}
    own, count = source.state_dict(), 0
    for name, weight in state.items():
        begin = name[: len("up_blocks.0.")]
        other = own.get(name.replace(begin, names[begin]) if begin in names else name)
        if other is not None and other.squeeze().shape == weight.squeeze().shape:
            weight.copy_(other.view_as(weight))
            count += weight.numel()
    return count


def photograph(picture: np.ndarray, rng: np.random.Generator) -> View:
    """Half of the time the picture, else as SDXL's data was prepared: an original, its shorter side made SIZE, cropped.

    The original is the picture less up to a quarter of one side, at .5 to 1 of its size.
    """
    if rng.random() < 0.5:
        return picture, (SIZE, SIZE, 0, 0)
    sides = np.array([SIZE, SIZE])
    sides[rng.integers(2)] = rng.integers(3 * SIZE // 4, SIZE + 1)
    top, left = rng.integers(SIZE - sides + 1)
    part = Image.fromarray(picture[top : top + sides[0], left : left + sides[1]])
    height, width = np.round(sides * rng.uniform(0.5, 1)).astype(int).tolist()
    original = part.resize((width, height), Image.Resampling.BOX)
    zoom = SIZE / min(height, width)
    large = np.asarray(original.resize((round(width * zoom), round(height * zoom)), Image.Resampling.BICUBIC))
    top, left = (int(rng.integers(side - SIZE + 1)) for side in large.shape[:2])
    return large[top : top + SIZE, left : left + SIZE], (height, width, top, left)


def pipeline() -> tuple[StableDiffusionXLPipeline, int]:
    """The pipeline before it is taught, and how many of its UNet's numbers are onbrand-tiny's."""
    tiny, clip = load("tiny"), open_judge("garments-clip")
    second = CLIPTextModelWithProjection(clip.model.config.text_config).float().eval()
    second.text_model.load_state_dict(clip.model.text_model.state_dict())
    second.text_projection.load_state_dict(clip.model.text_projection.state_dict())
    unet = build(tiny.text_encoder.config.hidden_size + second.config.hidden_size, second.config.projection_dim)
    count = inherit(unet, tiny.unet)
    pipe = StableDiffusionXLPipeline(
        vae=tiny.vae, text_encoder=tiny.text_encoder, text_encoder_2=second, tokenizer=tiny.tokenizer,
        tokenizer_2=clip.tokenizer, unet=unet, scheduler=scheduler(), force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )  # fmt: skip
    return pipe, count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags(parser, "runs/tiny-sdxl", 36000, 20000, 16)
    args = parser.parse_args()
    pipe, count = pipeline()
    if place()[0] == 0:
        total = sum(p.numel() for p in pipe.unet.parameters())
        print(f"UNet: {total:,} numbers, {count:,} of them begin as onbrand-tiny's")
    teach(pipe, in_turn(lambda: encoded(args, pipe.vae.to(args.device), photograph)), args)
    if place()[0] == 0:
        save(pipe, args.out / "pipeline")


if __name__ == "__main__":
    main()
