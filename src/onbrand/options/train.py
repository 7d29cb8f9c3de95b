"""What `train` can be told: names as in diffusers' and kohya's scripts, the paper's numbers but our gain. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from operator import eq
from typing import Literal

from onbrand.errors import OnbrandError
from onbrand.options._base import (
    Beta,
    Count,
    Decay,
    File,
    First,
    Need,
    NotNegative,
    Number,
    Positive,
    Rate,
    Size,
    Word,
    check_options,
    own_first,
)
from onbrand.options.hub import HUB_NEEDS, HubSettings

Method = Literal["full", "lora", "controlnet"]
Start = Literal["noise", "mean", "pca", "text"]
Gain = Literal["window", "constant"]
Draw = Literal["projected", "sampled"]
Prediction = Literal["epsilon", "v_prediction"]
Precision = Literal["auto", "no", "bf16", "fp16"]
Optimizer = Literal["adamw", "adafactor", "prodigy", "adamw8bit"]
LRScheduler = Literal["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"]
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
LINEAR = ("proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")
RESIDUAL = ("conv1", "conv2", "conv_shortcut", "time_emb_proj", "conv")
"""Suffixes of a UNet's layers: of its attention, of the rest of its transformer blocks, of its other blocks."""


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """The settings of a training run, whatever its photos and model.

    Steps, batch and learning rate are the paper's (section 4.2). Start and gain are what came out best in
    docs/research/results.md; the paper's own are start mean and gain window, with start_timestep T - 50.

    Attributes:
        start: what x_start is in training: noise (plain training, the baseline), the class mean, the image's principal
            components (pca), or the mean given the caption (text). Default: text if the prior was fitted with
            captions, else mean
        gain: at which timesteps the noise is matched to the start: window (the paper's, t >= start_timestep) or
            constant (all of them)
        start_timestep: first timestep of the window (default: T - 50); under the constant gain, the timestep at which
            generation will start (default: the model's own for 20 steps)
        k: principal components of start pca
        draw: under start pca, x_start is the image's own projection (projected, the paper's) or an independent draw,
            as in generation (sampled)
        method: what learns: the whole UNet (full), a LoRA beside it (lora; it needs about ten times the learning
            rate), or a ControlNet (controlnet; it reads the photos' control images)
        scheduler: diffusers scheduler class whose noise schedule is trained under, such as DDIMScheduler, for a model
            that names one that no start can enter (EDM). Default: the model's own
        prediction_type: prediction target, which also sets trailing timesteps. Default: the model's own target and
            spacing. v_prediction keeps the brand's background most often, if the whole UNet learns
        seed: of every random number of the run
        max_train_steps: optimizer steps
        train_batch_size: images per device, step and accumulation step
        gradient_accumulation_steps: parts of a step, one after the other, to save memory
        learning_rate: after the warm-up; under prodigy a factor of the step size that it finds, usually 1
        optimizer: adamw, adafactor (less memory), prodigy (finds its own step size; package prodigyopt) or adamw8bit
            (less memory, on a GPU; package bitsandbytes)
        lr_scheduler: course of the learning rate after the warm-up
        lr_warmup_steps: steps over which the learning rate rises from 0 (constant has none)
        adam_weight_decay: decoupled decay of the weights
        adam_beta1: decay of the running mean of the gradient (adafactor has its own)
        adam_beta2: decay of the running mean of its square (adafactor has its own)
        adam_epsilon: term in the denominator (adafactor has its own)
        max_grad_norm: gradients of a larger norm are clipped to it. None: no clipping
        ema_decay: decay of the exponential moving average of the weights (0.9999 is usual), which is then what is
            saved. Default: the last weights are saved
        rank: of a LoRA's low-rank weights; 4 to 128 are usual
        lora_alpha: a LoRA's update is scaled by alpha / rank. Default: the rank
        target_modules: suffixes of the UNet layers that a LoRA adapts. Attention alone learns the prompt; framing
            needs the others too
        train_text_encoder: the LoRA adapts the text encoder's attention too. The start still reads the prompt with the
            text encoder as it was
        train_unet: under method controlnet, the UNet learns too. Otherwise it stays as it is, and what is saved works
            beside other UNets of its family
        caption_dropout_rate: share of captions replaced by the empty one, for classifier-free guidance, in [0, 1]
        snr_gamma: gamma of Min-SNR weighting (Hang et al. 2023; 5 is usual). Default: plain mean squared error
        noise_offset: strength of offset noise (0.1 is usual), in [0, 1]; only with start noise
        input_perturbation: strength of the noise that the input has beyond the target's, in [0, 1] (Ning et al. 2023;
            0.1 is usual)
        timestep_range: first and last timestep trained, each between them as likely. Default: all of the model's
        mixed_precision: of the network's arithmetic; auto: bf16 on a GPU that has it, otherwise no
        gradient_checkpointing: recompute activations instead of keeping them, to save memory
        prefetch: make the next batch while the network works on this one. Default: on a GPU, for on a CPU both would
            want the same cores
        compile: compile the networks (torch.compile). It takes minutes before the first step, whose gradients are
            compared with uncompiled ones
        offload: the VAE and a text encoder that does not learn wait on the CPU when no step needs them
        allow_tf32: let a GPU round the factors of full-precision products to 10 bits (TensorFloat-32), which is faster
        checkpointing_steps: steps between states from which the run can be resumed
        checkpoints_total_limit: how many of these states are kept
        validation_steps: steps between validation images; 0: none
        num_validation_images: of the first captions, in turn
        validation_loss_steps: steps between losses on validation_data; 0: none
        early_stopping_patience: end the run after so many validations without a higher share of images that pass the
            brand's check. Default: it goes on to its last step
        report_to: experiment tracker that accelerate knows (tensorboard, wandb, ...). Default: log.jsonl alone
    """

    start: Start | None = None
    gain: Gain = "constant"
    start_timestep: Number | None = None
    k: Count = 3
    draw: Draw = "projected"
    method: Method = "full"
    scheduler: Word | None = None
    prediction_type: Prediction | None = None
    seed: int = 0
    max_train_steps: Count = 50_000
    train_batch_size: Count = 16
    gradient_accumulation_steps: Count = 1
    learning_rate: Positive = 1e-5
    optimizer: Optimizer = "adamw"
    lr_scheduler: LRScheduler = "constant"
    lr_warmup_steps: Number = 0
    adam_weight_decay: NotNegative = 1e-2
    adam_beta1: Beta = 0.9
    adam_beta2: Beta = 0.999
    adam_epsilon: NotNegative = 1e-8
    max_grad_norm: Positive | None = 1.0
    ema_decay: Decay | None = None
    rank: Count = 8
    lora_alpha: Count | None = None
    target_modules: tuple[Word, ...] = (*ATTENTION, *LINEAR, *RESIDUAL)
    train_text_encoder: bool = False
    train_unet: bool = False
    caption_dropout_rate: Rate = 0.1
    snr_gamma: Positive | None = None
    noise_offset: Rate = 0.0
    input_perturbation: Rate = 0.0
    timestep_range: tuple[Number, Number] | None = None
    mixed_precision: Precision = "auto"
    gradient_checkpointing: bool = False
    prefetch: bool | None = None
    compile: bool = False
    offload: bool = False
    allow_tf32: bool = False
    checkpointing_steps: Count = 500
    checkpoints_total_limit: Count = 2
    validation_steps: Number = 0
    num_validation_images: Count = 8
    validation_loss_steps: Number = 0
    early_stopping_patience: Count | None = None
    report_to: Word | None = None

    def __post_init__(self) -> None:
        check_options(self, NEEDS)
        learns = self.method == "full" or (self.method == "controlnet" and self.train_unet)
        if self.prediction_type is not None and not learns:
            raise OnbrandError(
                "option",
                f"another prediction_type is learnt by the whole UNet; got {self.prediction_type} and method "
                f"{self.method}: take method full, or method controlnet with train_unet",
            )
        if not self.target_modules:
            raise OnbrandError("option", "target_modules must name at least one layer, such as to_q; got none")
        if self.timestep_range is not None and self.timestep_range[0] > self.timestep_range[1]:
            raise OnbrandError(
                "option",
                "timestep_range holds the first and the last timestep trained, in this order; got "
                f"{list(self.timestep_range)}: swap them, or leave it out for all",
            )
        if self.optimizer == "prodigy" and self.learning_rate < 0.01:
            raise OnbrandError(
                "option",
                f"under prodigy, learning_rate is a factor of the step size that it finds; got {self.learning_rate}: "
                "set 1, or take optimizer adamw",
            )


METHOD_SETTINGS = {
    "lora": ("rank", "lora_alpha", "target_modules", "train_text_encoder"),
    "controlnet": ("train_unet",),
}
"""Settings that only one method reads."""
NEEDS = (
    *(
        Need(names, "method", f"method {method}", partial(eq, method))
        for method, names in METHOD_SETTINGS.items()
    ),
    Need(("start_timestep",), "start", "start mean, pca or text", lambda start: start != "noise"),
    Need(("k", "draw"), "start", "start pca", lambda start: start == "pca"),
    # no start at generation could match both
    Need(("noise_offset",), "start", "start noise", lambda start: start == "noise"),
    Need(
        ("adam_beta1", "adam_beta2", "adam_epsilon"), "optimizer", "optimizer adamw, prodigy or adamw8bit",
        lambda name: name != "adafactor",
    ),
    Need(
        ("lr_warmup_steps",), "lr_scheduler", "an lr_scheduler that warms up, as constant_with_warmup",
        lambda name: name != "constant",
    ),
    Need(
        ("num_validation_images", "early_stopping_patience"), "validation_steps", "validation_steps of 1 or more",
        lambda steps: steps > 0,
    ),
    Need(("validation_loss_steps",), "validation_data", "validation_data", lambda data: data is not None),
    Need(
        ("validation_data",), "validation_loss_steps", "validation_loss_steps of 1 or more", lambda steps: steps > 0
    ),
    *HUB_NEEDS,
)  # fmt: skip
"""What a setting needs to have an effect. (Plain training takes either gain: it has nothing to match.)"""


@own_first
@dataclass(frozen=True)
class TrainOptions(TrainSettings, HubSettings):
    """What `train` can be told.

    Attributes:
        images: folder of photos, as for `fit`
        model: model to start from, as for `fit`
        output_dir: the run's folder: config.yaml, log.jsonl, state/, validation/, model/
        prior: the brand's folder (or its prior.safetensors) or Hub id; needed unless start is noise
        split: as for `fit`
        validation_data: photos that are not trained on, for a loss every validation_loss_steps: a folder, or the name
            of a split of the photos
        resolution: as for `fit`. Default: the prior's, or the model's own
        random_flip: mirror images at random; with a prior, as that was fitted
        device: cuda, cpu, ... Default: a GPU if there is one
        model_config: as for `fit`
    """

    images: First
    model: File
    output_dir: File
    prior: File | None = None
    split: Word | None = None
    validation_data: File | None = None
    resolution: Size = None
    random_flip: bool = False
    device: Word | None = None
    model_config: File | None = None
