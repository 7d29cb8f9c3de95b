"""What the method costs: a training step with offset over one without, and the start over a 20-step generation.

python benchmarks/step.py [--model MODEL] [--pairs 60] [--batch 16] [--out step.json]

The steps are taken in turn within one process, in an order that is reversed every time, on the same images, noise and
timesteps; a second run without offset is the control, and shows what the machine's own unrest is.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from onbrand.core.fit import Fitter
from onbrand.core.prior import Prior, Provenance
from onbrand.data.encode import encode_all
from onbrand.data.latents import Key, Store
from onbrand.data.records import read_folder
from onbrand.models.pipeline import encode, fingerprint, load, to_x0
from onbrand.options.generate import SamplingSettings
from onbrand.options.train import TrainSettings
from onbrand.sampling.requests import Request
from onbrand.sampling.sampler import sample
from onbrand.sampling.start import start
from onbrand.training.loop import train

RUNS = {"none": ("noise", "window"), "control": ("noise", "window"), "window": ("mean", "window")}
RUNS |= {"constant": ("mean", "constant"), "pca": ("pca", "window")}
WARM = 3


def images(folder: Path, side: int, count: int = 64) -> None:
    """Plain rectangles on white, with captions: what is on them costs nothing."""
    rows = []
    draw = random.Random(0)
    for i in range(count):
        image = Image.new("RGB", (side, side), "white")
        box = sorted(draw.sample(range(side), 2)) + sorted(draw.sample(range(side), 2))
        image.paste(tuple(draw.randrange(256) for _ in range(3)), (box[0], box[2], box[1], box[3]))
        image.save(folder / f"{i:03d}.png")
        rows.append(json.dumps({"file_name": f"{i:03d}.png", "text": f"a rectangle {i % 8}", "class": "rectangle"}))
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n")


def interval(values: list[float], draws: int = 2000) -> tuple[float, float, float]:
    """(median, 2.5 %, 97.5 %) of the median, by bootstrap."""
    chance = random.Random(0)
    medians = sorted(statistics.median(chance.choices(values, k=len(values))) for _ in range(draws))
    return statistics.median(values), medians[int(0.025 * draws)], medians[int(0.975 * draws)]


def measure(model: str, pairs: int, batch: int, device: str) -> dict[str, object]:
    """{"ratio": {run: [median, low, high]}, "seconds": {run: median}, "start": {kind: share of a generation},
    "look": {looks: [median, low, high] of times a generation without}}."""
    pipe = load(model, device)
    side = pipe.unet.config.sample_size * 2 ** (len(pipe.vae.config.block_out_channels) - 1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images(folder, side)
        records, _ = read_folder(folder)
        store = Store(folder / "latents", Key(fingerprint(pipe.vae), (side, side)))
        found = encode_all(records, lambda pixels: encode(pipe, pixels), store, progress=False)
        x0 = to_x0(pipe, store.get(found.keys)[0])
        fitter = Fitter(x0.shape[1:], k=3)
        fitter.update(x0, ["rectangle"] * len(x0))
        shift = float(pipe.vae.config.shift_factor or 0.0)
        origin = Provenance(
            fingerprint(pipe.vae), pipe.vae.config.scaling_factor, shift, (side, side), model, False, (255, 255, 255)
        )
        prior = Prior(fitter.finish(), origin)
        runs = {}
        for run, (kind, gain) in RUNS.items():
            config = TrainSettings(
                start=kind, gain=gain, max_train_steps=10**6, train_batch_size=batch, mixed_precision="no"
            )
            runs[run] = train(copy.deepcopy(pipe), records, store, prior, config, folder / "runs" / run)
        seconds: dict[str, list[float]] = {run: [] for run in runs}
        for pair in range(WARM + pairs):
            order = list(runs) if pair % 2 else list(reversed(runs))
            for run in order:
                step = next(runs[run])
                if pair >= WARM:
                    seconds[run].append(step.seconds)
    ratio = {
        run: interval([one / plain for one, plain in zip(seconds[run], seconds["none"], strict=True)])
        for run in RUNS
        if run != "none"
    }
    medians = {run: statistics.median(values) for run, values in seconds.items()}
    return {"ratio": ratio, "seconds": medians, "start": starts(pipe, prior), "look": looks(pipe, prior)}


def starts(pipe: object, prior: Prior, repeats: int = 5) -> dict[str, float]:
    """Share of a 20-step generation of 4 images that the start takes, medians."""
    prompts, times = ["a rectangle 1"] * 4, {"mean": [], "pca": [], "generation": []}  # type: ignore[var-annotated]
    for _ in range(repeats):
        for kind in ("mean", "pca"):
            begin = time.perf_counter()
            latents = start(pipe, prior, prompts, seeds=range(4), classes="rectangle", start=kind, look_ahead=0)  # type: ignore[arg-type]
            times[kind].append(time.perf_counter() - begin)
        begin = time.perf_counter()
        pipe(prompts, latents=latents, num_inference_steps=20)  # type: ignore[operator]
        times["generation"].append(time.perf_counter() - begin)
    whole = statistics.median(times.pop("generation"))
    return {kind: statistics.median(values) / whole for kind, values in times.items()}


def looks(pipe: StableDiffusionPipeline, prior: Prior, repeats: int = 15) -> dict[str, tuple[float, float, float]]:
    """How many times as long a guided 20-step generation of 8 images takes with 1, 2 and 4 looks ahead as without."""
    requests = [Request(f"a rectangle {seed}", seed, "rectangle") for seed in range(8)]
    seconds: dict[int, list[float]] = {number: [] for number in (0, 1, 2, 4)}
    for turn in range(repeats + 1):
        for number in seconds if turn % 2 else reversed(seconds):
            begin = time.perf_counter()
            list(sample(pipe, prior, requests, SamplingSettings(start="mean", look_ahead=number)))
            if turn:
                seconds[number].append(time.perf_counter() - begin)
    return {
        str(number): interval([one / none for one, none in zip(seconds[number], seconds[0], strict=True)])
        for number in (1, 2, 4)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", help="also write the numbers here, as JSON")
    given = parser.parse_args()
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    result = measure(given.model, given.pairs, given.batch, given.device)
    result |= {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "pairs": given.pairs,
        "batch": given.batch,
    }
    for run, (median, low, high) in result["ratio"].items():  # type: ignore[attr-defined]
        print(f"step, {run:9} over none: {median:.4f}  (95 % of medians {low:.4f} to {high:.4f})")
    for kind, share in result["start"].items():  # type: ignore[attr-defined]
        print(f"start, {kind:9} of a 20-step generation: {100 * share:.2f} %")
    for number, (median, low, high) in result["look"].items():  # type: ignore[attr-defined]
        calls = 1 + int(number) / 20
        print(f"look, {number:9} over none: {median:.4f}  (95 % of medians {low:.4f} to {high:.4f}), calls {calls:.2f}")
    if given.out:
        Path(given.out).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
