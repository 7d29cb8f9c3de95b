"""A whole training run in a folder, for tests that need it in another process: `python job.py FOLDER OUT SETTINGS`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from onbrand.core.prior import Prior
from onbrand.data.encode import encode_all
from onbrand.data.latents import Key, Store
from onbrand.data.records import read_folder
from onbrand.models.controlnet import new_controlnet
from onbrand.models.pipeline import encode, fingerprint, load
from onbrand.options.train import TrainSettings
from worlds import tiny_pipeline, tiny_prior

CLASSES = ("product photo", "figure photo")
COUNT = 8


def lay(folder: Path, prediction_type: str = "epsilon", flip: bool = False) -> None:
    """photos/ (8 images of 16x16 in 2 classes, with captions and control images: what they show, cut out), model/,
    latents/ and prior.safetensors."""
    photos = folder / "photos"
    (photos / "cut").mkdir(parents=True)
    rows = []
    for i in range(COUNT):
        image, cutout = Image.new("RGB", (16, 16), "white"), Image.new("RGBA", (16, 16))
        for one in (image, cutout):
            one.paste((20 * i, 255 - 30 * i, 90), (3, 3 + i % 4, 11, 14))
        image.save(photos / f"{i}.png")
        cutout.save(photos / "cut" / f"{i}.png")
        class_name = CLASSES[i % 2]
        row = {
            "file_name": f"{i}.png",
            "text": f"{class_name} {i}",
            "class": class_name,
            "conditioning_file_name": f"cut/{i}.png",
        }
        rows.append(json.dumps(row))
    (photos / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    pipe = tiny_pipeline(prediction_type=prediction_type)
    pipe.save_pretrained(folder / "model")
    tiny_prior(pipe, CLASSES).save(folder / "prior.safetensors")
    store = Store(folder / "latents", Key(fingerprint(pipe.vae), (16, 16), flip))
    encode_all(read_folder(photos)[0], lambda x: encode(pipe, x), store, progress=False)


def open_all(folder: Path, flip: bool = False, method: str = "full") -> Any:
    """(pipe, records, store, prior) of a folder that `lay` made; the pipe ready for a method of training."""
    pipe = load(folder / "model")
    if method == "controlnet":
        pipe = new_controlnet(pipe, 1)
    store = Store(folder / "latents", Key(fingerprint(pipe.vae), (16, 16), flip))
    return pipe, read_folder(folder / "photos")[0], store, Prior.load(folder / "prior.safetensors")


def settings(**options: Any) -> TrainSettings:
    """A short run, by the paper's start and gain."""
    short = {"start": "mean", "gain": "window", "max_train_steps": 6, "train_batch_size": 4, "learning_rate": 1e-3}
    return TrainSettings(**short | options)


def run(folder: str | Path, out: str | Path, options: dict[str, Any]) -> None:
    """Trains to the end, from wherever `out` stands."""
    from onbrand.training.loop import train

    torch.set_num_threads(1)
    parts = open_all(Path(folder), method=options.get("method", "full"))
    for _ in train(*parts, settings(**options), Path(out)):
        pass


if __name__ == "__main__":
    from accelerate import PartialState

    run(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
    print(f"one of {PartialState().num_processes}")
