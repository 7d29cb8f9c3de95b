"""What was found in a folder of images, in lines for its owner: what is used, and what was not read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onbrand.data.listing import CAPTIONS, METADATA, Listing
from onbrand.errors import printable

if TYPE_CHECKING:
    from onbrand.data.records import Record

NAMED = 8
"""Classes and columns that a line names; the others are counted."""
QUOTED = 40
"""Characters of a value that are quoted."""
_CAPTIONS = ("caption", "prompt", "descri", "text", "title", "sentence", "tag", "blip", "alt")
_CLASSES = ("class", "label", "categor", "kind")
"""Beginnings of what columns of captions, and of classes, are called."""


def describe(
    path: Path,
    records: Sequence[Record],
    listing: Listing | None,
    read: set[str],
    columns: Mapping[str, Any] | None = None,
) -> tuple[str, ...]:
    """Say what was found.

    Args:
        path: the folder or table.
        records: its images.
        listing: the files that lie there; None if it is no folder of files.
        read: the files of captions, metadata and tables that were read.
        columns: column of the rows that is not read -> its first value if it is text.

    Returns:
        A line on images, captions and classes; then, indented, one for each kind of thing that was not read.
    """
    captions, classes = sum(1 for one in records if one.text), Counter(one.class_name for one in records)
    names = [f"{name} ({count})" for name, count in sorted(classes.items())]
    head = f"{path}: {captions} of {len(records)} images have a caption; "
    head += f"{len(names)} {'class' if len(names) == 1 else 'classes'}: {_several(names)}"
    lines = list(_files(listing, read)) if listing else []
    others = []
    for name, value in (columns or {}).items():
        start = name.strip().casefold()
        words = isinstance(value, str) and (start.startswith(_CAPTIONS) or len(value[:1000].split()) > 1)
        if words and captions < len(records):
            value = f"({_quoted(value)}): they are read from `text`, rename it"
            lines.append(f"column `{name}`, which looks like captions {value}")
        elif start.startswith(_CLASSES) and len(classes) < 2:
            lines.append(f"column `{name}`, which looks like classes: they are read from `class`, rename it")
        else:
            others.append(f"`{name}`")
    lines += [f"column{'s' if len(others) > 1 else ''} {_several(others)}"] if others else []
    return tuple(map(printable, (head, *(f"  not read: {line}" for line in lines))))


def _files(listing: Listing, read: set[str]) -> Iterator[str]:
    """A line for each kind of file that was not read."""
    metadata = min(read & set(listing.metadata), default="")
    captions = listing.like_captions(read)
    tables = [name for name in listing.like_metadata(read) if name not in captions]
    others = sorted({*listing.captions, *listing.others, *listing.tables, *listing.tars} - read - {*captions, *tables})
    if captions:
        remedy = f"they are read from {metadata}" if metadata else f"the caption of a.png is a{' or a'.join(CAPTIONS)}"
        yield f"{_first(captions)}, which {_look(captions)} like captions: {remedy}"
    if tables:
        remedy = f"{metadata} is read" if metadata else f"metadata is called {', '.join(METADATA)}"
        if tables[0].endswith(METADATA):
            remedy = "that of a tar's a.jpg is a.json"
        yield f"{_first(tables)}, which {_look(tables)} like metadata: {remedy}"
    if listing.masks:
        yield f"{_first(listing.masks)}, by {'its name a mask' if len(listing.masks) == 1 else 'their names masks'}"
    if others:
        yield _first(others)


def _first(files: Sequence[str]) -> str:
    return files[0] if len(files) == 1 else f"{len(files)} files ({files[0]} first)"


def _look(files: Sequence[str]) -> str:
    return "looks" if len(files) == 1 else "look"


def _several(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(names[:NAMED])}{more}" if names else "none"


def _quoted(value: str) -> str:
    words = " ".join(value[: 4 * QUOTED].split())
    return repr(words[:QUOTED] + ("..." if len(words) > QUOTED else ""))
