"""What tools/study.py measured -> docs/photos.json, docs/photos.md and the pictures in docs/images."""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from onbrand.measure import intervals
from study import ASKED, BATCH, CURVE, CURVE_ASKED, LR, MODELS, PHOTOS, STARTS

DOCS = Path(__file__).parents[1] / "docs"
NAMES = {"pilot": "the pilot as shipped", "plain": "plain training", "window": "mean offset, window (the paper)",
         "constant": "mean offset, constant gain (ours)"}  # fmt: skip
START_NAMES = {"noise": "noise", "mean": "class mean", "text": "mean given the text", "pca": "PCA-3 draw",
               "image": "the photo's own latent (control)"}  # fmt: skip
SCORES = ("text", "ground")
QUESTIONS = (
    ("plain training: is the class mean a better start than noise?", "plain-mean", "plain-noise"),
    ("plain training: is the mean given the text a better start than the class mean?", "plain-text", "plain-mean"),
    ("the paper: does window training with the mean beat only starting from it?", "window-mean", "plain-mean"),
    ("ours: does constant-gain training with the mean beat only starting from it?", "constant-mean", "plain-mean"),
    ("does the constant gain beat the window?", "constant-mean", "window-mean"),
    ("ours against the best start without training for it?", "constant-mean", "plain-text"),
)


def passed(folder: Path, score: str) -> torch.Tensor:
    """1 where a picture passes, 0 where it does not, by picture in the order of the requests."""
    entries = json.loads((folder / "check.json").read_text())["pictures"]
    return torch.tensor([score not in e["failed"] for e in sorted(entries, key=lambda e: e["file"])]).double()


def figure(interval: intervals.Interval | dict[str, float], digits: int = 3, sign: str = "") -> str:
    e = interval if isinstance(interval, dict) else vars(interval)
    value = e.get("value", e.get("share"))
    text = f"{value:{sign}.{digits}f}"
    return text if e.get("low") is None else f"{text} ({e['low']:{sign}.{digits}f} to {e['high']:{sign}.{digits}f})"


def results(study: Path) -> dict[str, dict[str, dict[str, float]]]:
    """{row: {measure: {value, low, high, n}}} of every row that was checked."""
    table = {}
    folders = [study / "held", *sorted((study / "pictures").iterdir())]
    for folder in folders:
        if not (folder / "check.json").exists():
            continue
        checked = json.loads((folder / "check.json").read_text())
        scores = {"all": checked["all"], **checked["properties"], **checked.get("measures", {})}
        table["real photos" if folder.name == "held" else folder.name] = {
            name: {"value": e.get("share", e.get("value")), "low": e.get("low"), "high": e.get("high"),
                   "n": e.get("of", checked["count"])}
            for name, e in scores.items()
        }  # fmt: skip
    return table


def grid(study: Path, rows: list[str], path: Path, columns: int = 12, scale: int = 2) -> None:
    """Rows of pictures under equal prompts and seeds, the real photos on top."""
    files = [f"{i:05d}.png" for i in range(columns)]
    lines = [[study / "held" / f for f in files]] + [[study / "pictures" / row / f for f in files] for row in rows]
    sheet = np.concatenate([np.concatenate([np.asarray(Image.open(f).convert("RGB")) for f in r], 1) for r in lines])
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(sheet)
    picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.LANCZOS).save(path, optimize=True)


def before_after(study: Path, path: Path, columns: int = 6, lines: int = 3, side: int = 96) -> None:
    """The README's picture: the usual way beside ours, equal prompts and seeds, the first requests, not chosen."""
    panels = (("plain-noise", "fine-tuned as usual, started from noise"),
              ("constant-mean", "fine-tuned and started with onbrand"))  # fmt: skip
    font, head, gap = ImageFont.load_default(20), 40, 24
    sheet = Image.new("RGB", (2 * columns * side + gap, head + lines * side), "white")
    for panel, (row, words) in enumerate(panels):
        left = panel * (columns * side + gap)
        ImageDraw.Draw(sheet).text((left + 4, 8), words, "black", font)
        for i in range(columns * lines):
            picture = Image.open(study / "pictures" / row / f"{i:05d}.png")
            picture = picture.resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(picture, (left + i % columns * side, head + i // columns * side))
    ImageDraw.Draw(sheet).line((columns * side + gap // 2, 0, columns * side + gap // 2, sheet.height), "gray")
    sheet.save(path, optimize=True)


def curve(table: dict, path: Path) -> None:
    """Text and ground by fine-tuning steps, both gains from the class mean."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure_, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True, layout="constrained")
    for axis, score in zip(axes, SCORES, strict=True):
        for name, style in (("window", "s--"), ("constant", "o-")):
            rows = [table["curve-pilot-0"], *(table[f"curve-{name}-{steps}"] for steps in CURVE)]
            steps, values = [0, *CURVE], [row[score]["value"] for row in rows]
            axis.plot(steps, values, style, label=NAMES[name])
            axis.fill_between(steps, [r[score]["low"] for r in rows], [r[score]["high"] for r in rows], alpha=0.15)
        axis.axhline(table["real photos"][score]["value"], color="0.4", linewidth=1, linestyle=":", label="real photos")
        axis.set(title=score, xlabel=f"fine-tuning steps of {BATCH}", ylim=(0, 1.02))
    axes[1].legend(loc="lower right", frameon=False, fontsize=8)
    figure_.savefig(path, dpi=130)


def page(study: Path, table: dict) -> str:
    real = table["real photos"]
    columns = ["text", "ground", "all", "diversity"]
    present = [c for c in columns if c in real]
    lines = [f"| training | start | {' | '.join(present)} |", "|---|---|" + "---|" * len(present)]
    lines.append("| | real held-out photos | " + " | ".join(figure(real[c]) for c in present) + " |")
    for name in MODELS:
        for start in STARTS:
            row = table.get(f"{name}-{start}")
            if row:
                cells = " | ".join(figure(row[c]) if c in row else "" for c in present)
                lines.append(f"| {NAMES[name]} | {START_NAMES[start]} | {cells} |")
    asked = ["| question | text | ground |", "|---|---|---|"]
    for question, a, b in QUESTIONS:
        cells = []
        for score in SCORES:
            pair = [passed(study / "pictures" / row, score) for row in (a, b)]
            cells.append(figure(intervals.difference(*pair), sign="+"))
        asked.append(f"| {question} ({a} minus {b}) | {cells[0]} | {cells[1]} |")
    control = []
    for name in MODELS:
        row = table.get(f"{name}-image")
        if row:
            shares = [f"{row[s]['value'] / real[s]['value']:.1%} of the real photos' {s}" for s in SCORES]
            control.append(f"- {NAMES[name]}: " + ", ".join(shares))
    words = Path(__file__).with_name("study_words.md").read_text().rstrip()
    return f"""# The experiment on real product photos

Made by `python tools/study.py` and `python tools/study_page.py` on an AMD EPYC ({platform.machine()}), two processes
of one thread each, 50 minutes in all; every number below is in [photos.json](photos.json). The model is the pilot
that ships with onbrand ([pilot.md](pilot.md)), a **stand-in** of Stable Diffusion's
real classes (5.6 M parameters in the UNet), its schedule shifted so that the class mean stands as far out of the
noise as SD's do. Fine-tuned on {PHOTOS:,} tinted photos for {CURVE[-1]:,} steps of {BATCH} at learning rate {LR};
{ASKED} held-out captions a row, equal seeds in all rows, 20 DDIM steps, no guidance, one training seed. 95 % bootstrap
intervals over pictures.

*text*: kind and colour both read as asked by a reader trained on real photos only; *ground*: the brand's ground by
[the check](properties.md); *all*: every property of the check; *diversity*: variance of the pictures over that of
the brand's (1 is right).

{words}

## Every row

{chr(10).join(lines)}

## The questions, paired by seed

{chr(10).join(asked)}

## Is the model strong enough to show anything? The control

Started from each photo's own noised latent, pictures reach

{chr(10).join(control)}

## By number of fine-tuning steps

{CURVE_ASKED} pictures a point, started from the class mean.

![Text and ground by fine-tuning steps](images/photos-curve.png)

## Pictures

The first twelve requests, not chosen. From the top: the real photos, then plain training from noise, class mean, mean
given the text, own latent; window from the class mean; constant gain from the class mean.

![Rows of pictures](images/photos-rows.png)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", type=Path, default=Path("runs/study"))
    study = parser.parse_args().study
    table = results(study)
    (DOCS / "images").mkdir(parents=True, exist_ok=True)
    (DOCS / "photos.json").write_text(json.dumps(table, indent=1) + "\n")
    rows = ["plain-noise", "plain-mean", "plain-text", "plain-image", "window-mean", "constant-mean"]
    grid(study, rows, DOCS / "images" / "photos-rows.png")
    curve(table, DOCS / "images" / "photos-curve.png")
    before_after(study, DOCS / "images" / "before-after.png")
    (DOCS / "photos.md").write_text(page(study, table))


if __name__ == "__main__":
    main()
