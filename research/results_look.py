"""The look ahead: plain LoRA, plain full fine-tuning and no training, by photos, samplers and guidance; its variants.

Run by research/results.py --only look. Writes docs/research/results-look.json, results-look-photos.json and
results-look-variants.json.
"""

from __future__ import annotations

from pathlib import Path

import look_variants
import results_photos
from results_catalogue import compared, prepared

LORA, FULL, STOCK = look_variants.LORA, "plain:300", "stock"
MEAN, FEW, TEXT = "mean+zeromean", "mean-few50+zeromean", "text+zeromean"


def looks(training: str, start: str, *numbers: int, sampler: str = "") -> list[str]:
    """Methods that differ in the number of looks alone; 0: none."""
    return [f"{training}/{start}" + (f"+look{number}" if number else "") + sampler for number in numbers]


PHOTOS = [row for few in (50, 12, 5) for row in looks(LORA, f"mean-few{few}+zeromean", 0, 1, 2)]
ALL = [*looks(LORA, MEAN, 0, 1, 2, 4), *looks(LORA, TEXT, 0, 1, 2), *looks(LORA, "text-few50+zeromean", 0, 1),
       f"{LORA}/noise", f"{LORA}/{MEAN}+look1+unprojected"]  # fmt: skip
FULLY = [*looks(FULL, FEW, 0, 1, 2), *looks(FULL, MEAN, 0, 1), *looks(FULL, TEXT, 0, 1), f"{FULL}/noise"]
NONE = [*looks(STOCK, FEW, 0, 1), *looks(STOCK, TEXT, 0, 1), f"{STOCK}/noise"]
SAMPLERS = [row for sampler in ("+g1", "+g3", "+g7.5", "+dpm2m", "+eulera") for start in (FEW, TEXT)
            for row in looks(LORA, start, 0, 1, sampler=sampler)]  # fmt: skip
TRAINED = ["text-constant:lora8:lr0.003:300/text+zeromean"]
METHODS = [*PHOTOS, *ALL, *TRAINED, *FULLY, *NONE, *SAMPLERS]
QUESTIONS = {
    "A LoRA as everybody's, few photos": [f"{LORA}/{FEW}+look1", f"{LORA}/{FEW}", f"{LORA}/noise"],
    "Fewer photos": [f"{LORA}/mean-few12+zeromean+look1", f"{LORA}/mean-few12+zeromean"],
    "Five photos": [f"{LORA}/mean-few5+zeromean+look1", f"{LORA}/mean-few5+zeromean"],
    "Some 1,000 photos": [f"{LORA}/{MEAN}+look1", f"{LORA}/{MEAN}", f"{LORA}/{MEAN}+look1+unprojected"],
    "A start that has read the prompt": [f"{LORA}/{TEXT}+look1", f"{LORA}/{TEXT}", *TRAINED],
    "Plain full fine-tuning, few photos": [f"{FULL}/{FEW}+look1", f"{FULL}/{FEW}", f"{FULL}/noise"],
    "Plain full fine-tuning, mean given the text": [f"{FULL}/{TEXT}+look1", f"{FULL}/{TEXT}"],
    "Without any training": [f"{STOCK}/{FEW}+look1", f"{STOCK}/{FEW}", f"{STOCK}/noise"],
} | {
    f"{name}, {words}": [f"{LORA}/{start}+look1{sampler}", f"{LORA}/{start}{sampler}"]
    for sampler, name in (("+g1", "Guidance 1"), ("+g3", "Guidance 3"), ("+g7.5", "Guidance 7.5"),
                          ("+dpm2m", "DPM++ 2M"), ("+eulera", "Euler ancestral"))
    for start, words in ((FEW, "mean of 50 photos"), (TEXT, "mean given the text"))
}  # fmt: skip

PHOTOGRAPHED = [f"{LORA}/noise", *looks(LORA, FEW, 0, 1, 2), *looks(LORA, MEAN, 0, 1, 2), *looks(LORA, TEXT, 0, 1)]
"""On product photos."""
ASKED = {
    "Mean of 50 photos": [f"{LORA}/{FEW}+look2", f"{LORA}/{FEW}+look1", f"{LORA}/{FEW}", f"{LORA}/noise"],
    "Mean of all photos": [f"{LORA}/{MEAN}+look2", f"{LORA}/{MEAN}+look1", f"{LORA}/{MEAN}"],
    "Mean given the text": [f"{LORA}/{TEXT}+look1", f"{LORA}/{TEXT}"],
}


def run(out: Path) -> None:
    """Everything, from what is finished on."""
    prepared(out)
    compared(out, "results-look", METHODS, QUESTIONS, look_variants.MANY)
    rows = results_photos.photos(out / "photos")
    twice = [row | {"seed": row["seed"] + 1000 * again} for again in (0, 1) for row in rows]
    results_photos.compared(out / "photos", "results-look-photos", twice, PHOTOGRAPHED, ASKED, look_variants.MANY)
    look_variants.run(out)
