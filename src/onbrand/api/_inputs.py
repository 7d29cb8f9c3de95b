"""The inputs of the verbs: models, priors, photos; opened and checked before any work is spent."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import torch

from onbrand.api._output import DENIED
from onbrand.core import Prior
from onbrand.core.prior import FILE as PRIOR
from onbrand.core.prior import name_of
from onbrand.data.buckets import Bucket, by_bucket
from onbrand.data.latents import FOLDER as LATENTS
from onbrand.data.latents import Store, Summary
from onbrand.data.records import Folder, open_folder
from onbrand.errors import OnbrandError, UnreadableImage
from onbrand.hub import is_hub_id
from onbrand.io import plain
from onbrand.models import pipeline
from onbrand.models.checkpoint import is_lora, model_folder
from onbrand.models.controlnet import nets_of, new_controlnet
from onbrand.models.fitting import check_folder, encode_photos
from onbrand.options.check import CheckOptions
from onbrand.options.generate import GenerateOptions
from onbrand.options.train import TrainOptions
from onbrand.ranks import rank, take_gpu
from onbrand.sampling.checks import check_prior
from onbrand.sampling.manifest import LINES as MANIFEST

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from onbrand.sampling.draws import Gate
    from onbrand.sampling.sampler import Plan


def open_model(
    model: str | Path,
    device: str | None,
    dtype: str = "float32",
    lora: str | Path | None = None,
    scale: float = 1.0,
    controlnet: Sequence[str | Path] = (),
    offload: bool = False,
    config: str | Path | None = None,
) -> DiffusionPipeline:
    """A model as a pipeline.

    Args:
        model: folder, file or name of the model, as `models.pipeline.load` takes it.
        device: cuda, cpu, ... None: a GPU if there is one.
        dtype: of its weights: float32, float16 or bfloat16.
        lora: a LoRA to put beside it.
        scale: strength of the LoRA.
        controlnet: ControlNets to put beside it.
        offload: its parts wait on the CPU until they are called.
        config: of a model in one file: a folder of its kind in diffusers' layout.

    Returns:
        The pipeline on the device.

    Raises:
        OnbrandError: there is no such device, or the model cannot be loaded.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    take_gpu(device)
    try:
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise OnbrandError(
            "option", f"the device must be one that torch has here; got {device!r} ({reason}): take cpu"
        ) from error
    return pipeline.load(model, device, dtype, config, lora, scale, controlnet, offload)


def open_autoencoder(options: CheckOptions, prior: Prior | None) -> DiffusionPipeline | None:
    """The model that encodes images for the prior: the one that is named, or the one that it was fitted with. None
    without a prior. What it says of its LoRA goes to stderr: beside JSON.

    Raises:
        OnbrandError: as `open_model`; or it has another autoencoder than the prior was fitted with.
    """
    if prior is None:
        return None
    with redirect_stdout(sys.stderr):
        pipe = open_model(options.model or prior.provenance.model, options.device, config=options.model_config)
    check_prior(pipe, prior, "mean", None)
    return pipe


def gate_of(options: GenerateOptions, prior: Prior | None) -> Callable[[Plan], Gate] | None:
    """What opens the brand's gate; None without photos to judge against. In half precision, and if the VAE is tiled, it
    encodes with a model of its own, as `check` does."""
    if options.against is None:
        return None
    from onbrand.evaluation.gate import open_gate

    own = options.dtype == "float32" and not options.offload
    as_check = CheckOptions(options.output_dir, options.against, device=options.device)
    return partial(
        open_gate,
        against=options.against,
        max_draws=options.max_draws,
        attributes=options.attributes,
        pipe=None if own else open_autoencoder(as_check, prior),
        brand=brand_folder(options.prior),
    )


def open_model_to_train(options: TrainOptions) -> DiffusionPipeline:
    """The model to start from, with a ControlNet if the method trains one and the model has none.

    Raises:
        OnbrandError: as `open_model`; the model is a LoRA and the method starts from a whole model; or the run's folder
            lies in the photos'.
    """
    from onbrand.training.defaults import check_rank
    from onbrand.training.rng import seed_of

    if options.method != "full" and is_lora(options.model):
        raise OnbrandError(
            "training",
            f"method {options.method} starts from a whole model; {options.model} is a LoRA: `onbrand merge` it first",
        )
    for photos in (options.images, options.validation_data or options.images):
        check_folder(Path(options.output_dir), Path(photos))
    pipe = open_model(options.model, options.device, config=options.model_config)
    if options.method == "lora":
        check_rank(pipe, options)
    if options.method == "controlnet" and not nets_of(pipe):
        return new_controlnet(pipe, seed_of(options.seed, "controlnet", 0))
    return pipe


def brand_folder(prior: str | Path | None) -> Path | None:
    """The brand's folder, which `fit` wrote, if that is what `prior` names; None for a prior's file."""
    return Path(prior) if prior is not None and Path(prior).is_dir() else None


def open_prior(prior: str | Path | None, model: str | Path | None = None) -> Prior | None:
    """The prior in `prior`, or on the Hub; it knows its other buckets'. Without one: that beside the model, or none."""
    if prior is not None:
        return Prior.from_pretrained(prior) if is_hub_id(prior) else Prior.load(prior)
    beside = model_folder(model) / "onbrand" if model is not None else None
    return Prior.load(beside) if beside is not None and (beside / PRIOR).is_file() else None


def prior_of(source: Path) -> Prior:
    """The prior of a brand's folder, a prior's file, or a run or model that has one beside it.

    Raises:
        OnbrandError: there is none.
    """
    if source.is_file() or (source / PRIOR).is_file():
        return Prior.load(source)
    prior = open_prior(None, source)
    if prior is None:
        raise OnbrandError(
            "prior",
            f"no prior in {source}{'' if source.exists() else ', which is not there'}: give the folder that "
            "`onbrand fit` wrote, or a run that was trained with a prior",
        )
    return prior


def size_of(pipe: DiffusionPipeline, resolution: int | tuple[int, int] | None) -> tuple[int, int]:
    """The size of the images.

    Args:
        pipe: the model.
        resolution: (H, W), or one number for a square; None: the model's own.

    Returns:
        (H, W), multiples of the factor by which the VAE shrinks.

    Raises:
        OnbrandError: a side is no multiple of that factor.
    """
    factor = pipeline.factor_of(pipe)
    if resolution is None:
        side = pipe.unet.config.sample_size
        resolution = side * factor if isinstance(side, int) else (side[0] * factor, side[1] * factor)
    sides = (resolution, resolution) if isinstance(resolution, int) else tuple(resolution)
    if len(sides) != 2:
        raise OnbrandError("option", f"resolution is one number or two, height and width; got {resolution}")
    height, width = sides
    if min(height, width) < factor or height % factor or width % factor:
        raise OnbrandError(
            "model",
            f"a side is a multiple of {factor}, by which this model's VAE shrinks; got {height} x {width}: set "
            f"resolution {max(height // factor, 1) * factor} {max(width // factor, 1) * factor}",
        )
    return height, width


def open_prior_to_train(pipe: DiffusionPipeline, options: TrainOptions) -> tuple[Prior | None, tuple[int, int], bool]:
    """The prior, (H, W) of the images trained on, and whether they are mirrored at random: as it was fitted, if any. Of
    several sizes all, unless the options ask for one.

    Raises:
        OnbrandError: the options ask for another size, or for mirrored images of a prior that has seen none.
    """
    size, prior = size_of(pipe, options.resolution), open_prior(options.prior)
    if prior is None:
        return None, size, options.random_flip
    if options.resolution is not None and len(prior.all) > 1:
        prior = replace(prior.at(size), buckets={})
    provenance = prior.provenance
    size = provenance.resolution if options.resolution is None else size
    prior.check(resolution=size)
    if options.random_flip and not provenance.flip:
        raise OnbrandError(
            "training",
            f"the prior {options.prior} was fitted without mirrored images; got random_flip: fit with it too, or leave "
            "it out",
        )
    return prior, size, provenance.flip


def encode_training_data(
    pipe: DiffusionPipeline, options: TrainOptions, folder: Path, prior: Prior | None, size: tuple[int, int], flip: bool
) -> tuple[list[Bucket], Summary, Summary | None]:
    """The photos of each size with their latents in `folder`, that of the most first; all photos, and the validation
    data, if there are any.

    If `folder` is a brand's that may only be read and lacks some, they are kept in the run's own.
    """
    from onbrand.training.defaults import check_control_images

    name, own = options.validation_data, Path(options.output_dir)
    validation: dict[tuple[int, int], tuple[Store, Summary]] = {}
    try:
        if name is not None:
            is_place = "://" in str(name) or Path(name).exists()
            photos = open_photos(name) if is_place else open_photos(options.images, str(name))
            validation = _encode_each(pipe, photos, folder / LATENTS, prior, size, flip)
        photos = open_photos(options.images, options.split)
        if options.method == "controlnet" and not any(one.conditioning for one in photos.records):
            check_control_images(photos.records)
        used = _encode_each(pipe, photos, folder / LATENTS, prior, size, flip)
    except OSError as error:
        if folder == own or error.errno not in DENIED:
            raise
        warnings.warn(f"latents are kept in {own} and not in {folder} ({error.strerror})", stacklevel=2)
        return encode_training_data(pipe, options, own, prior, size, flip)
    nothing = Summary([], [], [])
    buckets = [
        Bucket(store, images.used, validation.get(one, (store, nothing))[1].used)
        for one, (store, images) in used.items()
    ]
    if lost := [name_of(one) for one in validation if one not in used]:
        raise OnbrandError(
            "training", f"validation data have photos of {', '.join(lost)}, and none trained on has: give others"
        )
    return buckets, _joint(used), _joint(validation) if validation else None


def _encode_each(
    pipe: DiffusionPipeline, photos: Folder, folder: Path, prior: Prior | None, size: tuple[int, int], flip: bool
) -> dict[tuple[int, int], tuple[Store, Summary]]:
    """`encode_photos` of the photos of each size that the prior knows, that of the most first."""
    cells = {size: photos.records}
    if prior is not None and len(prior.all) > 1:
        cells = by_bucket(photos.records, prior.sizes, size)
    parts = {}
    for number, (one, records) in enumerate(cells.items()):
        own = replace(photos, records=records, refused=[] if number else photos.refused)
        parts[one] = encode_photos(pipe, own, folder, one, flip)
    return parts


def _joint(parts: Mapping[tuple[int, int], tuple[Store, Summary]]) -> Summary:
    """All sizes' photos together, in the order of their folder."""
    summaries = [summary for _, summary in parts.values()]
    pairs = [pair for one in summaries for pair in zip(one.used, one.keys, strict=True)]
    pairs.sort(key=lambda pair: pair[0].index)
    refused = [error for one in summaries for error in one.refused]
    encoded, seconds = sum(one.encoded for one in summaries), sum(one.seconds for one in summaries)
    return Summary([record for record, _ in pairs], [key for _, key in pairs], refused, encoded, seconds)


def open_photos(images: str | Path, split: str | None = None, file: TextIO | None = None) -> Folder:
    """A folder of photos, read; print what was found there, once for all processes, to `file` (stdout)."""
    photos = open_folder(images, split)
    if rank() == 0:
        print("\n".join(map(plain, photos.contents)), file=file)
    return photos


def say_folders(images: Path, photos: str | Path, split: str | None, json: bool) -> None:
    """Print what was found in the photos, and in the images if no manifest says it; to stderr beside JSON."""
    file = sys.stderr if json else sys.stdout
    say_refused(open_photos(photos, split, file).refused, file=file)
    if images.resolve() != Path(photos).resolve() and not (images / MANIFEST).is_file():
        open_photos(images, file=file)


def say_summary(summary: Summary, limit: int = 20) -> None:
    """Print how many photos are used, and the refused ones with their reasons (the first `limit`)."""
    rate = f", {summary.encoded / summary.seconds:.0f} a second" if summary.encoded and summary.seconds else ""
    print(f"{len(summary.used)} photos used ({summary.encoded} encoded now{rate}), {len(summary.refused)} refused")
    say_refused(summary.refused, ", all in fit.json", limit)


def say_refused(
    refused: Sequence[UnreadableImage], where: str = "", limit: int = 20, file: TextIO | None = None
) -> None:
    """Print the refused images with their reasons, the first `limit`; where: all of them are listed there."""
    for entry in refused[:limit]:
        print(f"  {plain(entry)}", file=file)
    if len(refused) > limit:
        print(f"  ... and {len(refused) - limit} more{where}", file=file)


def origin_of(options: TrainOptions, prior: Prior | None) -> dict[str, Any]:
    """What run.json says of the model, photos and prior of a run."""
    return {
        "model": str(options.model), "photos": str(options.images),
        "prior": None if options.prior is None else str(options.prior),
        "fingerprints": {"prior": prior.fingerprint} if prior else {},
    }  # fmt: skip


def say_training_data(images: Summary, validation_data: Summary | None, compiles: bool) -> None:
    """Print what is trained and validated on, and why the first step takes long if the networks are compiled."""
    say_summary(images)
    if validation_data:
        print(f"{len(validation_data.used)} validation photos, {len(validation_data.refused)} refused")
    if compiles:
        print("the networks are compiled before the first step, which takes some minutes")
