"""The bundle against diffusers' and transformers' own pipelines, and what it says when it cannot."""

from __future__ import annotations

import copy
import json
import shutil
import sys
import warnings

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.utils import logging as diffusers_logging
from ldm import to_ldm
from safetensors.torch import save_file
from transformers.utils import logging as transformers_logging

from onbrand.core.prior import Prior
from onbrand.models import bundle
from tiny import tiny_pipeline, tiny_prior


@pytest.fixture(scope="session")
def saved(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle") / "run" / "model"
    offset = {"gain": "window", "kind": "mean", "k": 0, "first": 950}
    bundle.save(pipe, folder, tiny_prior(pipe), offset)
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
    loaded = bundle.load(saved)
    for name in ("unet", "vae", "text_encoder"):
        assert weights_equal(getattr(loaded, name), getattr(pipe, name)), name
    assert loaded.safety_checker is None and loaded.unet.dtype == torch.float32
    prior = Prior.load(saved / "onbrand" / "prior.safetensors")
    record = {"gain": "window", "kind": "mean", "k": 0, "first": 950, "prior": prior.fingerprint}
    assert bundle.offset_config(saved) == bundle.offset_config(saved.parent) == bundle.offset_of(loaded) == record
    assert bundle.offset_of(bundle.load(saved.parent, dtype="float16")) == record, "a run folder holds its model"
    assert bundle.offset_of(pipe) is None


def test_local_files_are_read_and_written_without_bars(saved, pipe, tmp_path, capfd):
    bundle.save(pipe, tmp_path / "again")
    bundle.load(saved)
    assert capfd.readouterr().err == ""
    assert diffusers_logging.is_progress_bar_enabled() and transformers_logging.is_progress_bar_enabled()


def test_saving_plain_weights_over_offset_trained_ones_takes_the_record_away(tmp_path, pipe, saved):
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    bundle.save(pipe, folder)
    assert bundle.offset_config(folder) is None


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
        bundle.save(pipe, tmp_path / "model", offset=record)
    assert not (tmp_path / "model" / "model_index.json").exists()


def test_half_precision_files_alone_are_found(tmp_path, pipe):
    half = copy.deepcopy(pipe).to(torch.float16)
    half.save_pretrained(tmp_path / "half", variant="fp16")
    loaded = bundle.load(tmp_path / "half", dtype="float16")
    assert loaded.unet.dtype == loaded.vae.dtype == torch.float16
    assert bundle.fingerprint(loaded.unet) == bundle.fingerprint(pipe.unet)


@pytest.mark.parametrize("name", bundle.SHIPPED)
def test_shipped_models_load_and_draw(name):
    pipe = bundle.load(name)
    picture = pipe(["a red skirt"], num_inference_steps=1, generator=torch.Generator().manual_seed(0)).images[0]
    assert picture.width == pipe.vae.config.sample_size and pipe.scheduler.config.prediction_type == "epsilon"


class TestNotThere:
    def test_no_folder(self, tmp_path):
        with pytest.raises(ValueError, match=f"no model at {tmp_path / 'nothing'}: give a folder with model_index"):
            bundle.load(tmp_path / "nothing")

    def test_no_model_in_it(self, tmp_path):
        with pytest.raises(ValueError, match=f"no model in {tmp_path}: looked for model_index.json there"):
            bundle.load(tmp_path)

    def test_another_kind(self, tmp_path):
        (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
        with pytest.raises(ValueError, match="a StableDiffusionPipeline is needed; .* is a FluxPipeline"):
            bundle.load(tmp_path)

    def test_hub_id_that_is_nowhere(self, monkeypatch, tmp_path):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ValueError, match=f"no folder {tmp_path / 'runs/nothing'}, and no model 'runs/nothing' on"):
            bundle.load("runs/nothing")

    def test_file_of_another_kind(self, tmp_path):
        (tmp_path / "model.bin").write_bytes(b"x")
        with pytest.raises(ValueError, match="a model file ends in .safetensors or .ckpt"):
            bundle.load(tmp_path / "model.bin")

    def test_shipped_model_missing(self, monkeypatch):
        monkeypatch.setattr(bundle, "SHIPPED", ("nowhere",))
        with pytest.raises(ValueError, match="the shipped model 'nowhere' is missing: no .*assets/nowhere"):
            bundle.load("nowhere")

    def test_dtype(self):
        with pytest.raises(ValueError, match="dtype must be one of float32, float16, bfloat16, got 'fp16'"):
            bundle.load("tiny", dtype="fp16")


class TestFingerprint:
    def test_names_the_weights(self, pipe):
        vae = tiny_pipeline(seed=1).vae
        one = bundle.fingerprint(vae)
        assert one == bundle.fingerprint(vae) == bundle.fingerprint(tiny_pipeline(seed=1).vae)
        assert one != bundle.fingerprint(pipe.vae)
        with torch.no_grad():
            vae.decoder.conv_out.bias[0] += 0.01
        changed = bundle.fingerprint(vae)
        assert changed != one, "a weight changed in place is seen"
        with torch.no_grad():
            vae.decoder.conv_out.bias[0] -= 0.01
        vae.load_state_dict(tiny_pipeline(seed=1).vae.state_dict())
        assert bundle.fingerprint(vae) == one

    def test_half_precision_copy_is_the_same_model(self):
        vae = tiny_pipeline(seed=2).vae
        one = bundle.fingerprint(vae)
        assert bundle.fingerprint(vae.half()) == one
        assert bundle.fingerprint(vae.float()) == one
        assert bundle.fingerprint(vae.bfloat16()) != one

    def test_names_count_and_order_does_not(self):
        first = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)})
        turned = torch.nn.ModuleDict({"b": first["b"], "a": first["a"]})
        swapped = torch.nn.ModuleDict({"a": first["b"], "b": first["a"]})
        assert bundle.fingerprint(first) == bundle.fingerprint(turned) != bundle.fingerprint(swapped)

    def test_weights_made_in_inference_mode(self):
        with torch.inference_mode():
            layer = torch.nn.Linear(2, 2)
            one = bundle.fingerprint(layer)
            layer.bias.add_(1)
            assert bundle.fingerprint(layer) != one


class TestPictures:
    def test_encode_is_the_vaes_posterior(self, pipe):
        pictures = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
        mean, logvar = bundle.encode(pipe, pictures)
        with torch.no_grad():
            posterior = pipe.vae.encode(pictures).latent_dist
        assert torch.equal(mean, posterior.mode()) and torch.equal(logvar, posterior.logvar)
        x0 = bundle.to_x0(pipe, mean, logvar, torch.Generator().manual_seed(1))
        theirs = DiagonalGaussianDistribution(torch.cat([mean, logvar], 1)).sample(torch.Generator().manual_seed(1))
        torch.testing.assert_close(x0, theirs * pipe.vae.config.scaling_factor)
        assert torch.equal(bundle.to_x0(pipe, mean), mean * pipe.vae.config.scaling_factor)

    def test_channels_last_changes_nothing_but_the_layout_and_is_taken_back(self, tmp_path):
        pipe, pictures = tiny_pipeline(seed=4), torch.rand(2, 3, 64, 64) * 2 - 1
        plain, name, weight = bundle.encode(pipe, pictures)[0], bundle.fingerprint(pipe.vae), pipe.vae.encoder.conv_in
        with pytest.raises(KeyError), bundle.channels_last(pipe.vae):
            assert weight.weight.is_contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(bundle.encode(pipe, pictures)[0], plain, atol=1e-5, rtol=1e-5)
            assert bundle.fingerprint(pipe.vae) == name
            raise KeyError("also after an error")
        assert weight.weight.is_contiguous(), "as safetensors takes them"
        bundle.save(pipe, tmp_path)
        assert bundle.fingerprint(bundle.load(tmp_path).vae) == name

    def test_decode_is_the_pipelines(self, pipe):
        latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
        theirs = pipe(["a"] * 2, latents=latents, num_inference_steps=2, output_type="pt").images
        x0 = pipe(["a"] * 2, latents=latents, num_inference_steps=2, output_type="latent").images
        torch.testing.assert_close(bundle.decode(pipe, x0) / 2 + 0.5, theirs)

    def test_shift_factor(self, pipe):
        """As in diffusers' pipelines whose VAE has one: (latents - shift) * scale, and back."""
        shifted = copy.copy(pipe)
        shifted.vae = copy.deepcopy(pipe.vae)
        shifted.vae.register_to_config(shift_factor=0.1)
        mean = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(4))
        x0 = bundle.to_x0(shifted, mean)
        torch.testing.assert_close(x0, (mean - 0.1) * 0.18215)
        torch.testing.assert_close(bundle.decode(shifted, x0), bundle.decode(pipe, mean * 0.18215))

    def test_other_pictures_are_refused(self, pipe):
        with pytest.raises(ValueError, match=r"lie in \[-1, 1\], got 0 to 255"):
            bundle.encode(pipe, torch.tensor([0.0, 255.0]).repeat(1, 3, 16, 8))
        with pytest.raises(ValueError, match=r"\(B, 3, H, W\) with sides divisible by 2, got \(1, 3, 15, 16\)"):
            bundle.encode(pipe, torch.zeros(1, 3, 15, 16))
        with pytest.raises(ValueError, match=r"got \(3, 16, 16\)"):
            bundle.encode(pipe, torch.zeros(3, 16, 16))

    def test_overflow_is_said(self, pipe):
        hot = copy.copy(pipe)
        hot.vae = copy.deepcopy(pipe.vae)
        with torch.no_grad():
            hot.vae.encoder.conv_in.weight.fill_(float("nan"))
        with pytest.raises(ValueError, match="the VAE overflows in torch.float32"):
            bundle.encode(hot, torch.zeros(1, 3, 16, 16))


class TestText:
    def test_embed_is_the_pipelines(self, pipe):
        prompts = ["a red ankle boot", "b"]
        hidden, pooled = bundle.embed(pipe, prompts)
        with torch.no_grad():
            theirs = pipe.encode_prompt(prompts, "cpu", 1, False)[0]
        torch.testing.assert_close(hidden, theirs)
        ends = [len(ids) - 1 for ids in pipe.tokenizer(prompts).input_ids]
        torch.testing.assert_close(pooled, torch.stack([hidden[i, end] for i, end in enumerate(ends)]))

    def test_long_prompts_are_warned_of_and_cut(self, pipe):
        fits, long = "a" * 30, "a" * 30 + "bcd"
        with pytest.warns(UserWarning, match="1 of 2 prompts are longer than the tokenizer's 32 tokens.*loses 'bcd"):
            hidden, _ = bundle.embed(pipe, [fits, long])
        assert hidden.shape == (2, 32, 16)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert bundle.warn_long(pipe, [fits]) == [] and bundle.warn_long(pipe, []) == []


@pytest.fixture(scope="module")
def file(pipe, tmp_path_factory):
    path = tmp_path_factory.mktemp("single") / "model.safetensors"
    save_file(to_ldm(pipe), path)
    return path


class TestSingleFile:
    def test_one_file_with_a_local_configuration(self, file, saved, pipe):
        loaded = bundle.load(file, config=saved)
        for name in ("unet", "vae", "text_encoder"):
            assert bundle.fingerprint(getattr(loaded, name)) == bundle.fingerprint(getattr(pipe, name)), name
        assert loaded.safety_checker is None and bundle.offset_of(loaded) is None
        pictures = [one(["a boot"], latents=torch.ones(1, 4, 8, 8), num_inference_steps=2, output_type="pt").images
                    for one in (pipe, loaded)]  # fmt: skip
        torch.testing.assert_close(*pictures)

    def test_without_a_configuration_on_this_machine(self, file, monkeypatch, tmp_path):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        with pytest.raises(ValueError, match=f"{file} holds weights alone and .* give config=FOLDER"):
            bundle.load(file)
