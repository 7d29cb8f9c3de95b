"""train: from photos and a prior to a run and its model."""

from __future__ import annotations

from pathlib import Path

from onbrand.api._memory import enough_memory, peak_memory
from onbrand.io import command, versions, write_json
from onbrand.options.train import TrainConfig

USUAL = TrainConfig()
"""The settings of a training run where none are given."""


@enough_memory(
    "take a smaller --batch, a larger --engine.accumulation, --engine.gradient_checkpointing true, "
    "--engine.offload true, --engine.precision bf16 (fp16 on an older GPU), or fit and train at a smaller --resolution"
)
def train(
    photos: str | Path,
    model: str | Path,
    out: str | Path,
    *,
    prior: str | Path | None = None,
    config: TrainConfig = USUAL,
    split: str | None = None,
    held: str | Path | None = None,
    resolution: int | tuple[int, int] | None = None,
    flip: bool = False,
    device: str | None = None,
) -> Path:
    """Fine-tune a model on photos with the start that will make the pictures.

    Only the noise differs from plain training (Eq. 14, 15); `--offset none` is plain training. What is saved under
    out/model loads in diffusers without onbrand. The same command, after a stop or a
    kill, goes on exactly where it was. With log.patience a run ends when its validation pictures pass the brand's
    check no more often than before; its model is the one of that step, not of the best before it.

    Args:
        photos: folder of photos, as for `fit`
        model: model to start from, as for `fit`
        out: the run's folder: config.yaml, log.jsonl, state/, validation/, model/
        prior: the brand's folder (or its prior.safetensors); needed unless offset is none
        config: the run's settings
        split: as for `fit`
        held: photos held out, for a loss every log.held_every steps: a folder, or the name of a split of the photos
        resolution: as for `fit`; left out: the prior's, or the model's own
        flip: mirror pictures at random; with a prior, as that was fitted
        device: cuda, cpu, ...; left out: a GPU where there is one

    Returns:
        The folder of the trained model, out/model.

    Raises:
        ValueError: settings, prior, model and photos that do not go together, before anything is computed.
    """
    given = dict(locals())
    from tqdm import tqdm

    from onbrand.api._inputs import open_model, open_prior, say_summary, size_of
    from onbrand.data.latents import FOLDER as LATENTS
    from onbrand.evaluation.loading import open_reference
    from onbrand.models.checkpoint import is_lora
    from onbrand.models.controlnet import nets_of, new_controlnet
    from onbrand.models.fitting import encode_photos, processes
    from onbrand.reporting.folder import read_json
    from onbrand.training.defaults import check_controls, settled
    from onbrand.training.export import finish, teach
    from onbrand.training.loop import train as take_steps
    from onbrand.training.rng import seed_of
    from onbrand.training.state import earlier, stalled
    from onbrand.training.validation import check_held, validation

    check_held(config, held is not None)
    if config.method != "full" and is_lora(model):
        raise ValueError(f"a {config.method} is trained on a whole model; {model} is a LoRA: `onbrand merge` it first")
    out, pipe = Path(out), open_model(model, device)
    if config.method == "controlnet" and not nets_of(pipe):
        pipe = new_controlnet(pipe, seed_of(config.seed, "controlnet", 0))
    fitted = None if prior is None else open_prior(prior)
    size = size_of(pipe, resolution)
    if fitted is not None:
        told = fitted.provenance
        size = told.resolution if resolution is None else size
        fitted.check(resolution=size)
        if flip and not told.flip:
            raise ValueError("the prior was fitted without mirrored pictures; got flip: fit with --flip, or omit it")
        flip = told.flip
    config = settled(config, fitted)
    brand = Path(prior) if prior is not None and Path(prior).is_dir() else None
    latents = brand or out
    kept = None
    if held is not None:
        where, part = (held, None) if Path(held).exists() else (photos, str(held))
        _, kept = encode_photos(pipe, where, latents / LATENTS, size, flip, split=part)
    store, summary = encode_photos(pipe, photos, latents / LATENTS, size, flip, split=split)
    teach(pipe, config)
    if config.method == "controlnet":
        check_controls(summary.used)
    validate = validation(pipe, summary.used, fitted, config, out) if config.log.validate_every else None
    steps = take_steps(pipe, summary.used, store, fitted, config, out, validate, kept.used if kept else ())
    passed, patience = earlier(out), config.log.patience
    over = stalled(passed, patience)
    if validate and patience is not None and not over:
        validate.size = size
        validate.reference = open_reference(photos, size, fitted, pipe if fitted else None, brand, split)
    state = processes(pipe)
    main = not state or state.is_main_process
    file, peak = out / "run.json", {}
    if main:
        say_summary(summary)
        if kept:
            print(f"{len(kept.used)} photos held out, {len(kept.refused)} refused")
        wrote = {
            "model": str(model), "photos": str(photos), "prior": None if prior is None else str(prior),
            "command": command(train, given),
            "versions": versions(), "fingerprints": {"prior": fitted.fingerprint} if fitted else {},
        }  # fmt: skip
        before = {name: value for name, value in read_json(file).items() if name.startswith("peak_memory")}
        write_json(file, wrote | before)
        if config.engine.compile:
            print("the networks are compiled before the first step, which takes some minutes")
    with tqdm(total=config.steps, desc="train", unit=" steps", disable=not main) as bar:
        for step in () if over else steps:
            if not bar.n:  # what an earlier run did is done, and not of this run's rate
                bar.initial = bar.n = step.step - 1
            bar.update()
            bar.set_postfix(loss=f"{step.loss:.4f}", refresh=False)
            peak = peak_memory(pipe.unet.device)
            passed += [] if step.passed is None else [step.passed]
            if over := stalled(passed, patience):
                break
    steps.close()
    if main and over:
        print(f"stopped: at best {max(passed):.1%} of the validation pictures passed, and not in the last {patience}")
        finish(pipe, fitted, config, out)
    if state:
        state.wait_for_everyone()
    if main and peak:
        write_json(file, wrote | peak)
        print(f"peak memory {peak['peak_memory_gb']:.2f} GB ({peak['peak_memory_of']})")
    if main:
        print(f"wrote {out / 'model'}")
    return out / "model"
