"""Files that appear whole or not at all, and what files of schema 1 say by the keys of the present one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onbrand.io import json_lines, read_json, read_lines, upgrade, whole_file, whole_folder, write_json
from worlds import raises


def test_a_file_appears_whole_or_stays_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "there" / "a.json"
    write_json(file, {"a": 1})
    with pytest.raises(KeyError), whole_file(file) as draft:
        draft.write_text("half")
        raise KeyError
    assert read_json(file) == {"schema": 2, "a": 1} and list(file.parent.iterdir()) == [file]


def test_a_folder_takes_the_place_of_the_former_one_or_leaves_it(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    for name in ("one", "two"):
        with whole_folder(folder) as draft:
            (draft / name).touch()
    with pytest.raises(KeyError), whole_folder(folder) as draft:
        (draft / "three").touch()
        raise KeyError
    assert [path.name for path in folder.iterdir()] == ["two"] and list(tmp_path.iterdir()) == [folder]


def test_keys_of_schema_1_are_renamed_and_names_that_somebody_gave_are_not() -> None:
    former = {
        "learnt": 9,
        "all": {"share": 0.5, "of": 8},
        "properties": {"ground": {"share": 1.0}, "kind": {"share": 0.2}},
        "attributes": {"kind": {"share": 0.1, "of": 3}, "colour": {"share": 0.4, "of": 3}},
        "pictures": [{"file": "0.png", "failed": ["ground", "light"], "values": {"ground_near": 0.3}}],
    }
    assert upgrade(former) == {
        "schema": 2,
        "n_reference": 9,
        "all": {"rate": 0.5, "n": 8},
        "properties": {"background": {"rate": 1.0}, "class": {"rate": 0.2}},
        "attributes": {"kind": {"rate": 0.1, "n": 3}, "colour": {"rate": 0.4, "n": 3}},
        "images": [{"file": "0.png", "failed": ["background", "light"], "values": {"background_near": 0.3}}],
    }
    assert upgrade({"methods": {"kind": {"stray": {"value": 1}}}})["methods"] == {
        "kind": {"out_of_distribution": {"value": 1}}
    }
    assert upgrade({"schema": 2, "kind": 1}) == {"schema": 2, "kind": 1}, "its own keys are its own"


def test_a_line_cut_off_by_a_kill_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(json.dumps({"step": 1}) + "\n" + '{"step": 2, "lo')
    assert read_lines(tmp_path / "log.jsonl") == [{"step": 1}] and read_lines(tmp_path / "none") == []


def test_json_lines_are_numbered_and_an_error_has_the_callers_code(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('\n{"a": "\\ud83d\\ude00\\n"}\r\n\n[NaN]\n{"a": 1, "b": {"c": 1, "c": 2}}\n')
    lines = json_lines(tmp_path / "a.jsonl", "data")
    assert next(lines) == (2, {"a": "\U0001f600\n"})
    number, (value,) = next(lines)
    assert number == 4 and value != value, "NaN, as pandas writes it"
    with raises("data", "a.jsonl line 5", "'c' twice"):
        next(lines)
