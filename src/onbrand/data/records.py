"""A folder of images as records: file, text, class, control; in one fixed order, without decoding anything."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain, islice
from operator import itemgetter
from pathlib import Path

from PIL import Image

from onbrand.data.addresses import THREADS, Address, ahead, path_of
from onbrand.data.contents import describe
from onbrand.data.images import open_image, read_bytes, shown_size
from onbrand.data.listing import CHECK as CHECK
from onbrand.data.listing import METADATA, Listing, folder_class, walk
from onbrand.data.listing import SHEET as SHEET
from onbrand.data.metadata import Notes, Row, attributes_of, check_columns, class_of, is_missing, read_metadata, text_of
from onbrand.data.tables import SPLITS, Parquet, Saved, of_split, open_parquet, open_saved
from onbrand.data.tars import Tars, caption_in
from onbrand.errors import OnbrandError, UnreadableImage


@dataclass(frozen=True, slots=True)
class Record:
    """One image of a folder or table."""

    path: str
    """Of the file; for a row of a table or tar, its path / the row's number or name. Text, for Paths are heavy."""
    text: str
    """The caption, "" where there is none."""
    class_name: str
    """The class of image; "default" where no class is given anywhere."""
    index: int
    """Position among the records of `read_folder`, from 0."""
    conditioning: Path | None = None
    """A control image (`conditioning_file_name`)."""
    table: Parquet | Saved | Tars | None = None
    row: int = -1
    attributes: Mapping[str, str] | None = None
    """What the image shows, attribute -> label (`attributes`), where its metadata says so."""

    @property
    def file(self) -> Path:
        """The file at `path`."""
        return path_of(self.path)

    def read(self) -> bytes:
        """The image file's bytes; UnreadableImage where they cannot be had."""
        if self.table is None:
            return read_bytes(self.file)
        try:
            content = self.table.read(self.row)
        except UnreadableImage as error:
            raise UnreadableImage(self.file, f"{error.file.as_posix()} is {error.reason}") from error
        except OnbrandError as error:
            if error.code == "network":
                raise
            raise UnreadableImage(self.file, str(error)) from error
        if not content:
            raise UnreadableImage(self.file, "the row holds no image")
        return content

    def open(self) -> Image.Image:
        """The image, as `images.open_image` shows it; UnreadableImage where it cannot be had."""
        return open_image(self.file, self.read())

    @property
    def size(self) -> tuple[int, int] | None:
        """(H, W) of the image as it is shown; None where it cannot be had."""
        try:
            return shown_size(self.file, self.read())
        except UnreadableImage:
            return None

    @property
    def stamp(self) -> Path:
        """The file whose size and times tell whether the bytes may have changed."""
        return self.file if self.table is None else self.table.stamp(self.row)


@dataclass(frozen=True)
class Folder:
    """A folder or table of images, read."""

    path: Path
    records: list[Record]
    refused: list[UnreadableImage]
    """What cannot be used, each with its reason."""
    contents: tuple[str, ...]
    """What was found, in lines: images, captions, classes, and what looks like one of them and was not read."""


def read_folder(path: str | Path, split: str | None = None) -> tuple[list[Record], list[UnreadableImage]]:
    """The records of `open_folder`, and what cannot be used."""
    folder = open_folder(path, split)
    return folder.records, folder.refused


def open_folder(path: str | Path, split: str | None = None) -> Folder:
    """Read a folder of images.

    In this order of precedence: a dataset saved by `datasets`; `metadata.jsonl` / `.csv` / `.parquet` beside images or
    in sub-folders (`file_name`, `text`, `class`, `conditioning_file_name`: the conventions of `datasets`' imagefolder),
    in the rows' order; images with captions beside them (kohya: `a.png`, `a.txt`) or without, in the order of their
    paths, the class being the first sub-folder's name less a repeat count (`10_garment` -> "garment"); Parquet with
    embedded images; tars of images (`data.tars`).

    Args:
        path: the folder, a .parquet or .tar file, or a pattern of such files (`{0000..0009}.tar`); or the address of
            one (`data.addresses`).
        split: picks a sub-folder, or one split of a dataset.

    Raises:
        OnbrandError: an unknown path, metadata that cannot be read, captions in a column of another name, no images.
    """
    if shards := expand(str(path)):
        return _from_shards(path_of(path), shards, split)
    folder = path_of(path)
    if isinstance(folder, Address):
        return _from_address(folder, split)
    try:
        mode = folder.stat().st_mode
        reason = None if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else "is neither a folder nor a file"
    except FileNotFoundError:
        reason = "does not exist"
    except (OSError, ValueError) as error:
        reason = f"cannot be read ({getattr(error, 'strerror', None) or error})"
    if str(path).encode(errors="replace").decode() != str(path):
        reason = "has a name that is not UTF-8: rename it"
    if reason:
        raise OnbrandError(
            "data",
            f"images are read from a folder, a .parquet or .tar file or a saved dataset; {path} {reason}. "
            "Give an existing path; a dataset of the Hub is saved to one first (load_dataset, save_to_disk)",
        )
    if folder.is_file():
        if folder.suffix not in SHARDS:
            raise OnbrandError(
                "data", f"a single file can only be .parquet or .tar; got {folder}. Give the folder that holds it"
            )
        return _from_shards(folder, [folder], split)
    if os.path.isfile(folder / "dataset_dict.json") or all(os.path.isfile(folder / name) for name in SAVED):
        return _from_table(folder, open_saved(folder, split))
    return _from_folder(folder, split)


def _from_address(folder: Address, split: str | None) -> Folder:
    if folder.suffix not in SHARDS:
        return _from_folder(folder, split)
    if not folder.is_file():
        raise OnbrandError("data", f"images are read from a folder, a .parquet or .tar file; {folder} is not there")
    return _from_shards(folder, [folder], split)


def _from_folder(folder: Path, split: str | None) -> Folder:
    if split is not None and (Path(split).is_absolute() or ".." in Path(split).parts):
        raise OnbrandError(
            "data", f"no folder {split!r}, and no split: that is a name in {folder}. Give a folder that is there"
        )
    if split is not None and (folder / split).is_dir():
        folder, split = folder / split, None
    listing = walk(folder)
    if isinstance(folder, Address) and ("dataset_dict.json" in listing.others or {*SAVED} <= {*listing.others}):
        raise OnbrandError(
            "data", f"{folder} is a dataset saved by `datasets`, which is read from a disk: fetch it first"
        )
    if (names := listing.tables or listing.tars) and not listing.metadata and not listing.images:
        return _from_shards(folder, [folder / name for name in names], split, listing)
    splits = sorted({name.split("/")[0] for name in (*listing.images, *listing.metadata) if "/" in name} & set(SPLITS))
    if split is not None or len(splits) > 1:
        if not splits:
            raise OnbrandError("data", f"{folder} holds no splits, and no folder {split!r}. Leave split out")
        problem = f"split={split!r} is none of them" if split else "one is used at a time"
        raise OnbrandError("data", f"{folder} holds the splits {splits}: {problem}. Give one's own folder or split=...")
    if listing.metadata:
        notes = Notes()
        records, unfit_rows = _build(read_metadata(listing, notes))
        contents = describe(folder, records, listing, set(listing.metadata), notes.columns)
        refused = notes.refused + unfit_rows
        named = {entry.file for entry in refused}
        return Folder(folder, records, [*refused, *(one for one in listing.refused if one.file not in named)], contents)
    if not listing.images and not listing.refused:
        raise _no_images(folder, f": no metadata ({', '.join(METADATA)}), no image files, no Parquet or tar", listing)
    return _from_files(listing)


SAVED = ("state.json", "dataset_info.json")
"""What `Dataset.save_to_disk` leaves beside its tables."""
SHARDS = (".parquet", ".tar")
MOST = 1_000_000
"""Files of a pattern."""
_RANGE = re.compile(r"(.*?)\{([0-9]{1,9})\.\.([0-9]{1,9})\}(.*)")


def expand(pattern: str) -> list[Path]:
    """The files of a pattern as bash has it, `shards-{0000..0009}.tar`; none for a path without one, or that is there.

    Raises:
        OnbrandError: they are no tars or Parquet.
    """
    match = _RANGE.fullmatch(pattern)
    if match is None or os.path.lexists(pattern):
        return []
    before, first, last, after = match.groups()
    if not after.endswith(SHARDS) or not 0 <= int(last) - int(first) < MOST:
        raise OnbrandError(
            "data", f"a pattern names files in order, as shards-{{0000..0009}}.tar, at most {MOST}; got {pattern}"
        )
    padded = any(number[0] == "0" != number for number in (first, last))
    width = max(len(first), len(last)) if padded else 0
    names = [f"{before}{number:0{width}d}{after}" for number in range(int(first), int(last) + 1)]
    return [file for name in names for file in expand(name) or [path_of(name)]]


def _from_files(listing: Listing) -> Folder:
    records: list[Record] = []
    refused = list(listing.refused)
    read: set[str] = set()
    captions = [listing.caption_of(name) for name in listing.images]

    def read_one(caption: str | None) -> str | ValueError:
        return _read_caption(listing.folder / caption) if caption else ""

    remote = isinstance(listing.folder, Address)
    texts = ahead(read_one, captions, THREADS) if remote else map(read_one, captions)
    for name, caption, text in zip(listing.images, captions, texts, strict=True):
        file = listing.folder / name
        if caption:
            read.add(caption)
        if isinstance(text, ValueError):
            refused.append(UnreadableImage(file, f"its caption {caption} {text}"))
            continue
        records.append(Record(str(file), text, folder_class(name) or "default", len(records)))
    return Folder(listing.folder, records, refused, describe(listing.folder, records, listing, read))


def _read_caption(file: Path) -> str | ValueError:
    """A caption on one line, or why there is none."""
    try:
        if not file.is_file():  # a pipe would wait for ever
            raise ValueError("is no regular file")
        return caption_in(file.read_bytes())
    except OSError as error:
        return ValueError(f"cannot be read: {error.strerror or error}")
    except OnbrandError:
        raise
    except ValueError as error:
        return error


def _from_shards(path: Path, files: list[Path], split: str | None, listing: Listing | None = None) -> Folder:
    """The photos in Parquet files or tars. listing: of the folder, if they are all that it holds."""
    if files[0].suffix == ".parquet":
        return _from_table(path, open_parquet(files, split), listing)
    tars = Tars(of_split(files, split), path if listing else path.parent)
    records, refused = _build(tars.rows(), tars)
    refused += tars.refused
    if listing:
        refused += listing.refused
        tars.rest.others += [*listing.others, *listing.captions]
    if not records:
        raise _no_images(path, f": {refused[0]}" if refused else "", tars.rest)
    return Folder(path, records, refused, describe(path, records, tars.rest, set(), tars.columns))


def _from_table(path: Path, table: Parquet | Saved, listing: Listing | None = None) -> Folder:
    columns = table.unread()
    rows = (Row(str(file), cells) for file, cells in table.rows())
    first = list(islice(rows, 1))
    if not any("text" in row.cells for row in first):
        check_columns(list(columns), path)
    records, refused = _build(chain(first, rows), table)
    read, others = (set(listing.tables), listing.refused) if listing else (set(), [])
    return Folder(path, records, [*refused, *others], describe(path, records, listing, read, columns))


_class_of = lru_cache(1024)(class_of)


def _no_images(path: Path, reason: str, listing: Listing) -> OnbrandError:
    _, *others = describe(path, [], listing, set())
    return OnbrandError("data", f"no images in {path}{reason}{''.join(f'; {line.strip()}' for line in others)}")


def _build(
    rows: Iterable[Row], table: Parquet | Saved | Tars | None = None
) -> tuple[list[Record], list[UnreadableImage]]:
    """Rows, taken one by one, -> records; where any row has a class, one without is refused."""
    classed, names = False, {"": "default"}  # equal names are one text in memory
    records: list[Record] = []
    refused: list[tuple[int, UnreadableImage]] = []
    unclassed: list[tuple[int, int, str]] = []
    for number, row in enumerate(rows):
        place = f" ({row.place})" if row.place else ""
        classed = classed or not is_missing(row.cells.get("class"))
        column, name = "text", ""
        try:
            text = text_of(row.cells.get("text"))
            column, value = "class", row.cells.get("class")
            name = _class_of(value) if isinstance(value, str) else class_of(value)
        except ValueError as error:
            refused.append((number, UnreadableImage(path_of(row.path), f"its {column} {error}{place}")))
            continue
        if not name:
            unclassed.append((len(records), number, place))
        records.append(
            Record(
                row.path,
                text,
                names.setdefault(name, name),
                len(records),
                row.conditioning,
                table,
                -1 if table is None else number,
                attributes_of(row.cells.get("attributes")),
            )
        )
    if classed and unclassed:
        for index, number, place in unclassed:
            reason = f"without a class, while other rows have one{place}"
            refused.append((number, UnreadableImage(records[index].file, reason)))
        without = {index for index, _, _ in unclassed}
        others = (record for record in records if record.index not in without)
        records = [replace(record, index=index) for index, record in enumerate(others)]
    return records, [error for _, error in sorted(refused, key=itemgetter(0))]
