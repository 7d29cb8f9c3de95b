"""Sums beside the shards: the same as without them, to the bit; merged in any order; never those of other latents."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from onbrand.core import Fitter
from onbrand.data import sums
from onbrand.data.latents import Key, Store
from onbrand.data.sums import FOLDER, sum_shards

SHAPE = (4, 6, 6)


def fill(folder: Path, count: int, rank: int = 0, first: int = 0, dtype: str = "float16", flip: bool = False) -> Store:
    """A store to which one shard of `count` latents was added, of the keys from `first`."""
    store = Store(folder, Key("v", (48, 48), flip, dtype=dtype))
    generator = torch.Generator().manual_seed(first)
    names = [part + side for side in (("", "_flipped") if flip else ("",)) for part in ("mean", "logvar")]
    parts = {name: torch.randn(count, *SHAPE, generator=generator) + 3 for name in names}
    store.add([f"{first + i:064x}" for i in range(count)], parts, {}, rank)
    return store


def scaled(mean: torch.Tensor) -> torch.Tensor:
    return (mean.float() - 0.1) * 0.18215


def fit(store: Store, classes: Sequence[str], keys: Sequence[str] = (), x0: sums.X0 = scaled) -> Fitter:
    """All that `sum_shards` gives, added; classes in turn."""
    keys = list(keys) or sorted(store._places)
    whole = Fitter(SHAPE)
    for part in sum_shards(store, keys, [classes[i % len(classes)] for i in range(len(keys))], x0, Fitter(SHAPE)):
        whole.add(part)
    return whole


def same(one: Fitter, other: Fitter) -> bool:
    mine, its = one.state(), other.state()
    return mine.keys() == its.keys() and all(torch.equal(mine[name], its[name]) for name in mine)


def files(store: Store) -> list[Path]:
    return sorted((store.folder / FOLDER).glob("*"))


def unread(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on a latent that is read is an error."""
    monkeypatch.setattr(Store, "means", lambda *_: pytest.fail("latents were read"))


@pytest.mark.parametrize("classes", [["a"], ["a", "b"], ["a", "a", "b / c", "\u5973"]])
@pytest.mark.parametrize("flip", [False, True])
def test_sums_are_left_and_are_read_instead_of_the_latents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classes: list[str], flip: bool
) -> None:
    for first in (0, 100):
        store = fill(tmp_path, 100, first=first, flip=flip)
    before = fit(store, classes)
    keys = sorted(store._places)
    rows = scaled(torch.cat([store.get(keys, [side] * 200)[0] for side in ((False, True) if flip else (False,))]))
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
    means = Store.means
    monkeypatch.setattr(Store, "means", lambda self, keys, rows: read.extend(keys) or means(self, keys, rows))
    keys = sorted(store._places)
    fit(store, ["a"])
    assert read == keys[300:]
    read.clear()
    rest = keys[:120] + keys[121:]
    less = fit(store, ["a"], rest)
    assert read == keys[100:120] + keys[121:200]
    for file in files(store):
        file.unlink()
    assert same(less, fit(store, ["a"], rest))  # and nothing tells how they went
    assert same(fit(store, ["a"], [*keys[:5], keys[3]]), fit(store, ["a"], [*keys[:5], keys[3]]))
    assert float(fit(store, ["a"], [*keys[:5], keys[3]]).state()["count/a"]) == 6


@pytest.mark.parametrize("change", ["scale", "latents", "bit", "cut", "text", "shape", "folder"])
def test_sums_of_anything_else_are_not_taken(tmp_path: Path, change: str) -> None:
    store = fill(tmp_path, 100)
    fit(store, ["a"])
    (file,) = files(store)
    content = file.read_bytes()
    x0 = scaled
    if change == "scale":
        x0 = lambda mean: mean.float() * 0.13025  # noqa: E731
    elif change == "latents":  # the same images, encoded otherwise
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
    again = fit(store, ["a"], x0=x0)
    truth = Fitter(SHAPE)
    truth.update(x0(store.get(sorted(store._places))[0]), ["a"] * 100)
    np.testing.assert_allclose(again.state()["first/a"], truth.state()["first/a"], rtol=1e-12)
    if change != "folder":
        assert file.read_bytes() != content or change in ("bit", "cut", "text", "shape")
        assert same(fit(Store(tmp_path, store.key), ["a"], x0=x0), again)


def test_sums_of_many_classes_are_not_left(tmp_path: Path) -> None:
    store = fill(tmp_path, 100)
    assert len(fit(store, [str(i) for i in range(50)])._sums) == 50 and not files(store)


def test_64_ranks_merge_in_any_tree_to_one_prior(tmp_path: Path) -> None:
    """The bar: 1e-6 relative; one class has a photo in every rank, one in a single rank."""
    for rank in range(64):
        store = fill(tmp_path, 12, rank, 12 * rank)
    keys = sorted(store._places)
    classes = ["rare" if i == 500 else "ab"[i % 12 > 0] for i in range(len(keys))]
    parts = [list(sum_shards(store, keys, classes, scaled, Fitter(SHAPE), rank, 64)) for rank in range(64)]
    assert [len(own) for own in parts] == [1] * 64
    whole = Fitter(SHAPE)
    whole.update(scaled(store.get(keys)[0]), classes)
    with pytest.warns(UserWarning, match="rare"):
        truth = whole.finish()
    chance = random.Random(0)
    for _ in range(20):
        tree = [own[0] for own in parts]
        while len(tree) > 1:
            one, other = (tree.pop(chance.randrange(len(tree))) for _ in range(2))
            tree.append(one.merge(other))
        with pytest.warns(UserWarning, match="rare"):
            gaussians = tree[0].finish()
        assert gaussians.keys() == truth.keys()
        for name, gaussian in gaussians.items():
            assert torch.equal(gaussian.mean, truth[name].mean) and gaussian.count == truth[name].count
            assert gaussian.total == pytest.approx(truth[name].total, rel=1e-12)
