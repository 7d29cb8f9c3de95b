"""Errors that their reader can mend."""

from __future__ import annotations

import re
from pathlib import Path

LONGEST = 1200
"""Characters of a message."""


def printable(text: str) -> str:
    """Text that can be printed on one line and written: control characters, and bytes that are no UTF-8, escaped."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", lambda match: ascii(match[0])[1:-1], text)


class OnbrandError(ValueError):
    """Wrong input: what is wrong, with the value; then what to do about it.

    The command line shows it on one line; any other ValueError is a bug and keeps its traceback.

    Attributes:
        code: what it is about, for programs: option, image, model, prior, start, request, folder, resume, ...
    """

    def __init__(self, code: str, message: str) -> None:
        if len(message) > LONGEST:  # it holds a value as long as a book; the remedy is at its end
            message = f"{message[: LONGEST - 300]} ... {message[-300:]}"
        super().__init__("\n".join(map(printable, message.split("\n"))))
        self.code = code


class UnreadableImage(OnbrandError):
    """A file that cannot be used as an image, and why. One of them ends no run: it is collected and listed.

    Attributes:
        file: the file, or the row of a table
        reason: why it cannot be used
    """

    def __init__(self, file: str | Path, reason: str) -> None:
        kind = type(file) if isinstance(file, Path) else Path  # a path may be an address (`data.addresses`)
        self.file, self.reason = kind(printable(str(file))), printable(reason)
        super().__init__("image", f"{self.file}: {self.reason}")


def quote(value: object, length: int = 100) -> str:
    """A value as a message quotes it: its first characters, whatever it is."""
    if isinstance(value, str) and len(value) > length:
        return f"{value[:length]!r}..."
    try:
        words = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, a list a thousand deep
        return f"{type(value).__name__} too large to be shown"
    return words if len(words) <= length else f"{words[:length]}..."
