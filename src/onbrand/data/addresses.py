"""Files at an address (s3://, gs://, https:// ...) by fsspec: listed once, read by several threads, and asked for again
if a connection drops. Nothing is asked of a network unless an address was given for the photos themselves.
"""

from __future__ import annotations

import errno
import io
import os
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, TypeVar

from tqdm import tqdm

from onbrand.errors import OnbrandError, printable
from onbrand.io import digest

T = TypeVar("T")
R = TypeVar("R")
WAITS = (1.0, 5.0, 20.0)
"""Seconds before what failed is asked for again; fsspec's own tries come before."""
THREADS = 16
"""That read from an address at a time: most of it is waiting."""
BLOCK = 2**16
"""Bytes read beyond what is asked for, of a tar's headers the captions between two images."""
PACKAGES = {"s3": "onbrand[s3]", "s3a": "onbrand[s3]", "https": "fsspec[http]"}
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://[^/]")
_SECRET = re.compile(r"://[^/@]*:[^/@]*@")
_LASTING = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError, ValueError, TypeError,
            LookupError, ImportError, NotImplementedError, MemoryError)  # fmt: skip
"""Errors that the same question gives again."""
_versions: dict[str, str | None] = {}
"""Address of a file that a server has listed -> what it is known by until it changes; None: nothing is said of that."""


class Address(type(Path())):  # type: ignore[misc]
    """A place at an address as a path; its text is the address, of which pathlib alone would drop a slash."""

    def __str__(self) -> str:
        return re.sub(r"^([^/]+:)/", r"\1//", super().__str__().replace(os.sep, "/"))

    def is_file(self) -> bool:
        """Whether a server has listed it, or says so now."""
        if str(self) not in _versions:
            try:
                about = self.attempt(lambda: self._system.info(str(self)))
            except FileNotFoundError:
                return False
            if about.get("type") != "file":
                return False
            _versions[str(self)] = _version(about)
        return True

    def is_dir(self) -> bool:
        """Whether anything lies below it."""
        return bool(self.attempt(lambda: self._system.isdir(str(self))))

    def files(self) -> dict[str, int]:
        """Name below this folder -> bytes (0 if the server does not say), of all that lies there.

        Raises:
            OnbrandError: it is not there, may not be listed, or cannot be reached.
        """
        from fsspec.asyn import AsyncFileSystem

        root = self._system._strip_protocol(str(self)).rstrip("/") + "/"
        # fsspec's own walk passes over folders that it cannot list; s3fs, gcsfs and adlfs have listings of their own
        own = getattr(type(self._system), "_find", AsyncFileSystem._find) is not AsyncFileSystem._find
        options = {"detail": True} if own else {"detail": True, "on_error": "raise"}
        try:
            found = self.attempt(lambda: self._system.find(root, **options))
        except (OSError, NotImplementedError) as error:
            raise OnbrandError(
                "data", f"{self} cannot be listed: {_words(error)}. Look at its name, and at your credentials for it"
            ) from error
        sizes = {}
        for path, about in sorted(found.items()):
            if path.startswith(root) and about.get("type") == "file" and not path.endswith("/"):
                name = path.removeprefix(root)
                _versions[f"{self}/{name}"] = _version(about)
                sizes[name] = int(about.get("size") or 0)
        return sizes

    def read_bytes(self) -> bytes:
        """All bytes of the file."""
        return bytes(self.attempt(lambda: self._system.cat_file(str(self))))

    def span(self, start: int, size: int) -> bytes:
        """Some of the file's bytes."""
        content = bytes(self.attempt(lambda: self._system.cat_file(str(self), start=start, end=start + size)))
        if len(content) != size:
            raise OnbrandError(
                "data", f"{self} gives {len(content)} bytes where {size} were asked for: fetch it to this machine"
            )
        return content

    def open(self, mode: str = "r", *_: Any, encoding: str | None = None, newline: str | None = None) -> IO[Any]:
        """Text, fetched at once; or bytes, fetched as they are read."""
        if "b" not in mode:
            return io.TextIOWrapper(io.BytesIO(self.read_bytes()), encoding=encoding, newline=newline)
        file: IO[bytes] = self._system.open(str(self), "rb", block_size=BLOCK, cache_type="readahead")
        return file

    def attempt(self, call: Callable[[], T]) -> T:
        """What a call gives, made again if it fails for a reason that may pass.

        Raises:
            OnbrandError: of code network: it has failed each time.
        """
        waits = iter(WAITS)
        while True:
            try:
                return call()
            except _LASTING:
                raise
            except Exception as error:  # aiohttp's, botocore's, the operating system's
                if getattr(error, "status", 0) in (401, 403) or "Credentials" in type(error).__name__:
                    raise PermissionError(errno.EACCES, _words(error)) from error
                wait = next(waits, None)
                if wait is None:
                    raise OnbrandError(
                        "network",
                        f"{self} could not be reached, {len(WAITS) + 1} times ({_words(error)}): look at the network; "
                        "the same command goes on where this one was",
                    ) from error
                tqdm.write(printable(f"{self}: {_words(error)}; asked for again in {wait:g} s"), file=sys.stderr)
                time.sleep(wait)

    @property
    def _system(self) -> Any:
        """The filesystem of the address; fsspec holds one for each thread."""
        import fsspec

        scheme = self.parts[0].rstrip(":")
        try:
            return fsspec.filesystem(scheme, use_listings_cache=False)
        except ImportError as error:
            package = PACKAGES.get(scheme, f"fsspec[{scheme}]")
            raise OnbrandError("data", f"{self} needs another package ({error}): pip install '{package}'") from error
        except ValueError as error:
            raise OnbrandError("data", f"{self} is no address that fsspec knows ({error}). Give another") from error


def path_of(path: str | Path) -> Path:
    """The path or address in a user's text; file:// is a path of this machine.

    Raises:
        OnbrandError: there is a password in it, which results would record.
    """
    text = str(path)
    if isinstance(path, Path) or not _ADDRESS.match(text):
        return path if isinstance(path, Path) else Path(text.removeprefix("file://"))
    if _SECRET.search(text):
        raise OnbrandError(
            "data",
            f"an address holds no password, as it is printed and recorded; got {_SECRET.sub('://...@', text)}. Give it "
            "to the server's own library, by its configuration or the environment",
        )
    return Address(text)


def stamp_of(file: Path) -> tuple[Any, ...] | None:
    """What changes whenever a file may have: its place, size and times, or its address and what the server said of it.

    None if it is not there, or nothing is said.
    """
    if isinstance(file, Address):
        version = _versions.get(str(file))
        return (str(file), version) if version else None
    try:
        status = os.stat(file)
    except (OSError, ValueError):
        return None
    return os.path.abspath(file), status.st_size, status.st_mtime_ns, status.st_ctime_ns


def is_listed(address: str) -> bool | None:
    """Whether a server has listed a file; None for a path of this machine."""
    return address in _versions if _ADDRESS.match(address) else None


def ahead(call: Callable[[T], R], items: Iterable[T], threads: int, depth: int = 0) -> Generator[R, None, None]:
    """`call` of each item, in their order, by threads; no more than `depth` results wait (twice the threads)."""
    pool, futures = ThreadPoolExecutor(threads), deque[Future[R]]()
    try:
        for item in items:
            futures.append(pool.submit(call, item))
            if len(futures) > (depth or 2 * threads):
                yield futures.popleft().result()
        while futures:
            yield futures.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def threads_for(file: Path) -> int:
    """As many as it is worth to open images by: one for each core, or those that wait for a server."""
    return THREADS if isinstance(file, Address) else min(8, os.cpu_count() or 1)


def _version(about: dict[str, Any]) -> str | None:
    """What a server says of a file, in short; None if that is no more than its name and size."""
    said = {key: str(value) for key, value in about.items() if key not in ("name", "type") and value is not None}
    tag = said.get("ETag") or said.get("etag")
    if tag or said.keys() - {"size"}:
        return digest([said.get("size"), tag] if tag else sorted(said.items()))[:16]
    return None


def _words(error: BaseException) -> str:
    return " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())[:200]
