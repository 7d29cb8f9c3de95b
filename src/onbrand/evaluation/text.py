"""Does a picture show what its prompt says: by a reader of attributes, or by CLIP similarity."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

SHIPPED = {"garments": "garment-reader", "garments-clip": "garment-clip", "photos": "photos-reader"}
"""Name of a reader or CLIPModel that comes with the package -> its folder in `onbrand/assets/`."""


class Scorer(Protocol):
    """Scores pictures against prompts; onbrand.models.clip.Clip is one."""

    @property
    def name(self) -> str:
        """What its scores are labelled with."""

    def __call__(self, pictures: Tensor, prompts: Sequence[str], /) -> Tensor:
        """Similarity `(B,)`; pictures `(B, 3, H, W)` in [0, 1], one prompt each."""


def open_judge(folder: str | Path) -> AttributeClassifier | Scorer:
    """What lies in a folder: a reader (reader.json), or a CLIPModel (config.json); or a shipped one, by its name.

    ValueError where it is neither.
    """
    if str(folder) in SHIPPED:
        folder = Path(str(resources.files("onbrand") / "assets" / SHIPPED[str(folder)]))
    if (Path(folder) / "reader.json").is_file():
        return AttributeClassifier.load(folder)
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
    reader: AttributeClassifier,
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


class AttributeClassifier(nn.Module):
    """Reads `attributes`, a dict of name -> labels, off pictures `(B, 3, H, W)` in [0, 1].

    Pictures are averaged down to `side` pixels first, 32 times a power of two: how coarse the things are that it reads.
    """

    def __init__(self, attributes: dict[str, list[str]], width: int = 32, side: int = 32) -> None:
        super().__init__()
        self.attributes, self.width, self.side = {k: list(v) for k, v in attributes.items()}, width, side

        def stage(a: int, b: int, stride: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())

        w, halvings = width, (side // 32).bit_length() - 1
        if side != 32 << halvings:
            raise ValueError(f"side must be 32 times a power of two, got {side}")
        first = [stage(3, w, 2), *(stage(w, w, 2) for _ in range(halvings - 1))] if halvings else [stage(3, w, 1)]
        self.body = nn.Sequential(
            *first, stage(w, 2 * w, 2), stage(2 * w, 2 * w, 1), stage(2 * w, 4 * w, 2), stage(4 * w, 4 * w, 1)
        )
        self.heads = nn.ModuleDict({name: nn.Linear(4 * w * 4, len(labels)) for name, labels in attributes.items()})

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """Logits `(B, labels)` for each attribute; pictures `(B, 3, H, W)` in [0, 1]."""
        small = F.interpolate(pictures, (self.side, self.side), mode="area") * 2 - 1
        features = F.adaptive_avg_pool2d(self.body(small), 2).flatten(1)
        return {name: head(features) for name, head in self.heads.items()}

    @torch.no_grad()
    def read(self, pictures: Tensor, batch: int = 256) -> dict[str, list[str]]:
        """The likeliest label of each attribute for each of the pictures `(B, 3, H, W)` in [0, 1]."""
        logits = [self(part) for part in pictures.split(batch)]
        return {
            name: [labels[i] for part in logits for i in part[name].argmax(1).tolist()]
            for name, labels in self.attributes.items()
        }

    def save(self, folder: str | Path) -> None:
        """Write `reader.safetensors` (half precision) and `reader.json` into `folder`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {k: v.half() if v.is_floating_point() else v for k, v in self.state_dict().items()}
        save_file({k: v.contiguous() for k, v in state.items()}, folder / "reader.safetensors")
        built = {"attributes": self.attributes, "width": self.width, "side": self.side}
        (folder / "reader.json").write_text(json.dumps(built, indent=1))

    @classmethod
    def load(cls, folder: str | Path) -> AttributeClassifier:
        """A saved reader; ValueError where there is none."""
        folder = Path(folder)
        if not (folder / "reader.json").exists():
            raise ValueError(f"a reader's folder holds reader.json and reader.safetensors; there is none in {folder}")
        reader = cls(**json.loads((folder / "reader.json").read_text()))
        reader.load_state_dict({k: v.float() if v.is_floating_point() else v
                                for k, v in load_file(folder / "reader.safetensors").items()})  # fmt: skip
        return reader.eval()
