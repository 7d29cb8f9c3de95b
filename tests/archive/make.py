"""Writes v0/ beside this file: a brand, runs, pictures and a comparison, for tests/test_archive.py to go on from.

Made once, by the sources of commit 59bb00e, which is what the files are to be of: later sources are not to make it.
`OMP_NUM_THREADS=1 PYTHONPATH=SOURCES python tests/archive/make.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).parents[1]))

from onbrand.api.methods import CompareConfig
from onbrand.generate.config import GenerateConfig
from onbrand.train.config import LogConfig, LoraConfig, OptimConfig, TrainConfig

from onbrand import api
from onbrand.api import run as training
from tiny import tiny_pipeline

ARCHIVE = Path(__file__).parent / "v0"
COLOURS = {"red": (200, 30, 40), "blue": (30, 60, 190), "green": (40, 150, 60)}
PROMPTS = ["block, red", "block, blue", "block, green", "a red block", "block", "block, red and blue"]
KILLED = 5
"""The step after which the run is killed; its last state is of the step before."""
RUN = TrainConfig(
    "mean", steps=6, batch=4, optim=OptimConfig(lr=1e-3, ema=0.9), log=LogConfig(checkpoint_every=2, keep=1)
)
LORA = TrainConfig(
    "mean", "window", steps=2, batch=4, method="lora", lora=LoraConfig(rank=1), optim=OptimConfig(lr=1e-2),
    log=LogConfig(validate_every=2, pictures=2),
)  # fmt: skip
METHODS = ["stock/noise", "stock/mean", "stock/text+zeromean+look1", "plain:2/mean", "mean-constant:lora1/mean"]
SHARED = CompareConfig(fine_tuning=2, batch=4, lr=1e-3, sampling=3, guidance=1.5)


def small_pipeline() -> StableDiffusionPipeline:
    """tiny_pipeline with narrower networks: files of a tenth of the size."""
    pipe = tiny_pipeline()
    narrow = {"block_out_channels": (4, 4), "norm_num_groups": 4, "attention_head_dim": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel.from_config({**pipe.unet.config, **narrow})
        vae = AutoencoderKL.from_config({**pipe.vae.config, "block_out_channels": (4, 8)})
    pipe.register_modules(unet=unet.eval(), vae=vae.eval())
    return pipe


def lay_photos(folder: Path, counts: dict[str, int], seed: int) -> None:
    """Pictures (16, 16) of coloured blocks on white, so many of each class, and their metadata.jsonl."""
    folder.mkdir()
    rng, rows = np.random.default_rng(seed), []
    for kind, count in counts.items():
        for i in range(count):
            colour, name = list(COLOURS)[i % 3], f"{len(rows):02d}.png"
            picture = Image.new("RGB", (16, 16), "white")
            left, top = rng.integers(2, 6, 2).tolist()
            box = (left, top, left + 7, top + (6 if kind == "block" else 9))
            ImageDraw.Draw(picture).rectangle(box, COLOURS[colour])
            picture.save(folder / name)
            rows.append({"file_name": name, "text": f"{kind}, {colour}", "class": kind})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def train(out: str, config: TrainConfig, killed: int | None = None) -> None:
    """A run in a process of its own; one to be killed kills itself, with SIGKILL, after that step."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            if killed:
                steps, usual = iter(range(1, config.steps + 1)), training.peak_memory

                def peak_memory(device: torch.device) -> dict[str, Any]:
                    if next(steps) == killed:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return usual(device)

                training.peak_memory = peak_memory
            api.train("photos", "model", out, prior="brand", config=config)
            code = 0
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(code)
    ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert ended == (-signal.SIGKILL if killed else 0), f"{out} ended with {ended}"


def losses(run: str) -> list[float]:
    """Each step's loss."""
    return [json.loads(line)["loss"] for line in Path(run, "log.jsonl").read_text().splitlines()]


def make() -> None:
    """Fills the working directory; all paths are relative to it, so that it can be copied elsewhere."""
    pipe = small_pipeline()
    pipe.save_pretrained("model")
    lay_photos(Path("photos"), {"block": 24, "tall block": 8}, seed=0)
    lay_photos(Path("held"), {"block": 3, "tall block": 1}, seed=1)
    requests = [{"prompt": prompt, "class": "block", "seed": seed} for seed, prompt in enumerate(PROMPTS)]
    Path("requests.jsonl").write_text("".join(json.dumps(request) + "\n" for request in requests))
    fitted = api.fit("photos", "model", "brand", k=4)
    leak = api.diagnose("brand")

    train("whole", RUN)
    train("run", RUN, KILLED)
    train("lora", LORA)
    api.generate(prompt="block, blue", model="lora", out="of-lora", config=GenerateConfig(steps=20, guidance=1.0))

    files = api.generate("requests.jsonl", model="model", out="images", prior="brand",
                         config=GenerateConfig(steps=4, batch=4))  # fmt: skip
    checked = api.check("images", "photos", prior="brand", model="model").content
    compared = api.compare("photos", "model", "compare", methods=METHODS, prompts="requests.jsonl", held="held",
                           prior="brand", config=SHARED)  # fmt: skip
    expected = {
        "versions": fitted["versions"],
        "fingerprint": fitted["fingerprints"]["prior"],
        "leak": leak,
        "schedule": hashlib.sha256(pipe.scheduler.alphas_cumprod.numpy().tobytes()).hexdigest(),
        "losses": losses("whole"),
        "images": {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files},
        "missing": {"file": files[-1].name, "pixels": np.asarray(Image.open(files[-1])).tolist()},
        "lora": np.asarray(Image.open("of-lora/00000.png")).tolist(),
        "check": checked,
        "compare": compared["methods"],
    }
    Path("expected.json").write_text(json.dumps(expected) + "\n")

    # the last picture is missing, as after a kill
    files[-1].unlink()
    lines = Path("images/manifest.jsonl").read_text().splitlines(keepends=True)
    Path("images/manifest.jsonl").write_text("".join(lines[:-1]))
    # what none of the tests goes on from
    for folder in ("whole", "of-lora", "compare/locks", "compare/figures", *Path().glob("compare/runs/mean-*/state")):
        shutil.rmtree(folder)
    for pattern in ("compare/report.html", "compare/compare.md", "images/check.png", "compare/pictures/*/check.png"):
        for file in Path().glob(pattern):
            file.unlink()


if __name__ == "__main__":
    torch.set_num_threads(1)
    shutil.rmtree(ARCHIVE, ignore_errors=True)
    ARCHIVE.mkdir()
    os.chdir(ARCHIVE)
    make()
    size = sum(file.stat().st_size for file in Path().rglob("*") if file.is_file())
    print(f"wrote {ARCHIVE}, {size / 1e6:.2f} MB")
