"""Part 1 of onbrand-tiny: an AutoencoderKL, 128x128x3 to 32x32x4, trained from nothing on off-brand pictures.

Its decoder learns to forgive latents that a sampler left a little off, as sd-vae-ft-mse does for Stable Diffusion.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from steps import place, placed, run
from torch.nn.functional import avg_pool2d, interpolate
from world import draw

CROP = 64
"""Side of the parts it learns from, pixels."""
OFF = 0.35
"""Largest deviation of a latent from its picture's, in standard deviations of latents: fine, coarse and even, each."""
OVER = 1.08
"""What pure white is decoded to before it is cut to 1: a margin that keeps it 255."""


SIZES = {"tiny": ((16, 32, 64), 4), "wide": ((32, 64, 128), 8)}
"""Channels of the autoencoder's blocks, and of its latents."""


def build(size: str = "tiny") -> AutoencoderKL:
    torch.manual_seed(0)
    channels, latent = SIZES[size]
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=channels, layers_per_block=2, latent_channels=latent, norm_num_groups=8, sample_size=128,
        mid_block_add_attention=False,  # so that it can learn from crops
    )  # fmt: skip


def grown(folder: Path, size: str = "tiny") -> AutoencoderKL:
    """The autoencoder of a folder; layers that it does not have yet change nothing at first."""
    old, vae = AutoencoderKL.from_pretrained(folder).float(), build(size)
    missing, _ = vae.load_state_dict(old.state_dict(), strict=False)
    for name in missing:
        if ".conv2." in name:
            torch.nn.init.zeros_(vae.get_parameter(name))
    vae.register_to_config(scaling_factor=old.config.scaling_factor)
    return vae


def contrast(x: torch.Tensor) -> torch.Tensor:
    """Mean difference of neighbours within 7x7 `(B, 1, H, W)` of pictures: where prints and outlines are."""
    steps = torch.zeros_like(x[:, :1])
    steps[..., :-1] += x.diff(dim=3).abs().amax(1, keepdim=True)
    steps[..., :-1, :] += x.diff(dim=2).abs().amax(1, keepdim=True)
    return avg_pool2d(steps, 7, 1, 3)


def error(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Of pictures y for x, both -1..1: absolute, square, of patches (colour), of neighbours' differences (prints).

    White is asked for as OVER, and what falls short of it counts more.
    """
    weight, white = 1 + 6 * contrast(x), x >= 1
    off = (torch.where(white, OVER, x) - y).where(~white | (y < OVER), 0.0)
    across = ((y.diff(dim=3) - x.diff(dim=3)).abs() * weight[..., 1:]).mean()
    down = ((y.diff(dim=2) - x.diff(dim=2)).abs() * weight[..., 1:, :]).mean()
    short = (1 - y).clamp(min=0).where(white, 0.0)
    each = weight * (off.abs() + 2 * off.square())
    return each.mean() + avg_pool2d(off, 4).abs().mean() + 0.5 * (across + down) + 10 * short.mean()


def crops(pictures: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """`(count, 3, CROP, CROP)` in -1..1: the fuller of two random parts of a random picture `(N, H, W, 3)`."""
    device = generator.device
    which = torch.randint(len(pictures), (count,), generator=generator, device=device)
    corners = torch.randint(pictures.shape[1] - CROP + 1, (2, count, 2), generator=generator, device=device)
    y, x = (corners[..., None] + torch.arange(CROP, device=device)).unbind(2)
    a, b = (scaled(pictures[which[:, None, None], y[i, :, :, None], x[i, :, None]]) for i in range(2))
    fuller = contrast(a).mean((1, 2, 3)) > contrast(b).mean((1, 2, 3))
    return torch.where(fuller.view(-1, 1, 1, 1), a, b)


def scaled(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures `(B, H, W, 3)` uint8 as `(B, 3, H, W)` in -1..1."""
    return pictures.permute(0, 3, 1, 2).float() / 127.5 - 1


def disturbed(z: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Latents `(B, C, h, w)`, half of them with errors as samplers leave them: by pixel, by quarter, all over."""
    b, c, h, w = z.shape
    given = {"generator": generator, "device": generator.device}
    fine, coarse, even = (torch.rand((3, b, 1, 1, 1), **given) * OFF * z.std()).unbind(0)
    patches = torch.randn((b, c, 4, 4), **given)
    wide = interpolate(patches, (h, w), mode="bilinear")
    tint = torch.randn((b, c, 1, 1), **given)
    half = torch.rand((b, 1, 1, 1), **given) < 0.5
    return z + half * (fine * torch.randn(z.shape, **given) + coarse * wide + even * tint)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/tiny"))
    parser.add_argument("--steps", type=int, default=15000)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--weights", type=Path, help="an autoencoder's folder to go on from; latents stay close to its")
    parser.add_argument("--decoder", action="store_true", help="of --weights, the decoder alone learns: latents stay")
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--count", type=int, default=12000, help="pictures it learns from")
    placed(parser)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rank, _ = place()
    pictures = torch.from_numpy(draw(args.count, seed=1, workers=args.workers)[0]).to(args.device)
    vae = grown(args.weights, args.size) if args.weights else build(args.size)
    for part in (vae.encoder, vae.quant_conv) if args.decoder else ():
        part.requires_grad_(False)
    old = AutoencoderKL.from_pretrained(args.weights).float().eval().to(args.device) if args.weights else None

    def loss(step: int, generator: torch.Generator) -> torch.Tensor:
        x = crops(pictures, args.batch, generator)
        with torch.autocast(torch.device(args.device).type, torch.bfloat16):
            posterior = vae.encode(x).latent_dist
            mean, std = posterior.mean.float(), posterior.std.float()
            z = mean + std * torch.randn(mean.shape, generator=generator, device=generator.device)
            y = vae.decode(disturbed(z, generator)).sample.float()
            off = 0.0
            if old is not None:
                with torch.no_grad():
                    was = old.encode(x[:6]).latent_dist.mean.float()
                off = ((mean[:6] - was) * old.config.scaling_factor).square().mean()
        return error(x, y) + 2e-4 * posterior.kl().float().mean() / mean[0].numel() + 0.05 * off

    run(
        "vae", {"vae": vae}, loss, steps=args.steps, lr=1.5e-3, out=args.out, ema=0.995, device=args.device,
        seconds=args.seconds,
    )  # fmt: skip
    if rank > 0:
        return
    # scaled to unit RMS, so that the schedule's noise is as loud beside it as beside SD's latents
    with torch.no_grad():
        z = torch.cat([vae.encode(scaled(part)).latent_dist.mean for part in pictures[:1000].split(100)])
    vae.register_to_config(scaling_factor=round(1 / z.square().mean().sqrt().item(), 5))
    vae.save_pretrained(args.out / "vae")


if __name__ == "__main__":
    main()
