"""Half precision: what does not learn is kept in it, to the same bytes; what is saved, measured or started is exact."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from job import open_all, settings
from test_resume import BOTH, CONTROL, EVERYTHING, HALF, LORA, same
from torch import nn

from onbrand.models.denoiser import Denoiser
from onbrand.models.pipeline import decode, embed, encode, fingerprint, load
from onbrand.sampling.start import start
from onbrand.training.export import save_model
from onbrand.training.loop import train
from worlds import predict, raises

METHODS = {"lora": LORA, "controlnet": CONTROL}


def parts_of(home: Any, more: Any) -> Any:
    AcceleratorState._reset_state(reset_partial_state=True)
    return open_all(home, method=more.get("method", "full"))


def layers(network: Any) -> Any:
    return [layer for layer in network.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]


@pytest.mark.parametrize("more", METHODS.values(), ids=METHODS)
def test_frozen_layers_in_half_precision_are_what_autocast_makes_of_float32(
    home: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: Any
) -> None:
    """To the byte, the saved model too: against a run whose weights stay in float32 under accelerate's autocast."""
    config = settings(**EVERYTHING | more | HALF)
    pipe, *rest = parts_of(home, more)
    run = train(pipe, *rest, config, tmp_path / "kept")
    next(run)
    learning_dtypes = {
        weight.dtype for layer in layers(pipe.unet) for weight in layer.parameters() if weight.requires_grad
    }
    frozen_dtypes = [
        weight.dtype for layer in layers(pipe.unet) for weight in layer.parameters() if not weight.requires_grad
    ]
    assert frozen_dtypes[:2] == [torch.float32] * 2 and set(frozen_dtypes[2:]) == {torch.bfloat16}, (
        "all but the first layer"
    )
    assert learning_dtypes == ({torch.float32} if more is LORA else set())
    for network in (pipe.vae, pipe.text_encoder, getattr(pipe, "controlnet", pipe.vae)):
        assert {weight.dtype for weight in network.parameters()} == {torch.float32}
    list(run)
    monkeypatch.setattr(Denoiser, "lower", lambda *_, **__: None)
    list(train(*parts_of(home, more), config, tmp_path / "cast"))
    same(tmp_path / "kept", tmp_path / "cast")


@pytest.mark.parametrize("more", [{}, BOTH], ids=["full", "controlnet and UNet"])
def test_weights_that_learn_stay_in_float32(home: Any, tmp_path: Path, more: Any) -> None:
    pipe, *rest = parts_of(home, more)
    list(train(pipe, *rest, settings(**EVERYTHING | more | HALF), tmp_path))
    for network in (pipe.unet, pipe.vae, pipe.text_encoder):
        assert {weight.dtype for weight in network.parameters()} == {torch.float32}


def test_the_unet_beside_a_controlnet_is_saved_as_it_was_also_by_a_run_that_was_stopped(
    home: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings(**CONTROL | HALF | {"checkpointing_steps": 1})
    pipe, *rest = parts_of(home, CONTROL)
    capsys.readouterr()
    run = train(pipe, *rest, config, tmp_path)
    next(run), next(run)
    run.close()
    assert not capsys.readouterr().err, "diffusers has nothing to say of it"
    save_model(pipe, rest[2], config, tmp_path)
    base, model = load(home / "model"), load(tmp_path)
    for name, weight in base.unet.state_dict().items():
        assert torch.equal(model.unet.state_dict()[name], weight), name
    assert fingerprint(model.vae) == fingerprint(base.vae)
    assert {file.name for file in tmp_path.iterdir()} == {"config.yaml", "log.jsonl", "state", "model"}


def test_a_pipeline_left_in_half_precision_is_not_trained_again(home: Any, tmp_path: Path) -> None:
    pipe, *rest = parts_of(home, CONTROL)
    list(train(pipe, *rest, settings(**CONTROL | HALF, max_train_steps=1), tmp_path))
    with raises("training", "in float32", "bfloat16, float32"):
        train(pipe, *rest, settings(**CONTROL | HALF, max_train_steps=2), tmp_path)


@pytest.mark.parametrize("more", [{}, *METHODS.values()], ids=["full", *METHODS])
def test_whoever_calls_the_unet_during_a_run_has_it_in_half_precision_from_an_exact_start(
    home: Any, tmp_path: Path, more: Any
) -> None:
    """Validation, and a caller between two steps; behind the run it is in half precision by itself."""
    pipe, records, store, prior = parts_of(home, more)
    exact = start(pipe, prior, ["product photo 1"], seeds=3, start="text", look_ahead=0)
    image, (hidden, pooled) = decode(pipe, exact), embed(pipe, ["product photo 1"])
    means, outputs = encode(pipe, image)[0], []

    def look(*_: Any) -> None:
        assert torch.equal(start(pipe, prior, ["product photo 1"], seeds=3, start="text", look_ahead=0), exact)
        assert torch.equal(decode(pipe, exact), image) and torch.equal(encode(pipe, image)[0], means)
        with torch.no_grad():
            outputs.append(predict(pipe.unet, exact, 900, hidden, pooled))

    config = settings(**more | HALF, max_train_steps=1, validation_steps=1)
    for _ in train(pipe, records, store, prior, config, tmp_path, look):
        look()
    assert [noise.dtype for noise in outputs] == [torch.bfloat16] * 2 and torch.equal(*outputs)
    dtype = torch.bfloat16 if more else torch.float32
    with torch.no_grad():
        expected = predict(pipe.unet, exact.to(dtype), 900, hidden.to(dtype), pooled)
    assert expected.dtype == dtype == pipe.unet.dtype
    torch.testing.assert_close(expected.float(), outputs[0].float(), rtol=0.05, atol=0.05)
    assert "forward" not in vars(pipe.unet)
