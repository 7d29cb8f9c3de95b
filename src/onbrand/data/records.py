"""The rows of a folder of images: file, text, class, control; in one fixed order, without decoding anything."""

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

from PIL import Image

from onbrand.data.images import open_image, read_bytes
from onbrand.data.tables import SPLITS, Parquet, Saved, open_parquet, open_saved
from onbrand.errors import OnbrandError, UnreadableImage

CAPTIONS = (".txt", ".caption")
SUFFIXES = frozenset((
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".jp2",
    ".j2k", ".jpx", ".ppm", ".pgm", ".pnm", ".avif", ".heic", ".heif", ".psd", ".svg", ".tga",
))  # fmt: skip
"""What counts as an image where no metadata names it. The last five are not decoded: they are listed as refused."""
CHECK, SHEET = "check.json", "check.png"
"""What a check leaves in the folder it has checked; the sheet beside it is no image of the folder."""


@dataclass(frozen=True, slots=True)
class Record:
    """One image of a folder or table."""

    file: Path
    """The file; for a row of a table, the table's path / the row's number."""
    text: str
    """The caption, "" where there is none."""
    class_name: str
    """The class of image; "default" where no class is given anywhere."""
    index: int
    """Position among the records of `read_folder`, from 0."""
    conditioning: Path | None = None
    """A control image (`conditioning_file_name`)."""
    table: Parquet | Saved | None = None
    row: int = -1
    attributes: Mapping[str, str] | None = None
    """What the image shows, attribute -> label (`attributes`), where its metadata says so."""

    def read(self) -> bytes:
        """The image file's bytes; UnreadableImage where they cannot be had."""
        if self.table is None:
            return read_bytes(self.file)
        try:
            content = self.table.read(self.row)
        except OSError as error:
            raise UnreadableImage(self.file, f"cannot be read: {error}") from error
        if not content:
            raise UnreadableImage(self.file, "the row holds no image")
        return content

    def open(self) -> Image.Image:
        """The image, as `images.open_image` shows it; UnreadableImage where it cannot be had."""
        return open_image(self.file, self.read())

    @property
    def stamp(self) -> Path:
        """The file whose size and times tell whether the bytes may have changed."""
        return self.file if self.table is None else self.table.stamp(self.row)


def read_folder(path: str | Path, split: str | None = None) -> tuple[list[Record], list[UnreadableImage]]:
    """The records of `path`, and the rows that cannot be used, each with its reason.

    In this order of precedence: a dataset saved by `datasets`; `metadata.jsonl` / `.csv` / `.parquet` beside images
    or in sub-folders (`file_name`, `text`, `class`, `conditioning_file_name`: the conventions of `datasets`'
    imagefolder), in the rows' order; images with captions beside them (kohya: `a.png`, `a.txt`) or without, in the
    order of their paths, the class being the first sub-folder's name less a repeat count (`10_garment` -> "garment");
    Parquet with embedded images. `split` picks a sub-folder, or one split of a dataset. Unknown paths and unreadable
    metadata are an OnbrandError.
    """
    folder = Path(path)
    if not folder.exists():
        raise OnbrandError(
            "data",
            f"images are read from a folder, a .parquet file or a saved dataset; {path} does not exist. "
            "Give an existing path; a dataset of the Hub is saved to one first (load_dataset, save_to_disk)",
        )
    if folder.is_file():
        if folder.suffix != ".parquet":
            raise OnbrandError(
                "data", f"a single file can only be .parquet; got {folder}. Give the folder that holds it"
            )
        return _from_table(open_parquet([folder], split))
    if any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return _from_table(open_saved(folder, split))
    if split is not None and (folder / split).is_dir():
        folder, split = folder / split, None
    files = _walk(folder)
    if files.tables and not files.metadata and not files.images:
        return _from_table(open_parquet([folder / name for name in files.tables], split))
    splits = sorted({name.split("/")[0] for name in (*files.images, *files.metadata) if "/" in name} & set(SPLITS))
    if split is not None or len(splits) > 1:
        problem = f"split={split!r} is none of them" if split else "one is used at a time"
        raise OnbrandError("data", f"{folder} holds the splits {splits}: {problem}. Give one's own folder or split=...")
    if files.metadata:
        rows, refused = read_metadata(folder, files.metadata, files.images)
        records, unclassed = _build(rows)
        return records, refused + unclassed
    if not files.images and not files.refused:
        raise OnbrandError(
            "data", f"no images in {folder}: no metadata ({', '.join(METADATA)}), no image files, no Parquet"
        )
    return _from_files(folder, files)


@dataclass
class _Found:
    images: list[str]
    captions: set[str]
    metadata: list[str]
    tables: list[str]
    refused: list[UnreadableImage]


def _walk(folder: Path) -> _Found:
    # links to folders are followed, once; hidden files (macOS leaves ._a.png beside a.png) are not images
    listing, folders_read = _Found([], set(), [], [], []), set()
    for here, folders, files in os.walk(folder, followlinks=True):
        status = os.stat(here)
        if (status.st_dev, status.st_ino) in folders_read:
            folders.clear()
            continue
        folders_read.add((status.st_dev, status.st_ino))
        base = os.path.relpath(here, folder).replace(os.sep, "/")
        base = "" if base == "." else base + "/"
        for name in folders:
            if _suffix(name) in SUFFIXES:
                listing.refused.append(UnreadableImage(Path(here, name), "a folder, not a file"))
        folders[:] = sorted(n for n in folders if n[0] != "." and n != "__MACOSX" and _suffix(n) not in SUFFIXES)
        for name in files:
            suffix = _suffix(name)
            if name[0] == "." or (name == SHEET and CHECK in files):
                continue
            if name in METADATA:
                listing.metadata.append(base + name)
            elif suffix in SUFFIXES:
                listing.images.append(base + name)
            elif suffix in CAPTIONS:
                listing.captions.add(base + name)
            elif suffix == ".parquet":
                listing.tables.append(base + name)
    listing.images.sort()
    listing.metadata.sort()
    listing.tables.sort()
    listing.refused.sort(key=lambda entry: str(entry.file))
    return listing


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _from_files(folder: Path, files: _Found) -> tuple[list[Record], list[UnreadableImage]]:
    records: list[Record] = []
    refused = list(files.refused)
    for name in files.images:
        stem = os.path.splitext(name)[0]
        caption = next((stem + suffix for suffix in CAPTIONS if stem + suffix in files.captions), None)
        try:
            text = "" if caption is None else " ".join((folder / caption).read_text("utf-8-sig").split())
        except (OSError, UnicodeDecodeError) as error:
            refused.append(UnreadableImage(folder / name, f"its caption {caption} cannot be read as UTF-8 ({error})"))
            continue
        class_name = re.sub(r"^\d+_", "", name.split("/")[0]).strip() if "/" in name else ""
        records.append(Record(folder / name, text, class_name or "default", len(records)))
    return records, refused


def _from_table(table: Parquet | Saved) -> tuple[list[Record], list[UnreadableImage]]:
    return _build([Row(*row) for row in table.rows()], table)


def _build(rows: list[Row], table: Parquet | Saved | None = None) -> tuple[list[Record], list[UnreadableImage]]:
    """Rows -> records; where any row has a class, one without is refused."""
    classed = any(row.class_name not in (None, "") for row in rows)
    records: list[Record] = []
    refused: list[UnreadableImage] = []
    for number, row in enumerate(rows):
        name = "" if row.class_name is None else str(row.class_name).strip()
        if isinstance(row.text, list | dict) or isinstance(row.class_name, list | dict):
            refused.append(UnreadableImage(row.file, "its text and its class must be single values"))
        elif classed and not name:
            refused.append(UnreadableImage(row.file, "without a class, while other rows have one"))
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
    """What one row says of its image, as it stands there."""

    file: Path
    text: Any
    class_name: Any
    conditioning: Path | None = None
    attributes: Any = None


def read_metadata(folder: Path, files: Sequence[str], images: Sequence[str]) -> tuple[list[Row], list[UnreadableImage]]:
    """The rows of the metadata `files` in their order, and those refused: missing, named twice, outside the folder.

    `images`: the image files that lie in `folder`; those no row names are warned of. All names are relative to it.
    OnbrandError, with the line, for what is no metadata at all.

    Read plainly and not by `datasets.load_dataset("imagefolder")`, which gives the same rows (a test says so) but asks
    a server to count the load, copies the rows into a cache that outlives them, lets one row that leaves the folder or
    changes a type spoil all the others without saying its line, and reads a CSV's class "001" as the number 1 and
    "None" as nothing.
    """
    rows: list[Row] = []
    refused: list[UnreadableImage] = []
    first: dict[str, tuple[str, int]] = {}
    controls: set[str] = set()
    for relative in files:
        metadata, beside = folder / relative, os.path.dirname(relative)
        if sum((metadata.parent / name).is_file() for name in METADATA) > 1:
            raise OnbrandError(
                "data", f"a folder has one metadata file; {metadata.parent} has {', '.join(METADATA)}. Keep one"
            )
        columns: set[str] = set()
        for line, values in _lines(metadata):
            columns.update(values)
            name, control = _relative(values.get("file_name")), _relative(values.get("conditioning_file_name"))
            if not name:
                refused.append(UnreadableImage(metadata, f"line {line} has no file_name"))
                continue
            place = os.path.join(beside, name)
            file, condition = folder / place, metadata.parent / control if control else None
            reason = _unreachable(file, name)
            if reason is None and place in first:
                before, at = first[place]
                reason = f"named again in line {line} of {relative}, first in line {at} of {before}"
            first.setdefault(place, (relative, line))
            if condition:
                controls.add(os.path.join(beside, control))
                broken = _unreachable(condition, control)
                reason = reason or (f"its conditioning image {control} is {broken}" if broken else None)
            if reason:
                refused.append(UnreadableImage(file, reason))
            else:
                rows.append(Row(file, values.get("text"), values.get("class"), condition, values.get("attributes")))
        similar = columns & {"caption", "captions", "prompt"}
        if similar and "text" not in columns:
            raise OnbrandError(
                "data", f"captions are read from `text`; {metadata} has `{similar.pop()}` instead. Rename it"
            )
    unnamed = [name for name in images if name not in first and name not in controls]
    if unnamed:
        warnings.warn(
            f"{len(unnamed)} images in {folder} are named by no metadata and are left out, {unnamed[0]} first",
            stacklevel=4,
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
                    raise OnbrandError(
                        "data", f"{metadata} needs a column file_name; got {', '.join(header)}. Mend its header"
                    )
                for values in table:
                    line = table.line_num
                    if None in values:
                        raise OnbrandError(
                            "data", f"{metadata}, line {line} has more fields than the header. Quote commas"
                        )
                    yield line, {key: value or None for key, value in values.items()}
                return
            for line, text in enumerate(file, 1):
                if text.strip():
                    values = json.loads(text)
                    if not isinstance(values, dict):
                        raise OnbrandError(
                            "data", f"{metadata}, line {line}: a row is a JSON object; got {text.strip()[:60]}"
                        )
                    yield line, values
    except (json.JSONDecodeError, csv.Error) as error:
        raise OnbrandError(
            "data", f"{metadata}, line {line or 1} cannot be read: {error}. Write one row a line"
        ) from error
    except UnicodeDecodeError as error:
        raise OnbrandError("data", f"{metadata} is not UTF-8 ({error}). Save it as UTF-8") from error


def _relative(name: Any) -> str:
    path: str = name.strip().replace("\\", "/") if isinstance(name, str) else ""
    return path if not path or "://" in path else os.path.normpath(path)


def _unreachable(file: Path, name: str) -> str | None:
    if "://" in name or os.path.isabs(name) or name.split(os.sep, maxsplit=1)[0] == "..":
        return "outside the folder of its metadata"
    try:
        mode = os.stat(file).st_mode
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"not to be read: {error.strerror or error}"
    return None if stat.S_ISREG(mode) else "a folder, not a file" if stat.S_ISDIR(mode) else "not a regular file"
