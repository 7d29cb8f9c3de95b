"""Methods by name, as "mean-constant:300/text+handoff@few": how weights come about, and how pictures start."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from onbrand.options.generate import GenerateConfig
from onbrand.options.train import (
    ATTENTION,
    LINEAR,
    RESIDUAL,
    ControlNetConfig,
    EngineConfig,
    LogConfig,
    LoraConfig,
    LossConfig,
    OptimConfig,
    Precision,
    TrainConfig,
)

SCHEDULES = ("zero-snr", "small-alpha", "v")
"""Changes of the scheduler that a training starts with: zero terminal SNR with v-prediction and trailing spacing (Lin
et al. 2023), the paper's smaller alpha_T, abar_T = 1 / d (its supplementary), v-prediction with trailing spacing."""
PLAIN = {"offset": "none", "gain": "window"}
TRAININGS: dict[str, tuple[str, dict[str, Any]]] = {
    "stock": ("no training", {}),
    "plain": ("plain training", PLAIN),
    "offset-noise": ("offset noise .1", PLAIN | {"noise_offset": 0.1}),
    "zero-snr": ("zero terminal SNR, v-prediction", PLAIN),
    "small-alpha": ("smaller alpha_T", PLAIN),
}
"""Name -> its words and its settings, of trainings without a start; with one: mean-window, text-constant, pca3-window,
pca3-sampled-window and so on."""
OFFSET = re.compile(r"(mean|zero|text|pca([1-9]\d*)(-sampled)?)-(window|constant)")
START = re.compile(r"(noise|mean|zero|text|pca|image|leak)([1-9]\d*)?(-rr|-cca|-dct)?(?:-(few[1-9]\d*))?")
PRIORS = {"zero": "zero", "text-rr": "reduced-rank", "text-cca": "cca", "leak": "leak", "leak-dct": "leak-dct"}
"""Starts that have a prior of their own, fitted to the same latents -> its name; mean-few50, text-few50 have few50."""
START_WORDS = {
    "noise": "noise", "mean": "class mean", "text": "mean given the text", "pca": "PCA draw", "image": "own latent",
    "zero": "x_start = 0", "text-rr": "mean given the text, reduced rank", "text-cca": "mean given the text, CCA",
    "leak": "signal leak, per element", "leak-dct": "signal leak, low frequencies",
}  # fmt: skip
SOLVERS = {
    "ddim": "DDIMScheduler", "dpm2m": "DPMSolverMultistepScheduler", "unipc": "UniPCMultistepScheduler",
    "euler": "EulerDiscreteScheduler", "eulera": "EulerAncestralDiscreteScheduler",
}  # fmt: skip
TARGETS = {"": (*ATTENTION, *LINEAR, *RESIDUAL), "-linear": (*ATTENTION, *LINEAR), "-attention": ATTENTION}
"""Which of the UNet's layers a LoRA has."""
SPACINGS = ("leading", "trailing", "linspace")
USUAL = (
    "stock/noise,stock/mean,stock/text+zeromean+look1,plain/noise,plain/mean,plain/mean+zeromean+look2,"
    "plain/text+zeromean+look1,mean-window/mean,mean-constant/mean,text-constant/text+zeromean"
)
"""What is compared where nothing is asked for: without training, as usual, by the paper, by ours."""


@dataclass(frozen=True)
class CompareConfig:
    """What all methods of a comparison share.

    Attributes:
        fine_tuning: optimiser steps of a training (a name's `:300` says another number)
        batch: pictures a step
        lr: learning rate after a warm-up of a twentieth of the steps, at most 50
        ema: decay of the running mean of the weights; null: the last weights
        dropout: share of captions dropped in training, for guidance
        precision: of training's arithmetic, as for `train`
        sampling: inference steps (a name's `+8` says another number)
        guidance: classifier-free guidance scale (`+g3`)
        at_a_time: pictures made at a time
    """

    fine_tuning: int = 1000
    batch: int = 16
    lr: float = 1e-5
    ema: float | None = None
    dropout: float = 0.1
    precision: Precision = "auto"
    sampling: int = 20
    guidance: float = 7.5
    at_a_time: int = 8


@dataclass(frozen=True)
class Training:
    """How a method's weights come about."""

    name: str
    """As it is written, options and all."""
    base: str
    """Without options but v; "stock": no training."""
    words: str
    """For people."""
    config: TrainConfig | None
    """None: no training."""
    prior: str = ""
    """Name of the prior that it is trained with; "": the brand's."""

    @property
    def schedule(self) -> str:
        """The change of scheduler that it starts with (SCHEDULES), or nothing."""
        return "v" if self.base.endswith("-v") else self.base if self.base in SCHEDULES else ""


@dataclass(frozen=True)
class Method:
    """One line of a comparison."""

    name: str
    training: Training
    start: GenerateConfig
    words: str
    """How pictures start, for people."""
    prior: str = ""
    """Name of the prior that it starts from; "": the brand's."""
    pasted: bool = False
    """The ground is replaced afterwards."""
    requests: str = ""
    """Name of the set of requests; "": the prompts."""


def read_method(name: str, config: CompareConfig) -> Method:
    """The method called TRAINING[:option...]/START[+option...][@set]; ValueError, saying what there is, for others.

    Training options: a number of steps, `seed1`, `t999` (first timestep), `v` (v-prediction, trailing spacing),
    `lora8` (a LoRA of that rank instead of the whole UNet), `lora8-linear`, `lora8-attention` (in these layers alone),
    `controlnet` (one, and the UNet with it), `lr0.003` (learning rate). Start options: handoff, drawn
    (what the text leaves open too), zeromean (noise without its mean), look1 (a look ahead), unprojected (all that a
    look shows kept), literal (the paper's alpha_T), pasted (the ground replaced), overlay (control pictures laid over),
    a number of inference steps, a solver (ddim, dpm2m, unipc, euler, eulera), a spacing, `g3` (guidance), `eta1`
    (DDIM's fresh noise).
    """
    body, _, requests = name.partition("@")
    made, slash, begun = body.partition("/")
    if not slash:
        raise _wrong(name, "a method is TRAINING/START")
    training = read_training(made, config, name)
    kind, *options = begun.split("+")
    found = START.fullmatch(kind)
    base = found and found[1] + (found[3] or "")
    known = found and base in START_WORDS and (not found[2] or found[1] in ("pca", "image"))
    if not found or not known or (found[4] and base not in ("mean", "text", "pca")):
        raise _wrong(name, f"a start is one of {', '.join(START_WORDS)}, pca3, image3, mean-few50, text-few50; got "
                     f"{kind!r}")  # fmt: skip
    plain: Any = {"leak": "pca", "zero": "mean"}.get(found[1], found[1])
    start = GenerateConfig(
        start=plain, k=int(found[2]) if found[2] else None, steps=config.sampling, guidance=config.guidance,
        batch=config.at_a_time, zero_mean=False, look_ahead=0,
    )  # fmt: skip
    words = [START_WORDS[str(base)] + (f", {found[2]} components" if found[2] else "")]
    words += [f"prior of {found[4][3:]} photos a class"] if found[4] else []
    pasted = False
    for option in options:
        change, said = _start_option(option, name)
        pasted = pasted or option == "pasted"
        start, words = replace(start, **change), [*words, said]
    if start.overlay and training.config and training.config.method != "controlnet":
        raise _wrong(name, "what was given is laid over a ControlNet's pictures: train with :controlnet")
    prior = found[4] or PRIORS.get(str(base), "")
    return Method(name, training, start, ", ".join(words), prior, pasted, requests)


def read_training(made: str, config: CompareConfig, name: str) -> Training:
    """The training called `made`, of the method `name`."""
    base, *options = made.split(":")
    offset = OFFSET.fullmatch(base)
    settings: dict[str, Any] = {}
    if offset:
        kind, k, sampled, gain = offset.groups()
        settings |= {"offset": "pca" if k else kind.replace("zero", "mean"), "gain": gain} | (
            {"k": int(k)} if k else {}
        )
        settings |= {"draw": "sampled"} if sampled else {}
        words = f"{kind.removesuffix('-sampled')} offset{', drawn anew' if sampled else ''}, "
        words += "window (the paper)" if gain == "window" else "constant gain (ours)"
    elif base in TRAININGS:
        words, fixed = TRAININGS[base]
        settings |= fixed
    else:
        raise _wrong(name, f"a training is one of {', '.join(TRAININGS)}, mean-window, mean-constant, text-..., "
                     f"pca3-..., pca3-sampled-...; got {base!r}")  # fmt: skip
    rule = "a training's options are steps, as :300, :seed1, :t999, :lora8, :controlnet, :lr0.003, :v"
    if base == "stock":
        if options:
            raise _wrong(name, f"{rule}; got {options[0]!r}")
        return Training(made, base, words, None)
    changes: dict[str, Any] = {}
    taught_v, rate = "v" in options, config.lr
    for option in options:
        low_rank = re.fullmatch(r"lora(\d+)(-linear|-attention)?", option)
        number = re.fullmatch(r"(seed|t)?(\d+)", option)
        if (low_rank or option == "controlnet") and "method" in settings:
            raise _wrong(name, f"one thing learns; got {option!r} beside {settings['method']!r}")
        if option == "v":
            words += ", v-prediction"
        elif re.fullmatch(r"lr\d*\.\d+", option):
            rate = float(option[2:])
            words += f", learning rate {rate:g}"
        elif option == "controlnet":
            settings |= {"method": "controlnet", "controlnet": ControlNetConfig(unet=True)}
            words += ", with a ControlNet"
        elif low_rank:
            rank, where = low_rank[1], low_rank[2] or ""
            settings |= {"method": "lora", "lora": LoraConfig(rank=int(rank), targets=TARGETS[where])}
            words += f", LoRA of rank {rank}{where and f', {where[1:]} layers'}"
        elif number:
            kind, count = number[1], number[2]
            changes[{None: "steps", "seed": "seed", "t": "first"}[kind]] = int(count)
            words += {None: f", {count} steps", "seed": f", seed {count}", "t": f", from t = {count}"}[kind]
        else:
            raise _wrong(name, f"{rule}; got {option!r}")
    steps = changes.get("steps", config.fine_tuning)
    noise = settings.pop("noise_offset", 0.0)
    taught = TrainConfig(
        **settings, **{"steps": steps, **changes}, batch=config.batch,
        loss=LossConfig(dropout=config.dropout, noise_offset=noise), engine=EngineConfig(precision=config.precision),
        optim=OptimConfig(lr=rate, ema=config.ema, schedule="constant_with_warmup",
                          warmup=min(50, config.fine_tuning // 20)),
        log=LogConfig(checkpoint_every=100, keep=1),
    )  # fmt: skip
    base += "-v" if taught_v else ""
    return Training(made, base, words, taught, "zero" if base.startswith("zero-") and offset else "")


def _start_option(option: str, name: str) -> tuple[dict[str, Any], str]:
    """The settings that one option of a start changes, and its words."""
    if option == "pasted":
        return {}, "ground replaced"
    if option == "zeromean":
        return {"zero_mean": True}, "noise of zero mean"
    if option == "handoff":
        return {"handoff": True}, "exact hand-off"
    if option == "drawn":
        return {"residual": True}, "rest drawn"
    if option == "overlay":
        return {"overlay": True}, "what was given laid over"
    if option == "literal":
        return {"literal": True}, "alpha_T of the formula"
    if option in SOLVERS:
        return {"scheduler": SOLVERS[option]}, option
    if option == "unprojected":
        return {"look_ahead_projection": False}, "all of the look kept"
    if found := re.fullmatch(r"look([1-9]\d*)", option):
        return {"look_ahead": int(found[1])}, f"{found[1]} look{'s' if int(found[1]) > 1 else ''} ahead"
    if option in SPACINGS:
        return {"spacing": option}, option
    if option.isdigit() and int(option):
        return {"steps": int(option)}, f"{option} steps"
    if re.fullmatch(r"g\d+(\.\d+)?", option):
        return {"guidance": float(option[1:])}, f"guidance {option[1:]}"
    if re.fullmatch(r"eta(0?\.\d+|1)", option):
        return {"eta": float(option[3:])}, f"eta {option[3:]}"
    raise _wrong(name, "a start's options are handoff, drawn, zeromean, look1, unprojected, literal, pasted, overlay, "
                 f"a number of steps, {', '.join((*SOLVERS, *SPACINGS))}, g3, eta1; got {option!r}")  # fmt: skip


def _wrong(name: str, rule: str) -> ValueError:
    return ValueError(f"method {name!r}: {rule}")
