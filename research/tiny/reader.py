"""The reader of garments: kind, colour, print ... off real pictures only; its score on held-out ones is the truth."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from steps import run
from torch.nn import functional as F
from world import GROUNDS, ground, paste, sources

from onbrand.datasets.garments import VALUES, garments
from onbrand.evaluation.text import AttributeClassifier

READ = ("kind", "colour", "second_colour", "print", "length", "sleeve", "gender")
LABELS = {"view": ["garment", "figure"]} | {name: list(VALUES[name]) for name in READ}
"""What is read; neckline and fit are a pixel or two of a figure's picture, and skin is no part of a garment."""
COPIES = 4
"""How often each garment and figure of the train split is seen on other grounds, beside as it is."""


def indices(rows: list[dict[str, str]]) -> torch.Tensor:
    """`(N, attributes)` of rows' truth as indices of LABELS."""
    return torch.tensor([[labels.index(row[name]) for name, labels in LABELS.items()] for row in rows])


def real(copies: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The train split, and `copies` of each of its cut-outs on other grounds and places; pictures and labels."""
    pictures, rows = garments("train")
    cuts, out = sources(), [pictures]
    for copy in range(copies):
        elsewhere = np.empty_like(pictures)
        for i, tile in enumerate(cuts.tiles):
            rng = np.random.default_rng([seed, copy, i])
            name = "white" if rng.random() < 0.3 else str(rng.choice(list(GROUNDS)))
            elsewhere[i] = np.clip(paste(tile, ground(rng, name), rng) + 0.5, 0, 255)
        out.append(elsewhere)
    return torch.from_numpy(np.concatenate(out)), indices(rows).repeat(copies + 1, 1)


def scores(reader: AttributeClassifier, split: str) -> dict[str, float]:
    """Share of pictures of a split read right: each attribute, and all of them."""
    pictures, rows = garments(split)
    read = reader.read(torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255)
    right = {name: np.array([row[name] == got for row, got in zip(rows, read[name], strict=True)]) for name in LABELS}
    return {name: round(float(r.mean()), 4) for name, r in (right | {"all": np.all(list(right.values()), 0)}).items()}


def moved(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Pictures `(B, 3, S, S)` up to 4 pixels aside, half of the time mirrored."""
    dx, dy = torch.randint(-4, 5, (2,), generator=generator).tolist()
    x = torch.roll(x, (dy, dx), (2, 3))
    return x.flip(3) if torch.rand((), generator=generator) < 0.5 else x


def spoilt(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Pictures `(B, 3, S, S)` in [0, 1] as lesser cameras and files give them: blurred, small, blocks of hue, grain."""
    blur, small, coarse = (torch.rand(3, generator=generator) < 0.3).tolist()
    if blur:
        x = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    if small:
        side = int(torch.randint(56, 112, (), generator=generator))
        x = F.interpolate(F.interpolate(x, (side, side), mode="area"), x.shape[2:], mode="bilinear")
    if coarse:  # as JPEG does it: brightness fine, hue in blocks
        grey, block = x.mean(1, keepdim=True), int(torch.randint(2, 7, (), generator=generator))
        hue = F.avg_pool2d(x - grey, block, ceil_mode=True)
        x = grey + F.interpolate(hue, x.shape[2:], mode="bilinear")
    tint = 1 + 0.06 * (2 * torch.rand((len(x), 3, 1, 1), generator=generator) - 1)
    return (x * tint + 0.03 * torch.randn(x.shape, generator=generator)).clamp(0, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/tiny"))
    parser.add_argument("--steps", type=int, default=4000)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    pictures, labels = real(COPIES, seed=5)
    own = len(pictures) // (COPIES + 1)
    torch.manual_seed(0)
    reader = AttributeClassifier(LABELS, width=64, side=128)

    def loss(step: int, generator: torch.Generator) -> torch.Tensor:
        """Cross-entropy on real pictures, a little moved, turned and spoilt, so that it reads shapes, not pixels."""
        which = torch.randint(own, (64,), generator=generator)  # half of them as they are
        which[32:] += own * torch.randint(1, COPIES + 1, (32,), generator=generator)
        x = pictures[which].permute(0, 3, 1, 2).float() / 255
        x = torch.cat([spoilt(moved(part, generator), generator) for part in x.split(16)])
        with torch.autocast("cpu", torch.bfloat16):
            logits = reader(x).values()
        return sum(F.cross_entropy(part.float(), y) for part, y in zip(logits, labels[which].T, strict=True))

    run("reader", {"reader": reader}, loss, steps=args.steps, lr=3e-3, out=args.out)
    reader.save(args.out / "reader")
    score = {split: scores(AttributeClassifier.load(args.out / "reader"), split) for split in ("validation", "test")}
    (args.out / "reader" / "score.json").write_text(json.dumps(score, indent=1) + "\n")
    print(json.dumps(score, indent=1))


if __name__ == "__main__":
    main()
