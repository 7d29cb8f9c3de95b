"""Requests from a file, a photo folder's metadata or one prompt; settings that cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from onbrand.options.generate import SamplingSettings
from onbrand.sampling.requests import Request, read_requests


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
    ("line", "said"),
    [
        ("{oops", "line 2: a request is a line of JSON, .* got '{oops'"),
        ("[1]", r"line 2: a request is a JSON object with a prompt; got \[1\]"),
        ('{"class": "x"}', "line 2: a request has a prompt .*; this has class"),
        ('{"prompt": 3}', "line 2: a prompt is a text; got 3"),
        ('{"prompt": "x", "seed": -1}', "line 2: a seed is a whole number from 0 on; got -1"),
        ('{"prompt": "x", "seed": 1.5}', "got 1.5"),
        ('{"prompt": "x", "seed": true}', "got True"),
        ('{"prompt": "x", "attributes": {"size": 3}}', "line 2: attributes are an object of texts"),
        ('{"prompt": "x", "attributes": "red"}', "line 2: attributes are an object of texts"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(tmp_path: Path, line: Any, said: Any) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "x"}\n' + line)
    with pytest.raises(ValueError, match=said):
        read_requests(file)


def test_a_text_file_has_a_prompt_a_line(tmp_path: Path) -> None:
    (tmp_path / "asked.txt").write_text("a red shoe\n\n  {a blue one}\n")
    assert read_requests(tmp_path / "asked.txt", seed=7) == [Request("a red shoe", 7), Request("{a blue one}", 8)]
    with pytest.raises(ValueError, match="count is for one prompt; got 3"):
        read_requests(tmp_path / "asked.txt", count=3)


def test_nothing_to_read(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="no requests in"):
        read_requests(tmp_path / "empty.jsonl")
    with pytest.raises(ValueError, match=f"no file of requests at {tmp_path / 'none.jsonl'}"):
        read_requests(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="either a file of requests or one prompt"):
        read_requests()
    with pytest.raises(ValueError, match="either a file"):
        read_requests(tmp_path / "empty.jsonl", prompt="x")
    with pytest.raises(ValueError, match="at least 1; got 0"):
        read_requests(prompt="x", count=0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"start": "median"}, "start must be one of noise, mean"),
        ({"timestep_spacing": "even"}, "timestep_spacing must be one of leading, trailing, linspace; got 'even'"),
        ({"num_inference_steps": 0}, "num_inference_steps must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"trace": -1}, "trace must be at least 0"),
        ({"guidance_scale": -1.0}, "guidance_scale must be at least 0"),
        ({"eta": 2.0}, r"eta must lie in \[0, 1\]"),
    ],
)
def test_settings_that_cannot_be(options: Any, said: Any) -> None:
    with pytest.raises(ValueError, match=said):
        SamplingSettings(**options)
