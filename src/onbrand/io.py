"""What every room writes with: files and folders that appear whole or not at all, digests, versions."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

from onbrand.errors import OnbrandError

DRAFT = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")
"""Names of drafts: what is written before it has its own name, or on its way out."""


@contextmanager
def whole_file(path: Path, durable: bool = False) -> Iterator[Path]:
    """A name to write a file under, which becomes `path` when the block ends well, and is gone when it does not.

    The file is there, empty, when the block begins: a place that may not be written is found before the work is done.
    A link at `path` is replaced, its target stays as it was.

    durable: flushed to the disk before it is renamed, and its name after, so that a power cut leaves it whole too.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir() and not path.is_symlink():
        raise IsADirectoryError(errno.EISDIR, "a file is to be written, and a folder is there", str(path))
    draft = draft_of(path)
    os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        yield draft
        if durable:
            with open(draft, "rb") as file:
                os.fsync(file.fileno())
        os.replace(draft, path)
        if durable and os.name == "posix":
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """An empty folder to write into, which takes the place of `path` when the block ends well.

    What killed processes left of the same folder is removed. A link at `path` is replaced, its target stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = draft_of(path)
    for former in path.parent.glob(f".{glob.escape(_stem(path))}.*.tmp"):
        if len(former.name) == len(draft.name) and DRAFT.fullmatch(former.name):
            remove(former)
    draft.mkdir()
    try:
        yield draft
        discard(path)
        os.replace(draft, path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def draft_of(path: Path) -> Path:
    """A name beside `path` that nobody can guess, to be created exclusively."""
    return path.with_name(f".{_stem(path)}.{secrets.token_hex(8)}.tmp")


def _stem(path: Path) -> str:
    """A path's name in that of its draft; a digest of one so long that its draft's would be too long."""
    return path.name if len(os.fsencode(path.name)) <= 200 else digest(os.fsencode(path.name))[:32]


def discard(path: Path) -> None:
    """Remove a file or folder such that a kill in between leaves no half of it under its name; a link, not its target.

    Nothing happens if it is not there.
    """
    if path.is_symlink() or path.exists():
        rubbish = draft_of(path)
        os.replace(path, rubbish)
        remove(rubbish)


def remove(path: Path) -> None:
    """Remove a file, a folder with all that is in it, or a link, not its target."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_drafts(folder: Path) -> None:
    """Remove what killed processes left in a folder that no other process writes into, and in its own folders."""
    for draft in (*folder.glob(".*.tmp"), *folder.glob("*/.*.tmp")):
        if DRAFT.fullmatch(draft.name) and not draft.parent.is_symlink():
            remove(draft)


def append(path: Path) -> IO[bytes]:
    """A file opened to add lines to, made if it is not there; OSError for a link."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    return os.fdopen(os.open(path, flags, 0o666), "ab")


def inside(folder: Path, name: object, where: str | Path) -> Path:
    """The path of what a file names: relative to its own folder and in it, wherever links lead.

    Args:
        folder: the folder.
        name: what stands in the file.
        where: the file, for the error.

    Raises:
        OnbrandError: the name is no text, or leads out of the folder.
    """
    try:
        path = folder / str(name)
        local = isinstance(name, str | os.PathLike) and not Path(name).is_absolute() and not Path(name).drive
        local = local and os.path.normpath(str(name)).split(os.sep, 1)[0] != ".."
        if local and path.resolve().is_relative_to(folder.resolve()):
            return path
    except (ValueError, OSError, RuntimeError):  # what is no path at all, and links in a circle
        pass
    raise OnbrandError(
        "folder",
        f"{where} names {str(name)[:200]!r}, which does not lie in {folder}; nothing outside of it is opened: "
        "take that out, or copy the file there",
    )


def check_links(folder: Path, unread: Sequence[str] = ()) -> None:
    """OnbrandError for the first link in a folder, at any depth, that leads out of it.

    Args:
        folder: the folder.
        unread: names of folders in it that are not looked into.
    """
    for here, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in unread)
        for name in (*folders, *sorted(files)):
            if os.path.islink(os.path.join(here, name)):
                inside(folder, os.path.relpath(os.path.join(here, name), folder), "a link")


SCHEMA = 2
"""Of every JSON file that a verb leaves. Files without a schema are of the first, which `upgrade` reads."""
RENAMED = {
    "ground": "background", "ground_near": "background_near", "ground_border": "background_border",
    "ground_share": "background_share", "ground_mean": "background_mean", "ground_spread": "background_spread",
    "ground_pure": "background_pure", "kind": "class", "kind_lead": "class_lead",
    "kind_likelihood": "class_likelihood", "kind_variety": "class_diversity", "stray": "out_of_distribution",
    "told": "descriptive", "learnt": "n_reference", "of": "n", "share": "rate", "pictures": "images",
}  # fmt: skip
"""Key of schema 1 -> of schema 2, in check.json, compare.json, reference.json, unseen.json and demo.json."""
AS_THEY_ARE = {"attributes", "classes", "methods", "rows"}
"""Keys whose own keys are names that somebody gave."""


def write_text(path: Path, text: str) -> None:
    """Write text, whole or not at all; what UTF-8 does not know, in names of files, is written as JSON escapes it."""
    with whole_file(path) as draft:
        draft.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_png(path: Path, image: Any, durable: bool = False) -> None:
    """Write an image of PIL as PNG, whole or not at all; durable: as `whole_file` has it."""
    with whole_file(path, durable) as draft:
        image.save(draft, format="PNG")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON with its schema's version, whole or not at all."""
    write_text(path, json.dumps({"schema": SCHEMA, **content}, indent=2, ensure_ascii=False) + "\n")


def keep_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON that no later work needs; if it cannot be, the folder being read-only or full, a warning says so."""
    try:
        write_json(path, content)
    except OSError as error:
        warnings.warn(f"{path} is not kept ({error.strerror or error}): it is computed again when needed", stacklevel=2)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file by the present schema; {} without the file."""
    return upgrade(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """A jsonl file's lines; a last line that a kill cut off is passed over."""
    lines: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


def upgrade(content: Mapping[str, Any]) -> dict[str, Any]:
    """What a file of schema 1 says by the keys of schema 2; what names its schema passes unchanged."""
    if "schema" in content:
        return dict(content)
    present = _renamed(content, True)
    if "findings" in present:  # leak.json
        for former, name in (("steps", "num_inference_steps"), ("first", "start_timestep")):
            if former in present:
                present[name] = present.pop(former)
    return {"schema": SCHEMA, **present}


def _renamed(value: Any, keys: bool) -> Any:
    """The value with its keys renamed (keys: unless these are names that somebody gave), and its lists of keys."""
    if isinstance(value, Mapping):
        return {
            RENAMED.get(name, name) if keys else name: _renamed(item, name not in AS_THEY_ARE)
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [RENAMED.get(item, item) if isinstance(item, str) else _renamed(item, True) for item in value]
    return value


CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that steer whatever shows them: ends of lines, tabs, a terminal's commands, turns of direction."""


def plain(text: object) -> str:
    """Text that somebody gave, as it is and on one line: what would steer a terminal, table or figure is escaped."""
    return CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), str(text))


def digest(content: object) -> str:
    """sha256 in hex of bytes, or of what JSON makes of anything else."""
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    return hashlib.sha256(data).hexdigest()


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    numbers = {name: version(name) for name in ("onbrand", "torch", "diffusers", "transformers")}
    return numbers | {"python": platform.python_version()}
