"""Does an image show what its prompt says: by an attribute classifier, or by CLIP similarity."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from onbrand.errors import OnbrandError
from onbrand.io import read_json, whole_file, write_text

if TYPE_CHECKING:
    from onbrand.models.clip import Clip

SHIPPED = {"garments": "garment-reader", "garments-clip": "garment-clip", "photos": "photos-reader"}
"""Name of an attribute classifier or CLIPModel that comes with the package -> its folder in `onbrand/assets/`."""
SETTINGS, WEIGHTS = "reader.json", "reader.safetensors"
"""Files of an attribute classifier's folder."""


def open_judge(folder: str | Path) -> AttributeClassifier | Clip:
    """Open who judges the text.

    Args:
        folder: an attribute classifier's folder (reader.json), a CLIPModel's folder (config.json), or the name of a
            shipped one.

    Raises:
        OnbrandError: the folder holds neither.
    """
    if str(folder) in SHIPPED:
        folder = Path(str(resources.files("onbrand") / "assets" / SHIPPED[str(folder)]))
    if (Path(folder) / SETTINGS).is_file():
        return AttributeClassifier.load(folder)
    from onbrand.models import clip  # transformers takes seconds to import: only if a CLIPModel is needed

    if clip.is_clip(folder):
        return clip.load(folder)
    raise OnbrandError(
        "classifier",
        f"text is judged by a folder with {SETTINGS}, by a CLIPModel's folder, or by a shipped attribute classifier "
        f"({', '.join(SHIPPED)}): {folder} is neither",
    )


def labels_of(prompts: Sequence[str], labels: Sequence[str]) -> Tensor:
    """Find the label that each prompt names.

    The longest label that stands in the prompt as whole words, in any case ("t-shirt" names no shirt); of two as long,
    the first.

    Args:
        prompts: B prompts.
        labels: the labels of one attribute.

    Returns:
        `(B,)` int64 index of the label; -1 if the prompt names none.
    """
    by_length = sorted(range(len(labels)), key=lambda i: -len(labels[i]))
    indices = []
    for prompt in map(str.casefold, prompts):
        places = {
            i: match.start()
            for i in by_length
            if (label := labels[i].casefold()) in prompt  # of a book the expression would take a second
            and (match := re.search(rf"(?<![\w-]){re.escape(label)}(?![\w-])", prompt))
        }
        indices.append(min(places, key=lambda i: (-len(labels[i]), places[i]), default=-1))
    return torch.tensor(indices, dtype=torch.int64)


@torch.no_grad()
def read(
    classifier: AttributeClassifier,
    images: Tensor,
    prompts: Sequence[str],
    attributes: Sequence[Mapping[str, str] | None] | None = None,
    batch: int = 256,
) -> dict[str, Tensor]:
    """Compare what the attribute classifier reads with what each image is to show.

    An image is to show its `attributes` if it has them, else what its prompt names.

    Args:
        classifier: gives a label for each of its attributes.
        images: `(B, 3, H, W)` in [0, 1].
        prompts: one for each image.
        attributes: attribute -> label for each image, or None.
        batch: images classified at a time.

    Returns:
        Attribute -> `(B,)` 1 if it is read as requested, 0 if not, nan if nothing is requested.

    Raises:
        OnbrandError: another number of prompts than of images, or a label that the classifier does not know.
    """
    if len(images) != len(prompts):
        raise OnbrandError("classifier", f"one prompt an image: got {len(prompts)} for {len(images)} images")
    parts = [classifier(part) for part in torch.split(images, batch)]
    right = {}
    for name, requests in requested_labels(classifier, prompts, attributes).items():
        likeliest = torch.cat([part[name].argmax(1).cpu() for part in parts]) if parts else requests
        right[name] = torch.where(requests < 0, torch.nan, (likeliest == requests).float())
    return right


def requested_labels(
    classifier: AttributeClassifier,
    prompts: Sequence[str],
    attributes: Sequence[Mapping[str, str] | None] | None = None,
) -> dict[str, Tensor]:
    """Attribute -> `(B,)` index of the label that each image is to show, as `read` has it; -1 if none is requested.

    Raises:
        OnbrandError: a label that the classifier does not know.
    """
    indices = {}
    for name, labels in classifier.attributes.items():
        indices[name] = labels_of(prompts, labels)
        for i, entry in enumerate(attributes or ()):
            if entry is not None:
                if entry.get(name, labels[0]) not in labels:
                    raise OnbrandError(
                        "classifier", f"{name} is one of {', '.join(labels)}; image {i} is to show {entry[name]!r}"
                    )
                indices[name][i] = labels.index(entry[name]) if name in entry else -1
    return indices


def all_right(right: Mapping[str, Tensor]) -> Tensor:
    """Reduce `read`'s columns to one, `(B,)`: 1 if every attribute is as requested, 0 if one is not, nan if none is."""
    table = torch.stack(list(right.values()), 1)
    worst = table.nan_to_num(1.0).amin(1)
    return torch.where(table.isnan().all(1), torch.nan, worst)


class AttributeClassifier(nn.Module):
    """A small convolutional net that reads attributes (kind, colour ...) off images.

    Args:
        attributes: name -> labels.
        width: channels of the first stage.
        side: pixels that images are averaged down to, 32 times a power of two: small details need a large one.

    Raises:
        OnbrandError: another `side`.
    """

    def __init__(self, attributes: dict[str, list[str]], width: int = 32, side: int = 32) -> None:
        super().__init__()
        self.attributes, self.width, self.side = {k: list(v) for k, v in attributes.items()}, width, side

        def stage(a: int, b: int, stride: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())

        w, halvings = width, (side // 32).bit_length() - 1
        if side != 32 << halvings:
            raise OnbrandError("classifier", f"side must be 32 times a power of two, got {side}")
        stem = [stage(3, w, 2), *(stage(w, w, 2) for _ in range(halvings - 1))] if halvings else [stage(3, w, 1)]
        self.body = nn.Sequential(
            *stem, stage(w, 2 * w, 2), stage(2 * w, 2 * w, 1), stage(2 * w, 4 * w, 2), stage(4 * w, 4 * w, 1)
        )
        self.heads = nn.ModuleDict({name: nn.Linear(4 * w * 4, len(labels)) for name, labels in attributes.items()})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits `(B, labels)` for each attribute; images `(B, 3, H, W)` in [0, 1]."""
        small = F.interpolate(images, (self.side, self.side), mode="area") * 2 - 1
        features = F.adaptive_avg_pool2d(self.body(small), 2).flatten(1)
        return {name: head(features) for name, head in self.heads.items()}

    @torch.no_grad()
    def read(self, images: Tensor, batch: int = 256) -> dict[str, list[str]]:
        """The likeliest label of each attribute, for each of the images `(B, 3, H, W)` in [0, 1]."""
        logits = [self(part) for part in torch.split(images, batch)]
        return {
            name: [labels[i] for part in logits for i in part[name].argmax(1).tolist()]
            for name, labels in self.attributes.items()
        }

    def save(self, folder: str | Path) -> None:
        """Write the weights (half precision) and the settings into `folder`."""
        folder = Path(folder)
        state = {k: v.half() if v.is_floating_point() else v for k, v in self.state_dict().items()}
        with whole_file(folder / WEIGHTS) as draft:
            save_file({k: v.contiguous() for k, v in state.items()}, draft)
        settings = {"attributes": self.attributes, "width": self.width, "side": self.side}
        write_text(folder / SETTINGS, json.dumps(settings, indent=1))

    @classmethod
    def load(cls, folder: str | Path) -> AttributeClassifier:
        """Open the attribute classifier that `save` wrote.

        Raises:
            OnbrandError: the folder holds none.
        """
        folder = Path(folder)
        if not (folder / SETTINGS).exists():
            raise OnbrandError(
                "classifier",
                f"an attribute classifier's folder holds {SETTINGS} and {WEIGHTS}; there is none in {folder}",
            )
        settings = read_json(folder / SETTINGS)
        try:
            classifier = cls(
                **{name: value for name, value in settings.items() if name in ("attributes", "width", "side")}
            )
            weights = {k: v.float() if v.is_floating_point() else v for k, v in load_file(folder / WEIGHTS).items()}
            classifier.load_state_dict(weights)
        except (SafetensorError, RuntimeError, AttributeError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise OnbrandError(
                "classifier", f"the attribute classifier in {folder} is damaged: {reason}; copy it anew"
            ) from error
        wrong = [name for name, part in classifier.state_dict().items() if not bool(part.isfinite().all())]
        if wrong:
            raise OnbrandError(
                "classifier",
                f"{folder / WEIGHTS} is damaged: {wrong[0]} holds numbers that are not finite; copy the attribute "
                "classifier anew",
            )
        return classifier.eval()
