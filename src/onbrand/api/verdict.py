"""check: do pictures keep the brand's look?"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def check(
    pictures: str | Path,
    against: str | Path,
    *,
    require: float | None = None,
    json: bool = False,
    prior: str | Path | None = None,
    model: str | Path | None = None,
) -> Any:
    """Check pictures against the brand's photos, property by property and picture by picture.

    What the brand's properties are is learnt from the photos: ground, centring, cropping, fill, light. With a prior,
    the kind of picture, variety and distance are judged too. Prints a table with 95 % intervals; writes check.json and
    the contact sheet check.png beside the pictures.

    Args:
        pictures: folder of pictures
        against: folder of the brand's real photos, as for `fit`
        require: share of pictures that must pass every check, in [0, 1]; below it the exit code is 1
        json: print what check.json says instead of the table
        prior: the brand's folder, for kind, variety and distance
        model: model whose autoencoder encodes for the prior; left out: the one that the brand was fitted with

    Returns:
        The result, with `passed`: whether `require` is met.

    Raises:
        ValueError: no pictures, or too few photos to learn from.
    """
    raise NotImplementedError
