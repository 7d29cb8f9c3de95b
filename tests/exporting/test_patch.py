"""`onbrand patch` on scripts written here, of the structure that diffusers' and kohya's have."""

from __future__ import annotations

import subprocess
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler

from datasets import Dataset
from onbrand import api, cli
from onbrand.core import constant, matched_noise
from worlds import raises, tiny_pipeline, tiny_prior

LOOP = """\
from argparse import Namespace

import torch
from diffusers import DDPMScheduler


def main(rows, args, scheduler):
    def collate(examples):
        return {"x0": torch.tensor([example["x0"] for example in examples])}

    loader = torch.utils.data.DataLoader(rows, batch_size=4, collate_fn=collate)
    for step, batch in enumerate(loader):
        latents = batch["x0"]
        noise = torch.randn_like(latents)
        if args.noise_offset > 0:
            noise += args.noise_offset * torch.randn(len(latents), 4, 1, 1)
        timesteps = torch.randint(0, 1000, (len(latents),))

        # the forward process
        if args.input_perturbation:
            noisy = scheduler.add_noise(latents, noise + torch.randn_like(noise), timesteps)
        else:
            noisy = scheduler.add_noise(latents.float(), noise.float(), timesteps).to(torch.float32)
        yield noisy, noise, timesteps


# the end"""
CALL = """\
import train_util


class Trainer:
    def step(self, args, scheduler, latents, batch):
        noise, noisy, timesteps = train_util.get_noise_noisy_latents_and_timesteps(
            args, scheduler, latents
        )
        return noise, noisy, timesteps
"""
DRAW = "        noise = torch.randn_like(latents)\n"


def write(folder: Path, text: str, name: str = "train.py") -> Path:
    (folder / name).write_bytes(text.encode())
    return folder / name


def names_of(file: Path, **others: Any) -> dict[str, Any]:
    """What a patched script defines."""
    names = others
    exec(compile(file.read_text(encoding="utf-8-sig"), file.name, "exec"), names)
    return names


def args_of(folder: Path, **settings: Any) -> Any:
    return Namespace(
        **{"noise_offset": 0, "input_perturbation": 0, "caption_column": None, "output_dir": folder} | settings
    )


@pytest.fixture
def prior(tmp_path: Path) -> Any:
    """In brand/, of two classes."""
    prior = tiny_prior(tiny_pipeline(family="sd"), ("block", "tall block"))
    prior.save(tmp_path / "brand" / "prior.safetensors")
    return prior


def test_a_patched_loop_trains_on_matched_noise(prior: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    api.patch("diffusers", script=write(tmp_path, LOOP), prior=tmp_path / "brand", write=True)
    scheduler, x0 = DDPMScheduler(), torch.randn(4, 4, 8, 8)
    captions = ["Block, red", "tall block", "block", "tall block, red"]
    rows = Dataset.from_dict({"x0": x0.tolist(), "text": captions})
    drawn = torch.randn(4, 4, 8, 8)
    monkeypatch.setattr(torch, "randn_like", lambda _: drawn)
    noisy, noise, t = next(names_of(tmp_path / "train.py")["main"](rows, args_of(tmp_path), scheduler))
    x_start = prior.mean(["block", "tall block", "block", "tall block"])
    expected = matched_noise(drawn, x0, x_start, constant(scheduler, 951)[t])
    torch.testing.assert_close(noise, expected)
    torch.testing.assert_close(noisy, scheduler.add_noise(x0, expected, t))


def test_a_call_of_kohyas_gets_matched_noise(prior: Any, tmp_path: Path) -> None:
    api.patch("kohya", script=write(tmp_path, CALL.replace("import train_util\n", "import torch\n")),
              prior=tmp_path / "brand", start_timestep=999, write=True)  # fmt: skip
    scheduler, x0, noise = DDPMScheduler(), torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    t = torch.tensor([999, 10])

    class Util:
        @staticmethod
        def get_noise_noisy_latents_and_timesteps(*_: Any) -> tuple[Any, None, Any]:
            return noise, None, t

    trainer = names_of(tmp_path / "train.py", train_util=Util)["Trainer"]()
    batch = {"captions": ["tall block, 1girl", "block"]}
    new, noisy, _ = trainer.step(args_of(tmp_path), scheduler, x0, batch)
    expected = matched_noise(noise, x0, prior.mean(["tall block", "block"]), constant(scheduler, 999)[t])
    torch.testing.assert_close(new, expected)
    torch.testing.assert_close(noisy, scheduler.add_noise(x0, expected, t))


VARIANTS = {
    "as it is": LOOP,
    "ends of lines of Windows": LOOP.replace("\n", "\r\n"),
    "a byte order mark": "\ufeff" + LOOP,
    "tabs": LOOP.replace("    ", "\t"),
    "a line that ends with none": LOOP.replace("\n\n\n# the end", ""),
    "separators in texts": LOOP.replace("# the forward process", '# "\x0c\u2028" \x1c'),
    "noise drawn last": LOOP.replace(DRAW, "").replace("\n        # the forward", f"{DRAW}        # the forward"),
    "other names": LOOP.replace("noise", "eps").replace("add_eps", "add_noise").replace("args.eps", "args.noise"),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_patch_applies_and_is_what_write_writes(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "with space").mkdir()
    text = VARIANTS[variant]
    file = write(tmp_path, text, "with space/train.py")
    file.chmod(0o755)
    diff = api.patch("diffusers", script="with space/train.py")
    assert file.read_bytes() == text.encode(), "nothing is written unasked"
    assert diff == capsys.readouterr().out
    (tmp_path / "one.patch").write_bytes(diff.encode())
    subprocess.run(["git", "apply", "--whitespace=nowarn", "one.patch"], check=True)
    applied = file.read_bytes()
    file.write_bytes(text.encode())
    assert api.patch("diffusers", script=file, write=True) and file.read_bytes() == applied
    assert file.stat().st_mode & 0o777 == 0o755
    compile(applied, "train.py", "exec")
    ends = {line[-2:] for line in applied.split(b"\n")[:-1]}
    assert all(end.endswith(b"\r") for end in ends) or not any(end.endswith(b"\r") for end in ends)
    removed = [line for line in diff.splitlines() if line.startswith("-") and not line.startswith("---")]
    assert removed == [], "lines are added, none is changed"


REFUSED = {
    "no noise": (LOOP.replace(DRAW, ""), "one statement `noise = torch.randn_like(latents)`", "none"),
    "noise twice": (LOOP + LOOP.partition("import DDPMScheduler\n")[2].replace("main", "other"), "has 2"),
    "offset noise": (
        LOOP.replace(DRAW, DRAW.replace("\n", " + 0.1 * torch.randn(4, 4, 1, 1)\n")),
        "line 14 draws more",
    ),
    "offset noise below": (LOOP.replace(DRAW, DRAW + "        noise += 0.1\n"), "line 15 changes the noise"),
    "offset noise by another setting": (LOOP.replace("if args.noise_offset", "if args.shift"), "line 16 changes"),
    "pyramid noise": (LOOP.replace(DRAW, DRAW + "        noise = pyramid(noise)\n"), "line 15 changes"),
    "other noise": (LOOP.replace("noise.float()", "other"), "line 23 must add_noise(latents, noise, timesteps)"),
    "two statements in a line": (
        LOOP.replace(
            "\n        if args.noise_offset", "; noisy = scheduler.add_noise(latents, noise, 3)\n        if 0"
        ),
        "line 14 holds two statements",
    ),
    "no settings": (LOOP.replace("args", "settings"), "of a script with its args"),
    "no DataLoader": (LOOP.replace("DataLoader", "Reader"), "one loop over a DataLoader"),
    "another loop": (LOOP.replace("enumerate(loader)", "enumerate(others)"), "one loop over a DataLoader"),
    "no import": (LOOP.partition("\n\n\n")[2], "an import"),
    "kohya's": (CALL, "cannot be patched as one of diffusers"),
    "empty": ("", "none"),
    "no Python": ("{ not Python", "is no Python"),
    "a notebook": ('{"cells": [null]}\n', "one statement"),
    "NUL": ("a = 1\0", "is no Python"),
    "another encoding": ("# \udce9", "is no Python"),
    "already patched": (f"from onbrand.core import Prior\n{LOOP}", "calls onbrand already, line 1"),
    "already patched, within": (LOOP.replace(DRAW, f"{DRAW}        from onbrand.core import gain\n"), "line 15"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_script_without_the_places_is_one_line(case: str, tmp_path: Path) -> None:
    text, *words = REFUSED[case]
    (tmp_path / "train.py").write_bytes(text.encode(errors="surrogateescape"))
    with raises("script", tmp_path / "train.py", *words):
        api.patch("diffusers", script=tmp_path / "train.py", write=True)
    assert (tmp_path / "train.py").read_bytes() == text.encode(errors="surrogateescape")


KOHYA_REFUSED = {
    "only defined": (
        "import torch\ndef get_noise_noisy_latents_and_timesteps(args, s, latents):\n    return 1\n",
        "none",
    ),
    "called twice": (CALL + CALL, "has 2"),
    "called otherwise": (CALL.replace("args, scheduler, latents\n", "args, scheduler, latents, 3\n"), "line 6"),
    "diffusers'": (LOOP, "cannot be patched as one of kohya"),
}


@pytest.mark.parametrize("case", KOHYA_REFUSED)
def test_a_script_that_is_none_of_kohyas_is_one_line(case: str, tmp_path: Path) -> None:
    text, *words = KOHYA_REFUSED[case]
    with raises("script", tmp_path / "train.py", *words):
        api.patch("kohya", script=write(tmp_path, text))


@pytest.mark.parametrize("name", ["nothing.py", "."])
def test_no_script(name: str, tmp_path: Path) -> None:
    with raises("script", tmp_path / name, "cannot be read"):
        api.patch("diffusers", script=tmp_path / name)


def test_a_version_that_was_not_tried_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = str(write(tmp_path, CALL))
    assert cli.main(["patch", "kohya", "--script", script, "--version", "v0.10.1"]) == 0
    assert capsys.readouterr().err == ""
    assert cli.main(["patch", "kohya", "--script", script, "--version", "1.2"]) == 0
    output = capsys.readouterr()
    assert "kohya 1.2 was not tried" in output.err and output.out.startswith("--- a/")
    assert cli.main(["patch", "simpletuner", "--script", script]) == 2


def test_a_link_stays_one(tmp_path: Path) -> None:
    file = write(tmp_path, CALL)
    (tmp_path / "link.py").symlink_to(file)
    api.patch("kohya", script=tmp_path / "link.py", write=True)
    assert (tmp_path / "link.py").is_symlink() and "brand_noise" in file.read_text()
