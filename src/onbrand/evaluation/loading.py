"""What a check looks at: the images, opened, and the ranges of the brand's photos, learned once."""

from __future__ import annotations

import hashlib
import json
import math
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from onbrand.core import Prior
from onbrand.core.prior import BUCKETS, name_of
from onbrand.data.addresses import stamp_of
from onbrand.data.buckets import bucket_of, by_bucket
from onbrand.data.images import open_image, pad, to_tensor
from onbrand.data.latents import FOLDER as LATENTS
from onbrand.data.records import Record, open_folder, read_folder
from onbrand.errors import OnbrandError, UnreadableImage
from onbrand.evaluation.joints import Net, Stance, learn_stances
from onbrand.evaluation.likelihood import FILE as UNSEEN
from onbrand.evaluation.likelihood import class_values_of_photos
from onbrand.evaluation.reference import Reference, learn
from onbrand.io import check_links, inside, keep_json, read_json
from onbrand.models.fitting import encode_records
from onbrand.models.pipeline import channels_last, decode, encode, to_x0
from onbrand.ranks import each
from onbrand.sampling import manifest
from onbrand.sampling.record import sha256_of

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

T = TypeVar("T")
RULES = 2
"""Version of the rules by which ranges are learned: raised by every change that gives other ranges."""
MOST, NUMBERS = 2000, 4e8
"""At most so many photos are learned from, evenly spread over the folder, and so many numbers: 1.6 GB of pixels."""
MISSING = (160, 160, 160)
"""Colour of the tile of an image that cannot be opened."""
POSES = 100
"""Photos of each class that the pose net sees, at most."""


@dataclass(frozen=True, eq=False)
class Images:
    """Images to judge, opened."""

    files: list[str]
    """Their names in the folder."""
    images: list[Image.Image]
    """The images at their own size, for the contact sheet."""
    pixels: Tensor
    """`(B, 3, H, W)` in [0, 1]."""
    prompts: list[str]
    classes: list[str]
    """The requested class of each; "" without a prior."""
    attributes: Sequence[Mapping[str, str] | None] = ()
    """What each is to show, attribute -> label; None, or an empty sequence, if only the prompt says it."""
    conditioning: Sequence[Sequence[Path]] = ()
    """Control images of each; empty if no image has any."""
    refused: Mapping[int, UnreadableImage] = field(default_factory=dict)
    """Place among all images of the folder, in order -> one that cannot be opened, which is in none of the above."""

    def part(self, places: Sequence[int], size: tuple[int, int]) -> Images:
        """Some of them, padded to (H, W)."""
        if len(places) == len(self.files) and self.pixels.shape[2:] == size:
            return self

        def of(values: Sequence[T]) -> list[T]:
            return [values[i] for i in places] if values else []

        own, words = of(self.images), (of(self.prompts), of(self.classes), of(self.attributes))
        return Images(of(self.files), own, pixels_of(own, size), *words, of(self.conditioning))

    @property
    def count(self) -> int:
        """Images of the folder, those that cannot be opened included."""
        return len(self.files) + len(self.refused)

    def tiles(self, count: int) -> tuple[list[Image.Image], list[str]]:
        """The first images and their prompts, for a contact sheet: a grey tile and the file's name for one that cannot
        be opened."""
        images, captions = list(self.images[:count]), list(self.prompts[:count])
        for place, error in self.refused.items():
            images.insert(place, Image.new("RGB", (64, 64), MISSING))
            captions.insert(place, error.file.name)
        return images[:count], captions[:count]


def size_of_first(folder: str | Path) -> tuple[int, int]:
    """(H, W) of the folder's first image that opens.

    Raises:
        OnbrandError: no image opens.
    """
    check_links(Path(folder))
    for record in read_folder(Path(folder))[0]:
        with suppress(UnreadableImage):
            image = record.open()
            return image.height, image.width
    raise OnbrandError("image", f"images to check are needed; {folder} has none that can be opened")


def open_images(folder: str | Path, size: tuple[int, int], prior: Prior | None) -> Images:
    """Open the images of a manifest, or of any folder without one.

    Args:
        folder: holds the images.
        size: (H, W) that they are padded to.
        prior: gives the class of an image whose own is unknown; None: classes are "".

    Returns:
        The images that open, and by their places those that do not: one of many spoils no check.

    Raises:
        OnbrandError: no image opens.
    """
    folder = Path(folder)
    check_links(folder)
    rows: list[_Row] = []
    refused: dict[int, UnreadableImage] = {}
    if (folder / manifest.LINES).is_file():
        entries = [entry for _, entry in sorted(manifest.read_manifest(folder).items())]
        for entry, controls in zip(entries, _control_images(entries), strict=True):
            file, attributes = inside(folder, entry["file"], folder / manifest.LINES), entry.get("attributes")
            rows.append(_Row(file, entry["prompt"], entry["class"], attributes, controls, partial(open_image, file)))
    else:
        photos = open_folder(folder)
        for one in photos.records:
            controls = [one.conditioning] if one.conditioning else []
            rows.append(_Row(one.file, one.text, one.class_name, one.attributes, controls, one.open))
        refused = dict(enumerate(photos.refused, len(rows)))
    images: list[Image.Image] = []
    used: list[_Row] = []
    for place, row in enumerate(rows):
        try:
            images.append(row.open())
            used.append(row)
        except UnreadableImage as error:
            refused[place] = error
    if not used:
        first = f", {len(refused)} cannot be opened, as {next(iter(refused.values()))}" if refused else ""
        raise OnbrandError("image", f"images to check are needed; {folder} has none{first}")
    classes = [_class(prior, row.class_name, row.prompt) for row in used] if prior else [""] * len(used)
    names = [_name_in(folder, row.file) for row in used]
    prompts, attributes = [row.prompt for row in used], [row.attributes for row in used]
    conditioning = [row.conditioning for row in used]
    refused = {place: UnreadableImage(_name_in(folder, one.file), one.reason) for place, one in sorted(refused.items())}
    return Images(names, images, pixels_of(images, size), prompts, classes, attributes, conditioning, refused)


def places_of(images: Images, prior: Prior | None, size: tuple[int, int]) -> dict[tuple[int, int], Sequence[int]]:
    """The images by the size that they are judged at, that of the most first: of the sizes that their class was fitted
    at, the one that leaves the least padding around them. size: (H, W), where there is but one."""
    if prior is None or len(prior.all) == 1:
        return {size: range(len(images.files))}
    places: dict[tuple[int, int], list[int]] = {}
    for i, (image, name) in enumerate(zip(images.images, images.classes, strict=True)):
        places.setdefault(bucket_of((image.height, image.width), prior.sizes[name]), []).append(i)
    return dict(sorted(places.items(), key=lambda item: (-len(item[1]), item[0])))


class _Row(NamedTuple):
    """What a manifest or metadata says of an image to check."""

    file: Path
    prompt: str
    class_name: str | None
    attributes: Mapping[str, str] | None
    conditioning: Sequence[Path]
    open: Callable[[], Image.Image]


def _name_in(folder: Path, file: Path) -> str:
    """A file's name relative to a folder; the whole path if it lies elsewhere."""
    return str(file.relative_to(folder)) if file.is_relative_to(folder) else str(file)


def _control_images(entries: Sequence[Mapping[str, Any]]) -> list[list[Path]]:
    """The control images of each line of a manifest: those that still are what the line says, wherever they lie.

    They may lie outside of the folder, for a file of requests named them. So that nobody is led to a file of his own,
    only one that has the recorded sha256 is measured against, and none is shown. It warns of the others.
    """
    controls: list[list[Path]] = []
    lost: list[str] = []
    for entry in entries:
        controls.append([])
        names, digests = entry.get("conditioning") or [], entry.get("conditioning_sha256") or []
        for number, name in enumerate(names):
            with suppress(OnbrandError):
                if number < len(digests) and sha256_of(name) == digests[number]:
                    controls[-1].append(Path(name))
                    continue
            lost.append(str(name))
    if lost:
        warnings.warn(
            f"{len(lost)} control images are not what the manifest says any more, or not there, {lost[0]} first: "
            "nothing is measured against them",
            stacklevel=3,
        )
    return controls


def open_reference(
    photos: str | Path,
    size: tuple[int, int],
    prior: Prior | None,
    pipe: DiffusionPipeline | None,
    brand: Path | None,
    split: str | None = None,
) -> Reference:
    """`open_references` of one size."""
    return open_references(photos, [size], prior, pipe, brand, split)[size]


def open_references(
    photos: str | Path,
    sizes: Iterable[tuple[int, int] | None],
    prior: Prior | None,
    pipe: DiffusionPipeline | None,
    brand: Path | None,
    split: str | None = None,
) -> dict[tuple[int, int], Reference]:
    """Learn the ranges of the brand's photos, or read them from brand/reference.json if nothing changed since; of a
    brand of several sizes those of the photos of each size.

    Args:
        photos: folder of the photos.
        sizes: (H, W) that they are padded to; None and repetitions are passed over.
        prior: the prior for the class; left out with `pipe`, the class is not judged.
        pipe: the model whose autoencoder encodes and decodes the photos.
        brand: folder that `fit` wrote, for its latents and for reference.json; None: learned anew.
        split: the split of the photos to learn from; None: all.

    Raises:
        OnbrandError: no photo opens, or too few do.
    """
    records, _ = read_folder(photos, split)
    wanted = [size for size in dict.fromkeys(sizes) if size]
    if prior is None or len(prior.all) == 1:
        return {size: _learned(photos, records, size, prior, pipe, brand, brand) for size in wanted}
    cells, references = by_bucket(records, prior.sizes, prior.size), {}
    for size in wanted:
        home = brand / BUCKETS / name_of(size) if brand and size != prior.all[0].size else brand
        references[size] = _learned(photos, cells.get(size, []), size, prior.at(size), pipe, brand, home)
    return references


def _learned(
    photos: str | Path, records: Sequence[Record], size: tuple[int, int], prior: Prior | None,
    pipe: DiffusionPipeline | None, brand: Path | None, home: Path | None,
) -> Reference:  # fmt: skip
    """The ranges of the photos of one size. home: where in the brand's folder that size's files are."""
    most = max(1, min(MOST, int(NUMBERS / (3 * size[0] * size[1]))))
    records = records[:: max(1, math.ceil(len(records) / most))]
    key = _key(records, size, prior, home)
    file = home / "reference.json" if home else None
    if file and file.is_file():
        content = read_json(file)
        if content["key"] == key:
            return Reference.from_json(json.dumps(content["reference"]))
    pixels, used = _open_photos(records, size)
    if not used:
        raise OnbrandError("image", f"photos to learn from are needed; {photos} has none that can be opened")
    likelihoods, classes, decoded = None, None, None
    if prior and pipe:
        x0, keys = _stored_x0(pipe, pixels, used, brand, size, prior)
        classes = [_class(prior, record.class_name, record.text) for record in used]
        likelihoods = class_values_of_photos(prior, x0, classes, keys, home)
        decoded = decode_x0(pipe, x0)
    reference = learn(pixels, likelihoods, classes=classes, decoded=decoded)
    if file:
        keep_json(file, {"key": key, "reference": json.loads(reference.to_json())}, sealed=True)
        return Reference.from_json(reference.to_json())  # rounded, as every later check reads it
    return reference


def open_stances(
    net: Net, photos: str | Path, size: tuple[int, int], prior: Prior | None, split: str | None = None
) -> dict[str, Stance]:
    """Learn how people stand in the photos, from POSES photos of each class, evenly spread.

    Args:
        net: finds the joints.
        photos: folder of the photos.
        size: (H, W) that they are padded to.
        prior: gives the class of a photo whose own is unknown; None: all are one class, "".
        split: the split of the photos to learn from; None: all.

    Returns:
        Class -> stance, for the classes that show people.

    Raises:
        OnbrandError: no class shows people.
    """
    by_class: dict[str, list[Record]] = {}
    for record in read_folder(photos, split)[0]:
        name = _class(prior, record.class_name, record.text) if prior else ""
        by_class.setdefault(name, []).append(record)
    stances: dict[str, Stance] = {}
    for name, records in by_class.items():
        pixels, _ = _open_photos(records[:: math.ceil(len(records) / POSES)], size)
        stances |= learn_stances(net, pixels, [name] * len(pixels)) if len(pixels) else {}
    if not stances:
        raise OnbrandError(
            "image", f"a pose is learned from photos of people; the net finds none in {photos}; leave pose out"
        )
    return stances


def _open_photos(records: Sequence[Record], size: tuple[int, int]) -> tuple[Tensor, list[Record]]:
    """Photos that can be opened, `(B, 3, H, W)` in [0, 1], and their records; the others are said."""
    pixels, used, refused = [], [], []
    for record in tqdm(records, "photos", unit=" photos"):
        try:
            pixels.append(_pixels(record.open(), size))
            used.append(record)
        except UnreadableImage as error:
            refused.append(error)
    if refused:
        words = f"{len(refused)} of {len(records)} photos cannot be opened and are not learned from, as {refused[0]}"
        tqdm.write(words, file=sys.stderr)
    return torch.stack(pixels) if pixels else torch.zeros(0, 3, *size), used


@torch.no_grad()
def encode_x0(pipe: DiffusionPipeline, pixels: Tensor, batch: int = 8) -> Tensor:
    """x0 `(B, C, h, w)`, on the CPU, of images `(B, 3, H, W)` in [0, 1]: the posterior's mean, as in the fit."""

    def x0_of(part: Tensor) -> Tensor:
        return to_x0(pipe, encode(pipe, part * 2 - 1)[0]).cpu()

    with channels_last(pipe.vae):
        return torch.cat(list(each(x0_of, torch.split(pixels, batch))))


def decode_x0(pipe: DiffusionPipeline, x0: Tensor, batch: int = 8) -> Tensor:
    """Images `(B, 3, H, W)` in [0, 1], on the CPU, of x0 `(B, C, h, w)`: the photos as the autoencoder leaves them."""

    def pixels_of_x0(part: Tensor) -> Tensor:
        return ((decode(pipe, part) + 1) / 2).cpu()

    parts = torch.split(x0, batch)
    with channels_last(pipe.vae):
        return torch.cat(list(tqdm(each(pixels_of_x0, parts), "photos decoded", len(parts), unit=f" x {batch}")))


def _stored_x0(
    pipe: DiffusionPipeline, pixels: Tensor, records: Sequence[Record], brand: Path | None, size: tuple[int, int],
    prior: Prior,
) -> tuple[Tensor, list[str]]:  # fmt: skip
    """x0 of the records from the brand's store, which is given what it lacks, and their keys in it.

    Without a store, or if it cannot be written, x0 of the pixels and no keys.
    """
    if brand is not None:
        try:
            store, summary = encode_records(pipe, records, brand / LATENTS, size, prior.provenance.flip)
            return to_x0(pipe, store.get(summary.keys)[0]).cpu(), summary.keys
        except OSError as error:
            warnings.warn(
                f"latents are not kept in {brand} ({error.strerror or error}): they are computed again when needed",
                stacklevel=3,
            )
    return encode_x0(pipe, pixels), []


def pixels_of(images: Sequence[Image.Image], size: tuple[int, int]) -> Tensor:
    """`(B, 3, H, W)` in [0, 1], each padded to (H, W)."""
    return torch.stack([_pixels(image, size) for image in images])


def _pixels(image: Image.Image, size: tuple[int, int]) -> Tensor:
    return (to_tensor(pad(image, size)) + 1) / 2


def _class(prior: Prior, name: str | None, prompt: str) -> str:
    return name if name in prior.sizes else prior.class_of(prompt)


def _key(records: Sequence[Record], size: tuple[int, int], prior: Prior | None, brand: Path | None) -> str:
    """Changes with the photos, the size, the prior, its cross-fitted numbers, and the rules."""
    stamps = [
        (str(record.file), record.class_name, record.text, *(stamp_of(record.stamp) or ("", -1, -1))[1:3])
        for record in records
    ]
    unseen = [hashlib.sha256(file.read_bytes()).hexdigest() for file in (brand.glob(UNSEEN) if brand else ())]
    content = json.dumps([size, prior.fingerprint if prior else "", stamps, unseen, RULES])
    return hashlib.sha256(content.encode()).hexdigest()
