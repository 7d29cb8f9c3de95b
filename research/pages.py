"""README's results, docs/research/results.md, log.md and all-results.html, from the figures in docs/research/*.json.

    python research/pages.py            writes the pages; seconds
    python research/pages.py --figures  and the figures of results.md

Words with places for numbers are in research/results_readme_words.md, results_words.md and log_words.md.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import results_rivals
from onbrand.comparison.methods import read_method
from onbrand.options.compare import CompareSettings
from results_page import DATA, DIFFERENCES, DOCS, IMAGES, figure_of, filled

HERE = Path(__file__).parent
PARTS = {
    "core": "results", "all": "results-all", "long": "results-long", "look": "results-look",
    "look-photos": "results-look-photos", "variants": "results-look-variants", "lora": "results-lora",
    "photos": "results-photos", "sdxl": "results-sdxl", "try-on": "results-try-on", "second": "results-second",
    "spectrum": "results-spectrum", "rates-lora8": "results-rates-lora8", "rates-full": "results-rates-full",
    **{f"rivals-{name}": f"results-rivals-{name}"
       for name in (*results_rivals.PARTS, *(f"few-{count}" for count in results_rivals.PHOTOS))},
}  # fmt: skip
"""Part of the experiments -> its file in docs/research, if it was published."""
README = (
    ("plain:lora8:300/noise", "as usual", "noise"),
    ("zero-snr:lora8:300/noise", "zero terminal SNR", "noise"),
    ("mean-window:lora8:300/mean", "the paper's", "class mean (paper)"),
    ("plain:lora8:300/text+zeromean+look1", "as usual", "**onbrand's**, no training needed"),
    ("text-constant:lora8:300/text+zeromean", "**onbrand's**", "**onbrand's**"),
    ("real", "", "real images, held out"),
)
"""README's table, of the part rivals-lora8-300: method, training, start."""
MAIN = (
    ("plain/noise", "plain", "noise"),
    ("plain/mean", "plain", "class mean (paper)"),
    ("plain/text+zeromean", "plain", "mean given the prompt, zero-mean noise (ours)"),
    ("mean-window/mean", "mean, window (paper)", "class mean"),
    ("mean-constant/mean", "mean, constant gain (ours)", "class mean"),
    ("text-constant/text+zeromean", "text, constant gain (**default**)", "mean given the prompt, zero-mean noise"),
    ("text-constant:v/text+zeromean", "the same, v-prediction", "the same"),
    ("zero-snr/noise", "zero terminal SNR, v-prediction", "noise"),
    ("plain/image@held", "plain", "each real image's own latent (control)"),
    ("real", "", "real images, held out"),
    ("autoencoder", "", "the same through the autoencoder"),
)
"""The main table of results.md: method, training, start."""
SHOWN = ("text", "background", "all", "diversity")
TITLES = {"all": "pass every check"}
LORA = "plain:lora8:lr0.003:300"
LOOKED = {"5": "mean-few5+zeromean", "12": "mean-few12+zeromean", "50": "mean-few50+zeromean", "1,000": "mean+zeromean"}
"""Photos a class -> start of the figure of looks."""
CURVES = {
    "plain/noise": "plain, from noise", "plain/mean": "plain, from the class mean",
    "mean-window/mean": "paper's training", "zero-snr/noise": "zero terminal SNR, v",
    "mean-constant:v/mean": "mean, constant gain, v", "text-constant:v/text": "text, constant gain, v",
}  # fmt: skip
"""Methods of the figure of sampling steps -> their words."""
RIVALS = {
    "text-constant/text+zeromean": "onbrand's training and start",
    "plain/text+zeromean+look1": "plain, onbrand's start with a look ahead",
    "mean-window/mean": "the paper's training and start", "zero-snr/noise": "zero terminal SNR, from noise",
    "plain/leak": "plain, signal-leak start", "plain/noise": "plain, from noise",
}  # fmt: skip
"""Methods of the table of training steps, without what learns and how fast -> their words."""
LEARNS = {"lora8": "a LoRA of rank 8", "full": "the whole UNet"}
OWN = {"real": "real images, held out", "autoencoder": "the same, through the autoencoder"}
"""Rows that no model made."""
COLUMNS = {
    "main": ("text", "background", "all", "diversity", "clip", "frechet", "out_of_distribution"),
    "properties": ("background", "centring", "cropping", "fill", "light", "pose", "class", "region", "region_near"),
    "attributes": ("text: view", "text: kind", "text: colour", "text: second_colour", "text: print", "text: length",
                   "text: sleeve", "text: gender"),
}  # fmt: skip
"""Sets of columns of the searchable page."""


def tables(docs: Path = DOCS) -> dict[str, dict[str, Any]]:
    """Part -> method -> score -> value, low, high, n."""
    files = {part: docs / DATA / f"{file}.json" for part, file in PARTS.items()}
    return {part: json.loads(file.read_text()) for part, file in files.items() if file.exists()}


def named(docs: Path = DOCS) -> dict[str, Any]:
    """Every row as `part:method`, every paired difference as `part:first less other`: what words name.

    Of the rivals without the learning rate that was chosen, and without their requests, which are the same for all."""
    rows = {(part, method): scores for part, table in tables(docs).items() for method, scores in table.items()}
    pairs = json.loads((docs / DATA / DIFFERENCES).read_text())
    for part, file in PARTS.items():
        for question in pairs.get(file, {}).values():
            for other, scores in question["others"].items():
                rows[part, f"{question['first']} less {other}"] = scores
    return {
        f"{part}:{re.sub(':lr[0-9.]+|@five', '', name) if 'rivals' in part else name}": scores
        for (part, name), scores in rows.items()
    }


def markdown(columns: tuple[str, ...], rows: Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]) -> str:
    """A table: words, then SHOWN scores without intervals."""
    lines = [f"|{'|'.join((*columns, *(TITLES.get(name, name) for name in SHOWN)))}|"]
    lines.append("|---" * len(columns) + "|--:" * len(SHOWN) + "|")
    for words, scores in rows:
        cells = [scores.get(name) for name in SHOWN]
        values = ["" if cell is None else figure_of({"value": cell["value"]}) for cell in cells]
        lines.append(f"|{'|'.join((*words, *values))}|")
    return "\n".join(lines) + "\n"


def between(page: str, mark: str, content: str) -> str:
    """The page with what stands between `<!-- mark -->` and `<!-- /mark -->` made anew."""
    before, opened, rest = page.partition(f"<!-- {mark} -->\n")
    _, closed, after = rest.partition(f"<!-- /{mark} -->")
    if not opened or not closed:
        raise ValueError(f"the page has <!-- {mark} --> and <!-- /{mark} -->; one is missing")
    return f"{before}{opened}{content}{closed}{after}"


def readme(docs: Path = DOCS) -> str:
    """README with its table and the words below it, between its marks, from the figures in docs/research."""
    parts = tables(docs)
    rows, count = named(docs), sum(map(len, parts.values()))
    lines = (((training, start), rows[f"rivals-lora8-300:{method}"]) for method, training, start in README)
    table = markdown(("LoRA's training", "start of sampling"), lines)
    words = filled((HERE / "results_readme_words.md").read_text(), rows).replace("{rows}", str(count))
    return between((docs.parent / "README.md").read_text(), "results", f"{table}\n{words}")


def results(docs: Path = DOCS) -> str:
    """docs/research/results.md."""
    core = tables(docs)["core"]
    table = markdown(("training", "start"), (((training, start), core[method]) for method, training, start in MAIN))
    page = between(filled((HERE / "results_words.md").read_text(), named(docs)), "main", table)
    for learns, methods in by_steps(docs).items():
        steps = sorted(next(iter(methods.values())))
        lines = [f"|{LEARNS[learns]}|{'|'.join(f'{n:,} steps' for n in steps)}|", "|---" + "|---" * len(steps) + "|"]
        lines += [f"|{words}|{'|'.join(figure_of(methods[method][n]['all']) for n in steps)}|"
                  for method, words in RIVALS.items()]  # fmt: skip
        page = between(page, learns, "\n".join(lines) + "\n")
    return page


def log(docs: Path = DOCS) -> str:
    """docs/research/log.md."""
    return filled((HERE / "log_words.md").read_text(), named(docs))


def described(part: str, method: str) -> tuple[str, str, str]:
    """(training, start, requests) of a row in words."""
    if method in OWN:
        return "", OWN[method], ""
    if part == "variants":
        start, _, way = method.partition(": ")
        return read_method(f"{LORA}/{start}", CompareSettings()).training.words, f"{start}: {way}", ""
    one = read_method(method, CompareSettings())
    return one.training.words, one.words, one.requests


def rounded(entry: Mapping[str, Any] | None) -> list[float] | None:
    """[value, low, high] to three digits."""
    return None if entry is None else [round(float(entry[key]), 3) for key in ("value", "low", "high")]


def searchable(docs: Path = DOCS) -> str:
    """docs/research/all-results.html: every row and every paired difference, to be filtered and sorted."""
    names = list(dict.fromkeys(name for group in COLUMNS.values() for name in group))
    rows = [
        [part, method, *described(part, method), scores["all"]["n"], *(rounded(scores.get(n)) for n in names)]
        for part, table in tables(docs).items()
        for method, scores in table.items()
    ]
    judged = ("text", "background", "all")
    parts = {file: part for part, file in PARTS.items()}
    pairs = [
        [parts[file], title, question["first"], other, *(rounded(scores.get(name)) for name in judged)]
        for file, questions in json.loads((docs / DATA / DIFFERENCES).read_text()).items()
        for title, question in questions.items()
        for other, scores in question["others"].items()
    ]
    data = {"names": names, "sets": COLUMNS, "rows": rows, "judged": judged, "pairs": pairs}
    page = (HERE / "all_results.html").read_text()
    return page.replace("/*DATA*/", json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("],[", "],\n["))


def curve(path: Path) -> None:
    """Background and text by sampling steps, 48 images a point."""
    from onbrand.reporting.figures import COLOURS, DASHES

    table, steps = tables()["all"], (2, 4, 8, 12, 20, 50)
    figure, axes = drawn(2, "DDIM steps")
    for axis, name in zip(axes, ("background", "text"), strict=True):
        for i, (method, words) in enumerate(CURVES.items()):
            entries = [table[f"{method}+{n}+trailing@one"].get(name) for n in steps]
            axis.plot(steps, [e["value"] for e in entries if e], color=COLOURS[i % len(COLOURS)], marker="o",
                      markersize=3.5, linestyle=DASHES[i % len(DASHES)], linewidth=1.6, label=words)  # fmt: skip
        axis.axhline(table["real"][name]["value"], color="0.4", linewidth=1, linestyle=":")
        axis.set(title=f"{name}: share of images", ylim=(-0.02, 1.04), xscale="log")
        axis.set_xticks(steps, [str(n) for n in steps])
        axis.minorticks_off()
    save(figure, axes[0], path, 3)


def bars(path: Path) -> None:
    """A plain LoRA from the class mean: every check passed, and text, by photos a class and looks ahead."""
    from onbrand.reporting.figures import COLOURS

    table = tables()["look"]
    figure, axes = drawn(2, "photos a class that the prior was fitted on")
    for axis, name in zip(axes, ("all", "text"), strict=True):
        for looks in (0, 1, 2):
            rows = [table[f"{LORA}/{start}{f'+look{looks}' if looks else ''}"] for start in LOOKED.values()]
            entries = [e for e in (row.get(name) for row in rows) if e]
            places = [x + 0.26 * (looks - 1) for x in range(len(entries))]
            values = [e["value"] for e in entries]
            reach = [[e["value"] - e["low"] for e in entries], [e["high"] - e["value"] for e in entries]]
            label = ("no look", "one look", "two looks")[looks]
            axis.bar(places, values, 0.24, yerr=reach, color=COLOURS[looks], label=label, error_kw={"linewidth": 0.8})
        axis.set(title="pass every check" if name == "all" else "show all of the text", ylim=(0, 0.45))
        axis.set_xticks(range(len(LOOKED)), list(LOOKED))
    save(figure, axes[0], path, 3)


def by_steps(docs: Path = DOCS) -> dict[str, dict[str, dict[int, Mapping[str, Any]]]]:
    """What learns -> a method of RIVALS -> training steps -> scores, of what was published."""
    points: dict[str, dict[str, dict[int, Mapping[str, Any]]]] = {}
    for name, scores in named(docs).items():
        found = re.fullmatch(r"rivals-(lora8|full)-\d+:([\w-]+)\S*:(\d+)/([^ ]+)", name)
        if found and (method := f"{found[2]}/{found[4]}") in RIVALS:
            points.setdefault(found[1], {}).setdefault(method, {})[int(found[3])] = scores
    return points


def drawn(panels: int, label: str) -> tuple[Any, Any]:
    """A figure of panels side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * panels, 3.4), layout="constrained")
    axes = figure.subplots(1, panels)
    for axis in axes:
        axis.set_xlabel(label)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="0.9", linewidth=0.6)
        axis.set_axisbelow(True)
    return figure, axes


def save(figure: Any, axis: Any, path: Path, columns: int) -> None:
    """Write the figure, one axis's legend under all panels."""
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=columns, frameon=False)
    figure.savefig(path, dpi=130, metadata={"Software": None})


def write(docs: Path = DOCS) -> None:
    """Every page."""
    (docs.parent / "README.md").write_text(readme(docs))
    for file, make in (("results.md", results), ("log.md", log), ("all-results.html", searchable)):
        (docs / DATA / file).write_text(make(docs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--figures", action="store_true", help="draw the figures of results.md anew, too")
    if parser.parse_args().figures:
        curve(DOCS / IMAGES / "results-sampling-steps.png")
        bars(DOCS / IMAGES / "results-looks.png")
    write()


if __name__ == "__main__":
    main()
