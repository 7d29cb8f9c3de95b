"""The processes of one run, as `accelerate launch` or torchrun starts them: they share its work and end together."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from datetime import timedelta
from functools import cache
from itertools import count
from typing import TYPE_CHECKING, TypeVar

from onbrand.errors import OnbrandError
from onbrand.io import digest

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

T = TypeVar("T")
S = TypeVar("S")
JOIN, WORK = timedelta(minutes=10), timedelta(days=7)
"""How long processes wait for each other, until they have found each other and then. One that has ended is noticed at
once, by its connections or by its launcher; one that works may take as long as it needs."""
SHARING: ContextVar[bool] = ContextVar("sharing", default=False)
"""Whether `each` shares."""
_numbers = count()
"""Of the lists of work that this process has taken from: the same for all processes."""


def world() -> int:
    """How many processes this run has."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this is, from 0."""
    return int(os.environ.get("RANK", "0")) if world() > 1 else 0


def gather(value: T) -> list[T]:
    """Each process's value, for all of them; nobody goes on before everybody is here."""
    if world() == 1:
        return [value]
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
        dist.init_process_group(backend, store=_store(), rank=rank(), world_size=world(), timeout=WORK)
    values: list[T] = [value] * world()
    dist.all_gather_object(values, value)
    return values


def from_first(work: Callable[[], T]) -> T:
    """What the first process makes, for all of them; an OnbrandError is everybody's too."""
    if world() == 1:
        return work()
    value: T | None = None
    error: OnbrandError | None = None
    if rank() == 0:
        try:
            value = work()
        except OnbrandError as reason:
            error = reason
    result, failure = gather((value, error and (error.code, str(error))))[0]
    if failure:
        raise error or OnbrandError(*failure)
    return result  # type: ignore[return-value]  # None only where `work` gives it


@contextmanager
def held_by_first(context: AbstractContextManager[object]) -> Iterator[None]:
    """While this holds, the first process has entered `context`; if it cannot, no process goes on.

    A process that ends takes the others along, with an error that says so.
    """
    with ExitStack() as stack:

        def enter() -> None:
            stack.enter_context(context)

        try:
            from_first(enter)
            yield
        except RuntimeError as error:
            if world() > 1 and _is_of_another(error):
                raise OnbrandError(
                    "processes",
                    "another process of this run has ended, and this one with it: the same command goes on",
                ) from error
            raise


def _is_of_another(error: RuntimeError) -> bool:
    """Whether an error says that another process could not be reached."""
    from torch.distributed import DistError

    return isinstance(error, DistError) or "gloo" in str(error)


def claims(items: Sequence[T]) -> Iterator[T]:
    """The items that this process takes, in their order, one as soon as the last is done; no two take the same."""
    if world() == 1:
        yield from items
        return
    name = f"claims {next(_numbers)}"
    while (number := _store().add(name, 1) - 1) < len(items):
        yield items[number]


@contextmanager
def sharing() -> Iterator[None]:
    """While this holds, the processes all do the same, and share what goes through `each`."""
    token = SHARING.set(world() > 1)
    try:
        yield
    finally:
        SHARING.reset(token)


def each(work: Callable[[S], T], items: Sequence[S]) -> Iterator[T]:
    """`work` of each item, in order; within `sharing` each is done by one process, for all of them."""
    if not SHARING.get():
        yield from map(work, items)
        return
    for first in range(0, len(items), world()):
        own = items[first + rank() : first + rank() + 1]
        yield from (value for values in gather([work(item) for item in own]) for value in values)


def take_gpu(device: str) -> None:
    """Make "cuda" this process's own GPU, if several processes are to use "cuda"."""
    if device == "cuda" and world() > 1:
        import torch

        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def is_first_to_say(line: str) -> bool:
    """Whether no other process of this run has said the line yet; True if nobody can tell."""
    if world() == 1:
        return True
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    try:  # by a connection of its own: a thread may ask while the process waits
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(address, port, is_master=False, timeout=timedelta(seconds=5), wait_for_workers=False)
        return bool(store.add(f"{_attempt()}/said {digest(line.encode())}", 1) == 1)
    except (KeyError, ValueError, RuntimeError):
        return True


@cache
def _store() -> Store:
    """What the processes find each other by, and share small numbers through."""
    from torch.distributed import PrefixStore, rendezvous  # type: ignore[attr-defined]

    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise OnbrandError(
            "processes",
            f"WORLD_SIZE says that this is one of {world()} processes, and {' and '.join(missing)} not which one or "
            "where they meet: start them with accelerate launch or torchrun, or unset WORLD_SIZE",
        )
    store, _, _ = next(rendezvous("env://", rank(), world(), timeout=JOIN))
    return PrefixStore(_attempt(), store)


def _attempt() -> str:
    """Names what is of this start of the processes: a launcher may start them again, and keep its store."""
    return f"onbrand {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
