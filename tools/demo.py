"""`make demo`: the whole job on embedded photos, from a folder and a stock model to a page that shows what changed."""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from pathlib import Path

from tqdm import tqdm

from onbrand import api
from onbrand.data.catalogue import CLASS, COLOURS, KINDS, caption, write_folder
from onbrand.generate.config import GenerateConfig
from onbrand.train.config import EngineConfig, LogConfig, LossConfig, OptimConfig, TrainConfig

STEPS, BATCH, LR = 240, 32, 3e-4
PHOTOS, SEEDS = 1200, 2

ROWS = {
    "before": ("plain", "noise", "Fine-tuned as usual, started from noise",
               "The usual way: the same photos, the same steps. Grounds, places and crops come out as chance has it."),
    "mean": ("plain", "mean", "The same weights, started from the brand's mean",
             "No other training: only the start of sampling differs."),
    "text": ("plain", "text", "The same weights, started from the mean that the words predict",
             "Ours, no other training: the prior's mean given the prompt."),
    "after": ("constant", "mean", "Fine-tuned and started with onbrand",
              "The same photos, steps and seeds; trained with the start that sampling has (constant gain)."),
}  # fmt: skip
"""Row of the page: the run its weights come from, its start, its caption and its sentence."""


def prompts() -> list[dict[str, object]]:
    """24 prompts, each kind and each colour, in the brand's words."""
    colours = list(COLOURS)
    pairs = [(KINDS[i % len(KINDS)], colours[(5 * i + i // 12) % len(colours)]) for i in range(24)]
    asked = [{"prompt": caption(kind, colour), "class": CLASS} for kind, colour in pairs]
    return [row | {"seed": 1000 * copy + i} for copy in range(SEEDS) for i, row in enumerate(asked)]


def plan(out: Path) -> None:
    """What the page is to say beside what it reads off the folders."""
    rows = [{"name": name, "caption": words, "sentence": more} for name, (_, _, words, more) in ROWS.items()]
    rows.append(
        {"name": "real", "caption": "Real photos of the brand", "sentence": "Held out: nothing learnt from them."}
    )
    content = {
        "title": "onbrand on 1,200 product photos",
        "lead": "The same stock model, the same photos, prompts and seeds. What changed is where sampling starts, and "
        "that training knew it.",
        "rows": rows, "before": "before", "after": "after", "real": "real",
        "notes": [
            "The model is the pilot shipped with onbrand: the real classes of Stable Diffusion at 1/150 of its size, a "
            "stand-in that a laptop can train. Its schedule is shifted so that it leaks as much as SD1.5's.",
            "The photos are Fashion-MNIST's (Zalando, MIT), tinted in 12 colours.",
            f"{STEPS} fine-tuning steps of {BATCH} photos for either run.",
        ],
        "runs": {"plain": "as usual", "constant": "with onbrand"},
        "commands": ["make demo"],
    }  # fmt: skip
    (out / "demo.json").write_text(json.dumps(content, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo"))
    out = parser.parse_args().out
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.simplefilter("ignore", UserWarning)  # a start that the weights were not trained for is what is shown here
    began, photos, brand = time.time(), out / "photos", out / "brand"
    jobs = [
        ("writing the photos", lambda: write_folder(photos, "train", PHOTOS)),
        ("fitting the brand's prior", lambda: api.fit(photos, "pilot", brand)),
        ("asking whether noise is a wrong start", lambda: api.diagnose(brand)),
    ]  # fmt: skip
    for name, offset in (("plain", "none"), ("constant", "mean")):
        config = TrainConfig(
            offset=offset, gain="constant", steps=STEPS, batch=BATCH, optim=OptimConfig(lr=LR, ema=0.98),
            loss=LossConfig(dropout=0.1), engine=EngineConfig(), log=LogConfig(checkpoint_every=80),
        )  # fmt: skip
        words = "fine-tuning as usual" if name == "plain" else "fine-tuning with the brand's start"
        jobs.append((words, lambda name=name, config=config: api.train(
            photos, "pilot", out / "runs" / name, prior=brand, config=config)))  # fmt: skip
    requests = out / "prompts.jsonl"
    for row, (run, start, words, _) in ROWS.items():
        config = GenerateConfig(start=start, guidance=1.0, batch=24, trace=1)

        def make(row: str = row, run: str = run, config: GenerateConfig = config) -> None:
            api.generate(requests, model=out / "runs" / run, prior=brand, out=out / "pictures" / row, config=config)
            api.check(out / "pictures" / row, photos, prior=brand, reader="pilot")

        jobs.append((f"pictures: {words}", make))

    def compare() -> None:
        real = write_folder(out / "pictures" / "real", "test", 24 * SEEDS, seed=1)
        api.check(real, photos, prior=brand, reader="pilot")

    jobs.append(("checking real photos beside them", compare))
    jobs.append(("writing the page", lambda: api.report(out)))

    out.mkdir(parents=True, exist_ok=True)
    requests.write_text("".join(json.dumps(row) + "\n" for row in prompts()))
    plan(out)
    for number, (words, job) in enumerate(jobs, 1):
        tqdm.write(f"\n[{number}/{len(jobs)}] {words} ({time.time() - began:.0f} s so far)")
        job()
    print(f"\nDone in {time.time() - began:.0f} s. Open {out / 'report.html'}")


if __name__ == "__main__":
    main()
