"""What is fetched from the Hub: priors, what lies beside a model, LoRAs; and what is said when it cannot be had."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hubs import Hub, Repository, asked_by_this_process, served
from onbrand.api._inputs import open_prior
from onbrand.core import Prior
from onbrand.core.prior import joined, save_all
from onbrand.models import lora as lora_files
from onbrand.models import pipeline
from onbrand.models.denoiser import lora
from worlds import raises, tiny_pipeline, tiny_prior


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with served() as one, asked_by_this_process(one, tmp_path / "cache"):
        one.patch.chdir(tmp_path)
        yield one


def files_of(folder: Path) -> dict[str, bytes]:
    """A folder as a repository holds it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def prior(pipe: Any, tmp_path: Path, hub: Hub) -> Prior:
    """One of two sizes; acme/brand has it at its top, acme/model in onbrand/, acme/many in a/b."""
    one = tiny_prior(pipe)
    other = replace(tiny_prior(tiny_pipeline(size=32), k=2), provenance=replace(one.provenance, resolution=(32, 32)))
    both = joined([one, other])
    for name, place in (("acme/brand", ""), ("acme/model", "onbrand"), ("acme/many", "a/b")):
        save_all(both, tmp_path / "saved" / name / place)
        hub.repositories[name] = Repository(files=files_of(tmp_path / "saved" / name))
    hub.repositories["acme/model"].files["unet/diffusion_pytorch_model.safetensors"] = b"large"
    return both


@pytest.mark.parametrize(("name", "subfolder"), [("acme/brand", ""), ("acme/model", ""), ("acme/many", "a/b")])
def test_a_prior_comes_with_all_its_sizes_and_nothing_else(
    prior: Prior, hub: Hub, tmp_path: Path, name: str, subfolder: str
) -> None:
    for place in (name, tmp_path / "saved" / name):
        one = Prior.from_pretrained(place, subfolder=subfolder)
        assert [each.fingerprint for each in one.all] == [each.fingerprint for each in prior.all]
    assert not [line for line in hub.asked if "unet" in line]
    hub.patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert Prior.from_pretrained(name, subfolder=subfolder).fingerprint == prior.fingerprint, "kept here"


def test_a_changed_repository_is_fetched_anew(prior: Prior, hub: Hub, tmp_path: Path) -> None:
    first = hub.repositories["acme/brand"].sha
    assert len(Prior.from_pretrained("acme/brand").all) == 2
    alone = (tmp_path / "saved" / "acme" / "brand" / "prior.safetensors").read_bytes()
    hub.repositories["acme/brand"].files = {"prior.safetensors": alone}
    assert len(Prior.from_pretrained("acme/brand").all) == 1
    assert len(Prior.from_pretrained("acme/brand", revision=hub.repositories["acme/brand"].sha).all) == 1
    with raises("prior", "acme/brand", "revision"):
        Prior.from_pretrained("acme/brand", revision="v2")
    hub.patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert len(Prior.from_pretrained("acme/brand", revision=first).all) == 2


@pytest.mark.parametrize(
    ("name", "token", "values"),
    [
        ("acme/nothing", "hf_acme", ("'acme/nothing'", "look at its name", "no folder")),
        ("acme/nothing", None, ("without a token", "hf auth login", "HF_TOKEN")),
        ("acme/private", None, ("'acme/private'", "without a token", "HF_TOKEN")),
        ("acme/private", "hf_reader", ("this token", "private")),
        ("acme/private", "hf_wrong", ("this token", "hf auth login")),
        ("acme/gated", "hf_acme", ("ask for it on its page",)),
        ("acme/stock", "hf_acme", ("acme/stock", "prior.safetensors or onbrand/prior.safetensors", "onbrand fit")),
        ("acme--x/..", "hf_acme", ("owner/name",)),
        ("a/b/c", "hf_acme", ("owner/name",)),
    ],
)  # fmt: skip
def test_what_cannot_be_had_is_said_in_one_line(
    hub: Hub, name: str, token: str | None, values: tuple[str, ...]
) -> None:
    hub.repositories = {
        "acme/private": Repository(private=True), "acme/gated": Repository(gated=True),
        "acme/stock": Repository(files={"README.md": b"# stock"}),
    }  # fmt: skip
    hub.patch.delenv("HF_TOKEN") if token is None else hub.patch.setenv("HF_TOKEN", token)
    before = time.monotonic()
    with raises("prior", *values) as caught:
        Prior.from_pretrained(name)
    assert "\n" not in str(caught.value) and time.monotonic() - before < 3


def test_no_network(prior: Prior, hub: Hub) -> None:
    hub.patch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    before = time.monotonic()
    with raises("prior", "'acme/brand'", "does not answer", "refused"):
        Prior.from_pretrained("acme/brand")
    hub.patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with raises("prior", "'acme/brand'", "HF_HUB_OFFLINE"):
        Prior.from_pretrained("acme/brand")
    assert time.monotonic() - before < 5


def test_a_download_that_is_cut_goes_on_by_itself(prior: Prior, hub: Hub) -> None:
    hub.faults = [("GET .*/resolve/.*", None)]
    assert Prior.from_pretrained("acme/brand").fingerprint == prior.fingerprint
    assert not hub.faults


@pytest.mark.parametrize("place", ["GET /api/models", "GET .*/resolve/"])
def test_the_hub_is_down_for_a_moment(prior: Prior, hub: Hub, place: str) -> None:
    hub.faults = [(place, 503)]
    with raises("prior", "'acme/brand'", "503", "again"):
        Prior.from_pretrained("acme/brand")
    assert Prior.from_pretrained("acme/brand").fingerprint == prior.fingerprint


def test_a_folder_asks_nothing_of_the_hub(hub: Hub, tmp_path: Path, prior: Prior) -> None:
    assert torch.equal(Prior.load(tmp_path / "saved/acme/brand").mean("product photo"), prior.mean("product photo"))
    Prior.from_pretrained(tmp_path / "saved/acme/brand")
    assert not hub.asked


START = {"gain": "constant", "start": "mean", "k": 0, "start_timestep": 951}


def test_a_models_prior_and_start_come_with_it(hub: Hub, tmp_path: Path, pipe: Any) -> None:
    pipeline.save(pipe, tmp_path / "saved", tiny_prior(pipe), START)
    hub.repositories["acme/sd"] = Repository(files=files_of(tmp_path / "saved"))
    record = pipeline.trained_start_in(tmp_path / "saved")
    for offline in (False, True):
        hub.patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
        model = pipeline.load("acme/sd")
        assert pipeline.trained_start_of(model) == record and model.config["_name_or_path"] == "acme/sd"
        found = open_prior(None, "acme/sd")
        assert found is not None and found.fingerprint == tiny_prior(pipe).fingerprint
        assert open_prior("acme/sd").fingerprint == found.fingerprint
    # as diffusers itself loads it, which fetches nothing of onbrand/
    hub.patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "other"))
    hub.patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    theirs = type(pipe).from_pretrained("acme/sd", cache_dir=str(tmp_path / "other"))
    assert pipeline.trained_start_of(theirs) == record


def test_a_pipeline_whose_repository_cannot_be_asked_is_plain_and_said_to_be(hub: Hub) -> None:
    other = tiny_pipeline()
    other.register_to_config(_name_or_path="acme/gone")
    with pytest.warns(UserWarning, match="acme/gone.*trained_start|trained_start.*acme/gone"):
        assert pipeline.trained_start_of(other) is None


@pytest.mark.parametrize("as_model", [True, False])
def test_a_lora_of_the_hub(hub: Hub, tmp_path: Path, pipe: Any, as_model: bool) -> None:
    pipe.save_pretrained(tmp_path / "base")
    learner = tiny_pipeline()
    for weight in lora(learner, 2, None, ["to_q"], 0).learned.values():
        weight.data.fill_(0.01)
    lora_files.save(learner, tmp_path / "saved", tiny_prior(pipe), START, str(tmp_path / "base"))
    hub.repositories["acme/lora"] = Repository(files=files_of(tmp_path / "saved"))
    model = pipeline.load("acme/lora") if as_model else pipeline.load(tmp_path / "base", lora="acme/lora")
    assert pipeline.trained_start_of(model)["start_timestep"] == 951
    assert open_prior(None, "acme/lora").fingerprint == tiny_prior(pipe).fingerprint
    hub.repositories["acme/none"] = Repository(files={"README.md": b""})
    with raises("checkpoint", "acme/none", "a repository without"):
        pipeline.load(tmp_path / "base", lora="acme/none")
