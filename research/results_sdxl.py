"""The main rows on the catalogue under a network of SDXL's class, the stand-in that research/tiny/unet_sdxl.py taught.

Run by research/results.py --only sdxl, some 20 minutes on 2 cores. Publishes results-sdxl.json.
"""

from __future__ import annotations

from pathlib import Path

from results_catalogue import compared

NOISE, MEAN, PAPER, OURS = METHODS = (
    "plain/noise",
    "plain/mean",
    "mean-window/mean",
    "text-constant/text+zeromean",
)
QUESTIONS = {
    "Is the class mean a better start than noise, without training for it? (Fig. 1)": [MEAN, NOISE],
    "Does training with the start help? (Table 1)": [PAPER, MEAN, NOISE],
    "Ours against the paper's best": [OURS, PAPER, MEAN, NOISE],
}
FIGURES = {"question-3.webp": "results-sdxl.webp"}
"""Of the comparison -> name under docs/images."""


def run(out: Path) -> None:
    """Everything, from what is finished on."""
    compared(out, "results-sdxl", METHODS, QUESTIONS, figures=FIGURES, model="tiny-xl")
