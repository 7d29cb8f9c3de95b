"""What onbrand-tiny can do, in pixels and by the reader of garments: writes score.json beside the pipeline."""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import distance_transform_edt
from world import draw

from onbrand import api
from onbrand.datasets.garments import garment_folder, garments
from onbrand.evaluation.colour import distance, lab_of, to_lab
from onbrand.evaluation.loading import decode_x0, encode_x0
from onbrand.evaluation.statistics import mean
from onbrand.evaluation.text import all_right, open_judge, read
from onbrand.models.pipeline import load
from onbrand.options.generate import SamplingSettings

CLASS = "any picture"


def pixels(pictures: np.ndarray) -> torch.Tensor:
    """`(N, S, S, 3)` uint8 -> `(N, 3, S, S)` in [0, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255


def through(model: Path, pictures: np.ndarray) -> np.ndarray:
    """The pictures encoded and decoded, `(N, S, S, 3)` uint8: what the best of denoisers could make of them."""
    pipe = load(model, "cuda" if torch.cuda.is_available() else "cpu")
    return (decode_x0(pipe, encode_x0(pipe, pixels(pictures))) * 255 + 0.5).byte().permute(0, 2, 3, 1).numpy()


def autoencoder(model: Path) -> dict[str, float]:
    """What the test split's ground and products are after encoding and decoding."""
    pictures, _ = garments("test")
    returned = through(model, pictures)
    ground = (pictures == 255).all(3)
    far = np.stack([distance_transform_edt(one) for one in ground]) >= 4
    off = distance(to_lab(pixels(returned)), lab_of((255, 255, 255)))
    return {
        "far ground at 255": float((returned == 255).all(3)[far].mean()),
        "ground within dE 3": float((off.numpy() <= 3)[ground].mean()),
        "mean error elsewhere, of 255": float(np.abs(returned.astype(int) - pictures)[~ground].mean()),
    }


def write(folder: Path, count: int, seed: int, split: str) -> list[dict[str, Any]]:
    """Off-brand pictures as PNG with metadata.jsonl; returns its rows, with what the captions say."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures, captions, truths = draw(count, seed, split=split)
    rows = []
    for i, (picture, text, truth) in enumerate(zip(pictures, captions, truths, strict=True)):
        Image.fromarray(picture).save(folder / f"{i:05d}.png")
        rows.append({"file_name": f"{i:05d}.png", "text": text, "class": CLASS, "attributes": truth})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def opened(files: Iterable[Path]) -> np.ndarray:
    """Pictures of one size, `(N, S, S, 3)` uint8."""
    return np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])


def own_world(model: Path, out: Path, guidance: float, count: int) -> dict[str, Any]:
    """Garments and figures of the test split in the stock model's own world: what the reader finds, by start."""
    reader = open_judge("garments")
    write(out / "world", 4000, 8, "train")
    rows = [row for row in write(out / "held", count * 2, 9, "test") if row["attributes"]["view"] != "object"][:count]
    for row in rows:  # the reader knows no grounds
        row["attributes"] = {k: v for k, v in row["attributes"].items() if k in reader.attributes}
    requests = out / "held" / "requests.jsonl"
    requests.write_text("".join(json.dumps(row) + "\n" for row in rows))
    api.fit(out / "world", model, out / "own")
    shown = {"real": opened([out / "held" / row["file_name"] for row in rows])}
    shown["autoencoder"] = through(model, shown["real"])
    for start in ("image", "text", "noise"):
        config = SamplingSettings(
            start=start, guidance_scale=guidance, scheduler="DDIMScheduler", eta=1.0, batch_size=50
        )
        made = out / f"{start}-{guidance:g}-eta1"
        shown[start] = opened(api.generate(requests, model=model, prior=out / "own", output_dir=made, **vars(config)))
    score = {}
    for name, pictures in shown.items():
        right = read(reader, pixels(pictures), [row["text"] for row in rows], [row["attributes"] for row in rows])
        every = mean(all_right(right))
        score[name] = {"all": every.value, "low": every.low, "high": every.high}
        rest = {attribute: column for attribute, column in right.items() if attribute != "second_colour"}
        score[name]["all but the second colour"] = mean(all_right(rest)).value
        score[name] |= {attribute: float(column.nanmean()) for attribute, column in right.items()}
    return score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("runs/tiny/pipeline"))
    parser.add_argument("--out", type=Path, default=Path("runs/tiny/check"))
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--count", type=int, default=200, help="pictures asked for, of each start")
    args = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    score: dict[str, Any] = {"autoencoder": autoencoder(args.model)}
    api.fit(garment_folder(), args.model, args.out / "brand", split="train")
    classes = api.diagnose(args.out / "brand")["classes"]
    score["sigma"] = {name: one["sigma"] for name, one in classes.items()}
    score["own world"] = own_world(args.model, args.out, args.guidance, args.count)
    (args.model / "score.json").write_text(json.dumps(score, indent=1) + "\n")
    print(json.dumps(score, indent=1))


if __name__ == "__main__":
    main()
