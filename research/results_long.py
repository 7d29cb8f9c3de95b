"""Longer fine-tuning of the best row on the catalogue: how many images keep each property of the look?

Run by research/results.py --only long; some 65 minutes on one core. Writes docs/research/results-long.json.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from results_catalogue import CONFIG, compared

STEPS = 3000
OURS = "text-constant:v/text+zeromean"
METHODS = [OURS, f"{OURS}+eulera+trailing", f"{OURS}+eta1", f"{OURS}@held", "plain/image@held"]
QUESTIONS = {
    "Samplers that draw noise, matched": [f"{OURS}+eta1", f"{OURS}+eulera+trailing", OURS],
    "Beside the control, fine-tuned as long": [f"{OURS}@held", "plain/image@held"],
}


def run(out: Path) -> None:
    """Everything, from what is finished on."""
    compared(out, "results-long", METHODS, QUESTIONS, replace(CONFIG, max_train_steps=STEPS, ema_decay=0.995))
