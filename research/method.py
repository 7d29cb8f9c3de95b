"""The numbers and figures of docs/concepts/method.md, from the project's own functions and diffusers' schedulers.

    python research/method.py     rewrites the tables between the page's markers and docs/images/method-*.png

An ideal network in one Gaussian mode: text gives m = mu + N(0, vm), x0 = m + N(0, lc), and the network answers
E[x0 | x_t, text] for the states that it was trained on. Every state is linear in 1, m - mu, eps and all draws, so it
is carried as their coefficients; mean, variance and slope are exact, nothing is sampled.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import torch
from diffusers import DDIMScheduler, PNDMScheduler
from torch import Tensor

from onbrand.core import add_noise, constant, estimate, handoff, matched_noise, target, window, x_init
from onbrand.models.scheduler import read_scheduler, with_options
from onbrand.reporting.figures import COLOURS, INK, LINE, SOFT
from onbrand.sampling.stochastic import match

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

plt.rcParams |= {"axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10, "axes.labelsize": 8.5,
                 "xtick.labelsize": 8.5, "ytick.labelsize": 8.5}  # fmt: skip

DOCS = Path(__file__).parents[1] / "docs"
SD = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, set_alpha_to_one=False)
FIRST, WINDOW = 951, 950
"""Where 20 leading steps start; the paper's T - S."""
MODES = {"white background": (110.0, 300.0, 300.0), "brightness": (27.0, 400.0, 950.0)}
"""(mu, vm, lc): the mean, the variance that text explains, the variance that it leaves."""
ONE, TEXT, EPS, DRAW, *FRESH = torch.eye(4 + 20, dtype=torch.float64)
"""What a state is made of: 1, m - mu, eps, the start's own draw, and a random sampler's in each of 20 steps."""
X0, START, NOISE = torch.eye(3)


@dataclass(frozen=True)
class Method:
    """How a network was trained and how its images start."""

    name: str
    start: str = "mean"
    """noise, mean, pca (a draw of the class), text (a draw given the text) or m (the mean given the text)."""
    gain: Callable[[Tensor, float], Tensor] | None = None
    trained: int = FIRST
    hand: bool = False
    drawing: str = ""
    """How DDIM with eta 1 draws: as it comes, or matched (`onbrand.matched_steps`); empty: eta 0."""
    steps: int = 20
    offset_noise: float = 0.0
    looks: int = 0
    """Evaluations before sampling, each under noise of its own (generate/look.py)."""
    options: dict[str, Any] = field(default_factory=dict)


METHODS = (
    Method("standard, pure noise", "noise"),
    Method("class mean, no training"),
    Method("class PCA draw, no training", "pca"),
    Method("mean given the text, no training", "m"),
    Method("draw given the text, no training", "text"),
    Method("mean offset, window (the paper)", gain=window, trained=WINDOW),
    Method("the same + exact hand-off", gain=window, trained=WINDOW, hand=True),
    Method("mean offset, constant gain", gain=constant),
    Method("the same, eta 1, sampling noise unmatched", gain=constant, drawing="as it comes"),
    Method("the same, eta 1, sampling noise matched", gain=constant, drawing="matched"),
    Method("text offset, constant gain", "m", constant),
    Method("offset noise 0.1, pure noise", "noise", offset_noise=0.1),
    Method("zero terminal SNR, trailing", "noise", options=dict(
        rescale_betas_zero_snr=True, timestep_spacing="trailing", prediction_type="v_prediction")),
)  # fmt: skip
AWAY = ((FIRST, 20, "leading"), (FIRST, 50, "leading"), (FIRST, 20, "trailing"), (999, 20, "leading"),
        (999, 20, "trailing"), (999, 100, "trailing"), (999, 1000, "trailing"))  # fmt: skip
"""Constant gains: trained for, steps, spacing."""
MULTISTEP = "DPMSolverMultistep UniPCMultistep DEISMultistep"
STARTS = {"DDIM, PNDM, DDPM, Euler; leading": ("DDIM PNDM DDPM EulerDiscrete", "leading", None),
          "DPM++ 2M, UniPC, DEIS; leading": (MULTISTEP, "leading", None),
          "the same, Karras sigmas": (MULTISTEP, "leading", True),
          "DDIM, Euler, DPM++ 2M; trailing": ("DDIM EulerDiscrete DPMSolverMultistep", "trailing", None)}  # fmt: skip


def schedule(steps: int = 20, **options: Any) -> DDIMScheduler:
    """SD's DDIM, its alphas in float64; the last step ends at abar_0, as SD's does."""
    scheduler = DDIMScheduler(clip_sample=False, **SD, **options)
    scheduler.set_timesteps(steps)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    return scheduler


GAINS = {"window (the paper)": window(schedule(), WINDOW), "constant gain": constant(schedule(), FIRST)}


def state(abar: float, gain: float) -> Tensor:
    """What training shows at abar: the coefficients of x0, x_start and eps in x_t, `(3,)`."""
    return add_noise(X0, matched_noise(NOISE, X0, START, gain), abar)


def propagate(method: Method, mode: tuple[float, float, float]) -> tuple[float, float, float]:
    """Share kept of the mean, variance ratio, text slope, of the images that an ideal network ends on."""
    mu, vm, lc = mode
    m = mu * ONE + TEXT
    scheduler = schedule(method.steps, **method.options)
    abars, kind = scheduler.alphas_cumprod, scheduler.config.prediction_type
    gains = method.gain(scheduler, method.trained) if method.gain else torch.zeros(len(abars))
    spread = 1 + method.offset_noise**2 * 64 * 64
    x_start = {"noise": 0 * ONE, "mean": mu * ONE, "pca": mu * ONE + math.sqrt(vm + lc) * DRAW,
               "text": m + math.sqrt(lc) * DRAW, "m": m}[method.start]  # fmt: skip
    first, second = scheduler.timesteps[:2].tolist()
    for drawn in FRESH[: method.looks]:
        x = x_init(x_start, drawn, float(abars[first]))
        x_start = m + trust(lc, float(abars[first])) / math.sqrt(abars[first]) * (x - math.sqrt(abars[first]) * m)
    x = EPS if method.start == "noise" else x_init(x_start, EPS, float(abars[first]))
    draws, stepper = iter(FRESH), match(scheduler, x, EPS) if method.drawing == "matched" else scheduler
    for t in scheduler.timesteps.tolist():
        abar = float(abars[t])
        c, k, _ = state(abar, float(gains[t])).double()
        x0_hat = m + c * lc / (c**2 * lc + (1 - abar) * spread) * (x - c * m - k * x_start)
        output = target(kind, x0_hat, estimate("sample", x0_hat, x, abar)[1], abar)
        fresh = {"eta": 1.0, "variance_noise": next(draws)} if method.drawing else {}
        after = stepper.step(output, t, x, **fresh).prev_sample
        if method.hand and t == first:
            after = handoff(x, after, EPS, abar, float(abars[second])).double()
        x = after
    variance = x[1] ** 2 * vm + x[2:].square().sum()
    return float(x[0]) / mu, float(variance) / (vm + lc), float(x[1])


def trust(lc: float, abar: float) -> float:
    """q^2: how much of what stands in the first state an ideal network believes, in the direction of x0."""
    return abar * lc / (abar * lc + 1 - abar)


def carried() -> dict[int, Tensor]:
    """The coefficients that DDIM's state holds at each of 20 timesteps when every x0_hat is x0, by scheduler.step."""
    scheduler = schedule()
    abars, found = scheduler.alphas_cumprod, {}
    x = x_init(START, NOISE, float(abars[FIRST]))
    for t in scheduler.timesteps.tolist():
        found[t] = x
        x = scheduler.step(estimate("sample", X0, x, float(abars[t]))[1], t, x, eta=0.0).prev_sample
    return found


def number(value: float, digits: int = 3) -> str:
    """As .171, 1.000."""
    return f"{value:.{digits}f}".removeprefix("0")


def rows(head: str, *cells: list[str]) -> str:
    """A Markdown table, numbers to the right of the first column."""
    rule = "|".join(["---", *["--:"] * (head.count("|") - 2)])
    return "\n".join([head.replace(" | ", "|"), f"|{rule}|", *("|" + "|".join(line) + "|" for line in cells)])


def ideal_table() -> str:
    head = "| method | " + " | ".join(f"{name}: mean | variance | text" for name in MODES) + " |"
    return rows(head, *([m.name, *(number(v) for mode in MODES.values() for v in propagate(m, mode))] for m in METHODS))


def away_table() -> str:
    head, lines = "| trained for | run from | steps | " + " | ".join(f"{n}: variance | text" for n in MODES) + " |", []
    for trained, steps, spacing in AWAY:
        method = Method("", gain=constant, trained=trained, steps=steps, options={"timestep_spacing": spacing})
        first = int(schedule(steps, timestep_spacing=spacing).timesteps[0])
        scores = [number(v) for mode in MODES.values() for v in propagate(method, mode)[1:]]
        lines.append([str(trained), str(first), str(steps), *scores])
    return rows(head, *lines)


def step_table() -> str:
    """The state after DDIM's first step beside what each training shows there."""
    held, abars = carried(), schedule().alphas_cumprod
    t = list(held)[1]
    names = (f"DDIM delivers, at {t}", "the window's training showed", "the constant gain's training shows")
    states = (held[t], *(state(float(abars[t]), float(gain[t])) for gain in GAINS.values()))
    head = r"| coefficient of | $x_0$ | $x_\text{start}$ | $\epsilon$ |"
    return rows(head, *([name, *(number(float(v), 4) for v in x)] for name, x in zip(names, states, strict=True)))


def starts_table(numbers: tuple[int, ...] = (10, 20, 30, 50)) -> str:
    """The first timestep of schedulers made from SD 1.5's; bold in the paper's window, with the steps in it."""
    lines, base = [], PNDMScheduler(skip_prk_steps=True, **SD)
    for title, (names, spacing, karras) in STARTS.items():
        line = [title]
        for n in numbers:
            made = (
                read_scheduler(with_options(base, f"{name}Scheduler", spacing, karras), n) for name in names.split()
            )
            (first, inside), *others = {(round(s.first), len(s.inside((WINDOW, 999)))) for s in made}
            if others:
                raise ValueError(f"the schedulers of a row start alike: {title} at {n} steps do not; split the row")
            line.append(f"**{first}**" + f" ({inside} steps)" * (inside > 1) if inside else str(first))
        lines.append(line)
    return rows("| first timestep | " + " | ".join(f"{n} steps" for n in numbers) + " |", *lines)


def looks_table() -> str:
    """From the class mean: the prompt's say and the variance over what the prompt leaves, in theory and in 20 steps."""
    abar, lines = float(schedule().alphas_cumprod[FIRST]), []
    for n in range(5):
        cells = [str(n)]
        for mu, vm, lc in MODES.values():
            q2 = trust(lc, abar)
            drawn = sum(q2 ** (2 * i) for i in range(n)) * (q2 / math.sqrt(abar)) ** 2 * (1 - abar)
            _, variance, text = propagate(Method("", looks=n), (mu, vm, lc))
            left = (variance * (vm + lc) - text**2 * vm) / lc
            cells += [
                number(1 - q2 ** (n + 0.5)),
                number(text),
                number((q2 * drawn + (1 - q2) * lc) / lc),
                number(left),
            ]
        lines.append(cells)
    head = "| looks | " + " | ".join(f"{n}: prompt's say | 20 steps | variance | 20 steps" for n in MODES) + " |"
    return rows(head, *lines)


BLOCKS = {"starts": starts_table, "step": step_table, "away": away_table, "looks": looks_table, "table": ideal_table}


def fill(page: str) -> str:
    """The page with every table between `<!-- name -->` and `<!-- /name -->` made anew."""
    for name, make in BLOCKS.items():
        opened, closed = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        if page.count(opened) != 1 or page.count(closed) != 1:
            raise ValueError(f"the page has the markers of {name} once each: they are missing or doubled")
        before, rest = page.split(opened)
        page = before + opened + make() + "\n" + closed + rest.split(closed)[1]
    return page


def gain_figure(path: Path) -> None:
    """What x_t is made of, by timestep, under each training; dots: what DDIM's state is made of."""
    abars, held, ts = schedule().alphas_cumprod, carried(), range(700, 1000)
    panels = (("$x_0$", (-0.012, 0.29)), (r"$x_{\mathrm{start}}$", (-0.004, 0.102)), (r"$\epsilon$, in all", (0, 1.08)))
    styles = (("#c4c0b6", "-", 5.0, 1), (COLOURS[1], (0, (3, 2)), 1.8, 3), (COLOURS[0], "-", 1.8, 2))
    gains = {"plain training": torch.zeros(1000), **GAINS}
    figure, axes = plt.subplots(1, 3, figsize=(8.4, 3.1), layout="constrained", width_ratios=(1, 1, 0.6))
    for i, (axis, (name, limits)) in enumerate(zip(axes, panels, strict=True)):
        for (label, gain), (colour, dash, width, order) in zip(gains.items(), styles, strict=True):
            shown = torch.stack([state(float(abars[t]), float(gain[t])) for t in ts])[:, i]
            axis.plot(ts, shown, color=colour, linestyle=dash, linewidth=width, zorder=order, label=label)
        dots = {t: float(parts[i]) for t, parts in held.items() if t in ts}
        label = "what DDIM holds, started from $x_{\\mathrm{start}}$"
        axis.plot(*zip(*dots.items(), strict=True), "o", color=INK, markersize=5, zorder=4, label=label)
        axis.axvline(FIRST, color=SOFT, linewidth=0.8, linestyle=":")
        axis.set(title=f"coefficient of {name}", ylim=limits, xlabel="timestep (sampling goes left)")
    note = dict(color=SOFT, fontsize=8.5, ha="right")
    axes[0].text(FIRST - 4, 0.27, "first timestep, 951", **note)
    axes[0].text(889, 0.012, "DDIM after one step", **note)
    axes[0].annotate("", (901, 0.032), (901, 0.115), arrowprops=dict(arrowstyle="->", color=INK))
    save(figure, axes[0], path)


def ideal_figure(path: Path) -> None:
    """The table of ideal networks as dots: one row a method, one panel a score; without random samplers."""
    methods = [m for m in METHODS if not m.drawing]
    scores = torch.tensor([[propagate(m, mode) for mode in MODES.values()] for m in methods])
    styles = (dict(marker="o", markersize=4.5, color=COLOURS[0]),
              dict(marker="s", markersize=9, mfc="none", color=COLOURS[1]))  # fmt: skip
    figure, axes = plt.subplots(1, 3, figsize=(8.4, 3.8), layout="constrained", sharey=True)
    for i, (axis, title) in enumerate(zip(axes, ("share of the mean", "variance ratio", "text slope"), strict=True)):
        axis.axvline(1, color=SOFT, linewidth=0.8, linestyle=":")
        for j, (name, style) in enumerate(zip(MODES, styles, strict=True)):
            axis.plot(scores[:, j, i], range(len(methods)), linestyle="", label=name, **style)
        axis.set(title=title, xlim=(-0.04, 1.08), yticks=range(len(methods)), yticklabels=[m.name for m in methods])
        axis.grid(axis="y", color=LINE, linewidth=0.6)
    axes[0].invert_yaxis()
    save(figure, axes[0], path)


def save(figure: Any, axis: Any, path: Path) -> None:
    """Write the figure, one axis's legend under all panels."""
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.savefig(path, dpi=150, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    page = DOCS / "concepts" / "method.md"
    page.write_text(fill(page.read_text()))
    gain_figure(DOCS / "images" / "method-gain.png")
    ideal_figure(DOCS / "images" / "method-ideal.png")
