"""What an error tells its reader to do names settings that there are: options, arguments, keys of their own files."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import onbrand
from onbrand import cli

SOURCE = Path(onbrand.__file__).parent
OPTIONS = {field.name for verb in cli.VERBS for field in dataclasses.fields(verb.options)}
ARGUMENTS = {
    name
    for public in (onbrand.start, onbrand.HandOff, onbrand.matched_steps, onbrand.window, onbrand.Provenance)
    for name in inspect.signature(public).parameters
}
OTHERS = {
    "alpha_bar", "alphas_cumprod", "caption_column", "class_name", "conditioning_file_name", "constant_with_warmup",
    "encode_all", "file_name", "load_dataset", "model_max_length", "model_type", "new_controlnet",
    "num_train_timesteps", "sample_size", "save_to_disk", "timestep_type", "to_k", "to_q", "to_v",
    "total_batch_size", "trained_betas", "v_prediction", "x0_hat", "x_start",
}  # fmt: skip
"""What no setting is called, and a message may name: keys of files, classes, the method's letters, choices."""


def messages() -> Iterator[tuple[str, str]]:
    """(place, words) of everything that src raises or warns of; what stands in braces is left out."""
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if name in ("OnbrandError", "UnreadableImage", "warn", "works_in", "Need", "Schema"):
                words = " ".join(
                    part.value
                    for argument in node.args
                    for part in ast.walk(argument)
                    if isinstance(part, ast.Constant) and isinstance(part.value, str)
                )
                yield f"{path.relative_to(SOURCE)}:{node.lineno}", words


def unknown(words: str) -> set[str]:
    """Names in a message that nobody could find: flags that no verb has, settings that are none."""
    flags = set(re.findall(r"--([a-z]\w*)", words)) - OPTIONS - {"config", "print_config"}
    names = set(re.findall(r"(?<![\w./-])[a-z]+[a-z0-9]*(?:_[a-z0-9]+)+(?![\w(./])", words))
    return flags | (names - OPTIONS - ARGUMENTS - OTHERS)


def test_every_remedy_names_what_its_reader_has() -> None:
    entries = {place: names for place, words in messages() if (names := unknown(words))}
    assert not entries
    assert sum(1 for _ in messages()) > 250, "they are found"
    assert set(re.findall(r"\w+", " ".join(words for _, words in messages()))) >= OTHERS, "none is left over"


@pytest.mark.parametrize("words", ["take --spacing trailing", "set checkpoint_every", "give batch_sizes"])
def test_a_name_that_is_none_is_seen(words: str) -> None:
    assert unknown(words)


def test_former_names_of_settings_are_in_no_message() -> None:
    former = re.compile(r"\b(optim|loss|engine|log|lora|controlnet)\.[a-z_]+\b(?!\.safetensors)")
    assert not [place for place, words in messages() if former.search(words) and "log.json" not in words]
