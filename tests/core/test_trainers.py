"""BrandNoise in a trainer: which class an image is of, what must be off, and the record that it leaves."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from datasets import Dataset
from onbrand.core import BrandNoise, Prior
from onbrand.models.checkpoint import LORA, lora_metadata, trained_start_in
from worlds import raises, tiny_pipeline, tiny_prior

CLASSES = ("block", "tall block")


@pytest.fixture(scope="module")
def brand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """brand/ of two classes, and single/ of one."""
    folder, pipe = tmp_path_factory.mktemp("brand"), tiny_pipeline(family="sd")
    tiny_prior(pipe, CLASSES).save(folder / "brand" / "prior.safetensors")
    tiny_prior(pipe).save(folder / "single" / "prior.safetensors")
    return folder


def loader_of(**columns: list[Any]) -> Any:
    return DataLoader(Dataset.from_dict(columns), batch_size=8, collate_fn=lambda rows: {"count": len(rows)})


def call(
    noise: BrandNoise, folder: Path, scheduler: Any = None, labels: Any = ("block",) * 2, side: int = 8, **args: Any
) -> Any:
    latents = torch.zeros(2, 4, side, side)
    settings = Namespace(output_dir=folder, **args)
    return noise(latents, latents, torch.tensor([951, 0]), labels, scheduler or DDPMScheduler(), settings)


@pytest.mark.parametrize(
    ("columns", "caption", "labels"),
    [
        ({"text": ["block, red", "Tall Block"]}, None, ["block", "tall block"]),
        ({"text": ["a", "b"], "class": ["block", "tall block"]}, None, ["block", "tall block"]),
        ({"words": ["tall block", "block"], "text": ["a", "b"]}, "words", ["tall block", "block"]),
        ({"text": [["block, red", "a photo"], ["tall block"]]}, None, ["block", "tall block"]),
    ],
)  # fmt: skip
def test_a_batch_says_its_classes(brand: Path, columns: Any, caption: Any, labels: list[str]) -> None:
    noise, loader = BrandNoise(brand / "brand", 951), loader_of(**columns)
    noise.label(loader, caption)
    (batch,) = loader
    assert batch["count"] == 2 and [noise.prior.class_of(name) for name in batch["class"]] == labels


@pytest.mark.parametrize("columns", [{"image": [1, 2]}, {"text": ["", "anything"]}, {"text": [None, []]}])
def test_one_class_needs_no_captions(brand: Path, tmp_path: Path, columns: Any) -> None:
    noise, loader = BrandNoise(brand / "single" / "prior.safetensors", 951), loader_of(**columns)
    noise.label(loader)
    (batch,) = loader
    result = call(noise, tmp_path, labels=batch["class"])
    assert float(result.abs().max()) > 0


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"text": ["block", "a dog", "", "block"]}, ["2 of 4 values of column text", "row 1: ", "'a dog'", *CLASSES]),
        ({"class": ["block", None], "text": ["block"] * 2}, ["1 of 2 values of column class", "row 1"]),
        ({"class": [0, 1]}, ["2 of 2 values of column class", "'0'"]),
        ({"class": ["block", "block, red"]}, ["1 of 2", "row 1", "'block, red'"]),
        ({"text": ["blocks"]}, ["1 of 1", "'blocks'"]),
        ({"text": [["a dog", "block"]]}, ["1 of 1", "'a dog'"]),
        ({"caption": ["block"], "image": [0]}, ["looked for class and text among caption, image", "caption_column"]),
    ],
)  # fmt: skip
def test_what_names_no_class_is_said_before_the_first_step(brand: Path, columns: Any, words: list[str]) -> None:
    with raises("training", *words):
        BrandNoise(brand / "brand", 951).label(loader_of(**columns))


def test_another_class_is_not_taken_for_the_only_one(brand: Path) -> None:
    with raises("training", "1 of 2 values of column class", "'cat' is none of 'product photo'"):
        BrandNoise(brand / "single", 951).label(loader_of(**{"class": ["product photo", "cat"]}))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"noise_offset": 0.1}, ["noise_offset 0.1"]),
        ({"input_perturbation": 0.05}, ["input_perturbation 0.05"]),
        ({"multires_noise_iterations": 6}, ["multires_noise_iterations 6"]),
        ({"ip_noise_gamma": 0.1, "noise_offset": None}, ["ip_noise_gamma 0.1"]),
        ({"random_flip": True}, ["random_flip"]),
        ({"scheduler": FlowMatchEulerDiscreteScheduler()}, ["FlowMatchEulerDiscreteScheduler", "nothing leaks"]),
    ],
)  # fmt: skip
def test_settings_that_change_the_noise_are_refused(brand: Path, tmp_path: Path, args: Any, words: list[str]) -> None:
    with raises("training", *words):
        call(BrandNoise(brand / "brand", 951), tmp_path / "tuned", **args)
    assert not (tmp_path / "tuned").exists()


@pytest.mark.parametrize(
    ("options", "words"), [({"labels": ["block", "cat"]}, ["'cat'"]), ({"side": 16}, ["32x32", "16x16"])]
)
def test_a_batch_that_is_none_of_the_priors(brand: Path, tmp_path: Path, options: Any, words: list[str]) -> None:
    with raises("prior", *words):
        call(BrandNoise(brand / "brand", 951), tmp_path, **options)


@pytest.mark.parametrize("timestep", [1000, -1])
def test_a_timestep_that_is_none(brand: Path, tmp_path: Path, timestep: int) -> None:
    with raises("value", timestep, "0..999"):
        call(BrandNoise(brand / "brand", timestep), tmp_path)


def test_the_first_batch_leaves_the_record_that_generate_reads(
    brand: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    call(BrandNoise(brand / "brand", 951), tmp_path)
    assert not list(tmp_path.iterdir()), "the first process writes alone"
    monkeypatch.setenv("RANK", "0")
    noise = BrandNoise(brand / "brand", 951)
    call(noise, tmp_path, noise_offset=0)
    record = {"schema": 2, "gain": "constant", "start": "mean", "k": 0, "start_timestep": 951,
              "prior": noise.prior.fingerprint}  # fmt: skip
    assert trained_start_in(tmp_path) == record
    assert Prior.load(tmp_path / "onbrand").fingerprint == noise.prior.fingerprint
    for name in (LORA, "kohyas.safetensors"):
        save_file({"a": torch.zeros(1)}, tmp_path / name)
        assert lora_metadata(tmp_path / name)[1] == {"trained_start": record}
