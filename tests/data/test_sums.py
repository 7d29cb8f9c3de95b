"""Sums beside the shards: the same as without them, to the bit; merged in any order; never those of other latents."""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from onbrand.core import Fitter
from onbrand.data import sums
from onbrand.data.latents import Key, Store
from onbrand.data.sums import FOLDER, sum_shards
from worlds import raises

SHAPE = (4, 6, 6)


def fill(
    folder: Path, count: int, rank: int = 0, first: int = 0, flip: bool = False, shape: tuple[int, int, int] = SHAPE
) -> Store:
    """A store to which one shard of `count` latents was added, of the keys from `first`."""
    store = Store(folder, Key("v", (48, 48), flip, dtype="float16"))
    generator = torch.Generator().manual_seed(first)
    names = [part + side for side in (("", "_flipped") if flip else ("",)) for part in ("mean", "logvar")]
    parts = {name: torch.randn(count, *shape, generator=generator) + 3 for name in names}
    store.add([f"{first + i:064x}" for i in range(count)], parts, {}, rank)
    return store


def fit(store: Store, classes: Sequence[str], keys: Sequence[str] = ()) -> Fitter:
    """All that `sum_shards` gives, added; classes in turn."""
    keys = list(keys) or sorted(store._places)
    whole = Fitter(SHAPE)
    for part in sum_shards(store, keys, [classes[i % len(classes)] for i in range(len(keys))], SHAPE):
        whole.add(part)
    return whole


def same(one: Fitter, other: Fitter) -> bool:
    mine, its = one.state(), other.state()
    return mine.keys() == its.keys() and all(torch.equal(mine[name], its[name]) for name in mine)


def files(store: Store) -> list[Path]:
    return sorted((store.folder / FOLDER).glob("*"))


def unread(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on a latent that is read is an error."""
    monkeypatch.setattr(Store, "read", lambda *_: pytest.fail("latents were read"))


@pytest.mark.parametrize("classes", [["a"], ["a", "b"], ["a", "a", "b / c", "\u5973"]])
@pytest.mark.parametrize("flip", [False, True])
def test_sums_are_left_and_are_read_instead_of_the_latents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classes: list[str], flip: bool
) -> None:
    for first in (0, 100):
        store = fill(tmp_path, 100, first=first, flip=flip)
    before = fit(store, classes)
    keys = sorted(store._places)
    rows = torch.cat([store.get(keys, [side] * 200)[0] for side in ((False, True) if flip else (False,))])
    names = [classes[i % len(classes)] for i in range(200)] * (1 + flip)
    truth = Fitter(SHAPE)
    truth.update(rows, names)
    for name, gaussian in truth.finish().items() if len(classes) < 4 else ():
        assert torch.equal(before.finish()[name].mean, gaussian.mean)
    assert len(files(store)) == 2
    assert all(5 * file.stat().st_size < (store.folder / file.name).stat().st_size for file in files(store))
    store = Store(tmp_path, store.key)
    unread(store, monkeypatch)
    assert same(fit(store, classes), before)
    renamed = fit(store, [name + "!" for name in classes])  # the same photos under another name
    assert torch.equal(renamed.state()["first/a!"], before.state()["first/a"])


def test_photos_that_come_in_or_go_cost_the_shards_that_they_touch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for first in (0, 100, 200):
        store = fill(tmp_path, 100, first=first)
    fit(store, ["a"])
    store = fill(tmp_path, 50, first=300)
    read: list[str] = []
    rows = Store.read
    monkeypatch.setattr(Store, "read", lambda self, keys, part: read.extend(keys) or rows(self, keys, part))
    keys = sorted(store._places)
    fit(store, ["a"])
    assert sorted(read) == keys[300:]
    read.clear()
    rest = keys[:120] + keys[121:]
    less = fit(store, ["a"], rest)
    assert sorted(read) == keys[100:120] + keys[121:200]
    for file in files(store):
        file.unlink()
    assert same(less, fit(store, ["a"], rest))  # and nothing tells how they went
    assert same(fit(store, ["a"], [*keys[:5], keys[3]]), fit(store, ["a"], [*keys[:5], keys[3]]))
    assert float(fit(store, ["a"], [*keys[:5], keys[3]]).state()["count/a"]) == 6


@pytest.mark.parametrize("change", ["latents", "bit", "cut", "text", "shape", "folder"])
def test_sums_of_anything_else_are_not_taken(tmp_path: Path, change: str) -> None:
    store = fill(tmp_path, 100)
    fit(store, ["a"])
    (file,) = files(store)
    content = file.read_bytes()
    if change == "latents":  # the same images, encoded otherwise
        (shard,) = store.folder.glob("*.safetensors")
        shard.unlink()
        store = Store(tmp_path, store.key)
        rows = torch.randn(100, *SHAPE)
        store.add([f"{i:064x}" for i in range(100)], {"mean": rows, "logvar": rows * 1}, {})
    elif change == "bit":
        place = len(content) // 2
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    elif change == "cut":
        file.write_bytes(content[:-3])
    elif change == "text":
        file.write_bytes(b"no sums")
    elif change == "shape":
        other = Fitter((4, 3, 12))
        other.update(torch.zeros(1, 4, 3, 12), ["a"])
        marks = {"a": next(iter(name for name in load_file(file) if "/" in name)).partition("/")[2]}
        sums._write(file, other, marks)
    else:
        file.unlink()
        file.mkdir()
    again = fit(store, ["a"])
    truth = Fitter(SHAPE)
    truth.update(store.get(sorted(store._places))[0], ["a"] * 100)
    np.testing.assert_allclose(again.state()["first/a"], truth.state()["first/a"], rtol=1e-12)
    if change != "folder":
        assert file.read_bytes() != content or change in ("bit", "cut", "text", "shape")
        assert same(fit(Store(tmp_path, store.key), ["a"]), again)


def test_sums_of_many_classes_are_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onbrand.data.sums.TOGETHER", 2)
    for rank in range(5):
        store = fill(tmp_path, 20, rank, 20 * rank)
    state, keys = fit(store, [str(i) for i in range(50)]).state(), sorted(store._places)
    assert not files(store)
    for i in range(50):  # a photo of each in the first three shards, and in the others
        truth = store.get([keys[i], keys[50 + i]])[0].double().flatten(1).sum(0)
        torch.testing.assert_close(state[f"first/{i}"], truth)


@pytest.mark.parametrize("shape", [SHAPE, (4, 33, 33)])  # float64; blocks in float32
def test_64_ranks_merge_in_any_tree_to_one_prior(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    """The bar: 1e-6 relative; one class has a photo in every rank, one in a single rank."""
    for rank in range(64):
        store = fill(tmp_path, 12, rank, 12 * rank, shape=shape)
    keys = sorted(store._places)
    classes = ["rare" if i == 500 else "ab"[i % 12 > 0] for i in range(len(keys))]
    parts = [list(sum_shards(store, keys, classes, shape, rank, 64)) for rank in range(64)]
    assert [len(own) for own in parts] == [1] * 64
    rows, chance = store.get(keys)[0].double().numpy(), random.Random(0)
    for _ in range(20):
        tree = [own[0] for own in parts]
        while len(tree) > 1:
            one, other = (tree.pop(chance.randrange(len(tree))) for _ in range(2))
            tree.append(one.merge(other))
        with pytest.warns(UserWarning, match="rare"):
            gaussians = tree[0].finish()
        assert gaussians.keys() == {"a", "b", "rare"}
        for name, gaussian in gaussians.items():
            own = rows[[i for i, one in enumerate(classes) if one == name]]
            np.testing.assert_allclose(gaussian.mean, own.mean(0), rtol=1e-7, atol=1e-7)
            assert gaussian.count == len(own)
            assert gaussian.total == pytest.approx(own.var(0, ddof=1).sum() if len(own) > 1 else 0, rel=1e-7, abs=1e-7)


def test_threads_give_what_one_gives_and_leave_torch_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for rank in range(5):
        store = fill(tmp_path, 40, rank, 40 * rank, shape=(4, 33, 33))
    keys = sorted(store._places)

    def threads() -> int:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(torch.get_num_threads).result()

    sums_of = {}
    for number in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda number=number: number)
        sums_of[number] = list(sum_shards(store, keys, ["a", "b"] * 100, (4, 33, 33)))
        monkeypatch.undo()
        for file in files(store):
            file.unlink()
        assert threads() == number
    torch.set_num_threads(torch.get_num_threads())
    assert all(map(same, *sums_of.values()))
    (store.folder / store._shards[3].name).unlink()
    with raises("latents", "cannot be read"):
        list(sum_shards(store, keys, ["a"] * 200, (4, 33, 33)))
    assert threads() == torch.get_num_threads()
