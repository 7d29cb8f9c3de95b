"""What the options of every verb are made of: places in the file system, the checks of one value."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from onbrand.errors import OnbrandError

_PATH = PrimitiveConstructorSpec[str | Path](
    nargs=1,
    metavar="PATH",
    instance_from_str=lambda words: words[0],
    is_instance=lambda value: isinstance(value, str | Path),
    str_from_instance=lambda value: [str(value)],
)
File: TypeAlias = Annotated[str | Path, _PATH]
"""A file, a folder or, for a model, a Hub id."""
First: TypeAlias = Annotated[str | Path, _PATH, tyro.conf.Positional]
"""The one that stands alone on the command line."""
Size: TypeAlias = Annotated[int | tuple[int, int] | None, tyro.conf.arg(metavar="SIDE | HEIGHT WIDTH")]
"""Of images in pixels; one number: square."""
T = TypeVar("T")
Dtype = Literal["float32", "float16", "bfloat16"]
Spacing = Literal["leading", "trailing", "linspace"]


def own_first(options: type[T]) -> type[T]:
    """A class of options whose own fields come before those that it inherits: in help, in YAML, in the command."""
    everything, own = options.__dataclass_fields__, options.__annotations__  # type: ignore[attr-defined]
    ordered = {name: field for name, field in everything.items() if name in own} | everything
    options.__dataclass_fields__ = ordered  # type: ignore[attr-defined]
    return options


def check_choices(options: Any) -> None:
    """OnbrandError for a setting that is none of its choices: for callers from Python; the command line asks before."""
    hints = get_type_hints(type(options))
    for field in fields(options):
        choices = [choice for part in _parts(hints[field.name]) for choice in get_args(part)]
        value = getattr(options, field.name)
        if choices and value is not None and value not in choices:
            raise OnbrandError("option", f"{field.name} must be one of {', '.join(map(str, choices))}; got {value!r}")


def _parts(hint: Any) -> list[Any]:
    """The Literals in a type."""
    if get_origin(hint) is Literal:
        return [hint]
    return [part for one in get_args(hint) for part in _parts(one)] if get_origin(hint) in (Union, UnionType) else []


def at_least(least: float, **values: float | None) -> None:
    """OnbrandError for the first value below `least`; None passes."""
    for name, value in values.items():
        if value is not None and not value >= least:
            raise OnbrandError("option", f"{name} must be at least {least}; got {value}")


def above_zero(**values: float | None) -> None:
    """OnbrandError for the first value that is not above 0; None passes."""
    for name, value in values.items():
        if value is not None and not value > 0:
            raise OnbrandError("option", f"{name} must be above 0; got {value}")


def within(low: float, high: float, **values: float | None) -> None:
    """OnbrandError for the first value outside [low, high]; None passes."""
    for name, value in values.items():
        if value is not None and not low <= value <= high:
            raise OnbrandError("option", f"{name} must lie in [{low}, {high}]; got {value}")
