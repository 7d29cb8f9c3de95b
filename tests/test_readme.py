"""README's blocks run as they stand, one after the other, on some of the catalogue's pictures and the stock model."""

import re
import shlex
from pathlib import Path

import pytest
import torch

import onbrand
from onbrand import cli
from onbrand.datasets.garments import write_garments
from onbrand.models import pipeline

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
SHORTER = {"--steps 1000": "--steps 2 --batch 4", "--count 8": "--count 2 --steps 2",
           "--fine_tuning 300": "--fine_tuning 2 --batch 4 --sampling 2", "--out people/": "--out people/ --count 60",
           "--out fitted/": "--out fitted/ --steps 2"}  # fmt: skip
"""What a test cannot wait for: settings of README's commands, and what stands for them here."""


def commands() -> list[str]:
    lines = "".join(text for kind, text in BLOCKS if kind == "bash").replace("\\\n", " ").splitlines()
    return [line.split("#")[0].strip() for line in lines if line.strip()]


def test_make_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    asked = [line.split()[1] for line in commands() if line.startswith("make ")]
    assert {"demo", "test"} <= set(asked) and all(re.search(rf"^{name}:", makefile, re.M) for name in asked)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with photos/, in which README's commands have been run."""
    folder = tmp_path_factory.mktemp("readme")
    write_garments(folder / "photos", "train", 240)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for line in (line for line in commands() if line.startswith("onbrand ")):
            for long, short in SHORTER.items():
                line = line.replace(long, short)
            assert cli.main(shlex.split(line)[1:]) == 0, line
    return folder


def test_commands_leave_what_they_promise(workplace):
    made = ["brand/prior.safetensors", "pictures/00000.png", "run/model/model_index.json", "trained/check.json",
            "lora/model/lora_kohya.safetensors", "from_lora/00000.png", "merged/model_index.json",
            "tryon/model/controlnet/config.json", "fitted/00005.png"]  # fmt: skip
    assert all((workplace / name).exists() for name in [*made, "run/report.html"])


def test_three_lines_and_two_run(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    train, generate = (text for kind, text in BLOCKS if kind == "python")
    pipe = pipeline.load("tiny")
    timesteps, classes = torch.tensor([980, 951, 300]), ["male garment"] * 3
    noise, latents = torch.randn(2, 3, 4, 32, 32).unbind()
    names = {
        "scheduler": pipe.scheduler,
        "noise": noise,
        "latents": latents,
        "classes": classes,
        "timesteps": timesteps,
    }
    exec(train, names)  # README's own words
    start = pipe.scheduler.add_noise(latents, names["noise"], timesteps)
    abar = pipe.scheduler.alphas_cumprod[951]
    expected = abar.sqrt() * names["prior"].mean("male garment")[0] + (1 - abar).sqrt() * noise[1]
    assert torch.allclose(start[1], expected, atol=1e-5)  # Eq. 13: nothing of the picture is left at the start
    prompts = ["male person wearing garment, a red t-shirt", "female garment, no person, white background, a skirt"]
    asked = {"onbrand": onbrand, "pipe": pipe, "prior": names["prior"], "prompts": prompts, "seeds": [1, 2]}
    few = generate.replace("num_inference_steps=20", "num_inference_steps=4")
    exec(few, asked)
    assert [picture.size for picture in asked["pictures"]] == [(128, 128)] * 2
