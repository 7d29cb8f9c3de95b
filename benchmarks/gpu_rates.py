"""Encoding and generation on a GPU beside plain diffusers, at the same batch and precision."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from gpu_models import DTYPES, Size, catalogue, model
from gpu_timing import fresh, idle, paired, rate, ratio
from onbrand.models.families import family_of
from onbrand.models.fitting import encode_records
from onbrand.options.generate import SamplingSettings
from onbrand.sampling.requests import Request
from onbrand.sampling.sampler import sample

Measure = Callable[[], dict[str, Any]]


def measurements(size: Size) -> dict[str, Measure]:
    """Encoding, then generation."""
    half = ("bf16", "fp16") if size.device == "cuda" else ("bf16",)
    return {
        f"{part}/{precision} batch {batch}": partial(compared, size, part, precision, batch)
        for part in ("encode", "generate")
        for precision in (*half, "no")
        for batch in (size.batch, 1)
    }


def compared(size: Size, part: str, precision: str, batch: int) -> dict[str, Any]:
    """Images a second of onbrand and of plain diffusers, in turn, and the time in which the GPU waits."""
    fresh()
    make = encoding if part == "encode" else generation
    blocks, images = make(size, DTYPES[precision], batch)
    for block in blocks.values():
        block()
    seconds = paired(blocks, size.device, size.rounds, 12.0)
    return {
        "precision": precision, "batch": batch,
        "images_a_second": {name: rate(each, images) for name, each in seconds.items()},
        "times_as_fast": {"diffusers": ratio(seconds["onbrand"], seconds["diffusers"])},
        "idle": {name: idle(blocks[name], size.device, seconds[name]) for name in blocks},
    }  # fmt: skip


def encoding(size: Size, dtype: torch.dtype, batch: int) -> tuple[dict[str, Callable[[], object]], int]:
    """Photos of a folder to latents on the CPU, through onbrand's store and in a plain loop; and how many."""
    pipe, (records, _, _) = model(size, dtype), catalogue(size)

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
            encode_records(pipe, records, Path(folder), (size.side, size.side), False, batch)

    @torch.no_grad()
    def plain() -> list[torch.Tensor]:
        means = []
        for first in range(0, len(records), batch):
            opened = [np.array(Image.open(record.file).convert("RGB")) for record in records[first : first + batch]]
            pixels = torch.from_numpy(np.stack(opened)).permute(0, 3, 1, 2) / 127.5 - 1
            means.append(pipe.vae.encode(pixels.to(pipe.device, dtype)).latent_dist.mean.float().cpu())
        return means

    return {"onbrand": ours, "diffusers": plain}, len(records)


def generation(size: Size, dtype: torch.dtype, batch: int) -> tuple[dict[str, Callable[[], object]], int]:
    """One batch of pictures from the class mean, and one by the pipeline alone; and how many."""
    pipe, (_, _, prior) = model(size, dtype), catalogue(size)
    prompts = [f"a shirt {number}" for number in range(batch)]
    requests = [Request(prompt, seed, "shirt") for seed, prompt in enumerate(prompts)]
    guidance = family_of(pipe).guidance
    config = SamplingSettings(start="mean", look_ahead=0, num_inference_steps=size.steps, batch_size=batch)

    def plain() -> Any:
        generators = [torch.Generator().manual_seed(seed) for seed in range(batch)]
        return pipe(
            prompts, num_inference_steps=size.steps, guidance_scale=guidance, generator=generators,
            height=size.side, width=size.side,
        )  # fmt: skip

    return {"onbrand": lambda: list(sample(pipe, prior, requests, config)), "diffusers": plain}, batch
