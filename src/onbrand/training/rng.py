"""Every random number of a run as a function of (seed, position): the same on 1 process or 8, killed or not."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor


def order(seed: int, n: int, positions: Sequence[int]) -> list[int]:
    """Which of `n` records stands at each position of the run.

    Args:
        seed: the run's.
        n: how many records there are.
        positions: (B,) places in the run, from 0. An epoch is n of them, and each epoch has an order of its own.

    Returns:
        (B,) numbers in 0..n-1.
    """
    return [int(_epoch(seed, n, position // n)[position % n]) for position in positions]


def share(seed: int, counts: Sequence[int], position: int) -> tuple[int, int]:
    """Which of several groups a place of the run is given to, and how many places before it were given to the same.

    Of every sum(counts) places a group has as many as its count, in an order of their own.

    Args:
        seed: the run's.
        counts: how large each group is.
        position: place in the run, from 0.

    Returns:
        The group's number, 0..len(counts)-1, and its places before.
    """
    total = sum(counts)
    epoch, place = divmod(position, total)
    ends = torch.tensor(counts).cumsum(0)
    groups = torch.bucketize(_epoch(seed_of(seed, "bucket", 0), total, epoch), ends, right=True)
    group = int(groups[place])
    return group, epoch * counts[group] + int((groups[:place] == group).sum())


def timesteps(seed: int, positions: Sequence[int], total: int, first: int = 0) -> Tensor:
    """(B,) int64, uniform in first..total-1, one timestep per position."""
    generators = (_generator(seed, "timestep", position) for position in positions)
    return torch.cat([torch.randint(first, total, (1,), generator=generator) for generator in generators])


def uniform(seed: int, purpose: str, positions: Sequence[int]) -> Tensor:
    """(B,) float32, uniform in [0, 1), one number per position."""
    return torch.cat([torch.rand(1, generator=_generator(seed, purpose, position)) for position in positions])


def normal(seed: int, purpose: str, positions: Sequence[int], shape: Sequence[int]) -> Tensor:
    """(B, *shape) float32, standard normal, on the CPU: every device gets the same numbers."""
    return torch.stack([torch.randn(*shape, generator=_generator(seed, purpose, position)) for position in positions])


@lru_cache(maxsize=16)
def _epoch(seed: int, n: int, epoch: int) -> Tensor:
    return torch.randperm(n, generator=_generator(seed, "order", epoch))


def seed_of(seed: int, purpose: str, position: int) -> int:
    """The seed of one random number of the run.

    Args:
        seed: the run's.
        purpose: what the number is for. Another word is another number.
        position: place in the run, from 0.

    Returns:
        A seed in 0..2^63-1.
    """
    digest = hashlib.blake2b(f"{seed}/{purpose}/{position}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def _generator(seed: int, purpose: str, position: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(seed, purpose, position))
