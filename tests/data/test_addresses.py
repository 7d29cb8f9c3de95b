"""Photos at an address: the same as from the folder, fetched once; what drops is asked again, what is gone named."""

import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest
from samples import KEY, Encoder, write_rows
from test_tars import assert_same, latents, photos, picture, write_tar

import onbrand
from onbrand.data import addresses
from onbrand.data.addresses import Address, path_of, stamp_of
from onbrand.data.conditioning import read_conditioning
from onbrand.data.encode import encode_all
from onbrand.data.latents import Store
from onbrand.data.records import open_folder, read_folder
from onbrand.errors import UnreadableImage
from worlds import raises

__all__ = ["photos"]


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """A bucket of a server of this machine that speaks S3."""
    pytest.importorskip("s3fs", reason="s3fs is not installed: pip install -e '.[s3]'")
    server = pytest.importorskip("moto.server", reason="moto is not installed: pip install -e '.[dev]'")
    with pytest.MonkeyPatch.context() as patch:
        thread = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        thread.start()
        host, port = thread.get_host_and_port()
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "nobody")
        fsspec.filesystem("s3").mkdir("brand")
        yield "s3://brand"
        thread.stop()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "WAITS", (0.01, 0.02))
    fsspec.filesystem("memory").store.clear()


def upload(folder: Path, address: str) -> str:
    system = fsspec.filesystem(address.split(":", maxsplit=1)[0])
    for file in folder.rglob("*"):
        if file.is_file():
            system.pipe_file(f"{address}/{file.relative_to(folder).as_posix()}", file.read_bytes())
    return address


@pytest.fixture
def three(photos: Path, tmp_path: Path) -> Any:
    """The photos with captions beside them, with metadata, in tars, in Parquet: folder on this machine by layout."""
    import pandas as pd

    folders = {name: tmp_path / name for name in ("metadata", "tars", "parquet")}
    for folder in folders.values():
        folder.mkdir()
    records, _ = read_folder(photos)
    rows = [{"text": one.text, "class": one.class_name} for one in records]
    names = [f"{i:02d}.png" for i in range(len(rows))]
    for name, record in zip(names, records, strict=True):
        (folders["metadata"] / name).write_bytes(record.read())
    write_rows(folders["metadata"], [{"file_name": name} | row for name, row in zip(names, rows, strict=True)])
    members = {name: record.read() for name, record in zip(names, records, strict=True)}
    members |= {f"{name[:2]}.json": json.dumps(row).encode() for name, row in zip(names, rows, strict=True)}
    for part in ("0", "1"):
        write_tar(folders["tars"] / f"s-{part}.tar", {name: members[name] for name in members if name[0] == part})
    table = pd.DataFrame([{"image": record.read()} | row for record, row in zip(records, rows, strict=True)])
    table.to_parquet(folders["parquet"] / "x.parquet", row_group_size=5)
    return {"captions": photos} | folders


@pytest.mark.parametrize("layout", ["captions", "metadata", "tars", "parquet"])
@pytest.mark.parametrize("server", ["memory", "s3"])
def test_an_address_gives_what_the_folder_gives(
    three: Any, tmp_path: Path, request: Any, server: str, layout: str
) -> None:
    root = request.getfixturevalue("s3") if server == "s3" else "memory://brand"
    address = upload(three[layout], f"{root}/{layout}")
    own = latents(three[layout], tmp_path / "a")
    assert_same(own, latents(address, tmp_path / "b"))
    records, _ = read_folder(address)
    assert all(one.path.startswith(f"{address}/") and str(one.file) == one.path for one in records)
    store, encoder = Store(tmp_path / "b", KEY), Encoder()
    system = fsspec.get_filesystem_class(server)
    with (
        pytest.MonkeyPatch.context() as patch
    ):  # a second run fetches nothing: what the server says of them is the same
        for name in ("cat_file", "_cat_file", "open", "_open"):
            patch.setattr(system, name, None, raising=False)
        summary = encode_all(records, encoder, store, batch=4, shard=5, progress=False)
    assert encoder.count == 0 and summary.keys == own[2]


@pytest.mark.parametrize("server", ["memory", "s3"])
def test_single_files_and_patterns_at_an_address(three: Any, tmp_path: Path, request: Any, server: str) -> None:
    root = request.getfixturevalue("s3") if server == "s3" else "memory://brand"
    tars, tables = (upload(three[layout], f"{root}/single/{layout}") for layout in ("tars", "parquet"))
    own = latents(three["tars"], tmp_path / "a")
    assert_same(own, latents(f"{tars}/s-{{0..1}}.tar", tmp_path / "b"))
    assert_same(latents(three["parquet"], tmp_path / "c"), latents(f"{tables}/x.parquet", tmp_path / "d"))
    records, refused = read_folder(f"{tars}/s-{{1..2}}.tar")
    assert len(records) == 2 and [str(one.file) for one in refused] == [f"{tars}/s-2.tar"]
    for name in ("none.tar", "none.parquet", "nothing", "metadata.jsonl"):
        with raises("data", f"{root}/single/{name}"):
            read_folder(f"{root}/single/{name}")


def test_a_part_of_photos_that_come_in_several(photos: Path) -> None:
    for name in ("train", "test"):
        upload(photos, f"memory://brand/parts/{name}")
    with raises("data", "memory://brand/parts", "'test', 'train'"):
        read_folder("memory://brand/parts")
    assert len(read_folder("memory://brand/parts", "train")[0]) == 12
    with raises("data", "'../x'"):
        read_folder("memory://brand/parts", "../x")


def test_control_images_come_from_the_address_and_rows_stay_in_it(photos: Path) -> None:
    folder = "memory://brand/control"
    upload(photos / "person", folder)
    fsspec.filesystem("memory").pipe_file("memory://brand/outside.png", picture(1))
    names = ["00000.png", "../outside.png", "memory://brand/outside.png", "gone.png", "00001.png"]
    rows = [{"file_name": name, "conditioning_file_name": "00002.png", "text": "x", "class": "a"} for name in names]
    fsspec.filesystem("memory").pipe_file(f"{folder}/metadata.jsonl", "\n".join(map(json.dumps, rows)).encode())
    with pytest.warns(UserWarning, match="3 images in memory://brand/control are named by no metadata"):
        records, refused = read_folder(folder)
    assert [one.file.name for one in records] == ["00000.png", "00001.png"]
    words = ["outside the folder", "outside the folder", "missing"]
    assert all(word in one.reason for word, one in zip(words, refused, strict=True)), refused
    assert str(refused[0].file).startswith("memory://brand/") and "memory://brand/control/gone.png" in str(refused[2])
    assert read_conditioning(records[0].conditioning or "", (32, 32)).shape == (3, 32, 32)
    with raises("image", "missing"):  # an address elsewhere than in a user's own folder of photos is none
        read_conditioning("memory://brand/outside.png", (32, 32))


def test_names_that_are_no_paths_and_what_file_managers_leave() -> None:
    system = fsspec.filesystem("memory")
    for name in (
        "a.png",
        "b//c.png",
        "d/../e.png",
        "tab\t.png",
        ".hidden/f.png",
        "__MACOSX/g.png",
        "._h.png",
        "i#?.png",
    ):
        system.store[f"/odd/{name}"] = fsspec.implementations.memory.MemoryFile(system, f"/odd/{name}", picture(0))
    records, refused = read_folder("memory://odd")
    assert [one.path for one in records] == ["memory://odd/a.png", "memory://odd/i#?.png"]
    assert records[1].read() == picture(0)
    words = ["has a control character", "is no path of a file", "is no path of a file"]
    reasons = sorted(one.reason for one in refused)
    assert all(word in reason for word, reason in zip(words, reasons, strict=True)), reasons


def test_what_is_gone_is_refused_and_what_changed_is_read_anew(photos: Path, tmp_path: Path) -> None:
    address = upload(photos / "person", "memory://brand/vanish")
    records, _ = read_folder(address)
    system = fsspec.filesystem("memory")
    system.rm("memory://brand/vanish/00002.png")
    store, encoder = Store(tmp_path / "store", KEY), Encoder()
    summary = encode_all(records, encoder, store, progress=False)
    assert encoder.count == 5 and [(str(one.file), one.reason) for one in summary.refused] == [
        ("memory://brand/vanish/00002.png", "missing")
    ]
    system.pipe_file("memory://brand/vanish/00003.png", picture(77))
    again, _ = read_folder(address)
    assert stamp_of(records[4].file) == stamp_of(again[3].file)
    assert encode_all(again, encoder, store, progress=False).encoded == 1


def drop(times: int, error: Exception, patch: pytest.MonkeyPatch, name: str = "00003") -> None:
    """Memory's answers for one file fail so many times."""
    system, left = fsspec.get_filesystem_class("memory"), [times]
    whole = system.cat_file

    def answer(self: Any, path: str, *args: Any, **named: Any) -> Any:
        if name in path and left[0]:
            left[0] -= 1
            raise error
        return whole(self, path, *args, **named)

    patch.setattr(system, "cat_file", answer)


def test_a_dropped_connection_is_said_and_asked_again(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    address = upload(photos, "memory://brand/drop")
    drop(2, ConnectionResetError(104, "Connection reset by peer"), monkeypatch)
    assert_same(latents(photos, tmp_path / "a"), latents(address, tmp_path / "b"))
    said = capsys.readouterr().err
    assert (
        "memory://brand/drop/10_garment/00003" in said and "Connection reset by peer; asked for again in 0.01 s" in said
    )


@pytest.mark.parametrize("layout", ["captions", "tars"])
def test_a_network_that_stays_away_ends_the_run_which_goes_on_later(
    three: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    address = upload(three[layout], "memory://brand/away")
    records, _ = read_folder(address)
    last = {"captions": f"{address}/person/00005.png", "tars": f"{address}/s-1.tar"}[layout]
    encoder = Encoder()
    with monkeypatch.context() as patch:
        drop(100, TimeoutError("too late"), patch, last.removeprefix(address))
        with raises("network", last, "3 times (too late)", "goes on"):
            encode_all(records, encoder, Store(tmp_path / "store", KEY), batch=2, shard=4, progress=False)
    before = encoder.count
    summary = encode_all(records, encoder, Store(tmp_path / "store", KEY), batch=2, shard=4, progress=False)
    assert before >= 8 and encoder.count == 12 + before - 8  # the shard that was not full is lost
    assert len(summary.used) == 12 and not summary.refused


def test_an_address_that_cannot_be_read_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with raises("data", "nope://x/photos", "no address that fsspec knows"):
        read_folder("nope://x/photos")
    with raises("data", "://...@host/photos", "no password"):
        read_folder("https://name:secret@host/photos")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    with raises("data", "s3://x/photos", "pip install 'onbrand[s3]'"):
        read_folder("s3://x/photos")
    fsspec.filesystem("memory").pipe_file("memory://saved/state.json", b"{}")
    fsspec.filesystem("memory").pipe_file("memory://saved/dataset_info.json", b"{}")
    with raises("data", "memory://saved", "fetch it first"):
        read_folder("memory://saved")


def test_no_credentials_and_no_bucket_are_one_line(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with raises("data", "s3://none/photos", "cannot be listed"):
        read_folder("s3://none/photos")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with raises("data", s3, "credentials"):
        read_folder(f"{s3}/photos")
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def test_an_address_is_a_path_whose_text_is_the_address() -> None:
    place = path_of("s3://bucket/photos/")
    assert isinstance(place, Address) and str(place) == "s3://bucket/photos" and str(place.parent) == "s3://bucket"
    assert str(place / "a b" / "c.png") == os.fspath(place / "a b/c.png") == "s3://bucket/photos/a b/c.png"
    assert place / "x" == path_of("s3://bucket/photos/x") and (place / "x.tar").suffix == ".tar"
    for text in ("photos", "/photos", "C:/photos", "s3:/bucket", "://x", "a://"):
        assert not isinstance(path_of(text), Address) and str(path_of(text)) == str(Path(text))
    assert path_of("file:///tmp/photos") == Path("/tmp/photos")
    assert path_of(place) is place


def test_a_folder_of_this_machine_asks_nothing_of_a_network(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("asked")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(fsspec, "filesystem", refuse)
    rows = [{"file_name": "s3://bucket/a.png"}, {"file_name": "person/00000.png"}]
    write_rows(photos, rows)
    with pytest.warns(UserWarning, match="11 images"):
        assert len(open_folder(photos).records) == 1


@pytest.mark.parametrize("verb", ["fit", "check", "train"])
def test_results_are_written_to_this_machine_alone(verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = {"fit": ("memory://x", "tiny"), "check": (), "train": ("memory://x", "tiny")}[verb]
    named = {"against": "memory://x"} if verb == "check" else {}
    with raises("folder", "memory://out", "give a folder of this machine"):
        getattr(onbrand, verb)(*own, "memory://out", **named)
    assert not list(tmp_path.iterdir())
    if verb == "check":
        with raises("folder", "x.tar", "give a folder of this machine"):
            onbrand.check(write_tar(tmp_path / "x.tar", {"a.png": picture(0)}), **named)


class Files(BaseHTTPRequestHandler):
    """Gives parts of files, and drops the first connections in the middle of what they ask for."""

    protocol_version = "HTTP/1.1"
    files: dict[str, bytes]
    drops = 0
    ranges = True

    def do_HEAD(self) -> None:
        self._answer(False)

    def do_GET(self) -> None:
        self._answer(True)

    def _answer(self, whole: bool) -> None:
        data = self.files.get(self.path)
        if data is None:
            self.send_error(404)
            return
        span = self.headers.get("Range") if self.ranges else None
        first, last = (int(part) for part in span.removeprefix("bytes=").split("-")) if span else (0, len(data) - 1)
        part = data[first : last + 1]
        self.send_response(206 if span else 200)
        self.send_header("ETag", '"1"')
        self.send_header("Content-Length", str(len(part)))
        if self.ranges:
            self.send_header("Accept-Ranges", "bytes")
        if span:
            self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(data)}")
        self.end_headers()
        if whole and type(self).drops and span:
            type(self).drops -= 1
            self.wfile.write(part[: len(part) // 2])
            self.close_connection = True
        elif whole:
            self.wfile.write(part)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def web(three: Any) -> Iterator[Any]:
    """(address, handler) of a web server with the tars."""
    pytest.importorskip("aiohttp", reason="aiohttp is not installed: it comes with '.[s3]'")
    files = {f"/{file.name}": file.read_bytes() for file in three["tars"].iterdir()}
    handler = type("Handler", (Files,), {"files": files})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    server.server_close()


def test_a_web_server_that_drops_connections_halfway(three: Any, tmp_path: Path, web: Any, capsys: Any) -> None:
    address, handler = web
    handler.drops = 2
    assert_same(latents(three["tars"], tmp_path / "a"), latents(f"{address}/s-{{0..1}}.tar", tmp_path / "b"))
    assert handler.drops == 0 and capsys.readouterr().err.count("asked for again in 0.01 s") >= 1


def test_a_web_server_that_gives_no_parts_is_named(web: Any) -> None:
    address, handler = web
    handler.ranges = False
    records, _ = read_folder(f"{address}/s-0.tar")  # a small one comes at once
    with pytest.raises(UnreadableImage, match="bytes where .* fetch it to this machine"):
        records[0].read()
