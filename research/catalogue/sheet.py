"""Contact sheets: of pairs, garments in one row, the people who wear them in the next; of try-on, what is given in one
row, the person in the next."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image


def sheet(pictures: np.ndarray, columns: int) -> np.ndarray:
    """Pictures `(2n, 128, 128, 3)`, garment and figure in turn, as one: `columns` pairs a row."""
    pairs = pictures.reshape(-1, 2, *pictures.shape[1:])
    blank = np.full((-len(pairs) % columns, *pairs.shape[1:]), 255, np.uint8)
    pairs = np.concatenate([pairs, blank]).reshape(-1, columns, *pairs.shape[1:])
    return np.concatenate([np.concatenate([np.concatenate(list(row[:, k]), 1) for k in (0, 1)]) for row in pairs])


def given(split: str) -> np.ndarray:
    """Conditions as the network is given them and their figures in turn, `(2n, 128, 128, 3)`."""
    from onbrand.data.conditioning import CONDITION_BACKGROUND
    from onbrand.datasets.garments import garments
    from onbrand.datasets.try_on import regions

    figures = garments(split)[0][1::2]
    cut = np.where(regions(split)[..., None], figures, np.array(CONDITION_BACKGROUND, np.uint8))
    return np.stack([cut, figures], 1).reshape(-1, *figures.shape[1:])


def main() -> None:
    from onbrand.datasets.garments import garments

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    parser.add_argument("--split", default="test")
    parser.add_argument("--columns", type=int, default=10)
    parser.add_argument("--rows", type=int, default=3)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name, pictures, rows in (
        ("garments", garments(args.split)[0], args.rows),
        ("try-on-data", given(args.split), 1),
    ):
        whole = Image.fromarray(sheet(pictures[: 2 * args.columns * rows], args.columns))
        whole.save(args.out / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
