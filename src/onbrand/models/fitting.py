"""A folder of photos through a model's VAE and text encoder: the store of latents, and the parts of a fit."""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from onbrand.core import Conditional, ConditionalFitter, Gaussian, Prior
from onbrand.core.text import Method
from onbrand.data.encode import encode_all
from onbrand.data.images import RGB, Refused, ground_of, open_picture, to_picture
from onbrand.data.latents import Key, Store, Summary, iterate
from onbrand.data.records import Record, read_folder
from onbrand.models.pipeline import channels_last, decode, embed, encode, fingerprint, to_x0, warn_long

if TYPE_CHECKING:
    from accelerate import PartialState
    from diffusers import StableDiffusionPipeline

CAPTIONED = 20
"""A class with fewer captioned photos than this gets no regression from text: its fit could not be checked."""
FOLDS = 5
"""Of the regression's cross-validation."""
SEEN = 200
"""Photos, evenly spread, that the brand's ground is taken from."""


def encode_photos(
    pipe: StableDiffusionPipeline,
    photos: str | Path,
    folder: Path,
    size: tuple[int, int],
    flip: bool,
    batch: int = 8,
    split: str | None = None,
) -> tuple[Store, Summary]:
    """The photos' latents in a store under `folder`, encoding what is not there yet, and what became of each photo.

    Under `accelerate launch` every process encodes its share. ValueError where no photo can be used.
    """
    records, refused = read_folder(photos, split)
    store, summary = encode_records(pipe, records, folder, size, flip, batch)
    summary = replace(summary, refused=[*refused, *summary.refused])
    if not summary.used:
        first = f", as {summary.refused[0]}" if summary.refused else ""
        raise ValueError(
            f"one usable photo is needed at least; {photos} has none, {len(summary.refused)} refused{first}"
        )
    return store, summary


def encode_records(
    pipe: StableDiffusionPipeline,
    records: Sequence[Record],
    folder: Path,
    size: tuple[int, int],
    flip: bool,
    batch: int = 8,
) -> tuple[Store, Summary]:
    """`encode_photos` of records already read."""
    store = Store(folder, Key(fingerprint(pipe.vae), size, flip))
    state = processes(pipe)
    rank, world = (state.process_index, state.num_processes) if state else (0, 1)
    with channels_last(pipe.vae):
        summary = encode_all(records, lambda part: encode(pipe, part), store, batch, rank == 0, rank, world)
    if state:
        state.wait_for_everyone()
        store.reload()
        everyone = store.look_up(records)
        summary = replace(everyone, encoded=summary.encoded, seconds=summary.seconds)
    return store, summary


def processes(pipe: StableDiffusionPipeline) -> PartialState | None:
    """accelerate's view of the processes, where there are several."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    from accelerate import PartialState

    return PartialState(cpu=pipe.device.type == "cpu")


def fit_text(
    pipe: StableDiffusionPipeline, store: Store, records: Sequence[Record], gaussians: Mapping[str, Gaussian],
    method: Method = "ridge",
) -> dict[str, Conditional]:  # fmt: skip
    """The regression from captions for each class that has components and captions enough (METHOD.md 5)."""
    captioned = [record for record in records if record.text]
    counts = Counter(record.class_name for record in captioned)
    fitters = {
        name: ConditionalFitter(gaussian, FOLDS)
        for name, gaussian in gaussians.items()
        if gaussian.k and counts[name] >= CAPTIONED
    }
    few = [f"{name} ({counts[name]})" for name in gaussians if counts[name] < CAPTIONED]
    if captioned and few:
        warnings.warn(
            f"a start from the text needs {CAPTIONED} captioned photos of a class; {', '.join(few)} will start from "
            "the mean",
            stacklevel=2,
        )
    captioned = [record for record in captioned if record.class_name in fitters]
    numbers = {name: numbers_of([r.index for r in captioned if r.class_name == name]) for name in fitters}
    pooled = embed_captions(pipe, sorted({record.text for record in captioned}))
    for mean, _, chunk in iterate(store, captioned):
        x0 = to_x0(pipe, mean)
        for name, fitter in fitters.items():
            rows = [i for i, record in enumerate(chunk) if record.class_name == name]
            if rows:
                text = torch.stack([pooled[chunk[i].text] for i in rows])
                fitter.update(text, x0[rows], [numbers[name][chunk[i].index] for i in rows])
    return {name: fitter.finish(method=method) for name, fitter in fitters.items()}


def numbers_of(indices: Sequence[int]) -> dict[int, int]:
    """Photo's index -> the number that names its fold: the index itself, unless a class that lies in the folder at
    regular distances would leave a fold empty; then its place in the class."""
    if len({index % FOLDS for index in indices}) == FOLDS:
        return {index: index for index in indices}
    return {index: place for place, index in enumerate(sorted(set(indices)))}


def starts_of(gaussian: Gaussian, told: bool) -> list[str]:
    """The starts that a class allows, best last (docs/results-look.md); told: it has a regression from captions."""
    if not gaussian.k:
        return ["mean without a look ahead"]
    return ["pca", "mean with a look ahead", *(["text with a look ahead"] if told else [])]


def embed_captions(pipe: StableDiffusionPipeline, captions: Sequence[str], batch: int = 64) -> dict[str, Tensor]:
    """Each caption's pooled embedding `(E,)` float32 on the CPU; over-long ones are warned of once."""
    found: dict[str, Tensor] = {}
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        for first in range(0, len(captions), batch):
            part = captions[first : first + batch]
            found |= dict(zip(part, embed(pipe, part)[1].float().cpu(), strict=True))
    warn_long(pipe, captions)
    return found


def ground_of_all(records: Sequence[Record]) -> RGB:
    """The brand's ground: the median over the photos, each channel, of the photo's own ground (0..255)."""
    grounds = []
    for record in records[:: max(1, len(records) // SEEN)]:
        content = record.read()
        picture = content if isinstance(content, Refused) else open_picture(record.file, content)
        if not isinstance(picture, Refused):
            grounds.append(ground_of(picture))
    red, green, blue = np.median(np.asarray(grounds), axis=0).round().astype(int).tolist()
    return red, green, blue


def draw_means(pipe: StableDiffusionPipeline, prior: Prior, folder: Path) -> dict[str, str]:
    """The class means, decoded, as folder/<class>.png; returns each class's file name without the ending."""
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, str] = {}
    for number, name in enumerate(prior.classes):
        file = re.sub(r"[^\w ,.-]", "_", name)[:80]
        files[name] = f"{file} {number}" if file in files.values() else file
        to_picture(decode(pipe, prior.mean(name))[0]).save(folder / f"{files[name]}.png")
    return files
