"""The experiment of docs/results.md: onbrand-tiny on the catalogue, plain, by the paper's window and by constant gain.

Resumable: every verb goes on where it stopped. `--part` does one part, by default all, and `--models` some of the rows,
so that two processes can share the work once the prior is fitted. tools/results_page.py then writes the page.
"""

from __future__ import annotations

import argparse
import json
import os
import warnings
from pathlib import Path
from typing import Any

from demo import GUIDANCE, asked
from onbrand import api
from onbrand.data.catalogue import garment_folder, write_garments
from onbrand.generate.config import GenerateConfig
from onbrand.train.config import EngineConfig, LogConfig, LossConfig, OptimConfig, TrainConfig

TINY = "tiny"
SEEDS, CURVE_SEEDS, HELD = 10, 2, 480
CURVE = (100, 300, 1000)
"""Fine-tuning steps at which the offset-trained models are sampled; the last is the length of every run."""
LR, BATCH = 6e-4, 32
MODELS = {"tiny": None, "plain": ("none", "window"), "window": ("mean", "window"), "constant": ("mean", "constant"),
          "constant-text": ("text", "constant")}  # fmt: skip
"""Row's weights -> (offset, gain) of their fine-tuning."""
STARTS = {
    "tiny": ("noise", "mean", "text"),
    "plain": ("noise", "mean", "text", "image", "swapped"),
    "window": ("mean",),
    "constant": ("mean", "text", "swapped"),
    "constant-text": ("text",),
}
"""What each is started from; `image`: real test pictures' own latents, `swapped`: the mean of the other kind."""


def config(offset: str, gain: str, steps: int) -> TrainConfig:
    return TrainConfig(
        offset=offset, gain=gain, steps=steps, batch=BATCH, loss=LossConfig(dropout=0.1),
        optim=OptimConfig(lr=LR, ema=0.99), engine=EngineConfig(precision="bf16"), log=LogConfig(checkpoint_every=100),
    )  # fmt: skip


def swapped(row: dict[str, Any]) -> dict[str, Any]:
    """The same request as a picture of the other kind: a garment's with the class of people, and the reverse."""
    gender, kind = row["class"].split()
    return row | {"class": f"{gender} {'person' if kind == 'garment' else 'garment'}"}


def write_requests(out: Path) -> None:
    """The descriptions under all seeds, under a few for the curve, and under a few with the classes swapped."""
    few = asked(CURVE_SEEDS)
    for name, rows in (("requests", asked(SEEDS)), ("curve", few), ("swapped", [swapped(row) for row in few])):
        (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def fit(out: Path) -> None:
    """Write the requests and the held-out pictures; fit the prior."""
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "held" / "metadata.jsonl").exists():
        write_garments(out / "held", "test", HELD)
    write_requests(out)
    api.fit(garment_folder(), TINY, out / "brand", split="train")
    other = api.diagnose(out / "brand", zero_snr=True, spacing="trailing")
    (out / "zero-snr.json").write_text(json.dumps(other))
    api.diagnose(out / "brand")


def train(out: Path, name: str) -> None:
    """One fine-tuning; with an offset it is sampled on the way, for the curve."""
    start = {"constant-text": "text"}.get(name, "mean")
    if name == "tiny":
        return pictures(out, "curve-tiny-0", TINY, start, "curve")
    run = out / "runs" / name
    for steps in CURVE if name != "plain" else CURVE[-1:]:
        if not (out / f"{name}-{steps}.done").exists():
            api.train(garment_folder(), TINY, run, prior=out / "brand", split="train",
                      config=config(*MODELS[name], steps))  # fmt: skip
            if name != "plain":
                pictures(out, f"curve-{name}-{steps}", run, start, "curve")
            (out / f"{name}-{steps}.done").touch()


def pictures(out: Path, row: str, model: Path | str, start: str, requests: str = "requests") -> None:
    """Make the pictures of one row, 20 DDIM steps."""
    file = out / f"{requests}.jsonl"
    if start == "image":
        file = out / "held" / "metadata.jsonl"
    elif start == "swapped":
        start, file = "mean", out / "swapped.jsonl"
    made = GenerateConfig(start=start, guidance=GUIDANCE, batch=48, trace=1)
    api.generate(file, model=model, prior=out / "brand", out=out / "pictures" / row, config=made)


def check(out: Path, models: list[str]) -> None:
    """Check every row of some models, and the held-out pictures as if they were one."""
    rows = (
        row for row in sorted((out / "pictures").iterdir()) if row.name.removeprefix("curve-").startswith(tuple(models))
    )
    for folder in (out / "held", *rows):
        if not (folder / "check.json").exists():
            api.check(folder, garment_folder(), split="train", prior=out / "brand", reader="garments")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/results"))
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
        for start in STARTS[name] if "pictures" in parts else ():
            model = TINY if name == "tiny" else args.out / "runs" / name
            pictures(args.out, f"{name}-{start}", model, start)
    if "check" in parts:
        check(args.out, args.models)


if __name__ == "__main__":
    main()
