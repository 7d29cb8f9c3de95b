"""Read what a check found: which property fails most, which images, and how to make one of them again.

    python examples/read_report.py images/

images/ was written by `onbrand generate` and judged by `onbrand check`; check.json and manifest.jsonl lie in it.
"""

import argparse
import json
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    folder = parser.parse_args().images
    content = json.loads((folder / "check.json").read_text())
    lines = (folder / "manifest.jsonl").read_text().splitlines()
    requests = {entry["file"]: entry for entry in map(json.loads, lines)}

    print(f"{content['all']['rate']:.0%} of {content['count']} images pass every check")
    for name, score in sorted(content["properties"].items(), key=lambda one: one[1]["rate"]):
        print(f"  {name:10} {score['rate']:6.1%} ({score['low']:.1%} to {score['high']:.1%})  {score['rule']}")
    failing = [entry for entry in content["images"] if entry["failed"]]
    for entry in failing[:5]:
        request = requests[entry["file"]]
        print(f"{entry['file']} fails {', '.join(entry['failed'])}: {request['prompt']!r}, seed {request['seed']}")
        for name in ("background_near", "centre_x", "centre_y", "fill"):  # docs/concepts/properties.md defines them
            print(f"    {name} {entry['values'].get(name, 'none: no product')}")


if __name__ == "__main__":
    main()
