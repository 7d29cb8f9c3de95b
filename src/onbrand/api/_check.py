"""check: do images keep the brand's look?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onbrand.api._output import works_in
from onbrand.io import versions, write_json, write_png
from onbrand.options._verb import command, verb
from onbrand.options.check import CheckOptions

SHOWN = 300
"""Images on the contact sheet: the first ones."""


@dataclass(frozen=True)
class Checked:
    """The result of `check`."""

    rate: float
    """Rate of images that pass every check, in [0, 1]."""
    passed: bool
    """Whether `rate` reaches the required rate; True if none is required."""
    content: dict[str, Any]
    """What check.json says: rates with intervals by property, measures, and every image's failures."""


@verb(CheckOptions)
@works_in("images", "take fewer images at a time, or a prior of a smaller resolution", "together", new=False)
def check(options: CheckOptions) -> Checked:
    """Check images against the brand's photos, property by property and image by image.

    What the brand's properties are is learnt from the photos: background, centring, cropping, fill, light; with a prior
    also the class, diversity and distance; with an attribute classifier what the prompts ask for. Prints a table with
    95 % intervals; writes check.json and the contact sheet check.png beside the images.

    Returns:
        The rate of images that pass, whether it reaches `require`, and what check.json says. An image that does not
        open is listed, and passes nothing.

    Raises:
        OnbrandError: no image that opens, or too few photos to learn from.
    """
    from json import dumps

    from onbrand.api._inputs import brand_folder, open_autoencoder, open_prior, say_folders
    from onbrand.data.records import CHECK, SHEET
    from onbrand.evaluation.check import judge_images, open_judges
    from onbrand.evaluation.joints import BlazePose
    from onbrand.evaluation.loading import open_images, open_references, open_stances, places_of, size_of_first
    from onbrand.ranks import rank, sharing
    from onbrand.reporting.figures import contact_sheet
    from onbrand.reporting.table import lines_of

    folder, photos, split, require = Path(options.images), options.against, options.split, options.require
    prior = None if options.prior is None else open_prior(options.prior)
    say_folders(folder, photos, split, options.json)
    judges, net = open_judges(options.attributes, options.clip), BlazePose(options.pose) if options.pose else None
    pipe = open_autoencoder(options, prior)
    size, brand = prior.size if prior else size_of_first(folder), brand_folder(options.prior)
    images = open_images(folder, size, prior)
    stances = open_stances(net, photos, size, prior, split) if net else None
    with sharing():
        references = open_references(photos, places_of(images, prior, size), prior, pipe, brand, split)
        content = judge_images(images, references, prior, pipe, judges, stances, net(images.pixels) if net else None)
    content |= {"against": str(photos), "command": command("check", options), "versions": versions()}
    content |= {"fingerprints": {"prior": prior.fingerprint} if prior else {}}
    failures = [entry["failed"] for entry in content["images"][:SHOWN]]
    if rank() == 0:
        write_json(folder / CHECK, content)
        write_png(folder / SHEET, contact_sheet(*images.tiles(SHOWN), failures))
    rate, passed = float(content["all"]["rate"]), require is None or content["all"]["rate"] >= require
    print(dumps(content, indent=2, ensure_ascii=False) if options.json else "\n".join(lines_of(content)))
    if require is not None and not options.json:
        print(f"{rate:.1%} pass every check, {'as' if passed else 'fewer than the'} required {require:.1%}")
    if not options.json:
        print(f"wrote {folder / CHECK} and {SHEET}")
    return Checked(rate, passed, content)
