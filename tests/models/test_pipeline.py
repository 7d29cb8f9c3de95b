"""The bundle against diffusers' and transformers' own pipelines, and what it says when it cannot."""

from __future__ import annotations

import copy
import json
import shutil
import sys

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from ldm import to_ldm
from safetensors.torch import save_file
from transformers.utils import logging as transformers_logging

from onbrand.core.prior import Prior
from onbrand.models import pipeline
from tiny import tiny_pipeline, tiny_prior


@pytest.fixture(scope="session")
def saved(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle") / "run" / "model"
    offset = {"gain": "window", "kind": "mean", "k": 0, "first": 950}
    pipeline.save(pipe, folder, tiny_prior(pipe), offset)
    return folder


def weights_equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_what_is_saved_loads_in_diffusers_alone(saved, pipe, monkeypatch):
    """Where onbrand cannot be imported, from a folder whose index does not name it."""
    for name in [name for name in sys.modules if name.split(".")[0] == "onbrand"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError):
        import onbrand.models  # noqa: F401
    loaded = StableDiffusionPipeline.from_pretrained(saved, local_files_only=True)
    assert weights_equal(loaded.unet, pipe.unet) and "onbrand" not in (saved / "model_index.json").read_text()


def test_load_gives_back_weights_prior_and_record(saved, pipe):
    loaded = pipeline.load(saved)
    for name in ("unet", "vae", "text_encoder"):
        assert weights_equal(getattr(loaded, name), getattr(pipe, name)), name
    assert loaded.safety_checker is None and loaded.unet.dtype == torch.float32
    prior = Prior.load(saved / "onbrand" / "prior.safetensors")
    record = {"gain": "window", "kind": "mean", "k": 0, "first": 950, "prior": prior.fingerprint}
    assert pipeline.offset_config(saved) == pipeline.offset_config(saved.parent) == pipeline.offset_of(loaded) == record
    assert pipeline.offset_of(pipeline.load(saved.parent, dtype="float16")) == record, "a run folder holds its model"
    assert pipeline.offset_of(pipe) is None


def test_local_files_are_read_and_written_without_bars(saved, pipe, tmp_path, capfd):
    pipeline.save(pipe, tmp_path / "again")
    pipeline.load(saved)
    assert capfd.readouterr().err == ""
    assert diffusers_logging.is_progress_bar_enabled() and transformers_logging.is_progress_bar_enabled()


def test_saving_plain_weights_over_offset_trained_ones_takes_the_record_away(tmp_path, pipe, saved):
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    pipeline.save(pipe, folder)
    assert pipeline.offset_config(folder) is None


@pytest.mark.parametrize(
    "record",
    [
        {"gain": "window", "kind": "mean"},
        {"gain": "constant", "kind": "mean", "first": 950},
        {"gain": "both", "kind": "mean", "first": 950},
        {"gain": "window", "first": 950},
        {"gain": "window", "kind": "mean", "first": 950, "window": [950, 999]},
    ],
)
def test_a_record_that_says_too_little_is_refused(tmp_path, pipe, record):
    with pytest.raises(ValueError, match="offset-trained weights record gain"):
        pipeline.save(pipe, tmp_path / "model", offset=record)
    assert not (tmp_path / "model" / "model_index.json").exists()


def test_half_precision_files_alone_are_found(tmp_path, pipe):
    half = copy.deepcopy(pipe).to(torch.float16)
    half.save_pretrained(tmp_path / "half", variant="fp16")
    loaded = pipeline.load(tmp_path / "half", dtype="float16")
    assert loaded.unet.dtype == loaded.vae.dtype == torch.float16
    assert pipeline.fingerprint(loaded.unet) == pipeline.fingerprint(pipe.unet)


@pytest.mark.parametrize("name", pipeline.SHIPPED)
def test_shipped_models_load_and_draw(name):
    pipe = pipeline.load(name)
    picture = pipe(["a red skirt"], num_inference_steps=1, generator=torch.Generator().manual_seed(0)).images[0]
    assert picture.width == pipe.vae.config.sample_size and pipe.scheduler.config.prediction_type == "epsilon"


class TestNotThere:
    def test_no_folder(self, tmp_path):
        with pytest.raises(ValueError, match=f"no model at {tmp_path / 'nothing'}: give a folder with model_index"):
            pipeline.load(tmp_path / "nothing")

    def test_no_model_in_it(self, tmp_path):
        with pytest.raises(ValueError, match=f"no model in {tmp_path}: looked for model_index.json there"):
            pipeline.load(tmp_path)

    def test_another_kind(self, tmp_path):
        (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
        with pytest.raises(ValueError, match="a StableDiffusionPipeline or .* is needed; .* is a FluxPipeline"):
            pipeline.load(tmp_path)

    def test_hub_id_that_is_nowhere(self, monkeypatch, tmp_path):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ValueError, match=f"no folder {tmp_path / 'runs/nothing'}, and no model 'runs/nothing' on"):
            pipeline.load("runs/nothing")

    def test_file_of_another_kind(self, tmp_path):
        (tmp_path / "model.bin").write_bytes(b"x")
        with pytest.raises(ValueError, match="a model file ends in .safetensors or .ckpt"):
            pipeline.load(tmp_path / "model.bin")

    def test_shipped_model_missing(self, monkeypatch):
        monkeypatch.setattr(pipeline, "SHIPPED", ("nowhere",))
        with pytest.raises(ValueError, match="the shipped model 'nowhere' is missing: no .*assets/nowhere"):
            pipeline.load("nowhere")

    def test_dtype(self):
        with pytest.raises(ValueError, match="dtype must be one of float32, float16, bfloat16, got 'fp16'"):
            pipeline.load("tiny", dtype="fp16")


class TestFingerprint:
    def test_names_the_weights(self, pipe):
        vae = tiny_pipeline(seed=1).vae
        one = pipeline.fingerprint(vae)
        assert one == pipeline.fingerprint(vae) == pipeline.fingerprint(tiny_pipeline(seed=1).vae)
        assert one != pipeline.fingerprint(pipe.vae)
        with torch.no_grad():
            vae.decoder.conv_out.bias[0] += 0.01
        changed = pipeline.fingerprint(vae)
        assert changed != one, "a weight changed in place is seen"
        with torch.no_grad():
            vae.decoder.conv_out.bias[0] -= 0.01
        vae.load_state_dict(tiny_pipeline(seed=1).vae.state_dict())
        assert pipeline.fingerprint(vae) == one

    def test_half_precision_copy_is_the_same_model(self):
        vae = tiny_pipeline(seed=2).vae
        one = pipeline.fingerprint(vae)
        assert pipeline.fingerprint(vae.half()) == one
        assert pipeline.fingerprint(vae.float()) == one
        assert pipeline.fingerprint(vae.bfloat16()) != one

    def test_names_count_and_order_does_not(self):
        first = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)})
        turned = torch.nn.ModuleDict({"b": first["b"], "a": first["a"]})
        swapped = torch.nn.ModuleDict({"a": first["b"], "b": first["a"]})
        assert pipeline.fingerprint(first) == pipeline.fingerprint(turned) != pipeline.fingerprint(swapped)

    def test_weights_made_in_inference_mode(self):
        with torch.inference_mode():
            layer = torch.nn.Linear(2, 2)
            one = pipeline.fingerprint(layer)
            layer.bias.add_(1)
            assert pipeline.fingerprint(layer) != one


@pytest.fixture(scope="module")
def file(pipe, tmp_path_factory):
    path = tmp_path_factory.mktemp("single") / "model.safetensors"
    save_file(to_ldm(pipe), path)
    return path


class TestSingleFile:
    def test_one_file_with_a_local_configuration(self, file, saved, pipe):
        loaded = pipeline.load(file, config=saved)
        for name in ("unet", "vae", "text_encoder"):
            assert pipeline.fingerprint(getattr(loaded, name)) == pipeline.fingerprint(getattr(pipe, name)), name
        assert loaded.safety_checker is None and pipeline.offset_of(loaded) is None
        pictures = [one(["a boot"], latents=torch.ones(1, 4, 8, 8), num_inference_steps=2, output_type="pt").images
                    for one in (pipe, loaded)]  # fmt: skip
        torch.testing.assert_close(*pictures)

    def test_without_a_configuration_on_this_machine(self, file, monkeypatch, tmp_path):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        with pytest.raises(ValueError, match=f"{file} holds weights alone and .* give config=FOLDER"):
            pipeline.load(file)
