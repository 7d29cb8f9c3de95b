"""Images that lie as bytes in a table, read row by row: Parquet, or a dataset saved by `datasets`."""

from __future__ import annotations

import os
import posixpath
import re
import threading
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onbrand.data.addresses import Address
from onbrand.data.images import read_bytes
from onbrand.errors import OnbrandError, UnreadableImage

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

    from datasets import Dataset

SPLITS = ("train", "test", "validation", "val", "valid", "dev")
COLUMNS = ("text", "class", "attributes")
"""What is read of a row, beside its image."""
Cells = Mapping[str, Any]
"""Column -> value of a row, for those of COLUMNS that the table has."""


@contextmanager
def sound(file: Path) -> Iterator[None]:
    """Whatever a library raises of a damaged table is an OnbrandError that names the file."""
    try:
        yield
    except OnbrandError:
        raise
    except Exception as error:  # pyarrow's are OSError, ValueError, KeyError, NotImplementedError, MemoryError ...
        words = " ".join(str(error).split())[:200] or type(error).__name__
        raise OnbrandError(
            "data", f"{file} cannot be read as a table: {words}. Fetch or write it again, or take it out"
        ) from error


def open_parquet_file(file: Path) -> ParquetFile:
    """A Parquet file, opened; to be used `with`."""
    import pyarrow.parquet as pq

    if not file.is_file():  # a pipe would be waited for
        raise OnbrandError("data", f"{file} is no regular file. Take it out")
    return pq.ParquetFile(file.open("rb"), pre_buffer=True) if isinstance(file, Address) else pq.ParquetFile(file)


@dataclass(eq=False)
class Parquet:
    """Parquet files with a column `image` (bytes, or `datasets`' {bytes, path}) and, if there, COLUMNS.

    Read where they lie, by row group: `datasets` would first copy them all into its cache, and again when one changes.
    """

    files: list[Path]
    starts: list[int] = field(init=False)
    groups: list[tuple[Path, int]] = field(init=False)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._group: tuple[int, list[Any]] = (-1, [])
        self.starts, self.groups, row = [], [], 0
        for file in self.files:
            with sound(file), open_parquet_file(file) as table:
                _require_image(table.schema_arrow.names, file)
                for group in range(table.num_row_groups):
                    self.starts.append(row)
                    self.groups.append((file, group))
                    row += table.metadata.row_group(group).num_rows

    def __getstate__(self) -> dict[str, Any]:
        return {"files": self.files}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def rows(self) -> Iterator[tuple[Path, Cells]]:
        """(name, cells) of every row, in the files' order; the images are not read."""
        from datasets import Features

        for file in self.files:
            with sound(file), open_parquet_file(file) as table:
                schema = table.schema_arrow
                columns = [name for name in COLUMNS if name in schema.names]
                names = _names(Features.from_arrow_schema(schema)) if schema.metadata else []
                if not columns:
                    yield from ((file / f"{row:06d}", {}) for row in range(table.metadata.num_rows))
                    continue
                row = 0
                for batch in table.iter_batches(columns=columns):
                    for cells in batch.to_pylist():
                        yield file / f"{row:06d}", _named(cells, names)
                        row += 1

    def unread(self) -> dict[str, Any]:
        """Column that is not read -> its first value if it is text, else None."""
        with sound(self.files[0]), open_parquet_file(self.files[0]) as table:
            schema = table.schema_arrow
            columns: dict[str, Any] = {name: None for name in schema.names if name not in ("image", *COLUMNS)}
            texts = [name for name in columns if "string" in str(schema.field(name).type)]
            if texts and table.metadata.num_rows:
                columns |= next(table.iter_batches(batch_size=1, columns=texts)).to_pylist()[0]
        return columns

    def stamp(self, row: int) -> Path:
        """The file whose time and size tell whether the row's bytes may have changed."""
        return self.groups[bisect_right(self.starts, row) - 1][0]

    def read(self, row: int) -> bytes:
        """The bytes of the row's image; its row group is held until a row of another one is asked for."""
        place = bisect_right(self.starts, row) - 1
        file, group = self.groups[place]
        with sound(file), self._lock:
            if self._group[0] != place:

                def fetch() -> Any:
                    with open_parquet_file(file) as table:
                        return table.read_row_group(group, columns=["image"]).column("image")

                self._group = (place, file.attempt(fetch) if isinstance(file, Address) else fetch())
            value = self._group[1][row - self.starts[place]].as_py()
        return _bytes(value, file.parent)


@dataclass(eq=False)
class Saved:
    """A `datasets.Dataset` with a column `image`, memory-mapped, as `save_to_disk` left it."""

    dataset: Dataset
    folder: Path

    def __post_init__(self) -> None:
        from datasets import Image

        _require_image(self.dataset.column_names, self.folder)
        self._images = self.dataset.select_columns(["image"]).cast_column("image", Image(decode=False))

    def rows(self) -> Iterator[tuple[Path, Cells]]:
        """(name, cells) of every row; the images are not read."""
        columns = [name for name in COLUMNS if name in self.dataset.column_names]
        names = _names(self.dataset.features)
        if not columns:
            yield from ((self.folder / f"{row:06d}", {}) for row in range(len(self.dataset)))
            return
        row = 0
        for batch in self.dataset.select_columns(columns).iter(1000):
            for values in zip(*(batch[name] for name in columns), strict=True):
                yield self.folder / f"{row:06d}", _named(dict(zip(columns, values, strict=True)), names)
                row += 1

    def unread(self) -> dict[str, Any]:
        """Column that is not read -> its first value if it is text, else None."""
        features = self.dataset.features
        columns = {name: None for name in features if name not in ("image", *COLUMNS)}
        texts = [name for name in columns if "string" in str(getattr(features[name], "dtype", ""))]
        return columns | (self.dataset.select_columns(texts)[0] if texts and len(self.dataset) else {})

    def stamp(self, row: int) -> Path:
        """The file whose time and size tell whether the row's bytes may have changed."""
        state = self.folder / "state.json"
        return state if state.exists() else Path(self.dataset.cache_files[0]["filename"])

    def read(self, row: int) -> bytes:
        """The bytes of the row's image."""
        with sound(self.folder):
            value = self._images[row]["image"]
        return _bytes(value, self.folder)


def open_saved(folder: Path, split: str | None) -> Saved:
    """The dataset that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` left in `folder`."""
    from datasets import DatasetDict, load_from_disk

    with sound(folder):
        dataset = load_from_disk(str(folder))
    if isinstance(dataset, DatasetDict):
        name = _one_split(list(dataset), split, folder)
        return Saved(dataset[name], folder / name)
    return Saved(dataset, folder)


def open_parquet(files: list[Path], split: str | None) -> Parquet:
    """The files of one split, as `of_split` has it."""
    return Parquet(of_split(files, split))


def of_split(files: list[Path], split: str | None) -> list[Path]:
    """The files of one split, where their names carry it as `datasets` writes them (train-00000-of-00002.parquet), or
    those of their folders."""
    splits: dict[str, list[Path]] = {}
    for file in files:
        prefix = re.match(rf"({'|'.join(SPLITS)})(?=[-._]|$)", file.stem)
        own = prefix[1] if prefix else file.parent.name if file.parent.name in SPLITS else ""
        splits.setdefault(own, []).append(file)
    return splits[_one_split(list(splits), split, files[0].parent)]


def _one_split(names: list[str], split: str | None, where: Path | str) -> str:
    if split is not None and split in names:
        return split
    if len(names) == 1 and split is None:
        return names[0]
    problem = "none was named" if split is None else f"got split={split!r}"
    raise OnbrandError(
        "data", f"{where} holds the splits {', '.join(map(repr, names))}: one is used; {problem}. Give split"
    )


def _require_image(columns: list[str], where: Path) -> None:
    if "image" not in columns:
        raise OnbrandError(
            "data", f"a table of images has a column `image`; {where} has {', '.join(columns)}. Rename it"
        )


def _names(features: Any) -> list[str]:
    return list(getattr(features.get("class"), "names", None) or [])


def _named(cells: dict[str, Any], names: list[str]) -> Cells:
    """The cells, the class by its name if it is the number of one (-1: it has none)."""
    number = cells.get("class")
    if names and isinstance(number, int) and number < len(names):
        return cells | {"class": names[number] if number >= 0 else None}
    return cells


def _bytes(value: Any, folder: Path) -> bytes:
    """The image's bytes; those of a file, which has to lie in the table's folder, if the row holds a path alone."""
    if not isinstance(value, dict):
        return value if isinstance(value, bytes) else b""
    content, path = value.get("bytes"), value.get("path")
    if content is None and path:
        name = posixpath.normpath(str(path).replace("\\", "/"))
        if os.path.isabs(name) or name.split("/", maxsplit=1)[0] == "..":
            raise UnreadableImage(path, "outside the folder of its table")
        return read_bytes(folder / name)
    return content or b""
