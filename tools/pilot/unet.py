"""Part 3 of the pilot: the denoiser, trained from nothing on the off-brand world; writes the whole pipeline."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from steps import run
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer
from world import draw

SHIFT = 16.0
"""The same schedule destroys 16 times as much of a 16x16 latent as of SD's 64x64: the SNR is raised by that."""


def schedule() -> DDIMScheduler:
    """SD1.5's scaled-linear schedule with its SNR times SHIFT at every t."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    abar = torch.cumprod(1 - betas, 0)
    abar = SHIFT * abar / (1 - abar + SHIFT * abar)
    shifted = 1 - abar / torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])
    return DDIMScheduler(trained_betas=shifted.tolist(), clip_sample=False, set_alpha_to_one=False, steps_offset=1)


def build(width: int) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, block_out_channels=(64, 96, 128), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=width, attention_head_dim=4, norm_num_groups=16,
    )  # fmt: skip


def encoded(args: argparse.Namespace, vae: AutoencoderKL) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Posterior means and standard deviations `(N, 4, 16, 16)` half of the corpus, kept on disk, and its captions."""
    path, chunk = args.out / "corpus.pt", 250
    pictures, captions, _ = draw(args.count, seed=2, source=args.photos)
    if not path.exists():
        means, stds = [], []
        for i in tqdm(range(0, len(pictures), chunk), "encode", mininterval=10):
            x = torch.from_numpy(pictures[i : i + chunk]).permute(0, 3, 1, 2).float() / 127.5 - 1
            with torch.no_grad():
                posterior = vae.encode(x).latent_dist
            means.append(posterior.mean.half())
            stds.append(posterior.std.half())
        torch.save((torch.cat(means), torch.cat(stds)), path)
    return *torch.load(path, weights_only=True), captions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/pilot"))
    parser.add_argument("--photos", help="folder of Fashion-MNIST's idx files; default: the embedded part")
    parser.add_argument("--count", type=int, default=60000)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=32)
    args = parser.parse_args()
    vae = AutoencoderKL.from_pretrained(args.out / "vae").eval()
    text = CLIPTextModel.from_pretrained(args.out / "text_encoder").eval()
    tok = CLIPTokenizer.from_pretrained(args.out / "tokenizer")
    mean, std, captions = encoded(args, vae)
    unique, index = np.unique([*captions, ""], return_inverse=True)
    with torch.no_grad():
        ids = tok(unique.tolist(), padding="max_length", truncation=True, return_tensors="pt").input_ids
        hidden = text(input_ids=ids).last_hidden_state
    index, empty = torch.from_numpy(index[:-1]), int(index[-1])
    scheduler, unet = schedule(), build(text.config.hidden_size)

    def loss(step: int, generator: torch.Generator) -> torch.Tensor:
        which = torch.randint(len(mean), (args.batch,), generator=generator)
        drawn = mean[which].float() + std[which].float() * torch.randn((args.batch, 4, 16, 16), generator=generator)
        x0 = drawn * vae.config.scaling_factor
        noise = torch.randn(x0.shape, generator=generator)
        t = torch.randint(1000, (args.batch,), generator=generator)
        late = torch.rand(args.batch, generator=generator) < 0.5  # half of the steps where the words decide
        t = torch.where(late, 500 + t // 2, t)
        words = torch.where(torch.rand(args.batch, generator=generator) < 0.1, empty, index[which])
        guess = unet(scheduler.add_noise(x0, noise, t), t, hidden[words]).sample
        return (guess - noise).square().mean()

    run("unet", {"unet": unet}, loss, steps=args.steps, lr=1e-3, out=args.out, ema=0.995)
    pipe = StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=tok, unet=unet, scheduler=scheduler, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    shutil.rmtree(args.out / "pipeline", ignore_errors=True)
    pipe.to(dtype=torch.float16).save_pretrained(args.out / "pipeline", safe_serialization=True)


if __name__ == "__main__":
    main()
