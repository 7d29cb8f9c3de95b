"""A verb and its options: called from Python with their fields, from the command line with their flags; recorded."""

from __future__ import annotations

import inspect
import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields
from typing import Any, Generic, ParamSpec, TypeVar, cast

P = ParamSpec("P")
O_contra = TypeVar("O_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)


class Verb(Generic[P, O_contra, R_co]):
    """One of onbrand's verbs.

    `fit("photos", "tiny", "brand", k=3)` is `fit.run(FitOptions("photos", "tiny", "brand", k=3))`.
    """

    def __init__(self, options: Callable[P, O_contra], run: Callable[[O_contra], R_co]) -> None:
        self.options, self.run = cast("type[Any]", options), run
        self.__name__, self.__module__, self.__doc__ = run.__name__, run.__module__, run.__doc__
        self.__signature__ = inspect.signature(options)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        return self.run(self.options(*args, **kwargs))

    def __repr__(self) -> str:
        return f"<onbrand {self.__name__}>"


def verb(
    options: Callable[P, O_contra],
) -> Callable[[Callable[[O_contra], R_co]], Verb[P, O_contra, R_co]]:
    """Makes a function of its options a verb."""
    return lambda run: Verb(options, run)


def command(name: str, options: Any) -> str:
    """The command line that calls the verb `name` with these options; those that are its defaults are left out."""
    return shlex.join(["onbrand", name, *words(type(options), settings(options))])


def settings(options: Any) -> dict[str, Any]:
    """The options that are not their defaults, by name, those that must be given first."""
    return {
        field.name: getattr(options, field.name)
        for field in fields(options)
        if getattr(options, field.name) != default(field)
    }


def default(field: Field[Any]) -> Any:
    """A field's default; MISSING where it has none."""
    return field.default if field.default_factory is MISSING else field.default_factory()


def words(options: type[Any], values: Mapping[str, Any]) -> list[str]:
    """The words of a command line that say these values of the options."""
    alone = positional(options)
    first = [str(values[alone])] if alone in values else []
    switches = switches_of(options)
    others = [word for name, value in values.items() if name != alone for word in flag(name, value, name in switches)]
    return [*first, *others]


def switches_of(options: type[Any]) -> set[str]:
    """The options that are on or off: --flip, --no_flip; those that may also be left to onbrand are --name True."""
    return {field.name for field in fields(options) if isinstance(field.default, bool)}


def positional(options: type[Any]) -> str:
    """The option that stands alone on the command line: the first."""
    return fields(options)[0].name


def flag(name: str, value: Any, switch: bool = False) -> list[str]:
    """An option as words: --steps 3, --flip, --no_flip, --sizes 1 2, --sets a FILE b FILE."""
    if switch and isinstance(value, bool):
        return [f"--{name}" if value else f"--no_{name}"]
    if isinstance(value, Mapping) and any(isinstance(item, list | tuple) for item in value.values()):
        return [f"--{name}", json.dumps(value)]
    if isinstance(value, Mapping):
        return [f"--{name}", *(str(word) for pair in value.items() for word in pair)]
    if isinstance(value, list | tuple):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}", str(value)]
