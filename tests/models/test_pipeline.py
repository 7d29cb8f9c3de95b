"""The bundle against diffusers' and transformers' own pipelines, and what it says when it cannot."""

from __future__ import annotations

import copy
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.utils import logging as diffusers_logging
from ldm import to_ldm
from safetensors.torch import save_file
from transformers.utils import logging as transformers_logging

from onbrand.core.prior import Prior
from onbrand.models import loading, pipeline
from onbrand.models.checkpoint import checked, lora_metadata
from onbrand.models.families import encoders_of
from worlds import raises, tiny_pipeline, tiny_prior


@pytest.fixture(scope="session")
def bundle(pipe: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("bundle") / "run" / "model"
    trained = {"gain": "window", "start": "mean", "k": 0, "start_timestep": 950}
    pipeline.save(pipe, folder, tiny_prior(pipe), trained)
    return folder


def weights_equal(one: Any, other: Any) -> Any:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_what_is_saved_loads_in_diffusers_alone(bundle: Any, pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where onbrand cannot be imported, from a folder whose index does not name it."""
    for name in [name for name in sys.modules if name.split(".")[0] == "onbrand"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError):
        import onbrand.models  # noqa: F401
    model = type(pipe).from_pretrained(bundle, local_files_only=True)
    assert weights_equal(model.unet, pipe.unet) and "onbrand" not in (bundle / "model_index.json").read_text()


def test_load_gives_back_weights_prior_and_record(bundle: Any, pipe: Any) -> None:
    model = pipeline.load(bundle)
    for name in ("unet", "vae", *encoders_of(pipe)):
        assert weights_equal(getattr(model, name), getattr(pipe, name)), name
    assert model.components.get("safety_checker") is None and model.unet.dtype == torch.float32
    prior = Prior.load(bundle / "onbrand" / "prior.safetensors")
    record = {
        "schema": 2, "gain": "window", "start": "mean", "k": 0, "start_timestep": 950, "prior": prior.fingerprint
    }  # fmt: skip
    assert json.loads((bundle / "onbrand" / "config.json").read_text()) == record
    for folder in (bundle, bundle.parent):
        assert pipeline.trained_start_in(folder) == record, "a run folder holds its model"
        assert pipeline.trained_start_of(pipeline.load(folder, dtype="float16")) == record
    assert pipeline.trained_start_of(model) == record
    assert pipeline.trained_start_of(pipe) is None


def test_local_files_are_read_and_written_without_bars(bundle: Any, pipe: Any, tmp_path: Path, capfd: Any) -> None:
    pipeline.save(pipe, tmp_path / "again")
    pipeline.load(bundle)
    assert capfd.readouterr().err == ""
    assert diffusers_logging.is_progress_bar_enabled() and transformers_logging.is_progress_bar_enabled()


def test_saving_plain_weights_over_offset_trained_ones_takes_the_record_away(
    tmp_path: Path, pipe: Any, bundle: Any
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(bundle, folder)
    pipeline.save(pipe, folder)
    assert pipeline.trained_start_in(folder) is None


@pytest.mark.parametrize(
    "record",
    [
        {"gain": "window", "start": "mean"},
        {"gain": "constant", "start": "mean"},
        {"gain": "constant", "kind": "mean", "first": 950},
        {"gain": "window", "kind": "mean", "start": 951},
        {"gain": "window", "start": "noise", "start_timestep": 950},
        {"gain": "both", "start": "mean", "start_timestep": 950},
        {"gain": "window", "start_timestep": 950},
        {"gain": "window", "start": "mean", "start_timestep": 950, "window": [950, 999]},
    ],
)
def test_a_record_that_says_too_little_is_refused(tmp_path: Path, pipe: Any, record: Any) -> None:
    with raises("checkpoint", "trained_start", record):
        pipeline.save(pipe, tmp_path / "model", trained_start=record)
    assert not (tmp_path / "model" / "model_index.json").exists()


@pytest.mark.parametrize(
    ("former", "present"),
    [
        (
            {"gain": "window", "kind": "mean", "k": 0, "first": 950, "prior": "ab"},
            {"gain": "window", "start": "mean", "k": 0, "start_timestep": 950, "prior": "ab"},
        ),
        (
            {"gain": "constant", "kind": "text", "k": 0, "start": 951},
            {"gain": "constant", "start": "text", "k": 0, "start_timestep": 951},
        ),
        (
            {"gain": "constant", "kind": "pca", "k": 2, "first": 0, "start": 951},
            {"gain": "constant", "start": "pca", "k": 2, "start_timestep": 951},
        ),
        (
            {"gain": "window", "kind": "pca", "k": 3, "first": 950, "start": 951},
            {"gain": "window", "start": "pca", "k": 3, "start_timestep": 950},
        ),
    ],
)
def test_a_record_of_schema_1_is_read_by_the_present_names(tmp_path: Path, former: Any, present: Any) -> None:
    present = {"schema": 2} | present
    assert checked(former, "here") == present and checked(present, "here") == present
    folder = tmp_path / "run" / "model"
    (folder / "onbrand").mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    (folder / "onbrand" / "config.json").write_text(json.dumps(former))
    assert pipeline.trained_start_in(folder) == pipeline.trained_start_in(folder.parent) == present


@pytest.mark.parametrize("fields", [{"base": "tiny"}, {}])
def test_a_lora_of_schema_1_is_read_by_the_present_names(tmp_path: Path, fields: Any) -> None:
    """There its metadata called it offset."""
    former = {"gain": "window", "kind": "mean", "k": 0, "first": 950}
    present = {"schema": 2, "gain": "window", "start": "mean", "k": 0, "start_timestep": 950}
    for record, expected in ((former, present), (None, None)):
        metadata = {"onbrand": json.dumps(fields | {"offset": record})}
        save_file({"weight": torch.zeros(1)}, tmp_path / "one.safetensors", metadata=metadata)
        assert lora_metadata(tmp_path / "one.safetensors")[1] == fields | {"trained_start": expected}
    save_file({"weight": torch.zeros(1)}, tmp_path / "one.safetensors")
    assert lora_metadata(tmp_path / "one.safetensors")[1] == {}, "not onbrand's"


def test_half_precision_files_alone_are_found(tmp_path: Path, pipe: Any) -> None:
    half = copy.deepcopy(pipe).to(torch.float16)
    half.save_pretrained(tmp_path / "half", variant="fp16")
    model = pipeline.load(tmp_path / "half", dtype="float16")
    is_xl = len(encoders_of(pipe)) > 1
    assert (model.unet.dtype, model.vae.dtype) == (torch.float16, torch.float32 if is_xl else torch.float16)
    assert pipeline.fingerprint(model.unet) == pipeline.fingerprint(pipe.unet)


@pytest.mark.parametrize("name", pipeline.SHIPPED)
def test_shipped_models_load_and_draw(name: Any) -> None:
    pipe = pipeline.load(name)
    image = pipe(["a red skirt"], num_inference_steps=1, generator=torch.Generator().manual_seed(0)).images[0]
    assert image.width == pipe.vae.config.sample_size and pipe.scheduler.config.prediction_type == "epsilon"


class TestNotThere:
    def test_no_folder(self, tmp_path: Path) -> None:
        with raises("model", tmp_path / "nothing", "model_index.json", ".safetensors"):
            pipeline.load(tmp_path / "nothing")

    def test_no_model_in_it(self, tmp_path: Path) -> None:
        with raises("model", tmp_path, "model_index.json", "model/"):
            pipeline.load(tmp_path)

    def test_another_kind(self, tmp_path: Path) -> None:
        index = {"_class_name": "FluxPipeline"}
        (tmp_path / "model_index.json").write_text(json.dumps(index))
        with raises("model", "Stable Diffusion XL", tmp_path, "FluxPipeline"):
            pipeline.load(tmp_path)
        index["scheduler"] = ["diffusers", "FlowMatchEulerDiscreteScheduler"]  # type: ignore[assignment]
        (tmp_path / "model_index.json").write_text(json.dumps(index))
        with raises("model", tmp_path, "FluxPipeline", "flow", "OB005"):
            pipeline.load(tmp_path)

    def test_hub_id_that_is_nowhere(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.chdir(tmp_path)
        with raises("model", tmp_path / "runs/nothing", "'runs/nothing'", "Hub"):
            pipeline.load("runs/nothing")

    def test_file_of_another_kind(self, tmp_path: Path) -> None:
        (tmp_path / "model.bin").write_bytes(b"x")
        with raises("model", ".safetensors", ".ckpt", tmp_path / "model.bin"):
            pipeline.load(tmp_path / "model.bin")

    def test_shipped_model_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(loading, "SHIPPED", ("nowhere",))
        with raises("model", "'nowhere'", "assets/nowhere"):
            pipeline.load("nowhere")

    def test_dtype(self) -> None:
        with raises("model", "dtype", "float32, float16, bfloat16", "'fp16'"):
            pipeline.load("tiny", dtype="fp16")


class TestFingerprint:
    def test_names_the_weights(self, pipe: Any) -> None:
        vae = tiny_pipeline(seed=1).vae
        one = pipeline.fingerprint(vae)
        assert one == pipeline.fingerprint(vae) == pipeline.fingerprint(tiny_pipeline(seed=1).vae)
        assert one != pipeline.fingerprint(pipe.vae)
        with torch.no_grad():
            vae.decoder.conv_out.bias[0] += 0.01
        other = pipeline.fingerprint(vae)
        assert other != one, "a weight changed in place is seen"
        with torch.no_grad():
            vae.decoder.conv_out.bias[0] -= 0.01
        vae.load_state_dict(tiny_pipeline(seed=1).vae.state_dict())
        assert pipeline.fingerprint(vae) == one

    def test_half_precision_copy_is_the_same_model(self) -> None:
        vae = tiny_pipeline(seed=2).vae
        one = pipeline.fingerprint(vae)
        assert pipeline.fingerprint(vae.half()) == one
        assert pipeline.fingerprint(vae.float()) == one
        assert pipeline.fingerprint(vae.bfloat16()) != one

    def test_names_count_and_order_does_not(self) -> None:
        first = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)})
        other_order = torch.nn.ModuleDict({"b": first["b"], "a": first["a"]})
        other_names = torch.nn.ModuleDict({"a": first["b"], "b": first["a"]})
        assert pipeline.fingerprint(first) == pipeline.fingerprint(other_order) != pipeline.fingerprint(other_names)

    def test_weights_made_in_inference_mode(self) -> None:
        with torch.inference_mode():
            layer = torch.nn.Linear(2, 2)
            one = pipeline.fingerprint(layer)
            layer.bias.add_(1)
            assert pipeline.fingerprint(layer) != one


@pytest.fixture(scope="module")
def file(pipe: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("single") / "model.safetensors"
    save_file(to_ldm(pipe), path)
    return path


class TestSingleFile:
    def test_one_file_with_a_local_configuration(self, file: Any, bundle: Any, pipe: Any) -> None:
        model = pipeline.load(file, config=bundle)
        for name in ("unet", "vae", *encoders_of(pipe)):
            assert pipeline.fingerprint(getattr(model, name)) == pipeline.fingerprint(getattr(pipe, name)), name
        assert model.components.get("safety_checker") is None and pipeline.trained_start_of(model) is None
        images = [one(["a boot"], latents=torch.ones(1, 4, 8, 8), num_inference_steps=2, output_type="pt").images
                    for one in (pipe, model)]  # fmt: skip
        torch.testing.assert_close(*images)

    def test_without_a_configuration_on_this_machine(
        self, file: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        with raises("model", file, "model_config"):
            pipeline.load(file)
