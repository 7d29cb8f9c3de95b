"""Photos in tars, as WebDataset's shards hold them: a tar is listed once, a photo is read where it lies.

By Python's own tarfile and not by `webdataset` or `datasets`, which read from a tar's beginning on: a photo's place in
it is what lets a killed run go on, ranks share the photos, and a check look at some of them. Nothing is unpacked.
"""

from __future__ import annotations

import os
import posixpath
import tarfile
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

from onbrand.data.addresses import Address, ahead, stamp_of, threads_for
from onbrand.data.images import HEAVIEST
from onbrand.data.listing import CAPTIONS, HIDDEN, IGNORED, SUFFIXES, Listing, folder_class, suffix_of, unfit
from onbrand.data.metadata import Row, is_missing, text_of
from onbrand.data.tables import COLUMNS
from onbrand.errors import UnreadableImage
from onbrand.io import parse

LONGEST = 2**20
"""Bytes of a caption, and of what JSON says of a photo."""
_ABOUT = ".json"
"""Suffix of what says more of the photo of the same name: keys `text` (or `caption`), `class`, `attributes`."""
_ARCHIVES = (".tar", ".tgz", ".gz", ".zip")


def caption_in(content: bytes) -> str:
    """A caption on one line; ValueError says why there is none."""
    try:
        return " ".join(text_of(content.decode("utf-8-sig")).split())
    except UnicodeDecodeError as error:
        raise ValueError(f"cannot be read as UTF-8 ({error})") from error


@dataclass
class _Index:
    """What lies in a tar."""

    listing: Listing
    spans: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Image -> where its bytes begin, and how many they are."""
    words: dict[str, str | dict[str, Any] | ValueError] = field(default_factory=dict)
    """Caption or JSON -> what it says, or why it says nothing."""
    stamp: tuple[Any, ...] | None = None
    """Of the tar, when it was listed."""

    def refuse(self, name: str, reason: str) -> None:
        self.listing.refused.append(UnreadableImage(self.listing.folder / name, reason))


@dataclass(eq=False)
class Tars:
    """Tars of photos, each photo with a caption (`a.jpg`, `a.txt`) or JSON (`a.json`) beside it, or with none."""

    files: Sequence[Path]
    root: Path
    """The folder that the tars were found in: their folders below it name classes, as folders in the tars do."""
    refused: list[UnreadableImage] = field(default_factory=list)
    """Filled in by `rows`, as is all below."""
    rest: Listing = field(init=False)
    """What was not read."""
    columns: dict[str, Any] = field(default_factory=dict)
    """Key of the JSON that is not read -> its first value."""

    def __post_init__(self) -> None:
        self.rest = Listing(self.root)
        self._places = array("q")  # of each row: number of the tar, first byte, bytes
        self._stamps: list[tuple[Any, ...] | None] = []

    def rows(self) -> Iterator[Row]:
        """The photos of each tar in the order of their names, as the folder would give them."""
        for number, index in enumerate(ahead(_list, self.files, threads_for(self.files[0]))):
            self._stamps.append(index.stamp)
            self.refused += index.listing.refused
            yield from self._rows(number, index)

    def _rows(self, number: int, index: _Index) -> Iterator[Row]:
        listing, file = index.listing, self.files[number]
        above = file.parent.relative_to(self.root).as_posix() if file.is_relative_to(self.root) else ""
        abouts = (words for words in index.words.values() if isinstance(words, dict))
        classed = any(not is_missing(about.get("class")) for about in abouts)
        read = set()
        for name in listing.images:
            caption, about = listing.caption_of(name), posixpath.splitext(name)[0] + _ABOUT
            path = file / name
            cells: dict[str, Any] = {}
            try:
                for source in (about, caption):
                    words = index.words.get(source) if source else None
                    if isinstance(words, ValueError):
                        raise ValueError(f"its {'caption' if source == caption else 'JSON'} {source} {words}")
                    if words is not None:
                        read.add(source)
                        cells |= self._cells(words) if isinstance(words, dict) else {"text": words} if words else {}
            except ValueError as error:
                self.refused.append(UnreadableImage(path, str(error)))
                continue
            if is_missing(cells.get("class")):
                # as of a folder's images; but where JSON names classes, one that it does not name is refused
                place = posixpath.normpath(posixpath.join(above, name))
                cells["class"] = folder_class(place) or (None if classed else "default")
            if is_missing(cells.get("text")):
                self.rest.images.append(f"{file.name}/{name}")
            self._places.extend((number, *index.spans[name]))
            yield Row(str(path), cells)
        others = {*listing.captions, *listing.metadata, *listing.tables, *listing.others} - read
        self.rest.others += [f"{file.name}/{name}" for name in sorted(others)]
        self.rest.masks += [f"{file.name}/{name}" for name in listing.masks]

    def _cells(self, about: Mapping[str, Any]) -> dict[str, Any]:
        """What JSON says; img2dataset and WebDataset's own examples call the text `caption`."""
        text = "text" if "text" in about else "caption"
        for name, value in about.items():
            if name not in (*COLUMNS, text):
                self.columns.setdefault(name, value)
        return {"text": about.get(text)} | {name: about[name] for name in COLUMNS if name in about and name != "text"}

    def stamp(self, row: int) -> Path:
        """The file whose time and size tell whether the row's bytes may have changed."""
        return self.files[self._places[3 * row]]

    def read(self, row: int) -> bytes:
        """The bytes of the row's image."""
        number, start, size = self._places[3 * row : 3 * row + 3]
        file = self.files[number]
        if _place(file) != self._stamps[number]:
            raise UnreadableImage(file, "another one, or gone, since it was listed")
        try:
            if isinstance(file, Address):
                return file.span(start, size)
            with open(file, "rb") as tar:
                tar.seek(start)
                return tar.read(size)
        except OSError as error:
            raise UnreadableImage(file, f"not to be read: {error.strerror or error}") from error


def _place(file: Path) -> tuple[Any, ...] | None:
    stamp = stamp_of(file)
    return stamp and stamp[:3]


def _list(file: Path) -> _Index:
    """What lies in a tar; one that is broken is refused from there on."""
    index = _Index(Listing(file))
    try:
        if not file.is_file():  # a pipe would be waited for
            raise FileNotFoundError("missing" if not file.exists() else "no regular file")
        index = file.attempt(partial(_scan, file)) if isinstance(file, Address) else _scan(file)
    except OSError as error:
        index.listing.refused.append(UnreadableImage(file, f"not to be read: {error.strerror or error}"))
    index.listing.sort()
    _set_aside(index.listing)
    return index


def _scan(file: Path) -> _Index:
    index = _Index(Listing(file), stamp=_place(file))
    with file.open("rb") as content:
        try:
            _members(content, index)
        except (tarfile.TarError, ValueError, LookupError, ArithmeticError, RecursionError, MemoryError) as error:
            # whatever damaged headers led tarfile to
            there = f"the {len(index.spans)} images before are used" if index.spans else "no image of it is used"
            reason = f"no whole tar, or a compressed one ({error or type(error).__name__}): {there}"
            index.listing.refused.append(UnreadableImage(file, reason))
    return index


def _members(content: IO[bytes], index: _Index) -> None:
    end = content.seek(0, os.SEEK_END)
    content.seek(0)
    names: set[str] = set()
    with tarfile.open(fileobj=content, mode="r:") as tar:
        while member := tar.next():
            tar.members.clear()  # type: ignore[attr-defined]  # or a tar of a million would be held in memory
            if member.size < 0:  # some Pythons would read it for ever
                raise tarfile.ReadError(f"a member of {member.size} bytes")
            name = posixpath.normpath(member.name)
            if member.isdir() or HIDDEN.search(name) or posixpath.basename(name) in IGNORED:
                continue
            if reason := _unfit(member, name, end) or ("named again" if name in names else None):
                if suffix_of(name) in (*CAPTIONS, _ABOUT):  # whose image is refused
                    index.listing.add(name)
                    index.words[name] = ValueError(f"is {reason}")
                else:
                    index.refuse(name.lstrip("/"), reason)
                continue
            names.add(name)
            index.listing.add(name)
            if suffix_of(name) in SUFFIXES:
                index.spans[name] = (member.offset_data, member.size)
            elif suffix_of(name) in (*CAPTIONS, _ABOUT):
                content.seek(member.offset_data)
                index.words[name] = _words(name, content.read(member.size))
        content.seek(tar.offset)
        if content.read(2**16).strip(b"\0"):
            raise tarfile.ReadError(f"what follows byte {tar.offset} is none")


def _unfit(member: tarfile.TarInfo, name: str, end: int) -> str | None:
    """Why a member of a tar that ends at this byte is not read."""
    if reason := unfit(name):
        return reason
    if posixpath.isabs(name) or name.split("/", maxsplit=1)[0] == "..":
        return "a name that leads out of its tar"
    if member.issym() or member.islnk():
        return f"a link, to {member.linkname}: only what lies in a tar itself is read"
    if not member.isreg() or member.issparse():
        return "not a regular file"
    if member.offset_data + member.size > end:
        return "cut off: its tar ends before"
    if suffix_of(name) in _ARCHIVES:
        return "an archive in a tar, which is not looked into"
    if suffix_of(name) in SUFFIXES:
        return f"over {HEAVIEST >> 30} GiB ({member.size} bytes)" if member.size > HEAVIEST else None
    if suffix_of(name) in (*CAPTIONS, _ABOUT) and member.size > LONGEST:
        return f"over {LONGEST >> 20} MiB ({member.size} bytes)"
    return None


def _words(name: str, content: bytes) -> str | dict[str, Any] | ValueError:
    """What a caption or JSON says, or why it says nothing."""
    try:
        if suffix_of(name) in CAPTIONS:
            return caption_in(content)
        about = parse(content)
        return about if isinstance(about, dict) else ValueError("is no JSON object")
    except ValueError as error:
        return error if suffix_of(name) in CAPTIONS else ValueError(f"cannot be read: {error}")


def _set_aside(listing: Listing) -> None:
    """Of a sample of several images (`a.jpg`, `a.depth.png`) the one without a name of its own is the photo."""
    photos = {posixpath.splitext(name)[0] for name in listing.images}
    for name in list(listing.images):
        folder, file = posixpath.split(name)
        key = posixpath.join(folder, file.split(".")[0])
        if key in photos and file.count(".") > 1:
            listing.images.remove(name)
            listing.masks.append(name)
