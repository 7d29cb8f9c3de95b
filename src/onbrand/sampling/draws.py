"""The gate: an image that fails is drawn again from its next seed, and what that cost and gained."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from onbrand.io import digest, plain

if TYPE_CHECKING:
    from onbrand.sampling.requests import Request
    from onbrand.sampling.sampler import GeneratedImage

FINITE = "finite"
"""What an image fails whose numbers are none."""


@dataclass(frozen=True)
class Draw:
    """One draw of an image."""

    seed: int
    failed: tuple[str, ...]
    """The properties that it fails; it passes if there are none."""


@dataclass(frozen=True)
class Gate:
    """What decides whether an image is drawn again; `evaluation.gate.open_gate` opens a brand's."""

    judge: Callable[[Sequence[GeneratedImage]], list[list[str]]]
    """Gives the properties that each image fails."""
    max_draws: int
    """Draws of an image, at most."""
    settings: Mapping[str, Any]
    """What it judges by, for config.json."""


def seed_of(seed: int, number: int) -> int:
    """The seed of a request's draw: its own for the first, number 0; else one that follows from both alone.

    It is below 2^53, which every reader of JSON holds exactly. Were it seed + 1, the next image of the same prompt
    would be drawn twice.
    """
    return seed if number == 0 else int(digest(f"draw {number} {seed}".encode())[:16], 16) >> 11


def draw(
    gate: Gate,
    batch: Sequence[int],
    requests: Sequence[Request],
    make: Callable[[Sequence[int], Sequence[Request]], list[GeneratedImage]],
) -> list[GeneratedImage]:
    """Draw the images of a batch; those that fail again, together, until each passes or has had all its draws.

    Of an image that never passes the draw that fails least stays, the first of equals. All follows from the batch
    alone: a batch that a kill cut short is drawn again, to the same images.

    Args:
        gate: judges the images.
        batch: their indices.
        requests: of the whole run.
        make: makes the images of some indices from requests.
    """
    draws: dict[int, list[Draw]] = {index: [] for index in batch}
    images: dict[int, tuple[tuple[bool, int], GeneratedImage]] = {}
    left = list(batch)
    for number in range(gate.max_draws):
        own = [replace(requests[index], seed=seed_of(requests[index].seed, number)) for index in left]
        drawn = make(left, own)
        finite = [image for image in drawn if image.finite]
        failures = iter(gate.judge(finite) if finite else [])
        for image in drawn:
            failed = tuple(next(failures)) if image.finite else (FINITE,)
            draws[image.index].append(Draw(image.request.seed, failed))
            rank = (not image.finite, len(failed))
            if image.index not in images or rank < images[image.index][0]:
                images[image.index] = rank, image
        left = [index for index in left if draws[index][-1].failed]
        if not left:
            break
    place = (batch[0], len(batch))
    return [replace(images[index][1], draws=tuple(draws[index]), batch=place) for index in batch]


def number_of(entry: Mapping[str, Any]) -> int:
    """Which of its draws the image of a manifest's line is; 0: the first, or the only one."""
    return [one["seed"] for one in entry.get("draws") or [entry]].index(entry["seed"])


def gain_of(entries: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What the gate cost and gained, from the manifest's lines: run.json's `gate`; {} if there was none."""
    lines = [entry for entry in entries if entry.get("draws")]
    if not lines:
        return {}
    never = [
        {"file": entry["file"], "failed": entry["draws"][number_of(entry)]["failed"]}
        for entry in lines
        if entry["draws"][-1]["failed"]
    ]
    count, drawn, passed = len(lines), sum(len(entry["draws"]) for entry in lines), len(lines) - len(never)
    return {
        "images": count,
        "drawn": drawn,
        "rate_first": sum(not entry["draws"][0]["failed"] for entry in lines) / count,
        "rate": passed / count,
        "drawn_per_pass": drawn / passed if passed else None,
        "never": never,
    }


def words_of(gain: Mapping[str, Any], limit: int = 20) -> list[str]:
    """`gain_of` as lines to print; of those that never passed the first `limit`."""
    never, each = gain["never"], gain["drawn_per_pass"]
    lines = [
        f"{gain['rate_first']:.1%} pass every check at the first draw, {gain['rate']:.1%} in the end; "
        f"{gain['drawn']} images drawn" + (f", {each:.2f} for each that passes" if each else "")
    ]
    lines += [f"{len(never)} never passed, all in run.json:"] if never else []
    lines += [f"  {plain(one['file'])}: {', '.join(one['failed'])}" for one in never[:limit]]
    return lines + ([f"  ... and {len(never) - limit} more"] if len(never) > limit else [])
