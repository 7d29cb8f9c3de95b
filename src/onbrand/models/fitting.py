"""A folder of photos through a model's VAE and text encoder: the store of latents, and the parts of a fit."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from onbrand.core import Conditional, ConditionalFitter, Fitter, Gaussian, Prior, Provenance
from onbrand.core.fit import EXACT, fit_components
from onbrand.core.text import Method
from onbrand.data.buckets import by_bucket, ladder, step_of
from onbrand.data.caches import Caches, Trainer
from onbrand.data.encode import encode_all
from onbrand.data.images import RGB, background_of, to_image
from onbrand.data.latents import Key, Store, Summary, iterate
from onbrand.data.records import Folder, Record
from onbrand.data.sums import sum_shards
from onbrand.errors import OnbrandError, UnreadableImage
from onbrand.io import file_names, plain, write_png
from onbrand.models.families import family_of
from onbrand.models.pipeline import channels_last, decode, embed, encode, factor_of, fingerprint, to_x0, warn_long
from onbrand.ranks import gather, rank, world

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

CAPTIONED = 20
"""A class with fewer captioned photos than this gets no regression from text: its fit could not be checked."""
FOLDS = 5
"""Of the regression's cross-validation."""
ROWS = 512
"""Of a batch that is fitted."""
NUMBERS = 2**22
"""Of a block that components are fitted from: what is made of it is memory that the C library keeps and gives again."""
SEEN = 200
"""Photos, evenly spread, that the brand's background is taken from."""


def check_folder(folder: Path, photos: Path) -> Path:
    """The output's folder as it is; OnbrandError if it lies inside of the photos."""
    if folder.resolve().is_relative_to(photos.resolve()):
        raise OnbrandError(
            "folder",
            f"output_dir lies beside the photos, or its images would be read as photos; got {folder}: take another",
        )
    return folder


def buckets_of(
    pipe: DiffusionPipeline, photos: Folder, size: tuple[int, int], step: int | None
) -> dict[tuple[int, int], Folder]:
    """The photos of each bucket (`data.buckets`), that of the most first, which also has those that are refused.

    step: None: the default. OnbrandError for one that the VAE or `size` does not divide into."""
    step, factor = step or step_of(size), factor_of(pipe)
    if step % factor:
        raise OnbrandError(
            "option", f"bucket_reso_steps is a multiple of {factor}, by which this model's VAE shrinks; got {step}"
        )
    ladder(size, step)
    cells = by_bucket(photos.records, None, size, step)
    first = next(iter(cells))
    return {
        one: replace(photos, records=records, refused=photos.refused if one == first else [])
        for one, records in cells.items()
    }


def encode_photos(
    pipe: DiffusionPipeline,
    photos: Folder,
    folder: Path,
    size: tuple[int, int],
    flip: bool,
    batch: int = 8,
    dtype: str | None = None,
    source: Trainer | Literal[""] | None = None,
) -> tuple[Store, Summary]:
    """The photos' latents in a store under `folder`, encoding what is not there yet, and what became of each photo.

    Under `accelerate launch` every process encodes its share. OnbrandError if no photo can be used. dtype: on disk
    (`data.latents.Key`); None: as what is there already, else float32. source: the trainer whose caches are read, ""
    for none; None: as what is there already.
    """
    store, summary = encode_records(pipe, photos.records, folder, size, flip, batch, dtype, source)
    summary = replace(summary, refused=[*photos.refused, *summary.refused])
    if not summary.used:
        first = f", as {summary.refused[0]}" if summary.refused else ""
        raise OnbrandError(
            "data",
            f"one usable photo is needed at least; {photos.path} has none, {len(summary.refused)} refused{first}",
        )
    return store, summary


def encode_records(
    pipe: DiffusionPipeline,
    records: Sequence[Record],
    folder: Path,
    size: tuple[int, int],
    flip: bool,
    batch: int = 8,
    dtype: str | None = None,
    source: Trainer | Literal[""] | None = None,
) -> tuple[Store, Summary]:
    """`encode_photos` of records already read."""
    vae, sources = fingerprint(pipe.vae), ("", *get_args(Trainer)) if source is None else (source,)
    dtypes = ("float32", "float16") if dtype is None else (dtype,)
    keys = [Key(vae, size, flip, dtype=name, source=one) for one in sources for name in dtypes]
    store = Store(folder, next((key for key in keys if (folder / key.digest[:16]).is_dir()), keys[0]))
    caches = None
    if source:
        if flip:
            raise OnbrandError("option", "latents_from reads no mirrored images; got random_flip too: leave one out")
        channels, height, width = fitter_for(pipe, size, 0).shape
        scale = float(pipe.vae.config.scaling_factor)
        caches = Caches(source, size, (channels, height, width), family_of(pipe).cache_name, scale)
    with channels_last(pipe.vae):
        summary = encode_all(
            records, lambda part: encode(pipe, part), store, batch, rank() == 0, rank(), world(), caches=caches
        )
    if world() > 1:
        encoded = sum(gather(summary.encoded))
        store.reload()
        summary = replace(store.look_up(records), encoded=encoded, seconds=summary.seconds)
    return store, summary


def fitter_for(pipe: DiffusionPipeline, size: tuple[int, int], k: int) -> Fitter:
    """A fitter of k components for x0 of images of size (H, W); OnbrandError for impossible k."""
    factor = factor_of(pipe)
    return Fitter((pipe.vae.config.latent_channels, size[0] // factor, size[1] // factor), k)


def share_sums(pipe: DiffusionPipeline, fitter: Fitter, store: Store, summary: Summary) -> None:
    """Under `accelerate launch`, every process sums its share of the shards, which `fit_gaussians` then adds up."""
    if world() > 1 and fitter.dimensions > EXACT:
        for _ in _sums(fitter, store, summary, rank(), world()):
            pass
        gather(None)


def fit_gaussians(pipe: DiffusionPipeline, fitter: Fitter, store: Store, summary: Summary) -> dict[str, Gaussian]:
    """A Gaussian for each class of the photos used (Eq. 9), from the store's latents; draws a progress bar.

    Above EXACT dimensions the moments of each shard are summed once (`data.sums`), and components take two passes more,
    class by class, so that memory holds one class's sketch.

    Args:
        pipe: the model that encoded the photos.
        fitter: of the prior's shape and k, which has seen nothing.
        store: the latents.
        summary: the photos.
    """
    if fitter.dimensions <= EXACT:
        for start, mean in tqdm(store.means(summary.keys, ROWS), "fit", unit=" batches"):
            fitter.update(to_x0(pipe, mean), [record.class_name for record in summary.used[start : start + ROWS]])
        return fitter.finish()
    moments = Fitter(fitter.shape)
    for part in tqdm(_sums(fitter, store, summary), "fit", unit=" parts"):
        moments.add(part)
    unscaled, variance = moments.finish(), float(pipe.vae.config.scaling_factor) ** 2
    gaussians = {
        name: replace(unscaled[name], mean=to_x0(pipe, unscaled[name].mean), total=variance * unscaled[name].total)
        for name in dict.fromkeys(record.class_name for record in summary.used)
    }
    if not fitter.k:
        return gaussians
    keys: dict[str, list[str]] = {name: [] for name in gaussians}
    for record, key in zip(summary.used, summary.keys, strict=True):
        keys[record.class_name].append(key)
    device = pipe.device if pipe.device.type == "cuda" else "cpu"  # other accelerators know no float64

    def x0_of(name: str) -> Iterator[Tensor]:
        for _, mean in store.means(keys[name], max(1, NUMBERS // fitter.dimensions)):
            yield to_x0(pipe, mean.to(device))

    return {
        name: fit_components(gaussian, fitter.k, partial(x0_of, name))
        for name, gaussian in tqdm(gaussians.items(), "fit", unit=" classes")
    }


def _sums(fitter: Fitter, store: Store, summary: Summary, part: int = 0, parts: int = 1) -> Iterator[Fitter]:
    classes = [record.class_name for record in summary.used]
    return sum_shards(store, summary.keys, classes, fitter.shape, part, parts)


def provenance_of(
    pipe: DiffusionPipeline,
    vae: str,
    text_encoder: str | None,
    size: tuple[int, int],
    model: str,
    flip: bool,
    background: RGB,
) -> Provenance:
    """Where a prior's x0 come from. vae, text_encoder: fingerprints of the weights before any rounding, the latter None
    without a regression from text; size: (H, W)."""
    return Provenance(
        vae=vae,
        scaling_factor=float(pipe.vae.config.scaling_factor),
        shift_factor=float(pipe.vae.config.shift_factor or 0.0),
        resolution=size,
        model=model,
        flip=flip,
        background=background,
        text_encoder=text_encoder,
    )


def fit_text(
    pipe: DiffusionPipeline, store: Store, records: Sequence[Record], gaussians: Mapping[str, Gaussian],
    method: Method = "ridge",
) -> dict[str, Conditional]:  # fmt: skip
    """The regression from captions for each class that has components and captions enough.

    docs/concepts/method.md, section 6.
    """
    with_caption = [record for record in records if record.text]
    counts = Counter(record.class_name for record in with_caption)
    fitters = {
        name: ConditionalFitter(gaussian, FOLDS)
        for name, gaussian in gaussians.items()
        if gaussian.k and counts[name] >= CAPTIONED
    }
    few = [f"{name} ({counts[name]})" for name in gaussians if counts[name] < CAPTIONED]
    if with_caption and few:
        warnings.warn(
            f"a start from the text needs {CAPTIONED} captioned photos of a class; {', '.join(few)} will start from "
            "the mean",
            stacklevel=2,
        )
    with_caption = [record for record in with_caption if record.class_name in fitters]
    indices: dict[str, list[int]] = {name: [] for name in fitters}
    for record in with_caption:
        indices[record.class_name].append(record.index)
    numbers = {name: numbers_of(own) for name, own in indices.items()}
    embeddings = embed_captions(pipe, sorted({record.text for record in with_caption}))
    for mean, chunk in iterate(store, with_caption):
        x0 = to_x0(pipe, mean)
        rows: dict[str, list[int]] = {}
        for i, record in enumerate(chunk):
            rows.setdefault(record.class_name, []).append(i)
        for name, own in rows.items():
            text = torch.stack([embeddings[chunk[i].text] for i in own])
            fitters[name].update(text, x0[own], [numbers[name][chunk[i].index] for i in own])
    return {name: fitter.finish(method=method) for name, fitter in fitters.items()}


def numbers_of(indices: Sequence[int]) -> dict[int, int]:
    """Photo's index -> the number that names its fold: the index itself, unless a class that lies in the folder at
    regular distances would leave a fold empty; then its place in the class."""
    if len({index % FOLDS for index in indices}) == FOLDS:
        return {index: index for index in indices}
    return {index: place for place, index in enumerate(sorted(set(indices)))}


def starts_of(gaussian: Gaussian, text: bool) -> list[str]:
    """The starts that a class allows, best last (docs/research/results.md); text: it has a regression from captions."""
    if not gaussian.k:
        return ["mean without a look ahead"]
    return ["pca", "mean with a look ahead", *(["text with a look ahead"] if text else [])]


def describe_fit(prior: Prior, summary: Summary, files: Mapping[str, str], k: int) -> dict[str, Any]:
    """What fit.json says of a fit, without how it was called. files: class -> its mean's file; k: as asked for."""
    counts = Counter(record.class_name for record in summary.used)
    classes: dict[str, dict[str, Any]] = {}
    for name, gaussian in prior.gaussians.items():
        classes[name] = {"count": counts[name], "file": files[name]}
        if name in prior.text:
            spread = gaussian.variances
            classes[name]["r2"] = float((prior.text[name].shrink * spread).sum() / spread.sum())
        classes[name]["starts"] = starts_of(gaussian, name in prior.text)
    return {
        "model": prior.provenance.model,
        "resolution": list(prior.provenance.resolution),
        "flip": prior.provenance.flip,
        "k": k,
        "used": len(summary.used),
        "classes": classes,
        "refused": [{"file": str(refused.file), "reason": refused.reason} for refused in summary.refused],
    }


def describe_bucket(content: Mapping[str, Any]) -> dict[str, Any]:
    """What fit.json says of a bucket beside the main one. content: `describe_fit`'s."""
    return {name: content[name] for name in ("resolution", "used", "classes")}


def lines_of(result: Mapping[str, Any], prior: Prior) -> list[str]:
    """What fit.json says of each class, in words."""
    lines = ["{} x {}:".format(*prior.size)] if len(prior.all) > 1 else []
    for name, entry in result["classes"].items():
        words = f", {100 * entry['r2']:.0f} % of their spread told by the captions" if "r2" in entry else ""
        lines.append(f"{plain(name)}: {entry['count']} photos, {prior.gaussians[name].k} components{words}")
        lines.append(f"  starts: {', '.join(entry['starts'])}")
    return lines


def embed_captions(pipe: DiffusionPipeline, captions: Sequence[str], batch: int = 64) -> dict[str, Tensor]:
    """Each caption's pooled embedding `(E,)` float32 on the CPU; over-long ones are warned of once."""
    embeddings: dict[str, Tensor] = {}
    for first in range(0, len(captions), batch):
        part = captions[first : first + batch]
        embeddings |= dict(zip(part, embed(pipe, part)[1].float().cpu(), strict=True))
    warn_long(pipe, captions)
    return embeddings


def background_of_all(records: Sequence[Record]) -> RGB:
    """The brand's background: the median over the photos, each channel, of the photo's own background (0..255)."""
    backgrounds = []
    for record in records[:: max(1, len(records) // SEEN)]:
        with suppress(UnreadableImage):
            backgrounds.append(background_of(record.open()))
    red, green, blue = np.median(np.asarray(backgrounds), axis=0).round().astype(int).tolist()
    return red, green, blue


def draw_means(pipe: DiffusionPipeline, prior: Prior, folder: Path) -> dict[str, str]:
    """The class means, decoded, as folder/<class>.png; returns each class's file name without the ending."""
    files = file_names(prior.classes)
    for name, file in files.items():
        write_png(folder / f"{file}.png", to_image(decode(pipe, prior.mean(name))[0]))
    return files
