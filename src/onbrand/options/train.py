"""What a training run is: nested dataclasses, the paper's numbers but our gain. No torch: flags are read off it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Method = Literal["full", "lora", "controlnet"]
Offset = Literal["mean", "pca", "text", "none"]
Gain = Literal["window", "constant"]
Draw = Literal["projected", "sampled"]
Prediction = Literal["epsilon", "v_prediction"]


Optimizer = Literal["adamw", "adafactor", "prodigy", "adamw8bit"]
Decline = Literal["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"]
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
LINEAR = ("proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")
RESIDUAL = ("conv1", "conv2", "conv_shortcut", "time_emb_proj", "conv")
"""Layers of a UNet by how their names end: of its attention, of its transformer blocks beside, of its other blocks."""


@dataclass(frozen=True)
class LossConfig:
    """What the loss is beside the matched noise.

    Attributes:
        dropout: share of captions replaced by the empty one, for classifier-free guidance, in [0, 1]
        min_snr: gamma of Min-SNR weighting (Hang et al. 2023; 5 is usual); null: plain mean squared error
        noise_offset: strength of "offset noise", another method (0.1 is usual); only with offset none
        input_perturbation: strength of the noise that the network's input has more than its target (Ning et al. 2023;
            0.1 is usual), against errors that add up over the steps of generation
        timesteps: first and last timestep trained, all between as likely; null: all of the model's
    """

    dropout: float = 0.1
    min_snr: float | None = None
    noise_offset: float = 0.0
    input_perturbation: float = 0.0
    timesteps: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        within("loss.dropout", self.dropout, 0, 1)
        within("loss.noise_offset", self.noise_offset, 0, 1)
        within("loss.input_perturbation", self.input_perturbation, 0, 1)
        if self.timesteps is not None and not 0 <= self.timesteps[0] <= self.timesteps[1]:
            raise ValueError(
                "loss.timesteps are the first and the last timestep trained, 0 or more and in this order; got "
                f"{list(self.timesteps)}: swap them, or set null for all"
            )
        if self.min_snr is not None and not self.min_snr > 0:
            raise ValueError(f"loss.min_snr must be above 0, or null for no weighting; got {self.min_snr}")


@dataclass(frozen=True)
class LoraConfig:
    """What learns under method lora: low-rank weights beside the UNet's own, which stay as they are.

    Attributes:
        rank: of the low-rank weights; 4 to 128 are usual, 8 is a tenth of a small UNet's size
        alpha: they count alpha / rank times; null: the rank, that is once
        targets: layers that have them, by how their names end: the attention's alone learn what is asked for, framing
            and kind of picture want the others too
        text_encoder: the text encoder has them too, in its attention; what a start reads in a prompt is still read by
            the text encoder as it was
    """

    rank: int = 8
    alpha: int | None = None
    targets: tuple[str, ...] = (*ATTENTION, *LINEAR, *RESIDUAL)
    text_encoder: bool = False

    def __post_init__(self) -> None:
        at_least("lora.rank", self.rank, 1)
        if self.alpha is not None and not self.alpha > 0:
            raise ValueError(f"lora.alpha must be above 0, or null for the rank; got {self.alpha}")
        if not self.targets:
            raise ValueError("lora.targets must name one layer at least, as to_q; got none")


@dataclass(frozen=True)
class ControlNetConfig:
    """What learns under method controlnet: a network beside the UNet that reads a control picture.

    Attributes:
        unet: the UNet learns too; else it stays as it is, and what is saved works beside other UNets of its kind
    """

    unet: bool = False


@dataclass(frozen=True)
class OptimConfig:
    """The optimiser, its learning rate over the steps, and the running mean of the weights.

    Attributes:
        name: adamw, adafactor (less memory), prodigy (finds its own step size; package prodigyopt) or adamw8bit (less
            memory, on a GPU; package bitsandbytes)
        lr: learning rate after the warm-up; under prodigy a factor of the step that it finds, usually 1
        schedule: how the learning rate goes on after the warm-up (diffusers' names)
        warmup: optimiser steps over which the learning rate rises from 0 (schedule constant has none)
        weight_decay: decoupled decay of the weights
        betas: running means of the gradient and of its square (adafactor: its own)
        eps: term in the denominator (adafactor: its own)
        clip: largest norm of the gradient; null: not clipped
        ema: decay of the running mean of the weights (diffusers' EMAModel; 0.9999 is usual), which then is what is
            saved; null: the last weights are saved
    """

    name: Optimizer = "adamw"
    lr: float = 1e-5
    schedule: Decline = "constant"
    warmup: int = 0
    weight_decay: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip: float | None = 1.0
    ema: float | None = None

    def __post_init__(self) -> None:
        one_of("optim.name", self.name, Optimizer)
        one_of("optim.schedule", self.schedule, Decline)
        at_least("optim.warmup", self.warmup, 0)
        if not self.lr > 0:
            raise ValueError(f"optim.lr must be above 0; got {self.lr}")
        if self.name == "prodigy" and self.lr < 0.01:
            raise ValueError(
                f"under prodigy optim.lr is a factor of the step that it finds; got {self.lr}: set 1, or take adamw"
            )
        if self.name == "adafactor" and (tuple(self.betas), self.eps) != ((0.9, 0.999), 1e-8):
            raise ValueError(
                f"adafactor has running means and an eps of its own; got optim.betas {list(self.betas)} and optim.eps "
                f"{self.eps}: leave them out, or take adamw"
            )
        if self.warmup and self.schedule == "constant":
            raise ValueError(
                f"schedule constant has no warm-up; got optim.warmup {self.warmup}: take schedule constant_with_warmup"
            )
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"optim.clip must be above 0, or null for no clipping; got {self.clip}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"optim.ema must lie between 0 and 1, or be null for none; got {self.ema}")


@dataclass(frozen=True)
class EngineConfig:
    """How the same numbers are computed on the machine at hand.

    Attributes:
        precision: of the network's arithmetic; auto: bf16 on a GPU that has it, otherwise full
        accumulation: parts the batch is taken in, one after the other, to save memory
        gradient_checkpointing: recompute activations instead of keeping them, to save memory
        prefetch: make the next batch while the network works on this one; null: on a GPU, for on a CPU both would want
            the same cores
        compile: compile the networks (torch.compile), which takes minutes before the first step, whose gradients are
            compared with the compiled ones: torch compiles some of them wrong
        offload: what no step needs waits on the CPU, the VAE and a text encoder that does not learn; for validation
            pictures it comes back, and the VAE takes one picture at a time, large ones in tiles
        tf32: let a GPU round what it multiplies in full precision to 10 bits (TensorFloat-32), which is faster
    """

    precision: Precision = "auto"
    accumulation: int = 1
    gradient_checkpointing: bool = False
    prefetch: bool | None = None
    compile: bool = False
    offload: bool = False
    tf32: bool = False

    def __post_init__(self) -> None:
        one_of("engine.precision", self.precision, Precision)
        at_least("engine.accumulation", self.accumulation, 1)


@dataclass(frozen=True)
class LogConfig:
    """What a run writes while it goes, and how often.

    Attributes:
        checkpoint_every: steps between states from which the run can be resumed
        keep: how many of these states are kept
        validate_every: steps between validation pictures; 0: none
        pictures: how many validation pictures, of the first captions, in turn
        patience: validations in a row that may fail to raise the share of validation pictures which pass the brand's
            check; then the run ends, with the weights that it has by then; null: it goes on to its last step
        held_every: steps between losses on held-out pictures (needs some to be given); 0: none
        tracker: experiment tracker that accelerate knows (tensorboard, wandb, ...); null: only log.jsonl
    """

    checkpoint_every: int = 500
    keep: int = 2
    validate_every: int = 0
    pictures: int = 8
    patience: int | None = None
    held_every: int = 0
    tracker: str | None = None

    def __post_init__(self) -> None:
        at_least("log.checkpoint_every", self.checkpoint_every, 1)
        at_least("log.keep", self.keep, 1)
        at_least("log.validate_every", self.validate_every, 0)
        at_least("log.pictures", self.pictures, 1)
        at_least("log.held_every", self.held_every, 0)
        if self.patience is not None:
            at_least("log.patience", self.patience, 1)
            if not self.validate_every:
                raise ValueError(
                    f"log.patience counts validations, of which there are none; got {self.patience} and "
                    "log.validate_every 0: set log.validate_every, or log.patience null"
                )


def one_of(name: str, value: str, choices: Any) -> None:
    """ValueError unless `value` is one of a Literal's."""
    if value not in get_args(choices):
        raise ValueError(f"{name} must be one of {', '.join(get_args(choices))}; got {value}")


def at_least(name: str, value: int, least: int) -> None:
    """ValueError for a value below `least`."""
    if value < least:
        raise ValueError(f"{name} must be at least {least}; got {value}")


def within(name: str, value: float, low: float, high: float) -> None:
    """ValueError for a value outside [low, high]."""
    if not low <= value <= high:
        raise ValueError(f"{name} must lie between {low} and {high}; got {value}")


@dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Steps, batch and learning rate are the paper's (section 4.2), offset and gain are what docs/results.md found best;
    the paper's own are offset mean, gain window (T - S with S = 50).

    Attributes:
        offset: what x_start is in training: the class's mean, its PCA components, the mean given the text, or none
            (plain training, the baseline); null: text where the prior was fitted with captions, else mean
        gain: where the noise is matched to it: window (the paper's, t >= T - S) or constant (at every t)
        first: first timestep of the window (null: T - 50), or the timestep from which generation will start under
            the constant gain (null: the model's own for 20 steps)
        k: components of a pca start
        draw: a pca start is the picture's own projection (the paper's) or an independent draw, as in generation
        steps: optimiser steps
        batch: pictures a step, over all processes and accumulated parts
        seed: of every random number of the run
        method: what learns: the whole UNet (full), a LoRA beside it (lora), which wants some ten times the learning
            rate, or a ControlNet, which reads the pictures' control pictures (controlnet)
        prediction: what the network is taught to predict, with trailing timesteps; null: what it predicts, with its
            own timesteps. v_prediction has the brand's ground most often, if the whole UNet learns
        lora: rank and place of a LoRA
        controlnet: what learns beside a ControlNet
        loss: caption dropout and weighting
        optim: optimiser, learning rate, running mean of the weights
        engine: precision and memory
        log: checkpoints, validation pictures, trackers
    """

    offset: Offset | None = None
    gain: Gain = "constant"
    first: int | None = None
    k: int = 3
    draw: Draw = "projected"
    steps: int = 50_000
    batch: int = 16
    seed: int = 0
    method: Method = "full"
    prediction: Prediction | None = None
    lora: LoraConfig = field(default_factory=LoraConfig)
    controlnet: ControlNetConfig = field(default_factory=ControlNetConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        one_of("method", self.method, Method)
        if self.offset is not None:
            one_of("offset", self.offset, Offset)
        one_of("gain", self.gain, Gain)
        one_of("draw", self.draw, Draw)
        if self.prediction is not None:
            one_of("prediction", self.prediction, Prediction)
            if self.method == "lora" or (self.method == "controlnet" and not self.controlnet.unet):
                raise ValueError(
                    f"another prediction is learnt by the whole UNet; got prediction {self.prediction} and method "
                    f"{self.method}: take method full, or controlnet.unet"
                )
        for name, given, usual in (
            ("lora", self.lora, LoraConfig()),
            ("controlnet", self.controlnet, ControlNetConfig()),
        ):
            if given != usual and self.method != name:
                raise ValueError(
                    f"settings of {name} are for method {name}; got {given} and method {self.method}: take method "
                    f"{name}, or leave them out"
                )
        at_least("steps", self.steps, 1)
        at_least("batch", self.batch, 1)
        if self.offset == "pca" and self.k < 1:
            raise ValueError(f"a pca start has at least 1 component; got k {self.k}: with none it is offset mean")
        if self.loss.noise_offset and self.offset != "none":
            raise ValueError(
                f"offset noise and offset {self.offset or 'text or mean'} cannot both be matched by one start at "
                f"generation; got loss.noise_offset {self.loss.noise_offset}: set it to 0, or take offset none"
            )
        if self.batch % self.engine.accumulation:
            raise ValueError(
                f"batch must be a multiple of engine.accumulation; got {self.batch} and {self.engine.accumulation}"
            )


Precision = Literal["auto", "no", "bf16", "fp16"]
