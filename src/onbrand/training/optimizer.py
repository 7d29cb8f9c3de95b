"""What learns: network, optimiser, the learning rate's course and the running mean; one step, and their state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from onbrand.models.denoiser import Denoiser
from onbrand.models.optim import EMAModel, get_scheduler, optimizer_of
from onbrand.options.train import TrainConfig
from onbrand.training.objective import Batch, Loss, Objective

if TYPE_CHECKING:
    from accelerate import Accelerator

    from onbrand.training.state import State


class Learner:
    """A network under training. Which of its weights learn is decided before: those that require a gradient."""

    def __init__(self, accelerator: Accelerator, denoiser: Denoiser, config: TrainConfig) -> None:
        optim = config.optim
        self.accelerator, self.config = accelerator, config
        self.learned = denoiser.learned
        optimizer = optimizer_of(optim.name)(
            list(self.learned.values()), optim.lr, betas=optim.betas, eps=optim.eps, weight_decay=optim.weight_decay
        )
        # not prepared by accelerate, which would step it once a process
        self.schedule = get_scheduler(
            optim.schedule, optimizer, num_warmup_steps=optim.warmup, num_training_steps=config.steps
        )
        self.network, self.optimizer = accelerator.prepare(denoiser, optimizer)
        self.average = EMAModel(self.learned.values(), decay=optim.ema, foreach=True) if optim.ema is not None else None

    @property
    def lr(self) -> float:
        """The learning rate of the coming step."""
        return float(self.schedule.get_last_lr()[0])

    def step(self, objective: Objective, parts: Iterable[Batch]) -> Loss:
        """One optimiser step on this process's parts of a batch; the loss of all processes, on the CPU."""
        losses = []
        for part in parts:
            with self.accelerator.accumulate(self.network):
                loss = objective(self.network, part)
                self.accelerator.backward(loss.total)
                if self.accelerator.sync_gradients and self.config.optim.clip is not None:
                    self.accelerator.clip_grad_norm_(self.learned.values(), self.config.optim.clip)
                self.optimizer.step()
                self.optimizer.zero_grad()
            losses.append(loss)
        self.schedule.step()
        if self.average is not None:
            self.average.step(self.learned.values())
        samples = torch.cat([torch.stack([loss.each, loss.within.float()], dim=1) for loss in losses])
        # the one place of a step that waits for the device
        each, within = self.accelerator.gather(samples).cpu().T.contiguous()
        return Loss(each.mean(), each, within.bool())

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within, the network holds the running mean of its weights, where there is one."""
        if self.average is None:
            yield
            return
        self.average.store(self.learned.values())
        self.average.copy_to(self.learned.values())
        try:
            yield
        finally:
            self.average.restore(self.learned.values())

    def state(self) -> dict[str, Any]:
        """The parts of a State that are this object's."""
        scaler, average = self.accelerator.scaler, self.average
        return {
            "weights": dict(self.learned),
            "average": dict(zip(self.learned, average.shadow_params, strict=True)) if average else {},
            "optimizer": self.optimizer.state_dict(),
            "counters": {
                "schedule": self.schedule.state_dict(),
                "average": average.optimization_step if average else 0,
                "scaler": scaler.state_dict() if scaler else {},
            },
        }

    def resume(self, state: State) -> None:
        """Takes everything over from a state of the same run."""
        with torch.no_grad():
            for name, weight in self.learned.items():
                weight.copy_(state.weights[name])
        if self.average is not None:
            for name, shadow in zip(self.learned, self.average.shadow_params, strict=True):
                shadow.copy_(state.average[name])
            self.average.optimization_step = state.counters["average"]
        self._resume_optimizer(state.optimizer)
        self.schedule.load_state_dict(state.counters["schedule"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state.counters["scaler"])

    def _resume_optimizer(self, state: dict[str, Any]) -> None:
        """Takes over a state that another machine may have made, on a GPU or a CPU."""
        for its, own in zip(state["param_groups"], self.optimizer.param_groups, strict=True):
            its |= {name: own[name] for name in ("foreach", "fused") if name in own}
        self.optimizer.load_state_dict(state)
        # a fused step needs the moments to lie in memory as their weights do
        for weight, moments in self.optimizer.state.items():
            for name, moment in moments.items():
                if torch.is_tensor(moment) and moment.is_floating_point() and moment.shape == weight.shape:
                    moments[name] = torch.empty_like(weight, dtype=moment.dtype).copy_(moment)
