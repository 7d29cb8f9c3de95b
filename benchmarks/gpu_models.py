"""What is measured: Stable Diffusion 1.5's architecture with random weights, photos, latents and a prior; how large."""

from __future__ import annotations

import atexit
import copy
import shutil
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from onbrand.core.prior import Prior
from onbrand.data.latents import Store
from onbrand.data.records import Record
from sd15 import laid, sd15

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""accelerate's names of precisions -> the dtype of weights that do not learn."""


@dataclass(frozen=True)
class Size:
    """Where the work is done and how large it is."""

    device: str = "cuda"
    width: float = 1.0
    """Of SD1.5's channels."""
    side: int = 512
    """Of a photo, pixels."""
    photos: int = 32
    batch: int = 8
    batches: tuple[int, ...] = (1, 4, 16)
    """The others, in the sweep."""
    block: int = 5
    """Training steps that are timed together."""
    rounds: int = 15
    steps: int = 20
    """Of a generation."""
    garments: int = 400
    """Photos of the catalogue, for what is compared with the CPU."""
    run: int = 60
    """Steps of the run that is killed."""
    workers: int = 8
    """Of the example's data loader, where it has any."""


SMALL = Size("cpu", 0.1, 64, photos=4, batch=2, batches=(1,), block=1, rounds=2, steps=2, garments=16, run=8, workers=1)


def scratch() -> Path:
    """A new folder, which is gone after the process."""
    folder = tempfile.mkdtemp(prefix="onbrand-gpu-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


@lru_cache(maxsize=1)
def base(width: float) -> StableDiffusionPipeline:
    """The pipeline, on the CPU; it is copied and never changed."""
    return sd15(width)


def model(size: Size, dtype: torch.dtype = torch.float32) -> StableDiffusionPipeline:
    """A copy of the pipeline on the device."""
    return copy.deepcopy(base(size.width)).to(size.device, dtype)


@lru_cache(maxsize=1)
def catalogue(size: Size) -> tuple[list[Record], Store, Prior]:
    """The photos with control pictures, their latents and a prior of their mean; the same for all measurements."""
    return laid(model(size), scratch() / "photos", size.side, size.photos)
