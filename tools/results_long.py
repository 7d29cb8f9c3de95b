"""Longer fine-tuning of the best row on the catalogue: how many pictures keep each property of the look?

Run by tools/results.py --only long; some 40 minutes on one core. Writes docs/results-long.md and its pictures.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from results_catalogue import CONFIG, compared

STEPS = 3000
METHODS = [f"text-constant:v/text+zeromean{more}" for more in ("", "+eulera+trailing", "+eta1", "@held")]
QUESTIONS = {"Samplers that draw noise, matched": [METHODS[2], METHODS[1], METHODS[0]]}


def run(out: Path) -> None:
    """Everything, from what is finished on."""
    compared(out, "results-long", METHODS, QUESTIONS, replace(CONFIG, fine_tuning=STEPS, ema=0.995))
