"""What every room writes with: files and folders that appear whole or not at all, digests, versions."""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import platform
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from onbrand.errors import OnbrandError, quote


@contextmanager
def whole_file(path: Path, durable: bool = False) -> Iterator[Path]:
    """A name to write a file under, which becomes `path` when the block ends well, and is gone when it does not.

    durable: flushed to the disk before it is renamed, and its name after, so that a power cut leaves it whole too.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = draft_of(path)
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
    """An empty folder to write into, which takes the place of `path` when the block ends well."""
    draft = draft_of(path)
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        yield draft
        discard(path)
        os.replace(draft, path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def draft_of(path: Path) -> Path:
    """The name that this process writes `path` under until it is whole."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def discard(folder: Path) -> None:
    """Remove a folder such that a kill in between leaves no half of it under its name."""
    if folder.exists():
        rubbish = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(rubbish, ignore_errors=True)
        os.replace(folder, rubbish)
        shutil.rmtree(rubbish)


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


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON with its schema's version, whole or not at all."""
    with whole_file(path) as draft:
        text = json.dumps({"schema": SCHEMA, **content}, indent=2, ensure_ascii=False)
        draft.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file by the present schema; {} without the file."""
    return upgrade(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def text_lines(path: Path, code: str) -> Iterator[tuple[int, str]]:
    """The lines of a text file that are not blank, each with its number, from 1: the one reader of lists that people
    write, of JSON lines too (`json_lines`).

    UTF-8, or UTF-16 and UTF-32 with a byte order mark. A line ends where an editor ends it; the separators that
    Unicode has besides (U+2028) are letters. OnbrandError of this code for other bytes, with their line.
    """
    content = path.read_bytes()
    marks = ((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"),
             (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip
    encoding = next((name for mark, name in marks if content.startswith(mark)), "utf-8-sig")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        where = f" line {line}" if encoding == "utf-8-sig" else ""
        raise OnbrandError(
            code, f"{path}{where} is not {encoding.removesuffix('-sig').upper()} ({error.reason}): save it as UTF-8"
        ) from error
    for number, line_text in enumerate(re.split(r"\r\n|\n|\r", text), 1):
        if "\0" in line_text:
            raise OnbrandError(
                code,
                f"{path} line {number} holds a NUL, which no text has: save it as UTF-8; got {quote(line_text, 60)}",
            )
        if line_text.strip():
            yield number, line_text


def json_lines(path: Path, code: str) -> Iterator[tuple[int, Any]]:
    """The values of a file of JSON lines, each with its line's number, from 1; blank lines are passed over.

    OnbrandError of this code, with the line, for what is no JSON, and for what no other program would take: a key
    twice, a nesting of thousands, a number of thousands of digits, a NUL, half a surrogate pair. (NaN passes, as
    Python and pandas write it.)
    """
    for number, line in text_lines(path, code):
        yield number, json_of(line, code, f"{path} line {number}")


def json_of(text: str, code: str, place: str) -> Any:
    """The value of a JSON text; OnbrandError of this code as `json_lines` has it. place: where it stands."""
    try:
        value = json.loads(text, object_pairs_hook=_unique)
        if "\\" in text:  # only an escape can smuggle these in
            words = json.dumps(value, ensure_ascii=False).encode()
            if b"\\u0000" in words:
                raise ValueError("a NUL in a text")
    except RecursionError:
        reason = "nested too deeply"
    except UnicodeEncodeError:
        reason = "half of a surrogate pair in a text"
    except json.JSONDecodeError as error:
        reason = f"{error.msg}, column {error.colno}"
    except ValueError as error:
        reason = str(error).partition(";")[0]
    else:
        return value
    raise OnbrandError(
        code, f"{place} cannot be read as JSON ({reason}); got {quote(text.strip(), 60)}: mend that line"
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; ValueError for a key that stands in it twice."""
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} twice")
    return content


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


def digest(content: object) -> str:
    """sha256 in hex of bytes, or of what JSON makes of anything else."""
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    return hashlib.sha256(data).hexdigest()


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    numbers = {name: version(name) for name in ("onbrand", "torch", "diffusers", "transformers")}
    return numbers | {"python": platform.python_version()}
