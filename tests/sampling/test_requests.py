"""Requests from a file, a photo folder's metadata or one prompt; settings that cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from onbrand.options.generate import SamplingSettings
from onbrand.sampling.requests import Request, read_requests
from worlds import raises


def test_one_prompt_many_seeds() -> None:
    assert read_requests(prompt="a boot", count=3, seed=7) == [Request("a boot", seed) for seed in (7, 8, 9)]


def test_a_file(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a boot", "class": "garment", "seed": 5, "negative_prompt": "blue"},
        {"text": "a coat", "file_name": "a.png", "kind": "coat"},
        {"prompt": "a sandal, d\u00e9cor", "attributes": {"kind": "sandal"}},
    ]
    file = tmp_path / "prompts.jsonl"
    file.write_text("\ufeff" + "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    assert read_requests(file, seed=100) == [
        Request("a boot", 5, "garment", "blue"),
        Request("a coat", 101, image=str(tmp_path / "a.png")),
        Request("a sandal, d\u00e9cor", 102, attributes={"kind": "sandal"}),
    ]


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("{oops", ["JSON", "'{oops'"]),
        ("[1]", ["JSON object", [1]]),
        ('{"class": "x"}', ["prompt (or text)", "class"]),
        ('{"prompt": 3}', ["prompt must be a text", "got 3"]),
        ('{"prompt": "x", "seed": -1}', ["seed", "got -1"]),
        ('{"prompt": "x", "seed": 1.5}', ["seed", 1.5]),
        ('{"prompt": "x", "seed": true}', ["seed", True]),
        ('{"prompt": "x", "attributes": {"size": 3}}', ["attributes", {"size": 3}]),
        ('{"prompt": "x", "attributes": "red"}', ["attributes", "'red'"]),
    ],
)
def test_a_line_that_cannot_be_read_is_named(tmp_path: Path, line: Any, values: Any) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "x"}\n' + line)
    with raises("request", f"{file} line 2", *values):
        read_requests(file)


def test_a_text_file_has_a_prompt_a_line(tmp_path: Path) -> None:
    (tmp_path / "asked.txt").write_text("a red shoe\n\n  {a blue one}\n")
    assert read_requests(tmp_path / "asked.txt", seed=7) == [Request("a red shoe", 7), Request("{a blue one}", 8)]
    with raises("request", "num_images_per_prompt", "got 3", "3 times"):
        read_requests(tmp_path / "asked.txt", count=3)


def test_nothing_to_read(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with raises("request", "no requests", tmp_path / "empty.jsonl"):
        read_requests(tmp_path / "empty.jsonl")
    with raises("request", "no file", tmp_path / "none.jsonl"):
        read_requests(tmp_path / "none.jsonl")
    with raises("request", "either a file"):
        read_requests()
    with raises("request", "either a file"):
        read_requests(tmp_path / "empty.jsonl", prompt="x")
    with raises("request", "at least 1", "got 0"):
        read_requests(prompt="x", count=0)


@pytest.mark.parametrize(
    ("options", "values"),
    [
        ({"start": "median"}, ["start", "noise, mean, pca, text, image", "'median'"]),
        ({"timestep_spacing": "even"}, ["timestep_spacing", "leading, trailing, linspace", "'even'"]),
        ({"num_inference_steps": 0}, ["num_inference_steps", "at least 1", "got 0"]),
        ({"batch_size": 0}, ["batch_size", "at least 1", "got 0"]),
        ({"trace": -1}, ["trace", "at least 0", -1]),
        ({"guidance_scale": -1.0}, ["guidance_scale", "at least 0", -1.0]),
        ({"eta": 2.0}, ["eta", [0, 1], 2.0]),
    ],
)
def test_settings_that_cannot_be(options: Any, values: Any) -> None:
    with raises("option", *values):
        SamplingSettings(**options)
