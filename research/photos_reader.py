"""The photos' reader: kind and colour, off real tinted photos only; its score on held-out ones is the truth."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from onbrand.datasets.fashion import COLOURS, KINDS, brand_image, photos, tint_of
from onbrand.evaluation.text import AttributeClassifier
from tiny.steps import run


def real(split: str, source: str | None, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Brand images `(N, 3, 64, 64)` uint8 of a split and their (kind, colour) as indices `(N, 2)`."""
    grey, kinds = photos(split, source)
    tints = [tint_of(i, seed) for i in range(len(grey))]
    images = np.stack([brand_image(g, t) for g, t in zip(grey, tints, strict=True)])
    labels = np.stack([kinds, [tuple(COLOURS).index(t) for t in tints]], 1)
    return torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/photos"))
    parser.add_argument("--photos", help="folder of Fashion-MNIST's idx files; default: the embedded part")
    parser.add_argument("--steps", type=int, default=1500)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    images, labels = real("train", args.photos, seed=3)
    torch.manual_seed(0)
    reader = AttributeClassifier({"kind": list(KINDS), "colour": list(COLOURS)})

    def loss(step: int, generator: torch.Generator) -> torch.Tensor:
        """Cross-entropy on real images, a little moved and softened, so that it reads shapes and not edges."""
        which = torch.randint(len(images), (64,), generator=generator)
        x = images[which].float() / 255
        dx, dy = torch.randint(-3, 4, (2,), generator=generator).tolist()
        x = torch.roll(x, (dy, dx), (2, 3))
        if torch.rand((), generator=generator) < 0.5:
            x = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
        x = (x + 0.03 * torch.randn(x.shape, generator=generator)).clamp(0, 1)
        logits = reader(x).values()
        return sum(F.cross_entropy(part, y) for part, y in zip(logits, labels[which].T, strict=True))

    run("reader", {"reader": reader}, loss, steps=args.steps, lr=3e-3, out=args.out)
    reader.save(args.out / "reader")
    held, truth = real("test", args.photos, seed=4)
    read = AttributeClassifier.load(args.out / "reader").read(held.float() / 255)
    kind = np.array([KINDS[i] for i in truth[:, 0]]) == np.array(read["kind"])
    colour = np.array([tuple(COLOURS)[i] for i in truth[:, 1]]) == np.array(read["colour"])
    score = {"photos": len(held), "kind": kind.mean(), "colour": colour.mean(), "both": (kind & colour).mean()}
    (args.out / "reader" / "score.json").write_text(json.dumps(score, indent=1))
    print(score)


if __name__ == "__main__":
    main()
