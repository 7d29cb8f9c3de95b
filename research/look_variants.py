"""Ways to look ahead, side by side on one LoRA that was trained as usual: the one that stayed, and those that did not.

Run by research/results.py --only look; writes docs/research/results-look-variants.json. The library has the first; the
others are here alone, each put in its place (`onbrand.sampling.start.estimate_ahead`) while its images are made.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor
from tqdm import tqdm

from onbrand import api
from onbrand.api._inputs import open_model
from onbrand.comparison import tables
from onbrand.comparison.baselines import few_of, few_prior
from onbrand.comparison.jobs import Job, slug, work
from onbrand.comparison.methods import read_method
from onbrand.core import Fitter, Prior
from onbrand.core.prior import FILE as PRIOR
from onbrand.data.latents import FOLDER as LATENTS
from onbrand.data.records import open_folder
from onbrand.datasets import garments
from onbrand.models.fitting import encode_photos, fit_gaussians
from onbrand.models.scheduler import latents_for, scales, set_steps
from onbrand.options.generate import SamplingSettings
from onbrand.sampling import look_ahead, noise, start
from results_catalogue import CONFIG
from results_page import DATA, DOCS

MANY = replace(CONFIG, batch_size=96)
"""The experiments' settings, more images at a time."""
LORA = "plain:lora8:lr0.003:300"
FEW = 50
"""Photos a class of the prior whose mean is one of the two bases; the other is the mean given the text, of all."""
WIDE = 32
"""Components of the wider projection that is tried."""
wide_priors: dict[str, Prior] = {}
"""Fingerprint of a prior -> the same photos' prior with WIDE components."""

Estimate = Callable[..., Tensor]


def noise_at(seeds: Sequence[int], number: int, like: Tensor, zero_mean: bool) -> Tensor:
    """The noise that the library has in its look `number`."""
    generators = [noise.generator_for(seed, f"look {number}") for seed in seeds]
    return noise.noise_of(generators, like.shape[1:], zero_mean)


def ask(pipe: Any, live: Any, x_start: Tensor, drawn: Tensor, told: look_ahead.Look, **changed: Any) -> Tensor:
    """x0_hat of the first step from x_start under the noise drawn; `changed`: of what the pipeline is called with."""
    return look_ahead.first_estimate(pipe, live, latents_for(live, x_start, drawn), {**told.call, **changed})


def looking(
    step: Callable[..., Tensor] = ask, keep: Callable[..., Tensor] | None = None, times: int = 1, same: bool = False,
    **options: Any,
) -> Estimate:  # fmt: skip
    """A way to look ahead: `step` asks the network, `keep` says what of its answer stays (None: the projection)."""

    def estimate(
        pipe: StableDiffusionPipeline, prior: Prior, live: Any, x_start: Tensor, classes: Sequence[str],
        seeds: Sequence[int], told: look_ahead.Look,
    ) -> Tensor:  # fmt: skip
        for number in range(1, times + 1):
            fresh = noise_at(seeds, number, x_start, told.zero_mean)
            drawn = noise.noise_for(seeds, x_start.shape[1:], told.zero_mean) if same else fresh
            x0_hat = step(pipe, live, x_start, drawn, told, **options)
            if keep is None:
                x_start = prior.project(x0_hat, classes)
            else:
                x_start = keep(prior, x0_hat, classes, seeds, number, live)
        return x_start

    return estimate


def pair(pipe: Any, live: Any, x_start: Tensor, drawn: Tensor, told: look_ahead.Look) -> Tensor:
    """The mean of the answers under a noise and its opposite: two evaluations."""
    return (ask(pipe, live, x_start, drawn, told) + ask(pipe, live, x_start, -drawn, told)) / 2


def below(pipe: Any, live: Any, x_start: Tensor, drawn: Tensor, told: look_ahead.Look, steps: int) -> Tensor:
    """The answer at a lower timestep: the first one of fewer steps."""
    lower = set_steps(copy.copy(pipe.scheduler), steps)
    return ask(pipe, lower, x_start, drawn, told, num_inference_steps=steps)


def posterior(
    prior: Prior, x0_hat: Tensor, classes: Sequence[str], seeds: Sequence[int], number: int, live: Any
) -> Tensor:
    """The projection and, drawn beside it, what a first answer leaves open: sqrt(l (1 - q^2)) in each component."""
    abar = scales(live)[1]
    rows = []
    for one, name, seed in zip(x0_hat, classes, seeds, strict=True):
        gaussian = prior.gaussians[name]
        left = prior.text[name].residual.diagonal() if name in prior.text else gaussian.variances
        spread = (left * (1 - abar) / (abar * left + 1 - abar)).clamp(min=0).sqrt()
        xi = torch.randn(1, gaussian.k, generator=noise.generator_for(seed, f"posterior {number}"))
        rows.append(gaussian.place(gaussian.coordinates(one[None]) + xi * spread))
    return torch.cat(rows)


def first(prior: Prior, x0_hat: Tensor, classes: Sequence[str], *_: Any, k: int) -> Tensor:
    """The projection on k components."""
    return prior.project(x0_hat, classes, k)


def wider(prior: Prior, x0_hat: Tensor, classes: Sequence[str], *_: Any) -> Tensor:
    """The projection on WIDE components, of a prior of the same photos that was fitted with as many."""
    return wide_priors[prior.fingerprint].project(x0_hat, classes)


def partly(prior: Prior, x0_hat: Tensor, classes: Sequence[str], *_: Any, share: float) -> Tensor:
    """The projection and a share of what lies outside it."""
    inside = prior.project(x0_hat, classes)
    return inside + share * (x0_hat - inside)


def surely(prior: Prior, x0_hat: Tensor, classes: Sequence[str], *_: Any) -> Tensor:
    """The projection, each coordinate in the share of its variance that is not the sample's own scatter."""
    rows = []
    for one, name in zip(x0_hat, classes, strict=True):
        gaussian = prior.gaussians[name]
        scatter = gaussian.residual * one.numel() / max(gaussian.count - 1, 1)
        share = (1 - scatter / gaussian.variances.clamp(min=1e-12)).clamp(0, 1)
        rows.append(gaussian.place(gaussian.coordinates(one[None]) * share))
    return torch.cat(rows)


def within(prior: Prior, x0_hat: Tensor, classes: Sequence[str], *_: Any, sigmas: float) -> Tensor:
    """The projection, no coordinate further from the mean than `sigmas` standard deviations of the photos'."""
    rows = []
    for one, name in zip(x0_hat, classes, strict=True):
        gaussian = prior.gaussians[name]
        most = sigmas * gaussian.variances.sqrt()
        rows.append(gaussian.place(gaussian.coordinates(one[None]).clamp(-most, most)))
    return torch.cat(rows)


def whole(prior: Prior, x0_hat: Tensor, *_: Any) -> Tensor:
    """All of the answer."""
    return x0_hat


VARIANTS: Mapping[str, Estimate] = {
    "one look_ahead, as the library does": start.estimate_ahead,
    "no look": lambda pipe, prior, live, x_start, *_: x_start,
    "2 looks": looking(times=2),
    "4 looks": looking(times=4),
    "the start's own noise": looking(same=True),
    "a noise and its opposite, 2 evaluations": looking(pair),
    "what is left open drawn beside": looking(keep=posterior),
    "the same, 2 looks": looking(keep=posterior, times=2),
    "the same, 4 looks": looking(keep=posterior, times=4),
    "without guidance": looking(guidance_scale=1.0),
    "guided as sampling is": looking(),
    "guidance 3": looking(guidance_scale=3.0),
    "guidance 7.5": looking(guidance_scale=7.5),
    "1 component": looking(keep=partial(first, k=1)),
    "4 components": looking(keep=partial(first, k=4)),
    "8 components": looking(keep=partial(first, k=8)),
    "32 components": looking(keep=wider),
    "not projected": looking(keep=whole),
    "half of what lies outside": looking(keep=partial(partly, share=0.5)),
    "components as far as they are sure": looking(keep=surely),
    "within 2 sigma": looking(keep=partial(within, sigmas=2.0)),
    "at 901": looking(partial(below, steps=10)),
    "at 801": looking(partial(below, steps=5)),
}  # fmt: skip

NO, LIBRARY, ALIKE = "no look", "one look_ahead, as the library does", "guided as sampling is"
GUIDED = {
    3.0: (NO, LIBRARY, ALIKE, "within 2 sigma"),
    7.5: (NO, LIBRARY, ALIKE, "without guidance", "guidance 3", "within 2 sigma"),
}
"""Variants that are also sampled with more guidance, from the mean of few photos."""


def priors_of(out: Path) -> dict[str, Prior]:
    """The priors of the two bases, and in `wide_priors` the same photos' with WIDE components."""
    pipe, brand, fitted = open_model("tiny", "cpu"), out / "brand", Prior.load(out / "brand" / PRIOR)
    told = fitted.provenance
    photos = open_folder(garments.garment_folder(), "train")
    store, summary = encode_photos(pipe, photos, brand / LATENTS, told.resolution, told.flip)
    few = few_of(summary.used, FEW)
    priors = {"mean": few_prior(pipe, fitted, store, few), "text": fitted}
    for kind, records in (("mean", few), ("text", summary.used)):
        gaussians = fit_gaussians(pipe, Fitter(fitted.shape, WIDE), store, store.look_up(records))
        wide_priors[priors[kind].fingerprint] = Prior(gaussians, told)
    return priors


def run(out: Path) -> tables.Table:
    """Every variant from both bases, from what is finished on; docs/research/results-look-variants.json.

    out: the experiments' folder, with its brand/ and its requests."""
    photos, brand, lora = garments.garment_folder(), out / "brand", out / "variants" / "lora"
    training = read_method(f"{LORA}/mean", CONFIG).training.config
    assert training is not None
    jobs = [Job("a LoRA, as usual", lora / "model",
                lambda: api.train(photos, "tiny", lora, **vars(training), split="train"))]  # fmt: skip
    folders: dict[str, Path] = {}

    def images(folder: Path, kind: Any, prior: Path, estimate: Estimate, guidance: float) -> None:
        config = SamplingSettings(
            start=kind, zero_mean=True, look_ahead=1, guidance_scale=guidance, batch_size=MANY.batch_size
        )
        with patch.object(start, "estimate_ahead", estimate):
            api.generate(out / "ten.jsonl", model=lora, output_dir=folder, prior=prior, **vars(config))
        api.check(folder, photos, split="train", prior=brand, model="tiny", attributes="garments")
        (folder / ".checked").touch()

    asked = [(name, CONFIG.guidance_scale) for name in VARIANTS if name != ALIKE]
    guided = [(name, guidance) for guidance, names in GUIDED.items() for name in names]
    for kind, prior in priors_of(out).items():
        file = out / "variants" / f"{kind}.safetensors"
        prior.save(file)
        for name, guidance in asked + (guided if kind == "mean" else []):
            words = f"{kind}: {name}" + (f", sampled at {guidance:g}" if guidance != CONFIG.guidance_scale else "")
            folders[words] = folder = out / "variants" / slug(words.replace(": ", "-").replace(" ", "-"))
            made = partial(images, folder, kind, file, VARIANTS[name], guidance)
            jobs.append(Job(words, folder / ".checked", made, lora / "model"))
    failed = work(jobs, out / "locks", tqdm.write)
    if failed:
        raise ValueError(f"these failed: {failed}")
    table = {name: tables.scores(folder) for name, folder in folders.items()}
    (DOCS / DATA / "results-look-variants.json").write_text(json.dumps(table, indent=1) + "\n")
    return table
