"""Three lines of onbrand in somebody else's training loop: the usual diffusers recipe, and nothing else of onbrand's.

    python examples/foreign_loop.py photos/ brand/prior.safetensors tuned/ --model MODEL --max_train_steps 200

The prior is what `onbrand fit` wrote for this model. tuned/ loads in any diffusers pipeline; start it from the prior.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from torch.nn.functional import mse_loss
from tqdm import tqdm

from datasets import load_dataset
from onbrand.core import Prior, constant, matched_noise  # 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="images of the model's size, metadata.jsonl: file_name, text, class")
    parser.add_argument("prior", type=Path)
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--model", required=True, help="a folder in diffusers' layout, or a Hub id")
    parser.add_argument("--max_train_steps", type=int, default=200)
    parser.add_argument("--learning_rate", type=float, default=1e-5)
    given = parser.parse_args()

    torch.manual_seed(0)
    pipe = StableDiffusionPipeline.from_pretrained(given.model, dtype=torch.float32, safety_checker=None)
    photos = load_dataset("imagefolder", data_dir=str(given.photos), split="train")
    optimizer = torch.optim.AdamW(pipe.unet.parameters(), lr=given.learning_rate)
    prior, gain = Prior.load(given.prior), constant(pipe.scheduler, 951)  # 2: sampling will start at timestep 951

    for _ in tqdm(range(given.max_train_steps), "train", unit=" steps"):
        rows = photos[torch.randint(len(photos), (16,)).tolist()]
        pixels = torch.stack([torch.from_numpy(np.array(image.convert("RGB"))) for image in rows["image"]])
        with torch.no_grad():
            latents = pipe.vae.encode(pixels.permute(0, 3, 1, 2) / 127.5 - 1).latent_dist.sample()
            latents = latents * pipe.vae.config.scaling_factor
            tokens = pipe.tokenizer(rows["text"], padding="max_length", truncation=True, return_tensors="pt")
            hidden = pipe.text_encoder(tokens.input_ids).last_hidden_state
        noise, timesteps = torch.randn_like(latents), torch.randint(1000, (len(latents),))
        noise = matched_noise(noise, latents, prior.mean(rows["class"]), gain[timesteps])  # 3
        noisy = pipe.scheduler.add_noise(latents, noise, timesteps)
        loss = mse_loss(pipe.unet(noisy, timesteps, hidden).sample, noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    pipe.save_pretrained(given.output_dir)


if __name__ == "__main__":
    main()
