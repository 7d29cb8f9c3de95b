"""What a training run is: nested dataclasses, the paper's numbers but our gain. No torch: flags are read off it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from .groups import ControlNetConfig as ControlNetConfig
from .groups import EngineConfig as EngineConfig
from .groups import LogConfig as LogConfig
from .groups import LoraConfig as LoraConfig
from .groups import LossConfig as LossConfig
from .groups import OptimConfig as OptimConfig
from .groups import Precision as Precision
from .groups import at_least, one_of

Method = Literal["full", "lora", "controlnet"]
Offset = Literal["mean", "pca", "text", "none"]
Gain = Literal["window", "constant"]
Draw = Literal["projected", "sampled"]
Prediction = Literal["epsilon", "v_prediction"]


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
