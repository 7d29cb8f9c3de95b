"""Eq. 1-3 against diffusers' own arithmetic."""

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler

from onbrand.core import add_noise, estimate, expand, remove_noise, target
from worlds import raises

SD = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1)


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 6, 4, 3, 5, generator=generator)
    return x0, noise, torch.tensor([0, 1, 300, 700, 951, 999])


def test_noising_is_diffusers(batch: Any) -> None:
    x0, noise, t = batch
    scheduler = DDIMScheduler(**SD)
    ours = add_noise(x0, noise, scheduler.alphas_cumprod[t])
    torch.testing.assert_close(ours, scheduler.add_noise(x0, noise, t), rtol=0, atol=1e-6)


def test_a_number_is_the_same_as_one_number_a_sample(batch: Any) -> None:
    x0, noise, _ = batch
    torch.testing.assert_close(add_noise(x0, noise, 0.25), add_noise(x0, noise, torch.full((6,), 0.25)))


def test_removing_the_noise_gives_x0_back(batch: Any) -> None:
    x0, noise, t = batch
    abar = DDIMScheduler(**SD).alphas_cumprod[t]
    torch.testing.assert_close(remove_noise(add_noise(x0, noise, abar), noise, abar), x0, rtol=0, atol=2e-5)


def test_velocity_is_diffusers(batch: Any) -> None:
    x0, noise, t = batch
    scheduler = DDIMScheduler(**SD)
    ours = target("v_prediction", x0, noise, scheduler.alphas_cumprod[t])
    torch.testing.assert_close(ours, scheduler.get_velocity(x0, noise, t), rtol=0, atol=1e-6)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_estimates_are_diffusers(batch: Any, prediction_type: Any) -> None:
    x0, noise, _ = batch
    scheduler = DDIMScheduler(**SD, prediction_type=prediction_type)
    scheduler.set_timesteps(20)
    for t in (951, 401, 1):
        x_t, output = x0 + 0.1 * noise, noise - 0.3 * x0  # any state and output: the map is what is compared
        x0_hat, eps_hat = estimate(prediction_type, output, x_t, float(scheduler.alphas_cumprod[t]))
        step = scheduler.step(output, t, x_t, eta=0.0)
        torch.testing.assert_close(x0_hat, step.pred_original_sample, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            add_noise(x0_hat, eps_hat, float(scheduler.alphas_cumprod[t])), x_t, atol=2e-5, rtol=0
        )


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_the_target_is_what_estimates_to_the_truth(batch: Any, prediction_type: Any) -> None:
    x0, noise, t = batch
    abar = DDIMScheduler(**SD).alphas_cumprod[t].double()
    x0, noise = x0.double(), noise.double()
    output = target(prediction_type, x0, noise, abar)
    x0_hat, eps_hat = estimate(prediction_type, output, add_noise(x0, noise, abar), abar)
    torch.testing.assert_close(x0_hat, x0)
    torch.testing.assert_close(eps_hat, noise)


def test_the_dtype_of_the_batch_is_kept(batch: Any) -> None:
    x0, noise, t = batch
    abar = DDIMScheduler(**SD).alphas_cumprod[t]
    assert add_noise(x0.half(), noise.half(), abar).dtype == torch.float16
    assert add_noise(x0.double(), noise.double(), 0.3).dtype == torch.float64


def test_wrong_input_is_refused(batch: Any) -> None:
    x0, noise, _ = batch
    with raises("value", "x0 (6, 4, 3, 5)", "noise (1, 4, 3, 5)"):
        add_noise(x0, noise[:1], 0.5)
    with raises("value", "(5,)", "(6, 4, 3, 5)"):
        expand(torch.ones(5), x0)
    with raises("value", "abar", "[0, 1]", 951):
        add_noise(x0, noise, 951)
    with raises("value", "abar > 0"):
        remove_noise(x0, noise, 0.0)
    with raises("value", "prediction_type", "'flow_prediction'"):
        target("flow_prediction", x0, noise, 0.5)
    with raises("value", "prediction_type", "'flow_prediction'"):
        estimate("flow_prediction", x0, noise, 0.5)
