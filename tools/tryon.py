"""What docs/garments.md says of try-on: the autoencoder's own loss on the garments, and which ground hides fewest.

python tools/tryon.py
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from tqdm import tqdm

from onbrand.api.judging import KEPT
from onbrand.api.materials import decode_x0, encode_x0
from onbrand.data.garments import garments
from onbrand.data.tryon import regions
from onbrand.measure import intervals
from onbrand.measure.region import inner_of, region_difference
from onbrand.models import bundle

GROUNDS = {"white": (255, 255, 255), "black": (0, 0, 0), "mid-grey": (127, 127, 127), "green": (0, 255, 0)}
HIDDEN, TENTH = 16, 0.1
"""A pixel is hidden within 16/255 of the ground in every channel; a garment where a tenth of it is."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="whose autoencoder")
    parser.add_argument("--split", default="test")
    args = parser.parse_args()
    figures, worn = garments(args.split)[0][1::2], torch.from_numpy(regions(args.split))
    pixels = torch.from_numpy(figures).permute(0, 3, 1, 2).float() / 255
    pipe = bundle.load(args.model)
    again = torch.cat([decode_x0(pipe, encode_x0(pipe, part)) for part in tqdm(pixels.split(50))])
    apart = region_difference(again.clamp(0, 1), pixels, worn)
    found, near = intervals.mean(apart), intervals.mean((apart <= KEPT).float())
    print(f"{args.split}: {found.n} figures, once through the autoencoder of {args.model}, 1/255 by garment:")
    print(f"mean {found.value:.2f} ({found.low:.2f} to {found.high:.2f}), median {apart.nanmedian():.2f}")
    print(f"least {apart.min():.2f}, most {apart.max():.2f}; within {KEPT:g}: {near.value:.1%}")
    print(f"pixels of a garment's region less its rim: {inner_of(worn).sum((1, 2)).float().quantile(0.05):.0f} or more")
    share = worn.float().mean((1, 2))
    print(f"region: {share.mean():.1%} of a picture, {share.min():.1%} to {share.max():.1%}")
    for name, ground in GROUNDS.items():
        gap = np.abs(figures.astype(int) - np.array(ground)).max(-1)
        gone = np.array([(one[region] <= HIDDEN).mean() > TENTH for one, region in zip(gap, worn.numpy(), strict=True)])
        print(f"on {name}: {gone.mean():.1%} of the garments hidden by a tenth or more")


if __name__ == "__main__":
    main()
