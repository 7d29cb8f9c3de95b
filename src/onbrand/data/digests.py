"""Which bytes lie behind a file's name and times, so that a file is hashed once."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path

from onbrand.data.addresses import stamp_of
from onbrand.data.records import Record
from onbrand.io import append, digest

SETTLED = 2_000_000_000
"""Nanoseconds: a file changed since is not remembered; a further change at once could leave its times alone."""


class Digests:
    """What was hashed, in `folder`/digests-*.jsonl: one file a rank, lines appended, a line torn by a kill ignored."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._digests: dict[str, str] = {}
        self._on_disk: dict[str, str] = {}
        self.reload()

    def reload(self) -> None:
        """Reads what all ranks have remembered."""
        for file in sorted(self.folder.glob("digests-*.jsonl")):
            with open(file, encoding="utf-8", errors="replace") as lines:
                for line in lines:
                    try:
                        entry = json.loads(line)
                        mark, key = str(entry["mark"]), str(entry["sha256"])
                    except (ValueError, KeyError, TypeError, RecursionError):
                        continue
                    self._digests[mark] = self._on_disk[mark] = key

    def mark(self, record: Record) -> str | None:
        """A short name for (path, row, size, times) of the record's file; None if it is missing or changed just now."""
        stamp = stamp_of(record.stamp)
        if stamp is None or time.time_ns() - max(stamp[2:], default=0) < SETTLED:
            return None
        return digest((stamp[0], record.row, *stamp[1:]))[:32]

    def recall(self, mark: str | None) -> str | None:
        """The digest of the bytes behind `mark`, if it was ever computed."""
        return self._digests.get(mark) if mark else None

    def hold(self, entries: dict[str, str]) -> None:
        """Keeps {mark: digest} for this process only."""
        self._digests.update(entries)

    def remember(self, entries: dict[str, str], rank: int) -> None:
        """Appends {mark: digest} to the rank's file, which has no other writer."""
        new = {mark: key for mark, key in entries.items() if self._on_disk.get(mark) != key}
        self._digests.update(new)
        self._on_disk.update(new)
        if new:
            lines = "".join(json.dumps({"mark": mark, "sha256": key}) + "\n" for mark, key in new.items())
            with (
                suppress(OSError),
                append(self.folder / f"digests-{rank:03d}.jsonl") as file,
            ):  # else it is hashed again
                file.write(("\n" + lines).encode())  # an empty line first: the last one may have been torn
