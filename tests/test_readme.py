"""Commands and Python of README, the quickstart and the guides run as they stand, on some of the catalogue's images.

Blocks of `bash` and `python` are run, page by page in the order of PAGES, in one folder; `console` blocks are not.
"""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

import onbrand
from onbrand import cli
from onbrand.models import pipeline

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*its mean shows those images"),  # 20 of a class
]
ROOT = Path(__file__).parents[1]
PAGES = ["docs/quickstart.md", "README.md",
         *(f"docs/guides/{name}.md" for name in ("train", "generate", "check", "adapters", "compare"))]  # fmt: skip
LOOP = "docs/guides/own-loop.md"
SHORTER = {"--output_dir photos/ --num_images 240": "--output_dir photos/ --num_images 80",
           "--max_train_steps 1000": "--max_train_steps 2 --train_batch_size 4",
           "--max_train_steps 300": "--max_train_steps 2 --train_batch_size 4 --num_inference_steps 2",
           "--num_images_per_prompt 8": "--num_images_per_prompt 2 --num_inference_steps 2",
           "--output_dir people/": "--output_dir people/ --num_images 60",
           "--output_dir fitted/": "--output_dir fitted/ --num_inference_steps 2"}  # fmt: skip
"""What a test cannot wait for: settings of the commands, and what stands for them here."""


def blocks(page: str, language: str) -> list[str]:
    """The blocks of a page in a language."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.S)


def commands(page: str) -> list[str]:
    """The commands of a page, one a line, without comments."""
    lines = "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [line.split("#")[0].strip() for line in lines if line.strip()]


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    named = [line.split()[1] for line in commands("README.md") if line.startswith("make ")]
    assert {"demo", "test"} <= set(named) and all(re.search(rf"^{name}:", makefile, re.M) for name in named)


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= 900
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    assert sum(len(page.read_text().split()) for page in pages) <= 21_200


def test_links_of_readme_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)", (ROOT / "README.md").read_text())
    assert all((ROOT / link).exists() for link in links if "://" not in link)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder in which every command has been run."""
    folder = tmp_path_factory.mktemp("readme")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for page in PAGES:
            for line in (line for line in commands(page) if line.startswith("onbrand ")):
                for long, short in SHORTER.items():
                    line = line.replace(long, short)
                assert cli.main(shlex.split(line)[1:]) == 0, f"{page}: {line}"
    return folder


def test_commands_leave_what_they_promise(workplace: Any) -> None:
    files = ["photos/metadata.jsonl", "brand/prior.safetensors", "brand/leak.json", "from_brand/check.png",
             "from_brand/report.html", "images/00000.png", "run/model/model_index.json", "run/report.html",
             "trained/check.json", "lora/model/lora_kohya.safetensors", "from_lora/00000.png",
             "merged/model_index.json", "tryon/model/controlnet/config.json", "fitted/00005.png",
             "compare/compare.md"]  # fmt: skip
    assert [name for name in files if not (workplace / name).exists()] == []


def test_python_of_the_quickstart_runs(workplace: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    (code,) = blocks("docs/quickstart.md", "python")
    exec(code.replace("guidance_scale=1.5", "guidance_scale=1.5, num_inference_steps=2"), {})
    assert (workplace / "shirt" / "00000.png").exists()


@pytest.mark.parametrize("page", ["README.md", LOOP])
def test_three_lines_run(workplace: Any, monkeypatch: pytest.MonkeyPatch, page: Any) -> None:
    monkeypatch.chdir(workplace)
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
    exec(blocks(page, "python")[0], names)
    state = pipe.scheduler.add_noise(latents, names["noise"], timesteps)
    abar = pipe.scheduler.alphas_cumprod[951]
    expected = abar.sqrt() * names["prior"].mean("male garment")[0] + (1 - abar).sqrt() * noise[1]
    assert torch.allclose(state[1], expected, atol=1e-5)  # Eq. 13: nothing of the image is left at the start


def test_two_lines_and_matched_steps_run(workplace: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    prompts = ["male person wearing garment, a red t-shirt", "female garment, no person, white background, a skirt"]
    names = {"onbrand": onbrand, "pipe": pipeline.load("tiny"), "prompts": prompts, "seeds": [1, 2],
             "prior": onbrand.Prior.load("brand/prior.safetensors")}  # fmt: skip
    for code in blocks(LOOP, "python")[1:]:
        exec(code.replace("num_inference_steps=20", "num_inference_steps=4"), names)
        assert [image.size for image in names.pop("images")] == [(128, 128)] * 2
