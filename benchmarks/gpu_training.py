"""Training on a GPU: onbrand's loop beside one as diffusers' example scripts have it, a start's cost, and a sweep."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler
from diffusers.optimization import get_scheduler
from diffusers.training_utils import cast_training_params
from peft import LoraConfig as PeftConfig
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from gpu_models import DTYPES, Size, catalogue, model
from gpu_timing import fresh, idle, paired, peak, rate, ratio
from onbrand.models.controlnet import new_controlnet
from onbrand.models.pipeline import tokens_of
from onbrand.options.train import ATTENTION, TrainSettings
from onbrand.training.loop import train

if TYPE_CHECKING:
    from onbrand.data.records import Record

Measure = Callable[[], dict[str, Any]]
WARM = 3
"""Steps before the first that is timed; the most memory is taken in them."""
ENDLESS = 10**6
BF16 = {"mixed_precision": "bf16"}
USUAL = TrainSettings(method="lora")


def measurements(size: Size) -> dict[str, Measure]:
    """The paired rows, by importance."""
    found: dict[str, Measure] = {
        "training/full": partial(beside, size, "full"),
        "training/lora": partial(beside, size, "lora"),
        "training/offset": partial(offset_cost, size),
        "training/controlnet": partial(alone, size, "controlnet", size.batch, BF16),
    }
    runs = {"as it is": BF16, "off": BF16 | {"prefetch": False}}
    return found | {
        f"training/prefetch {method}": partial(prefetched, size, method, runs) for method in ("lora", "full")
    }


def sweep(size: Size) -> dict[str, Measure]:
    """One setting at a time."""
    methods = ("full", "lora", "controlnet")
    rows: list[tuple[str, str, int, dict[str, Any]]] = []
    for precision in ("bf16", "fp16", "no"):
        if precision != "fp16" or size.device == "cuda":
            rows += [(precision, method, size.batch, {"mixed_precision": precision}) for method in methods[:2]]
    tf32 = {"mixed_precision": "no", "allow_tf32": True}
    rows += [("tf32", method, size.batch, tf32) for method in methods[:2]]
    rows += [("bf16", method, batch, BF16) for batch in size.batches for method in methods]
    saving, largest = BF16 | {"gradient_checkpointing": True}, max(size.batch, *size.batches)
    rows += [("bf16 checkpointing", "full", batch, saving) for batch in sorted({size.batch, largest})]
    if find_spec("bitsandbytes") and size.device == "cuda":
        rows += [("bf16 8-bit AdamW", "full", size.batch, BF16 | {"optimizer": "adamw8bit"})]
    if size.device == "cuda":  # minutes on a CPU
        rows += [("bf16 compiled", method, size.batch, BF16 | {"compile": True}) for method in methods[:2]]
    return {
        f"sweep/{method} {what} batch {batch}": partial(alone, size, method, batch, settings)
        for what, method, batch, settings in rows
    }


def ours(size: Size, method: str, batch: int, settings: dict[str, Any], start: str = "mean") -> Iterator[object]:
    """Steps of onbrand's loop with these settings, without end."""
    pipe = model(size)
    if method == "controlnet":
        pipe = new_controlnet(pipe)
    records, store, prior = catalogue(size)
    config = TrainSettings(
        start=start, method=method, train_batch_size=batch, max_train_steps=ENDLESS, checkpointing_steps=ENDLESS,
        **settings,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        steps = train(pipe, records, store, prior, config, folder)
        try:
            yield from steps
        finally:
            steps.close()


class Photos(Dataset):
    """Photos (3, H, W) in [-1, 1] and tokens of their captions (L,), opened when they are asked for, in one epoch
    without end: workers are started once."""

    def __init__(self, records: list[Record], tokens: Tensor) -> None:
        self.records, self.tokens = records, tokens

    def __len__(self) -> int:
        return 1000 * len(self.records)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        row = index % len(self.records)
        with Image.open(self.records[row].file) as photo:
            pixels = torch.from_numpy(np.array(photo.convert("RGB"))).permute(2, 0, 1)
        return pixels / 127.5 - 1, self.tokens[row]


def example(size: Size, method: str, batch: int, precision: str) -> Callable[[int], Iterator[float]]:
    """A loop of the structure of diffusers' train_text_to_image.py (full) and train_text_to_image_lora.py (lora): the
    autoencoder and the text encoder run in every step. Returns workers of the data loader -> its steps, without end."""
    pipe, (records, _, _) = model(size), catalogue(size)
    accelerator = Accelerator(mixed_precision=precision, cpu=size.device == "cpu")
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    unet, vae, encoder = pipe.unet, pipe.vae, pipe.text_encoder
    for frozen in (vae, encoder):
        frozen.requires_grad_(False).to(accelerator.device, DTYPES[precision])
    if method == "lora":
        unet.requires_grad_(False).to(accelerator.device, DTYPES[precision])
        told = {"r": USUAL.rank, "lora_alpha": USUAL.rank, "target_modules": list(ATTENTION)}
        unet.add_adapter(PeftConfig(init_lora_weights="gaussian", **told))
        if precision == "fp16":
            cast_training_params(unet, dtype=torch.float32)
    else:
        unet.requires_grad_(True).train()
    learned = [weight for weight in unet.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-5, weight_decay=1e-2)
    schedule = get_scheduler("constant", optimizer)
    unet, optimizer, schedule = accelerator.prepare(unet, optimizer, schedule)
    photos = Photos(records, tokens_of(pipe, [record.text for record in records]))

    def steps(workers: int) -> Iterator[float]:
        loader = accelerator.prepare(DataLoader(photos, batch, shuffle=True, num_workers=workers))
        for pixels, tokens in loader:
            with accelerator.accumulate(unet):
                latents = vae.encode(pixels.to(vae.dtype)).latent_dist.sample() * vae.config.scaling_factor
                noise = torch.randn_like(latents)
                t = torch.randint(0, len(scheduler.alphas_cumprod), (batch,), device=latents.device)
                noisy, hidden = scheduler.add_noise(latents, noise, t), encoder(tokens, return_dict=False)[0]
                output = unet(noisy, t, hidden, return_dict=False)[0]
                loss = functional.mse_loss(output.float(), noise.float(), reduction="mean")
                mean = accelerator.gather(loss.detach().repeat(batch)).mean().item()
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(learned, 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            yield mean

    return steps


def advance(steps: Iterator[object], count: int) -> None:
    """Takes `count` steps."""
    for _ in islice(steps, count):
        pass


def warmed(steps: Iterator[object]) -> Iterator[object]:
    """The steps, the first of them taken."""
    advance(steps, WARM)
    return steps


def beside(size: Size, method: str) -> dict[str, Any]:
    """Images a second and memory of onbrand and of the example, of the same network, in blocks in turn."""
    fresh()
    names = {"onbrand": None, "diffusers": 0, f"diffusers, {size.workers} workers": size.workers}
    steps: dict[str, Iterator[object]] = {}
    settings = BF16 | ({"target_modules": ATTENTION} if method == "lora" else {})
    steps["onbrand"], own = peak(size.device, lambda: warmed(ours(size, method, size.batch, settings)))

    def built() -> Callable[[int], Iterator[float]]:
        loop = example(size, method, size.batch, "bf16")
        steps["diffusers"] = warmed(loop(0))
        return loop

    loop, other = peak(size.device, built)
    try:
        steps[list(names)[-1]] = warmed(loop(size.workers))
    except RuntimeError as error:  # too little shared memory for workers
        print(f"the example's loader has no workers here: {error}")
        names.popitem()
    blocks = {name: partial(advance, steps[name], size.block) for name in names}
    seconds = paired(blocks, size.device, size.rounds)
    found = {
        "method": method, "precision": "bf16", "batch": size.batch,
        "images_a_second": {name: rate(each, size.block * size.batch) for name, each in seconds.items()},
        "times_as_fast": {name: ratio(seconds["onbrand"], each) for name, each in seconds.items() if name != "onbrand"},
        "idle": {name: idle(blocks[name], size.device, seconds[name]) for name in names},
        "peak_gb": {"onbrand": own, "diffusers": other},
    }  # fmt: skip
    close(steps)
    return found


def offset_cost(size: Size) -> dict[str, Any]:
    """Steps with and without a start, in turn one by one; a second run without one shows the machine's own unrest."""
    fresh()
    runs = {"none": "noise", "none, again": "noise", "mean": "mean"}
    steps = {name: warmed(ours(size, "full", size.batch, BF16, start)) for name, start in runs.items()}
    blocks = {name: partial(advance, each, 1) for name, each in steps.items()}
    seconds = paired(blocks, size.device, 4 * size.rounds)
    close(steps)
    return {
        "method": "full", "precision": "bf16", "batch": size.batch,
        "times_as_long": {name: ratio(seconds["none"], seconds[name]) for name in list(runs)[1:]},
    }  # fmt: skip


def prefetched(size: Size, method: str, engines: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Steps whose batches are prepared ahead, and steps that prepare their own, in turn."""
    fresh()
    steps = {name: warmed(ours(size, method, size.batch, settings)) for name, settings in engines.items()}
    blocks = {name: partial(advance, each, size.block) for name, each in steps.items()}
    seconds = paired(blocks, size.device, size.rounds)
    found = {
        "method": method, "precision": "bf16", "batch": size.batch,
        "images_a_second": {name: rate(each, size.block * size.batch) for name, each in seconds.items()},
        "times_as_fast": {"off": ratio(seconds["as it is"], seconds["off"])},
        "idle": {name: idle(blocks[name], size.device, seconds[name]) for name in engines},
    }  # fmt: skip
    close(steps)
    return found


def alone(size: Size, method: str, batch: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Images a second and memory of one setting."""
    fresh(exact=settings["mixed_precision"] == "no")
    steps, gb = peak(size.device, lambda: warmed(ours(size, method, batch, settings)))
    seconds = paired({"onbrand": partial(advance, steps, size.block)}, size.device, size.rounds, 6.0)["onbrand"]
    close({"onbrand": steps})
    if settings.get("compile"):
        torch.compiler.reset()
    return {
        "method": method, "precision": settings["mixed_precision"], "batch": batch,
        "images_a_second": {"onbrand": rate(seconds, size.block * batch)}, "peak_gb": {"onbrand": gb},
    }  # fmt: skip


def close(steps: dict[str, Iterator[object]]) -> None:
    """Ends the runs."""
    for each in steps.values():
        each.close()  # type: ignore[attr-defined]
    steps.clear()
