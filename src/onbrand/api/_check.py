"""check: do pictures keep the brand's look?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onbrand.io import command, versions, write_json

SHOWN = 300
"""Pictures on the contact sheet: the first ones."""


@dataclass(frozen=True)
class Checked:
    """What `check` found."""

    share: float
    """Share of pictures that pass every check, in [0, 1]."""
    passed: bool
    """Whether `share` reaches what was required; True where nothing was."""
    content: dict[str, Any]
    """What check.json says: shares with intervals by property, measures, and every picture's failures."""


def check(
    pictures: str | Path,
    against: str | Path,
    *,
    require: float | None = None,
    json: bool = False,
    prior: str | Path | None = None,
    model: str | Path | None = None,
    reader: str | Path | None = None,
    clip: str | Path | None = None,
    split: str | None = None,
    pose: str | Path | None = None,
    device: str | None = None,
) -> Checked:
    """Check pictures against the brand's photos, property by property and picture by picture.

    What the brand's properties are is learnt from the photos: ground, centring, cropping, fill, light; with a prior
    also the kind of picture, variety and distance; with a reader what the prompts ask for. Prints a table with 95 %
    intervals; writes check.json and the contact sheet check.png beside the pictures.

    Args:
        pictures: folder of pictures that `generate` wrote, or any folder of pictures
        against: folder of the brand's real photos, as for `fit`
        require: share of pictures that must pass every check, in [0, 1]; below it the exit code is 1
        json: print what check.json says instead of the table
        prior: the brand's folder (or its prior.safetensors), for kind, variety and distance
        model: model whose autoencoder encodes for the prior; left out: the one that the brand was fitted with
        reader: folder with reader.json or of a CLIPModel, or shipped: garments, garments-clip, photos
        clip: a CLIPModel besides a reader, as for `reader`
        split: which part of `against`, as for `fit`
        pose: pose net for figures: pose_landmark_full.tflite, or the mediapipe wheel that holds it (onbrand[pose])
        device: cuda, cpu, ..., for the autoencoder; left out: a GPU where there is one

    Returns:
        The share that passes, whether `require` is met, and what check.json says.

    Raises:
        ValueError: no pictures, damaged ones, too few photos to learn from, or a `require` beyond [0, 1].
    """
    given = dict(locals())
    from json import dumps

    from onbrand.api._inputs import open_model, open_prior
    from onbrand.data.records import CHECK, SHEET
    from onbrand.evaluation.check import judge_pictures, open_judges
    from onbrand.evaluation.joints import BlazePose
    from onbrand.evaluation.loading import open_pictures, open_reference, open_stances, size_of_first
    from onbrand.reporting.figures import contact_sheet

    if require is not None and not 0 <= require <= 1:
        raise ValueError(f"require is a share in [0, 1]; got {require}")
    fitted = None if prior is None else open_prior(prior)
    judges = open_judges(reader, clip)
    net = None if pose is None else BlazePose(pose)
    pipe = open_model(model or fitted.provenance.model, device) if fitted else None
    size = fitted.provenance.resolution if fitted else size_of_first(pictures)
    made = open_pictures(pictures, size, fitted)
    brand = Path(prior) if prior is not None and Path(prior).is_dir() else None
    stances = open_stances(net, against, size, fitted, split) if net else None
    reference = open_reference(against, size, fitted, pipe, brand, split)
    content = judge_pictures(made, reference, fitted, pipe, judges, stances, net(made.pixels) if net else None)
    content |= {
        "against": str(against),
        "command": command(check, given),
        "versions": versions(),
        "fingerprints": {"prior": fitted.fingerprint} if fitted else {},
    }
    folder = Path(pictures)
    write_json(folder / CHECK, content)
    failed = [entry["failed"] for entry in content["pictures"]]
    contact_sheet(made.images[:SHOWN], made.prompts[:SHOWN], failed[:SHOWN]).save(folder / SHEET)

    share = float(content["all"]["share"])
    passed = require is None or share >= require
    if json:
        print(dumps(content, indent=2, ensure_ascii=False))
        return Checked(share, passed, content)
    say(content)
    if require is not None:
        print(f"{share:.1%} pass every check, {'as' if passed else 'fewer than the'} required {require:.1%}")
    print(f"wrote {folder / 'check.json'} and check.png")
    return Checked(share, passed, content)


def say(content: dict[str, Any]) -> None:
    """Print the table: a line a property, with its interval and what real photos kept back reach."""
    rows = {"all": {"title": "pass every check", **content["all"]}, **content["properties"]}
    width = max(len(entry["title"]) for entry in [*rows.values(), *content["measures"].values()])
    print(f"{content['count']} pictures, {content['learnt']} photos learnt from\n")
    print(f"{'':<{width}}   share  95 % interval   photos kept back")
    for name, entry in rows.items():
        kept = content["held_out"].get(name)
        interval = f"{entry['low']:6.1%} to {entry['high']:6.1%}"
        print(
            f"{entry['title']:<{width}}  {entry['share']:6.1%}  {interval}"
            + (f"  {kept:6.1%}" if kept is not None else "")
        )
    for name, entry in content["attributes"].items():
        print(f"{'of these, ' + name:<{width}}  {entry['share']:6.1%}  {entry['low']:6.1%} to {entry['high']:6.1%}")
    for name, entry in content["measures"].items():
        kept = content["held_out"].get(name)
        interval = f"{entry['low']:6.3g} to {entry['high']:6.3g}"
        print(
            f"{entry['title']:<{width}}  {entry['value']:6.3g}  {interval}"
            + (f"  {kept:6.3g}" if kept is not None else "")
        )
