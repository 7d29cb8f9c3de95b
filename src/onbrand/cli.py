"""The verbs on the command line: flags and help are read off their options by tyro, which loads nothing heavy."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import inspect
import io
import os
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro
import yaml

from onbrand import __version__, api
from onbrand.comparison.compare import compare
from onbrand.comparison.presets import listing
from onbrand.errors import OnbrandError
from onbrand.io import plain, read_yaml
from onbrand.options._base import place
from onbrand.options._verb import Verb, positional, settings, words
from onbrand.options.former import present, renamed
from onbrand.ranks import is_first_to_say, world
from onbrand.ui.serve import ui

VERBS: tuple[Verb[Any, Any, Any], ...] = (
    api.fit, api.diagnose, api.train, api.generate, api.check, compare, api.merge, api.export, api.patch,
    api.push, api.report, api.data, ui,
)  # fmt: skip
"""In the order of the work, and last what to try it on."""
EXPECTED = (OnbrandError, OSError)
"""Errors that are the user's to mend: one line, no traceback. Any other is a bug, which keeps its traceback."""
CONFIG, PRINT, LIST = "config", "print_config", "list"
"""Flags beside the options: two of every verb, and that of `compare` which shows its presets."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `onbrand VERB ...`; returns the exit code.

    0: done · 1: `check` found fewer than `--require`, or a part of `compare` failed ·
    2: wrong input, said in one line on stderr · 130: interrupted.
    With ONBRAND_DEBUG=1 in the environment, errors keep their traceback.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that the terminal cannot show ends no run
        sys.stdout.reconfigure(errors="backslashreplace")
    verbs = {verb.__name__: verb for verb in VERBS}
    try:
        verb = verbs[top_parser().parse_args(given[:1]).verb]
        options = parse(verb, given[1:])
    except SystemExit as stop:  # --help, --version, --print_config: 0; a flag that does not exist: 2
        return int(stop.code or 0)
    except EXPECTED as error:
        return _fail(error)
    if not _debugging():  # the libraries' own chatter; whatever the environment says comes first
        for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
            os.environ.setdefault(name, "error")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):  # for programmers
                warnings.simplefilter("ignore", category)
            warnings.showwarning = _show
            result = verb.run(options)
    except KeyboardInterrupt:
        _say("onbrand: interrupted; the same command again goes on where this stopped", "error")
        return 130
    except EXPECTED as error:
        return _fail(error)
    fell_short = not getattr(result, "passed", True) or (isinstance(result, dict) and bool(result.get("failed")))
    return int(fell_short)


def top_parser() -> argparse.ArgumentParser:
    """The parser of `onbrand [--help | --version | VERB]`; it needs nothing but the standard library."""
    parser = argparse.ArgumentParser(
        prog="onbrand",
        description="From product photos and a Stable Diffusion checkpoint to images in the brand's look.",
        epilog="`onbrand VERB --help` lists a verb's settings. ONBRAND_DEBUG=1 shows where an error came from.",
    )
    parser.add_argument("--version", action="version", version=f"onbrand {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, title="verbs")
    for verb in VERBS:
        verbs.add_parser(verb.__name__, help=_caption(verb), add_help=False)
    return parser


def parse(verb: Verb[Any, Any, Any], arguments: Sequence[str]) -> Any:
    """The verb's options, from the command line and a --config file; SystemExit(2) and one line if they are wrong."""
    line, notes = present(verb.__name__, verb.options, arguments)
    for note in notes:
        _say(f"onbrand: note: {note}")
    helping = "--help" in line or "-h" in line
    if verb.__name__ == "compare" and f"--{LIST}" in line and not helping:
        print(listing(), end="")
        raise SystemExit(0)
    shows = f"--{PRINT}" in line
    line = [word for word in line if word != f"--{PRINT}"]
    if not helping:
        line = with_config(verb, line)
    said, shown = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(shown):
            options = tyro.cli(
                verb.options,
                prog=f"onbrand {verb.__name__}",
                description=_description(verb),
                args=line,
                use_underscores=True,
            )
    except SystemExit as stop:
        if stop.code:
            _say(f"onbrand {verb.__name__}: error: {_one_line(verb.__name__, said.getvalue())}", "error")
        # what an option is by default its description says; None is Python's word for it
        print(re.sub(r"\(default:([ │\n]+)None\)", lambda gap: " " * 9 + gap[1] + " " * 5, shown.getvalue()), end="")
        raise
    if shows:
        print(yaml.safe_dump(_plain(settings(options)), sort_keys=False), end="")
        raise SystemExit(0)
    return options


def with_config(verb: Verb[Any, Any, Any], line: Sequence[str]) -> list[str]:
    """The command line with the settings of its --config file as words before its own, which win."""
    if f"--{CONFIG}" not in line:
        return list(line)
    position = list(line).index(f"--{CONFIG}")
    if position + 1 == len(line):
        raise OnbrandError("option", "--config names a YAML file of settings; got none: give --config FILE.yaml")
    rest = [*line[:position], *line[position + 2 :]]
    values = read_config(verb, line[position + 1])
    alone = [rest.pop(0)] if rest and not rest[0].startswith("-") else []
    if alone:
        values.pop(positional(verb.options), None)
    return [*alone, *words(verb.options, values), *rest]


def read_config(verb: Verb[Any, Any, Any], file: str) -> dict[str, Any]:
    """The settings in a YAML file, such as a run's config.yaml, by their present names."""
    try:
        content = read_yaml(Path(place(file))) or {}
    except (OSError, ValueError) as error:
        raise OnbrandError("option", f"--config must be a YAML file that can be read; got {file} ({error})") from error
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
        raise OnbrandError("option", f"--config must hold one setting a line, NAME: VALUE; got {file}")
    known = {field.name for field in dataclasses.fields(verb.options)}
    values = {name: value for name, value in content.items() if name != "schema"}
    if not set(values) <= known:
        values = renamed(verb.__name__, values, world())
    unknown = sorted(set(values) - known)
    if unknown:
        raise OnbrandError(
            "option", f"{file} has {', '.join(unknown)}, which `onbrand {verb.__name__}` does not know: take it out"
        )
    return values


def _description(verb: Verb[Any, Any, Any]) -> str:
    """What help says before the flags: the docstring up to its sections, and the flags of every verb."""
    text = re.split(r"\n(?:Returns|Raises):\n", inspect.cleandoc(verb.__doc__ or ""))[0].strip()
    return f"{text}\n\n--config FILE.yaml reads settings from a file; flags win over it. --print_config shows them all."


def _caption(verb: Verb[Any, Any, Any]) -> str:
    """First line of the verb's docstring, as an item of a list."""
    line = inspect.cleandoc(verb.__doc__ or "").splitlines()[0].rstrip(".")
    return line[:1].lower() + line[1:]


def _plain(value: Any) -> Any:
    """A value as YAML holds it."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _one_line(verb: str, box: str) -> str:
    """Tyro's message, which stands in a box under a title, on one line."""
    _, *lines = [line.strip("│ ") for line in box.splitlines() if line.strip("│╭╮╰╯─- ")]
    text = " ".join(lines).partition("For full helptext")[0]
    if text.startswith("Missing from"):
        names = [match[1] for line in lines[1:] if (match := re.match(r"(PATH|\{[\w,-]+\}|--\w+).*", line))]
        text = f"{', '.join(names)} must be given"
    text = re.sub(r"^Error parsing \w+: ", "", " ".join(text.split())).partition(" Argument helptext:")[0]
    text = re.sub(r"no type matching (.+?) could be instantiated from (\[.*?\])\. .*", r"\1 is expected; got \2", text)
    text = text.partition("; use sys.set_int_max_str_digits")[0]  # Python's advice, to programmers
    return f"{text}; `onbrand {verb} --help` lists what is accepted"


def _fail(error: Exception) -> int:
    """Exit code 2 with one line, or the traceback where it is asked for."""
    if _debugging():
        raise error
    code = f" [{error.code}]" if isinstance(error, OnbrandError) else ""
    _say(f"onbrand: error: {plain(' '.join(str(error).split())) or type(error).__name__}{code}", "error")
    return 2


def _show(message: Warning | str, *_: Any, **__: Any) -> None:
    """A warning as a line for the user, not as a place in the code."""
    _say(f"onbrand: warning: {plain(' '.join(str(message).split()))}")


def _say(line: str, what: str = "") -> None:
    """Print a line to stderr, if no other process of this run has; what: "error" for what ends them all, said once."""
    if is_first_to_say(what or line):
        print(line, file=sys.stderr)


def _debugging() -> bool:
    return os.environ.get("ONBRAND_DEBUG") == "1"
