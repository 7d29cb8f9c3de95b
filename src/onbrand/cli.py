"""The verbs on the command line: flags and help are read off `onbrand.api` and its config dataclasses."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, get_type_hints

from onbrand import __version__, api
from onbrand.comparison.compare import compare

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

VERBS: tuple[Callable[..., Any], ...] = (
    api.fit,
    api.diagnose,
    api.train,
    api.generate,
    api.check,
    compare,
    api.merge,
    api.report,
    api.data,
)
"""In the order of the work, and last what to try it on."""
EXPECTED = (ValueError, OSError, FloatingPointError)
"""Errors that are the user's to mend: one line, no traceback."""
KNOWN_AS = {
    "pretrained_model_name_or_path": "model", "output_dir": "out", "learning_rate": "optim.lr",
    "max_train_steps": "steps", "num_inference_steps": "steps", "train_batch_size": "batch", "batch_size": "batch",
    "lr_scheduler": "optim.schedule", "optimizer_type": "optim.name", "mixed_precision": "engine.precision",
    "gradient_accumulation_steps": "engine.accumulation", "snr_gamma": "loss.min_snr",
    "min_snr_gamma": "loss.min_snr", "network_dim": "lora.rank", "network_alpha": "lora.alpha",
    "guidance_scale": "guidance", "cfg_scale": "guidance", "output": "out", "num_images": "count",
    "num_images_per_prompt": "count",
}  # fmt: skip
"""Flags of diffusers' scripts and kohya's -> ours."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `onbrand VERB ...`; returns the exit code.

    0: done · 1: `check` found fewer than `--require`, or a part of `compare` failed ·
    2: wrong input, said in one line on stderr · 130: interrupted.
    With ONBRAND_DEBUG=1 in the environment, errors keep their traceback.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    verbs = {verb.__name__: verb for verb in VERBS}
    try:
        verb = verbs[top_parser().parse_args(given[:1]).verb]
        values = parse(verb, given[1:])
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
            for kind in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):  # for programmers
                warnings.simplefilter("ignore", kind)
            warnings.showwarning = _show
            result = verb(**values)
    except KeyboardInterrupt:
        print("onbrand: interrupted; the same command again goes on where this stopped", file=sys.stderr)
        return 130
    except EXPECTED as error:
        return _fail(error)
    fell_short = not getattr(result, "passed", True) or (isinstance(result, dict) and bool(result.get("failed")))
    return int(fell_short)


def top_parser() -> argparse.ArgumentParser:
    """The parser of `onbrand [--help | --version | VERB]`; it needs nothing but the standard library."""
    parser = argparse.ArgumentParser(
        prog="onbrand",
        description="From product photos and a Stable Diffusion checkpoint to pictures in the brand's look.",
        epilog="`onbrand VERB --help` lists a verb's settings. ONBRAND_DEBUG=1 shows where an error came from.",
    )
    parser.add_argument("--version", action="version", version=f"onbrand {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, title="verbs")
    for verb in VERBS:
        verbs.add_parser(verb.__name__, help=_caption(verb), add_help=False)
    return parser


def parse(verb: Callable[..., Any], arguments: Sequence[str]) -> dict[str, Any]:
    """The verb's keyword arguments, from the command line and a `--config` file; SystemExit(2) where they are wrong."""
    parser = verb_parser(verb)
    values = parser.instantiate(parser.parse_args(list(arguments))).as_dict()
    values.pop("config", None)
    signature = inspect.signature(verb).parameters
    first = next(iter(signature.values()))
    if first.default is first.empty and values.get(first.name) is None:
        parser.error(f"{first.name.upper()} is missing")
    for name, settings in _settings(verb).items():
        values[name] = settings(**{field.name: values.pop(field.name) for field in dataclasses.fields(settings)})
    return {name: value for name, value in values.items() if name in signature}


def verb_parser(verb: Callable[..., Any]) -> ArgumentParser:
    """The parser of one verb: its first parameter stands alone, the others are flags, settings are flat flags."""
    from docstring_parser import parse as parse_docstring
    from jsonargparse import ArgumentParser

    class Parser(ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> Any:
            print(f"{self.prog}: error: {_plain(message)}", file=sys.stderr)
            near = _meant(message, [flag[2:] for flag in self._option_string_actions if flag.startswith("--")])
            asked = f"did you mean {', '.join(near)}? " if near else ""
            print(f"{asked}`{self.prog} --help` lists what is accepted", file=sys.stderr)
            self.exit(2)

    signature = inspect.signature(verb).parameters
    first, *_ = signature
    switches = [name for name, parameter in signature.items() if parameter.default is False]
    settings = _settings(verb)
    words = parse_docstring(inspect.getdoc(verb) or "")
    help_of = {word.arg_name: word.description for word in words.params}
    required = "".join(
        f" --{name} {name.upper()}" for name, p in list(signature.items())[1:] if p.default is inspect.Parameter.empty
    )
    alone = first.upper() if signature[first].default is inspect.Parameter.empty else f"[{first.upper()}]"
    parser = Parser(
        prog=f"onbrand {verb.__name__}",
        usage=f"onbrand {verb.__name__} {alone}{required} [flags]",
        description="\n\n".join(filter(None, (words.short_description, words.long_description))),
        formatter_class=_Formatter,
    )
    parser.add_argument("--config", action="config", metavar="FILE.yaml", help="settings of a file; flags after it win")
    parser.add_argument(first, nargs="?", default=argparse.SUPPRESS, help=help_of.get(first))
    parser.add_function_arguments(verb, skip={first, *switches, *settings}, as_group=False)
    for name in switches:
        parser.add_argument(f"--{name}", action="store_true", help=help_of.get(name))
    for kind in settings.values():
        parser.add_class_arguments(kind, None)
    for action in parser._actions:
        if action.help == "Path to a configuration file.":  # --loss FILE beside --loss.dropout: one --config is enough
            action.help = argparse.SUPPRESS
    return parser


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Help that says the default, and neither Python's types nor None."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        text = text if text.endswith("...") else text.rstrip(".")
        if action.required:
            return f"{text} (required)"
        unsaid = action.default is None or action.default is False or action.default == argparse.SUPPRESS
        return text if unsaid else f"{text} (default: %(default)s)"

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return action.dest.rsplit(".")[-1].upper()


def _settings(verb: Callable[..., Any]) -> dict[str, Any]:
    """The verb's parameters that are config dataclasses."""
    hints = get_type_hints(verb)
    return {name: hint for name, hint in hints.items() if name != "return" and dataclasses.is_dataclass(hint)}


def _caption(verb: Callable[..., Any]) -> str:
    """First line of the verb's docstring, as an item of a list."""
    line = (inspect.getdoc(verb) or "").splitlines()[0].rstrip(".")
    return line[:1].lower() + line[1:]


def _meant(message: str, flags: Sequence[str]) -> list[str]:
    """The verb's flags that were probably meant by those that the parser's message calls unrecognized."""
    from difflib import get_close_matches

    short = {flag.rpartition(".")[2]: flag for flag in flags} | {flag: flag for flag in flags}
    meant = []
    for given in re.findall(r"--([\w.-]+)", message.partition("unrecognized arguments: ")[2]):
        given = given.replace("-", "_")
        near = get_close_matches(KNOWN_AS.get(given, given), short, 1, 0.75)
        meant += [f"--{short[name]}" for name in near]
    return meant


def _plain(message: str) -> str:
    """jsonargparse's message in the words of the command line, on one line."""
    message = re.sub(r"Parser key \"([\w.]+)\":", r"--\1:", message)
    # of a setting that may also be null: what it may be besides
    message = re.sub(
        r"(?s)Does not validate .*?Errors:\s*-\s*(.*?)\s*-\s*Expected a <class 'NoneType'>.*", r"\1", message
    )
    message = re.sub(r"a typing\.Literal\[([^\]]*)\]", r"one of \1", message)
    message = re.sub(r"<class '(\w+)'>", r"\1", message)
    said, required, names = message.partition("arguments are required: ")
    if required:
        message = f"{said}flags are required: " + ", ".join(f"--{name}" for name in names.split(", "))
    return " ".join(message.split())


def _fail(error: Exception) -> int:
    """Exit code 2 with one line, or the traceback where it is asked for."""
    if _debugging():
        raise error
    print(f"onbrand: error: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
    return 2


def _show(message: Warning | str, *_: Any, **__: Any) -> None:
    """A warning as a line for the user, not as a place in the code."""
    print(f"onbrand: warning: {message}", file=sys.stderr)


def _debugging() -> bool:
    return os.environ.get("ONBRAND_DEBUG") == "1"
