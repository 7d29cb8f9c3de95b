"""sha256 of a picture's bytes, remembered as long as the file's size and times stand: a million files are read once."""

from __future__ import annotations

import json
import os
import time
from hashlib import sha256
from pathlib import Path

from .records import Record

SETTLED = 2_000_000_000
"""Nanoseconds: a file changed since is not remembered; a further change at once could leave its times alone."""


class Digests:
    """What was hashed, in `folder`/digests-*.jsonl: one file a rank, lines appended, a line torn by a kill ignored."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[str, str] = {}
        self._kept: set[str] = set()
        self.reload()

    def reload(self) -> None:
        """Reads what all ranks have remembered."""
        for file in sorted(self.folder.glob("digests-*.jsonl")):
            with open(file, encoding="utf-8", errors="replace") as lines:
                for line in lines:
                    try:
                        entry = json.loads(line)
                        self._known[entry["mark"]] = entry["sha256"]
                        self._kept.add(entry["mark"])
                    except (ValueError, KeyError, TypeError):
                        continue

    def mark(self, record: Record) -> str | None:
        """A short name for (path, row, size, times) of the record's file; None if it is missing or changed just now."""
        stamp = record.stamp
        try:
            status = os.stat(stamp)
        except OSError:
            return None
        if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) < SETTLED:
            return None
        parts = (os.path.abspath(stamp), record.row, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        return sha256(json.dumps(parts).encode()).hexdigest()[:32]

    def recall(self, mark: str | None) -> str | None:
        """The digest of the bytes behind `mark`, if it was ever computed."""
        return self._known.get(mark) if mark else None

    def hold(self, entries: dict[str, str]) -> None:
        """Keeps {mark: digest} for this process only."""
        self._known.update(entries)

    def remember(self, entries: dict[str, str], rank: int) -> None:
        """Appends {mark: digest} to the rank's file, which has no other writer."""
        new = {mark: digest for mark, digest in entries.items() if mark not in self._kept}
        self._known.update(new)
        self._kept.update(new)
        if new:
            lines = "".join(json.dumps({"mark": mark, "sha256": digest}) + "\n" for mark, digest in new.items())
            with open(self.folder / f"digests-{rank:03d}.jsonl", "a", encoding="utf-8") as file:
                file.write("\n" + lines)  # an empty line first: the last one may have been torn
