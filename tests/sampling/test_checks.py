"""Offset-trained weights refuse a start outside their window and warn of one not theirs; what the hand-off refuses."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from onbrand.core.prior import Prior
from onbrand.models import pipeline
from onbrand.models.lora_pairs import Pair, put
from onbrand.models.pipeline import text_fingerprint
from onbrand.models.scheduler import with_options
from onbrand.options.generate import SamplingSettings
from onbrand.sampling.handoff import HandOff
from onbrand.sampling.requests import Request
from onbrand.sampling.sampler import sample
from onbrand.sampling.start import start
from worlds import raises, tiny_pipeline, tiny_prior

WINDOW = {"gain": "window", "start": "mean", "k": 0, "start_timestep": 950}
CONSTANT = {"gain": "constant", "start": "mean", "k": 0, "start_timestep": 951}


def begin(
    pipe: Any,
    prior: Any,
    steps: Any = 20,
    scheduler_class: Any = DDIMScheduler,
    spacing: Any = "leading",
    **options: Any,
) -> Any:
    other = copy.copy(pipe)
    other.scheduler = with_options(pipe.scheduler, scheduler_class.__name__, spacing)
    return start(other, prior, ["garment"], seeds=[1], num_inference_steps=steps, **options)


@pytest.fixture
def silence() -> Iterator[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


@pytest.mark.parametrize(
    ("steps", "scheduler_class", "timestep"),
    [(10, DDIMScheduler, 901), (20, DPMSolverMultistepScheduler, 941)],
)  # fmt: skip
def test_outside_the_window_is_an_error_whose_remedies_work(
    pipe: Any, prior: Any, steps: Any, scheduler_class: Any, timestep: Any, silence: Any
) -> None:
    with raises("start", "OB003", "timestep 950", f"timestep {timestep}") as error:
        begin(pipe, prior, steps, scheduler_class, trained_start=WINDOW)
    number = int(re.search(r"num_inference_steps (\d+)", str(error.value))[1])
    spacing = re.search(r"timestep_spacing (\w+)", str(error.value))[1]
    begin(pipe, prior, number, scheduler_class, trained_start=WINDOW)
    begin(pipe, prior, steps, scheduler_class, spacing, trained_start=WINDOW)


def test_inside_the_window_nothing_is_said(pipe: Any, prior: Any, silence: Any) -> None:
    for steps in (20, 50):
        begin(pipe, prior, steps, trained_start=WINDOW)
    begin(pipe, prior, 50, DPMSolverMultistepScheduler, trained_start=WINDOW)
    begin(pipe, prior, 4, spacing="trailing", trained_start=WINDOW)
    begin(pipe, prior, 10, trained_start=None)


def test_constant_gain_started_elsewhere_is_warned_of(pipe: Any, prior: Any, silence: Any) -> None:
    begin(pipe, prior, 20, trained_start=CONSTANT)
    warnings.simplefilter("always")
    with pytest.warns(UserWarning, match="OB006: .*timestep 951 and starts at 981: what sets .* exaggerated .* Take"):
        begin(pipe, prior, 50, trained_start=CONSTANT)
    with pytest.warns(UserWarning, match="OB006: .* at 901: what .* damped .* Take num_inference_steps 2"):
        begin(pipe, prior, 10, trained_start=CONSTANT)


@pytest.mark.parametrize(
    ("trained", "start_name", "message"),
    [
        (WINDOW, "noise", "trained to start from mean; this start is noise"),
        (WINDOW, "text", "trained to start from mean; this start is text"),
        (CONSTANT, "pca", r"trained to start from mean; this start is pca \(k=3\)"),
        (WINDOW | {"start": "pca", "k": 2}, "mean", r"trained to start from pca \(k=2\); this start is mean"),
    ],
)
def test_another_start_than_the_trained_one_is_warned_of(
    pipe: Any, prior: Any, trained: Any, start_name: Any, message: Any
) -> None:
    with pytest.warns(UserWarning, match=message) as caught:
        begin(pipe, prior, trained_start=trained, start=start_name)
    assert {one.filename for one in caught} == {__file__}, "at the caller's line"


def test_pca_takes_the_k_it_was_trained_with(pipe: Any, prior: Any, silence: Any) -> None:
    begin(pipe, prior, trained_start=WINDOW | {"start": "pca", "k": 2}, start="pca")
    warnings.simplefilter("always")
    with pytest.warns(UserWarning, match=r"from pca \(k=2\); this start is pca \(k=1\)"):
        begin(pipe, prior, trained_start=WINDOW | {"start": "pca", "k": 2}, start="pca", k=1)


def test_noise_may_start_anywhere(pipe: Any, prior: Any) -> None:
    """Outside the window there is no x_start to be matched: the weights were trained plainly there."""
    with pytest.warns(UserWarning, match="this start is noise"):
        begin(pipe, prior, 10, trained_start=WINDOW, start="noise")


def test_another_prior_is_warned_of(pipe: Any, prior: Any, silence: Any) -> None:
    begin(pipe, prior, trained_start=WINDOW | {"prior": prior.fingerprint})
    other = tiny_prior(pipe, ("garment",))
    warnings.simplefilter("always")
    with pytest.warns(UserWarning, match="trained with another prior"):
        begin(pipe, other, trained_start=WINDOW | {"prior": prior.fingerprint})


def test_weights_carry_their_window(pipe: Any, prior: Any, tmp_path: Path, silence: Any) -> None:
    """Saved, loaded, and refused: in a foreign program too nothing has to be said of the training."""
    pipeline.save(pipe, tmp_path / "model", prior, WINDOW)
    model = pipeline.load(tmp_path / "model")
    start(model, prior, ["garment"], seeds=[1])
    with raises("start", "OB003", "timestep 950", "timestep 901"):
        start(model, prior, ["garment"], seeds=[1], num_inference_steps=10)
    start(model, prior, ["garment"], seeds=[1], num_inference_steps=10, trained_start=None)


REQUESTS = [Request("garment", 3), Request("garment", 4)]


@pytest.mark.parametrize(
    ("name", "options", "values"),
    [
        ("PNDMScheduler", {}, ["got PNDMScheduler:"]),
        ("HeunDiscreteScheduler", {}, ["got HeunDiscreteScheduler:"]),
        ("LMSDiscreteScheduler", {}, ["got LMSDiscreteScheduler:"]),
        ("DDPMScheduler", {}, ["got DDPMScheduler:"]),
        ("EulerAncestralDiscreteScheduler", {}, ["got EulerAncestralDiscreteScheduler:"]),
        (
            "DPMSolverMultistepScheduler",
            {"algorithm_type": "sde-dpmsolver++"},
            ["algorithm_type='sde-dpmsolver++'", "'dpmsolver++'"],
        ),
        ("DDIMScheduler", {"clip_sample": True}, ["got DDIMScheduler", "clip_sample=False"]),
        ("DDIMScheduler", {"thresholding": True}, ["got DDIMScheduler", "thresholding=False"]),
        ("UniPCMultistepScheduler", {"solver_p": DDIMScheduler()}, ["got UniPCMultistepScheduler", "solver_p=None"]),
    ],
)
def test_schedulers_that_the_hand_off_cannot_follow(
    pipe: Any, prior: Any, name: Any, options: Any, values: Any
) -> None:
    pipe = copy.copy(pipe)
    scheduler = with_options(pipe.scheduler, name, None if name == "PNDMScheduler" else "trailing")
    pipe.scheduler = type(scheduler).from_config(scheduler.config, **options)
    latents = start(pipe, prior, ["garment"] * 2, seeds=[3, 4], trained_start=WINDOW)
    for call in (
        lambda: HandOff(pipe, latents, seeds=[3, 4], trained_start=WINDOW),
        lambda: sample(pipe, prior, REQUESTS, SamplingSettings(handoff=True), WINDOW),
    ):
        with raises("handoff", "x0_hat", *values):
            call()


@pytest.mark.parametrize(
    ("trained", "value"),
    [
        (None, "plainly"),
        ({"gain": "constant", "start": "mean", "start_timestep": 951}, "constant gain"),
    ],
)
def test_weights_that_the_hand_off_is_not_for(pipe: Any, prior: Any, trained: Any, value: Any) -> None:
    latents = start(pipe, prior, ["garment"] * 2, seeds=[3, 4])
    with raises("handoff", "window gain", value):
        HandOff(pipe, latents, seeds=[3, 4], trained_start=trained)
    with raises("handoff", "window gain", value):
        sample(pipe, prior, REQUESTS, SamplingSettings(handoff=True), trained)


def test_other_mistakes_with_the_hand_off(pipe: Any, prior: Any) -> None:
    latents = start(pipe, prior, ["garment"] * 2, seeds=[3, 4])
    with raises("handoff", "timestep 950", "10 steps", "DDIMScheduler", 901, "num_inference_steps"):
        HandOff(pipe, latents, seeds=[3, 4], num_inference_steps=10, trained_start=WINDOW)
    with (
        pytest.warns(UserWarning, match="this start is noise"),
        raises("handoff", "timestep 950", "10 steps", "DDIMScheduler", 901),
    ):
        sample(pipe, prior, REQUESTS, SamplingSettings(num_inference_steps=10, start="noise", handoff=True), WINDOW)
    with raises("handoff", "got 1 for 2 latents"):
        HandOff(pipe, latents, seeds=3, trained_start=WINDOW)
    with raises("handoff", "seed 5"):
        HandOff(pipe, latents, seeds=[3, 5], trained_start=WINDOW)
    with raises("option", "eta 0.5"):
        SamplingSettings(handoff=True, eta=0.5)


def of_text(pipe: Any, text_encoder: str | None) -> Prior:
    """A prior with a regression from text, and this of its text encoder."""
    one = tiny_prior(pipe, ("garment",))
    return Prior(one.gaussians, replace(one.provenance, text_encoder=text_encoder), one.text)


def test_a_start_from_text_under_another_text_encoder_is_refused(pipe: Any, silence: Any) -> None:
    """What reads no text goes on, and so does a prior of before, which does not say."""
    prior = of_text(pipe, text_fingerprint(pipe))
    begin(pipe, prior, start="text", look_ahead=0)
    other = copy.copy(pipe)
    other.text_encoder = copy.deepcopy(pipe.text_encoder)
    with torch.no_grad():
        next(other.text_encoder.parameters())[0, 0] += 0.5
    with raises("prior", "text_encoder", text_fingerprint(pipe), text_fingerprint(other), "start mean"):
        begin(other, prior, start="text", look_ahead=0)
    with raises("prior", "text_encoder"):
        begin(other, prior, look_ahead=0)
    for without_text in ("mean", "pca", "noise"):
        begin(other, prior, start=without_text, look_ahead=0)
    begin(other, of_text(pipe, None), start="text", look_ahead=0)


def test_a_text_encoder_is_known_again(pipe: Any) -> None:
    """In half precision, with a LoRA beside it, and by the names of older versions of transformers."""
    one, name = tiny_pipeline(), text_fingerprint(pipe)
    assert text_fingerprint(one) == name != text_fingerprint(tiny_pipeline(seed=1))
    one.to(torch.float16)
    assert text_fingerprint(one) == name
    one.to(torch.bfloat16)
    assert text_fingerprint(one) is None
    lora = tiny_pipeline()
    layers = [name for name, _ in lora.text_encoder.named_modules() if name.endswith("q_proj")]
    put(lora.text_encoder, {name: Pair(torch.ones(2, 16), torch.ones(16, 2), 1.0) for name in layers})
    assert len(layers) == 2 and text_fingerprint(lora) == name
    older = copy.copy(pipe)
    older.text_encoder = torch.nn.Module()
    older.text_encoder.text_model, older.text_encoder.dtype = pipe.text_encoder, torch.float32
    assert text_fingerprint(older) == name
