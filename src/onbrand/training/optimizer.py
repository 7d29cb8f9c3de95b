"""What learns: network, optimizer, the learning rate's course and the EMA; one step, and their state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from onbrand.errors import OnbrandError
from onbrand.models.denoiser import Denoiser
from onbrand.models.optim import EMAModel, get_scheduler, optimizer_of
from onbrand.options.train import TrainSettings
from onbrand.training.objective import Batch, Loss, Objective

if TYPE_CHECKING:
    from accelerate import Accelerator

    from onbrand.training.state import State


class Learner:
    """A network under training. Which of its weights learn is decided before: those that require a gradient."""

    weights: dict[str, nn.Parameter]
    """The weights that learn, by name."""

    def __init__(self, accelerator: Accelerator, denoiser: Denoiser, config: TrainSettings) -> None:
        self.accelerator, self.config = accelerator, config
        self.weights = denoiser.learned
        optimizer = optimizer_of(config.optimizer)(
            list(self.weights.values()),
            config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            eps=config.adam_epsilon,
            weight_decay=config.adam_weight_decay,
        )
        # not prepared by accelerate, which would step it once a process
        self.schedule = get_scheduler(
            config.lr_scheduler,
            optimizer,
            num_warmup_steps=config.lr_warmup_steps,
            num_training_steps=config.max_train_steps,
        )
        self.network, self.optimizer = accelerator.prepare(denoiser, optimizer)
        self.ema = (
            None if config.ema_decay is None else EMAModel(self.weights.values(), decay=config.ema_decay, foreach=True)
        )

    @property
    def lr(self) -> float:
        """The learning rate of the coming step."""
        return float(self.schedule.get_last_lr()[0])

    def step(self, objective: Objective, parts: Iterable[Batch]) -> Loss:
        """Take one optimizer step.

        Args:
            objective: the loss of a batch.
            parts: this process's parts of the step's batch, one per accumulation step.

        Returns:
            The loss over the batches of all processes, on the CPU.
        """
        losses = []
        for part in parts:
            with self.accelerator.accumulate(self.network):
                loss = objective(self.network, part)
                self.accelerator.backward(loss.total)
                if self.accelerator.sync_gradients and self.config.max_grad_norm is not None:
                    self.accelerator.clip_grad_norm_(self.weights.values(), self.config.max_grad_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
            losses.append(loss)
        self.schedule.step()
        if self.ema is not None:
            self.ema.step(self.weights.values())
        samples = torch.cat([torch.stack([loss.each, loss.within.float()], dim=1) for loss in losses])
        # the one place of a step that waits for the device
        each, within = self.accelerator.gather(samples).cpu().T.contiguous()
        return Loss(each.mean(), each, within.bool())

    @contextmanager
    def ema_weights(self) -> Iterator[None]:
        """While this holds, the network holds the EMA of its weights, if there is one."""
        if self.ema is None:
            yield
            return
        self.ema.store(self.weights.values())
        self.ema.copy_to(self.weights.values())
        try:
            yield
        finally:
            self.ema.restore(self.weights.values())

    def state(self) -> dict[str, Any]:
        """The parts of a State that are this object's."""
        scaler, ema = self.accelerator.scaler, self.ema
        return {
            "weights": dict(self.weights),
            "ema": dict(zip(self.weights, ema.shadow_params, strict=True)) if ema else {},
            "optimizer": self.optimizer.state_dict(),
            "counters": {
                "schedule": self.schedule.state_dict(),
                "average": ema.optimization_step if ema else 0,
                "scaler": scaler.state_dict() if scaler else {},
            },
        }

    def resume(self, state: State) -> None:
        """Take everything over from a state of the same run. Raises OnbrandError if it is of other weights."""
        own = {name: weight.shape for name, weight in self.weights.items()}
        for part in (state.weights, *([] if self.ema is None else [state.ema])):
            differing = [name for name, shape in own.items() if name not in part or part[name].shape != shape]
            if differing:
                raise OnbrandError(
                    "resume",
                    f"the state of step {state.step} is of other weights: {len(differing)} of {len(own)} are missing "
                    f"or of another shape, as {differing[0]}; give another output_dir",
                )
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(state.weights[name])
        if self.ema is not None:
            for name, shadow in zip(self.weights, self.ema.shadow_params, strict=True):
                shadow.copy_(state.ema[name])
            self.ema.optimization_step = state.counters["average"]
        self._resume_optimizer(state.optimizer)
        self.schedule.load_state_dict(state.counters["schedule"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state.counters["scaler"])

    def _resume_optimizer(self, state: dict[str, Any]) -> None:
        """Take over a state that another machine may have made, on a GPU or a CPU."""
        for state_group, group in zip(state["param_groups"], self.optimizer.param_groups, strict=True):
            state_group |= {name: group[name] for name in ("foreach", "fused") if name in group}
        self.optimizer.load_state_dict(state)
        # a fused step needs the moments to lie in memory as their weights do
        for weight, moments in self.optimizer.state.items():
            for name, moment in moments.items():
                if torch.is_tensor(moment) and moment.is_floating_point() and moment.shape == weight.shape:
                    moments[name] = torch.empty_like(weight, dtype=moment.dtype).copy_(moment)
