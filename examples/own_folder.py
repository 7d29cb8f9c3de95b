"""Five minutes, no training: a folder of photos and a checkpoint that exists give pictures in the brand's look.

    python examples/own_folder.py photos/ out/ --model MODEL --prompt "male garment, a red t-shirt"

photos/ holds pictures and, if you have them, captions: metadata.jsonl (file_name, text, class) or a .txt beside each.
"""

import argparse
from pathlib import Path

from onbrand import api
from onbrand.options.generate import GenerateConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="tiny", help="a diffusers folder, a .safetensors file, a Hub id, or tiny")
    parser.add_argument("--prompt", default="male garment, no person, white background, a red t-shirt")
    parser.add_argument("--count", type=int, default=8)
    given = parser.parse_args()
    brand = given.out / "brand"

    api.fit(given.photos, given.model, brand)  # a mean and components for each kind of picture, a regression from text
    api.diagnose(brand)  # does starting from noise miss this brand, and by how much?
    for start in ("noise", "mean", "text"):
        pictures = given.out / "pictures" / start
        config = GenerateConfig(start=start, guidance=1.0 if given.model == "tiny" else 7.5)
        api.generate(
            model=given.model, prior=brand, out=pictures, prompt=given.prompt, count=given.count, config=config
        )
        api.check(pictures, given.photos, prior=brand)  # check.json and the contact sheet check.png beside them
    api.report(given.out)  # one page that shows the three starts side by side


if __name__ == "__main__":
    main()
