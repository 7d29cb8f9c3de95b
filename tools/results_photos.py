"""Fashion-MNIST photos, tinted, on the brand's white: the usual way, the class mean, the paper's training and ours.

Run by tools/results.py --only photos. Writes docs/results-photos.md and its pictures.
"""

from __future__ import annotations

import json
from pathlib import Path

from onbrand import api
from onbrand.data import catalogue
from results_catalogue import CONFIG
from results_page import publish

HELD = 240
METHODS = ["stock/noise", "stock/mean", "plain/noise", "plain/mean", "mean-window/mean", "mean-constant/mean",
           "text-constant/text+zeromean"]  # fmt: skip
QUESTIONS = {
    "Is the class mean a better start than noise?": ["plain/mean", "plain/noise"],
    "Ours against the paper's": ["text-constant/text+zeromean", "mean-constant/mean", "mean-window/mean"],
}


def run(out: Path) -> None:
    """Everything, from what is finished on."""
    photos, held, asked = out / "photos", out / "held", out / "requests.jsonl"
    if not (photos / "metadata.jsonl").exists():
        catalogue.write_folder(photos, "train")
    if not (held / "metadata.jsonl").exists():
        catalogue.write_folder(held, "test", HELD)
    rows = [json.loads(line) for line in (held / "metadata.jsonl").read_text().splitlines()]
    lines = [{"prompt": row["text"], "class": row["class"], "seed": i, "attributes": {
              "kind": row["kind"], "colour": row["colour"]}} for i, row in enumerate(rows[:96])]  # fmt: skip
    asked.write_text("".join(json.dumps(line) + "\n" for line in lines))
    if not (out / "brand" / "prior.safetensors").exists():
        api.fit(photos, "tiny", out / "brand")
    api.compare(photos, "tiny", out / "compare", methods=METHODS, prompts=asked, held=held, prior=out / "brand",
                reader="photos", questions=QUESTIONS, config=CONFIG)  # fmt: skip
    publish(out / "compare", "results-photos")
