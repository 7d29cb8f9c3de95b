"""What generate's gate costs and gains on the brand that ships: requests drawn once, and again until they pass.

python benchmarks/gate.py [--count 96] [--max_draws 4] [--attributes garments] [--folder FOLDER] [--out gate.json]

The brand is fitted on 240 garments; the requests are captions of others. The first draws are the images of the run
without a gate, and `check` must give the rates that the gate told of both runs, or the script fails.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import onbrand
from onbrand.api._data import data
from onbrand.io import versions


def run(folder: Path, count: int, max_draws: int, attributes: str | None) -> dict[str, Any]:
    """Both runs: rates, diversity, images and seconds."""
    photos, others, brand = folder / "photos", folder / "others", folder / "brand"
    data("garments", photos, num_images=240)
    data("garments", others, split="test", num_images=count)
    onbrand.fit(photos, "tiny", brand)
    seconds, checks = [], []
    gate: dict[str, Any] = {"against": photos, "max_draws": max_draws, "attributes": attributes}
    for name, options in {"once": {}, "gated": gate}.items():
        start = time.perf_counter()
        onbrand.generate(
            others / "metadata.jsonl",
            model="tiny",
            prior=brand,
            output_dir=folder / name,
            guidance_scale=1.5,
            **options,
        )
        seconds.append(time.perf_counter() - start)
        checks.append(onbrand.check(folder / name, photos, prior=brand, attributes=attributes))
    gain = json.loads((folder / "gated" / "run.json").read_text())["gate"]
    if [one.rate for one in checks] != [gain["rate_first"], gain["rate"]]:
        raise SystemExit(f"check gives {[one.rate for one in checks]}, the gate {gain}")
    scores = [
        {name: one.content["measures"][name]["value"] for name in ("diversity", "frechet")}
        | {name: entry["rate"] for name, entry in one.content["properties"].items()}
        for one in checks
    ]
    return {
        **gain, "never": len(gain["never"]), "scores_first": scores[0], "scores": scores[1], "seconds_once": seconds[0],
        "seconds": seconds[1],
    }  # fmt: skip


def main() -> None:
    """Read the options, run, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=96)
    parser.add_argument("--max_draws", type=int, default=4)
    parser.add_argument("--attributes", help="an attribute classifier, as for check")
    parser.add_argument("--folder", type=Path, help="where images stay; default: nowhere")
    parser.add_argument("--out", type=Path, default=Path("gate.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        result = run(options.folder or Path(scratch), options.count, options.max_draws, options.attributes)
    settings = {"count": options.count, "max_draws": options.max_draws, "attributes": options.attributes}
    options.out.write_text(json.dumps({**settings, **result, "versions": versions()}, indent=2) + "\n")
    print(options.out.read_text())


if __name__ == "__main__":
    main()
