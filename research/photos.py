"""Cut the photos shipped in src/onbrand/assets/photos out of the full Fashion-MNIST (Debian: dataset-fashion-mnist)."""

from __future__ import annotations

import gzip
import struct
import sys
from pathlib import Path

PARTS = {"train": 3000, "t10k": 1000}


def main(source: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for stem, count in PARTS.items():
        for kind, header, size in (("images-idx3", 16, 28 * 28), ("labels-idx1", 8, 1)):
            name = f"{stem}-{kind}-ubyte.gz"
            raw = gzip.decompress((source / name).read_bytes())
            kept = raw[:4] + struct.pack(">I", count) + raw[8 : header + count * size]
            (out / name).write_bytes(gzip.compress(kept, 9, mtime=0))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).parents[1] / "src/onbrand/assets/photos")
