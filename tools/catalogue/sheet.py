"""A contact sheet of pairs: garments in one row, the people who wear them in the next."""

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


def main() -> None:
    from onbrand.data.garments import garments

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/images/garments.png"))
    parser.add_argument("--split", default="test")
    parser.add_argument("--columns", type=int, default=10)
    parser.add_argument("--rows", type=int, default=3)
    args = parser.parse_args()
    pictures, _ = garments(args.split)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    whole = Image.fromarray(sheet(pictures[: 2 * args.columns * args.rows], args.columns))
    whole.save(args.out, optimize=True)


if __name__ == "__main__":
    main()
