"""The rows of a folder's metadata files, each with its line, and what the values of a row mean."""

from __future__ import annotations

import csv
import json
import math
import os
import posixpath
import re
import stat
import sys
import warnings
from bisect import bisect_left
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from onbrand.data.addresses import is_listed
from onbrand.data.listing import METADATA, Listing, composed, unfit
from onbrand.data.tables import COLUMNS, open_parquet_file, sound
from onbrand.errors import OnbrandError, UnreadableImage
from onbrand.io import unique

FILES = ("file_name", "conditioning_file_name")
"""What names files, in metadata beside images."""
MISSING = frozenset((
    "", "nan", "NaN", "NAN", "-nan", "-NaN", "None", "null", "Null", "NULL", "NaT", "<NA>", "NA", "N/A", "n/a", "#N/A",
))  # fmt: skip
"""What programs write for a value that is not there; "none" is a word."""
_NO_TEXT = re.compile(r"[\x00-\x08\x0e-\x1b\x7f\ud800-\udfff]")
"""NUL bytes (UTF-16 taken for UTF-8), other control characters but white space, half surrogate pairs."""
LONGEST, LONGEST_NAME, LONGEST_CLASS = 2**31 - 1, 1024, 200
"""Characters of a value of a CSV, of a file's name, and of a class's: prompts begin with it."""
CALLED_OTHERWISE = frozenset(("text", "texts", "caption", "captions", "prompt", "prompts"))
"""Columns that are captions by another name, in any case."""


class Row(NamedTuple):
    """What one row says of its image, as it stands there."""

    path: str
    """Of its file."""
    cells: Mapping[str, Any]
    """The values of COLUMNS that the row has."""
    conditioning: Path | None = None
    place: str = ""
    """Where it stands, as "line 3 of metadata.jsonl"; "" if `path` says it."""


@dataclass
class Notes:
    """What is to be said of all metadata of a folder, beside its rows."""

    refused: list[UnreadableImage] = field(default_factory=list)
    """Missing, named twice, outside of the folder."""
    columns: dict[str, Any] = field(default_factory=dict)
    """Column that is not read -> its first value that is not missing."""


def is_missing(value: Any) -> bool:
    """Whether a value is none: null, NaN, or a program's word for it."""
    if isinstance(value, str):
        return value.strip() in MISSING
    return value is None or (isinstance(value, (float, Decimal)) and math.isnan(value))


def text_of(value: Any) -> str:
    """A value as text, "" if it is missing.

    Raises:
        ValueError: it is no single value, or no text that can be written; the message begins with the verb.
    """
    if is_missing(value):
        return ""
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"holds bytes that are not UTF-8 ({error.reason})") from error
    if not isinstance(value, str):
        if isinstance(value, list | tuple | dict | set) or hasattr(value, "__array__"):
            raise ValueError("holds several values, and must be a single one")
        if isinstance(value, float) and value in (float("inf"), float("-inf")):
            raise ValueError(f"is {value}, no text")
    text = str(value)
    if not text.isprintable() and (match := _NO_TEXT.search(text)):
        raise ValueError(f"holds the character {ascii(match[0])}, which is no text")
    return text


def class_of(value: Any) -> str:
    """A value as the name of a class, "" if it is missing: its ends trimmed, in Unicode's composed form.

    Raises:
        ValueError: it is no name.
    """
    name = composed(text_of(value).strip())
    if reason := unfit(name):
        raise ValueError(f"is {reason}")
    if len(name) > LONGEST_CLASS:
        raise ValueError(f"is a name of {len(name)} characters, over {LONGEST_CLASS}: a caption goes into text")
    return name


def attributes_of(value: Any) -> Mapping[str, str] | None:
    """An object's attribute -> label, less those missing (a table has every key in every row); None for no object."""
    if not isinstance(value, dict):
        return None
    labels = {name: label for name, label in value.items() if not is_missing(label)}
    return labels if labels or not value else None


def check_columns(columns: Mapping[str, Any] | list[str], where: Path) -> None:
    """OnbrandError if captions stand in a column of another name."""
    similar = sorted(name for name in columns if name.strip().casefold() in CALLED_OTHERWISE)
    if similar and "text" not in columns:
        raise OnbrandError(
            "data",
            f"captions are read from the column `text`; {where} has `{similar[0]}` instead. Rename it (in a table: "
            "rename_column(...) of datasets)",
        )


def read_metadata(listing: Listing, notes: Notes) -> Iterator[Row]:
    """The rows of a folder's metadata files, in their order; warns at their end of images that no row names.

    Names are relative to their metadata's folder and stay in it, as `datasets` has it: a folder that is passed on shows
    nothing of the machine that it is read on.

    Read plainly and not by `datasets.load_dataset("imagefolder")`, which gives the same rows (a test says so) but asks
    a server to count the load, copies the rows into a cache that outlives them, lets one row that leaves the folder or
    changes a type spoil all the others without saying its line, and reads a CSV's class "001" as the number 1.

    Args:
        listing: the folder.
        notes: is filled in.

    Raises:
        OnbrandError: with the line, for what is no metadata at all.
    """
    prefix = os.path.join(listing.folder, "")
    first = dict.fromkeys(listing.images, 0)
    """File -> its first line among those of all metadata; 0 for none."""
    begins: list[int] = []
    controls: set[str] = set()
    last = 0
    for relative in listing.metadata:
        begins.append(last)
        metadata, beside = listing.folder / relative, relative.removesuffix(posixpath.basename(relative))
        several = [name for name in METADATA if beside + name in listing.metadata]
        if len(several) > 1:
            raise OnbrandError(
                "data", f"a folder has one metadata file; {metadata.parent} has {' and '.join(several)}. Keep one"
            )
        columns: dict[str, Any] = {}
        for line, values in _lines(metadata):
            for name, value in values.items():
                if columns.get(name) is None:
                    columns[name] = None if is_missing(value) else value
            place, last = f"line {line} of {relative}", begins[-1] + line
            file, fault = _locate(listing, beside, values.get("file_name"), first)
            control, broken = _locate(listing, beside, values.get("conditioning_file_name"), first)
            if file is None:
                said = f": its file_name is {fault}" if fault else " has no file_name"
                notes.refused.append(UnreadableImage(metadata, f"line {line}{said}"))
                continue
            reason = None
            if fault:
                reason = f"{fault} ({place})"
            elif broken:
                reason = f"its conditioning image {values['conditioning_file_name']} is {broken} ({place})"
            elif first.get(file):
                number = bisect_left(begins, first[file]) - 1
                before = f"line {first[file] - begins[number]} of {listing.metadata[number]}"
                reason = f"named again in {place}, first in {before}"
            if not fault:
                first[file] = first.get(file) or last
            if control:
                controls.add(control)
            if reason:
                notes.refused.append(UnreadableImage(listing.folder / file, reason))
            else:
                condition = listing.folder / control if control else None
                yield Row(prefix + file, {name: values[name] for name in COLUMNS if name in values}, condition, place)
        if "file_name" not in columns:
            names = ", ".join(columns) or "no row"
            raise OnbrandError("data", f"{metadata} needs `file_name` in its rows; got {names}. Mend its rows")
        check_columns(columns, metadata)
        notes.columns |= {
            name: value for name, value in columns.items() if name not in (*COLUMNS, *FILES) and value is not None
        }
    unnamed = [name for name in listing.images if not first[name] and name not in controls]
    if unnamed:
        warnings.warn(
            f"{len(unnamed)} images in {listing.folder} are named by no metadata and are left out, {unnamed[0]} first",
            stacklevel=5,
        )


def _locate(listing: Listing, beside: str, value: Any, there: Container[str]) -> tuple[str | None, str | None]:
    """(name relative to the listing's folder, why it cannot be used) of a name that stands in metadata; None for none.

    Args:
        listing: the folder.
        beside: the metadata's own folder, "" or with "/" at its end.
        value: the name.
        there: files known to be there, which are not looked at again.
    """
    if isinstance(value, str) and (place := beside + value) in there:
        return place, None
    if is_missing(value):
        return None, None
    if not isinstance(value, str):
        return None, f"no text: {str(value)[:60]}"
    if reason := unfit(value.strip()) or (f"too long: {value[:60]} ..." if len(value) > LONGEST_NAME else None):
        return None, reason
    name = value.strip().replace("\\", "/")
    if "://" in name:
        return posixpath.join(beside, name), OUTSIDE
    name = posixpath.normpath(name)
    place = posixpath.join(beside, name)
    reason = unreachable(os.path.join(listing.folder, place), name)
    if reason == "missing":
        if spelled := listing.spelled(place):
            return spelled, None
        if near := listing.near(place):
            reason = f"missing; {near} is there: write the name as the file's"
    return place, reason


def _lines(metadata: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, values) of every row; OnbrandError, with the line, for what cannot be read."""
    reason = unreachable(metadata, metadata.name)
    if reason:
        raise OnbrandError("data", f"{metadata} cannot be read: {reason}. Mend it, or take it out")
    read = {".parquet": _of_parquet, ".csv": _of_csv, ".jsonl": _of_json}[metadata.suffix]
    try:
        yield from read(metadata)
    except UnicodeDecodeError as error:
        raise OnbrandError("data", f"{metadata} is not UTF-8 ({error}). Save it as UTF-8") from error
    except OSError as error:
        raise OnbrandError(
            "data", f"{metadata} cannot be read: {error.strerror or error}. Mend it, or take it out"
        ) from error


def _of_json(metadata: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    decoder = json.JSONDecoder(object_pairs_hook=unique)
    with metadata.open(encoding="utf-8-sig", newline="") as file:
        for line, text in enumerate(file, 1):
            if not text.strip():
                continue
            try:
                values = decoder.decode(text.rstrip())
            except json.JSONDecodeError as error:
                raise OnbrandError(
                    "data",
                    f"{metadata}, line {line}, column {error.colno} is no JSON: {error.msg}. Write one object a line",
                ) from error
            except RecursionError as error:
                raise OnbrandError("data", f"{metadata}, line {line} is nested too deep. Write flat values") from error
            except ValueError as error:  # a key twice; Python reads no number of so many digits
                limit = sys.get_int_max_str_digits()
                fault = str(error) if " twice" in str(error) else f"a number of over {limit} digits"
                remedy = "Take one out" if " twice" in str(error) else "Write it as text"
                raise OnbrandError("data", f"{metadata}, line {line} has {fault}. {remedy}") from error
            if not isinstance(values, dict):
                raise OnbrandError("data", f"{metadata}, line {line}: a row is a JSON object; got {text.strip()[:60]}")
            yield line, values


def _of_csv(metadata: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with metadata.open(encoding="utf-8-sig", newline="") as file:
        csv.field_size_limit(LONGEST)
        table = csv.DictReader(file, strict=True)
        try:
            header = table.fieldnames or ("nothing",)
            if "file_name" not in header:
                raise OnbrandError(
                    "data",
                    f"{metadata} needs a column file_name; got {', '.join(header)[:200]}. Mend its header: names, "
                    "separated by commas",
                )
            twice = sorted({name for name in header if list(header).count(name) > 1})
            if twice:
                raise OnbrandError("data", f"{metadata} has the column {twice[0]} twice. Mend its header")
            for values in table:
                if None in values:
                    raise OnbrandError(
                        "data", f"{metadata}, line {table.line_num} has more fields than the header. Quote commas"
                    )
                yield table.line_num, values
        except csv.Error as error:
            raise OnbrandError(
                "data",
                f"{metadata}, line {table.line_num + 1} cannot be read: {error}. Write one row a line, and close "
                "every quote",
            ) from error


def _of_parquet(metadata: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with sound(metadata), open_parquet_file(metadata) as table:
        rows = [row for batch in table.iter_batches() for row in batch.to_pylist()]
    yield from enumerate(rows, 1)


OUTSIDE = "outside the folder of its metadata"


def unreachable(file: str | Path, name: str) -> str | None:
    """Why the regular file that a file of a folder names cannot be used; None if it can.

    Args:
        file: where it lies.
        name: how it is named: a path relative to the folder, normalised, with "/".
    """
    if os.path.isabs(name) or name.split("/", maxsplit=1)[0] == ".." or re.match("[A-Za-z]:/", name):
        return OUTSIDE
    if (listed := is_listed(str(file))) is not None:
        return None if listed else "missing"
    try:
        mode = os.stat(file).st_mode
    except FileNotFoundError:
        return "missing"
    except (OSError, ValueError) as error:
        return f"not to be read: {getattr(error, 'strerror', None) or error}"
    return None if stat.S_ISREG(mode) else "a folder, not a file" if stat.S_ISDIR(mode) else "not a regular file"
