"""docs/concepts/method.md says what research/method.py computes."""

import importlib.util
import math
import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from onbrand.core import Gaussian, constant, estimate, measure_leak, ratio

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "concepts" / "method.md").read_text()

# share of the mean, variance ratio, text slope; white background, then natural brightness
TABLE = {
    "standard, pure noise": (0.171, 0.155, 0.171, 0.065, 0.081, 0.065),
    "class mean, no training": (1.000, 0.154, 0.171, 1.000, 0.080, 0.065),
    "class PCA draw, no training": (1.000, 0.840, 0.171, 1.000, 0.953, 0.065),
    "draw given the text, no training": (1.000, 0.982, 1.000, 1.000, 0.989, 1.000),
    "mean offset, window (the paper)": (1.000, 0.145, 0.323, 1.000, 0.070, 0.269),
    "the same + exact hand-off": (1.000, 0.592, 1.000, 1.000, 0.344, 1.000),
    "mean offset, constant gain": (1.000, 0.813, 0.997, 1.000, 0.621, 0.997),
}
SAMPLED = {
    "offset noise 0.1, pure noise": (0.78, 0.31, 0.78, 0.62, 0.13, 0.62),
    "zero terminal SNR, trailing": (1.00, 0.83, 1.00, 0.99, 0.66, 0.99),
}


@pytest.fixture(scope="module")
def tool() -> Any:
    spec = importlib.util.spec_from_file_location("method", ROOT / "research" / "method.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "method", module)  # dataclasses look their module up
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rows(tool: Any) -> Any:
    lines = [line.strip("|").split("|") for line in tool.ideal_table().splitlines()[2:]]
    return {name: [float(value) for value in values] for name, *values in lines}


@pytest.mark.parametrize("name", TABLE)
def test_the_exact_rows(rows: Any, name: Any) -> None:
    assert rows[name] == pytest.approx(TABLE[name], abs=0.002)


@pytest.mark.parametrize("name", SAMPLED)
def test_the_rows_that_were_sampled(rows: Any, name: Any) -> None:
    assert rows[name] == pytest.approx(SAMPLED[name], abs=0.011)


def test_the_page_holds_what_the_script_makes(tool: Any) -> None:
    assert tool.fill(PAGE) == PAGE


def test_numbers_in_the_prose(tool: Any, rows: Any) -> None:
    prose = " ".join(PAGE.split())
    abars = tool.schedule().alphas_cumprod
    assert round(16384 * float(abars[-1].float()), 0) in (76, 77)
    mode = Gaussian(torch.full((1, 1, 1), 110.0), torch.ones(1, 1), torch.tensor([600.0]), 600.0, 100)
    leak = measure_leak(mode, float(abars[951]))
    assert f"{leak.sigma:.1f} standard deviations and {leak.nats:.0f} nats" in prose
    share = ratio(abars[951]) / ratio(abars[901])
    assert f"= {100 * share:.0f}$ % class mean and {100 * (1 - share):.0f} %" in prose
    variances = [f"{rows['mean offset, constant gain'][i]:.2f}".lstrip("0") for i in (1, 4)]
    assert "{} and {} of it at 20 steps".format(*variances) in prose
    a, b = abars[951], abars[901]
    determinant = a.sqrt() * (1 - b).sqrt() - b.sqrt() * (1 - a).sqrt()
    assert f"about {abs(float((1 - a).sqrt() / determinant)):.0f} times" in prose


def test_ddim_holds_what_the_constant_gain_shows_and_the_window_does_not(tool: Any) -> None:
    shares = tool.carried()
    abars, (window, gain) = tool.schedule().alphas_cumprod, tool.GAINS.values()
    assert len(shares) == 20
    for t, parts in shares.items():
        torch.testing.assert_close(parts, tool.state(float(abars[t]), float(gain[t])), atol=2e-5, rtol=0)
    timesteps = [t for t in shares if abs(shares[t][1] - tool.state(float(abars[t]), float(window[t]))[1]) > 1e-3]
    assert timesteps == list(shares)[1:]


@pytest.mark.parametrize("name", ["DDIM", "PNDM", "DPMSolverMultistep", "UniPCMultistep", "DEISMultistep"])
def test_solvers_keep_the_shares_of_the_start_whatever_is_answered(tool: Any, name: Any) -> None:
    """Coefficients of (x_start, eps, answer 0, answer 1, ...): the first two stay training's at every step."""
    scheduler_class = getattr(diffusers, f"{name}Scheduler")
    options = {k: v for k, v in tool.SD.items() if k != "set_alpha_to_one"} | {"timestep_spacing": "trailing"}
    scheduler = scheduler_class(**options, **({"skip_prk_steps": True} if name == "PNDM" else {}))
    scheduler.set_timesteps(20)
    answers = torch.eye(2 + len(scheduler.timesteps))
    abars = scheduler.alphas_cumprod
    gain = constant(abars, int(scheduler.timesteps[0]))
    x = scheduler.add_noise(answers[:1], answers[1:2], scheduler.timesteps[:1])
    for i, t in enumerate(scheduler.timesteps.tolist()):
        if name != "PNDM" or i != 1:  # PNDM calls the network twice at one timestep, the second time in mid-step
            spread = math.sqrt(1 - abars[t])
            assert x[0, :2].tolist() == pytest.approx([spread * float(gain[t]), spread], abs=1e-4)
        _, noise = estimate("sample", answers[2 + i : 3 + i], x, float(abars[t]))
        x = scheduler.step(noise, t, x).prev_sample


def test_to_an_ideal_network_the_start_is_only_a_shift(tool: Any) -> None:
    """Section 5's caution: under the constant gain another start changes the mean by the last k alone."""
    mode = tool.MODES["white background"]
    with_mean, with_nothing = (tool.propagate(tool.Method("", s, constant), mode) for s in ("mean", "noise"))
    last = float(tool.state(float(tool.schedule().alphas_cumprod[0]), float(tool.GAINS["constant gain"][0]))[1])
    assert with_mean[0] - with_nothing[0] == pytest.approx(last, abs=1e-5)
    assert with_nothing[2] == pytest.approx(with_mean[2], abs=1e-5)
    assert with_nothing[1] == pytest.approx(with_mean[1], abs=0.003)  # pure noise is louder than x_init's by 1 / sigma


def test_fine_steps_lose_what_section_1_says(tool: Any) -> None:
    for mode in tool.MODES.values():
        method = tool.Method("", "noise", steps=1000, options={"timestep_spacing": "trailing"})
        abar = float(tool.schedule().alphas_cumprod[-1])
        loss = math.sqrt(abar * mode[2] / (abar * mode[2] + 1 - abar))
        assert tool.propagate(method, mode)[0] == pytest.approx(1 - loss, abs=0.003)
