"""Files that appear whole or not at all, and what files of schema 1 say by the keys of the present one."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import Any, get_args

import pytest

from onbrand import schemas
from onbrand.io import (
    append,
    check_links,
    discard,
    draft_of,
    inside,
    json_lines,
    plain,
    read_json,
    read_lines,
    read_yaml,
    remove_drafts,
    upgrade,
    whole_file,
    whole_folder,
    write_json,
    write_text,
)
from worlds import raises

ARCHIVE = Path(__file__).parent / "archive" / "v0"


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


LINE = {"step": 1, "loss": 0.5, "seconds": 1.0}


def test_a_line_cut_off_by_a_kill_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(json.dumps(LINE) + "\n\n" + '{"step": 2, "lo')
    assert read_lines(tmp_path / "log.jsonl") == [LINE] and read_lines(tmp_path / "none") == []
    (tmp_path / "log.jsonl").write_text("\ufeff" + json.dumps(LINE) + "\n" + json.dumps(LINE | {"step": 2}))
    assert [line["step"] for line in read_lines(tmp_path / "log.jsonl")] == [1, 2]


def test_text_with_other_ends_of_lines_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "lines").write_text(
        json.dumps({"a": "b\u2028c\x85d\x1ce"}, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    assert read_lines(tmp_path / "lines") == [{"a": "b\u2028c\x85d\x1ce"}]


@pytest.mark.parametrize(
    ("content", "values"),
    [
        (b"", ("no JSON", "column 1")),
        (b"{", ("no JSON", "at column 2")),
        (b'{"a": 1,\n"b" 2}', ("no JSON", "line 2 column 5")),
        (b'{"a": "b', ("no JSON", "starting at column 7")),
        (b"\x00\x00\x00", ("no JSON",)),
        (b"\xff{}", ("byte 0", "UTF-8")),
        (b"[]", ("object", "[]")),
        (b"3", ("object", "3")),
        (b"null", ("object", "None")),
        (b'{"a": ' + b"[" * 100_000, ("nested too deeply",)),
        (b'{"a": ' + b"[" * 60 + b"]" * 60 + b"}", ("nested too deeply",)),
        (b'{"a": ' + b"9" * 5000 + b"}", ("5000 digits",)),
        (b'{"a": ' + b"9" * 4000 + b"}", ("4000 digits",)),
        (b'{"a": "b\\u0000"}', ("NUL", "'b\\x00'")),
        (b'{"\\ud800": 1}', ("half of a surrogate pair",)),
        (b'{"schema": "two"}', ("schema must be a whole number", "'two'")),
        (b'{"schema": 0}', ("schema must be a whole number", "0")),
        (b'{"schema": true}', ("schema must be a whole number", "True")),
        (b'{"schema": 3}', ("schema 3", "up to 2", "update onbrand")),
    ],
)
@pytest.mark.parametrize("name", ["fit.json", "of no schema"])
def test_what_is_no_json_of_ours_is_said_in_one_line(tmp_path: Path, name: str, content: bytes, values: Any) -> None:
    (tmp_path / name).write_bytes(content)
    with raises("folder", tmp_path / name, *values) as caught:
        read_json(tmp_path / name)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    if name == "of no schema" and b"\n" not in content:  # any line but the last
        (tmp_path / name).write_bytes(b'{"a": 1}\n' + (content or b"{") + b"\n{}\n")
        with raises("folder", f"{tmp_path / name} line 2", *values[:1]):
            read_lines(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "code", "change", "values"),
    [
        ("brand/fit.json", "folder", {"resolution": [16]}, ("resolution.1 is missing", "onbrand fit")),
        ("brand/fit.json", "folder", {"resolution": [16, 0]}, ("resolution.1 must be at least 1, is 0",)),
        ("brand/fit.json", "folder", {"used": "many"}, ("used must be a whole number, is 'many'",)),
        ("brand/fit.json", "folder", {"classes": {"a": {"count": 1, "file": "../a"}}}, ("classes.a.file", "'../a'")),
        ("brand/leak.json", "folder", {"classes": {"a": 3}}, ("classes.a", "object", "onbrand diagnose")),
        ("brand/leak.json", "folder", {"abar": float("nan")}, ("abar", "nan")),
        ("brand/leak.json", "folder", {"findings": None}, ("findings must be a list, is None",)),
        ("images/check.json", "folder", {"all": {}}, ("all.rate is missing", "onbrand check")),
        ("images/check.json", "folder", {"pictures": [{"file": "a"}]}, ("images.0.failed is missing",)),
        ("brand/reference.json", "folder", {"reference": {}}, ("reference.background is missing", "remove the file")),
        ("brand/unseen.json", "folder", {"photos": {"a": {"b": 1.0}}}, ("photos.a.b", "class_lead")),
        ("images/run.json", "folder", {"prior": 3}, ("prior must be text, is 3",)),
        ("compare/demo.json", "folder", {"rows": [{"caption": ""}]}, ("rows.0.name is missing",)),
        ("compare/compare.json", "folder", {"failed": {"a": []}}, ("failed.a must be text, is []",)),
        ("run/state/step-00000004/state.json", "resume", {"counters": 1}, ("counters must be an object", "1")),
    ],
)
def test_a_field_that_is_wrong_is_named(tmp_path: Path, name: str, code: str, change: Any, values: Any) -> None:
    """In files of schema 1, under the names that they have today."""
    file = tmp_path / Path(name).name
    content = json.loads((ARCHIVE / name).read_text())
    assert read_json(ARCHIVE / name)["schema"] == 2
    file.write_text(json.dumps(content | change))
    with raises(code, file, *values):
        read_json(file)


def test_a_sealed_file_that_was_changed_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_json(file, {"a": 1.5, "b": {"1": float("nan")}}, sealed=True)
    assert read_json(file)["a"] == 1.5
    file.write_text(file.read_text().replace("1.5", "1.6"))
    with raises("folder", file, "changed since it was written"):
        read_json(file)


@pytest.mark.parametrize(
    ("content", "values"),
    [
        (b"a: " + b"[" * 5000, ("nested too deeply",)),
        (b"a: " + b"9" * 5000, ("setting", "digits")),
        (b"a: 2001-13-45", ("setting", "month")),
        (b"a: \x00", ("YAML",)),
        (b"\xff", ("UTF-8",)),
        (b"{[]: 1}", ("YAML",)),
        (b"a: *b", ("YAML", "b")),
        (b"a: &a [*a]", ("nested too deeply",)),
        (
            b"".join(
                b"a%d: &a%d [%s]\n" % (i, i, b", ".join([b"*a%d" % (i - 1)] * 9) if i else b"1") for i in range(12)
            ),
            ("100000 values",),
        ),
        (b'a: "\\0"', ("NUL",)),
    ],
)
def test_what_are_no_settings_is_said(tmp_path: Path, content: bytes, values: Any) -> None:
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(values[0])) as caught:
        read_yaml(tmp_path / "config.yaml")
    assert all(value in str(caught.value) for value in values) and "\n" not in str(caught.value)


def keys_of(part: Any, seen: set[str]) -> set[str]:
    """The keys of a schema and of what is in it, by the names that files have."""
    for name, field in part.model_fields.items() if part is not schemas.Schedule else ():  # whose keys are torch's
        seen.add(field.alias or name)
        for inner in parts_in(field.annotation):
            keys_of(inner, seen)
    return seen


def parts_in(hint: Any) -> list[Any]:
    if isinstance(hint, type) and issubclass(hint, schemas.Part):
        return [hint]
    return [part for inner in get_args(hint) for part in parts_in(inner)]


PAGE = (Path(__file__).parents[1] / "docs" / "reference" / "files.md").read_text()
NAMELESS = {"reference", "lora", "shard", "controlnet.json", "metadata.jsonl"}
"""Schemas of what is no file of its own on the page."""


@pytest.mark.parametrize("name", sorted(set(schemas.SCHEMAS) - NAMELESS))
def test_the_page_of_files_names_every_key_of_a_schema(name: str) -> None:
    words = set(re.findall(r"[\w.]+", " ".join(re.findall(r"`([^`]+)`", PAGE))))
    assert Path(name).name in words
    assert keys_of(schemas.SCHEMAS[name].part, set()) - words - FORMER == set()


FORMER = {"held", "offset"}
"""Keys of schema 1."""


def test_json_lines_are_numbered_and_an_error_has_the_callers_code(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('\n{"a": "\\ud83d\\ude00\\n"}\r\n\n[NaN]\n{"a": 1, "b": {"c": 1, "c": 2}}\n')
    lines = json_lines(tmp_path / "a.jsonl", "data")
    assert next(lines) == (2, {"a": "\U0001f600\n"})
    number, (value,) = next(lines)
    assert number == 4 and value != value, "NaN, as pandas writes it"
    with raises("data", "a.jsonl line 5", "'c' twice"):
        next(lines)


def test_a_drafts_name_cannot_be_guessed_and_nothing_is_written_into_one_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {draft_of(tmp_path / "a.json").name for _ in range(99)}
    assert len(names) == 99 and all(len(name) == len(".a.json..tmp") + 16 for name in names)
    (tmp_path / "victim").write_text("mine")
    monkeypatch.setattr("os.urandom", bytes)
    for link in (draft_of(tmp_path / "a.json"), draft_of(tmp_path / "model")):
        link.symlink_to(tmp_path / "victim")
    with pytest.raises(FileExistsError), whole_file(tmp_path / "a.json"):
        pass
    with whole_folder(tmp_path / "model") as draft:  # its writer's own lock says that the draft is nobody's
        assert not draft.is_symlink()
    assert (tmp_path / "victim").read_text() == "mine"


def test_a_link_is_replaced_and_never_written_through(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "own").touch()
    for name, target in (("a.json", "victim"), ("b.json", "nowhere"), ("model", "folder"), ("state", "nowhere")):
        (tmp_path / name).symlink_to(tmp_path / target)
    for name in ("a.json", "b.json"):
        write_json(tmp_path / name, {})
    for name in ("model", "state"):
        with whole_folder(tmp_path / name) as draft:
            (draft / "new").touch()
        assert os.listdir(tmp_path / name) == ["new"]
    assert (tmp_path / "victim").read_text() == "mine" and os.listdir(tmp_path / "folder") == ["own"]
    assert not [path for path in tmp_path.iterdir() if path.is_symlink()]
    (tmp_path / "log.jsonl").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match=r"log\.jsonl"):
        append(tmp_path / "log.jsonl")
    discard(tmp_path / "log.jsonl")
    assert (tmp_path / "victim").read_text() == "mine" and not (tmp_path / "log.jsonl").is_symlink()


@pytest.mark.parametrize("name", ["a.json", "x" * 255, "\u4e16" * 85, "[a]*?.json", "-", ".a"])
def test_any_name_that_a_file_may_have_is_written(tmp_path: Path, name: str) -> None:
    for _ in range(2):
        write_text(tmp_path / name, "whole")
    assert os.listdir(tmp_path) == [name] and (tmp_path / name).read_text() == "whole"
    for _ in range(2):
        with whole_folder(tmp_path / name) as draft:
            (draft / "new").touch()
    assert os.listdir(tmp_path) == [name] and os.listdir(tmp_path / name) == ["new"]


def test_what_is_written_has_the_rights_that_the_user_gives_files(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        write_text(tmp_path / "a", "a")
        with whole_folder(tmp_path / "b"):
            pass
        append(tmp_path / "c").close()
    finally:
        os.umask(mask)
    rights = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "abc"]
    assert rights == [0o640, 0o750, 0o640]


def test_what_killed_processes_left_is_removed_and_another_folders_is_not(tmp_path: Path) -> None:
    for name in ("model", "model.v2", "mode"):
        draft_of(tmp_path / name).mkdir()
    former = draft_of(tmp_path / "model.v2").name[:10]
    with whole_folder(tmp_path / "model"):
        pass
    names = sorted(os.listdir(tmp_path))
    assert len(names) == 3 and names[0].startswith(".mode.") and names[1].startswith(former) and names[2] == "model"
    (tmp_path / "means").mkdir()
    draft_of(tmp_path / "means" / "a.png").touch()
    (tmp_path / "means" / ".own.tmp").touch()
    remove_drafts(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["means", "model"] and os.listdir(tmp_path / "means") == [".own.tmp"]


@pytest.mark.parametrize(
    "name",
    ["../secret.png", "/etc/passwd", "a/../../secret.png", "link.png", "links/secret.png", "a\0b", None, 7,
     ["a.png"], "..", "a//..//../secret.png"],
)  # fmt: skip
def test_a_name_that_leads_out_of_its_folder_is_refused(tmp_path: Path, name: object) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (tmp_path / "secret.png").touch()
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "links").symlink_to(tmp_path)
    with raises("folder", folder, "manifest.jsonl", "nothing outside"):
        inside(folder, name, folder / "manifest.jsonl")


@pytest.mark.parametrize("name", ["a.png", "sub/a.png", "sub/../a.png", "..a.png", "\u00e9.png", "within.png"])
def test_a_name_in_its_folder_is_its_path(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "within.png").symlink_to("a.png")
    assert inside(tmp_path, name, "manifest.jsonl") == tmp_path / name
    (tmp_path / "away").symlink_to(tmp_path)
    assert inside(tmp_path / "away", name, "manifest.jsonl") == tmp_path / "away" / name


def test_a_link_that_leads_out_is_found_at_any_depth(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "b" / "in").symlink_to(folder / "a")
    check_links(folder)
    (folder / "a" / "b" / "out").symlink_to(tmp_path)
    with raises("folder", folder, "a/b/out"):
        check_links(folder)
    check_links(folder, unread=("b",))


@pytest.mark.parametrize(
    ("name", "text"),
    [("a dress", "a dress"), ("\u4e16 \u00e9", "\u4e16 \u00e9"), ("a\tb\n", r"a\tb\n"), ("\x1b[2J", r"\x1b[2J"),
     ("\u202eevil", r"\u202eevil"), ("\udcff", r"\udcff"), ("\x00\x85\u2028", r"\x00\x85\u2028")],
)  # fmt: skip
def test_a_name_is_shown_as_it_is_and_steers_nothing(name: str, text: str) -> None:
    assert plain(name) == text


def test_a_name_that_is_no_unicode_is_written_and_read_back(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"file": os.fsdecode(b"\xff.png")})
    assert read_json(tmp_path / "a.json")["file"] == r"\udcff.png"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
@pytest.mark.parametrize("linked", [False, True])
def test_a_device_or_a_pipe_is_not_replaced_by_a_file(tmp_path: Path, linked: bool) -> None:
    os.mkfifo(tmp_path / "pipe")
    if linked:
        (tmp_path / "link").symlink_to(tmp_path / "pipe")
    target = tmp_path / ("link" if linked else "pipe")
    with pytest.raises(FileExistsError, match="a device or pipe"), whole_file(target):
        pytest.fail("it began")
    assert (tmp_path / "pipe").is_fifo() and len(os.listdir(tmp_path)) == 1 + linked
