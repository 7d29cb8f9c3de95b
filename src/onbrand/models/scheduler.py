"""Any diffusers scheduler, read live: which abar, which first timestep, and how a start enters it."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor

from onbrand.core.findings import NEAR
from onbrand.core.offset import x_init
from onbrand.core.process import PREDICTION_TYPES
from onbrand.errors import OnbrandError
from onbrand.models.weights import read_config

VANISHING = 1e-6
"""An abar below this at the first step (zero terminal SNR: 0, or 2^-24 in some classes) leaves x_start no weight."""

NEAR_ZERO = 1e-4
"""Where a rescaled schedule ends at the latest; Stable Diffusion's own ends at .0047."""


@dataclass(frozen=True)
class Schedule:
    """A noise schedule as one inference run uses it."""

    abars: Tensor
    """`(T,)` float32: the training schedule's alphas_cumprod."""
    timesteps: list[float]
    """Every timestep the network is called at, in order, noisiest first; without a number of steps, all of T-1..0."""
    first: float
    """The timestep of the first network call, in training timesteps; not always whole (Karras sigmas)."""
    abar: float
    """The first call's alpha_bar, in [0, 1): from the live sigmas where the scheduler has them."""
    prediction_type: str
    """"epsilon", "v_prediction" or "sample"."""
    init_noise_sigma: float
    """What a pipeline multiplies `latents=` by."""
    name: str
    """The scheduler's class name."""

    def inside(self, window: tuple[float, float]) -> list[float]:
        """The inference timesteps that lie in `window` = (first, last), both included; each once, noisiest first."""
        first, last = window
        timesteps = [t for t in self.timesteps if first - NEAR < t < last + NEAR]
        return list(dict.fromkeys(timesteps))


def read_scheduler(scheduler: Any, steps: int | None = None) -> Schedule:
    """What `scheduler` does in `steps` inference steps. The scheduler is copied, never changed.

    Without `steps`: the training schedule, noisiest timestep first. OnbrandError, with the reason, for a scheduler
    that x_start cannot enter by docs/concepts/method.md, section 9: flow matching, not variance-preserving, run
    backwards.
    """
    _refuse(scheduler)
    abars = scheduler.alphas_cumprod.detach().to("cpu", torch.float32)
    name, prediction_type = type(scheduler).__name__, str(scheduler.config["prediction_type"])
    if steps is None:
        every = [float(t) for t in reversed(range(len(abars)))]
        return Schedule(
            abars, every, every[0], float(abars[-1]), prediction_type, float(scheduler.init_noise_sigma), name
        )
    return schedule_of(set_steps(scheduler, steps))


def schedule_of(live: Any) -> Schedule:
    """The Schedule of a scheduler already set (`set_steps`)."""
    timesteps = [float(t) for t in live.timesteps]
    abars = live.alphas_cumprod.detach().to("cpu", torch.float32)
    prediction_type = str(live.config["prediction_type"])
    sigma = float(live.init_noise_sigma)
    return Schedule(abars, timesteps, timesteps[0], scales(live)[1], prediction_type, sigma, type(live).__name__)


def set_steps(scheduler: Any, steps: int) -> Any:
    """A copy of `scheduler`, on the CPU, set to `steps` inference steps as a pipeline sets it.

    OnbrandError for one that `read_scheduler` refuses, and for a number of steps the scheduler cannot take.
    """
    _refuse(scheduler)
    live = copy.copy(scheduler)  # set_timesteps replaces what it sets
    live.alphas_cumprod = live.alphas_cumprod.cpu()
    if not 1 <= steps <= len(live.alphas_cumprod):
        raise OnbrandError("scheduler", f"num_inference_steps must lie in 1..{len(live.alphas_cumprod)}, got {steps}")
    try:
        live.set_timesteps(steps)
    except (ValueError, IndexError, AssertionError) as error:
        raise OnbrandError(
            "scheduler",
            f"{type(live).__name__} cannot run {steps} inference steps ({error}): take another num_inference_steps",
        ) from error
    last = len(live.alphas_cumprod) - 1
    if not 0 <= float(live.timesteps.min()) <= float(live.timesteps.max()) <= last:
        raise OnbrandError(
            "scheduler",
            f"{type(live).__name__} would begin {steps} inference steps at timestep {float(live.timesteps.max()):g}; "
            f"its noise schedule ends at {last}: take a smaller num_inference_steps, or timestep_spacing trailing",
        )
    if float(live.timesteps[0]) < float(live.timesteps[-1]):
        raise OnbrandError(
            "scheduler", f"{type(live).__name__} runs from the image to the noise: a start has no place in it"
        )
    return live


def scales(live: Any) -> tuple[float, float]:
    """(scale, abar) at the first timestep of a scheduler already set: x_init there is `scale` times Eq. 8's.

    Both are asked of the scheduler's own `add_noise`, so that they hold for classes that keep alphas and for those
    that keep sigmas: add_noise(x0, eps) = a x0 + b eps; scale = |(a, b)|, 1 or sqrt(1 + sigma^2); abar = (a / scale)^2.
    OnbrandError if what the network then sees is not variance-preserving.
    """
    one, zero = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    first = live.timesteps[:1]
    a = float(live.add_noise(one, zero, first))
    b = float(live.add_noise(zero, one, first))
    scale = math.hypot(a, b)
    counter = copy.copy(live)  # which counts its steps
    spread = scale * float(counter.scale_model_input(one, first[0]) if hasattr(counter, "scale_model_input") else one)
    if not math.isclose(spread, 1.0, abs_tol=1e-4):
        name = type(live).__name__
        raise OnbrandError(
            "scheduler", f"{name} is not variance-preserving: its network sees noise of scale {spread:.4f}"
        )
    return scale, (a / scale) ** 2


def latents_for(live: Any, x_start: Tensor, noise: Tensor, abar: float | None = None) -> Tensor:
    """The `latents=` that start a pipeline from x_start (B, C, H, W) and noise of its shape: Eq. 8, float32.

    `live`: a scheduler already set (`set_steps`). A pipeline multiplies the result by init_noise_sigma. With `abar`,
    Eq. 8 with that alpha instead of the first timestep's own (the paper's literal alpha_T).
    """
    x_start, noise = x_start.float(), noise.float()
    latents: Tensor
    if abar is None:
        latents = live.add_noise(x_start, noise, live.timesteps[:1])
    else:
        latents = scales(live)[0] * x_init(x_start, noise, abar)
    return latents / float(live.init_noise_sigma)


def suggest(scheduler: Any, first: float, last: float | None = None, steps: int = 20) -> str:
    """Which number of steps (nearest to `steps`) or spacing starts in [first, last] (last: T-1 if not given).

    A phrase for an error's remedy, as "num_inference_steps 25, or timestep_spacing trailing".
    """
    length = len(scheduler.alphas_cumprod)
    last = length - 1 if last is None else last

    def starts_inside(candidate: Any, number: int) -> bool:
        try:
            start = float(set_steps(candidate, number).timesteps[0])
        except ValueError:
            return False
        return first - NEAR < start < last + NEAR

    numbers = sorted(range(1, min(length, 100) + 1), key=lambda number: abs(number - steps))
    remedies = []
    number = next((n for n in numbers if starts_inside(scheduler, n)), None)
    if number is not None:
        remedies.append(f"num_inference_steps {number}")
    if "timestep_spacing" in scheduler.config:
        others = (s for s in ("trailing", "linspace", "leading") if s != scheduler.config["timestep_spacing"])
        candidates = [with_options(scheduler, spacing=spacing) for spacing in others]
        spacing = next((other for other in candidates if starts_inside(other, steps)), None)
        if spacing is not None:
            remedies.append(f"timestep_spacing {spacing.config['timestep_spacing']}")
    if scheduler.config.get("use_karras_sigmas") and starts_inside(with_options(scheduler, karras=False), steps):
        remedies.append("use_karras_sigmas False")
    if not remedies:
        return "another scheduler, as DDIMScheduler: none of this one's numbers of steps and spacings starts there"
    return ", or ".join(remedies)


def _refuse(scheduler: Any) -> None:
    """Raise OnbrandError, with the reason, for a scheduler that a start cannot enter."""
    name, config = type(scheduler).__name__, scheduler.config
    prediction_type = config.get("prediction_type", "epsilon")
    if "Flow" in name or config.get("use_flow_sigmas") or prediction_type == "flow_prediction":
        raise OnbrandError(
            "scheduler",
            f"{name} is flow matching: it starts at sigma exactly 1, where x_start has weight 0 and no effect. "
            "Take an epsilon or v-prediction model",
        )
    options = inspect.signature(type(scheduler)).parameters  # a config keeps what other classes take
    continuous = "timestep_type" in options and config.get("timestep_type") == "continuous"
    if name.startswith("EDM") or continuous:
        raise OnbrandError(
            "scheduler",
            f"{name}{' with timestep_type continuous' if continuous else ''} is not variance-preserving (EDM's sigma "
            "scale): it has no alpha_bar for x_start to enter by. If the weights were trained with one, take scheduler "
            f"DDIMScheduler{', or timestep_type discrete' if continuous else ''}; else another model",
        )
    if not isinstance(getattr(scheduler, "alphas_cumprod", None), Tensor) or not hasattr(scheduler, "add_noise"):
        raise OnbrandError(
            "scheduler",
            f"{name} is not variance-preserving (no alphas_cumprod): Eq. 8 does not hold for it. "
            "Take a scheduler among the model's compatibles, as DDIMScheduler",
        )
    if config.get("rescale_betas_zero_snr") and float(scheduler.alphas_cumprod[-1]) > NEAR_ZERO:
        raise OnbrandError(
            "scheduler",
            f"the configuration of this {name} says zero terminal SNR (rescale_betas_zero_snr), and its alphas_cumprod "
            f"end at {float(scheduler.alphas_cumprod[-1]):.2g}: make it anew, {name}.from_config(scheduler.config), or "
            "take scheduler DDIMScheduler or EulerDiscreteScheduler, which know it",
        )
    if prediction_type not in PREDICTION_TYPES:
        raise OnbrandError(
            "scheduler",
            f"prediction_type must be one of {', '.join(PREDICTION_TYPES)}, got {prediction_type!r} in {name}",
        )


def with_options(
    scheduler: Any, name: str | None = None, spacing: str | None = None, karras: bool | None = None
) -> Any:
    """A new scheduler of class `name` (as "DPMSolverMultistepScheduler"; the same class if None), made from
    `scheduler`'s config, with this timestep spacing ("leading" | "trailing" | "linspace") and Karras sigmas.

    None keeps what the config spells out; what it does not becomes the new class's default, as in diffusers'
    `from_config` (SD1.5's config names no spacing: leading in PNDM and DDIM, linspace in DPM-Solver++).
    OnbrandError for an unknown class, an option the class does not take, and a class that cannot follow this model's
    noise schedule (zero terminal SNR in one that has no `rescale_betas_zero_snr`).
    """
    if name is not None and "torchsde" in getattr(getattr(diffusers, name, None), "_backends", ()):
        raise OnbrandError(
            "scheduler", f"{name} needs the package torchsde, which is not installed: pip install torchsde"
        )
    target = type(scheduler) if name is None else _class(name, getattr(scheduler, "compatibles", []))
    options: dict[str, Any] = {}
    if spacing is not None:
        if spacing not in ("leading", "trailing", "linspace"):
            raise OnbrandError("scheduler", f"timestep_spacing must be leading, trailing or linspace, got {spacing!r}")
        options["timestep_spacing"] = spacing
    if karras is not None:
        options["use_karras_sigmas"] = karras
    for option, value in options.items():
        if option not in inspect.signature(target).parameters:
            raise OnbrandError("scheduler", f"{target.__name__} takes no {option} (asked for {value!r}): leave it out")
    new = target.from_config(scheduler.config, **options)
    abars = getattr(new, "alphas_cumprod", None)
    if abars is not None and hasattr(scheduler, "alphas_cumprod"):
        old = scheduler.alphas_cumprod.to(abars)
        if old.shape != abars.shape or not torch.allclose(old, abars, atol=1e-5):
            raise OnbrandError(
                "scheduler",
                f"{target.__name__} cannot follow this model's noise schedule (of {type(scheduler).__name__}): "
                "its alphas_cumprod differ; take a class with the same options, as rescale_betas_zero_snr",
            )
    return new


def with_zero_snr(scheduler: Any) -> Any:
    """A scheduler like this one whose noise schedule ends in zero SNR (Lin et al. 2023, arXiv 2305.08891).

    OnbrandError if its class has no `rescale_betas_zero_snr`.
    """
    if "rescale_betas_zero_snr" not in inspect.signature(type(scheduler)).parameters:
        raise OnbrandError(
            "scheduler", f"{type(scheduler).__name__} has no rescale_betas_zero_snr: take a model with DDIM"
        )
    return type(scheduler).from_config(scheduler.config, rescale_betas_zero_snr=True)


def with_terminal(scheduler: Any, abar: float) -> Any:
    """A scheduler like this one whose abar ends at `abar` in (0, 1), sqrt(abar) rescaled linearly, its first one kept
    (Lin et al. 2023's rescaling with another end: the paper's smaller alpha_T). OnbrandError for another abar."""
    if not 0 < abar < 1:
        raise OnbrandError(
            "scheduler", f"the last abar lies in (0, 1): got {abar}; for 0 take the schedule of zero terminal SNR"
        )
    root = scheduler.alphas_cumprod.double().sqrt()
    roots = root[0] + (root - root[0]) * (root[0] - abar**0.5) / (root[0] - root[-1])
    new = roots.square()
    betas = 1 - new / torch.cat([torch.ones(1, dtype=torch.float64), new[:-1]])
    return type(scheduler).from_config(scheduler.config, trained_betas=betas.tolist())


def with_prediction(scheduler: Any, prediction_type: str, spacing: str) -> Any:
    """A scheduler like this one for a network that predicts something else, its timesteps spaced otherwise."""
    options = {"prediction_type": prediction_type, "timestep_spacing": spacing}
    return type(scheduler).from_config(scheduler.config, **options)


def marked(scheduler: Any, names: Container[str]) -> Any:
    """The scheduler of a checkpoint in one file: what its empty tensors v_pred and ztsnr say of its training holds, as
    in ComfyUI and Forge, over what its configuration says; diffusers reads neither. names: of its tensors."""
    options: dict[str, Any] = {"prediction_type": "v_prediction"} if "v_pred" in names else {}
    if "ztsnr" in names:
        options |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return type(scheduler).from_config(scheduler.config, **options) if options else scheduler


def open_scheduler(model: Path) -> Any:
    """The scheduler of a model's folder in diffusers' layout."""
    config = read_config(model / "scheduler" / "scheduler_config.json", "scheduler")
    return _class(str(config.get("_class_name"))).from_config(config)


def restore(record: Mapping[str, Any]) -> Any:
    """The scheduler whose class is record["class"] and whose config is the rest of `record`."""
    return _class(record["class"]).from_config({key: value for key, value in record.items() if key != "class"})


def _class(name: str, others: Sequence[type] = ()) -> Any:
    """Diffusers' scheduler class `name`; OnbrandError, listing those `known`, if there is none."""
    target = getattr(diffusers, name, None)
    if not isinstance(target, type) or not issubclass(target, diffusers.SchedulerMixin):
        names = ", ".join(sorted(other.__name__ for other in others)) or "another"
        raise OnbrandError(
            "scheduler", f"no scheduler class {name!r} in diffusers {diffusers.__version__}: take {names}"
        )
    return target
