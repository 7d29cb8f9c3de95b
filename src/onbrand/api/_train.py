"""train: from photos and a prior to a run and its model."""

from __future__ import annotations

from pathlib import Path

from onbrand.api._memory import PEAK, peak_memory
from onbrand.api._output import pushed, works_in
from onbrand.io import read_json, versions, write_json
from onbrand.options._verb import command, verb
from onbrand.options.train import TrainOptions


@verb(TrainOptions)
@works_in(
    "output_dir", "take a smaller train_batch_size with more gradient_accumulation_steps, gradient_checkpointing, "
    "offload, mixed_precision bf16 (fp16 on an older GPU), or fit and train at a smaller resolution", use="together",
)  # fmt: skip
@pushed
def train(options: TrainOptions) -> Path:
    """Fine-tune a model on photos with the start that will make the images.

    Only the noise differs from plain training (Eq. 14, 15); start noise is plain training. The saved model loads in
    diffusers without onbrand. The same command, after a stop or a kill, goes on exactly where it was. With
    early_stopping_patience a run ends when its validation images pass the brand's check no more often than before; its
    model is the one of that step, not of the best before it.

    Returns:
        The folder of the trained model, output_dir/model.

    Raises:
        OnbrandError: settings, prior, model and photos that do not go together, before anything is computed.
    """
    from tqdm import tqdm

    from onbrand.api import _inputs
    from onbrand.evaluation.loading import open_references
    from onbrand.ranks import gather, rank
    from onbrand.training.early_stopping import has_stalled, read_pass_rates, until_stalled
    from onbrand.training.export import save_model
    from onbrand.training.loop import settle
    from onbrand.training.loop import train as train_steps
    from onbrand.training.validation import check_validation_data, make_validation

    check_validation_data(options, options.validation_data is not None)
    out, pipe = Path(options.output_dir), _inputs.open_model_to_train(options)
    brand, (prior, size, flip) = _inputs.brand_folder(options.prior), _inputs.open_prior_to_train(pipe, options)
    config = settle(pipe, prior, options)
    data, images, validation_data = _inputs.encode_training_data(pipe, options, brand or out, prior, size, flip)
    validate = make_validation(pipe, data, prior, config, out) if config.validation_steps else None
    one = data[0]
    steps = train_steps(pipe, one.records, one.store, prior, config, out, validate, one.validation, data[1:])
    pass_rates, patience = read_pass_rates(out), config.early_stopping_patience
    if validate and patience is not None and not has_stalled(pass_rates, patience):
        sizes, encoder = validate.plan.sizes if prior else [size], pipe if prior else None
        validate.references = open_references(options.images, sizes, prior, encoder, brand, options.split)
    main, file = rank() == 0, out / "run.json"
    record = {"command": command("train", options), "versions": versions(), **_inputs.origin_of(options, prior)}
    if main:
        _inputs.say_training_data(images, validation_data, config.compile)
        write_json(file, record | {name: value for name, value in read_json(file).items() if name in PEAK})
    with tqdm(total=config.max_train_steps, desc="train", unit=" steps", disable=not main) as bar:
        for step in until_stalled(steps, pass_rates, patience):
            if not bar.n:  # the steps of an earlier run do not count in this run's rate
                bar.initial = bar.n = step.step - 1
            bar.update()
            bar.set_postfix(loss=f"{step.loss:.4f}", refresh=False)
            record |= peak_memory(pipe.unet.device)
    gather(None)
    if main:
        if has_stalled(pass_rates, patience):
            save_model(pipe, prior, config, out)
            best = f"at best {max(pass_rates):.1%} of the validation images passed"
            print(f"stopped: {best}, and not in the last {patience}")
        if PEAK[0] in record:
            write_json(file, record)
            print("peak memory {:.2f} GB ({})".format(*(record[name] for name in PEAK)))
        print(f"wrote {out / 'model'}")
    return out / "model"
