"""A million images on paper: hours of each part by number of GPUs, from the records of benchmarks/results.

python benchmarks/million.py [--images 1000000] [--gpus 1 8 64]

Nothing is measured here: hours are images over the best rate of the records, as if N GPUs, a process each, were N times
as fast. What was not measured is said to be so. Beside it, what users report of other programs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpu_page import RESULTS, table

REPORTS = (
    ("kohya-ss/sd-scripts#19", "latents of 100,000 images, mirrored too, an RTX 3090: 2.6 a second", 1e6 / 2.6 / 3600),
    ("Nerogar/OneTrainer#526", "a million to latents in three passes: 55, 65, 110 a second",
     sum(1e6 / rate / 3600 for rate in (55, 65, 110))),
    ("huggingface/datasets#6590", "latents and text of three million for SDXL: two days", 48 / 3),
)  # fmt: skip
"""Thread; what it says; hours for a million. (kohya-ss/sd-scripts#1271: one process alone caches, before PR 1690.)"""
PARTS = {
    "encode": "encode/", "train, all weights, once over all": "training/full", "train a LoRA, once over all":
    "training/lora", "generate as many": "generate/",
}  # fmt: skip
"""What is shared by GPUs -> how its entries are called in a GPU's record."""
FITS = {"fit, K = 0": "k = 0", "fit, K = 16": "k = 16", "fit again, from the sums": "k = 0 from sums"}
"""What one process does on the CPU -> its rate in a record of fit.py."""


def project(folder: Path, images: int, gpus: Sequence[int]) -> str:
    """The tables, Markdown."""
    rows = []
    records = {kind: [json.loads(file.read_text()) for file in sorted(folder.glob(f"{kind}-*.json"))]
               for kind in ("gpu", "fit")}  # fmt: skip
    for words, name in PARTS.items():
        rates = [
            (entry["images_a_second"]["onbrand"][0], f"{record['machine']['device']}, {key}")
            for record in records["gpu"]
            if not record["machine"]["small"]
            for key, entry in record["entries"].items()
            if key.startswith(name)
        ]
        rows.append(_row(words, rates, images, gpus))
    for words, name in FITS.items():
        rates = [(record["rates"][name]["median"], _about(record)) for record in records["fit"] if "rates" in record]
        rows.append(_row(words, rates, images, [1] * len(gpus)))
    heads = [f"{number} GPU{'s' if number > 1 else ''}, hours" for number in gpus]
    reports = [[thread, words, f"{hours * images / 1e6:.0f}"] for thread, words, hours in REPORTS]
    return "\n".join([
        f"{images:,} images\n", table(["", "a second", *heads, "measured on"], rows),
        table(["others, one process", "reported", "hours"], reports),
    ])  # fmt: skip


def _row(words: str, rates: Sequence[tuple[float, str]], images: int, gpus: Sequence[int]) -> list[str]:
    if not rates:
        return [words, "not measured", *[""] * len(gpus), ""]
    rate, place = max(rates)
    return [words, f"{rate:,.0f}", *(f"{images / rate / number / 3600:.3g}" for number in gpus), place]


def _about(record: dict[str, Any]) -> str:
    return f"{record['threads']} threads, latents of {'x'.join(map(str, record['shape']))}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--gpus", type=int, nargs="+", default=(1, 8, 64))
    args = parser.parse_args()
    print(project(RESULTS, args.images, args.gpus))


if __name__ == "__main__":
    main()
