"""Eq. 8 and 10-15 through diffusers' DDIM, and the two repairs in closed form."""

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler

from onbrand.core import add_noise, constant, handoff, matched_noise, ratio, target, window, x_init
from worlds import raises

SD = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1)


@pytest.fixture
def scheduler() -> DDIMScheduler:
    scheduler = DDIMScheduler(**SD, set_alpha_to_one=False)
    scheduler.set_timesteps(20)
    return scheduler


@pytest.fixture
def triple() -> torch.Tensor:
    """x0, x_start, noise: `(3, 6, 4, 3, 5)`."""
    return torch.randn(3, 6, 4, 3, 5, generator=torch.Generator().manual_seed(1))


def test_window_is_eq_13_inside_and_eq_1_outside(scheduler: Any, triple: Any) -> None:
    x0, x_start, noise = triple
    t = torch.tensor([999, 980, 950, 949, 500, 0])
    noisy = scheduler.add_noise(x0, matched_noise(noise, x0, x_start, window(scheduler, 950)[t]), t)
    images = torch.cat([x_start[:3], x0[3:]])
    torch.testing.assert_close(noisy, scheduler.add_noise(images, noise, t), rtol=0, atol=2e-6)


def test_matched_noise_is_eq_14(scheduler: Any, triple: Any) -> None:
    x0, x_start, noise = (part.double() for part in triple)
    t = torch.full((6,), 960)
    abar = scheduler.alphas_cumprod[t].double().reshape(-1, 1, 1, 1)
    x_new = abar.sqrt() * x_start + (1 - abar).sqrt() * noise
    eps_new = (x_new - x0 * abar.sqrt()) / (1 - abar).sqrt()
    ours = matched_noise(noise, x0, x_start, window(scheduler, 950)[t])
    torch.testing.assert_close(ours, eps_new, rtol=0, atol=1e-6)


def test_gains_are_r_where_the_start_is_trained(scheduler: Any) -> None:
    r = ratio(scheduler.alphas_cumprod)
    inside, flat = window(scheduler, 950), constant(scheduler.alphas_cumprod, 951)
    assert inside.dtype == flat.dtype == torch.float32
    assert inside[:950].eq(0).all() and inside[950:].gt(0).all()
    torch.testing.assert_close(inside[950:], r[950:])
    torch.testing.assert_close(flat[951:], r[951:])
    torch.testing.assert_close(flat[:952], r[951].expand(952))


def test_constant_gain_holds_nothing_of_x0_at_its_start(scheduler: Any, triple: Any) -> None:
    x0, x_start, noise = triple
    t = torch.full((6,), 951)
    gain = constant(scheduler, 951)
    noisy = scheduler.add_noise(x0, matched_noise(noise, x0, x_start, gain[t]), t)
    other = scheduler.add_noise(x0.flip(0), matched_noise(noise, x0.flip(0), x_start, gain[t]), t)
    torch.testing.assert_close(noisy, other, rtol=0, atol=1e-6)  # c_t = 0: another x0, the same state
    torch.testing.assert_close(noisy, x_init(x_start, noise, float(scheduler.alphas_cumprod[951])), rtol=0, atol=1e-6)


def test_constant_gain_runs_on_its_own_training_states(scheduler: Any, triple: Any) -> None:
    """An ideal network along an unmodified DDIM: every state is a training state, the noise one vector."""
    x0, x_start, noise = triple
    gain = constant(scheduler, 951)
    truth = matched_noise(noise, x0, x_start, gain[torch.full((6,), 951)])
    x = scheduler.add_noise(x_start, noise, scheduler.timesteps[:1])
    for t in scheduler.timesteps:
        many = t.expand(6)
        at_t = matched_noise(noise, x0, x_start, gain[many])
        torch.testing.assert_close(at_t, truth)
        torch.testing.assert_close(x, scheduler.add_noise(x0, at_t, many), rtol=0, atol=2e-5)
        x = scheduler.step(at_t, t, x, eta=0.0).prev_sample
    last = scheduler.alphas_cumprod[0]
    torch.testing.assert_close(x, add_noise(x0, truth, float(last)), rtol=0, atol=2e-5)


def test_window_leaves_its_training_states_after_the_first_step(scheduler: Any, triple: Any) -> None:
    """Why the repairs exist (docs/concepts/method.md, section 5): to 901 the state holds .0283 x0 + .0900 x_start."""
    x0, x_start, noise = triple
    truth = matched_noise(noise, x0, x_start, window(scheduler, 950)[torch.full((6,), 951)])
    x = scheduler.step(truth, 951, scheduler.add_noise(x_start, noise, scheduler.timesteps[:1]), eta=0.0).prev_sample
    spread = (1 - scheduler.alphas_cumprod[901]).sqrt()
    torch.testing.assert_close(x, 0.0283 * x0 + 0.0900 * x_start + spread * noise, rtol=0, atol=5e-4)


def test_velocity_target_follows_from_matched_noise(scheduler: Any, triple: Any) -> None:
    x0, x_start, noise = triple
    t = torch.tensor([999, 951, 700, 300, 20, 1])
    eps_new = matched_noise(noise, x0, x_start, constant(scheduler, 951)[t])
    ours = target("v_prediction", x0, eps_new, scheduler.alphas_cumprod[t])
    torch.testing.assert_close(ours, scheduler.get_velocity(x0, eps_new, t), rtol=0, atol=1e-6)
    abar = scheduler.alphas_cumprod[t].reshape(-1, 1, 1, 1)  # docs/concepts/method.md, section 2
    output = (abar.sqrt() * scheduler.add_noise(x0, eps_new, t) - x0) / (1 - abar).sqrt()
    torch.testing.assert_close(ours, output, rtol=1e-4, atol=1e-4)


def test_x_init_is_the_scheduler_noising_x_start(scheduler: Any, triple: Any) -> None:
    _, x_start, noise = triple
    ours = x_init(x_start, noise, float(scheduler.alphas_cumprod[scheduler.timesteps[0]]))
    torch.testing.assert_close(ours, scheduler.add_noise(x_start, noise, scheduler.timesteps[:1]), rtol=0, atol=1e-6)


def test_handoff_puts_the_drawn_noise_back(scheduler: Any, triple: Any) -> None:
    output, x_start, noise = triple
    abar, after = (float(scheduler.alphas_cumprod[t]) for t in (951, 901))
    x = x_init(x_start, noise, abar)
    step = scheduler.step(output, 951, x, eta=0.0)
    ours = handoff(x, step.prev_sample, noise, abar, after)
    exact = after**0.5 * step.pred_original_sample + (1 - after) ** 0.5 * noise
    torch.testing.assert_close(ours, exact, rtol=0, atol=1e-4)


def test_half_precision_is_computed_in_float32(scheduler: Any, triple: Any) -> None:
    x0, x_start, noise = (part.half() for part in triple)
    gain = window(scheduler, 0)[torch.tensor([0, 0, 0, 0, 0, 0])]  # r_0 = 34: squares of it leave half precision
    ours = matched_noise(noise, x0, x_start, gain)
    assert ours.dtype == torch.float16
    exact = matched_noise(noise.float(), x0.float(), x_start.float(), gain)
    torch.testing.assert_close(ours, exact.half(), rtol=0, atol=0)


def test_wrong_input_is_refused(scheduler: Any, triple: Any) -> None:
    x0, x_start, noise = triple
    for outside in (-1, 1000, 950.5):
        with raises("value", "first", "0..999", outside):
            window(scheduler, outside)
        with raises("value", "start", "0..999", outside):
            constant(scheduler, outside)
    with raises("value", "alphas_cumprod", "(3, 3)"):
        window(torch.ones(3, 3), 1)
    with raises("value", "x0 (6, 4, 3, 5)", "x_start (1, 4, 3, 5)"):
        matched_noise(noise, x0, x_start[:1], 0.1)
    with raises("value", "(1000,)", "(6, 4, 3, 5)"):
        matched_noise(noise, x0, x_start, window(scheduler, 950))
    with raises("value", "abar", "0.5 twice"):
        handoff(x0, x0, noise, 0.5, 0.5)
