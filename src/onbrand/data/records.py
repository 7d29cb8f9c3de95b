"""The rows of a folder of pictures: file, text, class, control; in one fixed order, without decoding anything."""

from __future__ import annotations

import csv
import json
import os
import re
import stat
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from onbrand.data.images import Refused, read_bytes
from onbrand.data.tables import SPLITS, Parquet, Saved, open_hub, open_parquet, open_saved

CAPTIONS = (".txt", ".caption")
SUFFIXES = frozenset(
    ".png .jpg .jpeg .jpe .jfif .mpo .webp .tif .tiff .bmp .gif .jp2 .j2k .jpx .ppm .pgm .pnm .avif "
    ".heic .heif .psd .svg .tga".split()
)
"""What counts as a picture where no metadata names it. The last five are not decoded: they are listed as refused."""
CHECK, SHEET = "check.json", "check.png"
"""What a check leaves in the folder it has checked; the sheet beside it is no picture of the folder."""


@dataclass(frozen=True, slots=True)
class Record:
    """One picture of a folder or table."""

    file: Path
    """The file; for a row of a table, the table's path / the row's number."""
    text: str
    """The caption, "" where there is none."""
    class_name: str
    """The kind of picture; "default" where no class is given anywhere."""
    index: int
    """Position among the records of `read_folder`, from 0."""
    conditioning: Path | None = None
    """A control picture (`conditioning_file_name`)."""
    table: Parquet | Saved | None = None
    row: int = -1
    attributes: Mapping[str, str] | None = None
    """What the picture shows, attribute -> label (`attributes`), where its metadata says so."""

    def read(self) -> bytes | Refused:
        """The picture file's bytes, or why they cannot be had."""
        if self.table is None:
            return read_bytes(self.file)
        try:
            return self.table.read(self.row) or Refused(self.file, "the row holds no picture")
        except OSError as error:
            return Refused(self.file, f"cannot be read: {error}")

    @property
    def stamp(self) -> Path:
        """The file whose size and times tell whether the bytes may have changed."""
        return self.file if self.table is None else self.table.stamp(self.row)


def read_folder(path: str | Path, split: str | None = None, hub: bool = False) -> tuple[list[Record], list[Refused]]:
    """The records of `path`, and the rows that cannot be used, each with its reason.

    In this order of precedence: a dataset saved by `datasets`; `metadata.jsonl` / `.csv` / `.parquet` beside pictures
    or in sub-folders (`file_name`, `text`, `class`, `conditioning_file_name`: the conventions of `datasets`'
    imagefolder), in the rows' order; pictures with captions beside them (kohya: `a.png`, `a.txt`) or without, in the
    order of their paths, the class being the first sub-folder's name less a repeat count (`10_garment` -> "garment");
    Parquet with embedded pictures. With `hub`, a path "owner/name" that does not exist here is a dataset of the Hub.
    `split` picks a sub-folder, or one split of a dataset. Unknown paths and unreadable metadata are a ValueError.
    """
    folder = Path(path)
    if not folder.exists():
        if hub and re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)):
            return _from_table(open_hub(str(path), split))
        raise ValueError(
            f"pictures are read from a folder, a .parquet file or a saved dataset; {path} does not exist. "
            "Give an existing path, or hub=True for a dataset of the Hub"
        )
    if folder.is_file():
        if folder.suffix != ".parquet":
            raise ValueError(f"a single file can only be .parquet; got {folder}. Give the folder that holds it")
        return _from_table(open_parquet([folder], split))
    if any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return _from_table(open_saved(folder, split))
    if split is not None and (folder / split).is_dir():
        folder, split = folder / split, None
    found = _walk(folder)
    if found.tables and not found.metadata and not found.pictures:
        return _from_table(open_parquet([folder / name for name in found.tables], split))
    splits = sorted({name.split("/")[0] for name in (*found.pictures, *found.metadata) if "/" in name} & set(SPLITS))
    if split is not None or len(splits) > 1:
        asked = f"split={split!r} is none of them" if split else "one is used at a time"
        raise ValueError(f"{folder} holds the splits {splits}: {asked}. Give one's own folder or split=...")
    if found.metadata:
        rows, refused = read_metadata(folder, found.metadata, found.pictures)
        records, unclassed = _build(rows)
        return records, refused + unclassed
    if not found.pictures and not found.refused:
        raise ValueError(f"no pictures in {folder}: no metadata ({', '.join(METADATA)}), no picture files, no Parquet")
    return _from_files(folder, found)


@dataclass
class _Found:
    pictures: list[str]
    captions: set[str]
    metadata: list[str]
    tables: list[str]
    refused: list[Refused]


def _walk(folder: Path) -> _Found:
    # links to folders are followed, once; hidden files (macOS leaves ._a.png beside a.png) are not pictures
    found, seen = _Found([], set(), [], [], []), set()
    for here, folders, files in os.walk(folder, followlinks=True):
        status = os.stat(here)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        base = os.path.relpath(here, folder).replace(os.sep, "/")
        base = "" if base == "." else base + "/"
        for name in folders:
            if _suffix(name) in SUFFIXES:
                found.refused.append(Refused(Path(here, name), "a folder, not a file"))
        folders[:] = sorted(n for n in folders if n[0] != "." and n != "__MACOSX" and _suffix(n) not in SUFFIXES)
        for name in files:
            suffix = _suffix(name)
            if name[0] == "." or (name == SHEET and CHECK in files):
                continue
            if name in METADATA:
                found.metadata.append(base + name)
            elif suffix in SUFFIXES:
                found.pictures.append(base + name)
            elif suffix in CAPTIONS:
                found.captions.add(base + name)
            elif suffix == ".parquet":
                found.tables.append(base + name)
    found.pictures.sort()
    found.metadata.sort()
    found.tables.sort()
    found.refused.sort(key=lambda entry: str(entry.file))
    return found


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _from_files(folder: Path, found: _Found) -> tuple[list[Record], list[Refused]]:
    records: list[Record] = []
    refused = list(found.refused)
    for name in found.pictures:
        stem = os.path.splitext(name)[0]
        caption = next((stem + suffix for suffix in CAPTIONS if stem + suffix in found.captions), None)
        try:
            text = "" if caption is None else " ".join((folder / caption).read_text("utf-8-sig").split())
        except (OSError, UnicodeDecodeError) as error:
            refused.append(Refused(folder / name, f"its caption {caption} cannot be read as UTF-8 ({error})"))
            continue
        class_name = re.sub(r"^\d+_", "", name.split("/")[0]).strip() if "/" in name else ""
        records.append(Record(folder / name, text, class_name or "default", len(records)))
    return records, refused


def _from_table(table: Parquet | Saved) -> tuple[list[Record], list[Refused]]:
    return _build([Row(*row) for row in table.rows()], table)


def _build(rows: list[Row], table: Parquet | Saved | None = None) -> tuple[list[Record], list[Refused]]:
    """Rows -> records; where any row has a class, one without is refused."""
    classed = any(row.class_name not in (None, "") for row in rows)
    records: list[Record] = []
    refused: list[Refused] = []
    for number, row in enumerate(rows):
        name = "" if row.class_name is None else str(row.class_name).strip()
        if isinstance(row.text, list | dict) or isinstance(row.class_name, list | dict):
            refused.append(Refused(row.file, "its text and its class must be single values"))
        elif classed and not name:
            refused.append(Refused(row.file, "without a class, while other rows have one"))
        else:
            text = "" if row.text is None else str(row.text)
            records.append(
                Record(
                    row.file,
                    text,
                    name or "default",
                    len(records),
                    row.conditioning,
                    table,
                    -1 if table is None else number,
                    row.attributes if isinstance(row.attributes, dict) else None,
                )
            )
    return records, refused


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
