"""Every scheduler is entered as by diffusers' img2img at strength 1.0; first timesteps of docs/concepts/method.md."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EDMEulerScheduler, EulerDiscreteScheduler
from diffusers.utils import is_torchsde_available

from onbrand.models.scheduler import (
    latents_for,
    open_scheduler,
    read_scheduler,
    scales,
    set_steps,
    suggest,
    with_options,
    with_terminal,
)
from worlds import img2img_of, raises

SD = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
BASE = DDIMScheduler(**SD, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
SPACINGS = ("leading", "trailing", "linspace")


def configurations() -> Iterator[Any]:
    """Every compatible class x spacing x Karras that exists."""
    for scheduler_class in sorted(BASE.compatibles, key=lambda scheduler_class: scheduler_class.__name__):
        if scheduler_class is EDMEulerScheduler or (
            scheduler_class.__name__ == "DPMSolverSDEScheduler" and not is_torchsde_available()
        ):
            continue
        parameters = inspect.signature(scheduler_class.__init__).parameters
        for spacing in SPACINGS if "timestep_spacing" in parameters else (None,):
            for karras in (False, True) if "use_karras_sigmas" in parameters else (None,):
                yield pytest.param(
                    scheduler_class.__name__, spacing, karras, id=f"{scheduler_class.__name__}-{spacing}-{karras}"
                )


CONFIGURATIONS = list(configurations())


@functools.cache  # the KDPM2 classes take a third of a second each to make
def scheduler_of(name: Any, spacing: Any = None, karras: Any = None) -> Any:
    return with_options(BASE, name, spacing, karras)


def test_all_compatible_classes_are_covered() -> None:
    assert len({parameter.values[0] for parameter in CONFIGURATIONS}) >= 13 and len(CONFIGURATIONS) >= 55


@pytest.mark.parametrize(("name", "spacing", "karras"), CONFIGURATIONS)
def test_start_is_img2img_at_strength_one(pipe: Any, name: Any, spacing: Any, karras: Any) -> None:
    steps = 20
    scheduler = copy.deepcopy(scheduler_of(name, spacing, karras))
    mean = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(9))
    noise = torch.cat([torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (3, 4)])

    pipe = copy.copy(pipe)
    pipe.scheduler = scheduler
    theirs = img2img_of(pipe)
    scheduler.set_timesteps(steps)
    timesteps, _ = theirs.get_timesteps(steps, 1.0, "cpu")
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    expected = theirs.prepare_latents(mean, timesteps[:1].repeat(2), 2, 1, torch.float32, "cpu", generators)

    schedule = read_scheduler(scheduler, steps)
    latents = latents_for(set_steps(scheduler, steps), mean, noise)
    ours = latents * schedule.init_noise_sigma  # what StableDiffusionPipeline.prepare_latents does to latents=
    torch.testing.assert_close(ours, expected, rtol=2e-6, atol=2e-6 * float(expected.abs().max()))
    assert schedule.first == float(timesteps[0]) and schedule.init_noise_sigma == float(scheduler.init_noise_sigma)

    # what the network sees is Eq. 8 at the abar that was read, whatever scale the scheduler works in
    network_input = scheduler.scale_model_input(expected, timesteps[0])
    eq8 = math.sqrt(schedule.abar) * mean + math.sqrt(1 - schedule.abar) * noise
    torch.testing.assert_close(network_input, eq8, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "spacing", "karras"), CONFIGURATIONS)
def test_start_of_unit_variance_has_unit_norm(name: Any, spacing: Any, karras: Any) -> None:
    live = set_steps(scheduler_of(name, spacing, karras), 20)
    generator = torch.Generator().manual_seed(0)
    x_start, noise = torch.randn(2, 64, 4, 32, 32, generator=generator)
    x_init = latents_for(live, x_start, noise) * float(live.init_noise_sigma)
    assert float((x_init / scales(live)[0]).square().mean().sqrt()) == pytest.approx(1, abs=0.005)


@pytest.mark.parametrize(("name", "spacing", "karras"), CONFIGURATIONS)
def test_abar_is_the_training_schedules_at_the_first_timestep(name: Any, spacing: Any, karras: Any) -> None:
    schedule = read_scheduler(scheduler_of(name, spacing, karras), 20)
    assert schedule.abar == pytest.approx(float(schedule.abars[round(schedule.first)]), rel=2e-4)


FAMILIES = {
    "leading": [
        (("DDIM", "PNDM", "DDPM", "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "LMSDiscrete"), 951, 981),
        (("KDPM2Discrete", "KDPM2AncestralDiscrete"), 951, 981),
        (("DPMSolverMultistep", "UniPCMultistep", "DEISMultistep"), 941, 951),
        (("LCM", "TCD"), 999, 999),
    ]
}


@pytest.mark.parametrize(("names", "at20", "at50"), FAMILIES["leading"])
def test_first_timesteps_of_leading_spacing(names: Any, at20: Any, at50: Any) -> None:
    for name in names:
        scheduler = scheduler_of(name + "Scheduler", "leading")
        assert (read_scheduler(scheduler, 20).first, read_scheduler(scheduler, 50).first) == (at20, at50), name


def test_first_timesteps_elsewhere() -> None:
    assert read_scheduler(BASE, 10).first == 901
    assert read_scheduler(with_options(BASE, "DPMSolverSinglestepScheduler"), 20).first == 999
    for names, _, _ in FAMILIES["leading"]:
        for name in names:
            for spacing in ("trailing", "linspace"):
                assert read_scheduler(scheduler_of(name + "Scheduler", spacing), 20).first == 999, (name, spacing)
    for name in ("DPMSolverMultistep", "UniPCMultistep", "DEISMultistep"):
        assert read_scheduler(scheduler_of(name + "Scheduler", "leading", True), 20).first == 999, name
    for name in ("EulerDiscrete", "HeunDiscrete", "KDPM2Discrete", "LMSDiscrete"):
        first = read_scheduler(scheduler_of(name + "Scheduler", "leading", True), 20).first
        assert first == pytest.approx(951, abs=0.01), name


def test_abars_of_the_table() -> None:
    abars = read_scheduler(BASE).abars
    table = {999: 0.004660, 981: 0.005776, 951: 0.008155, 950: 0.008247, 941: 0.009117, 901: 0.014005}
    assert {t: pytest.approx(float(abars[t]), abs=1.5e-6) for t in table} == table
    assert read_scheduler(BASE).first == 999 and len(read_scheduler(BASE).timesteps) == 1000


@pytest.mark.parametrize(("name", "spacing", "karras"), CONFIGURATIONS)
def test_reading_leaves_the_scheduler_alone(name: Any, spacing: Any, karras: Any) -> None:
    """Even one that is in the middle of its steps."""
    scheduler = copy.deepcopy(scheduler_of(name, spacing, karras))
    scheduler.set_timesteps(7)
    state = torch.ones(1, 1, 8, 8)
    for timestep in scheduler.timesteps[:3]:
        network_input = scheduler.scale_model_input(state, timestep)
        state = scheduler.step(network_input, timestep, state, return_dict=False)[0]
    before = copy.deepcopy(vars(scheduler))
    live = set_steps(scheduler, 20)
    fresh = copy.deepcopy(vars(live))
    scales(live)
    latents_for(live, state, state)
    read_scheduler(scheduler, 20)
    assert [name for name, value in vars(scheduler).items() if not same(value, before[name])] == []
    assert [name for name, value in vars(live).items() if not same(value, fresh[name])] == []


def same(one: Any, other: Any) -> Any:
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, torch.Tensor | np.ndarray):
        return np.array_equal(one, other, equal_nan=True)
    return one == other


@pytest.mark.parametrize(
    ("scheduler", "values"),
    [
        (diffusers.FlowMatchEulerDiscreteScheduler(), ("flow matching",)),
        (diffusers.FlowMatchHeunDiscreteScheduler(), ("flow matching",)),
        (
            diffusers.DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
            ("flow matching",),
        ),
        (diffusers.UniPCMultistepScheduler(use_flow_sigmas=True), ("flow matching",)),
        (EDMEulerScheduler(), ("variance-preserving", "sigma scale")),
        (diffusers.EDMDPMSolverMultistepScheduler(), ("variance-preserving", "sigma scale")),
        (
            EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction"),
            ("variance-preserving", "sigma scale", "timestep_type continuous", "take scheduler DDIMScheduler"),
        ),
        (diffusers.ScoreSdeVeScheduler(), ("variance-preserving", "alphas_cumprod")),
        (diffusers.CMStochasticIterativeScheduler(), ("variance-preserving", "alphas_cumprod")),
        (diffusers.IPNDMScheduler(), ("variance-preserving", "alphas_cumprod")),
        (diffusers.DPMSolverMultistepInverseScheduler(), ("to the noise",)),
        (DDIMScheduler(prediction_type="score"), ("prediction_type", "epsilon, v_prediction, sample", "'score'")),
    ],
    ids=lambda value: "" if isinstance(value, tuple) else type(value).__name__,
)
def test_schedulers_a_start_cannot_enter_are_refused(scheduler: Any, values: Any) -> None:
    with raises("scheduler", type(scheduler).__name__, *values):
        read_scheduler(scheduler, 20)


def test_the_remedy_of_continuous_timesteps_is_one() -> None:
    """DDIM's config keeps the timestep_type that its class does not read."""
    euler = EulerDiscreteScheduler(**SD, timestep_type="continuous")
    for remedy in (with_options(euler, "DDIMScheduler"), EulerDiscreteScheduler(**SD, timestep_type="discrete")):
        assert read_scheduler(remedy, 20).abar > 0


def test_what_the_network_sees_must_be_variance_preserving() -> None:
    class Doubled(EulerDiscreteScheduler):
        def scale_model_input(self, sample: Any, timestep: Any) -> Any:
            return 2 * super().scale_model_input(sample, timestep)

    with raises("scheduler", "Doubled", "variance-preserving", 2.0):
        read_scheduler(Doubled(**SD), 20)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_prediction_type_is_the_schedulers(prediction_type: Any) -> None:
    scheduler = with_options(DDIMScheduler(**SD, prediction_type=prediction_type), "EulerDiscreteScheduler")
    assert read_scheduler(scheduler, 20).prediction_type == prediction_type


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_literal_alpha(name: Any) -> None:
    """`abar` given: Eq. 8 with that alpha in the network's eyes, at the scheduler's own first timestep."""
    scheduler = with_options(BASE, name, "leading")
    live = set_steps(scheduler, 20)
    x_start, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    abar = float(scheduler.alphas_cumprod[-1])
    latents = latents_for(live, x_start, noise, abar=abar) * float(live.init_noise_sigma)
    network_input = live.scale_model_input(latents, live.timesteps[0])
    torch.testing.assert_close(
        network_input, math.sqrt(abar) * x_start + math.sqrt(1 - abar) * noise, rtol=1e-5, atol=1e-5
    )


def test_inside() -> None:
    assert read_scheduler(BASE, 20).inside((950, 999)) == [951]
    assert read_scheduler(BASE, 50).inside((950, 999)) == [981, 961]
    assert read_scheduler(BASE, 10).inside((950, 999)) == []
    assert read_scheduler(with_options(BASE, "PNDMScheduler", "leading"), 20).inside((890, 960)) == [951, 926, 901], (
        "each once"
    )
    schedule = dataclasses.replace(read_scheduler(BASE, 20), timesteps=[950.9997, 900.2, 850.0003])
    assert schedule.inside((951, 999)) == [950.9997], "951 up to the rounding of an interpolated timestep"
    assert schedule.inside((0, 850)) == [850.0003] and schedule.inside((851, 950)) == [900.2]


@pytest.mark.parametrize(
    ("name", "spacing", "steps", "first", "last"),
    [
        ("DDIMScheduler", "leading", 10, 950, None),
        ("DPMSolverMultistepScheduler", "leading", 20, 950, None),
        ("DDIMScheduler", "leading", 50, 951, 951),
        ("DDIMScheduler", "trailing", 20, 951, 951),
        ("UniPCMultistepScheduler", "trailing", 50, 951, 951),
    ],
)
def test_what_is_suggested_starts_inside(name: Any, spacing: Any, steps: Any, first: Any, last: Any) -> None:
    scheduler = with_options(BASE, name, spacing)
    before = scheduler.timesteps.clone()
    phrase = suggest(scheduler, first, last, steps)
    assert torch.equal(scheduler.timesteps, before)
    for part in phrase.split(", or "):
        option, value = part.split()
        if option == "num_inference_steps":
            start = read_scheduler(scheduler, int(value)).first
        else:
            assert option == "timestep_spacing"
            start = read_scheduler(with_options(scheduler, spacing=value), steps).first
        assert first <= start <= (999 if last is None else last)


def test_nothing_to_suggest() -> None:
    scheduler = with_options(BASE, "LCMScheduler")
    assert suggest(scheduler, 900, 951, 4).startswith("another scheduler")
    karras = with_options(BASE, "DPMSolverMultistepScheduler", "leading", karras=True)
    assert suggest(karras, 951, 951, steps=50) == "use_karras_sigmas False"


def test_options_are_checked() -> None:
    with raises("scheduler", "'Nonsense'", "DDIMScheduler"):
        with_options(BASE, "Nonsense")
    with raises("scheduler", "'UNet2DModel'"):
        with_options(BASE, "UNet2DModel")
    with raises("scheduler", "timestep_spacing", "leading", "trailing", "linspace", "'even'"):
        with_options(BASE, spacing="even")
    with raises("scheduler", "DDIMScheduler", "use_karras_sigmas", True):
        with_options(BASE, karras=True)
    with raises("scheduler", "num_inference_steps", "1..1000", "got 0"):
        read_scheduler(BASE, 0)
    with raises("scheduler", "LCMScheduler", "400 inference steps", "num_inference_steps"):
        read_scheduler(with_options(BASE, "LCMScheduler"), 400)


def test_a_scheduler_that_cannot_follow_the_models_schedule_is_refused() -> None:
    zero = DDIMScheduler(**SD, rescale_betas_zero_snr=True, timestep_spacing="trailing", prediction_type="v_prediction")
    assert read_scheduler(zero, 20).abar == 0 and read_scheduler(with_options(zero, spacing="leading"), 20).abar > 1e-4
    assert read_scheduler(with_options(zero, "EulerDiscreteScheduler"), 20).abar < 1e-6
    with raises("scheduler", "PNDMScheduler", "alphas_cumprod"):
        with_options(zero, "PNDMScheduler")
    with raises("scheduler", "UnCLIPScheduler", "alphas_cumprod"):
        with_options(DDIMScheduler(trained_betas=[0.01] * 500), "UnCLIPScheduler")
    with raises("scheduler", "DPMSolverSDEScheduler", "torchsde"):
        if is_torchsde_available():
            pytest.skip("torchsde is installed")
        with_options(BASE, "DPMSolverSDEScheduler")


def test_another_terminal_abar_is_diffusers_rescaling_with_another_end() -> None:
    """At an end of 0 it would be diffusers' rescale_zero_terminal_snr."""
    from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

    base = scheduler_of("DDIMScheduler")
    actual = with_terminal(base, 1e-10)
    betas = rescale_zero_terminal_snr(base.betas)
    theirs = torch.cumprod(1 - betas.double(), 0)
    assert torch.allclose(actual.alphas_cumprod.double(), theirs, atol=2e-5)
    assert with_terminal(base, 1 / 256).alphas_cumprod[-1].item() == pytest.approx(1 / 256, rel=1e-3)
    assert type(actual) is DDIMScheduler and actual.config.timestep_spacing == base.config.timestep_spacing
    with raises("scheduler", "(0, 1)", "got 0"):
        with_terminal(base, 0)


def test_a_saved_scheduler_is_read_from_a_models_folder(tmp_path: Path) -> None:
    base = EulerDiscreteScheduler(timestep_spacing="trailing")
    base.save_pretrained(tmp_path / "scheduler")
    actual = open_scheduler(tmp_path)
    assert type(actual) is EulerDiscreteScheduler and actual.config.timestep_spacing == "trailing"


@pytest.mark.parametrize("name", ["DDIMScheduler", "PNDMScheduler"])
def test_timesteps_beyond_the_schedule_are_refused(name: str) -> None:
    """Stable Diffusion's offset of 1 puts the first of 1,000 leading timesteps at 1,000, where no abar is."""
    scheduler = with_options(DDIMScheduler(**SD, steps_offset=1, timestep_spacing="leading"), name)
    with raises("scheduler", name, "1000 inference steps", "ends at 999", "num_inference_steps"):
        set_steps(scheduler, 1000)
    assert float(set_steps(with_options(scheduler, spacing="trailing"), 1000).timesteps[0]) == 999
