"""OB001 to OB008, worded once: a code, a title, a sentence, a remedy (docs/concepts/findings.md).

`diagnose` prints them, a start that goes wrong raises or warns with them. Settings are named as arguments, which on the
command line have two dashes before them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from onbrand.core.leak import Leak

TITLES = {
    "OB001": "mean seen",
    "OB002": "spread seen",
    "OB003": "start outside the trained window",
    "OB004": "window wider than one inference step",
    "OB005": "no mismatch",
    "OB006": "constant gain started from another timestep than trained",
    "OB007": "constant gain under a sampler that draws noise",
    "OB008": "trained with offset noise",
}
"""Every code there is; each has its section in docs/concepts/findings.md."""

NEAR = 0.5
"""Timesteps closer than this are one: Karras sigmas give 950.9999 for 951."""


@dataclass(frozen=True)
class Finding:
    """One thing that diagnosis found."""

    code: str
    """"OB001" and on."""
    title: str
    """A few words."""
    sentence: str
    """What was found, with its numbers."""
    remedy: str
    """What to do about it; "" where there is nothing to do."""
    level: str
    """"problem" | "note" | "ok"."""

    def __str__(self) -> str:
        return f"{self.code}: {self.sentence} {self.remedy}".rstrip()


def findings(
    leak: Leak | None,
    first: float,
    timesteps: Sequence[float],
    window: tuple[float, float] | None = None,
    constant_start: float | None = None,
    abar: float | None = None,
) -> list[Finding]:
    """What there is to say of a class's leak and of a start, by code. Pure; raises nothing.

    Args:
        leak: measured at the first inference timestep; None for flow models
        first: that timestep
        timesteps: all of inference, falling
        window: the first and the last training timestep of weights that were trained with a window gain
        constant_start: the timestep that weights of a constant gain start from
        abar: alphas_cumprod at `first`, if there is no leak to say it

    Returns:
        The findings, in the order of their codes. Source: docs/concepts/findings.md.
    """
    entries = _of_leak(leak, first, abar, has_start=window is not None or constant_start is not None)
    if window is not None:
        entries += _of_window(first, timesteps, window)
    if constant_start is not None and abs(constant_start - first) >= NEAR:
        entries.append(other_timestep(first, constant_start))
    return sorted(entries, key=lambda finding: finding.code)


def _of_leak(leak: Leak | None, first: float, abar: float | None, has_start: bool) -> list[Finding]:
    if leak is None or leak.abar == 0:
        return [no_effect(first, leak.abar if leak else abar)]
    where = f"At timestep {first:g} (abar {leak.abar:.4g})"
    if not leak.means_seen and not leak.spreads_seen and leak.sigma < 1:
        sentence = f"{where} the class is {leak.sigma:.2f} sigma out and no mode is seen (AUC {leak.auc:.3f})."
        return [_finding("OB005", sentence + " A start from noise is what training saw.")]
    level = "note" if has_start else "problem"
    entries = []
    if leak.sigma >= 1:
        sentence = (
            f"{where} the class mean stands {leak.sigma:.1f} sigma out of the noise, {leak.brightness:.1f} by "
            f"brightness alone; a linear test tells training from noise with AUC {leak.auc:.3f} ({leak.nats:.1f} nats)."
        )
        remedy = "Take start mean or start text."
        if has_start:
            remedy = "These weights were trained with a start: keep it, and never take start noise."
        entries.append(_finding("OB001", sentence, remedy, level))
    if leak.spreads_seen:
        many = "1 mode" if leak.spreads_seen == 1 else f"{leak.spreads_seen} modes"
        sentence = f"{where} the spread of {many} is seen beside the noise; worth modelling: K = {leak.k_worth}."
        remedy = (
            "Take start text, which keeps these modes and their tie to the prompt, or start mean with look_ahead 2, "
        )
        remedy += "which needs no captions"
        if has_start:
            remedy = "Report the variance ratio beside the scores: a start from the mean lacks this spread"
        entries.append(_finding("OB002", sentence, f"{remedy}.", level))
    return entries


def _of_window(first: float, timesteps: Sequence[float], window: tuple[float, float]) -> list[Finding]:
    begin, end = window
    different = list(dict.fromkeys(timesteps))  # second-order solvers name a timestep twice
    inside = [t for t in different if begin - NEAR < t < end + NEAR]
    if not begin - NEAR < first < end + NEAR:
        steps = _steps_inside(different, window)
        more = f"num_inference_steps {steps}, or " if steps else ""
        return [
            outside_window(first, begin, f"{more}timestep_spacing trailing, which starts at {end:g} for any number")
        ]
    if len(inside) > 1:
        sentence = (
            f"{len(inside)} inference steps ({', '.join(f'{t:g}' for t in inside)}) lie in the window "
            f"{begin:g}..{end:g}: from the second on the state is not one that was trained there."
        )
        remedy = (
            "Take fewer num_inference_steps, or train with a narrower window, or with gain constant, which has none."
        )
        return [_finding("OB004", sentence, remedy, "note")]
    return []


def outside_window(first: float, begin: float, remedy: str) -> Finding:
    """OB003: weights that know their start from timestep `begin` on are started at `first`; remedy: what to take."""
    sentence = (
        f"These weights were trained to start at timestep {begin:g} or later; inference starts at timestep "
        f"{first:g}, where the network was trained on the image's own x0."
    )
    return _finding("OB003", sentence, f"Take {remedy}.", "problem")


def no_effect(first: float, abar: float | None) -> Finding:
    """OB005: at the first timestep x_start has no weight; abar there, None of flow models."""
    why = "flow or zero SNR" if abar is None else f"abar is {abar:g} there"
    return _finding("OB005", f"At timestep {first:g} the start is pure noise ({why}): x_start has no effect.")


def other_timestep(first: float, timestep: float, remedy: str = "") -> Finding:
    """OB006: weights of a constant gain made for timestep `trained` are started at `first`."""
    way = "exaggerated" if first > timestep else "damped"
    sentence = (
        f"The constant gain was trained to start at timestep {timestep:g} and starts at {first:g}: what sets an image "
        f"apart from x_start may be {way} (in theory 951 run from 981: 1.23 times, 999 from 951: .68 times; in a "
        "trial, text moved by under .05 and the variance ratio from .67 to .95)."
    )
    default = f"num_inference_steps and timestep_spacing that start at {timestep:g}"
    return _finding("OB006", sentence, f"Take {remedy or default}.", "note")


def unmatched_noise(sampler: str, remedy: str) -> Finding:
    """OB007: under the constant gain a sampler draws noise that is not matched; remedy: what to do."""
    sentence = f"{sampler} draws noise at every step, which thins x_start's share under the constant gain."
    return _finding("OB007", sentence, remedy, "note")


def offset_noise(noise_offset: float, lost: float, without: float) -> Finding:
    """OB008: the model was trained with offset noise; lost, without: shares of the channel means that a start from
    noise loses so, and would lose after training without (`leak.channel_means_lost`)."""
    sentence = (
        f"Offset noise of {noise_offset:g} makes the noise of training wider in the channel means: a start from noise "
        f"loses {lost:.2f} of the class's brightness and tint, not {without:.2f}. The rest of the leak is as it was."
    )
    remedy = "Take the same starts; training with one and gain constant takes the place of offset noise."
    return _finding("OB008", sentence, remedy, "note")


def _steps_inside(timesteps: list[float], window: tuple[float, float]) -> int | None:
    """The next larger number of steps whose leading spacing starts inside the window; None if no rule fits.

    timesteps: different ones; a second-order solver may have two a step.
    """
    total, calls = int(window[1]) + 1, len(timesteps)
    gap = timesteps[0] - timesteps[1] if calls > 1 else total
    # n steps divide T by n (DDIM, PNDM, DDPM, the Euler family) or by n + 1 (DPM++, UniPC, DEIS)
    for steps, even in ((calls, True), ((calls + 1) // 2, False)):
        for more in (0, 1):
            spacing = total // (steps + more)
            offset = timesteps[0] - (steps - 1 + more) * spacing  # the scheduler's steps_offset
            if offset in (0, 1) and (gap == spacing or not even):
                starts = ((n, (n - 1 + more) * (total // (n + more)) + offset) for n in range(steps + 1, total))
                return next((n for n, first in starts if window[0] <= first <= window[1]), None)
    return None


def _finding(code: str, sentence: str, remedy: str = "", level: str = "ok") -> Finding:
    return Finding(code, TITLES[code], sentence, remedy, level)
