"""Images that lie as bytes in a table, read row by row: Parquet, or a dataset saved by `datasets`."""

from __future__ import annotations

import re
import threading
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onbrand.data.images import read_bytes
from onbrand.errors import OnbrandError

if TYPE_CHECKING:
    from datasets import Dataset

SPLITS = ("train", "test", "validation", "val", "valid", "dev")
COLUMNS = ("text", "class")


@dataclass(eq=False)
class Parquet:
    """Parquet files with a column `image` (bytes, or `datasets`' {bytes, path}) and, if there, `text` and `class`.

    Read where they lie, by row group: `datasets` would first copy them all into its cache, and again when one changes.
    """

    files: list[Path]
    starts: list[int] = field(init=False)
    groups: list[tuple[Path, int]] = field(init=False)

    def __post_init__(self) -> None:
        import pyarrow.parquet as pq

        self._lock = threading.Lock()
        self._group: tuple[int, list[Any]] = (-1, [])
        self.starts, self.groups, row = [], [], 0
        for file in self.files:
            with pq.ParquetFile(file) as table:
                _require_image(table.schema_arrow.names, file)
                for group in range(table.num_row_groups):
                    self.starts.append(row)
                    self.groups.append((file, group))
                    row += table.metadata.row_group(group).num_rows

    def __getstate__(self) -> dict[str, Any]:
        return {"files": self.files}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def rows(self) -> Iterator[tuple[Path, Any, Any]]:
        """(name, text, class) of every row, in the files' order; the images are not read."""
        import pyarrow.parquet as pq

        from datasets import Features

        for file in self.files:
            with pq.ParquetFile(file) as table:
                schema = table.schema_arrow
                columns = [name for name in COLUMNS if name in schema.names]
                names = _names(Features.from_arrow_schema(schema)) if schema.metadata else []
                row = 0
                if not columns:
                    columns = ["image.path"] if _has_path(schema) else ["image"]
                for batch in table.iter_batches(columns=columns):
                    for values in batch.to_pylist():
                        yield file / f"{row:06d}", values.get("text"), _named(values.get("class"), names)
                        row += 1

    def stamp(self, row: int) -> Path:
        """The file whose time and size tell whether the row's bytes may have changed."""
        return self.groups[bisect_right(self.starts, row) - 1][0]

    def read(self, row: int) -> bytes:
        """The bytes of the row's image; its row group is held until a row of another one is asked for."""
        import pyarrow.parquet as pq

        place = bisect_right(self.starts, row) - 1
        with self._lock:
            if self._group[0] != place:
                file, group = self.groups[place]
                with pq.ParquetFile(file) as table:
                    self._group = (place, table.read_row_group(group, columns=["image"]).column("image"))
            value = self._group[1][row - self.starts[place]].as_py()
        return _bytes(value)


@dataclass(eq=False)
class Saved:
    """A `datasets.Dataset` with a column `image`, memory-mapped, as `save_to_disk` left it."""

    dataset: Dataset
    folder: Path

    def __post_init__(self) -> None:
        from datasets import Image

        _require_image(self.dataset.column_names, self.folder)
        self._images = self.dataset.select_columns(["image"]).cast_column("image", Image(decode=False))

    def rows(self) -> Iterator[tuple[Path, Any, Any]]:
        """(name, text, class) of every row; the images are not read."""
        columns = [name for name in COLUMNS if name in self.dataset.column_names]
        names = _names(self.dataset.features)
        if not columns:
            yield from ((self.folder / f"{row:06d}", None, None) for row in range(len(self.dataset)))
            return
        row = 0
        for batch in self.dataset.select_columns(columns).iter(1000):
            for values in zip(*(batch[name] for name in columns), strict=True):
                cells = dict(zip(columns, values, strict=True))
                yield self.folder / f"{row:06d}", cells.get("text"), _named(cells.get("class"), names)
                row += 1

    def stamp(self, row: int) -> Path:
        """The file whose time and size tell whether the row's bytes may have changed."""
        state = self.folder / "state.json"
        return state if state.exists() else Path(self.dataset.cache_files[0]["filename"])

    def read(self, row: int) -> bytes:
        """The bytes of the row's image."""
        return _bytes(self._images[row]["image"])


def open_saved(folder: Path, split: str | None) -> Saved:
    """The dataset that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` left in `folder`."""
    from datasets import DatasetDict, load_from_disk

    dataset = load_from_disk(str(folder))
    if isinstance(dataset, DatasetDict):
        name = _one_split(list(dataset), split, folder)
        return Saved(dataset[name], folder / name)
    return Saved(dataset, folder)


def open_parquet(files: list[Path], split: str | None) -> Parquet:
    """The files of one split, where their names carry it as `datasets` writes them (train-00000-of-00002.parquet)."""
    splits: dict[str, list[Path]] = {}
    for file in files:
        prefix = re.match(rf"({'|'.join(SPLITS)})(?=[-._]|$)", file.stem)
        splits.setdefault(prefix[1] if prefix else "", []).append(file)
    return Parquet(splits[_one_split(list(splits), split, files[0].parent)])


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


def _has_path(schema: Any) -> bool:
    import pyarrow as pa

    column = schema.field("image").type
    return bool(pa.types.is_struct(column) and column.get_field_index("path") >= 0)


def _names(features: Any) -> list[str]:
    return list(getattr(features.get("class"), "names", None) or [])


def _named(value: Any, names: list[str]) -> Any:
    return names[value] if names and isinstance(value, int) and 0 <= value < len(names) else value


def _bytes(value: Any) -> bytes:
    if isinstance(value, dict):
        content = value.get("bytes")
        if content is None and value.get("path"):
            return read_bytes(value["path"])
        return content or b""
    return value or b""
