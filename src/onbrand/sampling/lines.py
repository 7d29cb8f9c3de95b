"""What a line of a file of requests says: JSON, or words and options as kohya and A1111 have them."""

from __future__ import annotations

import json
import math
import re
import shlex
from difflib import get_close_matches
from typing import Any

from onbrand.errors import OnbrandError, quote
from onbrand.io import json_of
from onbrand.options.former import ELSEWHERE, GENERATE
from onbrand.options.generate import GenerateOptions

KEYS = (
    "prompt", "text", "class", "seed", "negative_prompt", "image", "file_name", "attributes", "conditioning",
    "conditioning_file_name", "height", "width",
)  # fmt: skip
"""Of a line of JSON."""
SAME = {"text": "prompt", "file_name": "image", "conditioning_file_name": "conditioning"}
"""Key of a photo's metadata -> of a request."""
OPTIONS = {
    "prompt": "prompt", "n": "negative_prompt", "negative_prompt": "negative_prompt", "d": "seed", "seed": "seed",
    "s": "num_inference_steps", "steps": "num_inference_steps", "l": "guidance_scale", "cfg_scale": "guidance_scale",
    "w": "width", "width": "width", "h": "height", "height": "height",
}  # fmt: skip
"""Option of a line of words, as kohya and A1111 have them -> what it is."""
NUMBERS: dict[str, type[int] | type[float]] = {
    "seed": int, "num_inference_steps": int, "guidance_scale": float, "width": int, "height": int,
}  # fmt: skip
"""What options that are numbers are read by."""


def row_of_json(line: str, place: str) -> dict[str, Any]:
    """What a line of JSON asks for; null and NaN are not given."""
    if not line.lstrip().startswith("{"):
        raise OnbrandError(
            "request",
            'a request is a JSON object on one line, as {"prompt": "..."}, or a line of words in a file that ends in '
            f".txt; got {quote(line.strip(), 60)}: write each so",
        )
    row = json_of(line, "request", place)
    photo = "file_name" in row
    unknown = [key for key in row if key not in KEYS and not photo]
    if unknown:
        raise OnbrandError("request", f"a request has no key {quote(unknown[0])}: {_remedy(unknown[0])}")
    row = {key: value for key, value in row.items() if key in KEYS and not _missing(value)}
    both = [key for key, other in SAME.items() if key in row and other in row and not photo]
    if both:
        raise OnbrandError("request", f"{both[0]} and {SAME[both[0]]} are the same; got both: take one out")
    start = {"start": "image"} if "image" in row and not photo else {}  # a photo has a file whatever is asked for
    row = {key: value for key, value in row.items() if not photo or key not in ("height", "width")}  # a photo's own
    return {SAME[key]: row[key] for key in row if key in SAME} | row | start


def _missing(value: Any) -> bool:
    """Whether a value is none: null, or the NaN that pandas writes for it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _remedy(key: str) -> str:
    """What to do about a key that no request has."""
    setting = GENERATE.get(key, ELSEWHERE.get(key, key))
    if setting in GenerateOptions.__dataclass_fields__:
        return f"it is one setting for all, --{setting}"
    close = get_close_matches(key, KEYS, 1)
    return f"did you mean {close[0]}?" if close else f"its keys are {', '.join(KEYS)}"


def row_of_words(line: str) -> dict[str, Any]:
    """What a line of words asks for."""
    if line.startswith("{") and _is_json(line):
        raise OnbrandError("request", f"a .txt has words; got JSON, {quote(line, 60)}: name the file .jsonl")
    if re.match(r"--[A-Za-z]", line):  # as A1111 writes it, with quotes as in a shell
        try:
            first, parts = "", _split_quoted(line)
        except ValueError as error:
            raise OnbrandError("request", f"quotes must close; got {quote(line, 60)} ({error})") from error
    else:
        first, *rest = re.split(r"\s+--(?=[A-Za-z])", line)
        parts = [(words[0], " ".join(words[1:])) for words in (part.split(maxsplit=1) for part in rest)]
    row: dict[str, Any] = {"prompt": first} if first else {}
    for name, value in parts:
        key = OPTIONS.get(name)
        if key is None:
            raise OnbrandError(
                "request",
                f"behind a prompt stand {', '.join(f'--{short}' for short in OPTIONS if len(short) == 1)}; got "
                f"--{name}: take it out, or write the prompt as JSON",
            )
        if key in row:
            raise OnbrandError("request", f"{key} is given once; got it again as --{name} {value}: take one out")
        try:
            row[key] = NUMBERS[key](value) if key in NUMBERS else value
        except ValueError as error:
            raise OnbrandError("request", f"--{name} is a number; got {quote(value, 60)}") from error
    return row


def _is_json(text: str) -> bool:
    """Whether a text can be read as JSON."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _split_quoted(line: str) -> list[tuple[str, str]]:
    """(option, value) of a line as `--prompt "a red dress" --seed 7`."""
    groups: list[tuple[str, list[str]]] = []
    for word in shlex.split(line):
        if word.startswith("--") and len(word) > 2:
            groups.append((word[2:], []))
        else:
            groups[-1][1].append(word)
    return [(name, " ".join(words)) for name, words in groups]
