"""Read what a check found: which property fails most, which pictures, and how to make one of them again.

    python examples/read_report.py pictures/

pictures/ was written by `onbrand generate` and judged by `onbrand check`; check.json and manifest.jsonl lie in it.
"""

import argparse
import json
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    folder = parser.parse_args().pictures
    found = json.loads((folder / "check.json").read_text())
    lines = (folder / "manifest.jsonl").read_text().splitlines()
    made = {entry["file"]: entry for entry in map(json.loads, lines)}

    print(f"{found['all']['share']:.0%} of {found['count']} pictures pass every check")
    for name, score in sorted(found["properties"].items(), key=lambda one: one[1]["share"]):
        print(f"  {name:10} {score['share']:6.1%} ({score['low']:.1%} to {score['high']:.1%})  {score['rule']}")
    failing = [entry for entry in found["pictures"] if entry["failed"]]
    for entry in failing[:5]:
        request = made[entry["file"]]
        print(f"{entry['file']} fails {', '.join(entry['failed'])}: {request['prompt']!r}, seed {request['seed']}")
        for name in ("ground_near", "centre_x", "centre_y", "fill"):  # docs/properties.md says what each number is
            print(f"    {name} {entry['values'].get(name, 'none: no product')}")


if __name__ == "__main__":
    main()
