"""Stable Diffusion 1.5's whole architecture, weights drawn at random, through onbrand on this machine: time and memory.

python benchmarks/sd15.py [--width 1] [--out sd15.json]

One step of a LoRA, one step of a ControlNet, each in full arithmetic and in bfloat16, and one image of 2 steps, at
512x512, each in a process of its own, with the fit that comes before.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel

from onbrand.api._memory import peak_memory
from onbrand.core.fit import Fitter
from onbrand.core.prior import Prior, Provenance
from onbrand.data.encode import encode_all
from onbrand.data.latents import Key, Store
from onbrand.data.records import read_folder
from onbrand.models import pipeline
from onbrand.models.controlnet import new_controlnet
from onbrand.options.generate import SamplingSettings
from onbrand.options.train import TrainSettings
from onbrand.sampling.requests import Request
from onbrand.sampling.sampler import sample
from onbrand.training.loop import train

PARTS = {
    "LoRA, one step": ("lora", "no"), "LoRA, one step, bfloat16": ("lora", "bf16"),
    "ControlNet, one step": ("controlnet", "no"), "ControlNet, one step, bfloat16": ("controlnet", "bf16"),
    "an image of 2 steps": ("generate", "no"),
}  # fmt: skip


def wide(width: float, *channels: int) -> tuple[int, ...]:
    """Channels times a width, in groups of eight."""
    return tuple(round(width * count / 8) * 8 for count in channels)


def unet15(width: float = 1.0) -> UNet2DConditionModel:
    """The UNet of stable-diffusion-v1-5, its channels times `width`."""
    return UNet2DConditionModel(
        sample_size=64, block_out_channels=wide(width, 320, 640, 1280, 1280), layers_per_block=2, attention_head_dim=8,
        cross_attention_dim=words_of(width), norm_num_groups=32 if width == 1 else 8,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    )  # fmt: skip


def words_of(width: float) -> int:
    """Width of the text encoder: 12 heads of it."""
    return round(width * 64) * 12


def sd15(width: float = 1.0) -> StableDiffusionPipeline:
    """The configuration of stable-diffusion-v1-5, its channels times `width`, random weights.

    The tokenizer is the shipped model's, of fewer words: SD1.5's own is not to be had without a network.
    """
    tokenizer = pipeline.load("tiny").tokenizer
    tokenizer.model_max_length = 77
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = unet15(width)
        vae = AutoencoderKL(
            sample_size=512, block_out_channels=wide(width, 128, 256, 512, 512), layers_per_block=2,
            latent_channels=4, norm_num_groups=32 if width == 1 else 8, scaling_factor=0.18215,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        )  # fmt: skip
        words = CLIPTextModel(CLIPTextConfig(
            vocab_size=49408, hidden_size=unet.config.cross_attention_dim, intermediate_size=4 * words_of(width),
            projection_dim=768, num_hidden_layers=12, num_attention_heads=12, max_position_embeddings=77,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        ))  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip
    pipe = StableDiffusionPipeline(
        vae=vae.eval(), text_encoder=words.eval(), tokenizer=tokenizer, unet=unet.eval(), scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def laid(pipe: StableDiffusionPipeline, folder: Path, side: int, count: int = 2) -> tuple[list, Store, Prior]:
    """Images with control images, as grainy as photos, their latents, and a prior of their mean."""
    (folder / "cut").mkdir(parents=True)
    rows = []
    for i in range(count):
        cut = Image.new("RGBA", (side, side))
        cut.paste((200, 40 + 90 * i % 216, 60), (side // 4, side // 8, side // 2, side // 2))
        cut.save(folder / "cut" / f"{i}.png")
        photo = Image.alpha_composite(Image.new("RGBA", cut.size, "white"), cut).convert("RGB")
        Image.blend(photo, Image.effect_noise(cut.size, 64).convert("RGB"), 0.1).save(folder / f"{i}.png")
        row = {"file_name": f"{i}.png", "text": f"a shirt {i}", "class": "shirt"}
        rows.append(json.dumps(row | {"conditioning_file_name": f"cut/{i}.png"}))
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    records, _ = read_folder(folder)
    store = Store(folder.parent / "latents", Key(pipeline.fingerprint(pipe.vae), (side, side)))
    encode_all(records, lambda x: pipeline.encode(pipe, x), store, progress=False, batch=1)
    means = pipeline.to_x0(pipe, store.get(store.look_up(records).keys)[0])
    fitter = Fitter(means.shape[1:])
    fitter.update(means, ["shirt"] * len(means))
    told = Provenance(store.key.vae, pipe.vae.config.scaling_factor, 0.0, (side, side), "", False, (255, 255, 255))
    return records, store, Prior(fitter.finish(), told)


def do(part: str, width: float, side: int, folder: Path) -> dict[str, float]:
    """One part's "seconds" (of the step or the image) and "peak_memory_gb", "parameters" of the UNet, and how many
    are "learned"."""
    method, precision = PARTS[part]
    pipe = sd15(width)
    count = sum(weight.numel() for weight in pipe.unet.parameters())
    records, store, prior = laid(pipe, folder / "images", side)
    told: dict[str, float] = {"parameters": count}
    if method == "generate":
        begin = time.perf_counter()
        config = SamplingSettings(start="mean", look_ahead=0, num_inference_steps=2, guidance_scale=7.5)
        (image,) = sample(pipe, prior, [Request("a shirt 0", 0)], config)
        assert image.image.size == (side, side)
        return told | {"seconds": time.perf_counter() - begin, **peak_memory(pipe.device)}
    if method == "controlnet":
        pipe = new_controlnet(pipe)
    config = TrainSettings(
        start="mean", max_train_steps=1, train_batch_size=1, method=method, mixed_precision=precision
    )
    steps = train(pipe, records, store, prior, config, folder / "run")
    step = next(steps)
    told |= {"learned": sum(weight.numel() for weight in pipe.unet.parameters() if weight.requires_grad)}
    if method == "controlnet":
        told |= {"learned": sum(weight.numel() for weight in pipe.controlnet.parameters())}
    steps.close()
    return told | {"seconds": step.seconds, **peak_memory(pipe.device)}


def measure(
    script: str,
    doc: str | None,
    parts: Iterable[str],
    do: Callable[[str, float, int, Path], dict[str, float]],
    side: int,
) -> None:
    """The command line of a benchmark: each part in a process of its own, its figures printed and written.

    script, doc: the benchmark's file and its words; do: called as `do(part, width, side, folder)`; side: the images'.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--side", type=int, default=side)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(do(args.part, args.width, args.side, Path(folder))))
        return
    results = {}
    for part in parts:
        command = [sys.executable, script, "--part", part, "--width", str(args.width), "--side", str(args.side)]
        process = subprocess.run(command, capture_output=True, text=True)
        if process.returncode:
            raise SystemExit(f"{part}: {process.stderr[-2000:]}")
        results[part] = result = json.loads(process.stdout.strip().splitlines()[-1])
        learned = f", {result['learned'] / 1e6:.1f} M learn" if "learned" in result else ""
        print(f"{part}: {result['seconds']:.1f} s, {result['peak_memory_gb']:.1f} GB at most{learned}", flush=True)
        if args.out:
            args.out.write_text(json.dumps(results, indent=1) + "\n")
    print(f"UNet of {result['parameters'] / 1e6:.0f} M parameters, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    measure(__file__, __doc__, PARTS, do, side=512)
