"""`onbrand export`: files by ComfyUI's rules, nodes by themselves, both in ComfyUI's own code where it is at hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file, save_file

from onbrand import api
from onbrand.core.offset import x_init
from onbrand.core.prior import Prior
from onbrand.exporting.comfyui import first_timestep, schedule_for
from onbrand.models.pipeline import embed, tokens_of
from onbrand.sampling.noise import noise_for
from onbrand.sampling.start import start
from worlds import SCHEDULE, raises, tiny_pipeline, tiny_prior

HERE = Path(__file__).parent
CLASSES = ("product photo", "person: a/b")
PROMPT = "product photo, red"


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def brand(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Prior, Path]:
    """A pipeline, a prior that belongs to it, and what is exported of it."""
    home = tmp_path_factory.mktemp(request.param)
    pipe = tiny_pipeline(family=request.param)
    prior = tiny_prior(pipe, CLASSES)
    prior.save(home / "acme" / "prior.safetensors")
    api.export(home / "acme", format="comfyui", output_dir=home / "out")
    return pipe, prior, home / "out"


def read_latent(file: Path) -> torch.Tensor:
    """As LoadLatent reads it."""
    latent = load_file(file)
    return latent["latent_tensor"].float() * (1.0 if "latent_format_version_0" in latent else 1 / 0.18215)


def test_latents_are_the_class_means_as_the_vae_takes_them(brand: tuple[Any, Prior, Path], tmp_path: Path) -> None:
    pipe, prior, out = brand
    files = {"product photo": "acme product photo.latent", "person: a/b": "acme person_ a_b.latent"}
    assert {file.name for file in (out / "input").iterdir()} == set(files.values())
    for name, file in files.items():
        latent = read_latent(out / "input" / file)
        torch.testing.assert_close(latent * pipe.vae.config.scaling_factor, prior.mean(name), atol=1e-6, rtol=1e-6)
    api.export(out.parent / "acme", format="comfyui", output_dir=tmp_path)
    for file in (path for path in out.rglob("*") if path.is_file() and path.name != "run.json"):
        assert file.read_bytes() == (tmp_path / file.relative_to(out)).read_bytes(), file


def test_the_pack_gives_what_onbrand_gives_beside_torch_and_safetensors_alone(
    brand: tuple[Any, Prior, Path], tmp_path: Path
) -> None:
    pipe, prior, out = brand
    pooled = embed(pipe, [PROMPT])[1][0].float().tolist()
    timesteps = [951, 999]
    given = json.dumps({"prompt": PROMPT, "pooled": pooled, "timesteps": timesteps})
    words = [sys.executable, HERE / "pack.py", out / "custom_nodes" / "onbrand", tmp_path / "tensors", given]
    run = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""})
    assert run.returncode == 0, run.stderr
    tensors, scale = load_file(tmp_path / "tensors"), pipe.vae.config.scaling_factor
    gaussian, text = prior.gaussians["product photo"], prior.text["product photo"]
    torch.testing.assert_close(tensors["mean"] * scale, prior.mean(["product photo"] * 2), atol=1e-6, rtol=1e-6)
    mean_given = text.mean(gaussian, torch.tensor([pooled]))
    torch.testing.assert_close(tensors["text"] * scale, mean_given.repeat(2, 1, 1, 1), atol=1e-5, rtol=1e-5)
    noise = noise_for([7, 8], prior.shape, zero_mean=True)
    for spacing, first in (("leading", 951), ("trailing", 999)):
        pipe.scheduler = DDIMScheduler(**SCHEDULE | {"timestep_spacing": spacing})
        states = {
            how: start(pipe, prior, PROMPT, seeds=[7, 8], start=how, k=2 if how == "pca" else None, look_ahead=0)
            for how in ("mean", "pca")
        }
        abar = float(pipe.scheduler.alphas_cumprod[first])
        for latent in ("empty", "start", "other"):  # whatever it is added to, the noise carries the start
            torch.testing.assert_close(tensors[f"{latent} {first}"], states["mean"], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(x_init(tensors["pca"] * scale, noise, abar), states["pca"], atol=1e-5, rtol=1e-5)
    lines = json.loads(run.stdout)
    parts = [
        ("'nothing' is no class", "'product photo'"), ("no prior of size 8x8",), ("width and height", "8 and 0"),
        ("no pooled text",), ("k = 99",), ("no step",), ("pip install onbrand",), ("one size and batch",),
        ("weight 0.5", "RandomNoise"),
    ]  # fmt: skip
    assert len(lines) == len(parts), lines
    for line, words_of in zip(lines, parts, strict=True):
        assert all(word in line for word in words_of), line


def test_the_packs_metadata_is_its_registrys(brand: tuple[Any, Prior, Path]) -> None:
    import tomllib

    metadata = tomllib.loads((brand[2] / "custom_nodes" / "onbrand" / "pyproject.toml").read_text())
    assert metadata["project"]["name"] == "onbrand" and metadata["project"]["license"] == {"text": "Apache-2.0"}
    assert metadata["project"]["dependencies"] == [] and set(metadata["tool"]["comfy"]) == {
        "PublisherId",
        "DisplayName",
    }


@pytest.mark.parametrize("steps", [1, 2, 7, 10, 20, 25, 30, 50, 100])
def test_ddim_uniform_begins_as_leading_does_where_the_steps_divide(steps: int) -> None:
    scheduler = DDIMScheduler(**SCHEDULE)
    scheduler.set_timesteps(steps)
    first = first_timestep(steps)
    assert first == int(scheduler.timesteps[0]) if 1000 % steps == 0 else first > int(scheduler.timesteps[0])


@pytest.mark.parametrize(
    ("gain", "timestep", "choice"),
    [("constant", 951, ("ddim_uniform", 20)), ("constant", 999, ("simple", 20)),
     ("constant", 981, ("ddim_uniform", 28)), ("window", 900, ("ddim_uniform", 20)),
     ("window", 951, ("ddim_uniform", 20)), ("window", 990, ("simple", 20))],
)  # fmt: skip
def test_workflows_begin_where_the_weights_were_trained_to(gain: str, timestep: int, choice: tuple[str, int]) -> None:
    scheduler, steps = choice
    first = 999 if scheduler == "simple" else first_timestep(steps)
    assert first == timestep if gain == "constant" else first >= timestep
    assert schedule_for({"gain": gain, "start_timestep": timestep}) == choice


def test_where_no_schedule_begins_there_a_warning_says_so() -> None:
    with pytest.warns(UserWarning, match="timestep 700; .* nearest is 901"):
        schedule_for({"gain": "constant", "start_timestep": 700})


def test_a_scale_that_comfyui_does_not_have_is_said(tmp_path: Path) -> None:
    from dataclasses import replace

    prior = tiny_prior(tiny_pipeline(family="sd"))
    replace(prior, provenance=replace(prior.provenance, scaling_factor=0.5)).save(tmp_path / "a.safetensors")
    with pytest.warns(UserWarning, match=r"0\.5, ComfyUI's by 0\.18215 or 0\.13025"):
        api.export(tmp_path / "a.safetensors", format="comfyui", output_dir=tmp_path / "out")


@pytest.fixture(scope="module")
def comfyui() -> Path:
    """A folder of ComfyUI, outside of this repository; its licence is GPL-3."""
    folder = Path(os.environ.get("ONBRAND_COMFYUI", "nowhere"))
    if not (folder / "nodes.py").is_file():
        pytest.skip("ONBRAND_COMFYUI names no folder of ComfyUI: its own code is not asked")
    return folder


def text_of(pipe: Any, file: Path) -> Path:
    """The text encoder whose pooled text a prior reads, by checkpoints' names, and a prompt's token ids."""
    number, family = ("_2", "sdxl") if hasattr(pipe, "text_encoder_2") else ("", "sd")
    encoder, tokenizer = getattr(pipe, f"text_encoder{number}"), getattr(pipe, f"tokenizer{number}")
    weights = {
        name if name.startswith("text_projection") else f"text_model.{name.removeprefix('text_model.')}": value.clone()
        for name, value in encoder.state_dict().items()
    }
    weights["ids"] = tokens_of(pipe, [PROMPT])[:, -1]
    names = ("hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size", "max_position_embeddings")
    config = {name: getattr(encoder.config, name) for name in (*names, "hidden_act")}
    config |= {"eos_token_id": tokenizer.eos_token_id, "family": family}
    save_file(weights, file, {"config": json.dumps(config)})
    return file


def test_comfyuis_own_nodes_start_the_workflows_at_eq_8(
    brand: tuple[Any, Prior, Path], comfyui: Path, tmp_path: Path
) -> None:
    pipe, prior, out = brand
    pythons = (comfyui / place / "bin" / "python" for place in (".venv", "venv"))
    python = next((one for one in pythons if one.exists()), sys.executable)
    words = [python, HERE / "in_comfyui.py", comfyui, out, text_of(pipe, tmp_path / "text"), tmp_path / "states"]
    run = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""})
    if run.returncode == 77:
        pytest.skip(f"ComfyUI does not run here: {run.stderr.strip().splitlines()[-1]}")
    assert run.returncode == 0, run.stderr[-3000:]
    states = load_file(tmp_path / "states")
    x_start = prior.mean("product photo")
    torch.testing.assert_close(states.pop("pooled"), embed(pipe, [PROMPT])[1], atol=1e-5, rtol=1e-5)
    names = {key.rpartition(" ")[0] for key in states if key != "noise"}
    assert names == {f"{kind} nodes {scheduler}" for kind in ("core", "onbrand") for scheduler in SCHEDULERS}
    for name in names:
        noise = noise_for([0], prior.shape, zero_mean=True) if name.startswith("onbrand") else states["noise"]
        expected = x_init(x_start, noise, float(states[f"{name} abar"]))
        torch.testing.assert_close(states[f"{name} state"], expected, atol=1e-3, rtol=0)
    pipe.scheduler = DDIMScheduler(**SCHEDULE)
    latents = start(pipe, prior, PROMPT, seeds=0, start="mean", look_ahead=0)
    torch.testing.assert_close(states["onbrand nodes ddim_uniform state"], latents, atol=1e-3, rtol=0)


SCHEDULERS = ("ddim_uniform", "simple", "normal", "karras")


@pytest.mark.parametrize(
    ("source", "code", "words"),
    [("nowhere", "prior", ("which is not there", "onbrand fit")), ("empty", "prior", ("no prior in", "onbrand fit"))],
)
def test_what_holds_no_prior_is_said_before_anything_is_written(
    source: str, code: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    for form in ("comfyui", "webui"):
        with raises(code, tmp_path / source, *words):
            api.export(tmp_path / source, format=form, output_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_not_its_own_stays(brand: tuple[Any, Prior, Path], tmp_path: Path) -> None:
    acme = brand[2].parent / "acme"
    (tmp_path / "input").mkdir()
    (tmp_path / "input" / "mine").touch()
    with raises("folder", tmp_path, "not empty (input)"):
        api.export(acme, format="comfyui", output_dir=tmp_path)
    assert (tmp_path / "input" / "mine").exists()
    with raises("folder", brand[2], "not empty"):  # another command's
        api.export(acme, format="comfyui", model="other", output_dir=brand[2])


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"format": "checkpoint", "model": "M"}, ("model", "format comfyui or webui")),
     ({"format": "comfyui", "device": "cpu"}, ("device", "format webui or checkpoint")),
     ({"format": "forge"}, ("format", "forge"))],
)  # fmt: skip
def test_settings_without_effect_are_refused(settings: dict[str, Any], words: tuple[str, ...]) -> None:
    with raises("option", *words):
        api.export("brand", output_dir="out", **settings)


def test_a_checkpoint_is_the_runs_weights_in_one_file(tmp_path: Path) -> None:
    from onbrand.models.single_file import weights_of

    pipe = tiny_pipeline(family="sd")
    pipe.save_pretrained(tmp_path / "run" / "model")
    api.export(tmp_path / "run", format="checkpoint", output_dir=tmp_path / "out")
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert weights.keys() == weights_of(pipe).keys()
    assert all(torch.equal(weights[name], value) for name, value in weights_of(pipe).items())
    save_file({"a": torch.zeros(1)}, tmp_path / "pytorch_lora_weights.safetensors")
    with raises("option", tmp_path, "onbrand merge --single_file"):
        api.export(tmp_path, format="checkpoint", output_dir=tmp_path / "other")


def test_a_loras_workflows_load_it_and_begin_where_it_was_trained_to(tmp_path: Path) -> None:
    from onbrand.models import lora as lora_files
    from onbrand.models.denoiser import lora

    pipe = tiny_pipeline(family="sd")
    lora(pipe, 2, 2, ["to_q", "to_v"])
    record = {"gain": "constant", "start": "mean", "start_timestep": 999}
    lora_files.save(pipe, tmp_path / "run" / "model", tiny_prior(pipe, CLASSES), record, "owner/base-1.5")
    out = api.export(tmp_path / "run", format="comfyui", output_dir=tmp_path / "out")
    copy = out / "models" / "loras" / "run.safetensors"
    assert copy.read_bytes() == (tmp_path / "run" / "model" / "lora_kohya.safetensors").read_bytes()
    for file in (out / "workflows").iterdir():
        nodes = {entry["class_type"]: entry["inputs"] for entry in json.loads(file.read_text()).values()}
        assert nodes["CheckpointLoaderSimple"]["ckpt_name"] == "base-1.5.safetensors"
        assert nodes["LoraLoader"]["lora_name"] == "run.safetensors"
        assert (nodes["BasicScheduler"]["scheduler"], nodes["BasicScheduler"]["steps"]) == ("simple", 20)
    for place in ("run", "run/model/lora_kohya.safetensors"):
        with raises("option" if place == "run" else "model", tmp_path / place):
            api.export(tmp_path / place, format="checkpoint", output_dir=tmp_path / "one")


def test_every_size_of_a_brand_has_its_means(tmp_path: Path) -> None:
    from dataclasses import replace

    from onbrand.core.prior import joined, save_all
    from onbrand.exporting.nodes import Draw, Start

    square = tiny_prior(tiny_pipeline(family="sd"), CLASSES)
    wide = replace(tiny_prior(tiny_pipeline(family="sd"), CLASSES[:1]), text={})
    wide = replace(wide, provenance=replace(wide.provenance, resolution=(16, 32)))
    prior = joined([square, wide])
    save_all(prior, tmp_path / "acme")
    out = api.export(tmp_path / "acme", format="comfyui", output_dir=tmp_path / "out")
    files = {"acme product photo.latent", "acme person_ a_b.latent", "acme product photo 16x32.latent"}
    assert {file.name for file in (out / "input").iterdir()} == files
    there = Prior.load(out / "models" / "onbrand" / "acme")
    assert [one.fingerprint for one in there.all] == [square.fingerprint, wide.fingerprint]
    where = {"class_name": CLASSES[0], "width": 32, "height": 16}
    (latent,) = Start().start(there, **where)
    assert torch.equal(latent["samples"], read_latent(out / "input" / "acme product photo 16x32.latent"))
    assert Draw().draw(there, **where, k=1, batch_size=3)[0]["samples"].shape == (3, *wide.shape)
    with raises("start", "without captions", CLASSES[0]):
        Start().start(there, **where, conditioning=[[None, {"pooled_output": torch.zeros(1, 16)}]])


def test_the_text_of_stable_diffusion_2_is_refused(brand: tuple[Any, Prior, Path]) -> None:
    from dataclasses import replace

    from onbrand.exporting.nodes import SD2, Start

    prior = brand[1]
    text = prior.text[CLASSES[0]]
    wide = replace(text, weight=torch.zeros(SD2, text.weight.shape[1]), text_mean=torch.zeros(SD2))
    with raises("start", "Stable Diffusion 2"):
        Start().start(
            replace(prior, text={CLASSES[0]: wide}),
            class_name=CLASSES[0],
            conditioning=[[None, {"pooled_output": torch.zeros(1, SD2)}]],
        )


def test_the_check_node_judges_as_check_does_where_onbrand_is(world: Path) -> None:
    import numpy as np
    from PIL import Image

    from onbrand.exporting.nodes import Check

    pixels = [np.asarray(Image.open(world / "photos" / f"{i:03d}.png").convert("RGB")) for i in range(3)]
    pixels.append(np.zeros_like(pixels[0]))
    answer = Check().check(torch.from_numpy(np.stack(pixels)).float() / 255, str(world / "photos"))
    report, rate = answer["result"]
    assert answer["ui"]["text"] == [report] and "background" in report.lower()
    assert 0 < rate < 1, "photos pass, and a black image does not"
