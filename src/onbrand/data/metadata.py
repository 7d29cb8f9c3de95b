"""metadata.jsonl, .csv or .parquet beside pictures -> rows; and those that name nothing usable, each with its line."""

from __future__ import annotations

import csv
import json
import os
import stat
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .images import Refused

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


class Row(NamedTuple):
    """What one row says of its picture, as it stands there."""

    file: Path
    text: Any
    class_name: Any
    conditioning: Path | None = None
    attributes: Any = None


def read_metadata(folder: Path, files: Sequence[str], pictures: Sequence[str]) -> tuple[list[Row], list[Refused]]:
    """The rows of the metadata `files` in their order, and those refused: missing, named twice, outside the folder.

    `pictures`: the picture files that lie in `folder`; those no row names are warned of. All names are relative to it.
    ValueError, with the line, for what is no metadata at all.

    Read plainly and not by `datasets.load_dataset("imagefolder")`, which gives the same rows (a test says so) but asks
    a server to count the load, copies the rows into a cache that outlives them, lets one row that leaves the folder or
    changes a type spoil all the others without saying its line, and reads a CSV's class "001" as the number 1 and
    "None" as nothing.
    """
    rows: list[Row] = []
    refused: list[Refused] = []
    first: dict[str, tuple[str, int]] = {}
    controls: set[str] = set()
    for relative in files:
        metadata, beside = folder / relative, os.path.dirname(relative)
        if sum((metadata.parent / name).is_file() for name in METADATA) > 1:
            raise ValueError(f"a folder has one metadata file; {metadata.parent} has {', '.join(METADATA)}. Keep one")
        columns: set[str] = set()
        for line, values in _lines(metadata):
            columns.update(values)
            name, control = _relative(values.get("file_name")), _relative(values.get("conditioning_file_name"))
            if not name:
                refused.append(Refused(metadata, f"line {line} has no file_name"))
                continue
            place = os.path.join(beside, name)
            file, steered = folder / place, metadata.parent / control if control else None
            reason = _unreachable(file, name)
            if reason is None and place in first:
                before, at = first[place]
                reason = f"named again in line {line} of {relative}, first in line {at} of {before}"
            first.setdefault(place, (relative, line))
            if steered:
                controls.add(os.path.join(beside, control))
                broken = _unreachable(steered, control)
                reason = reason or (f"its conditioning picture {control} is {broken}" if broken else None)
            if reason:
                refused.append(Refused(file, reason))
            else:
                rows.append(Row(file, values.get("text"), values.get("class"), steered, values.get("attributes")))
        meant = columns & {"caption", "captions", "prompt"}
        if meant and "text" not in columns:
            raise ValueError(f"captions are read from `text`; {metadata} has `{meant.pop()}` instead. Rename it")
    left = [name for name in pictures if name not in first and name not in controls]
    if left:
        warnings.warn(
            f"{len(left)} pictures in {folder} are named by no metadata and are left out, {left[0]} first", stacklevel=4
        )
    return rows, refused


def _lines(metadata: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if metadata.suffix == ".parquet":
        import pyarrow.parquet as pq

        yield from enumerate(pq.read_table(metadata).to_pylist(), 1)
        return
    line = 0
    try:
        with open(metadata, encoding="utf-8-sig", newline="") as file:
            if metadata.suffix == ".csv":
                table = csv.DictReader(file, strict=True)
                header = table.fieldnames or ("nothing",)
                if "file_name" not in header:
                    raise ValueError(f"{metadata} needs a column file_name; got {', '.join(header)}. Mend its header")
                for values in table:
                    line = table.line_num
                    if None in values:
                        raise ValueError(f"{metadata}, line {line} has more fields than the header. Quote commas")
                    yield line, {key: value or None for key, value in values.items()}
                return
            for line, text in enumerate(file, 1):
                if text.strip():
                    values = json.loads(text)
                    if not isinstance(values, dict):
                        raise ValueError(f"{metadata}, line {line}: a row is a JSON object; got {text.strip()[:60]}")
                    yield line, values
    except (json.JSONDecodeError, csv.Error) as error:
        raise ValueError(f"{metadata}, line {line or 1} cannot be read: {error}. Write one row a line") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{metadata} is not UTF-8 ({error}). Save it as UTF-8") from error


def _relative(name: Any) -> str:
    name = name.strip().replace("\\", "/") if isinstance(name, str) else ""
    return name if not name or "://" in name else os.path.normpath(name)


def _unreachable(file: Path, name: str) -> str | None:
    if "://" in name or os.path.isabs(name) or name.split(os.sep)[0] == "..":
        return "outside the folder of its metadata"
    try:
        mode = os.stat(file).st_mode
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"not to be read: {error.strerror or error}"
    return None if stat.S_ISREG(mode) else "a folder, not a file" if stat.S_ISDIR(mode) else "not a regular file"
