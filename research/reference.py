"""docs/reference/cli.md from the options of each verb: a row a flag. `python research/reference.py` writes it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import KW_ONLY, MISSING, Field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from onbrand.cli import VERBS
from onbrand.options._verb import Verb, default, positional

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "cli.md"
HEAD = """# Command line

Written by `python research/reference.py` from the options of each verb. In Python the same names are keyword arguments:
`onbrand.fit("photos", "tiny", "brand", k=3)`.

Every verb reads `--config FILE.yaml`, over which flags win, and prints its settings with `--print_config`. A switch
such as `--random_flip` has its opposite, `--no_random_flip`. Flags of diffusers' and kohya's trainers that mean the
same are understood (`--pretrained_model_name_or_path`, `--network_dim` ...), and for one release those of earlier
versions.

Exit codes: 0 done · 1 `check` found fewer than `--require`, or a part of `compare` failed · 2 wrong input, said in one
line · 130 interrupted. `ONBRAND_DEBUG=1` shows where an error came from.
"""


def page() -> str:
    """The page."""
    return HEAD + "".join(map(section, VERBS))


def section(verb: Verb[Any, Any, Any]) -> str:
    """One verb: what it does, a table of its flags, and those that mean what they mean in the first verb."""
    caption = inspect.cleandoc(verb.__doc__ or "").splitlines()[0]
    first = list(options(VERBS[0].options))
    own, same = [], []
    for row in options(verb.options):
        repeated = verb is not VERBS[0] and (row in first or row[2] == f"as for `{VERBS[0].__name__}`")
        (same if repeated else own).append(row)
    rows = "".join(f"{flag}|{value}|{words}\n" for flag, value, words in own)
    rest = f"\nAs for `{VERBS[0].__name__}`: {', '.join(flag for flag, *_ in same)}.\n" if same else ""
    return f"\n## {verb.__name__}\n{caption}\n\nflag|default|meaning\n---|---|---\n{rows}{rest}"


def options(settings: type[Any]) -> Iterator[tuple[str, str, str]]:
    """(flag, default, meaning) of each option, in the order of the help."""
    told, hints = meanings(settings), get_type_hints(settings)
    for field in fields(settings):
        if field.type is KW_ONLY:
            continue
        alone = field.name == positional(settings)
        flag = f"`{field.name.upper()}`" if alone else f"`--{field.name}`"
        words = told[field.name].translate({ord("|"): "\\|", ord("["): "\\[", ord("<"): "&lt;"})
        missing = [choice for choice in choices(hints[field.name]) if not re.search(rf"\b{choice}\b", words)]
        if missing:
            words += f" ({', '.join(choices(hints[field.name]))})"
        yield flag, shown(field), words


def shown(field: Field[Any]) -> str:
    """A default for the table; nothing for none, for the meaning says what it is then."""
    value = default(field)
    if value is MISSING:
        return "required"
    if value is None or value == () or value == {}:
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def choices(hint: Any) -> list[str]:
    """The values that a type allows, if it names them."""
    if get_origin(hint) is Literal:
        return [str(choice) for choice in get_args(hint)]
    return [choice for part in get_args(hint) for choice in choices(part)]


def meanings(settings: type[Any]) -> dict[str, str]:
    """Option -> its words, from the `Attributes:` of the class and those that it inherits from."""
    told: dict[str, str] = {}
    for owner in reversed(settings.__mro__):
        listed = inspect.cleandoc(owner.__doc__ or "").partition("Attributes:\n")[2]
        for name, words in re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", listed, re.M):
            told[name] = " ".join(words.split())
    return told


if __name__ == "__main__":
    PAGE.write_text(page())
