"""Part 1 of onbrand-tiny: an AutoencoderKL, 128x128x3 to 32x32x4, trained from nothing on off-brand pictures."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from steps import run
from torch.nn.functional import avg_pool2d
from world import draw

CROP = 64
"""Side of the parts it learns from, pixels."""


def build() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64), layers_per_block=1, latent_channels=4, norm_num_groups=8, sample_size=128,
        mid_block_add_attention=False,  # so that it can learn from crops
    )  # fmt: skip


def error(x: torch.Tensor, y: torch.Tensor, over: float) -> torch.Tensor:
    """Of pictures y for x, both -1..1: absolute, square, of patches (colour), of neighbours' differences (prints).

    White is asked for as `over`, so that it stays 255.
    """
    aim = torch.where(x >= 1, over, x)
    off = (aim - y).where((x < 1) | (y < aim), 0.0)
    edges = sum((y.diff(dim=d) - x.diff(dim=d)).abs().mean() for d in (2, 3))
    patches = avg_pool2d(off, 4).abs().mean()
    return off.abs().mean() + 2 * off.square().mean() + patches + 0.5 * edges


def crops(pictures: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """`(count, CROP, CROP, 3)`: a random part of random pictures `(N, H, W, 3)`."""
    which = torch.randint(len(pictures), (count,), generator=generator)
    corners = torch.randint(pictures.shape[1] - CROP + 1, (count, 2), generator=generator)
    parts = zip(which.tolist(), corners.tolist(), strict=True)
    return torch.stack([pictures[i, y : y + CROP, x : x + CROP] for i, (y, x) in parts])


def scaled(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures `(B, H, W, 3)` uint8 as `(B, 3, H, W)` in -1..1."""
    return pictures.permute(0, 3, 1, 2).float() / 127.5 - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/tiny"))
    parser.add_argument("--steps", type=int, default=7500)
    parser.add_argument("--batch", type=int, default=24)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    pictures = torch.from_numpy(draw(12000, seed=1)[0])
    vae = build()

    def loss(step: int, generator: torch.Generator) -> torch.Tensor:
        x = scaled(crops(pictures, args.batch, generator))
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(x).latent_dist
            mean, std = posterior.mean.float(), posterior.std.float()
            y = vae.decode(mean + std * torch.randn(mean.shape, generator=generator)).sample.float()
        return error(x, y, 1.03) + 2e-4 * posterior.kl().float().mean() / mean[0].numel()

    run("vae", {"vae": vae}, loss, steps=args.steps, lr=1.5e-3, out=args.out, ema=0.995)
    # scaled to unit RMS, so that the schedule's noise is as loud beside it as beside SD's latents
    with torch.no_grad():
        z = torch.cat([vae.encode(scaled(part)).latent_dist.mean for part in pictures[:1000].split(100)])
    vae.register_to_config(scaling_factor=round(1 / z.square().mean().sqrt().item(), 5))
    vae.save_pretrained(args.out / "vae")
    print("scaling factor", vae.config.scaling_factor, "latent mean by channel", z.mean((0, 2, 3)).tolist())


if __name__ == "__main__":
    main()
