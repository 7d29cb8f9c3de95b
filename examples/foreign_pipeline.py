"""Two lines of onbrand in somebody else's generation: diffusers' own pipeline, started from the brand's prior.

    python examples/foreign_pipeline.py brand/prior.safetensors images/ --model MODEL

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
"""Each begins with the name of its class of image, as the captions that the prior was fitted to do."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prior", type=Path)
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--model", required=True, help="a folder in diffusers' layout, or a Hub id")
    parser.add_argument("--start", default="text", choices=("mean", "text"))
    parser.add_argument("--num_inference_steps", type=int, default=20)
    parser.add_argument("--guidance_scale", type=float, default=7.5)
    given = parser.parse_args()

    pipe = StableDiffusionPipeline.from_pretrained(given.model, dtype=torch.float32, safety_checker=None)
    prior, seeds = Prior.load(given.prior), range(len(PROMPTS))
    call = {"num_inference_steps": given.num_inference_steps, "guidance_scale": given.guidance_scale}
    latents = onbrand.start(pipe, prior, PROMPTS, start=given.start, seeds=seeds, **call)
    made = pipe(PROMPTS, latents=latents, **call)

    given.output_dir.mkdir(parents=True, exist_ok=True)
    for seed, image in zip(seeds, made.images, strict=True):
        image.save(given.output_dir / f"{seed:05d}.png")
    print(f"wrote {len(PROMPTS)} images to {given.output_dir}")


if __name__ == "__main__":
    main()
