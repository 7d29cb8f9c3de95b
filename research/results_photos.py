"""Fashion-MNIST photos, tinted, on the brand's white: the usual way, the class mean, the paper's training and ours.

Run by research/results.py --only photos. Writes docs/research/results-photos.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onbrand
from onbrand import api
from onbrand.datasets import fashion
from onbrand.options.compare import CompareSettings
from results_catalogue import CONFIG
from results_page import publish

HELD = 240
METHODS = ["stock/noise", "stock/mean", "plain/noise", "plain/mean", "mean-window/mean", "mean-constant/mean",
           "text-constant/text+zeromean"]  # fmt: skip
QUESTIONS = {
    "Is the class mean a better start than noise?": ["plain/mean", "plain/noise"],
    "Ours against the paper's": ["text-constant/text+zeromean", "mean-constant/mean", "mean-window/mean"],
}


def photos(out: Path) -> list[dict[str, Any]]:
    """Write the photos, the held-out ones and the brand, where they are not there yet; a request for each held-out."""
    if not (out / "photos" / "metadata.jsonl").exists():
        fashion.write_folder(out / "photos", "train")
    if not (out / "held" / "metadata.jsonl").exists():
        fashion.write_folder(out / "held", "test", HELD)
    if not (out / "brand" / "prior.safetensors").exists():
        api.fit(out / "photos", "tiny", out / "brand")
    rows = [json.loads(line) for line in (out / "held" / "metadata.jsonl").read_text().splitlines()]
    return [{"prompt": row["text"], "class": row["class"], "seed": i, "attributes": {
             "kind": row["kind"], "colour": row["colour"]}} for i, row in enumerate(rows)]  # fmt: skip


def compared(
    out: Path, name: str, rows: Sequence[dict[str, Any]], methods: Sequence[str], questions: Mapping[str, list[str]],
    config: CompareSettings = CONFIG,
) -> None:  # fmt: skip
    """Compare the methods on the requests `rows`, from what is finished on; publish docs/research/`name`.json."""
    requests = out / f"{name}.jsonl"
    requests.write_text("".join(json.dumps(row) + "\n" for row in rows))
    onbrand.compare(
        out / "photos",
        "tiny",
        out / "compare",
        methods=list(methods),
        prompts=requests,
        reference_images=out / "held",
        prior=out / "brand",
        attributes="photos",
        questions=dict(questions),
        **vars(config),
    )
    publish(out / "compare", name)


def run(out: Path) -> None:
    """Everything, from what is finished on."""
    compared(out, "results-photos", photos(out)[:96], METHODS, QUESTIONS)
