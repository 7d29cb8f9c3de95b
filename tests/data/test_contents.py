"""What was found in a folder is said: what is not read is named, and masks are no photos."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from samples import write_good, write_rows

from onbrand.data.records import open_folder
from worlds import raises


def contents(folder: Path) -> tuple[str, list[str]]:
    """The first line without its folder, and what was not read."""
    head, *lines = open_folder(folder).contents
    assert head.startswith(f"{folder}: ") and all(line.startswith("  not read: ") for line in lines)
    return head.removeprefix(f"{folder}: "), [line.removeprefix("  not read: ") for line in lines]


@pytest.mark.parametrize(
    ("names", "captioned", "first", "words"),
    [
        (
            [f"0000{i}.TXT" for i in range(4)],
            0,
            "4 files (00000.TXT first)",
            "look like captions: the caption of a.png",
        ),
        ([f"0000{i}.png.txt" for i in range(4)], 0, "4 files (00000.png.txt first)", "look like captions"),
        ([f"0000{i}.txt.txt" for i in range(4)], 0, "4 files (00000.txt.txt first)", "look like captions"),
        ([f"0000{i}.json" for i in range(4)], 0, "4 files (00000.json first)", "look like captions"),
        (["00001.Caption", "00002.cap"], 0, "2 files (00001.Caption first)", "look like captions"),
        (["captions/00001.txt"], 0, "captions/00001.txt", "looks like captions"),
        (["00000.txt", "00001.txt"], 2, "", ""),
        (["00000.txt", "00000.caption"], 1, "00000.caption", "looks like captions"),
        (["metadata.json"], 0, "metadata.json", "metadata is called metadata.jsonl"),
        (["Metadata.jsonl"], 0, "Metadata.jsonl", "looks like metadata"),
        (["METADATA.CSV"], 0, "METADATA.CSV", "looks like metadata"),
        (["metadata (1).jsonl", "metadata.jsonl.txt"], 0, "2 files (metadata (1).jsonl first)", "look like metadata"),
        (["captions.txt"], 0, "captions.txt", "looks like metadata"),
        (["metal.txt"], 0, "metal.txt", ""),
        (["labels.tsv"], 0, "labels.tsv", "looks like metadata"),
        (["deep/er/train.parquet"], 0, "deep/er/train.parquet", "looks like metadata"),
        (["README.md", "a.nef"], 0, "2 files (README.md first)", ""),
        (["check.json", "Thumbs.db", ".hidden"], 0, "", ""),
    ],
)
def test_what_looks_like_captions_or_metadata_and_is_not_read_is_named(
    tmp_path: Path, names: Sequence[str], captioned: int, first: str, words: str
) -> None:
    write_good(tmp_path, 4)
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("a shoe")
    head, lines = contents(tmp_path)
    assert head == f"{captioned} of 4 images have a caption; 1 class: default (4)"
    assert len(lines) == bool(first)
    assert not lines or (lines[0].startswith(first) and words in lines[0])


def test_captions_beside_metadata_are_named_for_they_are_not_read(tmp_path: Path) -> None:
    write_rows(tmp_path, [{"file_name": name, "class": "shoe"} for name in write_good(tmp_path, 3)])
    (tmp_path / "00001.txt").write_text("a shoe")
    (tmp_path / "captions.csv").write_text("")
    assert contents(tmp_path) == (
        "0 of 3 images have a caption; 1 class: shoe (3)",
        [
            "00001.txt, which looks like captions: they are read from metadata.jsonl",
            "captions.csv, which looks like metadata: metadata.jsonl is read",
        ],
    )


ROWS: list[tuple[dict[str, Any], list[str]]] = [
    ({"additional_feature": "a shoe"}, ["column `additional_feature`, which looks like captions ('a shoe')"]),
    ({"title": "shoe"}, ["column `title`, which looks like captions ('shoe')"]),
    (
        {"note": "a shoe " * 100},
        ["column `note`, which looks like captions ('a shoe a shoe a shoe a shoe a shoe a sho..."],
    ),
    ({"text": "a shoe", "note": "a shoe", "n": 1}, ["columns `note`, `n`"]),
    ({"text": "a shoe", "label": "x"}, ["column `label`, which looks like classes"]),
    ({"text": "a shoe", "class": "x", "label": "x"}, ["column `label`"]),
    ({"text": "a shoe", "other": None}, []),
    ({"text": "a shoe", "te\ud800xt": 1}, ["column `te\\ud800xt`"]),
]


@pytest.mark.parametrize(("row", "expected"), ROWS)
@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_columns_that_are_not_read_are_named(
    tmp_path: Path, row: dict[str, Any], expected: Sequence[str], suffix: str
) -> None:
    rows = [{"file_name": name, **row} for name in write_good(tmp_path, 2)]
    if suffix == "csv":
        if any(not name.isascii() for name in row):
            return
        lines = [",".join("" if value is None else str(value) for value in one.values()) for one in (*rows,)]
        (tmp_path / "metadata.csv").write_text("\n".join([",".join(rows[0]), *lines]))
    else:
        write_rows(tmp_path, rows)
    _, lines = contents(tmp_path)
    assert [line[: len(start)] for line, start in zip(lines, expected, strict=True)] == list(expected)


@pytest.mark.parametrize("name", ["caption", "captions", "prompt", "Text", "PROMPT", " text"])
@pytest.mark.parametrize("kind", ["jsonl", "csv", "metadata.parquet", "parquet", "saved"])
def test_captions_in_a_column_of_another_name_are_an_error_wherever_they_stand(
    tmp_path: Path, name: str, kind: str
) -> None:
    from datasets import Dataset

    images = [(tmp_path / file).read_bytes() for file in write_good(tmp_path, 2)]
    columns: dict[str, Any] = {"file_name": ["00000.png", "00001.png"], name: ["a shoe", "b"]}
    if kind == "jsonl":
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    elif kind == "csv":
        (tmp_path / "metadata.csv").write_text(f"file_name,{name}\n00000.png,a shoe\n00001.png,b\n")
    elif kind == "metadata.parquet":
        Dataset.from_dict(columns).to_parquet(tmp_path / "metadata.parquet")
    else:
        table = Dataset.from_dict({"image": [{"bytes": one, "path": None} for one in images], name: columns[name]})
        tmp_path = tmp_path / "table"
        tmp_path.mkdir()
        table.to_parquet(tmp_path / "a.parquet") if kind == "parquet" else table.save_to_disk(tmp_path)
    with raises("data", "`text`", f"`{name}`", tmp_path):
        open_folder(tmp_path)


def test_a_table_says_its_columns_and_classes(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, Features, Image, Value

    write_good(tmp_path / "photos", 1)
    image = {"bytes": (tmp_path / "photos/00000.png").read_bytes(), "path": None}
    features = Features({"image": Image(), "class": ClassLabel(names=["shoe", "boot"]), "about": Value("string")})
    rows = {"image": [image] * 4, "class": [0, 1, 0, -1], "about": ["a red shoe"] * 4}
    table = Dataset.from_dict(rows, features=features)
    table.to_parquet(tmp_path / "a.parquet")
    table.save_to_disk(tmp_path / "saved")
    for path in (tmp_path / "a.parquet", tmp_path / "saved"):
        head, lines = contents(path)
        assert head == "0 of 3 images have a caption; 2 classes: boot (1), shoe (2)"
        assert lines == [
            "column `about`, which looks like captions ('a red shoe'): they are read from `text`, rename it"
        ]
        (refused,) = open_folder(path).refused
        assert "without a class" in refused.reason


@pytest.mark.parametrize("kind", ["string", "large_string", "dictionary"])
def test_a_column_of_captions_is_known_however_its_writer_stores_text(tmp_path: Path, kind: str) -> None:
    (name,) = write_good(tmp_path, 1)
    image = {"bytes": (tmp_path / name).read_bytes(), "path": None}
    text = pa.array(["a red shoe"], pa.large_string() if kind == "large_string" else pa.string())
    about = text.dictionary_encode() if kind == "dictionary" else text
    pq.write_table(pa.table({"image": [image], "about": about, "n": [[1, 2]]}), tmp_path / "a.parquet")
    _, lines = contents(tmp_path / "a.parquet")
    assert lines[0].startswith("column `about`, which looks like captions ('a red shoe')")
    assert lines[1:] == ["column `n`"]


@pytest.mark.parametrize(
    ("names", "masks"),
    [
        (["00000-masklabel.png", "00001-condlabel.jpg"], 2),
        (["00000_mask.png", "00001-mask.png", "00002.mask.png", "00003 MASK.PNG"], 4),
        (["mask_00000.png", "masks-00001.png", "00002-matte.png"], 3),
        (["zz-masklabel.png"], 1),
        (["a.src.jpg", "a.mask.png"], 1),
        (["masks/00000.png", "mask/00001.png"], 2),
        (["images/7.png", "masks/7.png"], 1),
        (["carnival_mask.png", "maskara.png", "mask.png", "red masks.jpg"], 0),
        (["masks/blue.png", "shirts/blue.png"], 0),
    ],
)
def test_masks_are_no_photos_but_photos_of_masks_are(tmp_path: Path, names: Sequence[str], masks: int) -> None:
    first = write_good(tmp_path, 4)[0]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((tmp_path / first).read_bytes())
    folder = open_folder(tmp_path)
    assert len(folder.records) == 4 + len(names) - masks
    assert [line for line in folder.contents if "mask" in line and "not read" in line] == [*folder.contents[1:]]
    assert (len(folder.contents) == 2) == bool(masks)


def test_a_mask_that_metadata_names_is_what_its_owner_says(tmp_path: Path) -> None:
    (name,) = write_good(tmp_path, 1)
    for other in ("00000-masklabel.png", "00000_mask.png"):
        (tmp_path / other).write_bytes((tmp_path / name).read_bytes())
    write_rows(tmp_path, [{"file_name": name}, {"file_name": "00000_mask.png"}])
    assert [record.file.name for record in open_folder(tmp_path).records] == [name, "00000_mask.png"]


def test_where_there_are_no_images_what_is_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "00000.tar").write_bytes(b"x")
    (tmp_path / "captions.jsonl").write_text("{}")
    with raises("data", tmp_path, "00000.tar", "captions.jsonl"):
        open_folder(tmp_path)


def test_many_classes_are_counted(tmp_path: Path) -> None:
    names = write_good(tmp_path, 12)
    write_rows(tmp_path, [{"file_name": name, "class": name[:5]} for name in names])
    head, _ = contents(tmp_path)
    assert head.endswith("12 classes: 00000 (1), 00001 (1), 00002 (1), 00003 (1), 00004 (1), 00005 (1), 00006 (1), "
                         "00007 (1) and 4 more")  # fmt: skip
