"""Does a picture show what its prompt says: by a reader of attributes, or by CLIP similarity."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from onbrand.measure.reader import Reader as Network

SHIPPED = {"garments": "garment-reader", "garments-clip": "garment-clip", "photos": "photos-reader"}
"""Name of a reader or CLIPModel that comes with the package -> its folder in `onbrand/assets/`."""


class Reader(Protocol):
    """Reads attributes (kind, colour, ...) off pictures; onbrand.measure.reader.Reader is one."""

    @property
    def attributes(self) -> Mapping[str, Sequence[str]]:
        """Labels of each attribute."""

    def __call__(self, pictures: Tensor, /) -> Any:
        """Logits or probabilities `(B, labels)` of each attribute, a dict; pictures `(B, 3, H, W)` in [0, 1]."""


class Scorer(Protocol):
    """Scores pictures against prompts; onbrand.models.clip.Clip is one."""

    @property
    def name(self) -> str:
        """What its scores are labelled with."""

    def __call__(self, pictures: Tensor, prompts: Sequence[str], /) -> Tensor:
        """Similarity `(B,)`; pictures `(B, 3, H, W)` in [0, 1], one prompt each."""


def open_judge(folder: str | Path) -> Reader | Scorer:
    """What lies in a folder: a reader (reader.json), or a CLIPModel (config.json); or a shipped one, by its name.

    ValueError where it is neither.
    """
    if str(folder) in SHIPPED:
        folder = Path(str(resources.files("onbrand") / "assets" / SHIPPED[str(folder)]))
    if (Path(folder) / "reader.json").is_file():
        return Network.load(folder)
    from onbrand.models import clip  # transformers takes seconds to import: only where it is asked for

    if clip.is_clip(folder):
        return clip.load(folder)
    raise ValueError(
        "text is judged by a folder with reader.json, by a CLIPModel's folder, or by a shipped reader "
        f"({', '.join(SHIPPED)}): {folder} is neither"
    )


def asked(prompts: Sequence[str], labels: Sequence[str]) -> Tensor:
    """Index of the label that each prompt names, `(B,)` int64; -1 where it names none.

    The longest label that stands in the prompt as whole words ("t-shirt" names no shirt), any case; of two as long,
    the one named first.
    """
    by_length = sorted(range(len(labels)), key=lambda i: -len(labels[i]))
    found = []
    for prompt in prompts:
        places = {
            i: match.start()
            for i in by_length
            if (match := re.search(rf"(?<![\w-]){re.escape(labels[i].casefold())}(?![\w-])", prompt.casefold()))
        }
        found.append(min(places, key=lambda i: (-len(labels[i]), places[i]), default=-1))
    return torch.tensor(found, dtype=torch.int64)


@torch.no_grad()
def read(
    reader: Reader,
    pictures: Tensor,
    prompts: Sequence[str],
    attributes: Sequence[Mapping[str, str] | None] | None = None,
    batch: int = 256,
) -> dict[str, Tensor]:
    """Whether the reader finds what is asked for: 1, 0, or nan where nothing is said of it, `(B,)` an attribute.

    What is asked for is a picture's `attributes` (attribute -> label) where it has them, else what its prompt names.
    ValueError unless there are as many prompts as pictures, and for a label that the reader does not know.
    """
    if len(pictures) != len(prompts):
        raise ValueError(f"one prompt a picture: got {len(prompts)} prompts for {len(pictures)} pictures")
    parts = [reader(part) for part in pictures.split(batch)]
    right = {}
    for name, labels in reader.attributes.items():
        wanted = asked(prompts, labels)
        for i, told in enumerate(attributes or ()):
            if told is not None:
                if told.get(name, labels[0]) not in labels:
                    raise ValueError(f"{name} is one of {', '.join(labels)}; picture {i} is to show {told[name]!r}")
                wanted[i] = labels.index(told[name]) if name in told else -1
        seen = torch.cat([part[name].argmax(1).cpu() for part in parts]) if parts else wanted
        right[name] = torch.where(wanted < 0, torch.nan, (seen == wanted).float())
    return right


def all_right(right: Mapping[str, Tensor]) -> Tensor:
    """1 where every attribute that the prompt names is read as asked, 0 where one is not, nan where none is named."""
    table = torch.stack(list(right.values()), 1)
    worst = table.nan_to_num(1.0).amin(1)
    return torch.where(table.isnan().all(1), torch.nan, worst)
