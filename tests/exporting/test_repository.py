"""`push`, `--push_to_hub`: what is uploaded, by huggingface_hub itself, to a server that stands in for the Hub."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

import onbrand
from hubs import Hub, Repository, asked_by_this_process, served
from onbrand import api, cli
from onbrand.core import Prior
from onbrand.core.prior import joined, save_all
from onbrand.models import lora as lora_files
from onbrand.models import pipeline
from onbrand.models.checkpoint import base_of as base_of_lora
from onbrand.models.denoiser import lora
from worlds import CHECK, MANIFEST_LINE, raises, write_world

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*its mean shows those images"),  # 30 of a class
    pytest.mark.filterwarnings(
        "ignore:Use 'content=<...>' to upload:DeprecationWarning"
    ),  # of httpx, huggingface_hub's
    pytest.mark.slow,
]
START = {"gain": "constant", "start": "mean", "k": 0, "start_timestep": 951}
BRAND = {
    "README.md", "fit.json", "leak.json", "means/block.png", "means/tall block.png", "prior.safetensors",
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a brand fitted with acme/base of the Hub, diagnosed; and of images of it."""
    folder = write_world(tmp_path_factory.mktemp("somewhere-private"))
    with served() as hub, asked_by_this_process(hub, folder / "cache"):
        hub.patch.chdir(folder)
        hub.repositories["acme/base"] = base_of(folder)
        api.fit("photos", "acme/base", "brand", k=4)
        api.diagnose("brand")
        api.train("photos", "acme/base", "run", prior="brand", method="lora", rank=2, max_train_steps=2,
                  train_batch_size=4, validation_steps=2, num_validation_images=2, learning_rate=1e-2)  # fmt: skip
    return folder


def base_of(home: Path) -> Repository:
    files = {str(path.relative_to(home / "model")): path.read_bytes() for path in (home / "model").rglob("*.*")}
    card = b"---\nlicense: creativeml-openrail-m\n---\n# base\n"
    return Repository(files=files | {"README.md": card})


@pytest.fixture
def hub(home: Path, tmp_path: Path) -> Iterator[Hub]:
    with served() as one, asked_by_this_process(one, tmp_path / "cache"):
        one.patch.chdir(home)
        one.repositories["acme/base"] = base_of(home)
        yield one


def run_code(card: ModelCard) -> None:
    """The card's own lines draw an image."""
    code = re.search(r"```python\n(.*?)```", card.text, re.S)[1]
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["image"].size == (16, 16)


def renamed(prior: Prior, model: str) -> Prior:
    return replace(prior, provenance=replace(prior.provenance, model=model))


def check_private(repository: Repository, home: Path) -> None:
    """Nothing of this machine is in there: no folder, no photo, no command."""
    for name, content in repository.files.items():
        for word in (str(home), "somewhere-private", os.environ["HF_TOKEN"], "000.png", "metadata.jsonl", "photos/"):
            assert word.encode() not in content or (word == "000.png" and name == "README.md"), (name, word)
    assert not [name for name in repository.files if re.search("latents|state|log.jsonl|run.json|config.yaml", name)]


def test_a_brand(hub: Hub, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["push", "brand", "--hub_model_id", "acme/brand", "--private"]) == 0
    repository = hub.repositories["acme/brand"]
    assert set(repository.files) == BRAND and repository.private
    check_private(repository, home)
    output = capsys.readouterr().out
    assert "uploads to acme/brand, which is private:" in output
    assert all(f"  {name} (" in output for name in BRAND) and f"wrote {hub.url}/acme/brand" in output
    here = Prior.load("brand")
    assert Prior.from_pretrained("acme/brand").fingerprint == here.fingerprint
    assert repository.files["prior.safetensors"] == Path("brand/prior.safetensors").read_bytes()
    card = ModelCard(repository.files["README.md"].decode())
    assert (card.data.base_model, card.data.license) == ("acme/base", "creativeml-openrail-m")
    assert {"onbrand", "text-to-image", "prior"} <= set(card.data.tags)
    assert 'src="means/tall%20block.png"' in card.text and here.fingerprint in card.text
    for finding in json.loads(Path("brand/leak.json").read_text())["findings"]:
        assert finding["code"] in card.text and finding["sentence"][:40] in card.text
    run_code(card)


def test_a_lora(hub: Hub, home: Path) -> None:
    onbrand.push("run", hub_model_id="acme/lora")
    repository = hub.repositories["acme/lora"]
    assert set(repository.files) == {
        "README.md", "images/validation.png", "lora_kohya.safetensors", "onbrand/config.json",
        "onbrand/prior.safetensors", "pytorch_lora_weights.safetensors",
    }  # fmt: skip
    check_private(repository, home)
    for name in ("pytorch_lora_weights.safetensors", "onbrand/config.json", "onbrand/prior.safetensors"):
        assert repository.files[name] == Path("run/model", name).read_bytes()
    card = ModelCard(repository.files["README.md"].decode())
    assert "lora" in card.data.tags and card.data.base_model == "acme/base"
    run_code(card)


def test_a_model_of_a_place_here(hub: Hub, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The prior's and the LoRA's model are called by a path: the path stays here, and the fingerprints agree."""
    local, run = tmp_path / "brand", tmp_path / "run"
    prior = renamed(Prior.load("brand"), str(home / "model"))
    larger = replace(prior, provenance=replace(prior.provenance, resolution=(32, 24)))
    prior = joined([prior, larger])
    save_all(prior, local)
    pipe = pipeline.load(home / "model")
    for weight in lora(pipe, 2, None, ["to_q"], 0).learned.values():
        weight.data.fill_(0.01)
    lora_files.save(pipe, run / "model", prior, START, str(home / "model"))
    pipeline.save(pipeline.load(home / "model"), tmp_path / "whole", prior, START)
    for name, folder in (("acme/brand", local), ("acme/lora", run), ("acme/whole", tmp_path / "whole")):
        onbrand.push(folder, hub_model_id=name)
        check_private(hub.repositories[name], home)
        assert f"{home / 'model'}, is called model there" in capsys.readouterr().out
        theirs = Prior.from_pretrained(name)
        assert [one.provenance.model for one in theirs.all] == ["model", "model"]
        assert theirs.fingerprint != prior.fingerprint
        assert torch.equal(theirs.mean("block"), prior.mean("block"))
        card = ModelCard(hub.repositories[name].files["README.md"].decode())
        assert card.data.base_model is None and card.data.license is None
    model = pipeline.load("acme/whole")
    assert pipeline.trained_start_of(model)["prior"] == theirs.fingerprint
    run_code(card)
    model = pipeline.load(home / "model", lora="acme/lora")
    assert pipeline.trained_start_of(model)["prior"] == theirs.fingerprint
    assert base_of_lora("acme/lora") == "model"


def test_images_and_what_check_found_are_on_the_card(hub: Hub, tmp_path: Path) -> None:
    source = tmp_path / "brand"
    shutil.copytree("brand", source)
    for row, seeds in (("after", (0, 1, 2, 3, 4, 5)), ("before", (3, 4, 5, 6, 7, 8))):
        folder = source / "images" / row
        folder.mkdir(parents=True)
        for index, seed in enumerate(seeds):
            Image.new("RGB", (8, 8), (seed, 0, 0)).save(folder / f"{index:05d}.png")
        lines = [
            MANIFEST_LINE | {"index": index, "file": f"{index:05d}.png", "prompt": "a", "seed": seed}
            for index, seed in enumerate(seeds)
        ]
        (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        rate = {"rate": 0.25, "low": 0.1, "high": 0.5, "n": 6}
        light = {"title": "lit | as <photos>", "rule": "", **rate}
        about = {"against": "/secret", "command": "onbrand check /secret", "schema": 2}
        about |= {"images": [{"file": "secret.png", "failed": [], "values": {}}]}
        content = CHECK | {"all": rate, "properties": {"light": light}} | about
        (folder / "check.json").write_text(json.dumps(content))
    onbrand.push(source, hub_model_id="acme/shown")
    files = hub.repositories["acme/shown"].files
    for row, first in (("after", 3), ("before", 0)):  # the same seeds of both
        shown = sorted(name for name in files if name.startswith(f"images/{row}/"))
        assert shown == [*(f"images/{row}/{i}.png" for i in range(3)), f"images/{row}/check.json"]
        assert files[f"images/{row}/0.png"] == (source / "images" / row / f"{first:05d}.png").read_bytes()
    assert not [name for name, content in files.items() if b"secret" in content]
    card = files["README.md"].decode()
    assert (
        "| | after | before |" in card and "lit &#124; as &lt;photos&gt; | 25\u00a0% (10 to 50\u00a0%, n = 6)" in card
    )
    assert card.count("<img") == 2 + 6


def test_a_card_of_ones_own_and_what_an_upload_before_has_left(hub: Hub, tmp_path: Path) -> None:
    source = tmp_path / "brand"
    shutil.copytree("brand", source)
    (source / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    old = {"buckets/24x32/prior.safetensors": b"old", "means/gone.png": b"old", "notes.txt": b"somebody's"}
    hub.repositories["acme/brand"] = Repository(files=dict(old))
    onbrand.push(source, hub_model_id="acme/brand")
    files = hub.repositories["acme/brand"].files
    assert set(files) == BRAND | {"notes.txt", "means/gone.png"} and files["README.md"].endswith(b"# Mine\n")
    onbrand.push(source, hub_model_id="acme/brand")
    assert len(hub.repositories["acme/brand"].messages) == 2


@pytest.mark.parametrize(
    ("name", "token", "private", "values"),
    [
        ("acme/new", None, False, ("'acme/new'", "token that may write", "hf auth login", "HF_TOKEN")),
        ("acme/new", "hf_wrong", False, ("'acme/new'", "this token")),
        ("acme/new", "hf_reader", False, ("'acme/new'", "no right", "to write")),
        ("acme/base", "hf_reader", False, ("'acme/base'", "no right")),
        ("other/new", "hf_acme", False, ("'other/new'", "no right")),
        ("acme/base", "hf_acme", True, ("'acme/base'", "public", "private")),
        ("a/b/c", "hf_acme", False, ("'a/b/c'", "owner/name")),
    ],
)  # fmt: skip
def test_what_may_not_be_written_is_said_before_any_work(
    hub: Hub, tmp_path: Path, name: str, token: str | None, private: bool, values: tuple[str, ...]
) -> None:
    hub.patch.delenv("HF_TOKEN") if token is None else hub.patch.setenv("HF_TOKEN", token)
    before = hub.repositories["acme/base"].sha
    with raises("hub", *values):
        api.fit("photos", "nothing", tmp_path / "out", push_to_hub=True, hub_model_id=name, private=private)
    with raises("hub", *values):
        api.push("brand", hub_model_id=name, private=private)
    assert not (tmp_path / "out").exists()
    assert list(hub.repositories) == ["acme/base"] and hub.repositories["acme/base"].sha == before


def test_options_that_do_not_go_together() -> None:
    for options in ({"push_to_hub": True}, {"hub_model_id": "acme/brand"}, {"private": True}):
        with raises("option", next(iter(options)), "no effect"):
            api.fit.options("photos", "tiny", "out", **options)
        with raises("option", next(iter(options)), "no effect"):
            api.train.options("photos", "tiny", "out", **options)


@pytest.mark.parametrize("fault", [("POST .*/commit/", 503), ("POST .*/commit/", None)])
def test_a_result_is_kept_if_it_is_not_taken_and_the_line_says_how_it_is_uploaded(
    hub: Hub, tmp_path: Path, fault: tuple[str, int | None], capsys: pytest.CaptureFixture[str]
) -> None:
    hub.faults = [fault]
    words = ["fit", "photos", "--model", "acme/base", "--output_dir", str(tmp_path / "b c"), "--k", "4"]
    assert cli.main([*words, "--push_to_hub", "--hub_model_id", "acme/new"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("onbrand: error")]
    command = re.search(r"`onbrand (push .*)`", line)[1]
    assert (tmp_path / "b c" / "fit.json").is_file() and not hub.repositories["acme/new"].files
    assert cli.main(shlex.split(command)) == 0
    assert set(hub.repositories["acme/new"].files) == BRAND - {"leak.json"}


def test_no_network_is_found_before_any_work(hub: Hub, tmp_path: Path) -> None:
    hub.patch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with raises("hub", "'acme/brand'", "does not answer", "refused"):
        api.fit("photos", "nothing", tmp_path / "out", push_to_hub=True, hub_model_id="acme/brand")
    hub.patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with raises("hub", "'acme/brand'", "HF_HUB_OFFLINE"):
        api.push("brand", hub_model_id="acme/brand")


def test_the_command_in_a_process_of_its_own(hub: Hub, tmp_path: Path) -> None:
    """Nothing of this process is patched there: the environment says where the Hub is."""
    words = [sys.executable, "-m", "onbrand", "push", "brand", "--hub_model_id", "acme/brand"]
    environment = os.environ | hub.environment | {"HF_HOME": str(tmp_path)}
    assert subprocess.run(words, env=environment).returncode == 0
    assert set(hub.repositories["acme/brand"].files) == BRAND
    del environment["HF_TOKEN"]
    refused = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert refused.returncode == 2 and "hf auth login" in refused.stderr and "Traceback" not in refused.stderr


@pytest.mark.parametrize("place", ["PUT /lfs/", "POST .*/preupload/"])
def test_the_hub_is_down_for_a_moment(hub: Hub, place: str) -> None:
    hub.faults = [(place, 503)]
    api.push("brand", hub_model_id="acme/brand")
    assert set(hub.repositories["acme/brand"].files) == BRAND and not hub.faults


def test_a_run_goes_to_the_hub_when_it_is_done(hub: Hub, tmp_path: Path) -> None:
    api.train("photos", "acme/base", tmp_path / "run", prior="brand", max_train_steps=1, train_batch_size=2,
              push_to_hub=True, hub_model_id="acme/run", private=True)  # fmt: skip
    repository = hub.repositories["acme/run"]
    assert repository.private and "model_index.json" in repository.files
    check_private(repository, tmp_path)
    assert "push_to_hub" not in (tmp_path / "run" / "config.yaml").read_text()
    assert pipeline.trained_start_of(pipeline.load("acme/run")) == pipeline.trained_start_in(tmp_path / "run")


def test_a_model_in_one_file(hub: Hub, home: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    pipeline.save(pipeline.load(home / "model"), tmp_path / "one", single_file=True)
    onbrand.push(tmp_path / "one", hub_model_id="acme/one")
    files = hub.repositories["acme/one"].files
    assert set(files) == {"README.md", "model.safetensors"} and b"checkpoints" in files["README.md"]


@pytest.mark.parametrize("what", ["nothing", "a file", "a link"])
def test_what_is_not_for_the_hub(hub: Hub, tmp_path: Path, what: str) -> None:
    source = tmp_path / "source"
    if what == "a link":
        shutil.copytree("brand", source)
        (source / "means" / "block.png").unlink()
        (source / "means" / "block.png").symlink_to(tmp_path.parent)
    elif what == "a file":
        source.write_bytes(b"x")
    with raises("folder", source):
        api.push(source, hub_model_id="acme/brand")
    assert not hub.repositories["acme/brand"].files
