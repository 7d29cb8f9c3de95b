"""A LoRA of a tenth of the size against full fine-tuning after as many steps, on the catalogue.

Run by research/results.py --only lora; some 40 minutes on one core. Writes docs/research/results-lora.json.
"""

from __future__ import annotations

from pathlib import Path

from results_catalogue import compared

STEPS = (100, 300, 1000)
FULL, LORA = (
    {steps: f"text-constant{made}:{steps}/text+zeromean" for steps in STEPS} for made in ("", ":lora8:lr0.003")
)
METHODS = [row[steps] for steps in STEPS for row in (FULL, LORA)]
QUESTIONS = {f"After {steps:,} steps": [LORA[steps], FULL[steps]] for steps in STEPS}


def run(out: Path) -> None:
    """Everything, from what is finished on."""
    compared(out, "results-lora", METHODS, QUESTIONS)
