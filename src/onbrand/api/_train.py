"""train: from photos and a prior to a run and its model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from onbrand.api._memory import enough_memory, peak_memory
from onbrand.errors import OnbrandError
from onbrand.io import read_json, versions, write_json
from onbrand.options._verb import command, verb
from onbrand.options.train import TrainOptions, TrainSettings

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from onbrand.core import Prior
    from onbrand.data.latents import Store, Summary


@verb(TrainOptions)
@enough_memory(
    "take a smaller train_batch_size with more gradient_accumulation_steps, gradient_checkpointing, offload, "
    "mixed_precision bf16 (fp16 on an older GPU), or fit and train at a smaller resolution"
)
def train(options: TrainOptions) -> Path:
    """Fine-tune a model on photos with the start that will make the images.

    Only the noise differs from plain training (Eq. 14, 15); start noise is plain training. What is saved under
    output_dir/model loads in diffusers without onbrand. The same command, after a stop or a kill, goes on exactly where
    it was. With early_stopping_patience a run ends when its validation images pass the brand's check no more often than
    before; its model is the one of that step, not of the best before it.

    Returns:
        The folder of the trained model, output_dir/model.

    Raises:
        OnbrandError: settings, prior, model and photos that do not go together, before anything is computed.
    """
    from tqdm import tqdm

    from onbrand.api._inputs import open_prior, say_summary
    from onbrand.evaluation.loading import open_reference
    from onbrand.models.fitting import processes
    from onbrand.training.defaults import check_control_images, resolve_defaults
    from onbrand.training.export import save_model, set_prediction_type
    from onbrand.training.loop import train as train_steps
    from onbrand.training.state import has_stalled, read_pass_rates
    from onbrand.training.validation import check_validation_data, make_validation

    check_validation_data(options, options.validation_data is not None)
    out, pipe = Path(options.output_dir), _open_pipe(options)
    prior = None if options.prior is None else open_prior(options.prior)
    size, flip = _size_and_flip(pipe, prior, options)
    config: TrainSettings = resolve_defaults(options, prior)
    brand = Path(options.prior) if options.prior is not None and Path(options.prior).is_dir() else None
    store, images, validation_data = _encode(pipe, options, brand or out, size, flip)
    set_prediction_type(pipe, config)
    if config.method == "controlnet":
        check_control_images(images.used)
    validate = make_validation(pipe, images.used, prior, config, out) if config.validation_steps else None
    validation_records = validation_data.used if validation_data else ()
    steps = train_steps(pipe, images.used, store, prior, config, out, validate, validation_records)
    pass_rates, patience = read_pass_rates(out), config.early_stopping_patience
    over = has_stalled(pass_rates, patience)
    if validate and patience is not None and not over:
        validate.size = size
        reader = pipe if prior else None
        validate.reference = open_reference(options.images, size, prior, reader, brand, options.split)
    state = processes(pipe)
    main = not state or state.is_main_process
    file, record, peak = out / "run.json", _record(options, prior), {}
    if main:
        say_summary(images)
        if validation_data:
            print(f"{len(validation_data.used)} validation photos, {len(validation_data.refused)} refused")
        memory = {name: value for name, value in read_json(file).items() if name.startswith("peak_memory")}
        write_json(file, record | memory)
        if config.compile:
            print("the networks are compiled before the first step, which takes some minutes")
    with tqdm(total=config.max_train_steps, desc="train", unit=" steps", disable=not main) as bar:
        for step in () if over else steps:
            if not bar.n:  # the steps of an earlier run do not count in this run's rate
                bar.initial = bar.n = step.step - 1
            bar.update()
            bar.set_postfix(loss=f"{step.loss:.4f}", refresh=False)
            peak = peak_memory(pipe.unet.device)
            pass_rates += [] if step.passed is None else [step.passed]
            if over := has_stalled(pass_rates, patience):
                break
    steps.close()
    if main and over:
        print(f"stopped: at best {max(pass_rates):.1%} of the validation images passed, and not in the last {patience}")
        save_model(pipe, prior, config, out)
    if state:
        state.wait_for_everyone()
    if main and peak:
        write_json(file, record | peak)
        print(f"peak memory {peak['peak_memory_gb']:.2f} GB ({peak['peak_memory_of']})")
    if main:
        print(f"wrote {out / 'model'}")
    return out / "model"


def _open_pipe(options: TrainOptions) -> StableDiffusionPipeline:
    """The model to start from, with a ControlNet if the method trains one and the model has none."""
    from onbrand.api._inputs import open_model
    from onbrand.models.checkpoint import is_lora
    from onbrand.models.controlnet import nets_of, new_controlnet
    from onbrand.training.rng import seed_of

    if options.method != "full" and is_lora(options.model):
        raise OnbrandError(
            "training",
            f"method {options.method} starts from a whole model; {options.model} is a LoRA: `onbrand merge` it first",
        )
    pipe = open_model(options.model, options.device)
    if options.method == "controlnet" and not nets_of(pipe):
        return new_controlnet(pipe, seed_of(options.seed, "controlnet", 0))
    return pipe


def _size_and_flip(
    pipe: StableDiffusionPipeline, prior: Prior | None, options: TrainOptions
) -> tuple[tuple[int, int], bool]:
    """(H, W) of the images, and whether they are mirrored at random: as the prior was fitted, if there is one."""
    from onbrand.api._inputs import size_of

    size = size_of(pipe, options.resolution)
    if prior is None:
        return size, options.random_flip
    provenance = prior.provenance
    size = provenance.resolution if options.resolution is None else size
    prior.check(resolution=size)
    if options.random_flip and not provenance.flip:
        raise OnbrandError(
            "training",
            "the prior was fitted without mirrored images; got random_flip: fit with it too, or leave it out",
        )
    return size, provenance.flip


def _encode(
    pipe: StableDiffusionPipeline, options: TrainOptions, folder: Path, size: tuple[int, int], flip: bool
) -> tuple[Store, Summary, Summary | None]:
    """The photos' latents in `folder`, the photos, and the validation data, if there are any."""
    from onbrand.data.latents import FOLDER as LATENTS
    from onbrand.models.fitting import encode_photos

    validation_data, name = None, options.validation_data
    if name is not None:
        photos, split = (name, None) if Path(name).exists() else (options.images, str(name))
        _, validation_data = encode_photos(pipe, photos, folder / LATENTS, size, flip, split=split)
    store, images = encode_photos(pipe, options.images, folder / LATENTS, size, flip, split=options.split)
    return store, images, validation_data


def _record(options: TrainOptions, prior: Prior | None) -> dict[str, Any]:
    """What run.json says of a run beside its memory."""
    return {
        "model": str(options.model), "photos": str(options.images),
        "prior": None if options.prior is None else str(options.prior), "command": command("train", options),
        "versions": versions(), "fingerprints": {"prior": prior.fingerprint} if prior else {},
    }  # fmt: skip
