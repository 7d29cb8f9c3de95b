"""Errors that their reader can mend."""

from __future__ import annotations

from pathlib import Path


class OnbrandError(ValueError):
    """Wrong input: what is wrong, with the value; then what to do about it.

    The command line shows it on one line; any other ValueError is a bug and keeps its traceback.

    Attributes:
        code: what it is about, for programs: option, image, model, prior, start, request, folder, resume, ...
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class UnreadableImage(OnbrandError):
    """A file that cannot be used as an image, and why. One of them ends no run: it is collected and listed.

    Attributes:
        file: the file, or the row of a table
        reason: why it cannot be used
    """

    def __init__(self, file: str | Path, reason: str) -> None:
        super().__init__("image", f"{file}: {reason}")
        self.file, self.reason = Path(file), reason


def quote(value: object, length: int = 100) -> str:
    """A value as a message quotes it: its first characters, whatever it is."""
    if isinstance(value, str) and len(value) > length:
        return f"{value[:length]!r}..."
    try:
        words = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, a list a thousand deep
        return f"{type(value).__name__} too large to be shown"
    return words if len(words) <= length else f"{words[:length]}..."
