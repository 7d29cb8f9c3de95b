"""generate: images from a model and a prior."""

from __future__ import annotations

from pathlib import Path

from onbrand.api._output import works_in
from onbrand.io import versions, write_json
from onbrand.options._verb import command, verb
from onbrand.options.generate import GenerateOptions


@verb(GenerateOptions)
@works_in(
    "output_dir", "take offload, a smaller batch_size, or dtype bfloat16 (float16 on an older GPU)", use="together"
)
def generate(options: GenerateOptions) -> list[Path]:
    """Make images, each from its own seed, started where the brand's images start.

    Writes one PNG a request and manifest.jsonl, from which any of them can be made again. The same command, after a
    stop or a kill, makes only what is missing.

    Returns:
        The images' files, in the order of the requests.

    Raises:
        OnbrandError: no request, an unknown class, a start outside what the model was trained for.
    """
    from tqdm import tqdm

    from onbrand.api._inputs import gate_of, open_model, open_prior
    from onbrand.ranks import gather, rank
    from onbrand.sampling.draws import gain_of, words_of
    from onbrand.sampling.manifest import read_manifest, write_images, write_table
    from onbrand.sampling.requests import read_requests

    sides = options.resolution
    requests = read_requests(
        options.prompts,
        prompt=options.prompt,
        count=options.num_images_per_prompt,
        seed=options.seed,
        negative_prompt=options.negative_prompt,
        size=(sides, sides) if isinstance(sides, int) else sides,
    )
    out, nets = Path(options.output_dir), options.controlnet
    pipe = open_model(
        options.model, options.device, options.dtype, options.lora, options.lora_scale, nets, options.offload,
        options.model_config,
    )  # fmt: skip
    beside = (open_prior(None, place) for place in (options.lora, *nets, options.model))
    prior = open_prior(options.prior) or next(filter(None, beside), None)
    images = write_images(out, pipe, prior, requests, options, open_gate=gate_of(options, prior))
    record = {
        "command": command("generate", options),
        "versions": versions(), "prior": None if options.prior is None else str(options.prior),
    }  # fmt: skip
    write_json(out / "run.json", record)
    count = 0
    with tqdm(total=len(requests), desc="generate", unit=" images") as bar:
        for count, image in enumerate(images, 1):  # noqa: B007  (how many, in the end)
            if not bar.n:
                bar.initial = bar.n = image.index
            bar.update(image.index + 1 - bar.n)  # batches are taken in order, whoever makes those before
    count = sum(gather(count))
    entries = read_manifest(out)
    if rank() == 0:
        write_table(out, entries)
    print(f"wrote {count} images to {out} ({len(entries) - count} were there)")
    if gain := gain_of(entries.values()):
        print("\n".join(words_of(gain)))
        if rank() == 0:
            write_json(out / "run.json", {**record, "gate": gain})
    return [out / entries[index]["file"] for index in range(len(requests))]
