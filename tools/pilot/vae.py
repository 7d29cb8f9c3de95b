"""Part 1 of the pilot: a small AutoencoderKL, 64x64x3 to 16x16x4, trained from nothing on off-brand pictures."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from steps import run
from world import draw


def build() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64), layers_per_block=1, latent_channels=4, norm_num_groups=8, sample_size=64,
    )  # fmt: skip


def error(x: torch.Tensor, y: torch.Tensor, over: float) -> torch.Tensor:
    """Of pictures y for x, both -1..1: absolute plus square. White is asked for as `over`, so that it stays 255."""
    aim = torch.where(x >= 1, over, x)
    off = (aim - y).where((x < 1) | (y < aim), 0.0)
    return off.abs().mean() + 2 * off.square().mean()


def scaled(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures `(B, H, W, 3)` uint8 as `(B, 3, H, W)` in -1..1."""
    return pictures.permute(0, 3, 1, 2).float() / 127.5 - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/pilot"))
    parser.add_argument("--photos", help="folder of Fashion-MNIST's idx files; default: the embedded part")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=24)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    pictures = torch.from_numpy(draw(20000, seed=1, source=args.photos)[0])
    vae = build()

    def loss(step: int, generator: torch.Generator) -> torch.Tensor:
        which = torch.randint(len(pictures), (args.batch,), generator=generator)
        x = scaled(pictures[which])
        posterior = vae.encode(x).latent_dist
        z = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator)
        return error(x, vae.decode(z).sample, 1.03) + 2e-4 * posterior.kl().mean() / z[0].numel()

    run("vae", {"vae": vae}, loss, steps=args.steps, lr=1.5e-3, out=args.out, ema=0.995)
    # scaled to unit RMS, so that the schedule's noise is as loud beside it as beside SD's latents
    with torch.no_grad():
        sample = scaled(pictures[:1000])
        z = vae.encode(sample).latent_dist.mean
    vae.register_to_config(scaling_factor=round(1 / z.square().mean().sqrt().item(), 5))
    vae.save_pretrained(args.out / "vae")
    print("scaling factor", vae.config.scaling_factor, "latent mean by channel", z.mean((0, 2, 3)).tolist())


if __name__ == "__main__":
    main()
