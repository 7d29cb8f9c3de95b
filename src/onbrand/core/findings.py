"""The leak and the start in words that can be quoted: a code, a title, a sentence, a remedy (docs/findings.md)."""

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
}
"""Every code there is; each has its section in docs/findings.md."""

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


def findings(
    leak: Leak | None,
    first: float,
    timesteps: Sequence[float],
    window: tuple[float, float] | None = None,
    start_trained: float | None = None,
    abar: float | None = None,
) -> list[Finding]:
    """What there is to say of a class's leak and of a start, by code.

    leak: measured at the first inference timestep, None for flow models; first: that timestep; timesteps: all of
    inference, falling; window: the (first, last) training timesteps of offset-trained weights; start_trained: the
    timestep a constant gain was made for; abar: at `first`, where there is no leak to tell it. Pure; raises nothing.
    """
    found = _of_leak(leak, first, abar, offset_trained=window is not None or start_trained is not None)
    if window is not None:
        found += _of_window(first, timesteps, window)
    if start_trained is not None and abs(start_trained - first) >= NEAR:
        found.append(_of_start(first, start_trained))
    return sorted(found, key=lambda finding: finding.code)


def _of_leak(leak: Leak | None, first: float, abar: float | None, offset_trained: bool) -> list[Finding]:
    if leak is None or leak.abar == 0:
        why = f"abar is {leak.abar if leak else abar:g} there" if leak or abar is not None else "flow or zero SNR"
        return [_finding("OB005", f"At timestep {first:g} the start is pure noise ({why}): x_start has no effect.")]
    where = f"At timestep {first:g} (abar {leak.abar:.4g})"
    if not leak.means_seen and not leak.spreads_seen and leak.sigma < 1:
        sentence = f"{where} the class is {leak.sigma:.2f} sigma out and no mode is seen (AUC {leak.auc:.3f})."
        return [_finding("OB005", sentence + " A start from noise is what training saw.")]
    level = "note" if offset_trained else "problem"
    found = []
    if leak.sigma >= 1:
        sentence = (
            f"{where} the class mean stands {leak.sigma:.1f} sigma out of the noise, {leak.brightness:.1f} by "
            f"brightness alone; a linear test tells training from noise with AUC {leak.auc:.3f} ({leak.nats:.1f} nats)."
        )
        told = "Start from the class mean or the text: --start mean, --start text."
        if offset_trained:
            told = "These weights were trained for a start from x_start: keep it (--start mean), never --start noise."
        found.append(_finding("OB001", sentence, told, level))
    if leak.spreads_seen:
        many = "1 mode" if leak.spreads_seen == 1 else f"{leak.spreads_seen} modes"
        sentence = f"{where} the spread of {many} is seen beside the noise; worth modelling: K = {leak.k_worth}."
        told = "Start from the text (--start text), which keeps these modes and their tie to the prompt, or from the "
        told += "mean that looks ahead (--start mean --look_ahead 2), which needs no captions"
        if offset_trained:
            told = "Report the variance ratio beside the scores: a start from the mean lacks this spread"
        found.append(_finding("OB002", sentence, f"{told}.", level))
    return found


def _of_window(first: float, timesteps: Sequence[float], window: tuple[float, float]) -> list[Finding]:
    begin, end = window
    different = list(dict.fromkeys(timesteps))  # second-order solvers name a timestep twice
    inside = [t for t in different if begin - NEAR < t < end + NEAR]
    if not begin - NEAR < first < end + NEAR:
        steps = _steps_inside(different, window)
        more = f"use {steps} steps, or " if steps else ""
        sentence = (
            f"Inference starts at timestep {first:g}, outside the window {begin:g}..{end:g} that was trained to start "
            "from x_start: there the network was trained on the picture's own x0."
        )
        remedy = f"To be inside, {more}use --spacing trailing, which starts at {end:g} for any number of steps."
        return [_finding("OB003", sentence, remedy, "problem")]
    if len(inside) > 1:
        sentence = (
            f"{len(inside)} inference steps ({', '.join(f'{t:g}' for t in inside)}) lie in the window "
            f"{begin:g}..{end:g}: from the second on the state is not one that was trained there."
        )
        remedy = "Use fewer steps, train with a narrower window, or train with --gain constant, which has no window."
        return [_finding("OB004", sentence, remedy, "note")]
    return []


def _of_start(first: float, trained: float) -> Finding:
    way = "exaggerated" if first > trained else "damped"
    sentence = (
        f"The constant gain was trained to start at timestep {trained:g} and starts at {first:g}: what sets a "
        f"picture apart from x_start may be {way} (in theory 951 run from 981: 1.23 times, 999 from 951: .68 times; "
        "in a trial, text moved by under .05 and the variance ratio from .67 to .95)."
    )
    remedy = (
        f"Choose steps and spacing that start at {trained:g}; --spacing trailing starts at the last timestep always."
    )
    return _finding("OB006", sentence, remedy, "note")


def _steps_inside(timesteps: list[float], window: tuple[float, float]) -> int | None:
    """The next larger number of steps whose leading spacing starts inside the window; None where no rule fits.

    timesteps: different ones; a second-order solver may have two a step.
    """
    total, called = int(window[1]) + 1, len(timesteps)
    gap = timesteps[0] - timesteps[1] if called > 1 else total
    # n steps divide T by n (DDIM, PNDM, DDPM, the Euler family) or by n + 1 (DPM++, UniPC, DEIS)
    for steps, gaps_known in ((called, True), ((called + 1) // 2, False)):
        for more in (0, 1):
            wanted = total // (steps + more)
            offset = timesteps[0] - (steps - 1 + more) * wanted  # the scheduler's steps_offset
            if offset in (0, 1) and (gap == wanted or not gaps_known):
                starts = ((n, (n - 1 + more) * (total // (n + more)) + offset) for n in range(steps + 1, total))
                return next((n for n, first in starts if window[0] <= first <= window[1]), None)
    return None


def _finding(code: str, sentence: str, remedy: str = "", level: str = "ok") -> Finding:
    return Finding(code, TITLES[code], sentence, remedy, level)
