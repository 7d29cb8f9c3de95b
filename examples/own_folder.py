"""Five minutes, no training: a folder of photos and a checkpoint that exists give images in the brand's look.

    python examples/own_folder.py photos/ out/ --model MODEL --prompt "male garment, a red t-shirt"

photos/ holds images and, if you have them, captions: metadata.jsonl (file_name, text, class) or a .txt beside each.
"""

import argparse
from pathlib import Path

import onbrand


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--model", default="tiny", help="a diffusers folder, a .safetensors file, a Hub id, or tiny")
    parser.add_argument("--prompt", default="male garment, no person, white background, a red t-shirt")
    parser.add_argument("--num_images_per_prompt", type=int, default=8)
    given = parser.parse_args()
    brand = given.output_dir / "brand"

    onbrand.fit(given.photos, given.model, brand)  # mean and components of each class of image, regression from text
    onbrand.diagnose(brand)  # does starting from noise miss this brand, and by how much?
    for start in ("noise", "mean", "text"):
        images = given.output_dir / "images" / start
        onbrand.generate(
            model=given.model,
            prior=brand,
            output_dir=images,
            prompt=given.prompt,
            num_images_per_prompt=given.num_images_per_prompt,
            start=start,
            guidance_scale=1.0 if given.model == "tiny" else 7.5,
        )
        onbrand.check(images, given.photos, prior=brand)  # check.json and the contact sheet check.png beside them
    onbrand.report(given.output_dir)  # one page that shows the three starts side by side


if __name__ == "__main__":
    main()
