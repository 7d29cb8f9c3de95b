"""Folders of every kind to records: the same rows as `datasets` reads, in one order, with what is unusable listed."""

import gc
import os
import pickle
import socket
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from samples import content, draw, opened_files, write_good, write_rows

from onbrand.data.images import open_image
from onbrand.data.records import read_folder
from onbrand.errors import UnreadableImage
from worlds import raises


def names(records: Any) -> Any:
    return [record.file.name for record in records]


def reasons(refused: Any) -> Any:
    return {entry.file.name: entry.reason for entry in refused}


@pytest.fixture
def photos(tmp_path: Path) -> Any:
    folder = tmp_path / "photos"
    write_good(folder, 4)
    return folder


ROWS = [
    {"file_name": "00002.png", "text": "a red, long dress", "class": "garment"},
    {"file_name": "sub/c.png", "text": None, "class": "person"},
    {"file_name": "00000.png", "text": 'a "é"\u2028', "class": "garment", "conditioning_file_name": "00001.png"},
]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # `datasets` leaves the CSV open
@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_metadata_gives_the_rows_that_datasets_gives(photos: Any, suffix: Any) -> None:
    pytest.importorskip("datasets", "5")  # earlier ones refuse a second column of file names
    import pandas as pd
    from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

    from datasets import Image

    (photos / "sub").mkdir()
    (photos / "sub/c.png").write_bytes(content(draw(9)))
    (photos / "00003.png").unlink()
    if suffix == "jsonl":
        write_rows(photos, ROWS)
    elif suffix == "csv":
        pd.DataFrame(ROWS).to_csv(photos / "metadata.csv", index=False)
    else:
        pd.DataFrame(ROWS).to_parquet(photos / "metadata.parquet")
    files = {"train": [str(photos / f"metadata.{suffix}")]}
    truth = ImageFolder(cache_dir=str(photos.parent / "cache"), data_files=files).as_streaming_dataset("train")
    for column in ("image", "conditioning"):
        truth = truth.cast_column(column, Image(decode=False))
    records, refused = read_folder(photos)
    assert not refused and [record.index for record in records] == [0, 1, 2]
    for record, row in zip(records, truth, strict=True):
        assert str(record.file) == row["image"]["path"] and record.class_name == row["class"]
        assert record.text == (row["text"] or "")
        assert str(record.conditioning) == str(row["conditioning"] and row["conditioning"]["path"])
    del truth, row
    gc.collect()  # now, so that the open file is closed here and not in another test


def test_rows_that_name_nothing_usable_are_refused_and_the_rest_is_read(photos: Any, tmp_path: Path) -> None:
    (photos / "folder.png").mkdir()
    (tmp_path / "outside.png").write_bytes(content(draw(1)))
    rows = [
        {"file_name": name, "text": "x", "class": "a"}
        for name in (
            "00000.png",
            "gone.png",
            "folder.png",
            "../outside.png",
            str(tmp_path / "outside.png"),
            "file://00001.png",
            "00001.png",
            "sub/../00000.png",
        )
    ]
    rows += [
        {"text": "no name", "class": "a"},
        {"file_name": "00002.png", "text": "x"},
        {"file_name": "00003.png", "text": "x", "class": "a", "conditioning_file_name": "edges/3.png"},
    ]
    write_rows(photos, rows)
    records, refused = read_folder(photos)
    assert names(records) == ["00000.png", "00001.png"] and [record.index for record in records] == [0, 1]
    assert len(refused) == 9
    reasons = [entry.reason for entry in refused]
    expected = [
        "missing",
        "a folder",
        "outside",
        "outside",
        "outside",
        "named again in line 8 of metadata.jsonl, first in line 1",
        "line 9 has no file_name",
        "conditioning image edges/3.png is missing",
        "without a class",
    ]
    assert all(word in reason for word, reason in zip(expected, reasons, strict=True)), reasons


def test_what_several_metadata_files_say_of_a_file_is_said_with_both_places(photos: Any) -> None:
    for folder, files in (("a", 2), ("b", 2)):
        write_good(photos / folder, files)
    (photos / "pipe").mkdir()
    os.mkfifo(photos / "pipe" / "p.png")
    (photos / "pipe" / "link.png").symlink_to(photos / "00001.png")
    write_rows(photos, [{"file_name": f"0000{i}.png"} for i in range(4)] + [{"file_name": "a/00001.png"}])
    write_rows(photos / "a", [{"file_name": "00000.png"}, {"file_name": "00001.png"}])
    own = ["00000.png", "gone.png", "gone.png", "00000.png"]
    write_rows(photos / "b", [{"file_name": name} for name in own])
    write_rows(
        photos / "pipe",
        [
            {"file_name": "p.png"},
            {"file_name": "link.png", "conditioning_file_name": "p.png"},
            {"file_name": "./link.png"},
        ],
    )
    with pytest.warns(UserWarning, match=r"^1 images .* b/00001.png first"):
        records, refused = read_folder(photos)
    assert names(records) == ["00000.png", "00001.png", "00000.png", *(f"0000{i}.png" for i in range(4))]
    assert [entry.reason for entry in refused] == [
        "missing (line 2 of b/metadata.jsonl)",
        "missing (line 3 of b/metadata.jsonl)",
        "named again in line 4 of b/metadata.jsonl, first in line 1 of b/metadata.jsonl",
        "named again in line 5 of metadata.jsonl, first in line 2 of a/metadata.jsonl",
        "not a regular file (line 1 of pipe/metadata.jsonl)",
        "its conditioning image p.png is not a regular file (line 2 of pipe/metadata.jsonl)",
        "named again in line 3 of pipe/metadata.jsonl, first in line 2 of pipe/metadata.jsonl",
    ]


def test_what_an_image_shows_is_kept_where_it_is_told_as_an_object(photos: Any) -> None:
    values = [{"kind": "skirt"}, "skirt", None]
    write_rows(photos, [{"file_name": f"0000{i}.png", "attributes": value} for i, value in enumerate(values)])
    with pytest.warns(UserWarning, match="1 images"):
        assert [record.attributes for record in read_folder(photos)[0]] == [{"kind": "skirt"}, None, None]


def test_without_any_class_all_are_default_and_numbers_are_names(photos: Any) -> None:
    write_rows(photos, [{"file_name": f"0000{i}.png", "text": i} for i in range(4)])
    assert [(r.class_name, r.text) for r in read_folder(photos)[0]] == [("default", str(i)) for i in range(4)]
    (photos / "metadata.jsonl").unlink()
    rows = [f"0000{i}.png,00{i},none\n" for i in range(4)]
    (photos / "metadata.csv").write_text("".join(["file_name,class,text\n", *rows]))
    assert [(r.class_name, r.text) for r in read_folder(photos)[0]] == [(f"00{i}", "none") for i in range(4)]


@pytest.mark.parametrize(
    ("text", "file", "values"),
    [
        ('{"file_name": "00000.png"}\n{"file_name": "00001', "metadata.jsonl", ["metadata.jsonl, line 2"]),
        ('["00000.png"]\n', "metadata.jsonl", ["metadata.jsonl, line 1", '["00000.png"]']),
        ('{"file_name": "00000.png", "caption": "x"}\n', "metadata.jsonl", ["`text`", "`caption`"]),
        ("file,text\n00000.png,x\n", "metadata.csv", ["metadata.csv", "file_name", "file, text"]),
        ("file_name,text\n00000.png,a red, long dress\n", "metadata.csv", ["metadata.csv, line 2", "header"]),
    ],
)
def test_metadata_that_is_none_is_an_error_that_names_the_line(photos: Any, text: Any, file: Any, values: Any) -> None:
    (photos / file).write_text(text)
    with raises("data", *values):
        read_folder(photos)


def test_other_encodings_and_two_metadata_files_are_errors(photos: Any) -> None:
    (photos / "metadata.jsonl").write_bytes('{"file_name": "é"}'.encode("latin-1"))
    with raises("data", photos / "metadata.jsonl", "UTF-8"):
        read_folder(photos)
    write_rows(photos, [{"file_name": "00000.png"}])
    (photos / "metadata.csv").write_text("file_name\n00000.png\n")
    with raises("data", photos, "metadata.jsonl", "metadata.csv"):
        read_folder(photos)


def test_images_that_no_row_names_are_warned_of(photos: Any) -> None:
    write_rows(photos, [{"file_name": "00001.png"}])
    with pytest.warns(UserWarning, match="3 images in .* 00000.png first"):
        assert names(read_folder(photos)[0]) == ["00001.png"]


def test_kohya_folders_give_captions_and_classes(tmp_path: Path) -> None:
    for folder in ("10_garment alone", "2_person", "person"):
        write_good(tmp_path / folder, 2)
    (tmp_path / "10_garment alone/00000.txt").write_text("\ufeff a red\n dress ", encoding="utf-8")
    (tmp_path / "2_person/00001.caption").write_text("a man", encoding="utf-8")
    (tmp_path / "person/00000.txt").write_bytes("né".encode("latin-1"))
    records, refused = read_folder(tmp_path)
    assert [(r.class_name, r.text) for r in records] == [
        ("garment alone", "a red dress"),
        ("garment alone", ""),
        ("person", ""),
        ("person", "a man"),
        ("person", ""),
    ]
    assert [entry.file for entry in refused] == [tmp_path / "person/00000.png"] and "UTF-8" in refused[0].reason


def test_plain_images_come_in_the_order_of_their_paths(tmp_path: Path) -> None:
    write_good(tmp_path / "elsewhere", 1)
    elsewhere, tmp_path = tmp_path / "elsewhere", tmp_path / "photos"
    write_good(tmp_path / "b", 2)
    write_good(tmp_path / "B", 1)
    for name in ("z.JPG", "a10.png", "a9.png", "._a9.png", "notes.md", "phone.HEIC"):
        (tmp_path / name).write_bytes(content(draw(0)))
    (tmp_path / "x.png").mkdir()
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX/a9.png").write_bytes(b"")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "A").symlink_to(elsewhere)
    records, refused = read_folder(tmp_path)
    paths = [record.file.relative_to(tmp_path).as_posix() for record in records]
    expected = ["A/00000.png", "B/00000.png", "a10.png", "a9.png", "b/00000.png", "b/00001.png", "phone.HEIC", "z.JPG"]
    assert paths == expected
    assert [r.class_name for r in records] == ["A", "B", "default", "default", "b", "b", "default", "default"]
    assert reasons(refused) == {"x.png": "a folder, not a file"}


def test_the_sheet_of_a_check_is_no_image_but_an_image_of_that_name_is(tmp_path: Path) -> None:
    write_good(tmp_path, 1)
    (tmp_path / "check.png").write_bytes(content(draw(0)))
    assert len(read_folder(tmp_path)[0]) == 2
    (tmp_path / "check.json").write_text("{}")
    assert [record.file.name for record in read_folder(tmp_path)[0]] == ["00000.png"]


def test_splits_are_not_mixed(tmp_path: Path) -> None:
    write_good(tmp_path / "train", 2)
    write_good(tmp_path / "test", 1)
    with raises("data", tmp_path, ["test", "train"]):
        read_folder(tmp_path)
    assert len(read_folder(tmp_path, split="train")[0]) == 2
    with raises("data", tmp_path, "split='validation'"):
        read_folder(tmp_path, split="validation")
    for split in ("..", "train/../..", "/etc"):
        with raises("data", tmp_path, split, "no split"):
            read_folder(tmp_path, split=split)
    with raises("data", tmp_path / "train", "'x'", "no splits", "Leave split out"):
        read_folder(tmp_path / "train", split="x")


def test_what_is_not_there_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    with raises("data", tmp_path / "owner", "load_dataset"):
        read_folder(tmp_path / "owner")
    with raises("data", tmp_path, "Parquet"):
        read_folder(tmp_path)
    (tmp_path / "a.png").write_bytes(content(draw(0)))
    with raises("data", tmp_path / "a.png", ".parquet"):
        read_folder(tmp_path / "a.png")


@pytest.fixture
def table(tmp_path: Path) -> Any:
    from datasets import ClassLabel, Dataset, Features, Image, Value

    dataset = [content(draw(i)) for i in range(7)]
    rows = {
        "image": [{"bytes": b, "path": None} for b in dataset],
        "text": [f"text {i}" for i in range(7)],
        "class": [i % 2 for i in range(7)],
        "other": list(range(7)),
    }
    labels = ClassLabel(names=["garment", "person"])
    features = Features({"image": Image(), "text": Value("string"), "class": labels, "other": Value("int64")})
    return Dataset.from_dict(rows, features=features), dataset


@pytest.mark.parametrize("layout", ["folder", "file", "saved", "split"])
def test_images_within_a_table_are_read_row_by_row(tmp_path: Path, table: Any, layout: Any) -> None:
    from datasets import DatasetDict

    dataset, contents = table
    path = tmp_path / "table"
    if layout in ("folder", "file"):
        path.mkdir()
        dataset.select(range(4)).to_parquet(path / "train-00000-of-00002.parquet", batch_size=3)
        dataset.select(range(4, 7)).to_parquet(path / "train-00001-of-00002.parquet", batch_size=2)
        if layout == "file":
            dataset.to_parquet(path / "all.parquet", batch_size=2)
            path = path / "all.parquet"
    elif layout == "saved":
        dataset.select([*range(7)][::-1]).select([*range(7)][::-1]).save_to_disk(path)
    else:
        DatasetDict({"train": dataset, "test": dataset.select([0])}).save_to_disk(path)
        with raises("data", path, "'train', 'test'"):
            read_folder(path)
    records, refused = read_folder(path, split="train" if layout == "split" else None)
    assert not refused and [(r.text, r.class_name) for r in records] == [
        (f"text {i}", ("garment", "person")[i % 2]) for i in range(7)
    ]
    assert len({record.file for record in records}) == 7 and all(record.stamp.is_file() for record in records)
    for i in (6, 0, 3, 2, 5, 4, 1):
        assert records[i].read() == contents[i]
    assert open_image(records[3].file, records[3].read()).tobytes() == draw(3).tobytes()
    assert pickle.loads(pickle.dumps(records[4])).read() == contents[4]


def test_a_table_without_images_says_what_it_has(tmp_path: Path) -> None:
    from datasets import Dataset

    Dataset.from_dict({"photo": [1]}).to_parquet(tmp_path / "a.parquet")
    with raises("data", tmp_path / "a.parquet", "`image`", "photo"):
        read_folder(tmp_path)
    empty = [{"bytes": None, "path": None}, {"bytes": b"", "path": None}]
    Dataset.from_dict({"image": empty}).to_parquet(tmp_path / "a.parquet")
    records, _ = read_folder(tmp_path)
    assert [record.class_name for record in records] == ["default"] * 2
    for record in records:
        with pytest.raises(UnreadableImage):
            record.read()


def test_reading_touches_no_network_and_leaves_no_cache(tmp_path: Path, table: Any) -> None:
    photos = tmp_path / "photos"
    write_good(photos, 2)
    write_rows(photos, [{"file_name": "00000.png"}, {"file_name": "00001.png"}])
    (tmp_path / "tables").mkdir()
    table[0].to_parquet(tmp_path / "tables/a.parquet")
    table[0].save_to_disk(tmp_path / "saved")
    program = (
        "import sys\n"
        "def watch(event, args):\n"
        "    if event in ('socket.connect', 'socket.getaddrinfo'): print('network', args, flush=True)\n"
        "sys.addaudithook(watch)\n"
        "from onbrand.data.records import read_folder\n"
        "for path in sys.argv[1:]:\n"
        "    records, _ = read_folder(path); [record.read() for record in records]; print(len(records))\n"
    )
    home = tmp_path / "home"
    home.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | {"HF_HOME": str(home)}
    paths = [str(tmp_path / name) for name in ("photos", "tables", "saved")]
    process = subprocess.run([sys.executable, "-c", program, *paths], env=environment, capture_output=True, text=True)
    assert process.stdout.split() == ["2", "7", "7"], process.stdout + process.stderr
    assert not [file for file in home.rglob("*") if file.is_file()]


def test_the_watch_on_the_network_can_see_it() -> None:
    events = []
    sys.addaudithook(lambda event, args: events.append(event) if event == "socket.connect" and not events else None)
    with socket.socket() as probe:
        probe.connect_ex(("127.0.0.1", 9))
    assert events


def test_rows_are_read_without_opening_an_image(tmp_path: Path) -> None:
    for i in range(200):
        (tmp_path / f"{i}.png").write_bytes(b"no image")
    write_rows(tmp_path, [{"file_name": f"{i}.png", "class": "a"} for i in range(10_000)])
    with opened_files() as paths:
        records, refused = read_folder(tmp_path)
    assert len(records) == 200 and len(refused) == 9_800
    assert [name for name in paths if str(tmp_path) in name] == [str(tmp_path / "metadata.jsonl")]


def test_metadata_in_sub_folders_names_what_lies_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("b", "a"):
        write_good(tmp_path / folder, 2)
        write_rows(tmp_path / folder, [{"file_name": f"0000{i}.png", "class": folder} for i in (1, 0)])
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path, ".", "../" + tmp_path.name):
        records, refused = read_folder(path)
        assert not refused
        assert [(r.class_name, r.file.name) for r in records] == [(f, f"0000{i}.png") for f in "ab" for i in (1, 0)]
        assert all(record.file.is_file() for record in records)


def test_a_record_of_metadata_weighs_what_its_texts_do(tmp_path: Path) -> None:
    """A million are held: under 500 bytes each, and while they are read under 1,000."""
    for i in range(600):
        (tmp_path / f"{i:07d}.jpg").touch()
    rows = [{"file_name": f"{i:07d}.jpg", "text": f"a shirt {i} on white", "class": f"c{i % 3}"} for i in range(600)]
    write_rows(tmp_path, rows)
    read_folder(tmp_path)
    gc.collect()
    tracemalloc.start()
    try:
        records, _ = read_folder(tmp_path)
        gc.collect()
        size, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(records) == 600 and size < 500 * 600 and peak < 1000 * 600, (size / 600, peak / 600)
    assert records[0].file == tmp_path / "0000000.jpg" and records[3].class_name is records[0].class_name


def test_refused_rows_are_listed_in_their_order_and_the_others_numbered_without_them(photos: Path) -> None:
    rows = [
        {"file_name": "00000.png", "text": "one"},
        {"file_name": "00001.png", "text": ["two", "texts"], "class": "a"},
        {"file_name": "00002.png", "text": "three", "class": "a"},
        {"file_name": "00003.png", "class": "none, but for \u0000"},
    ]
    write_rows(photos, rows)
    records, refused = read_folder(photos)
    assert [entry.file.name for entry in refused] == ["00000.png", "00001.png", "00003.png"]
    assert [(record.file.name, record.index) for record in records] == [("00002.png", 0)]
