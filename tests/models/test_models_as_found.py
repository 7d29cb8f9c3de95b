"""What a model's folder or file may be instead of one: said as it is opened, part by part, in a line that names it."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ldm import to_ldm
from safetensors.torch import load_file, save_file
from torch import Tensor

from onbrand import api
from onbrand.core.prior import Prior
from onbrand.hub import is_hub_id
from onbrand.models import clip, pipeline
from onbrand.models.controlnet import new_controlnet
from onbrand.models.families import encoders_of
from worlds import raises, tiny_pipeline

UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4265380512\n"
Edit = Callable[[Path], object]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def content(rest: str, data: bytes) -> Edit:
    return lambda model: (model / rest).write_bytes(data)


def config(rest: str, **values: object) -> Edit:
    def edit(model: Path) -> None:
        file = model / rest
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return edit


def tensors(rest: str, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Edit:
    def edit(model: Path) -> None:
        save_file(change(load_file(model / rest)), model / rest, metadata={"format": "pt"})

    return edit


def without(rest: str, name: str) -> Edit:
    return tensors(rest, lambda weights: {key: value for key, value in weights.items() if name not in key})


def spoilt(rest: str, name: str, value: float) -> Edit:
    def change(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        key = next(key for key in sorted(weights) if name in key)
        weights[key].view(-1)[0] = value
        return weights

    return tensors(rest, change)


def gone(rest: str) -> Edit:
    return lambda model: shutil.rmtree(model / rest) if (model / rest).is_dir() else (model / rest).unlink()


def shards(model: Path, variant: str = "", keep: int = 2, index: bool = True) -> None:
    weights = load_file(model / UNET)
    names, stem = sorted(weights), f"diffusion_pytorch_model{variant}"
    places = {name: f"{stem}-0000{1 + (place % 2)}-of-00002.safetensors" for place, name in enumerate(names)}
    for file in sorted(set(places.values()))[:keep]:
        save_file({name: weights[name] for name in names if places[name] == file}, model / "unet" / file)
    (model / UNET).unlink()
    if index:
        name = f"diffusion_pytorch_model.safetensors.index{variant}.json"
        (model / "unet" / name).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def renamed(rest: str, name: str) -> Edit:
    return lambda model: (model / rest).rename((model / rest).with_name(name))


def as_pickle(rest: str, name: str) -> Edit:
    def edit(model: Path) -> None:
        torch.save(load_file(model / rest), (model / rest).with_name(name))
        (model / rest).unlink()

    return edit


class Code:
    """What runs when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("ran",)


def with_code(model: Path) -> None:
    (model / "unet" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps({"a": Code()}))
    (model / UNET).unlink()


def nine_channels(model: Path) -> None:
    """An inpainting UNet under the name of a plain one."""
    config("unet/config.json", in_channels=9)(model)
    tensors(UNET, lambda w: w | {"conv_in.weight": torch.cat([w["conv_in.weight"], torch.zeros(16, 5, 3, 3)], 1)})(
        model
    )


def cut_pickle(model: Path) -> None:
    as_pickle(UNET, "diffusion_pytorch_model.bin")(model)
    file = model / "unet" / "diffusion_pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:900])


FAULTS: dict[str, tuple[Edit, tuple[object, ...]]] = {
    "index no JSON": (content("model_index.json", b"{"), ("model_index.json", "no JSON")),
    "index empty": (content("model_index.json", b""), ("model_index.json", "no JSON")),
    "index a list": (content("model_index.json", b"[1]"), ("model_index.json", "[1]")),
    "index a pointer": (content("model_index.json", POINTER), ("model_index.json", "Git LFS")),
    "index of nesting": (content("model_index.json", b"[" * 100_000), ("model_index.json", "recursion")),
    "inpainting": (config("model_index.json", _class_name="StableDiffusionInpaintPipeline"), ("Inpaint",)),
    "no class": (config("model_index.json", _class_name=None), ("None",)),
    "part not named": (config("model_index.json", unet=None), ("unet", "UNet2DConditionModel", None)),
    "part a word": (config("model_index.json", vae="AutoencoderKL"), ("vae", "AutoencoderKL")),
    "part of another kind": (config("model_index.json", vae=["diffusers", "AutoencoderTiny"]), ("vae", "Tiny")),
    "ONNX": (config("model_index.json", unet=["diffusers", "OnnxRuntimeModel"]), ("unet", "Onnx")),
    "code of its own": (config("model_index.json", unet=["my_code", "MyUNet"]), ("unet", "my_code")),
    "no such class": (config("model_index.json", scheduler=["diffusers", "NoScheduler"]), ("NoScheduler",)),
    "not a class": (config("model_index.json", tokenizer=["transformers", "__version__"]), ("__version__",)),
    "no unet": (gone("unet"), ("no folder unet",)),
    "no tokenizer": (gone("tokenizer"), ("no folder tokenizer",)),
    "no scheduler": (gone("scheduler"), ("no folder scheduler",)),
    "no config": (gone("vae/config.json"), ("config.json", "vae")),
    "no weights": (gone(TEXT), ("no weights", "text_encoder")),
    "config no JSON": (content("unet/config.json", b"{"), ("unet/config.json", "no JSON")),
    "config a list": (content("vae/config.json", b"[]"), ("vae/config.json", "[]")),
    "config in UTF-16": (content("vae/config.json", "{}".encode("utf-16")), ("vae/config.json", "utf-8")),
    "config of words": (config("unet/config.json", block_out_channels="many"), ("unet",)),
    "config of another width": (config("text_encoder/config.json", hidden_size=32), ("text_encoder", "shape")),
    "text encoder of words": (config("text_encoder/config.json", hidden_size="x"), ("text_encoder", "hidden_size")),
    "scheduler no JSON": (content("scheduler/scheduler_config.json", b"{"), ("scheduler_config.json", "no JSON")),
    "scheduler of words": (config("scheduler/scheduler_config.json", beta_start="x"), ("scheduler",)),
    "scheduler without steps": (config("scheduler/scheduler_config.json", num_train_timesteps=0), ("scheduler",)),
    "scheduler out of range": (config("scheduler/scheduler_config.json", beta_end=5.0), ("alphas_cumprod",)),
    "no words": (gone("tokenizer/tokenizer.json"), ("tokenizer", "vocab.json")),
    "words no JSON": (content("tokenizer/tokenizer.json", b"{"), ("tokenizer.json", "no JSON")),
    "words a pointer": (content("tokenizer/tokenizer.json", POINTER), ("tokenizer.json", "Git LFS")),
    "fewer words known": (config("text_encoder/config.json", vocab_size=100), ("text_encoder", "100")),
    "weights a pointer": (content(TEXT, POINTER), (TEXT, "Git LFS")),
    "weights a page": (content(VAE, b"\n<html>"), (VAE, "web page")),
    "weights empty": (content(UNET, b""), (UNET, "empty")),
    "weights no safetensors": (content(UNET, bytes(range(256)) * 9), (UNET, "damaged")),
    "a link to nowhere": (lambda m: ((m / UNET).unlink(), (m / UNET).symlink_to("/no/file")), (UNET, "opened")),
    "a weight missing": (without(UNET, "conv_out.weight"), ("unet", "conv_out.weight", "lacks 1")),
    "a weight of the VAE missing": (without(VAE, "quant_conv.bias"), ("vae", "quant_conv.bias", "lacks 2")),
    "a weight of the text encoder missing": (without(TEXT, "layers.1.mlp.fc1"), ("text_encoder", "fc1", "lacks 2")),
    "a weight of another shape": (tensors(UNET, lambda w: w | {"conv_in.weight": torch.ones(3, 3)}), ("conv_in",)),
    "NaN in the UNet": (spoilt(UNET, "conv_in", float("nan")), ("unet", "conv_in", "NaN", "1 of")),
    "NaN in the encoder": (spoilt(VAE, "encoder.conv_in", float("nan")), ("vae", "encoder.conv_in", "NaN")),
    "infinity in the decoder": (spoilt(VAE, "decoder.conv_in", float("inf")), ("vae", "decoder.conv_in", "infinite")),
    "NaN in the text encoder": (spoilt(TEXT, "fc1", float("nan")), ("text_encoder", "fc1", "NaN")),
    "a shard missing": (lambda model: shards(model, keep=1), ("unet", "1 of 2 files")),
    "shards without index": (lambda model: shards(model, index=False), ("unet",)),
    "code in a pickle": (with_code, ("unet",)),
    "a cut pickle": (cut_pickle, ("unet",)),
    "nine channels": (nine_channels, ("UNet", "9", "4")),
    "of classes": (config("unet/config.json", class_embed_type="timestep"), ("class_embed_type",)),
    "no size": (config("unet/config.json", sample_size=None), ("sample_size", None)),
    "a size of words": (config("unet/config.json", sample_size="64"), ("sample_size", 64)),
    "a size of yes": (config("unet/config.json", sample_size=True), ("sample_size", True)),
    "a class of code": (config("model_index.json", _class_name=["my_code", "MyPipeline"]), ("my_code",)),
    "weights a folder": (lambda m: ((m / UNET).unlink(), (m / UNET).mkdir()), (UNET, "a folder, a pipe")),
    "weights a pipe": (lambda m: ((m / UNET).unlink(), os.mkfifo(m / UNET)), (UNET, "a folder, a pipe")),
    "weights in int8": (
        tensors(UNET, lambda w: {k: v.to(torch.int8) for k, v in w.items()}),
        (f"{UNET}: ", ".bias holds I8", "quantised"),
    ),
    "numbers of 6,000 digits": (content("model_index.json", b'{"a": ' + b"9" * 6000 + b"}"), ("6000 digits)",)),
    "betas of 0": (config("scheduler/scheduler_config.json", beta_start=0.0, beta_end=0.0), ("alphas_cumprod",)),
    "betas below 0": (config("scheduler/scheduler_config.json", beta_start=-0.1), ("scheduler",)),
    "steps of words": (config("scheduler/scheduler_config.json", num_train_timesteps="1000"), ("'1000'",)),
    "steps without end": (config("scheduler/scheduler_config.json", num_train_timesteps=10**12), (10**12, 100_000)),
    "another number of betas": (config("scheduler/scheduler_config.json", trained_betas=[0.1, 0.2]), (1000, "are 2")),
    "no betas": (config("scheduler/scheduler_config.json", trained_betas=[]), ("scheduler",)),
    "no such spacing": (config("scheduler/scheduler_config.json", timestep_spacing="far"), ("far", "do not work")),
    "no such prediction": (config("scheduler/scheduler_config.json", prediction_type="far"), ("far", "do not work")),
    "thresholds beyond": (
        config("scheduler/scheduler_config.json", thresholding=True, dynamic_thresholding_ratio=5), ("do not work", 5),
    ),
    "no room for words": (config("tokenizer/tokenizer_config.json", model_max_length=0), ("model_max_length", 0)),
    "room below 0": (config("tokenizer/tokenizer_config.json", model_max_length=-5), ("model_max_length", -5)),
    "room in words": (config("tokenizer/tokenizer_config.json", model_max_length="77"), ("model_max_length", "'77'")),
    "a scale beyond any": (config("vae/config.json", scaling_factor=1e38), ("scaling_factor", 1e38)),
    "a shift that is none": (config("vae/config.json", shift_factor=[0]), ("shift_factor", [0])),
    "no scale": (config("vae/config.json", scaling_factor=None), ("scaling_factor", None)),
    "a scale of words": (config("vae/config.json", scaling_factor="x"), ("scaling_factor", "x")),
    "a scale of 0": (config("vae/config.json", scaling_factor=0), ("scaling_factor", 0)),
    "a scale that is no number": (config("vae/config.json", scaling_factor=float("nan")), ("scaling_factor", "nan")),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_with_a_model_is_said_as_it_is_opened(
    fault: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    edit, values = FAULTS[fault]
    edit(model)
    with raises("model", model, *values) as caught:
        pipeline.load(model)
    assert "\n" not in str(caught.value) and not (tmp_path / "ran").exists(), "and nothing in it was run"


@pytest.mark.parametrize(
    ("edit", "values"),
    [
        (config("model_index.json", _class_name="StableDiffusionXLPipeline"), ("Stable Diffusion XL",)),
        (config("unet/config.json", addition_embed_type="text_time"), ("text_time", "Diffusion 1 or 2")),
    ],
)
def test_a_stable_diffusion_1_that_is_called_an_xl(edit: Edit, values: tuple[str, ...], tmp_path: Path) -> None:
    tiny_pipeline(family="sd").save_pretrained(tmp_path / "model")
    edit(tmp_path / "model")
    with raises("model", tmp_path / "model", *values) as caught:
        pipeline.load(tmp_path / "model")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("verb", ["fit", "train", "generate", "merge"])
def test_every_verb_says_so_before_it_writes(verb: str, model: Path, tmp_path: Path, world: Path) -> None:
    spoilt(UNET, "conv_in", float("nan"))(model)
    out, photos = tmp_path / "out", world / "photos"
    with raises("model", model, "conv_in", "NaN"):
        if verb == "fit":
            api.fit(photos, model, out)
        elif verb == "train":
            api.train(photos, model, out, start="noise")
        elif verb == "generate":
            api.generate(prompt="x", model=model, output_dir=out, start="noise")
        else:
            file = tmp_path / "one.safetensors"
            save_file(
                {"conv_in.lora_A.weight": torch.ones(1, 4, 3, 3), "conv_in.lora_B.weight": torch.ones(16, 1, 1, 1)},
                file,
            )
            api.merge(file, out, model=model)
    assert not list(out.glob("**/*.*"))


@pytest.mark.parametrize(
    "edit",
    [
        renamed(UNET, "diffusion_pytorch_model.fp16.safetensors"),
        renamed(VAE, "diffusion_pytorch_model.fp16.safetensors"),
        renamed(TEXT, "model.fp16.safetensors"),
        renamed(UNET, "diffusion_pytorch_model.non_ema.safetensors"),
        renamed(TEXT, "model.bf16.safetensors"),
        as_pickle(UNET, "diffusion_pytorch_model.bin"),
        as_pickle(TEXT, "pytorch_model.bin"),
        as_pickle(VAE, "diffusion_pytorch_model.fp16.bin"),
        shards,
        lambda model: shards(model, ".fp16"),
        lambda model: shutil.copy(model / UNET, model / "unet" / "diffusion_pytorch_model.non_ema.safetensors"),
        config("model_index.json", safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"]),
        config("model_index.json", feature_extractor=["transformers", "CLIPImageProcessor"]),
        config("model_index.json", image_encoder=["transformers", "CLIPVisionModelWithProjection"]),
    ],
)  # fmt: skip
def test_parts_in_any_variant_are_read_and_unused_ones_need_not_be_there(edit: Edit, model: Path, saved: Path) -> None:
    edit(model)
    pipe, plain = pipeline.load(model), pipeline.load(saved)
    for name in ("unet", "vae", *encoders_of(plain)):
        assert pipeline.fingerprint(getattr(pipe, name)) == pipeline.fingerprint(getattr(plain, name)), name
    assert pipe.components.get("safety_checker") is None and pipe.feature_extractor is None


def test_weights_that_nobody_asks_for_are_told_of(model: Path) -> None:
    tensors(UNET, lambda weights: weights | {"other.weight": torch.ones(2)})(model)
    with pytest.warns(UserWarning, match=r"unet holds 1 weights .*other\.weight"):
        pipeline.load(model)


def test_weights_over_half_precisions_range(model: Path) -> None:
    spoilt(UNET, "conv_in.weight", 1e6)(model)
    assert pipeline.load(model).unet.conv_in.weight.max() == 1e6  # noqa: PLR2004
    with raises("model", "conv_in.weight", 65504, "float32 or bfloat16"):
        pipeline.load(model, dtype="float16")


@pytest.mark.parametrize("length", [None, 512])
def test_a_tokenizer_longer_than_its_text_encoder(length: int | None, model: Path, saved: Path) -> None:
    file = model / "tokenizer" / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    settings.pop("model_max_length")
    file.write_text(json.dumps(settings if length is None else settings | {"model_max_length": length}))
    with pytest.warns(UserWarning, match=r"tokenizer .* text encoder takes 32"):
        pipe = pipeline.load(model)
    tokens = pipeline.tokens_of(pipe, ["a dress"])
    assert torch.equal(tokens, pipeline.tokens_of(pipeline.load(saved), ["a dress"]))


@pytest.mark.parametrize(("prediction_type", "count"), [("epsilon", 1), ("v_prediction", 0)])
def test_epsilon_under_zero_terminal_snr_is_warned_of(
    prediction_type: str, count: int, model: Path, recwarn: pytest.WarningsRecorder
) -> None:
    config("scheduler/scheduler_config.json", rescale_betas_zero_snr=True, prediction_type=prediction_type)(model)
    pipeline.load(model)
    assert sum("rescale_betas_zero_snr" in str(one.message) for one in recwarn) == count


def test_what_is_no_number_is_not_written(tmp_path: Path) -> None:
    pipe = tiny_pipeline()
    with torch.no_grad():
        pipe.unet.conv_out.bias[0] = float("nan")
    with raises("model", "conv_out.bias", "NaN", tmp_path / "out"):
        pipeline.save(pipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("edit", "values"),
    [
        (spoilt("net/diffusion_pytorch_model.safetensors", "conv_in", float("nan")), ("conv_in", "NaN")),
        (without("net/diffusion_pytorch_model.safetensors", "controlnet_mid_block"), ("controlnet_mid_block", "lacks")),
        (content("net/diffusion_pytorch_model.safetensors", POINTER), ("Git LFS",)),
        (content("net/config.json", b"{"), ("config.json", "no JSON")),
        (config("net/config.json", _class_name="T2IAdapter"), ("T2IAdapter", "ControlNetModel")),
        (gone("net/config.json"), ("config.json", "model/controlnet/", "neither is there")),
        (gone("net"), ("no such folder", "Hub id owner/name")),
    ],
)
def test_controlnets_are_looked_at_as_models_are(edit: Edit, values: tuple[str, ...], tmp_path: Path) -> None:
    new_controlnet(tiny_pipeline()).controlnet.save_pretrained(tmp_path / "net")
    edit(tmp_path)
    with raises("controlnet", tmp_path / "net", *values):
        pipeline.load("tiny", controlnet=[tmp_path / "net"])


@pytest.mark.parametrize(
    ("name", "is_id"),
    [
        ("owner/name", True), ("CompVis/stable-diffusion-v1-4", True), ("a/b.c-d_e", True),
        ("owner", False), ("a/b/c", False), ("./a/b", False), ("../b", False), ("~/b", False), ("/a/b", False),
        ("a/b.safetensors", False), ("a/b.ckpt", False), ("https://huggingface.co/a/b", False), (r"C:\a\b", False),
        ("here/nothing", False), ("", False), ("a/", False), ("a/ b", False), ("a//b", False),
    ],
)  # fmt: skip
def test_a_hub_id_can_be_nothing_else(name: str, is_id: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name in a folder that is here is a place here, in which a word may be wrong."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    assert is_hub_id(name) == is_id


@pytest.fixture
def questions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[object]:
    """What the network is asked while a test runs; nothing is answered, and no configuration is in the cache."""
    asked: list[object] = []

    def ask(*address: object, **_: object) -> None:
        asked.append(address)
        raise OSError("no network in tests")

    monkeypatch.setattr(socket, "getaddrinfo", ask)
    monkeypatch.setattr(socket.socket, "connect", ask)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return asked


@pytest.fixture(scope="module")
def one_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("one") / "model.safetensors"
    save_file(to_ldm(tiny_pipeline()), file)
    return file


def test_nothing_is_asked_of_the_network(
    questions: list[object], one_file: Path, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pipeline.load(saved)
    pipeline.load(one_file, config=saved)
    for name in (one_file, "x/nothing.safetensors", "nothing", "https://huggingface.co/a/b", tmp_path / "a" / "b"):
        with raises("model", name):
            pipeline.load(name)
    with raises("controlnet", "nothing"):
        pipeline.load(saved, controlnet=["nothing"])
    with raises("checkpoint", "a/b"):
        pipeline.load(saved, lora=tmp_path / "a" / "b")
    assert not questions


def test_a_configuration_needs_no_weights_and_a_model_of_parts_no_configuration(
    one_file: Path, model: Path, tmp_path: Path
) -> None:
    for file in model.rglob("*.safetensors"):
        file.unlink()
    pipe = pipeline.load(one_file, config=model, dtype="float16")
    is_xl = len(encoders_of(pipe)) > 1
    assert pipe.unet.dtype == pipe.text_encoder.dtype == torch.float16
    assert pipe.vae.dtype == (torch.float32 if is_xl else torch.float16)
    assert pipeline.fingerprint(pipe.unet) == pipeline.fingerprint(tiny_pipeline().unet)
    with raises("model", "model_config", tmp_path / "nothing", "model_index.json"):
        pipeline.load(one_file, config=tmp_path / "nothing")
    with raises("model", "model_config", "one file", model):
        pipeline.load(model, config=model)
    other = "StableDiffusionPipeline" if is_xl else "StableDiffusionXLPipeline"
    config("model_index.json", _class_name=other)(model)
    with raises("model", other):
        pipeline.load(one_file, config=model)


def held(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Callable[[Path, Path], object]:
    return lambda source, file: save_file(change(load_file(source)), file)


def pickled(source: Path, file: Path) -> Path:
    torch.save({"state_dict": load_file(source)}, file)
    return file


def part(*names: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda weights: {key: value for key, value in weights.items() if not any(name in key for name in names)}


FIRST = "model.diffusion_model.input_blocks.0.0.weight"
ONE_FILE: dict[str, tuple[str, Callable[[Path, Path], object], tuple[object, ...]]] = {
    "pointer": ("safetensors", lambda _, file: file.write_bytes(POINTER), ("Git LFS",)),
    "page": ("ckpt", lambda _, file: file.write_bytes(b"<!doctype html>"), ("web page",)),
    "empty": ("ckpt", lambda _, file: file.write_bytes(b""), ("empty",)),
    "noise": ("ckpt", lambda _, file: file.write_bytes(bytes(range(256)) * 9), ("damaged",)),
    "cut": ("safetensors", lambda source, file: file.write_bytes(source.read_bytes()[:-9]), ("cut short",)),
    "cut pickle": ("ckpt", lambda s, file: file.write_bytes(pickled(s, file).read_bytes()[:99_999]), ("damaged",)),
    "code": ("ckpt", lambda _, file: file.write_bytes(pickle.dumps({"state_dict": Code()})), ("run code",)),
    "objects": ("ckpt", lambda _, file: torch.save({"epoch": np.float64(1), "x": Path()}, file), ("objects",)),
    "safetensors called ckpt": ("ckpt", lambda s, file: shutil.copy(s, file), ("name it .safetensors",)),
    "pickle called safetensors": ("safetensors", pickled, ("pickled",)),
    "UNet alone": ("safetensors", held(lambda w: {FIRST: w[FIRST]}), ("no VAE, no text encoder", FIRST)),
    "no text encoder": ("safetensors", held(part("cond_stage_model", "conditioner")), ("no text encoder",)),
    "nothing": ("safetensors", held(lambda w: {}), ("no UNet", "nothing")),
    "a list": ("ckpt", lambda _, file: torch.save([torch.ones(1)], file), ("no UNet",)),
    "inpainting": ("safetensors", held(lambda w: w | {FIRST: torch.ones(16, 9, 3, 3)}), ("another kind (", "inpaint")),
    "weight missing": ("safetensors", held(part("middle_block.0.in_layers.2")), ("are missing",)),
    "word missing": ("safetensors", held(part("layers.1.mlp.fc1.bias")), ("text_encoder", "fc1.bias")),
    "another shape": ("safetensors", held(lambda w: w | {FIRST: torch.ones(8, 4, 3, 3)}), ("conv_in",)),
    "NaN": ("safetensors", held(lambda w: w | {FIRST: w[FIRST] * float("nan")}), ("unet", "conv_in.weight", "NaN")),
}  # fmt: skip


@pytest.mark.parametrize("case", ONE_FILE)
def test_what_is_no_whole_model_in_one_file(
    case: str, one_file: Path, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ending, make, values = ONE_FILE[case]
    file = tmp_path / f"one.{ending}"
    make(one_file, file)
    with raises("model", file, *values):
        pipeline.load(file, config=saved)
    assert not (tmp_path / "ran").exists()


def test_a_pickled_file_of_weights_alone_is_read(one_file: Path, saved: Path, tmp_path: Path) -> None:
    pipe = pipeline.load(pickled(one_file, tmp_path / "one.ckpt"), config=saved)
    assert pipeline.fingerprint(pipe.vae) == pipeline.fingerprint(tiny_pipeline().vae)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_verb_takes_the_configuration_of_a_model_in_one_file(
    one_file: Path, saved: Path, world: Path, tmp_path: Path
) -> None:
    """From the fit to the check of a LoRA's images, each says what is missing without it."""
    photos, brand, run = world / "photos", tmp_path / "brand", tmp_path / "run"
    given = {"model": one_file, "model_config": saved}
    with raises("model", one_file, "model_config"):
        api.fit(photos, one_file, tmp_path / "other")
    api.fit(photos, output_dir=brand, k=2, **given)
    assert Prior.load(brand / "prior.safetensors").provenance.model == str(one_file)
    api.diagnose(brand, model_config=saved)
    api.train(
        photos, output_dir=run, prior=brand, method="lora", rank=1, max_train_steps=1, train_batch_size=2, **given
    )
    images = tmp_path / "images"
    with pytest.warns(UserWarning, match="changes nothing|OB006|trained"):
        api.generate(
            prompt="block 1",
            model=run,
            model_config=saved,
            output_dir=images,
            num_inference_steps=1,
            num_images_per_prompt=2,
        )
    api.check(images, photos, prior=brand, model_config=saved)
    api.merge(run, tmp_path / "merged", model_config=saved)
    assert pipeline.load(tmp_path / "merged").unet.config.sample_size == 8  # noqa: PLR2004


@pytest.mark.parametrize(
    ("edit", "values"),
    [
        (content("config.json", b"{"), ("config.json", "no JSON")),
        (content("model.safetensors", POINTER), ("model.safetensors", "Git LFS")),
        (gone("model.safetensors"), ("no weights",)),
        (spoilt("model.safetensors", "visual_projection", float("nan")), ("visual_projection", "NaN")),
        (without("model.safetensors", "visual_projection"), ("visual_projection", "lacks 1")),
    ],
)
def test_a_clip_folder_is_looked_at_as_models_are(edit: Edit, values: tuple[str, ...], tmp_path: Path) -> None:
    from importlib import resources

    source = Path(str(resources.files("onbrand") / "assets" / "garment-clip"))
    folder = Path(shutil.copytree(source, tmp_path / "clip"))
    edit(folder)
    with raises("classifier", folder, *values):
        clip.load(folder)
