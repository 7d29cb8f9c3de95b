"""The experiments of docs/research: the paper, its baselines and ours, by `onbrand compare`.

    python research/results.py [--only PART,PART]

`--help` lists the parts. Resumable, and shared by as many processes as are started. It alone writes
docs/research/results*.json, differences.json and docs/images/results-*; pages.py makes pages of them.
"""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path

import torch

import pages
import results_all
import results_long
import results_look
import results_lora
import results_photos
import results_rivals
import results_sdxl
import results_second
import results_spectrum
import results_try_on
from results_catalogue import compared

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
    "The baseline to beat": [OURS_V, "zero-snr/noise", OURS],
    "On the control's captions": [f"{OURS_V}@held", f"{OURS}@held", "mean-window/mean@held", "plain/image@held"],
    "Sampling noise (eta 1), matched": [f"{OURS}+eta1", OURS, "mean-window/mean+eta1"],
}  # fmt: skip
FIGURES = {"question-3.webp": "results-images.webp"}
"""Of the comparison -> name under docs/images."""


def core(out: Path) -> None:
    """The main rows under ten seeds."""
    compared(out, "results", METHODS, QUESTIONS, figures=FIGURES)


PARTS = {
    "core": core, "all": results_all.run, "long": results_long.run, "look": results_look.run, "lora": results_lora.run,
    "photos": lambda out: results_photos.run(out / "photos"),
    **{f"rivals-{name}": partial(results_rivals.run, name) for name in results_rivals.PARTS},
    "rivals-few": results_rivals.few, "second": lambda out: results_second.run(out / "second", rates_from=out),
    "sdxl": lambda out: results_sdxl.run(out / "sdxl"), "spectrum": results_spectrum.run,
    "try-on": lambda out: results_try_on.run(out / "try-on"),
}  # fmt: skip
"""Part -> what makes its figures."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/results"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default=",".join(PARTS), help=f"any of {','.join(PARTS)}")
    given = parser.parse_args()
    wanted = given.only.split(",")
    if unknown := sorted(set(wanted) - set(PARTS)):
        parser.error(f"parts are {', '.join(PARTS)}; got {', '.join(unknown)}")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    torch.set_num_threads(given.threads)
    for part in wanted:
        PARTS[part](given.out)
    pages.write()


if __name__ == "__main__":
    main()
