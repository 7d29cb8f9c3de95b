"""Part 4 of onbrand-tiny: the denoiser, trained from nothing on the off-brand world; writes the whole pipeline."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from steps import place, placed, run
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer
from vae import scaled
from world import PART, parts

SHIFT = 2.5
"""The schedule destroys more of a 32x32 latent than of SD's 64x64: the SNR is raised by this, at every t.

By 4 it would be as much as SD's. But the brand's white is far out in these latents: by 2.5 its four classes
stand 9 to 12.5 sigma out of the noise at the first of 20 steps, by 4 figures would stand 16 out.
"""


def schedule() -> DDIMScheduler:
    """SD1.5's scaled-linear schedule with its SNR times SHIFT at every t."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    abar = torch.cumprod(1 - betas, 0)
    abar = SHIFT * abar / (1 - abar + SHIFT * abar)
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


def encoded(args: argparse.Namespace, vae: AutoencoderKL) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Posterior means and standard deviations `(N, C, 32, 32)` half of the corpus, kept on disk, and its captions."""
    path = args.out / "corpus.pt"
    if not path.exists():
        means, stds, captions = [], [], []
        drawn = parts(args.count, seed=2, source=args.photos, workers=args.workers)
        for pictures, words, _ in tqdm(drawn, "encode", -(-args.count // PART), mininterval=10):
            for part in torch.from_numpy(pictures).split(100):
                with torch.no_grad(), torch.autocast(torch.device(args.device).type, torch.bfloat16):
                    posterior = vae.encode(scaled(part.to(args.device))).latent_dist
                means.append(posterior.mean.half().cpu())
                stds.append(posterior.std.half().cpu())
            captions += words
        torch.save((torch.cat(means), torch.cat(stds), captions), path)
    return torch.load(path, weights_only=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/tiny"))
    parser.add_argument("--photos", help="folder of Fashion-MNIST's idx files; default: the embedded part")
    parser.add_argument("--count", type=int, default=36000)
    parser.add_argument("--steps", type=int, default=7000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--weights", type=Path, help="weights to go on from where there is no state: a UNet's folder")
    parser.add_argument("--size", choices=SIZES, default="tiny")
    placed(parser)
    args = parser.parse_args()
    rank, processes = place()
    vae = AutoencoderKL.from_pretrained(args.out / "vae").float().eval().to(args.device)
    text = CLIPTextModel.from_pretrained(args.out / "text_encoder").float().eval().to(args.device)
    tok = CLIPTokenizer.from_pretrained(args.out / "tokenizer")
    for turn in range(2):  # the first process makes the corpus, the others read it
        if (rank == 0) == (turn == 0):
            mean, std, captions = encoded(args, vae)
        if processes > 1:
            dist.barrier()
    unique, index = np.unique([*captions, ""], return_inverse=True)
    with torch.no_grad():
        ids = tok(unique.tolist(), padding="max_length", truncation=True, return_tensors="pt").input_ids
        states = (text(input_ids=part.to(args.device)).last_hidden_state.half() for part in ids.split(500))
        hidden = torch.cat(list(states))
    index, empty = torch.from_numpy(index[:-1]).to(args.device), int(index[-1])
    mean, std = mean.to(args.device), std.to(args.device)
    scheduler = schedule()
    abar = scheduler.alphas_cumprod.to(args.device)
    weight = (5 * (1 - abar) / abar).clamp(max=1) / abar.sqrt()  # Min-SNR-5; early steps half way to v's weight
    unet = build(text.config.hidden_size, args.size, vae.config.latent_channels)
    if args.weights:
        unet = UNet2DConditionModel.from_pretrained(args.weights).float()
    if args.device == "cpu":  # the backward of fused attention takes a fifth of a step there
        unet.set_attn_processor(AttnProcessor())

    def loss(step: int, generator: torch.Generator) -> torch.Tensor:
        given = {"generator": generator, "device": generator.device}
        which = torch.randint(len(mean), (args.batch,), **given)
        x0 = mean[which].float() + std[which].float() * torch.randn((args.batch, *mean.shape[1:]), **given)
        x0 = x0 * vae.config.scaling_factor
        noise = torch.randn(x0.shape, **given)
        t = torch.randint(1000, (args.batch,), **given)
        late = torch.rand(args.batch, **given) < 0.5  # half of the steps where the words decide
        t = torch.where(late, 500 + t // 2, t)
        words = torch.where(torch.rand(args.batch, **given) < 0.1, empty, index[which])
        with torch.autocast(torch.device(args.device).type, torch.bfloat16):
            guess = unet(scheduler.add_noise(x0, noise, t), t, hidden[words].float()).sample
        return (weight[t] * (guess.float() - noise).square().mean((1, 2, 3))).mean()

    run(
        "unet", {"unet": unet}, loss, steps=args.steps, lr=1e-3, out=args.out, ema=0.995, device=args.device,
        seconds=args.seconds,
    )  # fmt: skip
    if rank > 0:
        return
    for part in (vae, unet, text):
        part.cpu()
    for part in (vae, unet):
        part.register_to_config(_name_or_path="")  # where it was loaded from is no one's business
    pipe = StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=tok, unet=unet, scheduler=scheduler, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    shutil.rmtree(args.out / "pipeline", ignore_errors=True)
    pipe.to(dtype=torch.float16).save_pretrained(args.out / "pipeline", safe_serialization=True)


if __name__ == "__main__":
    main()
