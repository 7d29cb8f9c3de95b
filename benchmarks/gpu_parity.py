"""The shipped small model on a GPU beside the CPU: the fit, a training step, pictures; the same twice; after a kill."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from gpu_models import Size, scratch
from gpu_timing import fresh
from onbrand.api._fit import fit
from onbrand.core.prior import FILE as PRIOR
from onbrand.core.prior import Prior
from onbrand.data.records import open_folder
from onbrand.datasets.garments import write_garments
from onbrand.models.fitting import encode_photos
from onbrand.models.pipeline import load
from onbrand.options.generate import SamplingSettings
from onbrand.options.train import TrainSettings
from onbrand.sampling.requests import Request
from onbrand.sampling.sampler import sample
from onbrand.training.loop import train
from onbrand.training.state import load_state

Measure = Callable[[], dict[str, Any]]
K = 3
BETA = 0.9
"""AdamW's first: after one step its mean of the gradient is 1 - BETA times the gradient."""
NAMES = {"no": "float32", "fp16": "float16", "bf16": "bfloat16"}
DETERMINISTIC = "import torch; torch.use_deterministic_algorithms(True, warn_only=True); from onbrand.cli import main; "


def measurements(size: Size) -> dict[str, Measure]:
    """What is compared, the exact arithmetic first."""
    precisions = [name for name in NAMES if name != "fp16" or size.device == "cuda"]
    found: dict[str, Measure] = {}
    for precision in precisions:
        found[f"parity/fit {NAMES[precision]}"] = partial(fits, size, NAMES[precision])
        found[f"parity/step {NAMES[precision]}"] = partial(gradients, size, precision)
        found[f"parity/pictures {NAMES[precision]}"] = partial(pictures, size, NAMES[precision])
    found["parity/kill"] = partial(killed, size, ["-m", "onbrand"])
    found["parity/kill deterministic"] = partial(killed, size, ["-c", DETERMINISTIC + "raise SystemExit(main())"])
    return found


@lru_cache(maxsize=1)
def photos(count: int) -> Path:
    """A folder of garments, alone and on people."""
    return write_garments(scratch() / "photos", "validation", count)


@lru_cache(maxsize=8)
def brand(count: int, device: str, dtype: str = "float32") -> Path:
    """The folder of a fit of `photos`."""
    folder = scratch() / "brand"
    with quiet():
        fit(photos(count), "tiny", folder, k=K, device=device, dtype=dtype)
    return folder


def fits(size: Size, dtype: str) -> dict[str, Any]:
    """The prior fitted on the device beside the CPU's in float32, the worst class of each number."""
    fresh(exact=True)
    one = Prior.load(brand(size.garments, "cpu") / PRIOR)
    two = Prior.load(brand(size.garments, size.device, dtype) / PRIOR)
    pairs = [(one.gaussians[name], two.gaussians[name]) for name in one.classes]
    return {
        "dtype": dtype,
        "mean": max(far(a.mean, b.mean) for a, b in pairs),
        "variances": max(far(a.variances, b.variances) for a, b in pairs),
        "angle": max(angle(a.components, b.components) for a, b in pairs),
    }


def far(one: Tensor, two: Tensor) -> float:
    """|two - one| / |one|."""
    return float((two.double() - one.double()).norm() / one.double().norm())


def angle(one: Tensor, two: Tensor) -> float:
    """Largest principal angle between two subspaces, (k, d) orthonormal rows each, in degrees."""
    one, two = (torch.linalg.qr(rows.double().T)[0].T for rows in (one, two))
    sine = torch.linalg.matrix_norm(two - two @ one.T @ one, 2)
    return float(torch.rad2deg(torch.asin(sine.clamp(max=1))))


def gradients(size: Size, precision: str) -> dict[str, Any]:
    """Loss and gradient of the run's first step on the device beside the CPU's in float32."""
    (loss, one), (other, two) = step(size, "cpu", "no"), step(size, size.device, precision)
    found = {"dtype": NAMES[precision], "loss": abs(other - loss) / abs(loss)}
    if not two:
        return found | {"gradient": None}  # the loss scale was too large, and the step was left out
    dots = sum(float((one[i].double() * two[i].double()).sum()) for i in one)
    one_norm, two_norm = (sum(float(g.double().square().sum()) for g in each.values()) ** 0.5 for each in (one, two))
    away = sum(float((one[i].double() - two[i].double()).square().sum()) for i in one) ** 0.5
    return found | {"gradient": away / one_norm, "cosine": dots / (one_norm * two_norm)}


def step(size: Size, device: str, precision: str) -> tuple[float, dict[int, Tensor]]:
    """Loss of the first step, and the gradient of every weight that learns, as the optimiser's state has it."""
    fresh(exact=True)
    prior = Prior.load(brand(size.garments, "cpu") / PRIOR)
    pipe = load("tiny", device)
    latents = brand(size.garments, "cpu") / "latents"
    with quiet(), tempfile.TemporaryDirectory() as folder:
        folder_of_photos = open_folder(photos(size.garments))
        store, summary = encode_photos(pipe, folder_of_photos, latents, prior.provenance.resolution, False)
        config = TrainSettings(
            start="mean", max_train_steps=1, train_batch_size=size.batch, mixed_precision=precision,
            max_grad_norm=None, checkpointing_steps=1,
        )  # fmt: skip
        (taken,) = train(pipe, summary.used, store, prior, config, folder)
        state = load_state(Path(folder) / "state")
    assert state is not None
    moments = {number: moment["exp_avg"].float() for number, moment in state.optimizer["state"].items()}
    return taken.loss, {number: moment / (1 - BETA) for number, moment in moments.items()}


def pictures(size: Size, dtype: str) -> dict[str, Any]:
    """Pictures of the same noise on the device beside the CPU's in float32, and made twice there; 0..255."""
    fresh(exact=True)
    one = generated(size, "cpu", "float32")
    two, again = (generated(size, size.device, dtype) for _ in range(2))
    apart = np.abs(two.astype(float) - one)
    return {
        "dtype": dtype, "pictures": len(one), "steps": size.steps,
        "mean": float(apart.mean()), "worst": float(apart.mean((1, 2, 3)).max()), "most": float(apart.max()),
        "same_twice": bool((two == again).all()),
    }  # fmt: skip


@lru_cache(maxsize=1)
def _cpu(size: Size) -> np.ndarray:
    return _generated(size, "cpu", "float32")


def generated(size: Size, device: str, dtype: str) -> np.ndarray:
    """(B, H, W, 3) uint8."""
    return _cpu(size) if (device, dtype) == ("cpu", "float32") else _generated(size, device, dtype)


def _generated(size: Size, device: str, dtype: str) -> np.ndarray:
    prior = Prior.load(brand(size.garments, "cpu") / PRIOR)
    requests = [
        Request(
            f"{prior.classes[seed % len(prior.classes)]}, a red t-shirt", seed, prior.classes[seed % len(prior.classes)]
        )
        for seed in range(size.batch)
    ]
    config = SamplingSettings(start="mean", num_inference_steps=size.steps, batch_size=size.batch)
    return np.stack(
        [np.asarray(picture.image) for picture in sample(load("tiny", device, dtype), prior, requests, config)]
    )


def killed(size: Size, python: list[str]) -> dict[str, Any]:
    """Three runs of `onbrand train`: two undisturbed, and one killed in its midst and started again; their weights."""
    fresh()
    fitted = brand(size.garments, size.device)
    every = size.run // 3
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def command(out: str) -> list[str]:
            flags = {"model": "tiny", "prior": fitted, "output_dir": folder / out, "device": size.device}
            flags |= {"max_train_steps": size.run, "train_batch_size": size.batch, "learning_rate": 1e-4}
            flags |= {"checkpointing_steps": every}
            given = [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
            return [sys.executable, *python, "train", str(photos(size.garments)), *given]

        environment = os.environ | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
        with (folder / "words").open("w") as words:
            start = partial(subprocess.Popen, stdout=words, stderr=words, env=environment)
            run = start(command("killed"))
            while run.poll() is None and steps_of(folder / "killed") < every + every // 2:
                time.sleep(0.005)
            run.kill()
            codes = [run.wait()]
            reached = steps_of(folder / "killed")
            codes += [start(command(out)).wait() for out in ("killed", "whole", "again")]
        if codes != [-signal.SIGKILL, 0, 0, 0] or not reached < size.run:
            raise RuntimeError(f"exit codes {codes}, {reached} steps: {(folder / 'words').read_text()[-2000:]}")
        models = {out: weights(folder / out) for out in ("killed", "whole", "again")}
    return {
        "steps": size.run, "killed_at": reached, "resumed_from": reached // every * every,
        "resumed": apart(models["whole"], models["killed"]), "undisturbed": apart(models["whole"], models["again"]),
    }  # fmt: skip


def steps_of(run: Path) -> int:
    """Whole lines of its log."""
    log = run / "log.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def weights(run: Path) -> dict[str, Tensor]:
    """The denoiser of the model that a run leaves."""
    return load_file(run / "model" / "unet" / "diffusion_pytorch_model.safetensors")


def apart(one: dict[str, Tensor], two: dict[str, Tensor]) -> dict[str, Any]:
    """Whether weights are the same bits, and the most by which one differs."""
    same = all(torch.equal(one[name], two[name]) for name in one)
    return {"same": same, "most": max(float((one[name] - two[name]).abs().max()) for name in one)}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """While this holds, nothing is printed."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
