"""Where a verb writes: fit for it before any work, one run at a time; memory and space that run out are one line."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from onbrand import api
from onbrand.api._output import LOCK, claimed, works_in
from onbrand.io import keep_json, whole_file, whole_folder, write_json, write_text
from worlds import raises

HOLDER = """
import sys, time
from pathlib import Path
from onbrand.api._output import claimed
with claimed(Path(sys.argv[1]), "train"):
    (Path(sys.argv[1]) / ".half.0123456789abcdef.tmp").touch()
    print("holds", flush=True)
    time.sleep(60)
"""


@dataclass(frozen=True)
class Options:
    """Of the verb below."""

    output_dir: Any


def run(folder: Any, work: Any = lambda: None, **how: Any) -> Any:
    """A verb that does `work` in `folder`."""

    @works_in("output_dir", "take a smaller batch_size", **how)
    def verb(options: Options) -> Any:
        return work()

    return verb(Options(folder))


@contextmanager
def another(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that works in the folder."""
    environment = os.environ | {"PYTHONPATH": str(Path(api.__file__).parents[2])}
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout and process.stdout.readline() == "holds\n"
            yield process
        finally:
            process.kill()


def test_the_second_run_is_told_who_works_there_and_a_killed_one_leaves_nothing_locked(tmp_path: Path) -> None:
    with another(tmp_path) as process:
        with raises("folder", tmp_path, "onbrand train", f"process {process.pid}", f"since {time.strftime('%Y-%m-')}"):
            run(tmp_path)
        assert (tmp_path / LOCK).exists(), "it is still the other's"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert run(tmp_path, lambda: os.listdir(tmp_path)) == [LOCK], "what the killed one had begun is gone"
    assert not os.listdir(tmp_path)


def test_two_runs_of_one_process_are_two(tmp_path: Path) -> None:
    with claimed(tmp_path, "fit"), raises("folder", "onbrand fit", os.getpid()):
        run(tmp_path)


@pytest.mark.parametrize("verb", ["fit", "train", "generate", "check", "merge", "export", "data"])
def test_every_verb_locks_its_folder(verb: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    calls: dict[str, Any] = {
        "fit": lambda: api.fit(tmp_path, "tiny", out),
        "train": lambda: api.train(tmp_path, "tiny", out),
        "generate": lambda: api.generate(prompt="a", model="tiny", output_dir=out),
        "check": lambda: api.check(out, tmp_path),
        "merge": lambda: api.merge(tmp_path, out),
        "export": lambda: api.export(tmp_path, format="comfyui", output_dir=out),
        "data": lambda: api.data("photos", out, num_images=1),
    }
    with claimed(out, "another"), raises("folder", out, "onbrand another"):
        calls[verb]()


def test_processes_of_one_launch_share_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with claimed(tmp_path, "train"):
        monkeypatch.setenv("RANK", "1")
        assert run(tmp_path, lambda: "goes on") == "goes on"


@pytest.mark.parametrize("error", [OSError(errno.ENOLCK, "No locks available"), NotImplementedError("no flock")])
def test_where_locks_do_not_work_it_goes_on_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def acquire(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    with pytest.warns(UserWarning, match=f"{tmp_path} cannot be locked"):
        assert run(tmp_path, lambda: "goes on") == "goes on"
    assert not os.listdir(tmp_path)


def test_a_place_that_is_no_folder_is_found_first(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    worked: list[str] = []
    for name in ("file", "file/below", "nowhere", "loop", "x" * 300, "nowhere/below"):
        with raises("folder", name[:200]):
            run(tmp_path / name, lambda: worked.append("x"))
    assert not worked and sorted(os.listdir(tmp_path)) == ["file", "loop", "nowhere"]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_place_that_may_not_be_written_is_found_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    open_file = os.open

    def refuse(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if flags & os.O_CREAT and Path(path).parent == tmp_path:
            raise OSError(number, os.strerror(number), str(path))
        return open_file(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", refuse)
    right = ["the right"] if number == errno.EACCES else []
    with raises(
        "folder", f"{tmp_path} cannot be read or written", os.strerror(number), "another place", *right
    ) as caught:
        run(tmp_path, lambda: pytest.fail("it worked"))
    assert ("the right" in str(caught.value)) == bool(right), "nobody has it on a disk that is read-only"


@pytest.mark.parametrize("name", ["model", "state", "validation", "means", "trace", "manifest.jsonl", "log.jsonl"])
@pytest.mark.parametrize("there", [True, False])
def test_nothing_is_written_through_a_link(tmp_path: Path, name: str, there: bool) -> None:
    elsewhere = tmp_path / "elsewhere"
    if there:
        elsewhere.touch() if name.endswith(".jsonl") else elsewhere.mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).symlink_to(elsewhere)
    with raises("folder", tmp_path / "out" / name, elsewhere):
        run(tmp_path / "out", lambda: pytest.fail("it worked"))


def test_a_link_for_the_folder_itself_or_its_cache_is_the_users_own(tmp_path: Path) -> None:
    (tmp_path / "disk" / "cache").mkdir(parents=True)
    (tmp_path / "disk" / "latents").symlink_to(tmp_path / "disk" / "cache")
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "photos").symlink_to(tmp_path)  # what no verb writes
    assert run(tmp_path / "out", lambda: "goes on") == "goes on"


def test_a_folder_that_stays_empty_goes_and_the_users_own_files_stay(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        run(tmp_path / "a" / "b" / "c", lambda: {}["x"])
    assert not os.listdir(tmp_path)
    names = [".own.tmp", ".git", "a.tmp", ".a.123.tmp", ".a.0123456789abcdeX.tmp", "._a.png"]
    for name in names:
        (tmp_path / name).touch()
    run(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(names)


LACKING = [
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried to "
                 "allocate 8000000000 bytes. Error code 12 (Cannot allocate memory)"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8000000000 bytes."),
    RuntimeError("unable to mmap 400 bytes from file <x>: Cannot allocate memory (12)"),
    RuntimeError("std::bad_alloc"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("MPS backend out of memory (MPS allocated: 5.44 GB)"),
    RuntimeError("can't start new thread"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1.00 GiB. See documentation."),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    SafetensorError("I/O error: Cannot allocate memory (os error 12)"),
    ImportError("libtorch_cpu.so: failed to map segment from shared object"),
]  # fmt: skip


@pytest.mark.parametrize("error", LACKING, ids=lambda error: f"{type(error).__name__}: {error}"[:40])
@pytest.mark.parametrize("wrapped", [False, True])
def test_memory_that_runs_out_is_one_line_with_a_remedy(tmp_path: Path, error: Exception, wrapped: bool) -> None:
    def work() -> None:
        if wrapped:
            raise RuntimeError("Failed to import diffusers.x because of the following error") from error
        raise error

    gpu = isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in ("CUDA", "MPS"))
    where = "the GPU has" if gpu else "this machine has"
    with raises("memory", where, "take a smaller batch_size", *(["8,000.0 MB"] if "8000000000" in str(error) else [])):
        run(tmp_path, work)


def test_memory_that_runs_out_for_real_is_one_line(tmp_path: Path) -> None:
    with raises("memory", "this machine", "take a smaller batch_size"):
        run(tmp_path, lambda: torch.empty(1 << 60, dtype=torch.uint8))
    with raises("memory", "this machine"):
        run(tmp_path, lambda: bytearray(1 << 60))


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), KeyError("memory"),
                                   ImportError("No module named x"), ValueError("out of memory")])  # fmt: skip
def test_a_bug_of_ours_keeps_its_traceback(tmp_path: Path, error: Exception) -> None:
    def work() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        run(tmp_path, work)
    assert caught.value is error


FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"),
    RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
    RuntimeError("basic_ios::clear: iostream error"),
]


@pytest.mark.parametrize("error", FULL, ids=lambda error: str(error)[:40])
def test_a_full_disk_is_one_line_whoever_writes(tmp_path: Path, error: Exception) -> None:
    def work() -> None:
        raise error

    quota = isinstance(error, OSError) and error.errno == errno.EDQUOT  # what is free is not this user's then
    with raises("space", tmp_path, "the same command goes on", *([] if quota else ["MB that are free"])) as caught:
        run(tmp_path, work)
    assert quota != ("MB that are free" in str(caught.value))


def test_a_disk_that_holds_no_more_files_is_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Any, *_: Any, **__: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    disk = os.statvfs(tmp_path)
    full = os.statvfs_result((*disk[:5], 8_000, 0, 0, *disk[8:]))
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    monkeypatch.setattr(os, "open", refuse)
    with raises("space", tmp_path, "as many files as it can, 8,000", "free some"):
        run(tmp_path, lambda: pytest.fail("it worked"))


def test_a_damaged_file_is_no_full_disk(tmp_path: Path) -> None:
    def work() -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:145] . PytorchStreamReader failed reading zip archive")

    with pytest.raises(RuntimeError, match="reading zip archive"):
        run(tmp_path, work)


@contextmanager
def small_files(size: int) -> Iterator[None]:
    """While this holds, no file grows past `size` bytes: a disk that is full, as far as who writes can see."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def text(folder: Path) -> None:
    write_text(folder / "a.html", "x" * 100_000)


def tensors(folder: Path) -> None:
    with whole_folder(folder / "model") as draft:
        save_file({"w": torch.zeros(100_000)}, draft / "a.safetensors")


def pickled(folder: Path) -> None:
    with whole_folder(folder / "state") as draft:
        torch.save({"w": torch.zeros(100_000)}, draft / "optimizer.pt")


def embedded(folder: Path) -> None:
    api.data.run.__wrapped__(api.data.options("garments", folder, num_images=30))


@pytest.mark.parametrize("write", [text, tensors, pickled, embedded])
def test_nothing_half_written_is_left_and_the_same_goes_on(tmp_path: Path, write: Any) -> None:
    with small_files(4000), raises("space", tmp_path, "ulimit" if write is not pickled else "free"):
        run(tmp_path, lambda: write(tmp_path))
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".png"]
    run(tmp_path, lambda: write(tmp_path))
    assert [path for path in tmp_path.rglob("*") if path.is_file()]


def test_what_only_caches_is_no_reason_to_fail(tmp_path: Path) -> None:
    (tmp_path / "brand").touch()
    with pytest.warns(UserWarning, match=r"reference\.json is not kept \(.*\): it is computed again"):
        keep_json(tmp_path / "brand" / "reference.json", {"a": 1})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        keep_json(tmp_path / "reference.json", {"a": 1})


def test_a_file_in_the_place_of_a_folder_and_the_other_way_round(tmp_path: Path) -> None:
    (tmp_path / "a.json").mkdir()
    with raises("folder", tmp_path / "a.json", "a folder is there"):
        run(tmp_path, lambda: write_json(tmp_path / "a.json", {}))
    (tmp_path / "model").touch()
    with whole_folder(tmp_path / "model") as draft:
        (draft / "a").touch()
    assert os.listdir(tmp_path / "model") == ["a"]
    with pytest.raises(IsADirectoryError), whole_file(tmp_path / "model"):
        pytest.fail("it began")
