"""The parts of a fit that decide what a class can be started from."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from onbrand import api
from onbrand.comparison.baselines import few_of
from onbrand.core import ConditionalFitter, Fitter, Gaussian, Prior
from onbrand.core.fit import EXACT
from onbrand.data.latents import Key, Store, Summary
from onbrand.data.records import Record, open_folder
from onbrand.models.fitting import FOLDS, draw_means, encode_photos, fit_gaussians, numbers_of, starts_of
from onbrand.models.pipeline import to_x0
from worlds import raises, tiny_prior, write_blocks

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@pytest.mark.parametrize(("begin", "distance"), [(0, 1), (3, 5), (0, 10), (2, 7), (1, 60)])
def test_a_class_at_regular_distances_fills_every_fold(begin: int, distance: int) -> None:
    """Five classes in turn put each into one fold, and a fit has nothing to check itself on."""
    indices = list(range(begin, begin + 30 * distance, distance))
    numbers = numbers_of(indices)
    assert {number % FOLDS for number in numbers.values()} == set(range(FOLDS))
    gaussian = Gaussian(torch.zeros(1, 2, 2), torch.eye(4)[:2], torch.ones(2), 4.0, 30)
    fitter = ConditionalFitter(gaussian, FOLDS)
    rows = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    fitter.update(rows, torch.randn(30, 1, 2, 2), [numbers[index] for index in indices])
    assert fitter.finish().r2.shape == (2,)


def test_where_every_fold_has_photos_the_photos_own_numbers_stay() -> None:
    assert numbers_of([0, 6, 12, 18, 24, 7]) == {index: index for index in (0, 6, 12, 18, 24, 7)}


def latents_of(classes: Sequence[str], shape: Sequence[int], folder: Path, flip: bool = False) -> tuple[Store, Summary]:
    """A store of latents made up, float16 and in shards of 64, of as many photos of these classes."""
    store = Store(folder, Key("v", (32, 32), flip, dtype="float16"))
    keys, photos = [f"{i:064x}" for i in range(len(classes))], []
    generator = torch.Generator().manual_seed(0)
    directions = 8 / torch.arange(1.0, 31)[:, None] ** 0.5 * torch.randn(30, math.prod(shape), generator=generator)
    for start in range(0, len(keys), 64):
        own = classes[start : start + 64]
        photos += [Record(f"{start + i}.png", "", name, start + i) for i, name in enumerate(own)]
        parts = {}
        for part in ("mean", "mean_flipped")[: 1 + flip]:
            offsets = torch.tensor([float(len(name)) for name in own])
            rows = torch.randn(len(own), 30, generator=generator) @ directions + offsets[:, None]
            rows += 0.5 * torch.randn(rows.shape, generator=generator)
            parts |= {part: rows.reshape(-1, *shape), part.replace("mean", "logvar"): torch.zeros(len(own), *shape)}
        store.add(keys[start : start + 64], parts, {})
    return store, Summary(photos, keys, [])


@pytest.mark.parametrize(("k", "shape"), [(0, (4, 33, 33)), (4, (4, 33, 33)), (4, (4, 8, 8)), (0, (4, 8, 8))])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.filterwarnings("ignore:.*its mean shows those images")
def test_classes_of_any_size_in_any_order_are_fitted_as_scikit_learn_does(
    pipe: DiffusionPipeline, tmp_path: Path, k: int, shape: tuple[int, int, int], flip: bool
) -> None:
    """One large class, one of some images, one image alone; all within the same shards."""
    classes = ["large", "large", "mid", *["large"] * 6] * 30 + ["one"]
    store, summary = latents_of(classes, shape, tmp_path, flip)
    gaussians = fit_gaussians(pipe, Fitter(shape, k), store, summary)
    assert list(gaussians) == ["large", "mid", "one"]
    for name, gaussian in gaussians.items():
        keys = [key for key, own in zip(summary.keys, classes, strict=True) if own == name]
        sides = [store.get(keys, [side] * len(keys))[0] for side in ((False, True) if flip else (False,))]
        rows = to_x0(pipe, torch.cat(sides)).flatten(1).double().numpy()
        assert gaussian.count == len(rows)
        exact = math.prod(shape) <= EXACT  # else blocks are summed in float32, and scaled as a whole
        tolerance = 0 if exact else 1e-6 * rows.std()
        np.testing.assert_allclose(gaussian.mean.flatten(), rows.mean(0).astype(np.float32), rtol=0, atol=tolerance)
        if len(rows) > 1:
            assert gaussian.total == pytest.approx(rows.var(0, ddof=1).sum(), rel=1e-12 if exact else 1e-6)
        if gaussian.k > 1:
            truth = PCA(k, svd_solver="arpack", random_state=0).fit(rows)
            np.testing.assert_allclose(gaussian.variances, truth.explained_variance_, rtol=1e-4)
            overlap = gaussian.components.numpy() @ truth.components_.T
            np.testing.assert_allclose(np.abs(overlap), np.eye(k), atol=1e-2)


def test_what_a_class_can_be_started_from() -> None:
    one = Gaussian(torch.zeros(1, 2, 2), torch.zeros(0, 4), torch.zeros(0), 0.0, 1)
    assert starts_of(one, False) == ["mean without a look ahead"]
    several = Gaussian(torch.zeros(1, 2, 2), torch.eye(4)[:2], torch.ones(2), 4.0, 5)
    assert starts_of(several, False) == ["pca", "mean with a look ahead"]


def test_few_photos_are_as_many_of_each_class_spread_over_the_folder() -> None:
    records = [SimpleNamespace(class_name="ab"[i % 2], index=i) for i in range(40)]
    selection = few_of(records, 5)  # type: ignore[arg-type]
    assert [one.index for one in selection] == [0, 8, 16, 24, 32, 1, 9, 17, 25, 33]
    with raises("comparison", "30 photos", "a has 20"):
        few_of(records, 30)  # type: ignore[arg-type]


def test_photos_of_which_none_can_be_used_are_an_error(pipe: DiffusionPipeline, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "photos" / name).write_bytes(b"no image")
    with raises("data", tmp_path / "photos", "2 refused", "a.png"):
        encode_photos(pipe, open_folder(tmp_path / "photos"), tmp_path / "store", (16, 16), False)


@pytest.mark.filterwarnings("ignore:.*its mean shows those images", "ignore:real photos kept back pass less often")
def test_fit_train_and_check_say_what_they_found_in_the_same_words(world: Path, tmp_path: Path) -> None:
    photos, model = tmp_path / "photos", world / "model"
    write_blocks(photos, 24)
    (photos / "metadata.jsonl").rename(photos / "Metadata.jsonl")
    for i in range(24):
        (photos / f"{i:03d}.TXT").write_text("a block")
    (photos / "001-masklabel.png").write_bytes((photos / "001.png").read_bytes())
    lines = [
        f"{photos}: 0 of 24 images have a caption; 1 class: default (24)",
        "  not read: 24 files (000.TXT first), which look like captions: the caption of a.png is a.txt or a.caption",
        "  not read: Metadata.jsonl, which looks like metadata: "
        "metadata is called metadata.jsonl, metadata.csv, metadata.parquet",
        "  not read: 001-masklabel.png, by its name a mask",
    ]
    verbs = {
        "fit": lambda: api.fit(photos, model, tmp_path / "brand", k=2),
        "train": lambda: api.train(photos, model, tmp_path / "run", max_train_steps=1, start="noise"),
        "check": lambda: api.check(photos, photos),
    }
    for name, verb in verbs.items():
        with redirect_stdout(io.StringIO()) as out:
            verb()  # type: ignore[no-untyped-call]
        assert out.getvalue().splitlines()[:4] == lines, name


def test_latents_in_half_the_size_are_found_again_by_whoever_reads_them(
    pipe: DiffusionPipeline, tmp_path: Path
) -> None:
    write_blocks(tmp_path / "photos", 6)
    photos = open_folder(tmp_path / "photos")
    full, used = encode_photos(pipe, photos, tmp_path / "full", (16, 16), False)
    half, _ = encode_photos(pipe, photos, tmp_path / "half", (16, 16), False, dtype="float16")
    again, summary = encode_photos(pipe, photos, tmp_path / "half", (16, 16), False)
    assert (half.key.dtype, again.key.dtype, summary.encoded) == ("float16", "float16", 0)
    sizes = [sum(file.stat().st_size for file in one.folder.glob("*.safetensors")) for one in (half, full)]
    assert sizes[0] < sizes[1]
    (mean, _), (exact, _) = again.get(used.keys), full.get(used.keys)
    assert mean.dtype == torch.float32 and not torch.equal(mean, exact)
    torch.testing.assert_close(mean, exact, rtol=1 / 2048, atol=1e-7)


def test_every_class_has_a_file_of_its_mean_whatever_it_is_called(pipe: DiffusionPipeline, tmp_path: Path) -> None:
    names = {
        "..": "_..", ".": "_.", "CON": "_CON", "aux.b": "_aux.b", "com1": "_com1", "console": "console", "a/b": "a_b",
        "a\\b": "a_b 7", "A/B": "A_B 8", "x" * 200: "x" * 80, "\u5973\u88c5": "\u5973\u88c5",
    }  # fmt: skip
    gaussian = next(iter(tiny_prior(pipe, ("a",)).gaussians.values()))
    prior = Prior(dict.fromkeys(names, gaussian), tiny_prior(pipe, ("a",)).provenance)
    assert draw_means(pipe, prior, tmp_path) == names
    assert {file.stem for file in tmp_path.iterdir()} == set(names.values())
