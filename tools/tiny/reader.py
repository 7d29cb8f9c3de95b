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

from onbrand.data.garments import VALUES, garments
from onbrand.measure.reader import Reader

READ = ("kind", "colour", "second_colour", "print", "length", "sleeve", "gender")
LABELS = {"view": ["garment", "figure"]} | {name: list(VALUES[name]) for name in READ}
"""What is read; neckline and fit are a pixel or two of a figure's picture, and skin is no part of a garment."""


def indices(rows: list[dict[str, str]]) -> torch.Tensor:
    """`(N, attributes)` of rows' truth as indices of LABELS."""
    return torch.tensor([[labels.index(row[name]) for name, labels in LABELS.items()] for row in rows])


def real(copies: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The train split, and `copies` of each of its cut-outs on other grounds and places; pictures and labels."""
    pictures, rows = garments("train")
    cuts, out = sources(), [pictures]
    for copy in range(copies):
        moved = np.empty_like(pictures)
        for i, tile in enumerate(cuts.tiles):
            rng = np.random.default_rng([seed, copy, i])
            name = "white" if rng.random() < 0.3 else str(rng.choice(list(GROUNDS)))
            moved[i] = np.clip(paste(tile, ground(rng, name), rng) + 0.5, 0, 255)
        out.append(moved)
    return torch.from_numpy(np.concatenate(out)), indices(rows).repeat(copies + 1, 1)


def scores(reader: Reader, split: str) -> dict[str, float]:
    """Share of pictures of a split read right: each attribute, and all of them."""
    pictures, rows = garments(split)
    read = reader.read(torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255)
    right = {name: np.array([row[name] == got for row, got in zip(rows, read[name], strict=True)]) for name in LABELS}
    return {name: round(float(r.mean()), 4) for name, r in (right | {"all": np.all(list(right.values()), 0)}).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/tiny"))
    parser.add_argument("--steps", type=int, default=3200)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    pictures, labels = real(2, seed=5)
    own = len(pictures) // 3
    torch.manual_seed(0)
    reader = Reader(LABELS, width=32, side=128)

    def loss(step: int, generator: torch.Generator) -> torch.Tensor:
        """Cross-entropy on real pictures, a little moved, turned and softened, so that it reads shapes, not pixels."""
        brand = torch.randint(own, (40,), generator=generator)
        which = torch.cat([brand, own + torch.randint(own, (24,), generator=generator)])
        which[40:] += own * torch.randint(2, (24,), generator=generator)
        x = pictures[which].permute(0, 3, 1, 2).float() / 255
        dx, dy = torch.randint(-4, 5, (2,), generator=generator).tolist()
        x = torch.roll(x, (dy, dx), (2, 3))
        x = x.flip(3) if torch.rand((), generator=generator) < 0.5 else x
        if torch.rand((), generator=generator) < 0.4:
            x = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
        x = (x + 0.03 * torch.randn(x.shape, generator=generator)).clamp(0, 1)
        parts = zip(reader(x).values(), labels[which].T, strict=True)
        return sum(F.cross_entropy(part, y) for part, y in parts)

    run("reader", {"reader": reader}, loss, steps=args.steps, lr=3e-3, out=args.out)
    reader.save(args.out / "reader")
    score = {split: scores(Reader.load(args.out / "reader"), split) for split in ("validation", "test")}
    (args.out / "reader" / "score.json").write_text(json.dumps(score, indent=1) + "\n")
    print(json.dumps(score, indent=1))


if __name__ == "__main__":
    main()
