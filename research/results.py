"""The experiments of docs/results*.md: the paper, its rivals and ours, by `onbrand compare`.

    python research/results.py [--only core,all,long,look,lora,photos,try-on]

Resumable, and shared by as many processes as are started; with everything finished it writes the pages anew in
minutes. docs/results*.md, docs/results*.json and docs/images/results-* are written by it alone; its words are in
research/results*_words.md.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

import results_all
import results_long
import results_look
import results_lora
import results_photos
import results_try_on
from onbrand.comparison.tables import figure_of
from results_catalogue import compared
from results_page import DOCS, filled

OURS, OURS_V = "text-constant/text+zeromean", "text-constant:v/text+zeromean"
CAPTIONS = [f"{name}@held" for name in (OURS, OURS_V, "mean-window/mean", "plain/noise", f"{OURS}+eta1",
            "plain/image+eta1")]  # fmt: skip
"""On the control's own captions."""
FRESH = [f"{name}+eta1" for name in ("mean-window/mean", OURS, OURS_V)]
METHODS = [*results_all.CORE, *results_all.CONTROL, OURS_V, "zero-snr/noise", *CAPTIONS, *FRESH]
QUESTIONS = {
    "Is the class mean a better start than noise, without training for it? (Fig. 1)": ["plain/mean", "plain/noise"],
    "Does training with the start help? (Table 1)": ["mean-window/mean", "plain/mean", "plain/noise"],
    "Ours against the paper's best": [
        OURS, "text-constant/text", "mean-constant/mean", "mean-window/mean",
        "plain/text+zeromean", "plain/text"],
    "The rival to beat": [OURS_V, "zero-snr/noise", OURS],
    "On the control's captions": [f"{OURS_V}@held", f"{OURS}@held", "mean-window/mean@held", "plain/image@held"],
    "Fresh noise (eta 1), matched": [f"{OURS}+eta1", OURS, "mean-window/mean+eta1"],
}  # fmt: skip
SHOWN = {"plain/noise": "fine-tuned as usual, started from noise", OURS: "fine-tuned and started with onbrand"}
"""The README's picture."""


README = (
    ("real", "", "real pictures, held out"), ("autoencoder", "", "the same, through the model's autoencoder"),
    ("plain/noise", "as usual", "noise (as usual)"),
    ("plain/mean", "as usual", "class mean (the paper)"),
    ("plain/text+zeromean", "as usual", "mean given the prompt, noise of zero mean (ours)"),
    ("mean-window/mean", "mean offset, window (the paper)", "class mean"),
    ("mean-constant/mean", "mean offset, constant gain (ours)", "class mean"),
    ("text-constant/text+zeromean", "text offset, constant gain (ours)", "mean given the prompt, noise of zero mean"),
    ("plain/image@held", "as usual", "each real picture's own latent (control)"),
)  # fmt: skip
"""The README's table: method, training, start."""


def readme() -> None:
    """The README's table and the words below it, between its two marks, from the pages' own figures in docs/."""
    files = {"core": "results.json"} | {
        part: f"results-{part}.json" for part in ("photos", "try-on", "long", "lora", "look")
    }
    pages = {part: json.loads((DOCS / file).read_text()) for part, file in files.items()}
    head = "| training | start | text | ground | pass every check | variety |\n|---|---|---|---|---|---|\n"
    lines = []
    for name, training, start in README:
        cells = [figure_of(pages["core"][name][score]) for score in ("text", "ground", "all", "diversity")]
        lines.append(f"| {training} | {start} | {' | '.join(cells)} |\n")
    named = {f"{part}:{method}": scores for part, page in pages.items() for method, scores in page.items()}
    words = filled(Path(__file__).with_name("results_readme_words.md").read_text(), named)
    path = DOCS.parent / "README.md"
    before, _, rest = path.read_text().partition("<!-- results -->\n")
    _, _, after = rest.partition("<!-- /results -->")
    path.write_text(f"{before}<!-- results -->\n{head}{''.join(lines)}\n{words}<!-- /results -->{after}")


def before_after(out: Path, path: Path, columns: int = 6, lines: int = 2) -> None:
    """The README's picture: the usual way beside ours, equal prompts and seeds, the first requests, not chosen."""
    rows = json.loads((out / "compare" / "compare.json").read_text())["rows"]
    font, head, gap, side = ImageFont.load_default(22), 44, 32, 128
    sheet = Image.new("RGB", (2 * columns * side + gap, head + lines * side), "white")
    for panel, (name, words) in enumerate(SHOWN.items()):
        left = panel * (columns * side + gap)
        ImageDraw.Draw(sheet).text((left + 4, 8), words, "black", font)
        for i in range(columns * lines):
            picture = Image.open(out / "compare" / rows[name]["pictures"] / f"{i:05d}.png")
            sheet.paste(picture, (left + i % columns * side, head + i // columns * side))
    ImageDraw.Draw(sheet).line((columns * side + gap // 2, 0, columns * side + gap // 2, sheet.height), "gray")
    sheet.save(path, optimize=True)


def core(out: Path) -> None:
    """The main rows under ten seeds, README's picture."""
    compared(out, "results", METHODS, QUESTIONS)
    before_after(out, DOCS / "images" / "before-after.png")


PARTS = {
    "core": core, "all": results_all.run, "long": results_long.run, "look": results_look.run, "lora": results_lora.run,
    "photos": lambda out: results_photos.run(out / "photos"), "try-on": lambda out: results_try_on.run(out / "try-on"),
}  # fmt: skip
"""Part -> what makes its page."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/results"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, as core,photos")
    given = parser.parse_args()
    wanted = given.only.split(",")
    if unknown := sorted(set(wanted) - set(PARTS)):
        parser.error(f"parts are {', '.join(PARTS)}; got {', '.join(unknown)}")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    torch.set_num_threads(given.threads)
    for part in wanted:
        PARTS[part](given.out)
    readme()


if __name__ == "__main__":
    main()
