"""Aspect-ratio buckets on the catalogue in four ratios: own statistics against the square mean, stretched.

    python research/buckets.py [--out runs/buckets]

Prints the table of docs/research/log.md; some 20 minutes on one core, resumable. Each image stands on a background of
one of four ratios in turn. The same LoRA is trained twice, started from each bucket's own mean and from the mean of the
square bucket, resampled to the bucket's size; both draw the same requests, judged by the photos of their bucket.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from demo import asked
from onbrand import api
from onbrand.core import Gaussian, Prior
from onbrand.core.prior import joined, save_all
from onbrand.data.latents import FOLDER as LATENTS
from onbrand.data.latents import iterate
from onbrand.data.records import open_folder
from onbrand.datasets.folder import write_dataset
from onbrand.datasets.garments import garments
from onbrand.evaluation.statistics import mean
from onbrand.models import fitting, pipeline
from onbrand.models.scheduler import schedule_of, set_steps

Size = tuple[int, int]
RATIOS = ((1, 1), (4, 3), (3, 2), (2, 3))
"""Height to width."""
BRANDS = ("own", "stretched")
MANY = 96
"""Requests of each ratio."""
TRAINING = {
    "method": "lora", "rank": 8, "learning_rate": 3e-3, "max_train_steps": 300, "train_batch_size": 16,
    "ema_decay": 0.98, "mixed_precision": "bf16", "start": "mean",
}  # fmt: skip
"""As the results' LoRA."""


def framed(image: np.ndarray, ratio: Size) -> np.ndarray:
    """The image (H, W, 3) in the middle of a background of a ratio."""
    height, width = image.shape[:2]
    sides = max(height, width * ratio[0] // ratio[1]), max(width, height * ratio[1] // ratio[0])
    canvas = np.full((*sides, 3), 255, np.uint8)
    top, left = (sides[0] - height) // 2, (sides[1] - width) // 2
    canvas[top : top + height, left : left + width] = image
    return canvas


def write_photos(folder: Path) -> None:
    """The training split, each pair of images in one of the four ratios."""
    images, rows = garments("train")
    entries = [{"file_name": f"{i:05d}.png", "text": row["text"], "class": row["class"]} for i, row in enumerate(rows)]
    by_name = {
        entry["file_name"]: partial(framed, images[i], RATIOS[i // 2 % len(RATIOS)]) for i, entry in enumerate(entries)
    }
    write_dataset(folder, by_name, entries)


def stretched(prior: Prior) -> Prior:
    """The brand with the square bucket's Gaussians in every bucket, their means resampled."""
    square = prior.at((128, 128))
    priors = []
    for one in prior.all:
        gaussians = {}
        for name in one.classes:
            centre = interpolate(square.mean(name), one.shape[1:], mode="bilinear", antialias=True)[0]
            d = centre.numel()
            own = one.gaussians[name]
            gaussians[name] = Gaussian(centre, torch.zeros(0, d), torch.zeros(0), total=own.total, count=own.count)
        priors.append(replace(one, gaussians=gaussians, text={}, buckets={}))
    return joined(priors)


def nats(out: Path, prior: Prior, abar: float) -> dict[Size, dict[str, float]]:
    """How far the means of half the photos are from the other half's, at the first timestep, by bucket."""
    halves: dict[tuple[Size, str], list[Tensor]] = {}
    pipe = pipeline.load("tiny")
    photos = open_folder(out / "photos")
    for size, own in fitting.buckets_of(pipe, photos, (128, 128), 16).items():
        store, summary = fitting.encode_photos(pipe, own, out / "own" / LATENTS, size, False)
        for name in prior.at(size).classes:
            records = [record for record in summary.used if record.class_name == name]
            x0 = torch.cat([pipeline.to_x0(pipe, mean_of) for mean_of, *_ in iterate(store, records)])
            halves[size, name] = [x0[0::2].mean(0), x0[1::2].mean(0)]
    found = {}
    for one in prior.all:
        offs: dict[str, list[float]] = {brand: [] for brand in BRANDS}
        for name in one.classes:
            fitted, truth = halves[one.size, name]
            square = interpolate(halves[(128, 128), name][0][None], truth.shape[1:], mode="bilinear", antialias=True)[0]
            for brand, centre in zip(BRANDS, (fitted, square), strict=True):
                offs[brand].append(abar / (1 - abar) * float((centre - truth).square().sum()) / 2)
        found[one.size] = {brand: sum(values) / len(values) for brand, values in offs.items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/buckets"))
    out = parser.parse_args().out
    write_photos(out / "photos")
    if not (out / "own" / "prior.safetensors").exists():
        api.fit(out / "photos", "tiny", out / "own", enable_bucket=True, bucket_reso_steps=16)
    prior = Prior.load(out / "own")
    if not (out / "stretched" / "prior.safetensors").exists():
        save_all(stretched(prior), out / "stretched")
        (out / "stretched" / LATENTS).symlink_to((out / "own" / LATENTS).resolve())
    sizes = [one.size for one in prior.all]
    rows = [
        {name: row[name] for name in ("prompt", "class")} | {"seed": i, "height": height, "width": width}
        for height, width in sizes
        for i, row in enumerate(asked(MANY // 48))
    ]
    (out / "requests.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    passes: dict[str, Tensor] = {}
    for brand in BRANDS:
        api.train(out / "photos", "tiny", out / f"run-{brand}", prior=out / brand, **TRAINING)
        drawn = out / f"images-{brand}"
        api.generate(
            prompts=out / "requests.jsonl", model=out / f"run-{brand}", output_dir=drawn, guidance_scale=1.5,
            batch_size=24,
        )  # fmt: skip
        content = api.check(drawn, out / "photos", prior=out / "own").content
        passes[brand] = torch.tensor([float("background" not in entry["failed"]) for entry in content["images"]])
    schedule = schedule_of(set_steps(pipeline.load("tiny").scheduler, 20))
    off = nats(out, prior, schedule.abar)
    print(f"\nabar {schedule.abar:.4g}, {MANY} images a cell\n")
    print("| bucket | photos a class | off by, nats: own | stretched | background: own | stretched |")
    print("|---|--:|--:|--:|--:|--:|")
    for number, size in enumerate(sizes):
        counts = [gaussian.count for gaussian in prior.at(size).gaussians.values()]
        cells = [f"{size[0]}x{size[1]}", f"{min(counts)} to {max(counts)}"]
        cells += [f"{off[size][brand]:.2f}" for brand in BRANDS]
        for brand in BRANDS:
            rate = mean(passes[brand][number * MANY : (number + 1) * MANY])
            cells.append(f"{rate.value:.2f} ({rate.low:.2f} to {rate.high:.2f})".replace("0.", "."))
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
