"""An image's randomness, from its seed alone: the same in any batch, on any device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from onbrand.errors import OnbrandError, quote
from onbrand.io import digest


def seeds_of(seeds: int | Sequence[int]) -> list[int]:
    """One seed or several as a list; OnbrandError for one that is no whole number from 0 on."""
    entries: list[Any] = list(seeds) if isinstance(seeds, Iterable) else [seeds]
    for seed in entries:
        if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= int(seed) < 2**63:
            raise OnbrandError("start", f"a seed is a whole number from 0 to 2^63 - 1; got {quote(seed)}")
    return [int(seed) for seed in entries]


def noise_for(seeds: Sequence[int], shape: Sequence[int], zero_mean: bool = False) -> Tensor:
    """Standard normal (B, *shape) float32 on the CPU, a generator a seed: what diffusers draws from such generators.

    zero_mean: each channel's mean over the image taken out. It is 1 / sqrt(h w) large, yet the network reads a tint
    of the background in it, the same for a seed whatever the prompt (docs/research/results.md).
    """
    return noise_of([torch.Generator().manual_seed(seed) for seed in seeds], shape, zero_mean)


def noise_of(generators: Sequence[torch.Generator], shape: Sequence[int], zero_mean: bool = False) -> Tensor:
    """`noise_for` from CPU generators, one an image."""
    noise = torch.stack([torch.randn(tuple(shape), generator=generator) for generator in generators])
    return noise - noise.mean((2, 3), keepdim=True) if zero_mean else noise


def generator_for(seed: int, purpose: str) -> torch.Generator:
    """A CPU generator derived from an image's seed, for randomness that must not repeat the start's noise."""
    return torch.Generator().manual_seed(int(digest(f"{purpose} {seed}".encode())[:16], 16) >> 1)
