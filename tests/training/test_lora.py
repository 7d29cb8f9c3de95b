"""A LoRA: only its weights learn; its files are taken by diffusers alone; merged and taken out; its start is known."""

import contextlib
import itertools
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from job import open_all, settings
from safetensors import safe_open
from safetensors.torch import load_file

from onbrand import api
from onbrand.api._output import UNFINISHED
from onbrand.models import pipeline
from onbrand.models.checkpoint import LORA, lora_metadata
from onbrand.models.denoiser import full, lora
from onbrand.models.families import encoders_of
from onbrand.models.lora import KOHYA, save
from onbrand.models.pipeline import embed
from onbrand.sampling.requests import Request
from onbrand.sampling.sampler import plan
from onbrand.training.defaults import check_rank
from onbrand.training.loop import train
from worlds import predict, raises

OPTIONS = {
    "method": "lora",
    "rank": 3,
    "lora_alpha": 6,
    "max_train_steps": 4,
    "learning_rate": 1e-2,
    "gain": "constant",
}


@pytest.fixture(scope="module")
def run(home: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run folder, its base and the pipeline as training left it."""
    out = tmp_path_factory.mktemp("lora")
    pipe, records, store, prior = open_all(home)
    for _ in train(pipe, records, store, prior, settings(**OPTIONS), out):
        pass
    return out, home / "model", pipe


def answer(pipe: Any) -> torch.Tensor:
    """What its UNet says of a fixed input."""
    draw = torch.Generator().manual_seed(3)
    x, hidden = torch.randn(2, 4, 8, 8, generator=draw), torch.randn(2, 32, 16, generator=draw)
    with torch.no_grad():
        return predict(pipe.unet, x, torch.tensor([900, 20]), hidden)


def plain(base: Any) -> Any:
    """The base as diffusers loads it, without onbrand."""
    return DiffusionPipeline.from_pretrained(base)


def test_only_the_low_rank_weights_learn(run: Any) -> None:
    out, base, pipe = run
    before = plain(base).unet.state_dict()
    weights = {name.replace(".base_layer.", "."): weight for name, weight in pipe.unet.state_dict().items()}
    assert len(before) < len(weights)
    for name, weight in before.items():
        assert torch.equal(weights[name], weight), name
    assert not torch.allclose(answer(pipe), answer(plain(base)), atol=1e-3), "and something was learnt"
    state = load_file(max((out / "state").iterdir()) / "weights.safetensors")
    assert all(".lora_A." in name or ".lora_B." in name for name in state)


@pytest.mark.parametrize("file", [LORA, KOHYA])
def test_diffusers_loads_what_was_trained(run: Any, file: Any) -> None:
    out, base, pipe = run
    model = plain(base)
    model.load_lora_weights(out / "model", weight_name=file)
    torch.testing.assert_close(answer(model), answer(pipe), atol=1e-5, rtol=1e-5)


def test_the_files_are_w_plus_alpha_over_rank_b_a(run: Any) -> None:
    """By hand, from kohya's file and the base alone."""
    out, base, pipe = run
    file, unet = load_file(out / "model" / KOHYA), plain(base).unet
    count = 0
    for name, layer in unet.named_modules():
        stem = "lora_unet_" + name.replace(".", "_")
        if f"{stem}.alpha" in file:
            up, down, alpha = (file[f"{stem}.{part}"] for part in ("lora_up.weight", "lora_down.weight", "alpha"))
            assert down.shape[0] == 3 and float(alpha) == 6
            layer.weight.data += 6 / 3 * (up.flatten(1) @ down.flatten(1)).view_as(layer.weight)
            count += 1
    assert count * 3 == len(file) and any("conv1" in name for name in file), "convolutions too"
    torch.testing.assert_close(answer(type("", (), {"unet": unet})()), answer(pipe), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("file", [LORA, KOHYA])
def test_the_metadata_says_how_it_is_to_be_started(run: Any, home: Any, file: Any) -> None:
    out, base, _ = run
    fields = lora_metadata(out / "model" / file)[1]
    prior = open_all(home)[3]
    assert Path(fields["base"]) == base
    record = {"schema": 2, "gain": "constant", "start": "mean", "k": 0, "start_timestep": 951}
    assert fields["trained_start"] == record | {"prior": prior.fingerprint} == pipeline.trained_start_in(out)
    with safe_open(out / "model" / file, "pt") as tensors:
        metadata = tensors.metadata()
    if file == KOHYA:
        assert metadata["ss_network_module"] == "networks.lora" and metadata["ss_network_dim"] == "3"
    else:
        assert json.loads(metadata["lora_adapter_metadata"])["unet.lora_alpha"] == 6, "diffusers' own stays"


def test_a_run_is_loaded_with_its_base_and_its_record(run: Any) -> None:
    out, base, pipe = run
    for model in (pipeline.load(out), pipeline.load(base, lora=out), pipeline.load(base, lora=out / "model" / KOHYA)):
        torch.testing.assert_close(answer(model), answer(pipe), atol=1e-5, rtol=1e-5)
        assert pipeline.trained_start_of(model) == pipeline.trained_start_in(out)
    assert hasattr(pipeline.load(out, offload=True).vae, "_hf_hook")
    with pytest.warns(UserWarning, match="changes nothing: lora_scale is 0"):
        models = pipeline.load(base, lora=out, lora_scale=0.0), pipeline.load(out, lora_scale=0.0)
    for none in models:
        torch.testing.assert_close(answer(none), answer(plain(base)))


def test_a_start_it_was_not_trained_for_is_refused(home: Any, tmp_path: Path) -> None:
    pipe, records, store, prior = open_all(home)
    for _ in train(
        pipe, records, store, prior, settings(**OPTIONS | {"gain": "window", "max_train_steps": 1}), tmp_path
    ):
        pass
    from onbrand.options.generate import SamplingSettings

    requests, prior = [Request("product photo 1", 0)], open_all(home)[3]
    plan(pipeline.load(tmp_path), prior, requests, SamplingSettings(num_inference_steps=20))
    with raises("start", "OB003", "timestep 950", "timestep 901"):
        plan(pipeline.load(tmp_path), prior, requests, SamplingSettings(num_inference_steps=10))


def test_merged_it_is_a_whole_model_and_taken_out_again_the_base(run: Any, tmp_path: Path) -> None:
    out, base, pipe = run
    api.merge(out, tmp_path / "merged")
    torch.testing.assert_close(answer(plain(tmp_path / "merged")), answer(pipe), atol=1e-5, rtol=1e-5)
    assert pipeline.trained_start_in(tmp_path / "merged") == pipeline.trained_start_in(out)
    assert (tmp_path / "merged" / "onbrand" / "prior.safetensors").is_file()
    api.merge(out, tmp_path / "again", model=tmp_path / "merged", lora_scale=-1)
    torch.testing.assert_close(answer(plain(tmp_path / "again")), answer(plain(base)), atol=1e-5, rtol=1e-5)
    assert pipeline.trained_start_in(tmp_path / "again") is None
    # the run's own folder would be read as the merged model from then on
    for folder, scale in ((out, 1.0), (tmp_path / "merged", 0.5), (tmp_path / "again", 1.0)):
        with raises("folder", folder, "not empty"):
            api.merge(out, folder, lora_scale=scale)


@pytest.mark.parametrize("moved", [0, 1, 3, 99])
def test_a_merge_killed_anywhere_begins_anew(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: int
) -> None:
    """Before its model is whole, while the parts of it are moved to their place, or behind that: as if by SIGKILL."""
    out, rename, count = run[0], os.replace, itertools.count()

    def stop(source: Any, target: Any) -> None:
        if Path(source).parent.name == UNFINISHED and next(count) >= moved:
            raise KeyboardInterrupt
        rename(source, target)

    folder = tmp_path / "merged"
    if moved == 0:  # while it is written
        monkeypatch.setattr(pipeline, "save", lambda pipe, folder, *_: (Path(folder, "unet").mkdir(), 1 / 0))
    monkeypatch.setattr(os, "replace", stop)
    with contextlib.suppress(KeyboardInterrupt, ZeroDivisionError):
        api.merge(out, folder)
    monkeypatch.undo()
    assert (folder / "model_index.json").exists() == (moved == 99), "it is no model before it is whole"
    api.merge(out, folder)
    api.merge(out, tmp_path / "whole")
    parts = [
        sorted(path.relative_to(one).as_posix() for path in one.rglob("*")) for one in (folder, tmp_path / "whole")
    ]
    assert parts[0] == parts[1] and "model_index.json" in parts[0] and not {UNFINISHED, ".onbrand.lock"} & set(parts[0])
    assert all(
        (folder / p).read_bytes() == (tmp_path / "whole" / p).read_bytes()
        for p in parts[0]
        if "." in Path(p).name and p != "run.json"  # the command, which names its folder
    )


def test_a_merge_removes_nothing_that_is_not_its_own(run: Any, tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "mine").touch()
    with raises("folder", tmp_path, "not empty (unet)"):
        api.merge(run[0], tmp_path)
    assert (tmp_path / "unet" / "mine").exists()


def test_images_of_a_lora_start_from_the_prior_beside_it(run: Any, tmp_path: Path) -> None:
    out, base, _ = run
    from onbrand.options.generate import SamplingSettings

    few = SamplingSettings(num_inference_steps=20, guidance_scale=1)
    for name, options in (("run", {"model": out}), ("both", {"model": base, "lora": out})):
        api.generate(prompt="product photo 1", output_dir=tmp_path / name, **vars(few), **options)
        settings = json.loads((tmp_path / name / "config.json").read_text())
        assert settings["settings"]["start"] == "mean" and settings["trained_start"]["gain"] == "constant"
    assert (tmp_path / "run" / "00000.png").read_bytes() == (tmp_path / "both" / "00000.png").read_bytes()


def test_a_lora_on_a_lora_and_a_model_beside_a_lora(run: Any, home: Any, tmp_path: Path) -> None:
    out, base, pipe = run
    with raises("training", out, "method lora", "onbrand merge"):
        api.train(home / "photos", out, tmp_path / "run", prior=home / "prior.safetensors", **vars(settings(**OPTIONS)))
    assert not (tmp_path / "run").exists()
    shutil.copytree(base, tmp_path / "whole")
    shutil.copy(out / "model" / LORA, tmp_path / "whole")
    torch.testing.assert_close(answer(pipeline.load(tmp_path / "whole")), answer(plain(base)))


def test_what_cannot_be_a_lora_is_refused(home: Any, tmp_path: Path) -> None:
    pipe = open_all(home)[0]
    with raises("model", "target_modules", "'to_x'"):
        lora(pipe, 4, None, ["to_q", "to_x"])
    assert full(pipe).learned, "and the pipeline is as it was"
    with raises("checkpoint", ".safetensors", f"{tmp_path}, a folder"):
        pipeline.load(home / "model", lora=tmp_path)
    with raises("checkpoint", tmp_path / "lora.safetensors", "not there"):
        pipeline.load(home / "model", lora=tmp_path / "lora.safetensors")
    with raises("model", "lora_scale", "got 0.5", "none"):
        pipeline.load(home / "model", lora_scale=0.5)
    with raises("option", "rank", "at least 1", "got 0"):
        settings(**OPTIONS | {"rank": 0})


def test_a_lora_of_no_numbers_is_not_written(home: Any, tmp_path: Path) -> None:
    pipe = open_all(home)[0]
    weights = lora(pipe, 2, None, ["to_q"]).learned
    with torch.no_grad():
        next(iter(weights.values()))[0, 0] = float("nan")
    with raises("lora", tmp_path / "out", "lora_A", "NaN"):
        save(pipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "values"),
    [
        ({"rank": 100_000}, ("at most", "16 of down_blocks.0.", "got 100000", "take 16 or less")),
        ({"rank": 17}, ("16 of down_blocks.0.", "got 17")),
        ({"rank": 33, "target_modules": ("down_blocks.1.resnets.0.conv2",)}, ("32 of down_blocks.1.resnets.0.conv2",)),
        ({"rank": 17, "target_modules": ("conv1",), "train_text_encoder": True, "start": "mean"}, ("6 of ", "got 17")),
    ],
)
def test_a_rank_that_no_layer_has_is_refused_before_it_is_built(
    home: Any, tmp_path: Path, options: Any, values: Any
) -> None:
    pipe, *rest = open_all(home)
    with raises("training", "rank", *values) as caught:
        train(pipe, *rest, settings(**OPTIONS | {"lora_alpha": None} | options), tmp_path)
    assert not hasattr(pipe.unet, "peft_config") and not list(tmp_path.iterdir())
    most = int(re.findall(r"take (\d+) or less", str(caught.value))[0])
    check_rank(pipe, settings(**OPTIONS | options | {"rank": most}))
    with raises("training", f"got {most + 1}"):
        check_rank(pipe, settings(**OPTIONS | options | {"rank": most + 1}))


def test_the_first_weights_follow_from_the_seed_alone(home: Any) -> None:
    def weights_from(seed: Any) -> Any:
        torch.rand(seed + 5)  # whatever was drawn before
        return torch.cat([w.flatten() for w in lora(open_all(home)[0], 4, None, ["to_q"], seed).learned.values()])

    first = weights_from(1)
    assert torch.equal(first, weights_from(1)) and not torch.equal(first, weights_from(2))


def test_a_lora_is_resumed_on_its_own_base_alone(run: Any, home: Any) -> None:
    out, _, _ = run
    pipe, records, store, prior = open_all(home)
    with torch.no_grad():
        pipe.unet.conv_in.bias += 1
    with raises("resume", out / "state", "4 steps of another model"):
        train(pipe, records, store, prior, settings(**OPTIONS), out)


def words_of(pipe: Any) -> torch.Tensor:
    """What a pipeline's text encoders tell the UNet of a caption."""
    options = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    with torch.no_grad():
        texts = pipe.encode_prompt("product photo 1", **options)
    return torch.cat([text.flatten() for text in texts if text is not None])


def test_the_text_encoder_learns_too_and_starts_are_told_of_it_as_it_was(home: Any, tmp_path: Path) -> None:
    """diffusers loads it from both files; the prior, fitted to the old one's output, is given that."""
    pipe, records, store, prior = open_all(home)
    options = OPTIONS | {"rank": 3, "lora_alpha": 6, "train_text_encoder": True, "start": "text"}
    for _ in train(pipe, records, store, prior, settings(**options), tmp_path / "run"):
        pass
    base, expected = plain(home / "model"), words_of(pipe)
    assert not torch.allclose(expected, words_of(base), atol=1e-3)
    for file in (LORA, KOHYA):
        model = plain(home / "model")
        model.load_lora_weights(tmp_path / "run" / "model", weight_name=file)
        torch.testing.assert_close(words_of(model), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(answer(model), answer(pipe), atol=1e-5, rtol=1e-5)
    stems = {name.split(".")[0] for name in load_file(tmp_path / "run" / "model" / KOHYA)}
    starts = ["lora_te1", "lora_te2"] if len(encoders_of(pipe)) > 1 else ["lora_te"]
    assert {f"{one}_text_model_encoder_layers_0_self_attn_q_proj" for one in starts} <= stems
    model, half = (pipeline.load(home / "model", lora=tmp_path / "run", lora_scale=scale) for scale in (1.0, 0.5))
    torch.testing.assert_close(words_of(model), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(words_of(half), expected, atol=1e-3)
    for one in (model, half, pipe):
        assert torch.equal(embed(one, ["product photo 1"])[1], embed(base, ["product photo 1"])[1])
        assert torch.equal(words_of(one), words_of(one)), "and the LoRA counts again afterwards"
    assert not any(weight.requires_grad for one in encoders_of(model).values() for weight in one.parameters())
    with raises("lora", "text encoder", "train_text_encoder"):
        api.merge(tmp_path / "run", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_merged_the_text_encoder_is_a_whole_one(home: Any, tmp_path: Path) -> None:
    pipe, records, store, prior = open_all(home)
    options = OPTIONS | {"rank": 3, "lora_alpha": None, "train_text_encoder": True}
    for _ in train(pipe, records, store, prior, settings(**options), tmp_path / "run"):
        pass
    api.merge(tmp_path / "run", tmp_path / "merged")
    torch.testing.assert_close(words_of(plain(tmp_path / "merged")), words_of(pipe), atol=1e-5, rtol=1e-5)
    api.merge(tmp_path / "run", tmp_path / "again", model=tmp_path / "merged", lora_scale=-1)
    torch.testing.assert_close(
        words_of(plain(tmp_path / "again")), words_of(plain(home / "model")), atol=1e-5, rtol=1e-5
    )
