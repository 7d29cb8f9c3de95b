"""What tools/results.py measured -> docs/results.json, docs/results.md and the pictures in docs/images."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from demo import GUIDANCE
from onbrand.measure import intervals
from results import BATCH, CURVE, CURVE_SEEDS, LR, MODELS, SEEDS, STARTS

DOCS = Path(__file__).parents[1] / "docs"
BEST = "constant-text"
"""The row that the README shows."""
NAMES = {"tiny": "the stock model, no training", "plain": "plain training", "window": "mean offset, window (the paper)",
         "constant": "mean offset, constant gain (ours)",
         "constant-text": "text offset, constant gain (ours)"}  # fmt: skip
START_NAMES = {"noise": "noise", "mean": "class mean", "text": "mean given the text",
               "image": "real pictures' own latents (control)", "swapped": "the other kind's mean"}  # fmt: skip
PROPERTIES = ("ground", "centring", "cropping", "fill", "light", "pose", "kind")
MEASURES = ("all", "text", "stray", "diversity")
QUESTIONS = (
    ("plain training: is the class mean a better start than noise?", "plain-mean", "plain-noise"),
    ("plain training: is the mean given the text a better start than the class mean?", "plain-text", "plain-mean"),
    ("the paper: does window training with the mean beat only starting from it?", "window-mean", "plain-mean"),
    ("ours: does constant-gain training with the mean beat only starting from it?", "constant-mean", "plain-mean"),
    ("does the constant gain beat the window?", "constant-mean", "window-mean"),
    ("constant gain: is the mean given the text a better start than the class mean?", "constant-text-text",
     "constant-mean"),
    ("ours against noise", "constant-text-text", "plain-noise"),
)  # fmt: skip


def passed(folder: Path, score: str) -> torch.Tensor:
    """1 where a picture passes, 0 where it does not, by picture in the order of the requests."""
    entries = json.loads((folder / "check.json").read_text())["pictures"]
    return torch.tensor([score not in e["failed"] for e in sorted(entries, key=lambda e: e["file"])]).double()


def figure(found: intervals.Interval | dict[str, float], digits: int = 3, sign: str = "") -> str:
    e = found if isinstance(found, dict) else vars(found)
    value = f"{e['value']:{sign}.{digits}f}"
    return value if e.get("low") is None else f"{value} ({e['low']:{sign}.{digits}f} to {e['high']:{sign}.{digits}f})"


def results(run: Path) -> dict[str, dict[str, dict[str, float]]]:
    """{row: {measure: {value, low, high, n}}} of every row that was checked; attributes as `text: kind` and so on."""
    table = {}
    for folder in (run / "held", *sorted((run / "pictures").iterdir())):
        checked = json.loads((folder / "check.json").read_text())
        scores = {"all": checked["all"], **checked["properties"], **checked["measures"]}
        scores |= {f"text: {name}": e for name, e in checked["attributes"].items()}
        table["real pictures" if folder.name == "held" else folder.name] = {
            name: {"value": e.get("share", e.get("value")), "low": e["low"], "high": e["high"],
                   "n": e.get("of", checked["count"])}
            for name, e in scores.items()
        }  # fmt: skip
    return table


def grid(rows: list[Path], path: Path, columns: int = 12) -> None:
    """Rows of pictures under equal prompts and seeds: the first requests, not chosen."""
    lines = [[np.asarray(Image.open(row / f"{i:05d}.png").convert("RGB")) for i in range(columns)] for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate([np.concatenate(line, 1) for line in lines])).save(path, optimize=True)


def before_after(run: Path, path: Path, columns: int = 6, lines: int = 2) -> None:
    """The README's picture: the usual way beside ours, equal prompts and seeds, the first requests, not chosen."""
    panels = (("plain-noise", "fine-tuned as usual, started from noise"),
              (f"{BEST}-text", "fine-tuned and started with onbrand"))  # fmt: skip
    font, head, gap, side = ImageFont.load_default(22), 44, 32, 128
    sheet = Image.new("RGB", (2 * columns * side + gap, head + lines * side), "white")
    for panel, (row, words) in enumerate(panels):
        left = panel * (columns * side + gap)
        ImageDraw.Draw(sheet).text((left + 4, 8), words, "black", font)
        for i in range(columns * lines):
            picture = Image.open(run / "pictures" / row / f"{i:05d}.png")
            sheet.paste(picture, (left + i % columns * side, head + i // columns * side))
    ImageDraw.Draw(sheet).line((columns * side + gap // 2, 0, columns * side + gap // 2, sheet.height), "gray")
    sheet.save(path, optimize=True)


def curve(table: dict, path: Path) -> None:
    """Text and all properties by fine-tuning steps, each offset from its own start."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    drawn, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True, layout="constrained")
    for axis, score in zip(axes, ("text", "ground"), strict=True):
        for name, style in (("window", "s--"), ("constant", "o-"), ("constant-text", "^-")):
            first = [table["curve-tiny-0"]] if name != "constant-text" else []
            rows = [*first, *(table[f"curve-{name}-{steps}"] for steps in CURVE)]
            steps = [0, *CURVE][-len(rows) :]
            axis.plot(steps, [row[score]["value"] for row in rows], style, label=NAMES[name])
            axis.fill_between(steps, [r[score]["low"] for r in rows], [r[score]["high"] for r in rows], alpha=0.15)
        axis.axhline(table["plain-noise"][score]["value"], color="0.4", linewidth=1, label="plain training, from noise")
        axis.set(title=score, xlabel=f"fine-tuning steps of {BATCH}", ylim=(0, 1.02))
    axes[1].legend(loc="lower right", frameon=False, fontsize=8)
    drawn.savefig(path, dpi=130)


def named(table: dict) -> list[tuple[str, str, str]]:
    """(row, training, start) of all rows that were measured, the real pictures first."""
    rows = [("real pictures", "", "real pictures, held out")]
    rows += [(f"{m}-{s}", NAMES[m], START_NAMES[s]) for m in MODELS for s in STARTS[m]]
    return [row for row in rows if row[0] in table]


def lines(table: dict, columns: tuple[str, ...], digits: int = 3, bare: bool = False) -> str:
    """One Markdown table of all rows; `bare`: without intervals."""
    columns = tuple(c for c in columns if any(c in table[row] for row, *_ in named(table)))
    out = [f"| training | start | {' | '.join(c.removeprefix('text: ') for c in columns)} |"]
    out.append("|---|---|" + "---|" * len(columns))
    for row, training, start in named(table):
        cells = []
        for c in columns:
            e = table[row].get(c)
            cells.append("" if e is None else figure({"value": e["value"]} if bare else e, digits))
        out.append(f"| {training} | {start} | {' | '.join(cells)} |")
    return "\n".join(out)


def page(run: Path, table: dict) -> str:
    asked = ["| question | text | ground |", "|---|---|---|"]
    for question, a, b in QUESTIONS:
        pairs = [[passed(run / "pictures" / row, score) for row in (a, b)] for score in ("text", "ground")]
        cells = [figure(vars(intervals.difference(*pair)), sign="+") for pair in pairs]
        asked.append(f"| {question} ({a} minus {b}) | {cells[0]} | {cells[1]} |")
    attributes = tuple(sorted(name for name in table["real pictures"] if name.startswith("text: ")))
    words = Path(__file__).with_name("results_words.md").read_text().rstrip()
    leak = json.loads((run / "brand" / "leak.json").read_text())
    other = " ".join(f"{one['code']} {one['title']}. {one['sentence']}"
                     for one in json.loads((run / "zero-snr.json").read_text())["findings"])  # fmt: skip
    sigmas = ", ".join(f"{name} {one['sigma']:.1f}" for name, one in leak["classes"].items())
    count = 48 * SEEDS
    return f"""# Results on the catalogue

Made by `python tools/results.py` and `python tools/results_page.py` on an AMD EPYC, 2 cores; every number below is in
[results.json](results.json). The model is onbrand-tiny ([tiny.md](tiny.md)), a **stand-in** of Stable Diffusion's
real classes. Fine-tuned on the catalogue's 4,020 training pictures ([garments.md](garments.md)) for {CURVE[-1]:,} steps
of {BATCH} at learning rate {LR}, in bfloat16; then the 24 freeform descriptions, which belong to no picture of the
catalogue, as garment and as figure under {SEEDS} seeds, {count} pictures a row, equal seeds in all rows, 20 DDIM steps,
guidance {GUIDANCE:g}, one training seed. The control is started from {len(passed(run / "held", "all"))} held-out test
pictures' own latents under their own captions. 95 % bootstrap intervals over pictures.

How far the class means stand out of the noise at the first step, in sigma (`onbrand diagnose`): {sigmas}. Of the same
model's schedule rescaled to zero terminal SNR (`onbrand diagnose --zero_snr --spacing trailing`): "{other}"

{words}

## Every row

*all*: every property of the check; *text*: view, gender, kind, colour, second colour, print, length and sleeve, as far
as the description names them, all read as asked by a reader trained on real pictures only (of real pictures it reads
{table["real pictures"]["text"]["value"]:.1%} so); *stray*: of no class; *diversity*: variance over the catalogue's
(1 is right).

{lines(table, MEASURES)}

## Property by property

{lines(table, PROPERTIES)}

## Attribute by attribute

{lines(table, attributes, bare=True)}

## The questions, paired by seed

{chr(10).join(asked)}

## By number of fine-tuning steps

{48 * CURVE_SEEDS} pictures a point, each training from its own start. At 0: the stock model from the class mean.

![Text and ground by fine-tuning steps](images/results-curve.png)

## Pictures

The first twelve requests, not chosen. From the top: the stock model from noise; plain training from noise, class mean,
mean given the text; window from the class mean; constant gain from the class mean, from the mean given the text.

![Rows of pictures](images/results-rows.png)

The means swapped (the paper's Fig. 4): from the top plain training from the right mean, from the other kind's mean;
constant gain from the right mean, from the other kind's.

![Swapped means](images/results-swapped.png)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/results"))
    run = parser.parse_args().run
    table, made = results(run), run / "pictures"
    (DOCS / "images").mkdir(parents=True, exist_ok=True)
    (DOCS / "results.json").write_text(json.dumps(table, indent=1) + "\n")
    rows = ("tiny-noise", "plain-noise", "plain-mean", "plain-text", "window-mean", "constant-mean", f"{BEST}-text")
    grid([made / row for row in rows], DOCS / "images" / "results-rows.png")
    rows = ("plain-mean", "plain-swapped", "constant-mean", "constant-swapped")
    grid([made / row for row in rows], DOCS / "images" / "results-swapped.png")
    curve(table, DOCS / "images" / "results-curve.png")
    before_after(run, DOCS / "images" / "before-after.png")
    (DOCS / "results.md").write_text(page(run, table))


if __name__ == "__main__":
    main()
