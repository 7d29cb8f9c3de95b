"""Offset-trained weights refuse a start outside their window and warn of one not theirs; what the hand-off refuses."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from onbrand.models import pipeline
from onbrand.models.scheduler import with_options
from onbrand.options.generate import SamplingSettings
from onbrand.sampling.handoff import HandOff
from onbrand.sampling.requests import Request
from onbrand.sampling.sampler import sample
from onbrand.sampling.start import start
from worlds import tiny_prior

WINDOW = {"gain": "window", "start": "mean", "k": 0, "start_timestep": 950}
CONSTANT = {"gain": "constant", "start": "mean", "k": 0, "start_timestep": 951}


def begin(
    pipe: Any, prior: Any, steps: Any = 20, made: Any = DDIMScheduler, spacing: Any = "leading", **options: Any
) -> Any:
    other = copy.copy(pipe)
    other.scheduler = with_options(pipe.scheduler, made.__name__, spacing)
    return start(other, prior, ["garment"], seeds=[1], num_inference_steps=steps, **options)


@pytest.fixture
def quiet() -> Iterator[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


@pytest.mark.parametrize(
    ("steps", "made", "begins"),
    [(10, DDIMScheduler, 901), (20, DPMSolverMultistepScheduler, 941)],
)  # fmt: skip
def test_outside_the_window_is_an_error_whose_remedies_work(
    pipe: Any, prior: Any, steps: Any, made: Any, begins: Any, quiet: Any
) -> None:
    with pytest.raises(
        ValueError, match=f"OB003: .*start at timestep 950 or later; .*timestep {begins}, .*Take"
    ) as error:
        begin(pipe, prior, steps, made, trained_start=WINDOW)
    number = int(re.search(r"num_inference_steps (\d+)", str(error.value))[1])
    spacing = re.search(r"timestep_spacing (\w+)", str(error.value))[1]
    begin(pipe, prior, number, made, trained_start=WINDOW)
    begin(pipe, prior, steps, made, spacing, trained_start=WINDOW)


def test_inside_the_window_nothing_is_said(pipe: Any, prior: Any, quiet: Any) -> None:
    for steps in (20, 50):
        begin(pipe, prior, steps, trained_start=WINDOW)
    begin(pipe, prior, 50, DPMSolverMultistepScheduler, trained_start=WINDOW)
    begin(pipe, prior, 4, spacing="trailing", trained_start=WINDOW)
    begin(pipe, prior, 10, trained_start=None)


def test_constant_gain_started_elsewhere_is_warned_of(pipe: Any, prior: Any, quiet: Any) -> None:
    begin(pipe, prior, 20, trained_start=CONSTANT)
    warnings.simplefilter("always")
    with pytest.warns(UserWarning, match="OB006: .*timestep 951 and starts at 981: what sets .* exaggerated .* Take"):
        begin(pipe, prior, 50, trained_start=CONSTANT)
    with pytest.warns(UserWarning, match="OB006: .* at 901: what .* damped .* Take num_inference_steps 2"):
        begin(pipe, prior, 10, trained_start=CONSTANT)


@pytest.mark.parametrize(
    ("trained", "kind", "said"),
    [
        (WINDOW, "noise", "trained to start from mean; this start is noise"),
        (WINDOW, "text", "trained to start from mean; this start is text"),
        (CONSTANT, "pca", r"trained to start from mean; this start is pca \(k=3\)"),
        (WINDOW | {"start": "pca", "k": 2}, "mean", r"trained to start from pca \(k=2\); this start is mean"),
    ],
)
def test_another_start_than_the_trained_one_is_warned_of(
    pipe: Any, prior: Any, trained: Any, kind: Any, said: Any
) -> None:
    with pytest.warns(UserWarning, match=said) as told:
        begin(pipe, prior, trained_start=trained, start=kind)
    assert {one.filename for one in told} == {__file__}, "at the caller's line"


def test_pca_takes_the_k_it_was_trained_with(pipe: Any, prior: Any, quiet: Any) -> None:
    begin(pipe, prior, trained_start=WINDOW | {"start": "pca", "k": 2}, start="pca")
    warnings.simplefilter("always")
    with pytest.warns(UserWarning, match=r"from pca \(k=2\); this start is pca \(k=1\)"):
        begin(pipe, prior, trained_start=WINDOW | {"start": "pca", "k": 2}, start="pca", k=1)


def test_noise_may_start_anywhere(pipe: Any, prior: Any) -> None:
    """Outside the window there is no x_start to be matched: the weights were trained plainly there."""
    with pytest.warns(UserWarning, match="this start is noise"):
        begin(pipe, prior, 10, trained_start=WINDOW, start="noise")


def test_another_prior_is_warned_of(pipe: Any, prior: Any, quiet: Any) -> None:
    begin(pipe, prior, trained_start=WINDOW | {"prior": prior.fingerprint})
    other = tiny_prior(pipe, ("garment",))
    warnings.simplefilter("always")
    with pytest.warns(UserWarning, match="trained with another prior"):
        begin(pipe, other, trained_start=WINDOW | {"prior": prior.fingerprint})


def test_weights_carry_their_window(pipe: Any, prior: Any, tmp_path: Path, quiet: Any) -> None:
    """Saved, loaded, and refused: in a foreign program too nothing has to be said of the training."""
    pipeline.save(pipe, tmp_path / "model", prior, WINDOW)
    loaded = pipeline.load(tmp_path / "model")
    start(loaded, prior, ["garment"], seeds=[1])
    with pytest.raises(ValueError, match="OB003"):
        start(loaded, prior, ["garment"], seeds=[1], num_inference_steps=10)
    start(loaded, prior, ["garment"], seeds=[1], num_inference_steps=10, trained_start=None)


REQUESTS = [Request("garment", 3), Request("garment", 4)]


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("PNDMScheduler", {}, "got PNDMScheduler: take one of these"),
        ("HeunDiscreteScheduler", {}, "got HeunDiscreteScheduler: take one"),
        ("LMSDiscreteScheduler", {}, "got LMSDiscreteScheduler: take one"),
        ("DDPMScheduler", {}, "got DDPMScheduler: take one"),
        ("EulerAncestralDiscreteScheduler", {}, "got EulerAncestralDiscreteScheduler: take one"),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, "draws noise: set 'dpmsolver\\+\\+'"),
        ("DDIMScheduler", {"clip_sample": True}, "clips x0_hat but not the noise: set clip_sample=False"),
        ("DDIMScheduler", {"thresholding": True}, "clips x0_hat but not the noise"),
        ("UniPCMultistepScheduler", {"solver_p": DDIMScheduler()}, "set solver_p=None"),
    ],
)
def test_schedulers_that_the_hand_off_cannot_follow(pipe: Any, prior: Any, name: Any, options: Any, said: Any) -> None:
    pipe = copy.copy(pipe)
    made = with_options(pipe.scheduler, name, None if name == "PNDMScheduler" else "trailing")
    pipe.scheduler = type(made).from_config(made.config, **options)
    latents = start(pipe, prior, ["garment"] * 2, seeds=[3, 4], trained_start=WINDOW)
    for refused in (
        lambda: HandOff(pipe, latents, seeds=[3, 4], trained_start=WINDOW),
        lambda: sample(pipe, prior, REQUESTS, SamplingSettings(handoff=True), WINDOW),
    ):
        with pytest.raises(ValueError, match=f"finds x0_hat from a deterministic first-order step, as DDIM.*{said}"):
            refused()


@pytest.mark.parametrize(
    ("trained", "said"),
    [
        (None, "these were trained plainly"),
        ({"gain": "constant", "start": "mean", "start_timestep": 951}, "a constant gain, which"),
    ],
)
def test_weights_that_the_hand_off_is_not_for(pipe: Any, prior: Any, trained: Any, said: Any) -> None:
    latents = start(pipe, prior, ["garment"] * 2, seeds=[3, 4])
    with pytest.raises(ValueError, match=f"trained with a start and the window gain; .*{said}.*leave the hand-off out"):
        HandOff(pipe, latents, seeds=[3, 4], trained_start=trained)
    with pytest.raises(ValueError, match=said):
        sample(pipe, prior, REQUESTS, SamplingSettings(handoff=True), trained)


def test_other_mistakes_with_the_hand_off(pipe: Any, prior: Any) -> None:
    latents = start(pipe, prior, ["garment"] * 2, seeds=[3, 4])
    with pytest.raises(
        ValueError, match="950 or later .*; 10 steps of DDIMScheduler start at 901. Take num_inference_st"
    ):
        HandOff(pipe, latents, seeds=[3, 4], num_inference_steps=10, trained_start=WINDOW)
    with pytest.warns(UserWarning, match="this start is noise"), pytest.raises(ValueError, match="950 or later"):
        sample(pipe, prior, REQUESTS, SamplingSettings(num_inference_steps=10, start="noise", handoff=True), WINDOW)
    with pytest.raises(ValueError, match="a seed for each of 2 latents; got 1"):
        HandOff(pipe, latents, seeds=3, trained_start=WINDOW)
    with pytest.raises(ValueError, match="those of seed 5 hold another: give the seeds"):
        HandOff(pipe, latents, seeds=[3, 5], trained_start=WINDOW)
    with pytest.raises(ValueError, match="without new noise; got eta 0.5: set it to 0"):
        SamplingSettings(handoff=True, eta=0.5)
