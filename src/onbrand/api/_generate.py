"""generate: pictures from a model and a prior."""

from __future__ import annotations

from pathlib import Path

from onbrand.api._memory import enough_memory
from onbrand.io import command, versions, write_json
from onbrand.options.generate import GenerateConfig

USUAL = GenerateConfig()
"""The settings that pictures are made with where none are given."""


@enough_memory("take --offload, a smaller --batch, or --dtype bfloat16 (float16 on an older GPU)")
def generate(
    prompts: str | Path | None = None,
    *,
    model: str | Path,
    out: str | Path,
    prior: str | Path | None = None,
    config: GenerateConfig = USUAL,
    prompt: str | None = None,
    count: int = 1,
    seed: int = 0,
    lora: str | Path | None = None,
    lora_scale: float = 1.0,
    controlnet: str | Path | list[str] | None = None,
    device: str | None = None,
    dtype: str = "float32",
    offload: bool = False,
) -> list[Path]:
    """Make pictures, each from its own seed, started where the brand's pictures start.

    Writes one PNG a request and manifest.jsonl, from which any of them can be made again. The same command, after a
    stop or a kill, makes only what is missing.

    Args:
        prompts: file of requests: a .txt of prompts, or one JSON object a line: prompt; optionally class, seed,
            negative_prompt, image, conditioning (the control picture, or a list of them)
        model: model or run folder to make them with; a LoRA's run folder brings the model it was trained on
        out: folder for the pictures
        prior: the brand's folder (or its prior.safetensors); left out: the one saved beside the LoRA, the ControlNet
            or the model
        config: where pictures start and how they are sampled
        prompt: one prompt instead of a file
        count: pictures of that prompt, with the seeds seed, seed + 1, ...
        seed: first seed of --prompt
        lora: a LoRA for `model`: its file or its run folder
        lora_scale: how strongly it counts; 1: as trained
        controlnet: a ControlNet for `model`: its folder, its run folder or a Hub id, or a list of several; a run folder
            given as `model` brings its own
        device: cuda, cpu, ...; left out: a GPU where there is one
        dtype: float32, float16 or bfloat16
        offload: each part of the model waits on the CPU until it is called, and the VAE takes one picture at a time,
            large ones in tiles: for a GPU of little memory

    Returns:
        The pictures' files, in the order of the requests.

    Raises:
        ValueError: no request, an unknown class, a start outside what the model was trained for.
    """
    given = dict(locals())
    from tqdm import tqdm

    from onbrand.api._inputs import open_model, open_prior
    from onbrand.sampling.manifest import read, write
    from onbrand.sampling.requests import read_requests

    nets = [controlnet] if isinstance(controlnet, str | Path) else controlnet or []
    requests = read_requests(prompts, prompt=prompt, count=count, seed=seed)
    out, pipe = Path(out), open_model(model, device, dtype, lora, lora_scale, nets, offload)
    beside = (open_prior(None, place) for place in (lora, *nets, model))
    fitted = open_prior(prior) or next(filter(None, beside), None)
    pictures = write(out, pipe, fitted, requests, config)
    write_json(out / "run.json", {
        "command": command(generate, given),
        "versions": versions(), "prior": None if prior is None else str(prior),
    })  # fmt: skip
    made = sum(1 for _ in tqdm(pictures, "generate", total=len(requests), unit=" pictures"))
    entries = read(out)
    print(f"wrote {made} pictures to {out} ({len(entries) - made} were there)")
    return [out / entries[index]["file"] for index in range(len(requests))]
