"""Tars of photos: the same as from their folder, whatever is broken named, nothing unpacked."""

import gzip
import json
import os
import pickle
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from samples import KEY, Encoder, content, draw, opened_files, write_good

from onbrand.core.fit import Fitter
from onbrand.data.encode import encode_all
from onbrand.data.latents import Store
from onbrand.data.records import expand, open_folder, read_folder
from onbrand.errors import UnreadableImage
from worlds import raises


def entry(name: str, **fields: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def write_tar(file: Path, members: Any, form: int = tarfile.PAX_FORMAT) -> Path:
    """A tar of {name: bytes}, or of (TarInfo, bytes)."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w", format=form) as tar:
        for name, data in members.items() if isinstance(members, dict) else members:
            info = name if isinstance(name, tarfile.TarInfo) else entry(name)
            info.size = len(data)
            tar.addfile(info, BytesIO(data))
    return file


def picture(seed: int) -> bytes:
    data: bytes = content(draw(seed))
    return data


def reasons(refused: Any) -> Any:
    return {one.file.name: one.reason for one in refused}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve photos in two folders, ten with captions."""
    folder = tmp_path / "photos"
    for name in ("10_garment", "person"):
        write_good(folder / name, 6, (32, 40 + len(name)))
        for i in range(5):
            (folder / name / f"{i:05d}.txt").write_text(f"a {name},\nnumber {i}")
    return folder


def latents(place: Any, folder: Path) -> Any:
    """(classes, captions, names of the shards and their bytes, moments) of photos, encoded anew."""
    records, refused = read_folder(place)
    assert not refused
    store = Store(folder, KEY)
    summary = encode_all(records, Encoder(), store, batch=4, shard=5, progress=False)
    shards = {file.name: file.read_bytes() for file in store.folder.glob("*.safetensors")}
    fitter = Fitter((4, 4, 4), 2)
    fitter.update(store.get(summary.keys)[0], [one.class_name for one in summary.used])
    return [(one.class_name, one.text) for one in records], shards, summary.keys, fitter.state()


def assert_same(one: Any, other: Any) -> None:
    assert one[:3] == other[:3]
    assert one[3].keys() == other[3].keys() and all(torch.equal(one[3][name], other[3][name]) for name in one[3])


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("shape", ["one", "folder", "pattern"])
def test_tars_give_what_their_folder_gives(photos: Path, tmp_path: Path, form: int, shape: str) -> None:
    files = sorted(file for file in photos.rglob("*") if file.is_file())
    stems = sorted({file.with_suffix("") for file in files})
    shards = tmp_path / "shards"
    parts = [stems] if shape == "one" else [stems[:5], stems[5:]]
    for number, part in enumerate(parts):
        members = {f"./{file.relative_to(photos)}": file.read_bytes() for file in files if file.with_suffix("") in part}
        write_tar(shards / f"s-{number:04d}.tar", dict(reversed(members.items())), form)  # in another order
    place = {"one": shards / "s-0000.tar", "folder": shards, "pattern": f"{shards}/s-{{0000..0001}}.tar"}[shape]
    assert_same(latents(photos, tmp_path / "a"), latents(place, tmp_path / "b"))


def test_shards_lie_in_folders_of_their_class(photos: Path, tmp_path: Path) -> None:
    for name in ("10_garment", "person"):
        members = {file.name: file.read_bytes() for file in (photos / name).iterdir()}
        write_tar(tmp_path / "shards" / name / "0.tar", members)
    assert_same(latents(photos, tmp_path / "a"), latents(tmp_path / "shards", tmp_path / "b"))


def test_json_gives_text_class_and_attributes(tmp_path: Path) -> None:
    about = {
        "a.json": {"text": "a dress", "class": "garment", "attributes": {"colour": "red"}, "width": 3},
        "b.json": {"caption": "a shirt", "class": 7, "url": "https://example.org"},
        "c.json": {"caption": "not this one", "class": "garment"},
        "e.json": {"text": None},
        "f.json": ["no object"],
    }
    members = {f"{name}.jpg": picture(i) for i, name in enumerate("abcdefg")}
    members |= {name: json.dumps(value).encode() for name, value in about.items()}
    members |= {"c.txt": b"this\none", "d.txt": b"\xff", "g.json": b"{"}
    folder = open_folder(write_tar(tmp_path / "x.tar", members))
    rows = {one.file.name: (one.text, one.class_name, one.attributes) for one in folder.records}
    assert rows == {
        "a.jpg": ("a dress", "garment", {"colour": "red"}),
        "b.jpg": ("a shirt", "7", None),
        "c.jpg": ("this one", "garment", None),
    }
    words = {"d.jpg": "its caption d.txt cannot be read as UTF-8", "f.jpg": "its JSON f.json is no JSON object"}
    words |= {"e.jpg": "without a class, while", "g.jpg": "its JSON g.json cannot be read: it is no JSON"}
    assert reasons(folder.refused).keys() == words.keys()
    assert all(word in reasons(folder.refused)[name] for name, word in words.items())
    assert [one.index for one in folder.records] == [0, 1, 2] and folder.records[2].read() == members["c.jpg"]
    assert any("`width`, `url`" in line for line in folder.contents)


ODD = {
    "../out.png": (entry("../out.png"), "leads out of its tar"),
    "absolute.png": (entry("/etc/absolute.png"), "leads out of its tar"),
    "soft.png": (entry("soft.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "a link, to /etc/passwd"),
    "hard.png": (entry("hard.png", type=tarfile.LNKTYPE, linkname="good.png"), "a link, to good.png"),
    "pipe.png": (entry("pipe.png", type=tarfile.FIFOTYPE), "not a regular file"),
    "device.png": (entry("device.png", type=tarfile.CHRTYPE), "not a regular file"),
    "in.tar": (entry("in.tar"), "an archive in a tar"),
    "in.tar.gz": (entry("in.tar.gz"), "an archive in a tar"),
    "tab\\t.png": (entry("tab\t.png"), "control character"),
    "\\udcff.png": (entry("\udcff.png"), "not UTF-8"),
    "good.png": (entry("./sub/../good.png"), "named again"),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_member_is_refused_by_name_and_the_others_are_read(tmp_path: Path, name: str) -> None:
    odd, word = ODD[name]
    form = tarfile.GNU_FORMAT if "udc" in name else tarfile.PAX_FORMAT
    data = picture(2) if odd.isreg() else b""
    file = write_tar(tmp_path / "x.tar", [("good.png", picture(0)), (odd, data), ("more.png", picture(1))], form)
    with opened_files() as opened:
        records, refused = read_folder(file)
        assert [record.read() for record in records] == [picture(0), picture(1)]
    assert [word in one.reason for one in refused] == [True], refused
    assert str(refused[0].file) == os.path.normpath(f"{file}/{odd.name.lstrip('/')}") or "\\" in name or ".." in name
    assert {path for path in opened if str(tmp_path) in path} == {str(file)}
    assert sorted(tmp_path.iterdir()) == [file]


def test_what_lies_beside_photos_is_said_or_left_out(tmp_path: Path) -> None:
    members = {"a.jpg": picture(0), "a.depth.png": picture(1), "a.cls": b"3", "b.v1.jpg": picture(2), "b.text": b"x"}
    members |= {"sub/._a.jpg": b"", "__MACOSX/a.jpg": b"", ".hidden/a.jpg": b"", "a_mask.png": picture(3)}
    folder = open_folder(write_tar(tmp_path / "shards" / "x.tar", members))
    assert [one.file.name for one in folder.records] == ["a.jpg", "b.v1.jpg"] and not folder.refused
    said = "\n".join(folder.contents)
    assert all(word in said for word in ("x.tar/a.cls", "2 files (x.tar/a_mask.png first)", "by their names masks"))


def cut(file: Path, size: int) -> None:
    with open(file, "r+b") as tar:
        tar.truncate(size)


def test_a_member_cut_off_is_named_and_those_before_are_read(tmp_path: Path) -> None:
    file = write_tar(tmp_path / "x.tar", {f"{i}.png": picture(i) for i in range(3)})
    with tarfile.open(file) as tar:
        last = tar.getmembers()[-1]
    cut(file, last.offset_data + 100)
    records, refused = read_folder(file)
    assert [record.read() for record in records] == [picture(0), picture(1)]
    found = reasons(refused)
    assert "cut off" in found["2.png"] and "the 2 images before are used" in found["x.tar"]
    cut(file, last.offset + 100)
    records, refused = read_folder(file)
    assert len(records) == 2 and "no whole tar" in reasons(refused)["x.tar"]


def test_a_caption_cut_off_refuses_its_image(tmp_path: Path) -> None:
    file = write_tar(tmp_path / "x.tar", {"0.png": picture(0), "1.png": picture(1), "1.txt": b"words " * 200})
    with tarfile.open(file) as tar:
        last = tar.getmembers()[-1]
    cut(file, last.offset_data + 100)
    records, refused = read_folder(file)
    assert len(records) == 1 and "its caption 1.txt is cut off" in reasons(refused)["1.png"]


def overwritten(data: bytes, place: int) -> bytes:
    return data[:place] + b"\x07" * 512 + data[place + 512 :]


def broken() -> Any:
    stream = BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for i in range(2):
            tar.addfile(entry(f"{i}.png", size=len(picture(i))), BytesIO(picture(i)))
    whole = stream.getvalue()
    second = whole.index(b"1.png")
    negative = bytearray(whole[:512])
    negative[124:136] = b"\xff" * 11 + b"\x00"  # a size of -256
    negative[148:156] = b" " * 8
    negative[148:156] = b"%06o\0 " % sum(negative)
    return {
        "empty": (b"", 0, "no whole tar"),
        "web page": (b"<html>404</html>" * 100, 0, "no whole tar"),
        "compressed": (gzip.compress(whole), 0, "or a compressed one"),
        "header damaged": (overwritten(whole, second), 1, "what follows byte"),
        "first header damaged": (overwritten(whole, 0), 0, "no whole tar"),
        "two in one": (whole + whole, 2, "what follows byte"),
        "negative size": (bytes(negative) + whole, 0, "no whole tar"),
        "terabytes of a name": (tarfile.TarInfo.create_pax_global_header({"a": "b"})[:124] + b"7" * 11 + b"\0" * 400, 0,
                                "no whole tar"),
    }  # fmt: skip


@pytest.mark.parametrize("fault", broken())
def test_a_broken_tar_is_named_and_the_other_ones_are_read(tmp_path: Path, fault: str) -> None:
    data, count, word = broken()[fault]
    (tmp_path / "a.tar").write_bytes(data)
    write_tar(tmp_path / "b.tar", {"b.png": picture(5)})
    records, refused = read_folder(tmp_path)
    assert len(records) == count + 1 and records[-1].read() == picture(5)
    assert word in reasons(refused)["a.tar"], refused


def test_a_tar_that_is_missing_or_a_pipe_is_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "s-1.tar", {"b.png": picture(5)})
    os.mkfifo(tmp_path / "s-2.tar")
    records, refused = read_folder(f"{tmp_path}/s-{{0..2}}.tar")
    assert len(records) == 1 and "missing" in reasons(refused)["s-0.tar"]
    assert "no regular file" in reasons(refused)["s-2.tar"]


def test_a_tar_changed_since_it_was_listed_is_not_read(tmp_path: Path) -> None:
    file = write_tar(tmp_path / "x.tar", {"a.png": picture(0)})
    (record,), _ = read_folder(file)
    assert pickle.loads(pickle.dumps(record)).read() == picture(0) and record.stamp == file
    write_tar(file, {"a.png": picture(1), "b.png": picture(1)})
    with pytest.raises(UnreadableImage, match="another one, or gone, since it was listed"):
        record.read()


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("s-{0008..0010}.tar", ["s-0008.tar", "s-0009.tar", "s-0010.tar"]),
        ("{9..10}.parquet", ["9.parquet", "10.parquet"]),
        ("{0..1}/{00..1}.tar", ["0/00.tar", "0/01.tar", "1/00.tar", "1/01.tar"]),
        ("plain.tar", []),
        ("a{b}.tar", []),
    ],
)
def test_patterns_are_bash_s(pattern: str, names: Any) -> None:
    assert [file.as_posix() for file in expand(pattern)] == names


def test_patterns_of_nothing_and_a_name_with_braces(tmp_path: Path) -> None:
    for pattern in ("x-{5..1}.tar", "x-{0..999999999}.tar", "{0..2}.png"):
        with raises("data", pattern, "as shards-"):
            read_folder(pattern)
    file = write_tar(tmp_path / "s-{0..1}.tar", {"a.png": picture(0)})
    assert len(read_folder(file)[0]) == 1


def test_splits_are_told_by_names_and_by_folders(tmp_path: Path) -> None:
    for name in ("train-0000.tar", "test-0000.tar"):
        write_tar(tmp_path / "names" / name, {"a.png": picture(0)})
        write_tar(tmp_path / "folders" / name.split("-")[0] / "0.tar", {"a.png": picture(0)})
    for place in ("names", "folders"):
        with raises("data", tmp_path / place, "'test', 'train'", "Give split"):
            read_folder(tmp_path / place)
        records, _ = read_folder(tmp_path / place, "train")
        assert [one.class_name for one in records] == ["default"] and "train" in records[0].path


def test_tars_beside_images_are_said_and_not_read(photos: Path) -> None:
    write_tar(photos / "more.tar", {"a.png": picture(0)})
    folder = open_folder(photos)
    assert len(folder.records) == 12 and "  not read: more.tar" in folder.contents


def test_what_a_check_leaves_is_no_photo_and_metadata_in_a_tar_is_said(tmp_path: Path) -> None:
    members = {"a.jpg": picture(0), "check.json": b"{}", "check.png": picture(1), "a.txt": b"", "run.json": b"{}"}
    members |= {"a.json": b'{"text": "a dress"}', "metadata.jsonl": b"{}", "sub/check.png": picture(2)}
    folder = open_folder(write_tar(tmp_path / "x.tar", members))
    assert [(one.file.name, one.text) for one in folder.records] == [("a.jpg", "a dress"), ("check.png", "")]
    assert folder.records[1].path.endswith("x.tar/sub/check.png")
    assert "x.tar/metadata.jsonl, which looks like metadata: that of a tar's a.jpg is a.json" in folder.contents[1]
