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


P = "garment, a red coat"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"prompt": "x", "seed": 7.0}', ["seed", "got 7.0"]),
        ('{"prompt": "x", "seed": "7"}', ["seed", "got '7'"]),
        ('{"prompt": "x", "seed": 9223372036854775808}', ["seed", "got 9223372036854775808"]),
        (f'{{"prompt": "x", "seed": {"9" * 5000}}}', ["JSON", "5000 digits"]),
        ('{"prompt": "x", "negative_prompt": 5}', ["negative_prompt", "a text", "got 5"]),
        ('{"prompt": "x", "negative_prompt": ["a"]}', ["negative_prompt", "['a']"]),
        ('{"prompt": "x", "class": 5}', ["class", "a text", "got 5"]),
        ('{"prompt": "x", "class": ""}', ["class", "not empty"]),
        ('{"prompt": "x", "image": 3}', ["image", "got 3"]),
        ('{"prompt": "x", "conditioning": [3]}', ["conditioning", "(3,)"]),
        ('{"prompt": "x", "conditioning": {"a": 1}}', ["conditioning", "{'a': 1}"]),
        ('{"prompt": "x", "attributes": {"size": NaN}}', ["attributes", "nan"]),
        ('{"prompt": null}', ["prompt (or text)"]),
        ('{"prompt": "x", "prompt": "y"}', ["'prompt' twice"]),
        ('{"prompt": "x", "text": "y"}', ["text and prompt", "both"]),
        ('{"prompt": "x\\u0000"}', ["NUL"]),
        ('{"prompt": "x\\ud800"}', ["surrogate"]),
        ('{"prompt": "x", "attributes": ' + "[" * 10**5 + "]" * 10**5 + "}", ["nested too deeply"]),
        ('{"prompt": "x", "attributes": ' + "[" * 900 + "]" * 900 + "}", ["attributes", "[[["]),
        ('{"prompt": "x", "negativ_prompt": "y"}', ["'negativ_prompt'", "did you mean negative_prompt?"]),
        ('{"prompt": "x", "sead": 3}', ["'sead'", "did you mean seed?"]),
        ('{"prompt": "x", "num_images": 3}', ["'num_images'", "--num_images_per_prompt"]),
        ('{"prompt": "x", "steps": 3}', ["'steps'", "--num_inference_steps"]),
        ('{"prompt": "x", "cfg_scale": 3}', ["'cfg_scale'", "--guidance_scale"]),
        ('{"prompt": "x", "zzz": 3}', ["'zzz'", "conditioning_file_name"]),
        ("prompt,seed", ["JSON object", "'prompt,seed'", ".txt"]),
        ('[{"prompt": "x"}]', ["JSON object on one line"]),
    ],
)  # fmt: skip
def test_every_line_is_read_before_the_first_image(tmp_path: Path, line: str, words: list[str]) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "x"}\n' + f"{line}\n\n" + '{"prompt": "y"}\n' + line)
    with raises("request", f"{file} line 2", "besides: 5", *words) as caught:
        read_requests(file)
    assert len(str(caught.value)) < 500


def test_null_and_nan_are_not_given(tmp_path: Path) -> None:
    row = {"prompt": P, "seed": None, "class": None, "negative_prompt": None, "image": float("nan"), "attributes": None}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    assert read_requests(tmp_path / "a.jsonl", seed=3, negative_prompt="blue") == [
        Request(P, 3, negative_prompt="blue")
    ]


def test_a_photo_folders_metadata_serves_whatever_columns_it_has(tmp_path: Path) -> None:
    row = {"file_name": "a.png", "text": P, "class": "garment", "width": 512, "seed": None, "price": [1, {"eur": 2}]}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row | {"conditioning_file_name": "b.png"}))
    (request,) = read_requests(tmp_path / "metadata.jsonl")
    files = str(tmp_path / "a.png"), str(tmp_path / "b.png")
    assert request == Request(P, 0, "garment", image=files[0], conditioning=files[1:]) and not request.asked
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": P, "image": "a.png"}))
    assert read_requests(tmp_path / "a.jsonl")[0].asked == {"start": "image"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_are_what_an_editor_shows(tmp_path: Path, encoding: str, end: str) -> None:
    """Unicode's own separators are letters; a byte order mark says the encoding."""
    prompts = ["a coat\u2028red\x85\x0b\x0c\x1c", "ein Schuh, gr\u00fcn \U0001f45f"]
    lines = [json.dumps({"prompt": prompt}, ensure_ascii=False) for prompt in prompts]
    (tmp_path / "a.jsonl").write_bytes(f"{end}{end}{lines[0]}{end}{lines[1]}".encode(encoding))
    requests = read_requests(tmp_path / "a.jsonl")
    assert [request.prompt for request in requests] == prompts and requests[1].place.endswith("a.jsonl line 4")
    (tmp_path / "b.txt").write_bytes(f"{prompts[1]}{end}{prompts[1]}{end}".encode(encoding))
    assert [request.prompt for request in read_requests(tmp_path / "b.txt")] == [prompts[1]] * 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a coat\nein Schuh, gr\u00fcn".encode("latin-1"), ["line 2", "UTF-8"]),
        ("a coat".encode("utf-16-le"), ["line 1", "NUL", "UTF-8"]),
        (b"\xff\xfea\x00b", ["UTF-16"]),
        (b"\x89PNG\r\n\x1a\n", ["line 1", "UTF-8"]),
        (b"", ["no requests"]),
        (b"# a\n   # b\n", ["no requests"]),
    ],
)
@pytest.mark.parametrize("suffix", ["txt", "jsonl"])
def test_a_file_that_is_no_text(tmp_path: Path, content: bytes, words: list[str], suffix: str) -> None:
    file = tmp_path / f"a.{suffix}"
    file.write_bytes(content if suffix == "txt" or not content.startswith(b"#") else b"\n")
    with raises("request", file, *words):
        read_requests(file)


@pytest.mark.parametrize(
    ("line", "expected", "asked"),
    [
        (f"{P} --n blurry, dark --d 7", Request(P, 7, negative_prompt="blurry, dark"), {}),
        (f"{P}  --d 7 --s 4 --l 5.5 --w 16 --h 16", Request(P, 7, height=16, width=16),
         {"num_inference_steps": 4, "guidance_scale": 5.5}),
        (f"{P} -- or --- so -n x", Request(f"{P} -- or --- so -n x", 1), {}),
        (f'--prompt "{P}" --negative_prompt "2 -- hems" --seed 350', Request(P, 350, negative_prompt="2 -- hems"), {}),
        (f"--negative_prompt dark --prompt {P} --steps 9 --cfg_scale 3", Request(P, 1, negative_prompt="dark"),
         {"num_inference_steps": 9, "guidance_scale": 3.0}),
        ("{a coat}", Request("{a coat}", 1), {}),
    ],
)  # fmt: skip
def test_lines_of_words_as_other_tools_write_them(tmp_path: Path, line: str, expected: Request, asked: Any) -> None:
    (tmp_path / "a.TXT").write_text(f"# sample prompts\n\n  # of kohya\n{P}\n{line}\n")
    first, request = read_requests(tmp_path / "a.TXT")
    assert (first, request) == (Request(P, 0), expected)
    assert (request.asked, request.place) == (asked, f"{tmp_path / 'a.TXT'} line 5")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (f"{P} --ar 16:9 --v 5", ["got --ar", "JSON"]),
        (f"{P} --ss euler_a", ["got --ss"]),
        (f"{P} --d x", ["--d is a number", "'x'"]),
        (f"{P} --d", ["--d is a number", "''"]),
        (f"{P} --d {'9' * 5000}", ["--d is a number", "'999"]),
        (f"{P} --d -3", ["seed", "got -3"]),
        (f"{P} --l high", ["--l is a number", "'high'"]),
        (f"{P} --n a --n b", ["negative_prompt", "--n b"]),
        (f'--prompt "{P}', ["quotes"]),
        ("--seed 3", ["a prompt"]),
        ('{"prompt": "x"}', ["JSON", ".jsonl"]),
    ],
)
def test_words_that_no_tool_writes_are_said_with_their_line(tmp_path: Path, line: str, words: list[str]) -> None:
    (tmp_path / "a.txt").write_text(f"{P}\n{line}\n")
    with raises("request", f"{tmp_path / 'a.txt'} line 2", *words):
        read_requests(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prompt": 3}, ["prompt", "got 3"]),
        ({"prompt": "\ud800"}, ["prompt", "UTF-8"]),
        ({"prompt": "a\0"}, ["prompt", "NUL"]),
        ({"seed": 10**5000}, ["seed", "too large"]),
        ({"seed": True}, ["seed", "True"]),
        ({"class_name": 3}, ["class", "got 3"]),
        ({"conditioning": 3}, ["conditioning", "got 3"]),
        ({"conditioning": ("",)}, ["conditioning", "('',)"]),
    ],
)
def test_a_request_from_python_is_checked_alike(options: Any, words: Any) -> None:
    with raises("request", *words):
        Request(**{"prompt": "x", "seed": 0} | options)
    assert Request("x", 0, conditioning="a.png").conditioning == ("a.png",)  # type: ignore[arg-type]


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
