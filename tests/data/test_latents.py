"""Latents: encoded once, found by content, the same after a kill, whatever the batch or the number of ranks."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from samples import BROKEN, KEY, Encoder, break_one, content, draw, opened_files, write_good, write_rows

from onbrand.data.encode import encode_all
from onbrand.data.images import pad, to_tensor
from onbrand.data.latents import Key, Store, iterate
from onbrand.data.records import read_folder
from onbrand.io import digest
from worlds import raises

TEN = (
    "truncated jpeg",
    "empty",
    "text",
    "animated gif",
    "animated webp",
    "1x1",
    "gigantic",
    "missing",
    "folder",
    "corrupt zlib",
)


def encode(photos: Any, folder: Any, key: Any = KEY, encoder: Any = None, **options: Any) -> Any:
    """(store, encoder, summary, refused rows) of one run over `photos`."""
    records, refused = read_folder(photos)
    store, encoder = Store(folder, key), encoder or Encoder()
    options = {"batch": 4, "shard": 8} | options
    return store, encoder, encode_all(records, encoder, store, progress=False, **options), refused


def latents(store: Any, photos: Any) -> Any:
    """{file name: (mean, logvar)} of all that is used."""
    summary = store.look_up(read_folder(photos)[0])
    return {r.file.name: pair for r, *pair in zip(summary.used, *store.get(summary.keys), strict=True)}


def same(one: Any, other: Any, tolerance: Any = 1e-5) -> None:
    assert one.keys() == other.keys() and one
    for name, pair in one.items():
        torch.testing.assert_close(torch.stack(pair), torch.stack(other[name]), rtol=0, atol=tolerance)


def truth(seed: Any) -> Any:
    """(mean, logvar) of the image that `write_good` made of this seed, without any store."""
    mean, logvar = Encoder()(to_tensor(Image.fromarray(draw(seed)))[None])
    return mean[0], logvar[0]


def shards(store: Any) -> Any:
    return sorted(store.folder.glob("*.safetensors"))


def bytes_of(store: Any) -> Any:
    return {file.name: file.read_bytes() for file in shards(store)}


@pytest.fixture
def photos(tmp_path: Path) -> Any:
    write_good(tmp_path / "photos", 20)
    return tmp_path / "photos"


def test_50_broken_of_1000_are_listed_and_the_rest_is_used(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    good = write_good(photos, 950)
    faults = {break_one(photos, fault, seed): fault for fault in TEN for seed in range(5)}
    rows = [*good, *faults]
    random.Random(0).shuffle(rows)
    write_rows(photos, [{"file_name": name, "text": "x", "class": "a"} for name in rows])
    store, encoder, summary, refused = encode(photos, tmp_path / "store", batch=16, shard=256)
    reasons = {entry.file.name: entry.reason for entry in refused + summary.refused}
    assert len(reasons) == len(refused) + len(summary.refused) == 50 == len(faults)
    assert all(BROKEN[fault][2] in reasons[name] for name, fault in faults.items()), reasons
    assert [record.file.name for record in summary.used] == [name for name in rows if name not in faults]
    assert summary.encoded == encoder.count == 950
    assert f"950 images used (950 encoded now, {950 / summary.seconds:.1f} a second)" in str(summary)
    assert f", {len(summary.refused)} refused:" in str(summary) and "animated_gif_0.gif: animated" in str(summary)
    repeat = encode(photos, tmp_path / "store", batch=16, shard=256)
    assert repeat[2].encoded == repeat[1].count == 0 and list(map(str, repeat[2].refused)) == list(
        map(str, summary.refused)
    )


def test_a_latent_is_the_padded_images(photos: Any, tmp_path: Path) -> None:
    (photos / "wide.png").write_bytes(content(draw(99, (20, 60))))
    store = encode(photos, tmp_path / "store", Key("v", (32, 48)))[0]
    mean, logvar = latents(store, photos)["wide.png"]
    expected = Encoder()(to_tensor(pad(Image.fromarray(draw(99, (20, 60))), (32, 48)))[None])
    assert mean.shape == (4, 4, 6) and mean.dtype == torch.float32
    torch.testing.assert_close(mean, expected[0][0])
    torch.testing.assert_close(logvar, expected[1][0])


def test_the_batch_does_not_show(photos: Any, tmp_path: Path) -> None:
    one = encode(photos, tmp_path / "a", batch=1)[0]
    other = encode(photos, tmp_path / "b", batch=16, shard=256, threads=3)[0]
    same(latents(one, photos), latents(other, photos))


def test_mirrored_images_are_encoded_mirrored(photos: Any, tmp_path: Path) -> None:
    key = Key("v", (32, 32), flip=True)
    store, _, summary, _ = encode(photos, tmp_path / "store", key)
    plain, mirror = list(iterate(store, summary.used, 20))
    assert plain[1] == mirror[1] == summary.used
    images = torch.stack([to_tensor(Image.fromarray(draw(i)[:, ::-1])) for i in range(20)])
    torch.testing.assert_close(mirror[0], Encoder()(images)[0], rtol=0, atol=1e-5)
    mean, _ = store.get(summary.keys[:2], [True, False])
    torch.testing.assert_close(mean, torch.stack([mirror[0][0], plain[0][1]]))
    with raises("latents", "flip=False", "flip=True"):
        encode(photos, tmp_path / "store")[0].get(summary.keys[:1], [True])


def test_any_rows_are_had_in_any_order(photos: Any, tmp_path: Path) -> None:
    store, _, summary, _ = encode(photos, tmp_path / "store")
    order = np.random.default_rng(0).permutation(20).tolist() + [3, 3]
    for i, mean, logvar in zip(order, *store.get([summary.keys[i] for i in order]), strict=True):
        torch.testing.assert_close(torch.stack([mean, logvar]), torch.stack(truth(i)))
    with raises("latents", "000000000000", "encode_all"):
        store.get(["0" * 64])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("rows", [1, 7, 8, 64])
def test_means_are_read_in_any_order_and_number(photos: Any, tmp_path: Path, dtype: Any, rows: Any) -> None:
    store, _, summary, _ = encode(photos, tmp_path / "store", Key("v", (32, 32), flip=True, dtype=dtype))
    for order in (range(20), range(19, -1, -1), [3, 3, 4, 5, 19, 0, 3], [12], []):
        keys = [summary.keys[i] for i in order]
        starts, batches = [], ([], [])
        for number, (start, mean) in enumerate(store.means(keys, rows)):
            assert mean.dtype == getattr(torch, dtype)
            batches[number % 2].append(mean.float())
            starts.append(start)
        assert starts == [start for start in range(0, len(keys), rows) for _ in range(2)]
        for side, parts in enumerate(batches):
            truth = store.get(keys, [bool(side)] * len(keys))[0] if keys else torch.zeros(0)
            assert torch.equal(torch.cat([torch.zeros(0, *truth.shape[1:]), *parts]), truth)


def test_latents_that_end_too_soon_or_changed_are_named_by_whoever_reads_means(photos: Any, tmp_path: Path) -> None:
    store, _, summary, _ = encode(photos, tmp_path / "store")
    file = shards(store)[1]
    whole = file.read_bytes()
    begin, _ = store._layout(store._shards.index(file))["mean"]
    for damaged, word in ((flipped(whole, begin + 9), "checksum"), (whole[: begin + 9], "too soon")):
        file.write_bytes(damaged)
        with raises("latents", file, word, "Delete"):
            list(store.means(summary.keys, 6))
    file.unlink()
    with raises("latents", file, "No such file"):
        list(store.means(summary.keys, 6))


def test_a_changed_image_is_encoded_anew_and_nothing_else(
    photos: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onbrand.data.digests.SETTLED", 0)  # or nothing so new would be remembered at all
    times = (photos / "00007.png").stat()
    store, _, _, _ = encode(photos, tmp_path / "store")
    before = {file: file.stat().st_mtime_ns for file in shards(store)}
    old = latents(store, photos)
    (photos / "00007.png").write_bytes(content(draw(1234), compress_level=0))  # as long as before
    os.utime(photos / "00007.png", ns=(times.st_atime_ns, times.st_mtime_ns))  # and as old
    (photos / "00011.png").unlink()
    with raises("latents", photos / "00007.png", "1 of 19"):
        latents(store, photos)
    store, encoder, summary, _ = encode(photos, tmp_path / "store")
    assert encoder.count == summary.encoded == 1
    assert {file: file.stat().st_mtime_ns for file in before} == before and len(shards(store)) == len(before) + 1
    new = latents(store, photos)
    assert "00011.png" not in new and len(new) == 19
    assert [name for name in new if not torch.equal(new[name][0], old[name][0])] == ["00007.png"]


def test_another_encoder_size_or_background_shares_nothing(photos: Any, tmp_path: Path) -> None:
    for key in (
        KEY,
        Key("other", (32, 32)),
        Key(KEY.vae, (32, 40)),
        Key(KEY.vae, (32, 32), background=(9, 9, 9)),
        Key(KEY.vae, (32, 32), flip=True),
        Key(KEY.vae, (32, 32), dtype="float16"),
    ):
        assert encode(photos, tmp_path / "store", key)[2].encoded == 20
    assert encode(photos, tmp_path / "store")[2].encoded == 0


def test_unchanged_files_are_not_read_again(photos: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onbrand.data.digests.SETTLED", 0)
    encode(photos, tmp_path / "store")
    file = next((tmp_path / "store").glob("digests-*.jsonl"))
    file.write_text(file.read_text()[:-30])  # a line torn by a kill
    records, _ = read_folder(photos)
    for expected in (["00019.png"], []):
        store = Store(tmp_path / "store", KEY)
        with opened_files() as paths:
            assert len(encode_all(records, Encoder(), store, progress=False).used) == 20
        assert [Path(name).name for name in paths if name.endswith(".png")] == expected


def test_the_same_image_twice_is_encoded_once_and_used_twice(photos: Any, tmp_path: Path) -> None:
    for name in ("00003b.png", "copy.png"):  # in the same shard, and in a later one
        (photos / name).write_bytes((photos / "00003.png").read_bytes())
    store, encoder, summary, _ = encode(photos, tmp_path / "store")
    assert encoder.count == 20 and len(summary.used) == 22
    pairs = latents(store, photos)
    assert torch.equal(pairs["copy.png"][0], pairs["00003.png"][0])
    for i in range(20):
        torch.testing.assert_close(pairs[f"{i:05d}.png"][0], truth(i)[0])


def test_two_ranks_make_what_one_makes(photos: Any, tmp_path: Path) -> None:
    (photos / "00005.png").write_bytes(b"")
    (photos / "00009.png").write_bytes(b"no image")
    one = encode(photos, tmp_path / "one", shard=4)
    parts = [encode(photos, tmp_path / "two", shard=4, rank=rank, world=2)[2] for rank in (1, 0)]
    store = Store(tmp_path / "two", KEY)
    whole = store.look_up(read_folder(photos)[0])
    assert whole.used == one[2].used and sorted(map(str, whole.refused)) == sorted(map(str, one[2].refused))
    assert sorted(whole.keys) == sorted(parts[0].keys + parts[1].keys)
    assert [len(part.keys) for part in parts] == [7, 11]
    same(latents(one[0], photos), latents(store, photos))
    assert {file.name[:4] for file in shards(store)} == {"000-", "001-"}


def test_half_precision_on_disk_is_harmless(photos: Any, tmp_path: Path) -> None:
    full = latents(encode(photos, tmp_path / "store")[0], photos)
    half = latents(encode(photos, tmp_path / "store", Key(KEY.vae, (32, 32), dtype="float16"))[0], photos)
    for name, (mean, logvar) in full.items():
        assert ((half[name][0] - mean).abs() <= mean.abs() / 2048 + 1e-7).all()
        assert ((half[name][1] - logvar).abs() <= logvar.abs() / 2048 + 1e-7).all()
    a, b = (torch.stack([pair[0] for pair in pairs.values()]) for pairs in (full, half))
    assert (a.mean(0) - b.mean(0)).norm() / a.mean(0).norm() < 2e-4
    assert abs(a.var(0).sum() / b.var(0).sum() - 1) < 2e-4


def test_what_cannot_be_latents_is_an_error_that_says_so(photos: Any, tmp_path: Path) -> None:
    with raises("latents", photos / "00000.png", "float32"):
        encode(photos, tmp_path / "a", encoder=lambda x: (x * float("nan"), x))
    with raises("latents", "(B, C, h, w)", "B=4", (1, 3, 32, 32)):
        encode(photos, tmp_path / "b", encoder=lambda x: (x[:1], x[:1]))
    with raises("latents", "rank=1", "world=1"):
        encode(photos, tmp_path / "c", rank=1)
    with raises("latents", "float16", "dtype='int8'"):
        Key("v", (32, 32), dtype="int8")


def test_a_folder_of_only_broken_images_is_remembered_as_such(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for seed in range(3):
        break_one(tmp_path / "photos", "text", seed)
    store, _, summary, _ = encode(tmp_path / "photos", tmp_path / "store")
    assert not summary.used and len(summary.refused) == 3
    assert list(iterate(store, read_folder(tmp_path / "photos")[0])) == []


def test_a_damaged_shard_is_named(photos: Any, tmp_path: Path) -> None:
    store = encode(photos, tmp_path / "store")[0]
    shards(store)[0].write_bytes(b"cut")
    with raises("latents", shards(store)[0]):
        Store(tmp_path / "store", KEY)


def flipped(content: bytes, place: int) -> bytes:
    """The bytes with one bit of one byte changed, another bit at each place."""
    return content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :]


@pytest.mark.parametrize("key", [KEY, Key("v", (32, 32), flip=True), Key("v", (32, 32), dtype="float16")])
def test_one_bit_that_changed_is_noticed_wherever_it_is(photos: Any, tmp_path: Path, key: Key) -> None:
    (photos / "00003.png").write_bytes(b"no image")
    store = encode(photos, tmp_path / "store", key)[0]
    file = shards(store)[0]
    content, keys = file.read_bytes(), list(store._places)
    begin = 8 + int.from_bytes(content[:8], "little")
    sides = [False, True] if key.flip else [False]
    truth = [store.get(keys, [side] * len(keys)) for side in sides]
    unnoticed = []
    for place in (*range(0, begin, 7), *range(begin, len(content), 131), len(content) - 1):
        file.write_bytes(flipped(content, place))
        try:
            damaged = Store(tmp_path / "store", key)
            latents = [damaged.get(keys, [side] * len(keys)) for side in sides]
        except ValueError as error:
            assert str(file) in str(error), place
            continue
        if damaged.reason(digest(b"no image")) != store.reason(digest(b"no image")):
            unnoticed.append(place)
        unnoticed += [place for one, other in zip(truth, latents, strict=True) if not torch.equal(one[0], other[0])]
        unnoticed += [place for one, other in zip(truth, latents, strict=True) if not torch.equal(one[1], other[1])]
    assert not unnoticed


def test_a_shard_that_changed_is_encoded_anew_once_it_is_deleted_as_the_error_says(photos: Any, tmp_path: Path) -> None:
    store = encode(photos, tmp_path / "store")[0]
    before, truth = bytes_of(store), latents(store, photos)
    file = shards(store)[1]
    file.write_bytes(flipped(file.read_bytes(), file.stat().st_size - 5))
    with raises("latents", file, "Delete"):
        latents(encode(photos, tmp_path / "store")[0], photos)
    file.unlink()
    store, encoder, _, _ = encode(photos, tmp_path / "store")
    assert 0 < encoder.count < 20 and bytes_of(store) == before
    same(latents(store, photos), truth)


def test_shards_without_checksums_are_read_as_before(photos: Any, tmp_path: Path) -> None:
    store = encode(photos, tmp_path / "store")[0]
    truth = latents(store, photos)
    for file in shards(store):
        with safe_open(file, framework="pt") as shard:
            header = json.loads(shard.metadata()["onbrand"])
            parts = {part: shard.get_tensor(part) for part in shard.keys()}  # noqa: SIM118
        del header["crc32"]
        save_file(parts, file, metadata={"onbrand": json.dumps(header, sort_keys=True)})
    store, encoder, _, _ = encode(photos, tmp_path / "store")
    assert encoder.count == 0
    same(latents(store, photos), truth, 0)


@pytest.mark.parametrize("line", ['{"mark": [1], "sha256": {}}', "[" * 100_000, '{"mark": "a"}', "\x00", "\xff", "7"])
def test_damaged_lines_of_what_was_hashed_are_passed_over(
    photos: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    monkeypatch.setattr("onbrand.data.digests.SETTLED", 0)
    encode(photos, tmp_path / "store")
    (file,) = (tmp_path / "store").glob("digests-*.jsonl")
    lines = file.read_text().splitlines()
    wrong = json.loads(lines[-1]) | {"sha256": "0" * 64}  # as one flipped bit would leave it
    file.write_text("\n".join([*lines[:-1], json.dumps(wrong), line, ""]))
    store, encoder, _, _ = encode(photos, tmp_path / "store")
    assert encoder.count == 0 and len(store.look_up(read_folder(photos)[0]).used) == 20
    assert len(Store(tmp_path / "store", KEY).look_up(read_folder(photos)[0]).used) == 20


def test_half_written_shards_are_ignored_and_cleared_away(photos: Any, tmp_path: Path) -> None:
    store = encode(photos, tmp_path / "store")[0]
    new, old = store.folder / ".000-a.safetensors.1.tmp", store.folder / ".000-b.safetensors.2.tmp"
    new.write_bytes(b"half")
    old.write_bytes(b"half")
    os.utime(old, (1, 1))
    assert len(Store(tmp_path / "store", KEY)) == 20 and new.exists() and not old.exists()


def test_a_shard_says_what_it_holds_and_one_shape_serves_all(photos: Any, tmp_path: Path) -> None:
    store, encoder, summary, _ = encode(photos, tmp_path / "store")
    with safe_open(shards(store)[0], framework="pt") as shard:
        header = json.loads(shard.metadata()["onbrand"])
        assert set(header["keys"]) <= set(summary.keys)
        assert shard.get_slice("mean").get_shape() == [len(header["keys"]), 4, 4, 4]
    assert encoder.shapes == [(4, 3, 32, 32)] * 5
    assert json.loads((store.folder / "key.json").read_text())["resolution"] == [32, 32]


def kill_and_resume(photos: Any, tmp_path: Path, moments: Any, seed: Any) -> None:
    """One run killed (SIGKILL) at each of `moments` and taken up again: the same bytes as a run never killed."""
    torch.set_num_threads(1)
    reference = Store(tmp_path / "never", KEY)
    encode_all(read_folder(photos)[0], Encoder(), reference, batch=4, progress=False, shard=8)
    rng, folder = random.Random(seed), tmp_path / "killed"
    kills = []
    for _ in range(moments):
        command = [sys.executable, str(Path(__file__).with_name("samples.py")), str(photos), str(folder), "0.03"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"})
        assert process.stdout and process.stdout.readline() == b"begun\n"
        count = len(list(folder.rglob("*.safetensors")))
        goal = count + rng.randint(1, 9 // moments)  # of 15: a busy machine may kill late
        while process.poll() is None and len(list(folder.rglob("*.safetensors"))) < goal:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.06))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        kills.append((process.returncode, len(list(folder.rglob("*.safetensors")))))
    assert any(code == -signal.SIGKILL and 0 < count < len(shards(reference)) for code, count in kills), kills
    store, encoder, summary, _ = encode(photos, folder)
    assert len(summary.used) == 117 and 0 < encoder.count < 117
    assert bytes_of(store) == bytes_of(reference) and len(shards(reference)) == 15


@pytest.fixture
def many(tmp_path: Path) -> Any:
    write_good(tmp_path / "many", 120)
    for i in (3, 40, 41):
        (tmp_path / f"many/{i:05d}.png").write_bytes(b"no image %d" % i)
    return tmp_path / "many"


def test_two_kills_change_nothing(many: Any, tmp_path: Path) -> None:
    kill_and_resume(many, tmp_path, 2, seed=1)


@pytest.mark.prove
@pytest.mark.parametrize("seed", range(2, 12))
def test_ten_moments_of_a_kill_change_nothing(many: Any, tmp_path: Path, seed: Any) -> None:
    kill_and_resume(many, tmp_path, 1, seed)
