"""What diagnosis says, against diffusers' own timesteps; every code has its section on the page."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    HeunDiscreteScheduler,
    KDPM2DiscreteScheduler,
)

from onbrand.core import Finding, Gaussian, findings, measure_leak
from onbrand.core.findings import TITLES

PAGE = Path(__file__).parents[2] / "docs" / "concepts" / "findings.md"
SD = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1)


def leaky_gaussian(mean: float = 1.0, spread: float = 900.0) -> Gaussian:
    components = torch.eye(2, 4 * 16 * 16)
    return Gaussian(torch.full((4, 16, 16), mean), components, torch.tensor([spread, spread / 10]), 2 * spread, 500)


def timesteps(scheduler_class: type, steps: int, **options: str) -> list[float]:
    scheduler = scheduler_class(**SD, **{"timestep_spacing": "leading", **options})
    scheduler.set_timesteps(steps)
    return scheduler.timesteps.tolist()


def codes(entries: list[Finding]) -> dict[str, str]:
    return {finding.code: finding.level for finding in entries}


def start(t: list[float], **training: Any) -> Any:
    return findings(measure_leak(leaky_gaussian(), 0.0082), t[0], t, **training)


def test_a_leak_is_a_problem_until_the_model_was_trained_for_the_start() -> None:
    t = timesteps(DDIMScheduler, 20)
    assert codes(start(t)) == {"OB001": "problem", "OB002": "problem"}
    assert codes(start(t, window=(950, 999))) == {"OB001": "note", "OB002": "note"}
    assert codes(start(t, constant_start=951)) == {"OB001": "note", "OB002": "note"}


def test_the_sentence_holds_the_numbers() -> None:
    leak = measure_leak(leaky_gaussian(), 0.0082)
    mean, spread = findings(leak, 951, [951, 901])
    assert "timestep 951" in mean.sentence and f"{leak.sigma:.1f} sigma" in mean.sentence and "AUC" in mean.sentence
    assert "1 mode is seen" in spread.sentence and "K = 1" in spread.sentence


@pytest.mark.parametrize(
    "leak, abar",
    [
        (None, None),  # flow matching
        (None, 0.0),
        (measure_leak(leaky_gaussian(), 0.0), None),  # zero terminal SNR
        (measure_leak(leaky_gaussian(0.001, 1.0), 0.0047), None),  # nothing there to see
    ],
)
def test_without_a_mismatch_it_says_so(leak: Any, abar: Any) -> None:
    assert codes(findings(leak, 999, [999, 949], abar=abar)) == {"OB005": "ok"}


CASES = [
    (DDIMScheduler, 10),
    (DDIMScheduler, 15),
    (DPMSolverMultistepScheduler, 10),  # 901, as DDIM's 10 steps: only the gap tells them apart
    (DPMSolverMultistepScheduler, 20),
    (HeunDiscreteScheduler, 18),  # each timestep twice
    (KDPM2DiscreteScheduler, 19),  # and another between each two
]


@pytest.mark.parametrize("scheduler_class, steps", CASES)
def test_outside_the_window_it_names_steps_that_diffusers_starts_inside(scheduler_class: Any, steps: Any) -> None:
    t = timesteps(scheduler_class, steps)
    assert t[0] < 950
    entries = {finding.code: finding for finding in start(t, window=(950, 999))}
    assert entries["OB003"].level == "problem" and f"timestep {t[0]:g}" in entries["OB003"].sentence
    count = int(re.search(r"num_inference_steps (\d+)", entries["OB003"].remedy)[1])
    assert timesteps(scheduler_class, count)[0] >= 950
    assert all(timesteps(scheduler_class, fewer)[0] < 950 for fewer in range(steps, count))
    assert "timestep_spacing trailing" in entries["OB003"].remedy
    assert 950 <= timesteps(scheduler_class, steps, timestep_spacing="trailing")[0] <= 999


def test_the_papers_window_misses_dpm_is_outside() -> None:
    """DPM++ 2M in 20 steps starts at 941, outside the paper's t >= 950 (docs/concepts/method.md, section 2)."""
    t = timesteps(DPMSolverMultistepScheduler, 20)
    assert t[0] == 941 and "OB003" in codes(start(t, window=(950, 999)))


def test_several_steps_in_the_window_are_found() -> None:
    assert "OB004" not in codes(start(timesteps(DDIMScheduler, 20), window=(950, 999)))
    t = timesteps(DDIMScheduler, 50)
    entries = {finding.code: finding for finding in start(t, window=(950, 999))}
    assert entries["OB004"].sentence.startswith("2 inference steps (981, 961)")
    heun = timesteps(HeunDiscreteScheduler, 20)  # names a timestep twice, yet it is one step
    entries = {finding.code: finding for finding in start(heun, window=(900, 999))}
    assert heun[1] == heun[2] and entries["OB004"].sentence.startswith("2 inference steps (951, 901)")


def test_a_constant_gain_from_elsewhere_is_found() -> None:
    t = timesteps(DDIMScheduler, 50)
    entries = {finding.code: finding for finding in start(t, constant_start=951)}
    assert "trained to start at timestep 951 and starts at 981" in entries["OB006"].sentence
    assert "exaggerated" in entries["OB006"].sentence
    assert "damped" in start(timesteps(DDIMScheduler, 20), constant_start=999)[-1].sentence


def test_timesteps_that_differ_by_rounding_are_one() -> None:
    t = [950.9999, 900.0]  # as Karras sigmas give them
    assert not {"OB003", "OB006"} & set(codes(start(t, window=(951, 999), constant_start=951)))


def test_every_code_has_its_section() -> None:
    sections = re.findall(r"^## (OB\d{3}): (.+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert dict(sections) == TITLES and len(sections) == len(TITLES)
