"""Part 4 of onbrand-tiny: the denoiser, trained from nothing on the off-brand world; writes the whole pipeline."""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from steps import place, placed, run
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer
from vae import scaled
from world import PART, SIZE, parts

from onbrand.core.process import add_noise
from onbrand.models.families import factor_of, family_of
from onbrand.models.pipeline import embed

SHIFT = 2.5
"""The schedule destroys more of a 32x32 latent than of SD's 64x64: the SNR is raised by this, at every t.

By 4 it would be as much as SD's. But the brand's white is far out in these latents: by 2.5 its four classes
stand 9 to 12.5 sigma out of the noise at the first of 20 steps, by 4 figures would stand 16 out.
"""


def schedule(shift: float = SHIFT) -> DDIMScheduler:
    """SD1.5's scaled-linear schedule with its SNR times `shift` at every t."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    abar = torch.cumprod(1 - betas, 0)
    abar = shift * abar / (1 - abar + shift * abar)
    shifted = 1 - abar / torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])
    return DDIMScheduler(trained_betas=shifted.tolist(), clip_sample=False, set_alpha_to_one=False, steps_offset=1)


SIZES = {"tiny": (32, 64, 96, 128), "wide": (96, 160, 256)}
"""Channels of the denoiser's blocks; the last two, of 16x16 and 8x8 latents or less, look at the words."""


def build(width: int, size: str = "tiny", latent: int = 4) -> UNet2DConditionModel:
    torch.manual_seed(0)
    plain = len(SIZES[size]) - 2
    return UNet2DConditionModel(
        sample_size=32, in_channels=latent, out_channels=latent, block_out_channels=SIZES[size], layers_per_block=1,
        down_block_types=("DownBlock2D",) * plain + ("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",) * plain,
        cross_attention_dim=width, attention_head_dim=4, norm_num_groups=16,
    )  # fmt: skip


@dataclass(frozen=True)
class Corpus:
    """What a denoiser learns from, N pictures."""

    mean: torch.Tensor
    """(N, C, 32, 32) half, of the VAE's posterior."""
    std: torch.Tensor
    sizes: torch.Tensor
    """(N, 6) float: (height, width) of the original, (top, left) of the crop, (height, width) of what is shown."""
    captions: list[str]


View = tuple[np.ndarray, tuple[int, int, int, int]]
"""A picture `(SIZE, SIZE, 3)` uint8; height and width of its original, top and left of its crop."""


def whole(picture: np.ndarray, rng: np.random.Generator) -> View:
    """The picture as it was drawn."""
    return picture, (SIZE, SIZE, 0, 0)


def encoded(
    args: argparse.Namespace, vae: AutoencoderKL, photograph: Callable[[np.ndarray, np.random.Generator], View] = whole
) -> Corpus:
    """The off-brand world, encoded; kept on disk PART pictures a file, and gone on with from what is there."""
    folder = args.out / "corpus"
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{first:06d}-{min(first + PART, args.count):06d}.pt" for first in range(0, args.count, PART)]
    there = next((i for i, file in enumerate(files) if not file.exists()), len(files))
    drawn = () if there == len(files) else parts(args.count, 2, args.photos, "train", args.workers, there * PART)
    shares = zip(files[there:], drawn, strict=True)
    for file, (pictures, captions, _) in tqdm(shares, "encode", len(files), initial=there, mininterval=10):
        first = int(file.name[:6])
        views = [photograph(one, np.random.default_rng([7, first + i])) for i, one in enumerate(pictures)]
        means, stds = [], []
        for part in torch.from_numpy(np.stack([picture for picture, _ in views])).split(100):
            with torch.no_grad(), torch.autocast(torch.device(args.device).type, torch.bfloat16):
                posterior = vae.encode(scaled(part.to(args.device))).latent_dist
            means.append(posterior.mean.half().cpu())
            stds.append(posterior.std.half().cpu())
        sizes = torch.tensor([[*numbers, SIZE, SIZE] for _, numbers in views], dtype=torch.float32)
        torch.save((torch.cat(means), torch.cat(stds), sizes, captions), file.with_suffix(".tmp"))
        os.replace(file.with_suffix(".tmp"), file)
    means, stds, sizes, captions = zip(*(torch.load(file, weights_only=True) for file in files), strict=True)
    return Corpus(torch.cat(means), torch.cat(stds), torch.cat(sizes), sum(captions, []))


def read(pipe: DiffusionPipeline, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """Hidden (U, L, E) and pooled (U, P) of the captions that differ, half; each caption's row, and a dropped one's."""
    unique, rows = np.unique([*captions, ""], return_inverse=True)
    chunks = (embed(pipe, unique[i : i + 500].tolist()) for i in range(0, len(unique), 500))
    hidden, pooled = (torch.cat(half) for half in zip(*((h.half(), p.half()) for h, p in chunks), strict=True))
    dropped = int(rows[-1])
    if family_of(pipe).drops_to_zero(pipe):
        hidden[dropped], pooled[dropped] = 0.0, 0.0
    return hidden, pooled, torch.from_numpy(rows[:-1]).to(hidden.device), dropped


def teach(pipe: DiffusionPipeline, corpus: Corpus, args: argparse.Namespace) -> None:
    """Teach the pipeline's UNet what the corpus shows, on args.device; by the family, whatever it is given besides."""
    pipe.to(args.device)
    hidden, pooled, rows, dropped = read(pipe, corpus.captions)
    mean, std, sizes = (tensor.to(args.device) for tensor in (corpus.mean, corpus.std, corpus.sizes))
    abar = pipe.scheduler.alphas_cumprod.to(args.device)
    weight = (5 * (1 - abar) / abar).clamp(max=1) / abar.sqrt()  # Min-SNR-5; early steps half way to v's weight
    family, factor, unet, scale = family_of(pipe), factor_of(pipe), pipe.unet, pipe.vae.config.scaling_factor
    if args.device == "cpu":  # the backward of fused attention takes a fifth of a step there
        unet.set_attn_processor(AttnProcessor())

    def loss(step: int, generator: torch.Generator) -> torch.Tensor:
        given = {"generator": generator, "device": generator.device}
        which = torch.randint(len(mean), (args.batch,), **given)
        x0 = mean[which].float() + std[which].float() * torch.randn((args.batch, *mean.shape[1:]), **given)
        x0 = x0 * scale
        noise = torch.randn(x0.shape, **given)
        t = torch.randint(1000, (args.batch,), **given)
        late = torch.rand(args.batch, **given) < 0.5  # half of the steps where the words decide
        t = torch.where(late, 500 + t // 2, t)
        words = torch.where(torch.rand(args.batch, **given) < 0.1, dropped, rows[which])
        x_t = add_noise(x0, noise, abar[t])
        beside: dict[str, Any] = family.beside(pooled[words].float(), x_t, factor)
        for conditions in beside.values():  # a family that reads sizes is told each picture's own
            conditions["time_ids"] = sizes[which]
        with torch.autocast(torch.device(args.device).type, torch.bfloat16):
            guess = unet(x_t, t, hidden[words].float(), **beside).sample
        return (weight[t] * (guess.float() - noise).square().mean((1, 2, 3))).mean()

    run(
        "unet", {"unet": unet}, loss, steps=args.steps, lr=args.lr, out=args.out, ema=0.995, device=args.device,
        seconds=args.seconds,
    )  # fmt: skip
    pipe.to("cpu")


def in_turn(make: Callable[[], Corpus]) -> Corpus:
    """What the first process makes, and the others read."""
    rank, processes = place()
    for turn in range(2):
        if (rank == 0) == (turn == 0):
            corpus = make()
        if processes > 1:
            dist.barrier()
    return corpus


def save(pipe: DiffusionPipeline, folder: Path) -> None:
    """The whole pipeline in half precision; prints what each part of it takes."""
    for part in (pipe.vae, pipe.unet):
        part.register_to_config(_name_or_path="")  # where it was loaded from is no one's business
    shutil.rmtree(folder, ignore_errors=True)
    pipe.to(dtype=torch.float16).save_pretrained(folder, safe_serialization=True)
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module):
            print(f"{name}: {sum(p.numel() for p in part.parameters()):,} numbers, {megabytes(folder / name):.2f} MB")
    print(f"{folder}: {megabytes(folder):.2f} MB")


def megabytes(folder: Path) -> float:
    """Of all files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6


def flags(parser: argparse.ArgumentParser, out: str, count: int, steps: int, batch: int) -> None:
    """Adds those of the teaching of a denoiser."""
    parser.add_argument("--out", type=Path, default=Path(out))
    parser.add_argument("--photos", help="folder of Fashion-MNIST's idx files; default: the embedded part")
    parser.add_argument("--count", type=int, default=count, help="pictures of the off-brand world")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--batch", type=int, default=batch, help="of each process")
    parser.add_argument("--lr", type=float, default=1e-3)
    placed(parser)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    flags(parser, "runs/tiny", 36000, 7000, 32)
    parser.add_argument("--weights", type=Path, help="weights to go on from where there is no state: a UNet's folder")
    parser.add_argument("--size", choices=SIZES, default="tiny")
    args = parser.parse_args()
    vae = AutoencoderKL.from_pretrained(args.out / "vae").float().eval()
    text = CLIPTextModel.from_pretrained(args.out / "text_encoder").float().eval()
    unet = build(text.config.hidden_size, args.size, vae.config.latent_channels)
    if args.weights:
        unet = UNet2DConditionModel.from_pretrained(args.weights).float()
    pipe = StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=CLIPTokenizer.from_pretrained(args.out / "tokenizer"), unet=unet,
        scheduler=schedule(), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    teach(pipe, in_turn(lambda: encoded(args, vae.to(args.device))), args)
    if place()[0] == 0:
        save(pipe, args.out / "pipeline")


if __name__ == "__main__":
    main()
