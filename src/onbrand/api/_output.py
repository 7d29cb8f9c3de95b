"""Where a verb writes: found fit for it before any work, one run at a time, and what may run out meanwhile."""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from functools import partial, wraps
from pathlib import Path
from typing import Any, Literal, TypeVar

from onbrand.api._memory import enough_memory
from onbrand.errors import OnbrandError
from onbrand.hub import open_repository
from onbrand.io import DRAFT, append, discard, draft_of, read_json, remove_drafts, whole_folder, write_json
from onbrand.ranks import from_first, held_by_first, rank, world

O_contra = TypeVar("O_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)

LOCK = ".onbrand.lock"
"""In a folder that a run writes into, while it does: who it is, and since when."""
UNFINISHED, RUN = ".unfinished", "run.json"
"""What `in_parts` writes before it is moved to its place; what made it."""
WRITTEN = (
    "means", "state", "validation", "model", ".unet", "trace", "conditions", "brand", "buckets", "priors", "models",
    "runs", "images", "figures", "locks", "manifest.jsonl", "log.jsonl",
)  # fmt: skip
"""What verbs write into in their folder, and add lines to. latents/, the cache, may lie elsewhere; any other file
takes the place of a link."""
RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
"""Where the launchers that accelerate knows say which process of a run this is: the first one locks for all."""
FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
WRONG = {errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP}
"""Errors of the operating system: no space, no right, no place for a file."""


def works_in(
    place: str, memory: str, use: Literal["together", "alone", "shared", "visited"] = "alone", new: bool = True
) -> Callable[[Callable[[O_contra], R_co]], Callable[[O_contra], R_co]]:
    """Makes a verb one that writes into a folder, with what goes for all of them.

    Args:
        place: the option that names the folder; "a, b": a if it is given, else b.
        memory: what to do if memory runs out.
        use: together: one run at a time, whose processes share the work (`ranks`); alone: one process; shared: the verb
            itself sees who does what; visited: it leaves one whole file.
        new: the folder is made if it is not there; False: the verb says what is wrong then.
    """

    def around(run: Callable[[O_contra], R_co]) -> Callable[[O_contra], R_co]:
        @wraps(run)
        def framed(options: O_contra) -> R_co:
            where = next(filter(None, (getattr(options, name) for name in place.split(", "))), ".")
            if "://" in str(where) or (not new and Path(where).is_file()):
                raise OnbrandError("folder", f"{place} is written into; got {where}: give a folder of this machine")
            folder = Path(where)
            first = all(os.environ.get(name, "0") == "0" for name in RANKS)
            if use != "together" and world() > 1:
                way = "start it several times, and it is shared" if use == "shared" else "start it by itself"
                raise OnbrandError(
                    "processes", f"{run.__name__} is no work for a launcher's {world()} processes: {way}"
                )
            claims = first and use != "visited" and (new or folder.is_dir())
            claim = claimed(folder, run.__name__, use == "shared") if claims else nullcontext()
            with enough_memory(memory), enough_space(folder), held_by_first(claim):
                return run(options)

        return framed

    return around


def pushed(run: Callable[[Any], R_co]) -> Callable[[Any], R_co]:
    """Makes a verb one whose folder goes to the Hub in the end, if its options say so: asked for before any work."""

    @wraps(run)
    def framed(options: Any) -> R_co:
        if not options.push_to_hub:
            return run(options)
        name = from_first(partial(open_repository, options.hub_model_id, options.private))
        result = run(options)
        if not rank():
            from onbrand.exporting.repository import upload  # which takes seconds to import

            upload(Path(options.output_dir), name)
        return result

    return framed


@contextmanager
def claimed(folder: Path, verb: str, shared: bool = False) -> Iterator[None]:
    """While this holds, the folder is there, may be written, has no links to elsewhere, and is this run's alone.

    What killed runs left half-written in it is removed. A folder that is still empty in the end is too. shared: it may
    be other runs' as well, and nothing is removed.

    Raises:
        OnbrandError: it is a file, may not be written, holds a link, or another run works in it.
    """
    parents = [one for one in (folder, *folder.parents) if not os.path.lexists(one)]
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            linked = [folder / name for name in WRITTEN if (folder / name).is_symlink()]
            draft = draft_of(folder / LOCK)
            append(draft).close()
            draft.unlink()
        except FileExistsError as error:
            what = "a file" if folder.exists() else "a link that leads nowhere"
            raise OnbrandError("folder", f"the output is a folder; got {folder}, {what}: take another") from error
        except OSError as error:
            raise OnbrandError("space" if error.errno in FULL else "folder", barred(error, folder)) from error
        if linked:
            raise OnbrandError(
                "folder",
                f"{linked[0]} is a link, to {os.readlink(linked[0])}; nothing is written through one: put what "
                "it leads to in its place, or give another folder",
            )
        with nullcontext() if shared else locked(folder, verb):
            if not shared:
                remove_drafts(folder)
            yield
    finally:
        for parent in parents:
            with suppress(OSError):
                parent.rmdir()


@contextmanager
def in_parts(
    out: Path, record: Mapping[str, Any], parts: Collection[str], last: Collection[str] = ()
) -> Iterator[Path]:
    """A folder for the parts of a result, which are moved to their places in `out` when the block ends well.

    Args:
        out: the result's folder, of its own.
        record: what RUN says, its command among it.
        parts: the names that parts may have.
        last: those that make the folder a result: moved last.

    Raises:
        OnbrandError: the folder holds anything but what the same command, or one that was killed, left in it.
    """
    others, draft = set(os.listdir(out)) - {LOCK, UNFINISHED}, out / UNFINISHED
    if draft.is_dir() or (others and read_json(out / RUN).get("command") == record["command"]):
        others -= {RUN, *parts}
    if others:
        raise OnbrandError(
            "folder", f"the result goes into a folder of its own; {out} is not empty ({min(others)}): take another"
        )
    with whole_folder(draft) as folder:
        yield folder
        write_json(folder / RUN, record)
    for part in (*last, RUN, *parts):
        discard(out / part)
    for part in sorted(os.listdir(draft), key=lambda name: (name in last, name)):
        os.replace(draft / part, out / part)
    discard(draft)


@contextmanager
def locked(folder: Path, verb: str) -> Iterator[None]:
    """While this holds, no other run has the folder's lock; it is the operating system's, and falls with its process.

    Where a file system knows no locks, a warning says so and the run goes on.
    """
    import socket

    from filelock import FileLock, Timeout

    file = folder / LOCK
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
        while not file.exists():  # it was another run's, which removed it in this moment
            lock.release()
            lock.acquire(timeout=0)
    except Timeout as error:
        raise OnbrandError(
            "folder", f"another run writes into {folder} ({holder(file)}): wait until it has ended, or stop it"
        ) from error
    except (OSError, NotImplementedError) as error:
        warnings.warn(f"{folder} cannot be locked ({error}): see that no other run writes into it", stacklevel=3)
    try:
        if lock.is_locked:
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            with suppress(OSError):
                file.write_text(f"onbrand {verb}, process {os.getpid()} on {socket.gethostname()}, since {since}\n")
        yield
    finally:
        with suppress(OSError):
            file.unlink()  # before it is released, so that no other run's is
        lock.release()


def holder(file: Path) -> str:
    """Who holds a lock, as it says itself."""
    with suppress(OSError, ValueError):
        words = file.read_text(encoding="utf-8").strip()
        if words:
            return words[:200]
    return "which one, its lock does not say"


@contextmanager
def enough_space(folder: Path) -> Iterator[None]:
    """While this holds, a disk that is full and a place that may not be written are OnbrandErrors, whoever writes."""
    try:
        yield
    except OnbrandError:
        raise
    except Exception as error:
        number = errno_of(error)
        if number is not None and number in FULL:
            raise OnbrandError("space", full(number, folder)) from error
        if number in DENIED | WRONG and isinstance(error, OSError) and error.filename is not None:
            raise OnbrandError("folder", barred(error, folder)) from error
        raise


def errno_of(error: Exception) -> int | None:
    """The number of the operating system's error behind an error, also where a library says it in words alone."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    words = str(error)
    if type(error).__name__ == "SafetensorError" and (number := re.search(r"\(os error (\d+)\)", words)):
        return int(number[1])
    writes = "PytorchStreamWriter" in words or "iostream" in words
    writes = writes or ("inline_container" in words and "PytorchStreamReader" not in words)
    return errno.ENOSPC if isinstance(error, RuntimeError) and writes else None


def barred(error: OSError, folder: Path) -> str:
    """What to say of a place that may not be read or written."""
    if error.errno is not None and error.errno in FULL:
        return full(error.errno, folder)
    place = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes | os.PathLike) else folder
    place = place.parent if DRAFT.fullmatch(place.name) else place
    right = "give this user the right to, or " if error.errno in DENIED - {errno.EROFS} else ""
    return f"{place} cannot be read or written ({error.strerror}): {right}take another place"


def full(number: int, folder: Path) -> str:
    """What to say of a disk that is full, or a file that may not grow."""
    if number == errno.EFBIG:
        return (
            f"what is written into {folder} would grow past the largest size allowed here ({os.strerror(number)}): "
            "raise it (ulimit -f), or give another folder; the same command then goes on"
        )
    place = next((one for one in (folder, *folder.absolute().parents) if one.exists()), folder)
    size = f": more is needed than the {shutil.disk_usage(place).free / 1e6:.1f} MB that are free"
    if number != errno.ENOSPC:  # a quota: what is free on the disk is not this user's
        size = ""
    elif os.name == "posix" and (disk := os.statvfs(place)).f_files and not disk.f_favail:
        size = f": the disk holds as many files as it can, {disk.f_files:,}"
    return (
        f"there is no space left to write into {folder} ({os.strerror(number)}){size}; free some, or give another "
        "folder, and the same command goes on"
    )
