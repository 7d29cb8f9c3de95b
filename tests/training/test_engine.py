"""How a run is computed: batches ahead, exact products, a state of another machine, compiled, offloaded, too little."""

import re
import threading
import time
import warnings
from contextlib import closing
from dataclasses import replace
from functools import partial, partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from job import open_all, settings
from test_resume import CONTROL, EVERYTHING, LORA, same
from torch import nn

from onbrand.cli import main
from onbrand.models.optim import optimizer_of
from onbrand.models.pipeline import decode
from onbrand.training import captions
from onbrand.training.batches import Batches
from onbrand.training.export import save_model
from onbrand.training.loop import train
from onbrand.training.state import check_same, read_state, save_state, settings_of
from worlds import predict, raises

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
TRACED = pytest.mark.filterwarnings("ignore")  # torch warns of itself while it traces and compiles
AHEAD = {"prefetch": True}


@pytest.fixture
def makers(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The threads in which batches were made, in their order; beside the network it takes longer than the step."""
    threads, make, here = [], Batches.__call__, threading.current_thread()

    def call(self: Any, positions: Any) -> Any:
        time.sleep(0.0 if threading.current_thread() is here else 0.5)
        batch = make(self, positions)
        threads.append(threading.current_thread())
        return batch

    monkeypatch.setattr(Batches, "__call__", call)
    return threads


@pytest.mark.parametrize("more", [{}, LORA, CONTROL], ids=["full", "lora", "controlnet"])
def test_batches_made_ahead_are_the_same_bytes(home: Any, tmp_path: Path, more: Any) -> None:
    for out, engine in (("plain", {}), ("ahead", AHEAD)):
        parts = open_all(home, method=more.get("method", "full"))
        list(train(*parts, settings(**EVERYTHING | more | engine), tmp_path / out))
    same(tmp_path / "plain", tmp_path / "ahead")


def test_the_next_batch_is_made_beside_the_network_and_nothing_between_two_steps(
    home: Any, tmp_path: Path, makers: Any
) -> None:
    before = set(threading.enumerate())
    with closing(train(*open_all(home), settings(max_train_steps=3, prefetch=True), tmp_path)) as run:
        for count in (2, 3, 3):
            next(run)
            assert len(makers) == count, "none behind the last step"
    here, *others = makers
    assert here is threading.current_thread() and here not in others and len(set(others)) == 1
    assert set(threading.enumerate()) == before


def test_a_closed_run_ends_its_thread(home: Any, tmp_path: Path) -> None:
    before = set(threading.enumerate())
    run = train(*open_all(home), settings(max_train_steps=9, prefetch=True), tmp_path)
    next(run)
    assert set(threading.enumerate()) > before
    run.close()
    assert set(threading.enumerate()) == before


def test_on_a_cpu_nothing_is_made_ahead_unless_asked_for(home: Any, tmp_path: Path, makers: Any) -> None:
    list(train(*open_all(home), settings(max_train_steps=2), tmp_path))
    assert set(makers) == {threading.current_thread()}


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run_whose_captions_do_not_fit_in_memory_has_the_same_bytes(
    home: Any, tmp_path: Path, makers: Any, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Also made ahead, and beside a text encoder that learns, whose captions are tokens and small."""
    options = {"method": method, "max_train_steps": 2, "prefetch": True}
    options |= {"rank": 2, "train_text_encoder": True} if method == "lora" else {}
    losses = []
    for out, limit in (("memory", 2**30), ("file", 0)):
        monkeypatch.setattr(captions.Captions.__init__, "__defaults__", (limit, False, None))
        losses.append([step.loss for step in train(*open_all(home), settings(**options), tmp_path / out)])
        assert makers[-1] is not threading.current_thread()
        assert not list((tmp_path / out).glob(".captions*"))
    options |= {"max_train_steps": 9, "checkpointing_steps": 1}
    parts = open_all(home)
    run = train(*parts, config := settings(**options), tmp_path / "stopped")
    next(run)
    run.close()
    save_model(parts[0], parts[3], config, tmp_path / "stopped")  # as early stopping ends a run
    assert not list((tmp_path / "stopped").glob(".captions*"))
    assert losses[0] == losses[1]


def test_what_a_batch_stumbles_on_comes_out_of_the_loop_at_its_step(
    home: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, records, store, prior = open_all(home)
    error, get, calls = OSError("the disk is gone"), store.get, []

    def read(*args: Any) -> Any:
        calls.append(args)
        if len(calls) > 3:  # one before the first step, in the check
            raise error
        return get(*args)

    monkeypatch.setattr(store, "get", read)
    run = train(pipe, records, store, prior, settings(prefetch=True), tmp_path)
    assert [next(run).step for _ in range(2)] == [1, 2]
    with pytest.raises(OSError) as caught:
        next(run)
    assert caught.value is error
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2


def test_a_run_is_resumed_with_prefetch_or_without_but_not_with_other_products() -> None:
    record = settings_of(settings()) | {"total_batch_size": 4}
    check_same(record, settings(prefetch=True), 4)
    with raises("resume", "allow_tf32", False, True):
        check_same(record, settings(allow_tf32=True), 4)


@pytest.mark.parametrize("allowed", [False, True])
def test_products_are_rounded_where_asked_for_and_behind_a_run_as_before(
    home: Any, tmp_path: Path, allowed: Any
) -> None:
    def flags() -> Any:
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    before = flags()
    run = train(*open_all(home), settings(allow_tf32=allowed), tmp_path)
    next(run)
    assert flags() == (allowed, allowed)
    run.close()
    assert flags() == before


@pytest.mark.parametrize("fused", [True, None])
def test_an_optimiser_state_of_a_gpu_is_gone_on_with(home: Any, tmp_path: Path, fused: Any) -> None:
    """There the step is fused, its weights have channels last and it counts in tensors of the device."""
    through, parts = settings(max_train_steps=4), settings(max_train_steps=2)
    list(train(*open_all(home), through, tmp_path / "whole"))
    list(train(*open_all(home), parts, tmp_path / "parts"))
    state = read_state(tmp_path / "parts" / "state" / "step-00000002")
    for moments in state.optimizer["state"].values():
        for name, moment in moments.items():
            if moment.ndim == 4:
                moments[name] = moment.contiguous(memory_format=torch.channels_last)
    state.optimizer["param_groups"][0]["fused"] = fused
    save_state(tmp_path / "parts" / "state", state, limit=1)
    list(train(*open_all(home), replace(parts, max_train_steps=4), tmp_path / "parts"))
    same(tmp_path / "whole", tmp_path / "parts")


def test_moments_lie_in_memory_as_their_weights_do(home: Any, tmp_path: Path) -> None:
    """As a fused step needs it: a run of a CPU, gone on with by weights that have channels last."""
    list(train(*open_all(home), settings(max_train_steps=1), tmp_path))
    pipe, *rest = open_all(home)
    pipe.unet.to(memory_format=torch.channels_last)
    run = train(pipe, *rest, settings(max_train_steps=3), tmp_path)
    next(run)
    optimizer = run.gi_frame.f_locals["accelerator"]._optimizers[-1]
    weight = pipe.unet.conv_in.weight
    assert weight.stride(1) == 1 and weight.shape[1] > 1
    assert {optimizer.state[weight][name].stride() for name in ("exp_avg", "exp_avg_sq")} == {weight.stride()}


@GPU
def test_on_a_gpu_the_step_is_fused_and_gone_on_with_from_a_cpus_state(home: Any, tmp_path: Path) -> None:
    list(train(*open_all(home), settings(max_train_steps=1), tmp_path))
    AcceleratorState._reset_state(reset_partial_state=True)
    pipe, *rest = open_all(home)
    list(train(pipe.to("cuda"), *rest, settings(max_train_steps=3, mixed_precision="no"), tmp_path))
    weight = torch.nn.Parameter(torch.zeros(2, device="cuda"))
    assert optimizer_of("adamw")([weight], 1e-3).defaults["fused"]


@GPU
@pytest.mark.parametrize("more", [{}, {"start": "pca"}, {"start": "text"}, LORA, CONTROL], ids=str)
def test_on_a_gpu_a_step_waits_for_it_once(home: Any, tmp_path: Path, more: Any) -> None:
    """By torch's own count of calls that wait; of the thread that makes batches too."""
    pipe, *rest = open_all(home, method=more.get("method", "full"))
    config = settings(**more | {"max_train_steps": 9, "learning_rate": 1e-3, "ema_decay": 0.9})
    run = train(pipe.to("cuda"), *rest, config, tmp_path)
    next(run), next(run)
    with warnings.catch_warnings(record=True) as waits:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        next(run)
        torch.cuda.set_sync_debug_mode("default")
    assert len([wait for wait in waits if "called a synchronizing" in str(wait.message)]) == 1
    run.close()


@GPU
@TRACED
def test_compiled_for_a_gpu_a_run_learns_the_same(home: Any, tmp_path: Path) -> None:
    losses = []
    for is_compiled in (False, True):
        AcceleratorState._reset_state(reset_partial_state=True)
        pipe, *rest = open_all(home)
        options = {"learning_rate": 1e-3, "adam_epsilon": 1e-3, "compile": is_compiled, "mixed_precision": "no"}
        run = train(pipe.to("cuda"), *rest, settings(max_train_steps=4, **options), tmp_path / str(is_compiled))
        losses.append([step.loss for step in run])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def by(backend: Any) -> Any:
    """nn.Module.compile with another backend: one that needs no C++ compiler, or one that is wrong."""
    torch.compiler.reset()
    return partialmethod(nn.Module.compile, backend=backend)


@pytest.mark.slow
@TRACED
def test_a_compiled_run_is_the_same_run_with_the_same_names(
    home: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the backend that traces and computes as before; validation, in other shapes, is not compiled."""
    monkeypatch.setattr(nn.Module, "compile", by("eager"))
    options = EVERYTHING | LORA | {"validation_steps": 2}
    list(train(*open_all(home), settings(**options), tmp_path / "plain", lambda pipe, step: None))
    graphs = []
    monkeypatch.setattr(nn.Module, "compile", by(lambda graph, inputs: graphs.append(inputs) or graph.forward))
    pipe, *rest = open_all(home)

    def show(pipe: Any, step: Any) -> None:
        before = len(graphs)
        sample = torch.zeros(3, 4, 8, 8), 7, torch.zeros(3, 32, 16)
        assert predict(pipe.unet, *sample).shape == (3, 4, 8, 8) and len(graphs) == before > 0

    list(train(pipe, *rest, settings(**options | {"compile": True}), tmp_path / "ours", show))
    same(tmp_path / "plain", tmp_path / "ours")
    before = len(graphs)
    predict(pipe.unet, torch.zeros(1, 4, 8, 8), 7, torch.zeros(1, 32, 16))
    assert len(graphs) == before, "behind the run it is as it was"


def scaled(factor: Any) -> Any:
    return lambda graph, _: lambda *args: [part * factor for part in graph.forward(*args)]


def cut(graph: Any, _: Any) -> Any:
    def call(*args: Any) -> Any:
        return graph.forward(*(part.detach() if torch.is_tensor(part) and part.ndim == 2 else part for part in args))

    return call


@pytest.mark.parametrize("wrong", [scaled(0.5), scaled(float("nan")), cut], ids=["half", "no number", "cut off"])
def test_networks_that_are_compiled_wrong_are_refused_before_the_first_step(
    home: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: Any
) -> None:
    """Cut off, as torch 2.13 does on a CPU: some weights learn nothing, and the loss does not tell."""
    monkeypatch.setattr(nn.Module, "compile", by(wrong))
    with raises("training", torch.__version__, "compile") as caught:
        next(train(*open_all(home), settings(compile=True), tmp_path))
    rate = re.search(r"(\d+)%", str(caught.value))
    assert rate and int(rate[1]) > 10 and not (tmp_path / "log.jsonl").exists(), "NaN is not alike"


@TRACED
def test_gradients_that_are_no_numbers_anyway_are_not_compilings_fault(
    home: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nn.Module, "compile", by("eager"))
    pipe, *rest = open_all(home)
    with torch.no_grad():
        pipe.unet.conv_in.bias.fill_(float("nan"))
    with raises("training", "not finite before anything is compiled", "another model"):
        next(train(pipe, *rest, settings(compile=True), tmp_path))


@pytest.mark.prove
@TRACED
@pytest.mark.parametrize("more", [{}, LORA], ids=["full", "lora"])
def test_compiled_by_torch_a_run_learns_the_same_or_is_refused(home: Any, tmp_path: Path, more: Any) -> None:
    """torch 2.13 compiles the whole UNet's gradients wrong on a CPU; minutes of a C++ compiler."""
    losses = {}
    for is_compiled in (False, True):
        options = {"max_train_steps": 3, "learning_rate": 1e-3, "adam_epsilon": 1e-3, "compile": is_compiled}
        try:
            losses[is_compiled] = [
                step.loss for step in train(*open_all(home), settings(**more | options), tmp_path / str(is_compiled))
            ]
        except ValueError as error:
            assert is_compiled and "wrong" in str(error)
            return
    assert losses[True] == pytest.approx(losses[False], rel=1e-4)


@pytest.mark.parametrize("more", [{}, LORA, CONTROL], ids=["full", "lora with the text encoder", "controlnet"])
def test_what_no_step_needs_waits_on_the_cpu_and_changes_nothing(home: Any, tmp_path: Path, more: Any) -> None:
    parts_of = partial(open_all, home, method=more.get("method", "full"))
    config = settings(**EVERYTHING | more | {"max_train_steps": 3, "validation_steps": 2})
    list(train(*parts_of(), config, tmp_path / "plain", lambda pipe, step: None))
    pipe, *rest = parts_of()
    observations, whole = [], decode(pipe, torch.ones(3, 4, 8, 8))

    def show(pipe: Any, step: Any) -> None:
        parts = {name: hasattr(getattr(pipe, name), "_hf_hook") for name in ("vae", "text_encoder", "unet")}
        observations.append((parts, pipe.vae.use_slicing, pipe.vae.use_tiling, decode(pipe, torch.ones(3, 4, 8, 8))))

    offload = replace(config, offload=True)
    list(train(pipe, *rest, offload, tmp_path / "away", show))
    same(tmp_path / "plain", tmp_path / "away")
    (parts, slicing, tiling, images), *_ = observations
    assert parts == {"vae": True, "text_encoder": more is not LORA, "unet": False} and slicing and tiling
    torch.testing.assert_close(images, whole, rtol=1e-4, atol=1e-5)
    assert not hasattr(pipe.vae, "_hf_hook") and not pipe.vae.use_slicing and not pipe.vae.use_tiling


def test_a_gpu_without_memory_is_one_line_with_the_settings_to_change(
    home: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    message = (
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 1.00 GiB. See documentation."
    )
    monkeypatch.setattr(Batches, "__call__", raising(torch.OutOfMemoryError(message)))
    photos, model, prior = (str(home / name) for name in ("photos", "model", "prior.safetensors"))
    arguments = ["train", photos, "--model", model, "--prior", prior, "--device", "cpu"]
    arguments += ["--output_dir", str(tmp_path / "run")]
    assert main(arguments) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "memory (CUDA out of memory. Tried to allocate 2.00 GiB): take a smaller train_batch_size" in line
    remedies = "gradient_accumulation_steps", "gradient_checkpointing", "offload", "mixed_precision bf16"
    assert all(name in line for name in (*remedies, "resolution"))
    monkeypatch.setattr(Batches, "__call__", raising(RuntimeError("another")))
    with pytest.raises(RuntimeError, match="another"):
        main(arguments)


def raising(error: Any) -> Any:
    def call(*_: Any) -> None:
        raise error

    return call


def test_runs_of_one_process_may_have_other_precisions(home: Any, tmp_path: Path) -> None:
    """As in a notebook: accelerate by itself refuses the second."""
    for place, precision in enumerate(("bf16", "no", "bf16")):
        pipe, records, store, prior = open_all(home)
        config = settings(max_train_steps=1, mixed_precision=precision)
        assert len(list(train(pipe, records, store, prior, config, tmp_path / str(place)))) == 1
