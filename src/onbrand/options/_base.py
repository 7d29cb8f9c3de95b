"""What the options of every verb are made of: places, numbers with a range, settings that only others make count."""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from onbrand.errors import OnbrandError, quote
from onbrand.options._verb import default


@dataclass(frozen=True)
class Range:
    """The numbers that a setting may be, in its type: Annotated[int, Range(least=1)]."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def __contains__(self, number: float) -> bool:
        return (
            (self.least is None or number >= self.least)
            and (self.most is None or number <= self.most)
            and (self.above is None or number > self.above)
            and (self.below is None or number < self.below)
        )

    def __str__(self) -> str:
        if self.above is not None and self.below is not None:
            return f"lie between {self.above:g} and {self.below:g}"
        if self.least is not None and self.most is not None:
            return f"lie in [{self.least:g}, {self.most:g}]"
        if self.above is not None:
            return f"be above {self.above:g}"
        return f"be at least {self.least:g}" + ("" if self.below is None else f" and below {self.below:g}")


_PATH = PrimitiveConstructorSpec[str | Path](
    nargs=1,
    metavar="PATH",
    instance_from_str=lambda words: words[0],
    is_instance=lambda value: isinstance(value, str | Path),
    str_from_instance=lambda value: [str(value)],
)
_WORD, _NAME_OR_FILE = object(), object()
File: TypeAlias = Annotated[str | Path, _PATH]
"""A file, a folder or, for a model, a Hub id."""
First: TypeAlias = Annotated[str | Path, _PATH, tyro.conf.Positional]
"""The one that stands alone on the command line."""
Word: TypeAlias = Annotated[str, _WORD]
"""A name: not empty."""
NameOrFile: TypeAlias = Annotated[str, _NAME_OR_FILE]
"""A name, or a file."""
Count: TypeAlias = Annotated[int, Range(least=1)]
"""1, 2, ..."""
Number: TypeAlias = Annotated[int, Range(least=0)]
"""0, 1, 2, ..."""
Positive: TypeAlias = Annotated[float, Range(above=0)]
NotNegative: TypeAlias = Annotated[float, Range(least=0)]
Rate: TypeAlias = Annotated[float, Range(0, 1)]
Decay: TypeAlias = Annotated[float, Range(above=0, below=1)]
Beta: TypeAlias = Annotated[float, Range(least=0, below=1)]
Size: TypeAlias = Annotated[Count | tuple[Count, Count] | None, tyro.conf.arg(metavar="SIDE | HEIGHT WIDTH")]
"""Of images in pixels; one number: square."""
T = TypeVar("T")
Dtype = Literal["float32", "float16", "bfloat16"]
Spacing = Literal["leading", "trailing", "linspace"]
LARGEST, GREATEST = 2**63 - 1, 1e15
"""Of whole numbers: what 64 bits hold; of others: what files of ours may hold (schemas.Number)."""


class Need(NamedTuple):
    """Settings that nothing reads unless another one is so."""

    names: tuple[str, ...]
    other: str
    """The other setting; or a fact that is known once a model is open (ControlNets)."""
    words: str
    """What it must be, in words."""
    holds: Callable[[Any], bool]
    """Whether it is."""


def own_first(options: type[T]) -> type[T]:
    """A class of options whose own fields come before those that it inherits: in help, in YAML, in the command."""
    everything, own = options.__dataclass_fields__, options.__annotations__  # type: ignore[attr-defined]
    ordered = {name: field for name, field in everything.items() if name in own} | everything
    options.__dataclass_fields__ = ordered  # type: ignore[attr-defined]
    return options


def check_options(options: Any, needs: Iterable[Need] = ()) -> None:
    """Every setting as its type has it: `~` in places is the home folder, lists are tuples, numbers Python's own.

    For callers from Python as for the command line, which has asked for types before. OnbrandError for the first
    setting that is none of its type, lies outside its range, or has no effect under the others (`needs`).
    """
    for name, hint in _hints(options.__class__):
        value = getattr(options, name)
        try:
            object.__setattr__(options, name, _fitting(name, value, hint))
        except _OtherTypeError:
            raise OnbrandError("option", f"{name} must be {_expected(hint)}; got {quote(value)}") from None
    check_needs(options, needs)


def check_needs(options: Any, needs: Iterable[Need], **facts: Any) -> None:
    """OnbrandError for the first setting that is not its default and that nothing reads.

    facts: what is known besides the settings, or more of them: other -> value.
    """
    values = {field.name: getattr(options, field.name) for field in fields(options)}
    defaults = {field.name: default(field) for field in fields(options)}
    for name, need in unread(values | facts, needs):
        if name in values and values[name] != defaults[name]:
            now = (values | facts)[need.other]
            state = f"no {need.other}" if now is None else f"{need.other} {now}"
            raise OnbrandError(
                "option",
                f"{name} has no effect without {need.words}; got {name} {quote(values[name])} and {state}: take "
                f"{need.words}, or leave {name} out",
            )


def unread(values: Mapping[str, Any], needs: Iterable[Need]) -> Iterator[tuple[str, Need]]:
    """The names of settings that nothing reads under these values, each with what it needs; of needs whose other is not
    among the values nothing is known."""
    for need in needs:
        if need.other in values and not need.holds(values[need.other]):
            yield from ((name, need) for name in need.names)


def place(path: str) -> str:
    """A path with `~` as the home folder: the one way in for every path that a user gives."""
    return os.path.expanduser(path)


class _OtherTypeError(ValueError):
    """A value that is none of its setting's type."""


@cache
def _hints(options: type[Any]) -> list[tuple[str, Any]]:
    """The settings and their types."""
    hints = get_type_hints(options, include_extras=True)
    return [(field.name, hints[field.name]) for field in fields(options)]


def _fitting(name: str, value: Any, hint: Any) -> Any:
    """The value as `hint` has it; _OtherTypeError if it is no such value, OnbrandError if it lies outside the range."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _annotated(name, value, parts[0], parts[1:])
    if origin in (Union, UnionType):
        for part in parts:
            with suppress(_OtherTypeError):
                return _fitting(name, value, part)
    elif origin is Literal:
        if isinstance(value, str) and value in parts:
            return value
    elif origin is tuple:
        single = parts[-1] is Ellipsis and not isinstance(value, list | tuple)
        items = [value] if single else value
        if isinstance(items, list | tuple) and (parts[-1] is Ellipsis or len(items) == len(parts)):
            hints = parts[:1] * len(items) if parts[-1] is Ellipsis else parts
            return tuple(_fitting(name, item, one) for item, one in zip(items, hints, strict=True))
    elif origin is list:
        if isinstance(value, list | tuple):
            return [_fitting(name, item, parts[0]) for item in value]
    elif origin is dict:
        if isinstance(value, Mapping):
            return {_fitting(name, key, parts[0]): _fitting(name, item, parts[1]) for key, item in value.items()}
    elif hint is bool or hint is type(None):
        if isinstance(value, hint):
            return value
    elif hint is int:
        if isinstance(value, numbers.Integral) and not isinstance(value, bool):
            if abs(int(value)) > LARGEST:
                raise OnbrandError("option", f"{name} must be a number of 64 bits; got {quote(value)}")
            return int(value)
    elif hint is float:
        if isinstance(value, numbers.Real) and not isinstance(value, bool) and _finite(value):
            if abs(float(value)) > GREATEST:
                raise OnbrandError(
                    "option", f"{name} must lie between {-GREATEST:g} and {GREATEST:g}; got {float(value):g}"
                )
            return value if isinstance(value, int) else float(value)  # 1 stays 1, as it is recorded
    elif hint is str and isinstance(value, str):
        return _text(name, value)
    raise _OtherTypeError


def _annotated(name: str, value: Any, hint: Any, notes: Sequence[Any]) -> Any:
    """`_fitting` of a type with notes: a path, a word, a range."""
    if _PATH in notes or _NAME_OR_FILE in notes:
        return _path(name, value)
    value = _fitting(name, value, hint)
    if _WORD in notes and not value:
        raise OnbrandError("option", f"{name} must not be empty; got {value!r}: leave it out for the default")
    for note in notes:
        if isinstance(note, Range) and value not in note:
            raise OnbrandError("option", f"{name} must {note}; got {value}")
    return value


def _path(name: str, value: Any) -> str | Path:
    """A place, `~` as the home folder."""
    if not isinstance(value, str | Path):
        raise _OtherTypeError
    path = place(_text(name, str(value)))
    if not path:
        raise OnbrandError("option", f"{name} must name a file or a folder; got {path!r}: the empty word is none")
    return path if isinstance(value, str) else Path(path)


def _text(name: str, value: str) -> str:
    """A text that any file can hold."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise OnbrandError(
            "option", f"{name} must be text that UTF-8 can hold; got {quote(value)} ({error.reason}): write it anew"
        ) from error
    if "\0" in value:
        raise OnbrandError("option", f"{name} must hold no NUL; got {quote(value)}: take it out")
    return str(value)


def _finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _expected(hint: Any) -> str:
    """A type in words."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return "a path" if _PATH in parts[1:] else _expected(parts[0])
    if origin in (Union, UnionType):
        return " or ".join(_expected(part) for part in parts if part is not type(None))
    if origin is Literal:
        return f"one of {', '.join(parts)}"
    if origin is dict:
        return f"a mapping of names to {_expected(parts[1])}"
    if origin in (list, tuple):
        several = origin is list or parts[-1] is Ellipsis
        return f"{'a list' if several else f'{len(parts)} values'}, each {_expected(parts[0])}"
    return {int: "a whole number", float: "a finite number", bool: "True or False", str: "a text"}[hint]
