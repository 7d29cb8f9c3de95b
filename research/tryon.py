"""docs/research/catalogue.md on try-on: the autoencoder's loss on the garments, how far they lie from a background.

python research/tryon.py
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from tqdm import tqdm

from onbrand.datasets.garments import garments
from onbrand.datasets.try_on import regions
from onbrand.evaluation import statistics
from onbrand.evaluation.check import KEPT
from onbrand.evaluation.loading import decode_x0, encode_x0
from onbrand.evaluation.region import inner_of, region_difference
from onbrand.models import pipeline

BACKGROUNDS = {"white": (255, 255, 255), "black": (0, 0, 0), "mid-grey": (127, 127, 127), "green": (0, 255, 0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="whose autoencoder")
    parser.add_argument("--split", default="test")
    args = parser.parse_args()
    images, rows = garments(args.split)
    figures, worn = images[1::2], torch.from_numpy(regions(args.split))
    pixels = torch.from_numpy(figures).permute(0, 3, 1, 2).float() / 255
    pipe = pipeline.load(args.model)
    again = torch.cat([decode_x0(pipe, encode_x0(pipe, part)) for part in tqdm(pixels.split(50))])
    apart = region_difference(again.clamp(0, 1), pixels, worn)
    plain = torch.tensor([row["print"] == "plain" for row in rows[1::2]])
    print(f"{args.split}, once through the autoencoder of {args.model}, 1/255 by garment:")
    for name, part in (("all", apart), ("plain", apart[plain]), ("printed", apart[~plain])):
        found, near = statistics.mean(part), (part <= KEPT).float().mean()
        print(f"{name}: {found.n}, mean {found.value:.2f} ({found.low:.2f} to {found.high:.2f}), ", end="")
        print(f"median {part.median():.2f}, {part.min():.2f} to {part.max():.2f}, within {KEPT:g}: {near:.1%}")
    print(f"pixels of the smallest region less its rim: {inner_of(worn).sum((1, 2)).min()}")
    share = worn.float().mean((1, 2))
    print(f"region: {share.mean():.1%} of an image, {share.min():.1%} to {share.max():.1%}")
    for name, background in BACKGROUNDS.items():
        gap = np.abs(figures.astype(int) - np.array(background)).max(-1)
        middle = [np.median(one[region]) for one, region in zip(gap, worn.numpy(), strict=True)]
        print(
            f"on {name}: {min(middle):.0f}/255 from the background, the nearest garment's median pixel, worst channel"
        )


if __name__ == "__main__":
    main()
