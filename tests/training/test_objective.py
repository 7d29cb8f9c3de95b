"""The loss against diffusers' own training step and against the paper's equations, written out sample by sample."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers.training_utils import compute_snr

from onbrand.core.offset import matched_noise, window
from onbrand.options.train import TrainSettings
from onbrand.training.objective import Batch, make_objective
from worlds import LENGTH, WIDTH, predict, raises, tiny_pipeline, tiny_prior

TIMES = [3, 500, 949, 950, 951, 999]


@pytest.fixture(scope="module", params=["epsilon", "v_prediction", "sample"])
def pipe(request: pytest.FixtureRequest) -> Any:
    return tiny_pipeline(prediction_type=request.param)


def a_batch(timesteps: Any = TIMES) -> Any:
    g = torch.Generator().manual_seed(0)
    x0, x_start, noise = (torch.randn(len(timesteps), 4, 8, 8, generator=g) for _ in range(3))
    hidden = torch.randn(len(timesteps), LENGTH, WIDTH, generator=g)
    pooled = torch.randn(len(timesteps), WIDTH, generator=g)
    return Batch(x0, x_start, noise, torch.tensor(timesteps), hidden, pooled)


def of(pipe: Any) -> Any:
    return lambda x_t, t, hidden, pooled: predict(pipe.unet, x_t, t, hidden, pooled)


def goal_of(scheduler: Any, x0: Any, noise: Any, t: Any) -> Any:
    """The target as diffusers' text-to-image example has it (and x0 itself for sample prediction)."""
    prediction_type = scheduler.config.prediction_type
    return {
        "epsilon": lambda: noise,
        "v_prediction": lambda: scheduler.get_velocity(x0, noise, t),
        "sample": lambda: x0,
    }[prediction_type]()


def test_without_offset_the_loss_is_diffusers_own(pipe: Any) -> None:
    batch, scheduler = a_batch(), pipe.scheduler
    loss = make_objective(scheduler, TrainSettings(start="noise"))(of(pipe), batch)
    x_t = scheduler.add_noise(batch.x0, batch.noise, batch.timesteps)
    output = of(pipe)(x_t, batch.timesteps, batch.hidden, batch.pooled)
    plain = F.mse_loss(output, goal_of(scheduler, batch.x0, batch.noise, batch.timesteps))
    assert loss.total.item() == pytest.approx(plain.item(), rel=1e-6)
    loss.total.backward()
    mine = pipe.unet.conv_in.weight.grad.clone()
    pipe.unet.zero_grad()
    plain.backward()
    torch.testing.assert_close(mine, pipe.unet.conv_in.weight.grad, rtol=1e-5, atol=1e-8)
    pipe.unet.zero_grad()


def test_the_window_is_equations_13_to_15(pipe: Any) -> None:
    batch, abars, prediction_type = a_batch(), pipe.scheduler.alphas_cumprod, pipe.scheduler.config.prediction_type
    loss = make_objective(pipe.scheduler, TrainSettings(gain="window"))(of(pipe), batch)
    for i, t in enumerate(TIMES):
        x0, x_start, eps = batch.x0[i], batch.x_start[i], batch.noise[i]
        signal, spread = abars[t].sqrt(), (1 - abars[t]).sqrt()
        x_t = signal * (x_start if t >= 950 else x0) + spread * eps  # Eq. 13
        eps_new = (x_t - x0 * signal) / spread  # Eq. 14
        goal = {"epsilon": eps_new, "v_prediction": signal * eps_new - spread * x0, "sample": x0}[prediction_type]
        output = of(pipe)(x_t[None], t, batch.hidden[i : i + 1], batch.pooled[i : i + 1])[0]
        assert loss.each[i].item() == pytest.approx(F.mse_loss(output, goal).item(), rel=2e-4), t
    assert loss.within.tolist() == [False, False, False, True, True, True]


def test_the_constant_gain_holds_nothing_of_x0_from_its_start_on(pipe: Any) -> None:
    batch, abars, prediction_type = a_batch(), pipe.scheduler.alphas_cumprod, pipe.scheduler.config.prediction_type
    objective = make_objective(pipe.scheduler, TrainSettings(gain="constant"))
    assert objective.start_timestep == 951, "the first timestep of 20 leading steps"
    loss = objective(of(pipe), batch)
    r_start = (abars[951] / (1 - abars[951])).sqrt()
    for i, t in enumerate(TIMES):
        x0, x_start, eps = batch.x0[i], batch.x_start[i], batch.noise[i]
        spread = (1 - abars[t]).sqrt()
        share = abars[t].sqrt() if t >= 951 else spread * r_start
        x_t = (abars[t].sqrt() - share) * x0 + share * x_start + spread * eps
        eps_new = (x_t - abars[t].sqrt() * x0) / spread
        goal = {"epsilon": eps_new, "v_prediction": abars[t].sqrt() * eps_new - spread * x0, "sample": x0}[
            prediction_type
        ]
        output = of(pipe)(x_t[None], t, batch.hidden[i : i + 1], batch.pooled[i : i + 1])[0]
        assert loss.each[i].item() == pytest.approx(F.mse_loss(output, goal).item(), rel=2e-4), t


@pytest.mark.parametrize("gain", ["window", "constant"])
def test_diffusers_recovers_x0_from_a_perfect_network(pipe: Any, gain: Any) -> None:
    """A network that outputs exactly the target: DDIM's pred_original_sample is x0, and the loss is 0."""
    batch, tensors = a_batch(), {}

    def goal(x_t: Any, t: Any, hidden: Any, pooled: Any) -> Any:
        spread = (1 - pipe.scheduler.alphas_cumprod[t]).sqrt()[:, None, None, None]
        signal = pipe.scheduler.alphas_cumprod[t].sqrt()[:, None, None, None]
        noise = (x_t - signal * batch.x0) / spread
        tensors["x_t"], tensors["out"] = x_t, goal_of(pipe.scheduler, batch.x0, noise, t)
        return tensors["out"]

    loss = make_objective(pipe.scheduler, TrainSettings(gain=gain))(goal, batch)
    assert loss.total.item() < 1e-9
    pipe.scheduler.set_timesteps(1000)
    for i, t in enumerate(TIMES):
        x0 = pipe.scheduler.step(tensors["out"][i], t, tensors["x_t"][i]).pred_original_sample
        torch.testing.assert_close(x0, batch.x0[i], atol=2e-5, rtol=0)


@pytest.mark.parametrize("start", ["noise", "mean"])
def test_min_snr_is_diffusers_but_for_the_windows_samples(pipe: Any, start: Any) -> None:
    batch, scheduler = a_batch(), pipe.scheduler
    config = TrainSettings(start=start, gain="window", snr_gamma=5.0)
    loss = make_objective(scheduler, config)(of(pipe), batch)
    plain = make_objective(scheduler, TrainSettings(start=start, gain="window"))(of(pipe), batch)
    snr = compute_snr(scheduler, batch.timesteps)
    divisor = {"epsilon": snr, "v_prediction": snr + 1, "sample": 1}[scheduler.config.prediction_type]
    weight = snr.clamp(max=5.0) / divisor
    if start == "mean":
        weight[3:] = 1
    torch.testing.assert_close(loss.each, plain.each * weight, rtol=1e-4, atol=0)
    assert loss.total.item() == pytest.approx((plain.each * weight).mean().item(), rel=1e-4)


@pytest.mark.parametrize("start", ["noise", "mean"])
def test_perturbation_is_diffusers_own_under_matched_noise_too(pipe: Any, start: Any) -> None:
    """train_text_to_image.py --input_perturbation: new_noise goes into add_noise, noise into the target."""
    plain, scheduler, tensors = a_batch(), pipe.scheduler, {}
    fresh = torch.randn(plain.noise.shape, generator=torch.Generator().manual_seed(7))
    batch = replace(plain, perturbation=0.1 * fresh)

    def denoise(x_t: Any, t: Any, hidden: Any, pooled: Any) -> Any:
        tensors["x_t"] = x_t
        return of(pipe)(x_t, t, hidden, pooled)

    loss = make_objective(scheduler, TrainSettings(start=start, gain="window"))(denoise, batch)
    gain = window(scheduler, 950)[batch.timesteps] * (start == "mean")
    noise = matched_noise(batch.noise, batch.x0, batch.x_start, gain)
    new_noise = noise + 0.1 * fresh
    noisy_latents = scheduler.add_noise(batch.x0, new_noise, batch.timesteps)
    torch.testing.assert_close(tensors["x_t"], noisy_latents)
    goal = goal_of(scheduler, batch.x0, noise, batch.timesteps)
    output = of(pipe)(noisy_latents, batch.timesteps, batch.hidden, batch.pooled)
    assert loss.total.item() == pytest.approx(F.mse_loss(output, goal).item(), rel=1e-5)


def test_timesteps_outside_the_model_or_short_of_the_window_are_refused() -> None:
    scheduler = tiny_pipeline().scheduler
    with raises("training", "timestep_range", "0..999", [5, 1000]):
        make_objective(scheduler, TrainSettings(timestep_range=(5, 1000)))
    short = (0, 949)
    with raises("training", "t = 950", "timestep_range", [0, 949]):
        make_objective(scheduler, TrainSettings(gain="window", timestep_range=short))
    for fits in ({"gain": "constant"}, {"gain": "window", "start_timestep": 949}, {"gain": "window", "start": "noise"}):
        make_objective(scheduler, TrainSettings(timestep_range=short, **fits))


def test_in_and_outside_are_the_means_of_their_samples() -> None:
    pipe = tiny_pipeline()
    objective = make_objective(pipe.scheduler, TrainSettings(gain="window"))
    loss = objective(of(pipe), a_batch())
    assert (loss.inside + loss.outside) / 2 == pytest.approx(loss.total.item(), rel=1e-5), "3 samples each"
    below = objective(of(pipe), a_batch([1, 2]))
    assert below.inside is None and below.outside == pytest.approx(below.total.item())


def test_the_three_lines_in_a_foreign_loop() -> None:
    """The issue's lines in diffusers' text-to-image step, against the objective on the same draws."""
    pipe = tiny_pipeline(prediction_type="epsilon")
    tiny, config = tiny_prior(pipe), TrainSettings(gain="window")
    batch, noise_scheduler = a_batch(), pipe.scheduler
    latents, noise, timesteps, classes = batch.x0, batch.noise, batch.timesteps, ["product photo"] * len(TIMES)

    from onbrand.core import matched_noise, window

    prior, gain = tiny, window(noise_scheduler, 950)
    noise = matched_noise(noise, latents, prior.mean(classes), gain[timesteps])

    noisy_latents = noise_scheduler.add_noise(latents, noise, timesteps)
    model_pred = of(pipe)(noisy_latents, timesteps, batch.hidden, batch.pooled)
    loss = F.mse_loss(model_pred.float(), noise.float(), reduction="mean")

    here = replace(batch, x_start=prior.mean(classes))
    assert loss.item() == pytest.approx(make_objective(noise_scheduler, config)(of(pipe), here).total.item(), rel=1e-6)
    plain = make_objective(noise_scheduler, TrainSettings(start="noise"))(of(pipe), here)
    assert loss.item() != pytest.approx(plain.total.item(), rel=1e-3)


def test_first_outside_the_schedule_and_foreign_schedulers_are_refused() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    pipe = tiny_pipeline()
    with raises("training", "start_timestep", "0..999", "got 1000"):
        make_objective(pipe.scheduler, TrainSettings(start_timestep=1000))
    with raises("scheduler", "FlowMatchEulerDiscreteScheduler", "flow matching"):
        make_objective(FlowMatchEulerDiscreteScheduler(), TrainSettings())
