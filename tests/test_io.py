"""Files that appear whole or not at all, and what files of schema 1 say by the keys of the present one."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from onbrand.io import (
    append,
    check_links,
    discard,
    draft_of,
    inside,
    plain,
    read_json,
    read_lines,
    remove_drafts,
    upgrade,
    whole_file,
    whole_folder,
    write_json,
    write_text,
)
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


def test_a_drafts_name_cannot_be_guessed_and_nothing_is_written_into_one_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {draft_of(tmp_path / "a.json").name for _ in range(99)}
    assert len(names) == 99 and all(len(name) == len(".a.json..tmp") + 16 for name in names)
    (tmp_path / "victim").write_text("mine")
    monkeypatch.setattr("secrets.token_hex", lambda _: "0" * 16)
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
    write_json(tmp_path / "fit.json", {"file": os.fsdecode(b"\xff.png")})
    assert read_json(tmp_path / "fit.json")["file"] == "\udcff.png"
