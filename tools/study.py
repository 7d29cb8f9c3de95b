"""The experiment of docs/photos.md: pilot, plain training, the paper's window and the constant gain, from five starts.

Resumable: every verb goes on where it stopped. `--part` does one part, by default all, and `--models` some of the rows,
so that two processes can share the work once the prior is fitted. tools/study_page.py then writes the page.
"""

from __future__ import annotations

import argparse
import json
import os
import warnings
from pathlib import Path

from onbrand import api
from onbrand.data.catalogue import CLASS, DEBIAN, caption, photos, tint_of, write_folder
from onbrand.generate.config import GenerateConfig
from onbrand.train.config import LogConfig, LossConfig, OptimConfig, TrainConfig

PHOTOS, ASKED, CURVE_ASKED = 12_000, 600, 200
CURVE = (50, 100, 200, 400, 800, 1600)
"""Fine-tuning steps at which the offset-trained models are sampled; the last is the length of every run."""
LR, BATCH = 3e-4, 32
MODELS = {"pilot": None, "plain": ("none", "window"), "window": ("mean", "window"), "constant": ("mean", "constant")}
"""Row's weights -> (offset, gain) of their fine-tuning."""
STARTS = ("noise", "mean", "text", "pca", "image")


def config(offset: str, gain: str, steps: int) -> TrainConfig:
    return TrainConfig(
        offset=offset, gain=gain, steps=steps, batch=BATCH, loss=LossConfig(dropout=0.1),
        optim=OptimConfig(lr=LR, ema=0.999), log=LogConfig(checkpoint_every=100),
    )  # fmt: skip


def write_requests(out: Path) -> None:
    """One request a held-out photo: its caption, its own seed, and the photo itself for the own-latent control."""
    _, kinds = photos("test", DEBIAN)
    for name, count in (("requests", ASKED), ("curve", CURVE_ASKED)):
        rows = [
            {"prompt": caption(int(kinds[i]), tint_of(i, 1)), "class": CLASS, "seed": i,
             "image": str((out / "held" / f"{i:05d}.png").resolve())}
            for i in range(count)
        ]  # fmt: skip
        (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def fit(out: Path) -> None:
    """Write the photos and the requests; fit the prior."""
    if not (out / "held").exists():
        write_folder(out / "photos", "train", PHOTOS, DEBIAN)
        write_folder(out / "held", "test", ASKED, DEBIAN, seed=1)
    write_requests(out)
    api.fit(out / "photos", "pilot", out / "brand", batch=64)
    api.diagnose(out / "brand")


def train(out: Path, name: str) -> None:
    """One fine-tuning; with an offset it is sampled on the way, for the curve."""
    if name == "pilot":
        return pictures(out, "curve-pilot-0", "pilot", "mean", "curve")
    run = out / "runs" / name
    for steps in CURVE if name != "plain" else CURVE[-1:]:
        if not (out / f"{name}-{steps}.done").exists():
            api.train(out / "photos", "pilot", run, prior=out / "brand", config=config(*MODELS[name], steps))
            if name != "plain":
                pictures(out, f"curve-{name}-{steps}", run, "mean", "curve")
            (out / f"{name}-{steps}.done").touch()


def pictures(out: Path, row: str, model: Path | str, start: str, requests: str = "requests") -> None:
    """Make the pictures of one row, 20 DDIM steps, no guidance."""
    made = GenerateConfig(start=start, k=3 if start == "pca" else None, guidance=1.0, batch=50, trace=1)
    api.generate(out / f"{requests}.jsonl", model=model, prior=out / "brand", out=out / "pictures" / row, config=made)


def check(out: Path) -> None:
    """Check every row, and the held-out photos as if they were one."""
    for folder in (out / "held", *sorted((out / "pictures").iterdir())):
        if not (folder / "check.json").exists():
            api.check(folder, out / "photos", prior=out / "brand", reader="pilot")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/study"))
    parser.add_argument("--part", choices=("fit", "train", "pictures", "check"))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    args = parser.parse_args()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.simplefilter("ignore", UserWarning)  # starts that the weights were not trained for are the question here
    parts = (args.part,) if args.part else ("fit", "train", "pictures", "check")
    if "fit" in parts:
        fit(args.out)
    for name in args.models:
        if "train" in parts:
            train(args.out, name)
        for start in STARTS if "pictures" in parts else ():
            model = "pilot" if name == "pilot" else args.out / "runs" / name
            pictures(args.out, f"{name}-{start}", model, start)
    if "check" in parts:
        check(args.out)


if __name__ == "__main__":
    main()
