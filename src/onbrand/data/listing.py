"""What lies in a folder, by name alone: images, captions, metadata, masks, and what is none of these."""

from __future__ import annotations

import os
import posixpath
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from onbrand.data.addresses import Address
from onbrand.data.images import HEAVIEST
from onbrand.errors import OnbrandError, UnreadableImage

CAPTIONS = (".txt", ".caption")
"""A caption is called as its image is, less its suffix; of two, the first."""
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
SUFFIXES = frozenset((
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".jp2",
    ".j2k", ".jpx", ".ppm", ".pgm", ".pnm", ".avif", ".heic", ".heif", ".psd", ".svg", ".tga",
))  # fmt: skip
"""What counts as an image where no metadata names it. The last five are not decoded: they are listed as refused."""
CHECK, SHEET = "check.json", "check.png"
"""What a check leaves in the folder it has checked; the sheet beside it is no image of the folder."""

IGNORED = frozenset(("run.json", "config.json", "Thumbs.db", "ehthumbs.db", "desktop.ini", "Icon\r"))
"""What onbrand itself and the file managers leave in a folder of images."""
_LIKE_CAPTIONS = (*CAPTIONS, ".captions", ".cap", ".text", ".tags", ".tag", ".prompt", ".json", ".yaml", ".yml", ".md")
_LIKE_METADATA = (
    ".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".feather", ".xlsx", ".xls", ".ods", ".xml",
    ".yaml", ".yml", ".toml", ".db", ".sqlite", ".sqlite3",
)  # fmt: skip
_LIKE_METADATA_NAMES = re.compile(r"(meta(data)?|(caption|prompt|label|annotation)s?)(?![a-z])", re.IGNORECASE)
_LABELS = re.compile(r"(.+)-(?:mask|cond)label", re.IGNORECASE)
"""OneTrainer's a-masklabel.png and a-condlabel.png: no photo, whatever lies beside it."""
_MASK = re.compile(r"(.+)[-_. ](?:masks?|matte)|masks?[-_. ](.+)", re.IGNORECASE)
"""Other tools' a_mask.png, a-mask.png, a.mask.png, mask_a.png: a mask if a.png lies beside it."""
_MASKS = re.compile(r"_?masks?", re.IGNORECASE)
"""A folder of masks: those of the images of the same names in the folder above, or in images/ beside it."""
_LIKE_MASKS = re.compile(r"mask|matte|condlabel", re.IGNORECASE)
"""In every name that one of these three takes."""
_IMAGES = re.compile(r"images?|imgs?|photos?", re.IGNORECASE)
HIDDEN = re.compile(r"(^|/)(\.(?!\.(/|$))|__MACOSX/)")
"""Names of a tar's members, or below an address, that a folder's walk leaves out too."""
_UNFIT = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def unfit(name: str) -> str | None:
    """Why a name cannot be the name of a file or class here; None if it can.

    Names stand in tables, pages, JSON and file names, which tabs, line ends and other control characters break; half a
    surrogate pair, which is also how Python shows bytes that are not UTF-8, cannot be written at all.
    """
    match = None if name.isascii() and name.isprintable() else _UNFIT.search(name)  # most names, in a tenth of the time
    if match is None:
        return None
    kind = "is not UTF-8" if "\ud800" <= match[0] <= "\udfff" else "has a control character"
    return f"a name that {kind}, {ascii(match[0])}: rename it"


@dataclass
class Listing:
    """The files of a folder and its sub-folders by what they are; names are relative to it, with "/", in order."""

    folder: Path
    images: list[str] = field(default_factory=list)
    """Regular files, or links to one."""
    masks: list[str] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    """With a caption's suffix; whose, `caption_of` says."""
    metadata: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    """Parquet files."""
    tars: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    refused: list[UnreadableImage] = field(default_factory=list)
    """Folders that cannot be read or are called as images are, images that are no regular files, links to nothing,
    names that are none."""

    def add(self, name: str) -> None:
        """Takes in a file by what its name says that it is."""
        suffix = suffix_of(name)
        if suffix in SUFFIXES:
            self.images.append(name)
        elif posixpath.basename(name) in METADATA:
            self.metadata.append(name)
        elif posixpath.splitext(name)[1] in CAPTIONS:
            self.captions.append(name)
        elif suffix == ".parquet":
            self.tables.append(name)
        elif suffix == ".tar":
            self.tars.append(name)
        else:
            self.others.append(name)

    def sort(self) -> None:
        """Puts all names in order, masks apart from images, and away what a check has left."""
        if checks := {name for name in self.others if posixpath.basename(name) == CHECK}:
            sheets = {posixpath.join(posixpath.dirname(name), SHEET) for name in checks}
            self.others = [name for name in self.others if name not in checks]
            self.images = [name for name in self.images if name not in sheets]
        for names in (self.images, self.captions, self.metadata, self.tables, self.tars, self.others):
            names.sort()
        self.refused.sort(key=lambda entry: str(entry.file))
        self.masks = _masks(self.images)
        if self.masks:
            masks = set(self.masks)
            self.images = [name for name in self.images if name not in masks]

    def caption_of(self, image: str) -> str | None:
        """The file of an image's caption."""
        names = [posixpath.splitext(image)[0] + suffix for suffix in CAPTIONS]
        files = (self._captions.get(name) for name in (*names, *map(composed, names)))
        return next((file for file in files if file), None)

    def spelled(self, name: str) -> str | None:
        """The file whose name differs from `name` in Unicode's normal form alone (macOS writes é as two characters)."""
        return self._forms.get(composed(name))

    def near(self, name: str) -> str | None:
        """The file whose name differs from `name` in upper and lower case alone."""
        return self._cases.get(composed(name).casefold())

    def like_captions(self, read: set[str]) -> list[str]:
        """The files that look like captions and are not among those `read`."""
        candidates = sorted(({*self.captions} - read) | {*self.others})
        if not candidates:
            return []
        stems = {composed(posixpath.splitext(name)[0]).casefold() for name in self.images}
        names = {composed(name).casefold() for name in self.images}
        bases = {posixpath.basename(stem) for stem in stems}
        files = []
        for file in candidates:
            stem, suffix = posixpath.splitext(composed(file).casefold())
            elsewhere = suffix in CAPTIONS and posixpath.basename(stem) in bases
            twice = posixpath.splitext(stem)[0] in stems  # a.txt.txt, where endings are hidden
            if suffix in _LIKE_CAPTIONS and (stem in stems or stem in names or twice or elsewhere):
                files.append(file)
        return files

    def like_metadata(self, read: set[str]) -> list[str]:
        """The files that look like metadata and are not among those `read`."""
        names = sorted({*self.captions, *self.others, *self.tables, *self.metadata} - read)
        return [
            name
            for name in names
            if suffix_of(name) in _LIKE_METADATA or _LIKE_METADATA_NAMES.match(posixpath.basename(name))
        ]

    @cached_property
    def _captions(self) -> dict[str, str]:
        return {composed(name): name for name in self.captions} | {name: name for name in self.captions}

    @cached_property
    def _forms(self) -> dict[str, str]:
        return {composed(name): name for name in self._files()}

    @cached_property
    def _cases(self) -> dict[str, str]:
        return {composed(name).casefold(): name for name in self._files()}

    def _files(self) -> Iterator[str]:
        for names in (self.images, self.masks, self.captions, self.metadata, self.tables, self.tars, self.others):
            yield from names


def walk(folder: Path) -> Listing:
    """List what lies in a folder and below it.

    Links to folders are followed, once. Hidden files are left out (macOS leaves ._a.png beside a.png).

    Raises:
        OnbrandError: the folder itself cannot be read.
    """
    if isinstance(folder, Address):
        return _walk_address(folder)
    listing, folders_read = Listing(folder), set()
    refused = listing.refused

    def unreadable(error: OSError) -> None:
        place = Path(error.filename)
        if place == folder:
            raise OnbrandError("data", f"{folder} cannot be read: {error.strerror}. Mend its permissions") from error
        refused.append(UnreadableImage(place, f"a folder that cannot be read: {error.strerror}"))

    pending = [(str(folder), "")]
    while pending:
        here, base = pending.pop()
        try:
            status = os.stat(here)
            if (status.st_dev, status.st_ino) in folders_read:
                continue
            folders_read.add((status.st_dev, status.st_ino))
            with os.scandir(here) as entries:
                folders = [entry.path for entry in entries if _take(listing, entry, base)]
        except OSError as error:
            unreadable(error)
            continue
        pending += [(path, f"{base}{os.path.basename(path)}/") for path in sorted(folders, reverse=True)]
    listing.sort()
    return listing


def _take(listing: Listing, entry: os.DirEntry[str], base: str) -> bool:
    """Puts an entry of the folder `base` where it belongs; whether it is a folder, to be read itself."""
    name = entry.name
    if name[0] == ".":
        return False
    reason = unfit(name)
    if _is(entry.is_dir):
        reason = "a folder, not a file" if suffix_of(name) in SUFFIXES or name in METADATA else reason
        if not reason:
            return name != "__MACOSX"
    elif name in IGNORED:
        return False
    elif not reason and not _is(entry.is_file):  # what the folder says; a look at each file would take longest of all
        there = os.path.exists(entry.path)
        reason = "a link to nothing" if not there else "not a regular file" if suffix_of(name) in SUFFIXES else None
    if reason:
        listing.refused.append(UnreadableImage(Path(entry.path), reason))
    else:
        listing.add(base + name)
    return False


def _walk_address(folder: Address) -> Listing:
    """`walk` of what a server lists; its names need not be paths."""
    listing = Listing(folder)
    for name, size in folder.files().items():
        if HIDDEN.search(name) or posixpath.basename(name) in IGNORED:
            continue
        reason = unfit(name)
        if posixpath.normpath(name) != name or name.split("/", maxsplit=1)[0] == "..":
            reason = "a name that is no path of a file: rename it"
        elif size > HEAVIEST and suffix_of(name) in SUFFIXES:
            reason = f"over {HEAVIEST >> 30} GiB ({size} bytes)"
        if reason:
            listing.refused.append(UnreadableImage(folder / name, reason))
        else:
            listing.add(name)
    listing.sort()
    return listing


def _masks(images: Sequence[str]) -> list[str]:
    """Those of the images that are another image's mask."""
    candidates = [name for name in images if _LIKE_MASKS.search(name)]
    if not candidates:
        return []
    stems = {posixpath.splitext(name)[0].casefold() for name in images}
    photos = stems | {stem.removesuffix(".src") for stem in stems}
    folders = {posixpath.dirname(stem) for stem in stems}
    masks = []
    for name in candidates:
        folder, file = posixpath.split(posixpath.splitext(name)[0])
        above, own = posixpath.split(folder.casefold())
        if match := _MASK.fullmatch(file):
            is_mask = posixpath.join(folder, match[1] or match[2]).casefold() in photos
        elif _MASKS.fullmatch(own):
            beside = [one for one in folders if _IMAGES.fullmatch(posixpath.basename(one))]
            places = [above, *(one for one in beside if posixpath.dirname(one) == above)]
            is_mask = any(posixpath.join(place, file.casefold()) in stems for place in places)
        else:
            is_mask = _LABELS.fullmatch(file) is not None
        if is_mask:
            masks.append(name)
    return masks


def _is(test: Callable[[], bool]) -> bool:
    """What an entry of a folder says of itself; of a link that leads round in circles, no."""
    try:
        return test()
    except OSError:
        return False


def suffix_of(name: str) -> str:
    """The suffix of a name, in lower case."""
    return posixpath.splitext(name)[1].lower()


def folder_class(name: str) -> str:
    """The class of an image without metadata: its first folder, `10_garment` less its repeats, or ""."""
    return re.sub(r"^\d+_", "", composed(name.split("/", maxsplit=1)[0])).strip() if "/" in name else ""


def composed(name: str) -> str:
    """A name in Unicode's composed form (NFC), in which two that look alike are equal."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)
