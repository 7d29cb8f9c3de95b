"""Part 2 of onbrand-tiny: its decoder alone, taught to forgive latents that a sampler left a little off.

The encoder stays as it is, so latents, prior and denoiser stay valid: what sd-vae-ft-mse is to Stable Diffusion's VAE.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from steps import run
from torch.nn.functional import interpolate
from vae import crops, error, scaled
from world import draw

OFF = 0.35
"""Largest deviation of a latent from its picture's, in standard deviations of latents: fine, coarse and even, each."""
OVER = 1.08
"""What pure white is decoded to before it is cut to 1: a margin that keeps it 255."""


def disturbed(z: torch.Tensor, scale: float, generator: torch.Generator) -> torch.Tensor:
    """Latents `(B, C, h, w)` with errors by pixel, by quarter of the side and all over, as samplers leave them."""
    b, c, h, w = z.shape
    fine, coarse, even = (torch.rand((3, b, 1, 1, 1), generator=generator) * OFF * scale).unbind(0)
    patches = torch.randn((b, c, 4, 4), generator=generator)
    wide = interpolate(patches, (h, w), mode="bilinear")
    tint = torch.randn((b, c, 1, 1), generator=generator)
    return z + fine * torch.randn(z.shape, generator=generator) + coarse * wide + even * tint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/tiny"))
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=24)
    args = parser.parse_args()
    vae = AutoencoderKL.from_pretrained(args.out / "vae")
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    pictures, scale = torch.from_numpy(draw(12000, seed=1)[0]), 1 / vae.config.scaling_factor

    def loss(step: int, generator: torch.Generator) -> torch.Tensor:
        x = scaled(crops(pictures, args.batch, generator))
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                z = vae.encode(x).latent_dist.mean.float()
            y = vae.decode(disturbed(z, scale, generator)).sample.float()
        short = (1 - y).clamp(min=0).where(x >= 1, 0.0)  # of white; beside a silhouette too
        return error(x, y, OVER) + 6 * short.mean()

    run("decoder", {"vae": vae}, loss, steps=args.steps, lr=5e-4, out=args.out, ema=0.995)
    vae.save_pretrained(args.out / "vae")  # the encoder is as it was


if __name__ == "__main__":
    main()
