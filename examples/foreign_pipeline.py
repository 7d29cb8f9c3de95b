"""Two lines of onbrand in somebody else's generation: diffusers' own pipeline, started from the brand's prior.

    python examples/foreign_pipeline.py brand/prior.safetensors pictures/ --model MODEL

MODEL is the checkpoint that the prior was fitted with, or one fine-tuned from it with the same VAE.
"""

import argparse
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

import onbrand
from onbrand.core import Prior

PROMPTS = [
    "female person wearing garment, a red knee-length dress",
    "female garment, no person, white background, a red knee-length dress",
    "male person wearing garment, blue trousers",
]
"""Each begins with the name of its kind of picture, as the captions that the prior was fitted to do."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prior", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", required=True, help="a folder in diffusers' layout, or a Hub id")
    parser.add_argument("--start", default="text", choices=("mean", "text"))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=7.5)
    given = parser.parse_args()

    pipe = StableDiffusionPipeline.from_pretrained(given.model, dtype=torch.float32, safety_checker=None)
    prior, seeds = Prior.load(given.prior), range(len(PROMPTS))
    call = {"num_inference_steps": given.steps, "guidance_scale": given.guidance}
    latents = onbrand.start(pipe, prior, PROMPTS, kind=given.start, seeds=seeds, **call)
    made = pipe(PROMPTS, latents=latents, **call)

    given.out.mkdir(parents=True, exist_ok=True)
    for seed, picture in zip(seeds, made.images, strict=True):
        picture.save(given.out / f"{seed:05d}.png")
    print(f"wrote {len(PROMPTS)} pictures to {given.out}")


if __name__ == "__main__":
    main()
