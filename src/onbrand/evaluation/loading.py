"""What a check looks at: pictures and photos opened, and what the brand is like, learnt once."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from onbrand.core import Prior
from onbrand.data.images import Refused, open_picture, pad, to_tensor
from onbrand.data.latents import FOLDER as LATENTS
from onbrand.data.records import Record, read_folder
from onbrand.evaluation.joints import Net, Stance, learn_stances
from onbrand.evaluation.likelihood import FILE as UNSEEN
from onbrand.evaluation.likelihood import kinds_of_photos
from onbrand.evaluation.reference import Reference, learn
from onbrand.io import write_json
from onbrand.models.fitting import encode_records
from onbrand.models.pipeline import channels_last, decode, encode, to_x0
from onbrand.sampling import manifest

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

RULES = 2
"""Version of the rules by which ranges are learnt: raised whenever a change of them gives other ranges."""
LEARNT, NUMBERS = 2000, 4e8
"""Photos learnt from, evenly spread over the folder: at most, and such that their pixels take 1.6 GB."""
POSED = 100
"""Photos of each class that the pose net sees, at most."""


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures to judge, opened."""

    files: list[str]
    images: list[Image.Image]
    pixels: Tensor
    """`(B, 3, H, W)` in [0, 1]."""
    prompts: list[str]
    classes: list[str]
    """Kind of picture asked for; "" without a prior."""
    attributes: Sequence[Mapping[str, str] | None] = ()
    """What each is to show, attribute -> label; None (or none at all) where only the prompt says it."""
    conditioning: Sequence[Sequence[Path]] = ()
    """Control pictures that each was made from; none at all where none was."""


def size_of_first(folder: str | Path) -> tuple[int, int]:
    """(H, W) of the folder's first picture."""
    for record in read_folder(Path(folder))[0]:
        content = record.read()
        opened = content if isinstance(content, Refused) else open_picture(record.file, content)
        if not isinstance(opened, Refused):
            return opened.height, opened.width
    raise ValueError(f"pictures to check are needed; {folder} has none that can be opened")


def open_pictures(folder: str | Path, size: tuple[int, int], prior: Prior | None) -> Pictures:
    """The pictures of a manifest, or else of any folder; ValueError that names those that cannot be opened."""
    folder = Path(folder)
    if (folder / manifest.LINES).is_file():
        entries = [entry for _, entry in sorted(manifest.read(folder).items())]
        asked = [
            (folder / e["file"], e["prompt"], e["class"], e.get("attributes"), e.get("conditioning")) for e in entries
        ]
    else:
        records, refused = read_folder(folder)
        if refused:
            raise ValueError(f"every picture is to be checked; {len(refused)} of {folder} cannot be, as {refused[0]}")
        asked = [(r.file, r.text, r.class_name, r.attributes, r.conditioning and [r.conditioning]) for r in records]
    if not asked:
        raise ValueError(f"pictures to check are needed; {folder} has none")
    images = []
    for file, *_ in asked:
        image = open_picture(file)
        if isinstance(image, Refused):
            raise ValueError(f"every picture is to be checked; {image}")
        images.append(image)
    classes = [_class(prior, name, prompt) for _, prompt, name, *_ in asked] if prior else [""] * len(asked)
    pixels = pixels_of(images, size)
    names = [str(file.relative_to(folder)) if file.is_relative_to(folder) else str(file) for file, *_ in asked]
    prompts, attributes = [entry[1] for entry in asked], [entry[3] for entry in asked]
    conditioning = [[Path(one) for one in entry[4] or ()] for entry in asked]
    return Pictures(names, images, pixels, prompts, classes, attributes, conditioning)


def open_reference(
    photos: str | Path,
    size: tuple[int, int],
    prior: Prior | None,
    pipe: StableDiffusionPipeline | None,
    brand: Path | None,
    split: str | None = None,
) -> Reference:
    """What the photos are like: learnt, or read from brand/reference.json where the same photos were learnt from."""
    records, _ = read_folder(photos, split)
    most = max(1, min(LEARNT, int(NUMBERS / (3 * size[0] * size[1]))))
    records = records[:: max(1, math.ceil(len(records) / most))]
    key = _key(records, size, prior, brand)
    file = brand / "reference.json" if brand else None
    if file and file.is_file():
        held = json.loads(file.read_text())
        if held["key"] == key:
            return Reference.from_json(json.dumps(held["reference"]))
    pixels, used = _open_photos(records, size)
    if not used:
        raise ValueError(f"photos to learn from are needed; {photos} has none that can be opened")
    kinds, classes, decoded = None, None, None
    if prior and pipe:
        x0, keys = (encode_x0(pipe, pixels), []) if brand is None else _stored_x0(pipe, used, brand, size, prior)
        classes = [_class(prior, record.class_name, record.text) for record in used]
        kinds = kinds_of_photos(prior, x0, classes, keys, brand)
        decoded = decode_x0(pipe, x0)
    reference = learn(pixels, kinds, classes=classes, decoded=decoded)
    if file:
        write_json(file, {"key": key, "reference": json.loads(reference.to_json())})
    return reference


def open_stances(
    net: Net, photos: str | Path, size: tuple[int, int], prior: Prior | None, split: str | None = None
) -> dict[str, Stance]:
    """How people stand in the photos, by class: POSED of each, evenly spread. ValueError where there are none."""
    by_class: dict[str, list[Record]] = {}
    for record in read_folder(photos, split)[0]:
        name = _class(prior, record.class_name, record.text) if prior else ""
        by_class.setdefault(name, []).append(record)
    stances: dict[str, Stance] = {}
    for name, records in by_class.items():
        pixels, _ = _open_photos(records[:: math.ceil(len(records) / POSED)], size)
        stances |= learn_stances(net, pixels, [name] * len(pixels)) if len(pixels) else {}
    if not stances:
        raise ValueError(f"a pose is learnt from photos of people; the net finds none in {photos}; leave out --pose")
    return stances


def _open_photos(records: Sequence[Record], size: tuple[int, int]) -> tuple[Tensor, list[Record]]:
    """Photos that can be opened, `(B, 3, H, W)` in [0, 1], and their records."""
    pixels, used = [], []
    for record in tqdm(records, "photos", unit=" photos"):
        content = record.read()
        picture = content if isinstance(content, Refused) else open_picture(record.file, content)
        if not isinstance(picture, Refused):
            pixels.append(_pixels(picture, size))
            used.append(record)
    return torch.stack(pixels) if pixels else torch.zeros(0, 3, *size), used


@torch.no_grad()
def encode_x0(pipe: StableDiffusionPipeline, pixels: Tensor, batch: int = 8) -> Tensor:
    """x0 `(B, C, h, w)` on the CPU of pictures `(B, 3, H, W)` in [0, 1]: the posterior's mean, as in the fit."""
    with channels_last(pipe.vae):
        return torch.cat([to_x0(pipe, encode(pipe, part * 2 - 1)[0]).cpu() for part in pixels.split(batch)])


def decode_x0(pipe: StableDiffusionPipeline, x0: Tensor, batch: int = 8) -> Tensor:
    """Pictures `(B, 3, H, W)` in [0, 1], on the CPU, of x0 `(B, C, h, w)`: the photos as a VAE leaves them."""
    parts = tqdm(x0.split(batch), "photos decoded", unit=f" x {batch}")
    with channels_last(pipe.vae):
        return torch.cat([((decode(pipe, part) + 1) / 2).cpu() for part in parts])


def _stored_x0(
    pipe: StableDiffusionPipeline, records: Sequence[Record], brand: Path, size: tuple[int, int], prior: Prior
) -> tuple[Tensor, list[str]]:
    """x0 of the records from the brand's store, where they are as a rule, and their keys in it."""
    store, summary = encode_records(pipe, records, brand / LATENTS, size, prior.provenance.flip)
    return to_x0(pipe, store.get(summary.keys)[0]).cpu(), summary.keys


def pixels_of(images: Sequence[Image.Image], size: tuple[int, int]) -> Tensor:
    """`(B, 3, H, W)` in [0, 1], each padded to (H, W)."""
    return torch.stack([_pixels(image, size) for image in images])


def _pixels(picture: Image.Image, size: tuple[int, int]) -> Tensor:
    return (to_tensor(pad(picture, size)) + 1) / 2


def _class(prior: Prior, name: str | None, prompt: str) -> str:
    return name if name in prior.classes else prior.class_of(prompt)


def _key(records: Sequence[Record], size: tuple[int, int], prior: Prior | None, brand: Path | None) -> str:
    """Changes with any photo, their number, the size, the prior, and what ranges are learnt from and by."""
    stamps = [(str(record.file), record.class_name, record.text, *_stamp(record.stamp)) for record in records]
    unseen = [hashlib.sha256(file.read_bytes()).hexdigest() for file in (brand.glob(UNSEEN) if brand else ())]
    told = json.dumps([size, prior.fingerprint if prior else "", stamps, unseen, RULES])
    return hashlib.sha256(told.encode()).hexdigest()


def _stamp(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns
