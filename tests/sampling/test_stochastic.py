"""Fresh noise under the constant gain: every state is one that training showed, through diffusers' own steps."""

from __future__ import annotations

import copy
import math
import sys
import warnings
from typing import Any

import pytest
import torch

import onbrand
from core.test_oracle import BACKGROUND, EPS, ONE, SD, denoise, scores
from onbrand.core import add_noise, constant, estimate, matched_noise, target, x_init
from onbrand.models.scheduler import latents_for, schedule_of, set_steps, with_options
from onbrand.options.generate import SamplingSettings
from onbrand.sampling.requests import Request
from onbrand.sampling.sampler import sample
from onbrand.sampling.start import generator_for, start
from onbrand.sampling.stochastic import match, matched_steps
from worlds import raises

CONSTANT = {"gain": "constant", "start": "mean", "k": 0, "start_timestep": 951}
NAMES = ("DDIMScheduler", "EulerAncestralDiscreteScheduler")
SEEDS = [3, 4]


def scheduler_of(pipe: Any, name: Any, **options: Any) -> Any:
    scheduler = with_options(pipe.scheduler, name)
    return type(scheduler).from_config(scheduler.config, **options)


def trained_for(scheduler: Any) -> Any:
    """Weights of a constant gain that were trained to start where 20 steps of the scheduler do."""
    return CONSTANT | {"start_timestep": schedule_of(set_steps(scheduler, 20)).first}


def drawing(monkeypatch: pytest.MonkeyPatch, live: Any, draws: Any) -> None:
    """The scheduler's own fresh noise becomes `draws`, one after the other."""
    source = iter(draws)
    monkeypatch.setattr(sys.modules[type(live).__module__], "randn_tensor", lambda *a, **k: next(source))


def eta_of(live: Any, eta: Any) -> Any:
    return {"eta": eta} if type(live).__name__ == "DDIMScheduler" else {}


def abars_of(live: Any) -> Any:
    """abar at every step's end but the last's, where nothing is left."""
    if type(live).__name__ == "EulerAncestralDiscreteScheduler":
        return [1 / (1 + float(sigma) ** 2) for sigma in live.sigmas[1:-1]]
    return [float(live.alphas_cumprod[int(t)]) for t in live.timesteps[1:]]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("name", "eta"), [(NAMES[0], 1.0), (NAMES[0], 0.4), (NAMES[1], 1.0)])
def test_every_state_is_one_that_training_shows(
    pipe: Any, monkeypatch: pytest.MonkeyPatch, name: Any, eta: Any, prediction_type: Any
) -> None:
    """Told the truth, the network is led through x_t = add_noise(x0, matched_noise(eps_t, x0, x_start, g), t), where
    eps_t is unit normal: what was there before and what was drawn, in the sampler's own shares."""
    live = set_steps(scheduler_of(pipe, name, prediction_type=prediction_type), 20)
    x0, x_start, eps, *fresh = torch.randn(23, 2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    latents = latents_for(live, x_start, eps)
    stepper = match(live, latents, eps)
    drawing(monkeypatch, live, fresh)
    abar = schedule_of(live).abar
    gain = math.sqrt(abar / (1 - abar))
    x = latents * stepper.init_noise_sigma
    for step, abar_next in enumerate(abars_of(live)):
        t = stepper.timesteps[step]
        network_input = stepper.scale_model_input(x, t)
        expected = add_noise(x0, matched_noise(eps, x0, x_start, gain), abar)
        torch.testing.assert_close(network_input, expected, rtol=1e-4, atol=2e-4)
        output = target(prediction_type, x0, matched_noise(eps, x0, x_start, gain), abar)
        x = stepper.step(output, t, x, **eta_of(live, eta)).prev_sample
        share = eta**2 * (1 - abar_next) / (1 - abar) * (1 - abar / abar_next) / (1 - abar_next)  # share, squared
        eps = math.sqrt(1 - share) * eps + math.sqrt(share) * fresh[step]
        abar = abar_next


@pytest.mark.parametrize("eta", [1.0, 0.5])
def test_an_ideal_network_keeps_mean_diversity_and_text(monkeypatch: pytest.MonkeyPatch, eta: Any) -> None:
    """The deterministic row of the table is (1.000, .813, .997); unmatched, fresh noise spoils it.

    docs/concepts/method.md, section 10.
    """
    from diffusers import DDIMScheduler

    mu = BACKGROUND[0]
    shares = []
    for matching in (True, False):
        live = DDIMScheduler(**SD, set_alpha_to_one=False)
        live.set_timesteps(20)
        first = int(live.timesteps[0])
        gains = constant(live, first)
        wide = 4 + 20  # coefficients of 1, m - mu, eps, xi, and of each step's draw

        def widened(x: Any, wide: Any = wide) -> Any:
            return torch.cat([x, x.new_zeros(wide - len(x))]).view(1, 1, 1, -1).float()

        def ideal(x: Any, abar: Any, gain: Any) -> Any:
            """denoise is affine in x: its constant part, and the same of the draws."""
            out = denoise(x[:4].double(), torch.tensor(abar).double(), gain, BACKGROUND)
            none = denoise(torch.zeros(4).double(), torch.tensor(abar).double(), gain, BACKGROUND)
            one = denoise(EPS, torch.tensor(abar).double(), gain, BACKGROUND) - none
            return torch.cat([out.float(), x[4:] * float(one[2])])

        noise = widened(EPS)
        x = widened(x_init(mu * ONE, EPS, float(live.alphas_cumprod[first])))
        stepper = match(live, x, noise) if matching else copy.deepcopy(live)
        drawing(monkeypatch, live, torch.eye(wide)[4:].view(20, 1, 1, 1, wide))
        for t in live.timesteps:
            abar = float(live.alphas_cumprod[int(t)])
            x0_hat = ideal(x.flatten(), abar, float(gains[int(t)])).view_as(x)
            x = stepper.step(estimate("sample", x0_hat, x, abar)[1], t, x, eta=eta).prev_sample
        flat = x.flatten().double()
        mean, variance, text = scores(flat[:4], BACKGROUND)
        shares.append((mean, variance + float(flat[4:].square().sum()) / sum(BACKGROUND[1:]), text))
    (mean, variance, text), reference = shares
    assert mean == pytest.approx(1, abs=0.01) and text == pytest.approx(1, abs=0.02) and 0.7 < variance < 1.05
    assert reference[1] > 1.2 and reference[2] > 1.2, "what sets an image apart is exaggerated"


@pytest.mark.parametrize("options", [{"eta": 1.0}, {"scheduler": NAMES[1]}], ids=str)
def test_a_foreign_pipeline_inside_matched_steps_makes_what_generate_makes(pipe: Any, prior: Any, options: Any) -> None:
    theirs = copy.copy(pipe)
    theirs.scheduler = scheduler_of(pipe, options.get("scheduler"))
    trained = trained_for(theirs.scheduler)
    requests = [Request("garment", seed) for seed in SEEDS]
    config = SamplingSettings(start="mean", num_inference_steps=20, guidance_scale=1, **options)
    x0 = torch.stack([p.latents for p in sample(pipe, prior, requests, config, trained)])
    call = {"num_inference_steps": 20, "guidance_scale": 1, "eta": options.get("eta", 0.0), "output_type": "latent"}

    def run(latents: Any) -> Any:
        return theirs(["garment"] * 2, latents=latents, generator=[generator_for(seed, "steps") for seed in SEEDS],
                      **call).images  # fmt: skip

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # OB007
        latents = start(theirs, prior, ["garment"] * 2, seeds=SEEDS, start="mean", trained_start=trained)
    own = theirs.scheduler
    with matched_steps(theirs, latents, seeds=SEEDS, trained_start=trained):
        inside = run(latents)
    assert theirs.scheduler is own
    assert torch.equal(inside.float(), x0)
    outside = run(latents)
    assert (outside.float() - x0).abs().mean() > 1e-3, "it matters"
    with matched_steps(theirs, latents, seeds=SEEDS, trained_start=None):
        assert torch.equal(run(latents), outside), "plain weights' steps stay as they are"


def test_steps_that_draw_nothing_stay_as_they_are(pipe: Any, prior: Any) -> None:
    latents = start(pipe, prior, ["garment"] * 2, seeds=SEEDS, start="mean", trained_start=CONSTANT)
    call = {"latents": latents, "num_inference_steps": 20, "guidance_scale": 1, "output_type": "latent"}
    plain = pipe(["garment"] * 2, **call).images
    with onbrand.matched_steps(pipe, latents, seeds=SEEDS, trained_start=CONSTANT):
        assert torch.equal(pipe(["garment"] * 2, **call).images, plain)
    with raises("start", "got 1 for 2 latents"):
        with matched_steps(pipe, latents, seeds=3):
            pass


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (NAMES[1], {}, "Run the pipeline inside onbrand.matched_steps"),
        ("DDPMScheduler", {}, r"Take DDIMScheduler \(with eta 1\) or EulerAncestralDiscreteScheduler"),
        ("LCMScheduler", {}, "OB007: LCMScheduler draws noise"),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, "thins x_start's share"),
    ],
)
def test_a_sampler_that_draws_noise_is_warned_of(pipe: Any, prior: Any, name: Any, options: Any, message: Any) -> None:
    theirs = copy.copy(pipe)
    theirs.scheduler = scheduler_of(pipe, name, timestep_spacing="leading", **options)
    with pytest.warns(UserWarning, match=message):
        start(theirs, prior, ["garment"], seeds=[1], start="mean", trained_start=trained_for(theirs.scheduler))
    requests, config = [Request("garment", 1)], SamplingSettings(start="mean", num_inference_steps=20)
    with warnings.catch_warnings(record=True) as messages:
        warnings.simplefilter("always")
        sample(theirs, prior, requests, config, trained_for(theirs.scheduler))
    assert (name in NAMES) != any("OB007" in str(one.message) for one in messages), "generate matches those that it can"
    with warnings.catch_warnings(record=True) as messages:
        warnings.simplefilter("always")
        start(theirs, prior, ["garment"], seeds=[1], start="mean", trained_start=None)
    assert not [one for one in messages if "OB007" in str(one.message)], "plain weights may draw"
