"""Metadata from other programs: what is missing, what is no text or name, what is damaged, each said with its line."""

from __future__ import annotations

import json
import os
import tempfile
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from samples import content, draw, write_good, write_rows

from onbrand.data.metadata import class_of, is_missing, text_of
from onbrand.data.records import open_folder, read_folder
from onbrand.errors import UnreadableImage
from worlds import raises

UNNAMED = pytest.mark.filterwarnings("ignore:.*are named by no metadata")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    write_good(tmp_path / "photos", 3)
    return tmp_path / "photos"


@pytest.mark.parametrize(
    "value",
    [None, float("nan"), Decimal("NaN"), "", " ", "nan", "NaN", "None", "null", "NULL", "NaT", "<NA>", "N/A", "NA"],
)
def test_missing_values_are_none(value: Any) -> None:
    assert is_missing(value) and text_of(value) == "" and class_of(value) == ""


@pytest.mark.parametrize("value", ["none", "nano", "Nan's", "0", 0, False, "nullable", "n a", 0.0])
def test_words_and_numbers_are_not_missing(value: Any) -> None:
    assert not is_missing(value) and text_of(value) == str(value)


@pytest.mark.parametrize("word", ["nan", "NaN", "None", "null", "NaT", "<NA>", ""])
@pytest.mark.parametrize("kind", ["csv", "words", "json", "parquet", "table", "saved", "caption"])
def test_missing_captions_and_classes_are_missing_in_every_kind_of_file(photos: Path, kind: str, word: str) -> None:
    from datasets import Dataset

    files = ["00000.png", "00001.png", "00002.png"]
    texts, classes = [word, "a shoe", word], ["shoe", "boot", word]
    bare = [None if one == word else one for one in texts], [None if one == word else one for one in classes]
    if kind == "csv":
        rows = [",".join(row) for row in zip(files, texts, classes, strict=True)]
        (photos / "metadata.csv").write_text("\n".join(["file_name,text,class", *rows]))
    elif kind in ("words", "json"):
        columns = (texts, classes) if kind == "words" else bare
        rows = [
            json.dumps({"file_name": file, "text": text, "class": name}).replace("null", word or "null")
            for file, text, name in zip(files, *columns, strict=True)
        ]
        if kind == "json" and word not in ("", "null", "NaN"):
            rows = [row.replace(word, "NaN") for row in rows]
        (photos / "metadata.jsonl").write_text("\n".join(rows))
    elif kind == "parquet":
        pq.write_table(pa.table({"file_name": files, "text": texts, "class": classes}), photos / "metadata.parquet")
    elif kind in ("table", "saved"):
        images = [{"bytes": (photos / file).read_bytes(), "path": None} for file in files]
        table = Dataset.from_dict({"image": images, "text": bare[0], "class": classes})
        photos = photos.parent / "table"
        photos.mkdir()
        table.to_parquet(photos / "a.parquet") if kind == "table" else table.save_to_disk(photos)
    else:
        for file, text in zip(files, texts, strict=True):
            (photos / file).with_suffix(".txt").write_text(text)
        assert [record.text for record in read_folder(photos)[0]] == ["", "a shoe", ""]
        return
    folder = open_folder(photos)
    assert [(record.text, record.class_name) for record in folder.records] == [("", "shoe"), ("a shoe", "boot")]
    (refused,) = folder.refused
    assert refused.reason.startswith("without a class, while other rows have one")
    assert kind in ("table", "saved") or "line " in refused.reason
    assert "1 of 2 images have a caption" in folder.contents[0]


def test_numbers_that_are_missing_from_a_column_of_numbers(photos: Path) -> None:
    columns = {"file_name": ["00000.png", "00001.png", "00002.png"], "class": [1.0, float("nan"), 2.0]}
    pq.write_table(pa.table(columns), photos / "metadata.parquet")
    folder = open_folder(photos)
    assert [record.class_name for record in folder.records] == ["1.0", "2.0"] and len(folder.refused) == 1


def test_attributes_that_are_missing_are_left_out(photos: Path) -> None:
    """Parquet writes every key in every row."""
    values = [{"kind": "skirt", "colour": None}, {"kind": "nan", "colour": None}, None]
    columns = {"file_name": ["00000.png", "00001.png", "00002.png"], "attributes": values}
    pq.write_table(pa.table(columns), photos / "metadata.parquet")
    assert [record.attributes for record in read_folder(photos)[0]] == [{"kind": "skirt"}, None, None]
    (photos / "metadata.parquet").unlink()
    lines = ['{"kind": NaN, "colour": "red"}', '{"kind": null}', "{}"]
    (photos / "metadata.jsonl").write_text(
        "".join(f'{{"file_name": "0000{i}.png", "attributes": {one}}}\n' for i, one in enumerate(lines))
    )
    assert [record.attributes for record in read_folder(photos)[0]] == [{"colour": "red"}, None, {}]


FIRST = '{"file_name": "00000.png", "text": "x", "class": "a"}\n'


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ('{"file_name": "00001.png", "text": ' + "[" * 100_000 + "]" * 100_000 + "}", ["line 2", "nested"]),
        ('{"a": ' * 50_000 + "1" + "}" * 50_000, ["line 2", "nested"]),
        ('{"file_name": "00001.png", "class": ' + "9" * 5000 + "}", ["line 2", "over 4300 digits"]),
        ('{"file_name": "00001.png", "text": "a", "text": "b"}', ["line 2", "key 'text' twice"]),
        ('{"file_name": "00001.png", "attributes": {"a": "b", "a": "c"}}', ["line 2", "key 'a' twice"]),
        ('{"file_name": "00001.pn', ["line 2, column 15"]),
        ('{"file_name": "00001.png"} x', ["line 2, column 28"]),
        ("", []),
        ('"00001.png"', ["line 2", '"00001.png"']),
    ],
)
@UNNAMED
def test_a_line_that_is_no_row_is_an_error_that_names_it(photos: Path, line: str, values: list[str]) -> None:
    (photos / "metadata.jsonl").write_text(FIRST + line + "\n")
    if not values:
        assert len(read_folder(photos)[0]) == 1
        return
    with raises("data", photos / "metadata.jsonl", *values) as caught:
        read_folder(photos)
    assert str(caught.value).count("line ") == 1 and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("row", "values"),
    [
        ('"file_name": "0000\\u00001.png"', ["metadata.jsonl: line 2", "'\\x00'"]),
        ('"file_name": "\\ud800.png"', ["metadata.jsonl: line 2", "not UTF-8", "'\\ud800'"]),
        ('"file_name": "a\\tb.png"', ["metadata.jsonl: line 2", "'\\t'"]),
        ('"file_name": 7', ["metadata.jsonl: line 2", "no text: 7"]),
        ('"file_name": ["00001.png"]', ["metadata.jsonl: line 2", "00001.png"]),
        ('"file_name": NaN', ["metadata.jsonl: line 2", "no file_name"]),
        (f'"file_name": "{"a" * 5000}"', ["metadata.jsonl: line 2", "too long: aaa"]),
        (f'"file_name": "{"a" * 300}.png"', ["File name too long (line 2 of metadata.jsonl)"]),
        ('"file_name": "00001.PNG"', ["missing; 00001.png is there", "line 2"]),
        ('"file_name": "../00001.png"', ["outside the folder", "line 2"]),
        ('"file_name": "/etc/passwd"', ["/etc/passwd: outside the folder", "line 2"]),
        ('"file_name": "C:\\\\photos\\\\1.png"', ["outside the folder", "line 2"]),
        ('"file_name": "..\\\\00001.png"', ["outside the folder", "line 2"]),
        ('"file_name": "https://a.b/c.png"', ["outside the folder", "line 2"]),
        ('"file_name": "00001.png", "class": "a\\u0000"', ["its class", "'\\x00'", "line 2"]),
        ('"file_name": "00001.png", "class": "a\\tb"', ["its class", "'\\t'", "line 2"]),
        ('"file_name": "00001.png", "class": "a\\nb"', ["its class", "'\\n'", "line 2"]),
        ('"file_name": "00001.png", "class": "a\\u2028b"', ["its class", "'\\u2028'", "line 2"]),
        ('"file_name": "00001.png", "class": "a\\u001b[31m"', ["its class", "'\\x1b'", "line 2"]),
        ('"file_name": "00001.png", "class": "\\udc00"', ["its class", "'\\udc00'", "line 2"]),
        (f'"file_name": "00001.png", "class": "{"a" * 201}"', ["its class", "201 characters, over 200", "line 2"]),
        ('"file_name": "00001.png", "class": ["a"]', ["its class", "several values", "line 2"]),
        ('"file_name": "00001.png", "class": 1e999', ["its class", "inf", "line 2"]),
        ('"file_name": "00001.png", "class": "a", "text": "\\ud83d"', ["its text", "'\\ud83d'", "line 2"]),
        ('"file_name": "00001.png", "class": "a", "text": "a\\u0000s"', ["its text", "'\\x00'", "line 2"]),
        ('"file_name": "00001.png", "class": "a", "text": {"en": "a"}', ["its text", "several values", "line 2"]),
        ('"file_name": "00001.png", "conditioning_file_name": 5', ["conditioning image 5", "line 2"]),
        ('"file_name": "00001.png", "conditioning_file_name": "../a.png"', ["../a.png is outside", "line 2"]),
        ('"file_name": "00001.png", "conditioning_file_name": "\\u0000"', ["'\\x00'", "line 2"]),
    ],
)
@UNNAMED
def test_a_row_that_names_what_cannot_be_is_refused_with_its_line_and_the_others_are_read(
    photos: Path, row: str, values: list[str]
) -> None:
    (photos / "metadata.jsonl").write_text(f"{FIRST}{{{row}}}\n" + FIRST.replace("00000", "00002"))
    records, (refused,) = read_folder(photos)
    assert [record.file.name for record in records] == ["00000.png", "00002.png"]
    assert [value for value in values if value not in str(refused)] == [], refused
    str(refused).encode()
    assert str(refused).isprintable()


def test_text_with_line_ends_and_every_letter_is_read(photos: Path) -> None:
    texts = ["a\tshoe,\nred\u2028 and \x85", "\N{THUMBS UP SIGN}\u200d\U0001f3fd é \x92", "x"]
    write_rows(photos, [{"file_name": f"0000{i}.png", "text": text} for i, text in enumerate(texts)])
    assert [record.text for record in read_folder(photos)[0]] == texts


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("file_name,text,text\n00000.png,a,b\n", ["column text twice"]),
        ('file_name,text\n00000.png,x\n00001.png,"a\n00002.png,b\n', ["line 3", "quote"]),
        ("file_name;text\n00000.png;a\n", ["file_name;text", "commas"]),
        ("", ["file_name", "nothing"]),
        ("file_name,text\n", ["no row"]),
    ],
)
def test_a_csv_that_is_none_is_an_error(photos: Path, text: str, values: list[str]) -> None:
    (photos / "metadata.csv").write_text(text)
    with raises("data", photos / "metadata.csv", *values):
        read_folder(photos)


def test_long_captions_and_nul_bytes_in_a_csv(photos: Path) -> None:
    text = f'file_name,text\n00000.png,"{"a " * 100_000}"\n00001.png,a\x00b\n00002.png,c\n'
    (photos / "metadata.csv").write_text(text)
    records, (refused,) = read_folder(photos)
    assert [len(record.text) for record in records] == [200_000, 1] and "'\\x00' (line 2" not in str(refused)
    assert "'\\x00'" in str(refused) and "line 3 of metadata.csv" in str(refused)


@pytest.mark.parametrize("row", [{"image": "00000.png"}, {"path": "00000.png", "text": "x"}])
def test_rows_that_name_no_files_are_one_error(photos: Path, row: dict[str, str]) -> None:
    write_rows(photos, [row] * 3)
    with raises("data", photos / "metadata.jsonl", "`file_name`", ", ".join(row)):
        read_folder(photos)


def damage(content: bytes) -> Iterator[bytes]:
    """Not Parquet, cut, and with other bytes at each of its parts."""
    yield from (b"", b"PAR1", b"<html>404</html>", content[:-9], content[: len(content) // 2])
    for place in range(4, len(content), max(1, len(content) // 23)):
        yield content[:place] + bytes(255 - byte for byte in content[place : place + 7]) + content[place + 7 :]


@UNNAMED
@pytest.mark.parametrize("kind", ["metadata", "table"])
def test_a_damaged_parquet_is_an_error_that_names_it_or_refuses_rows(photos: Path, kind: str) -> None:
    files = ["00000.png", "00001.png", "00002.png"]
    if kind == "metadata":
        file, columns = photos / "metadata.parquet", {"file_name": files, "text": ["a shoe", None, "b" * 99]}
    else:
        file = photos.parent / "a.parquet"
        images = [{"bytes": content(draw(i, (16, 16))), "path": None} for i in range(3)]
        columns = {"image": images, "text": ["a shoe", None, "b" * 99]}  # type: ignore[dict-item]
    pq.write_table(pa.table(columns), file)
    errors = 0
    for damaged in damage(file.read_bytes()):
        file.write_bytes(damaged)
        try:
            records, _ = read_folder(photos if kind == "metadata" else file)
        except ValueError as error:
            assert type(error).__name__ == "OnbrandError" and str(file) in str(error) or "Rename it" in str(error)
            errors += 1
            continue
        for record in records:
            try:
                record.open()
            except UnreadableImage as error:
                assert str(file) in str(error) or kind == "metadata"
                errors += 1
    assert errors > 8


def test_a_damaged_saved_dataset_is_an_error_that_names_it(photos: Path, tmp_path: Path) -> None:
    from datasets import Dataset

    folder = tmp_path / "saved"
    for name, text in (("state.json", "{"), ("dataset_info.json", "[]"), ("data-00000-of-00001.arrow", "x")):
        images = [{"bytes": (photos / "00000.png").read_bytes(), "path": None}] * 2
        Dataset.from_dict({"image": images}).save_to_disk(folder)
        (folder / name).write_text(text)
        with raises("data", folder):
            read_folder(folder)


@pytest.mark.parametrize("path", ["/etc/hostname", "../secret.png", "a/../../secret.png"])
def test_a_table_opens_no_file_outside_of_its_folder(tmp_path: Path, path: str) -> None:
    (tmp_path / "table").mkdir()
    (tmp_path / "secret.png").write_bytes(content(draw(0)))
    (tmp_path / "table/own.png").write_bytes(content(draw(1)))
    images = [{"bytes": None, "path": one} for one in (path, "own.png")]
    pq.write_table(pa.table({"image": images}), tmp_path / "table/a.parquet")
    (outer, own), _ = read_folder(tmp_path / "table/a.parquet")
    assert np.array_equal(np.asarray(own.open()), draw(1))
    with pytest.raises(UnreadableImage, match="outside the folder"):
        outer.open()


def test_a_pipe_is_not_waited_for_and_a_link_to_nothing_is_said(photos: Path) -> None:
    os.mkfifo(photos / "00000.txt")
    (photos / "00001.txt").symlink_to("nowhere")
    (photos / "more").symlink_to("/nowhere/photos")
    (photos / "self").symlink_to("self")
    os.mkfifo(photos / "pipe.png")
    (photos / "gone.png").symlink_to("nowhere.png")
    (photos / "round.png").symlink_to("round.png")
    (photos / "link.png").symlink_to("00002.png")
    folder = open_folder(photos)
    assert [record.file.name for record in folder.records[-2:]] == ["00002.png", "link.png"]
    assert {entry.file.name: entry.reason for entry in folder.refused} == {
        "00000.png": "its caption 00000.txt is no regular file",
        "00001.txt": "a link to nothing",
        "more": "a link to nothing",
        "self": "a link to nothing",
        "pipe.png": "not a regular file",
        "gone.png": "a link to nothing",
        "round.png": "a link to nothing",
    }
    (photos.parent / "table").mkdir()
    os.mkfifo(photos.parent / "table/a.parquet")
    with raises("data", photos.parent / "table/a.parquet", "is no regular file"):
        open_folder(photos.parent / "table")
    for path in (photos.parent / "table/a.parquet", "/dev/null"):
        with raises("data", path, "neither a folder nor a file"):
            open_folder(path)
    os.mkfifo(photos / "metadata.jsonl")
    with raises("data", photos / "metadata.jsonl", "not a regular file"):
        open_folder(photos)


def test_names_that_are_no_utf_8_or_have_control_characters_are_refused(photos: Path) -> None:
    image = (photos / "00000.png").read_bytes()
    for name in (b"caf\xe9.png", b"a\tb.png", b"a\nb.png", b"\x1b[31m.png"):
        Path(os.fsdecode(os.path.join(os.fsencode(photos), name))).write_bytes(image)
    for name in (b"10_caf\xe9", b"10_a\nb"):
        folder = Path(os.fsdecode(os.path.join(os.fsencode(photos), name)))
        folder.mkdir()
        (folder / "0.png").write_bytes(image)
    found = open_folder(photos)
    assert len(found.records) == 3 and {entry.file.name for entry in found.refused} == {
        "caf\\udce9.png", "a\\tb.png", "a\\nb.png", "\\x1b[31m.png", "10_caf\\udce9", "10_a\\nb"
    }  # fmt: skip
    with raises("data", "not UTF-8"):
        open_folder(os.fsdecode(os.path.join(os.fsencode(photos), b"10_caf\xe9")))


@pytest.mark.parametrize(("on_disk", "words"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_a_name_in_another_normal_form_is_the_same_name(photos: Path, on_disk: Any, words: Any) -> None:
    def form(how: Any) -> str:
        return unicodedata.normalize(how, "é ö")

    (photos / "00000.png").rename(photos / f"{form(on_disk)}.png")
    (photos / f"{form(words)}.txt").write_text("a shoe")
    assert sum(bool(record.text) for record in read_folder(photos)[0]) == 1
    rows = [
        {"file_name": f"{form(words)}.png", "class": form("NFC")},
        {"file_name": "00001.png", "class": form("NFD"), "conditioning_file_name": f"{form(words)}.png"},
        {"file_name": f"{form(on_disk)}.png", "class": "x"},
        {"file_name": "00002.png", "class": "x"},
    ]
    write_rows(photos, rows)
    records, (refused,) = read_folder(photos)
    assert [record.class_name for record in records] == [form("NFC"), form("NFC"), "x"]
    assert records[0].file == records[1].conditioning == photos / f"{form(on_disk)}.png" and records[0].open()
    assert "named again in line 3" in refused.reason


def test_two_names_that_differ_in_their_normal_form_have_a_caption_each(photos: Path) -> None:
    for form in ("NFC", "NFD"):
        name = unicodedata.normalize(form, "é")  # type: ignore[arg-type]
        (photos / f"{name}.png").write_bytes((photos / "00000.png").read_bytes())
        (photos / f"{name}.txt").write_text(form)
    texts = {record.file.stem: record.text for record in read_folder(photos)[0] if record.text}
    assert texts == {unicodedata.normalize(form, "é"): form for form in ("NFC", "NFD")}  # type: ignore[arg-type]


@contextmanager
def nobody() -> Iterator[Path]:
    """A folder that a process without rights can enter, and such a process."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        user = os.geteuid()
        try:
            if user == 0:
                os.seteuid(65534)
            yield Path(folder)
        finally:
            if user == 0:
                os.seteuid(0)


def as_owner(action: Callable[[], object]) -> None:
    """Do something with the rights of whoever runs the tests."""
    user = os.geteuid()
    os.seteuid(os.getuid())
    action()
    os.seteuid(user)


def test_what_may_not_be_read_is_listed_and_the_rest_is_read(photos: Path) -> None:
    with nobody() as folder:
        as_owner(lambda: [write_good(folder / name, 2) for name in (".", "closed", "open")])
        as_owner(lambda: (folder / "00000.txt").write_text("a shoe"))
        for name in ("closed", "00000.txt", "open/00000.png"):
            as_owner(lambda name=name: (folder / name).chmod(0))  # type: ignore[misc]
        found = open_folder(folder)
        reasons = {entry.file.relative_to(folder).as_posix(): entry.reason for entry in found.refused}
        assert reasons == {
            "closed": "a folder that cannot be read: Permission denied",
            "00000.png": "its caption 00000.txt cannot be read: Permission denied",
        }
        assert [record.file.name for record in found.records] == ["00001.png", "00000.png", "00001.png"]
        with pytest.raises(UnreadableImage, match="Permission denied"):
            found.records[1].open()
        as_owner(lambda: write_rows(folder, [{"file_name": "00001.png"}, {"file_name": "closed/00000.png"}]))
        with pytest.warns(UserWarning, match="named by no metadata"):
            found = open_folder(folder)
        assert len(found.records) == 1 and sorted(entry.file.name for entry in found.refused) == ["00000.png", "closed"]
        as_owner(lambda: (folder / "metadata.jsonl").chmod(0))
        with raises("data", folder / "metadata.jsonl", "Permission denied"):
            open_folder(folder)
        as_owner(lambda: folder.chmod(0))
        with raises("data", folder, "Permission denied"):
            open_folder(folder)
        as_owner(lambda: folder.chmod(0o755))
