"""The start that weights were trained with, as onbrand writes it beside them: whole, or refused by its field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from onbrand.models.checkpoint import LORA, checked, lora_metadata, trained_start_in
from worlds import raises

RECORD = {"schema": 2, "gain": "window", "start": "pca", "k": 2, "start_timestep": 950, "prior": "ab"}
WRONG: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"gain": "windw"}, ("gain", "'windw'")),
    ({"start": None}, ("start", "None")),
    ({"k": "many"}, ("k must be a whole number", "'many'")),
    ({"k": -1}, ("k must be at least 0",)),
    ({"start_timestep": "first"}, ("start_timestep", "'first'")),
    ({"start_timestep": 1e30}, ("start_timestep",)),
    ({"start_timestep": True}, ("start_timestep", "True")),
    ({"prior": 3}, ("prior must be text",)),
    ({"paper": 1}, ("paper",)),
]


@pytest.mark.parametrize(("change", "values"), WRONG)
def test_a_record_that_is_wrong_is_refused_wherever_it_stands(tmp_path: Path, change: Any, values: Any) -> None:
    with raises("checkpoint", "here", *values):
        checked(RECORD | change, "here")
    folder = tmp_path / "onbrand"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(RECORD))
    assert trained_start_in(tmp_path) == RECORD
    (folder / "config.json").write_text(json.dumps(RECORD | change))
    with raises("checkpoint", folder / "config.json", *values[1:]):
        trained_start_in(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / LORA, {"onbrand": json.dumps({"trained_start": RECORD | change})})
    with raises("checkpoint", tmp_path / LORA, *values):
        lora_metadata(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "[" * 9999, '{"schema": 3}', '{"k": "\\u0000"}'])
def test_a_file_that_is_no_record_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "onbrand").mkdir()
    (tmp_path / "onbrand" / "config.json").write_text(content)
    with raises("checkpoint", tmp_path / "onbrand" / "config.json"):
        trained_start_in(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / LORA, {"onbrand": content})
    with raises("checkpoint", tmp_path / LORA):
        lora_metadata(tmp_path)
