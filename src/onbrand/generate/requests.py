"""What is asked for: a prompt, its class and its seed, from a file of JSON lines or from one prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Request:
    """One picture that is asked for."""

    prompt: str
    """The caption."""
    seed: int
    """>= 0; the same noise in any batch."""
    class_name: str | None = None
    """Kind of picture; None: the prompt's prefix says it."""
    negative_prompt: str = ""
    """What guidance leads away from."""
    image: str | None = None
    """File of the picture that an "image" start starts from."""
    attributes: Mapping[str, str] | None = None
    """What is to be seen, attribute -> label, for a reader to look for; None: what the prompt's words say."""
    conditioning: tuple[str, ...] = ()
    """Files of the control pictures, one for each ControlNet."""

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str):
            raise ValueError(f"a prompt is a text; got {self.prompt!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise ValueError(f"a seed is a whole number from 0 on; got {self.seed!r}")
        named = {} if self.attributes is None else self.attributes
        if not isinstance(named, Mapping) or not all(isinstance(value, str) for value in named.values()):
            raise ValueError(f"attributes are an object of texts, as colour: red; got {self.attributes!r}")
        if not all(isinstance(file, str) for file in self.conditioning):
            raise ValueError(f"conditioning is the name of a file, or a list of them; got {self.conditioning!r}")


def read_requests(
    file: str | Path | None = None, *, prompt: str | None = None, count: int = 1, seed: int = 0
) -> list[Request]:
    """Requests from `file`, or `count` times `prompt` with the seeds seed, seed + 1, ...

    file: a .txt with one prompt a line, or one JSON object a line:
    prompt (or text), and optionally class, seed (else seed + its place in the file),
    negative_prompt, attributes, image (or file_name) and conditioning (or conditioning_file_name: one file or a list),
    relative to the file; other keys are not read, so that a photo folder's metadata.jsonl serves. ValueError, with the
    line, for what cannot be read.
    """
    if (file is None) == (prompt is None):
        raise ValueError("give either a file of requests or one prompt")
    if prompt is not None:
        if count < 1:
            raise ValueError(f"the number of pictures must be at least 1; got {count}")
        return [Request(prompt, seed + index) for index in range(count)]
    if count != 1:
        raise ValueError(f"count is for one prompt; got {count} and a file of requests: write each line {count} times")
    path = Path(str(file))
    if not path.is_file():
        raise ValueError(f"no file of requests at {path.absolute()}")
    requests: list[Request] = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = {"prompt": line.strip()} if path.suffix == ".txt" else json.loads(line)
            requests.append(_read_line(row, seed + len(requests), path.parent))
        except json.JSONDecodeError as error:
            raise ValueError(
                f'{path} line {number}: a request is a line of JSON, as {{"prompt": "..."}}, or of text in a .txt; '
                f"got {line[:60]!r} ({error.msg})"
            ) from error
        except ValueError as error:
            raise ValueError(f"{path} line {number}: {error}") from error
    if not requests:
        raise ValueError(f"no requests in {path.absolute()}")
    return requests


def _read_line(row: Any, seed: int, folder: Path) -> Request:
    if not isinstance(row, dict):
        raise ValueError(f"a request is a JSON object with a prompt; got {row!r}")
    prompt = row.get("prompt", row.get("text"))
    if prompt is None:
        raise ValueError(f"a request has a prompt (or text); this has {', '.join(row) or 'nothing'}")
    image = row.get("image", row.get("file_name"))
    control = row.get("conditioning", row.get("conditioning_file_name")) or []
    files = control if isinstance(control, list) else [control]
    return Request(
        prompt=prompt,
        seed=row.get("seed", seed),
        class_name=row.get("class"),
        negative_prompt=row.get("negative_prompt", ""),
        image=None if image is None else str(folder / image),
        attributes=row.get("attributes"),
        conditioning=tuple(str(folder / file) if isinstance(file, str) else file for file in files),
    )
