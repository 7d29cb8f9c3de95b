"""`onbrand patch` on diffusers' own scripts, which run as they stand and patched; on kohya's, which are compiled."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from onbrand import api
from onbrand.data.images import to_tensor
from onbrand.models.checkpoint import trained_start_in
from onbrand.models.controlnet import new_controlnet
from onbrand.models.pipeline import shipped
from onbrand.options.train import TrainSettings
from onbrand.training.objective import Batch, make_objective
from worlds import tiny_pipeline, tiny_prior

CLASSES = ("block", "tall block")
SCRIPTS = {
    "text_to_image/train_text_to_image.py": "sd",
    "text_to_image/train_text_to_image_lora.py": "sd",
    "text_to_image/train_text_to_image_sdxl.py": "sdxl",
    "text_to_image/train_text_to_image_lora_sdxl.py": "sdxl",
    "controlnet/train_controlnet.py": "sd",
    "controlnet/train_controlnet_sdxl.py": "sdxl",
}
"""Script of diffusers' examples -> the family that it trains."""
KOHYA = ("train_network.py", "sdxl_train.py", "fine_tune.py", "train_db.py")


def theirs(variable: str, folder: str, script: str) -> Path:
    """A script of a trainer's checkout; skips without one."""
    checkout = Path(os.environ.get(variable, "nowhere"))
    if not (checkout / folder / script).is_file():
        pytest.skip(f"{variable} names no checkout with {folder}{script}: their own code is not run")
    return checkout / folder / script


def write_photos(folder: Path, columns: tuple[str, ...]) -> None:
    """Eight images (16, 16) of two classes, each of one colour, with a control image if the columns say so."""
    folder.mkdir()
    rows = []
    for i in range(8):
        name, other = f"{i}.png", f"c{i}.png"
        Image.new("RGB", (16, 16), (30 * i, 200 - 20 * i, 90)).save(folder / name)
        if "conditioning_file_name" in columns:
            Image.new("RGB", (16, 16), (i, 20 * i, 255)).save(folder / other)
        label = CLASSES[i % 2]
        row = {"text": f"{label}, {i}", "class": label, "conditioning_file_name": other}
        rows.append({"file_name": name} | {column: row[column] for column in columns})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def run_scripts(folder: Path, words: list[str], *scripts: Path) -> None:
    """Run scripts of diffusers' one after the other, with the same arguments; `folder`/steps is their record."""
    (folder / "words.json").write_text(json.dumps(words))
    run = subprocess.run(
        [sys.executable, Path(__file__).with_name("in_diffusers.py"), "words.json", "steps", *scripts],
        capture_output=True, text=True, cwd=folder,
        env={**os.environ, "HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_patched_script_learns_by_onbrands_objective(script: str, tmp_path: Path) -> None:
    plain = theirs("ONBRAND_DIFFUSERS", "examples/", script)
    family, controlled = SCRIPTS[script], "controlnet" in script
    pipe = tiny_pipeline(family=family)
    with torch.no_grad():  # a posterior that is a point: an image is known by its latent
        pipe.vae.quant_conv.weight[4:], pipe.vae.quant_conv.bias[4:] = 0, -30
    pipe.save_pretrained(tmp_path / "model")
    prior = tiny_prior(pipe, CLASSES)
    prior.save(tmp_path / "brand" / "prior.safetensors")
    # train_text_to_image_sdxl.py joins two copies of the table, and takes no columns but these
    columns = ("text",) if script.endswith("image_sdxl.py") else ("text", "class")
    write_photos(tmp_path / "photos", columns + ("conditioning_file_name",) * controlled)
    words = [
        f"--pretrained_model_name_or_path={tmp_path / 'model'}", f"--train_data_dir={tmp_path / 'photos'}",
        f"--output_dir={tmp_path / 'tuned'}", "--resolution=16", "--train_batch_size=4", "--max_train_steps=2",
        "--image_column=image", "--caption_column=text", "--report_to=all", "--seed=0",
    ]  # fmt: skip
    if controlled:
        new_controlnet(pipe).controlnet.save_pretrained(tmp_path / "net")
        words += [f"--controlnet_model_name_or_path={tmp_path / 'net'}", "--conditioning_image_column=conditioning"]
    patched = Path(shutil.copy(plain, tmp_path / "patched.py"))
    api.patch("diffusers", script=patched, prior=tmp_path / "brand", write=True)
    run_scripts(tmp_path, words, plain, patched)
    tensors, latents = load_file(tmp_path / "steps"), latents_of(pipe, tmp_path / "photos")
    starts = {plain: TrainSettings(start="noise"), patched: TrainSettings(start="mean", gain="constant")}
    for name, settings in starts.items():
        objective = make_objective(pipe.scheduler, settings)
        for step in range(2):
            seen = {key.split(".")[-1]: one for key, one in tensors.items() if key.startswith(f"{name}.{step}.")}
            distances = torch.cdist(seen["latents"].flatten(1), latents)
            assert float(distances.min(1).values.max()) < 1e-4
            x_start = prior.mean([CLASSES[i % 2] for i in distances.argmin(1).tolist()])
            batch = Batch(seen["latents"], x_start, seen["noise"], seen["timesteps"], torch.zeros(4, 1, 1))

            def denoise(x_t: Tensor, *_: Tensor, seen: dict[str, Tensor] = seen) -> Tensor:
                torch.testing.assert_close(x_t, seen["x_t"], atol=1e-5, rtol=1e-5)
                return seen["output"]

            torch.testing.assert_close(objective(denoise, batch).total, seen["loss"], atol=1e-6, rtol=1e-5)
    record = trained_start_in(tmp_path / "tuned")
    assert record and (record["start"], record["start_timestep"], record["prior"]) == ("mean", 951, prior.fingerprint)


def latents_of(pipe: DiffusionPipeline, photos: Path) -> Tensor:
    """The photos' latents, by their numbers, `(8, C * h * w)`."""
    pixels = torch.stack([to_tensor(Image.open(photos / f"{i}.png")) for i in range(8)])
    with torch.no_grad():
        return (pipe.vae.encode(pixels).latent_dist.mean * pipe.vae.config.scaling_factor).flatten(1)


@pytest.mark.prove
@pytest.mark.filterwarnings("ignore:.*its mean shows those images")  # 40 of a class
@pytest.mark.filterwarnings("ignore:real photos kept back pass less often")
def test_fifty_steps_with_the_patch_keep_the_brands_background(tmp_path: Path) -> None:
    plain = theirs("ONBRAND_DIFFUSERS", "examples/", "text_to_image/train_text_to_image.py")
    photos, brand = tmp_path / "photos", tmp_path / "brand"
    api.data("garments", output_dir=photos, num_images=80)
    api.fit(photos, "tiny", brand)
    captions = [json.loads(line)["text"] for line in (photos / "metadata.jsonl").read_text().splitlines()]
    (tmp_path / "prompts.txt").write_text("\n".join(captions[:24]))
    patched = Path(shutil.copy(plain, tmp_path / "patched.py"))
    api.patch("diffusers", script=patched, prior=brand, write=True)
    rates = {}
    for script in (plain, patched):
        tuned, images = tmp_path / f"{script.stem}-tuned", tmp_path / script.stem
        words = [
            f"--pretrained_model_name_or_path={shipped('tiny')}", f"--train_data_dir={photos}", f"--output_dir={tuned}",
            "--resolution=128", "--caption_column=text", "--train_batch_size=16", "--learning_rate=1e-4", "--seed=0",
            "--max_train_steps=50", "--lr_warmup_steps=0", "--report_to=all",
        ]  # fmt: skip
        run_scripts(tmp_path, words, script)
        start = "noise" if script == plain else None  # the one that it was trained with
        api.generate(tmp_path / "prompts.txt", model=tuned, output_dir=images, start=start, guidance_scale=1.5)
        rates[script] = api.check(images, against=photos, prior=brand).content["properties"]["background"]["rate"]
    assert rates[plain] < 0.1 < 0.5 < rates[patched]


@pytest.mark.parametrize("script", KOHYA)
def test_kohyas_scripts_take_the_lines(script: str, tmp_path: Path) -> None:
    plain = theirs("ONBRAND_KOHYA", "", script)
    patched = Path(shutil.copy(plain, tmp_path))
    patch = api.patch("kohya", script=patched, write=True)
    compile(patched.read_text(), script, "exec")
    added = [line[1:].strip() for line in patch.splitlines() if line.startswith("+") and line[1:3] != "++"]
    assert added == [
        "from onbrand.core import BrandNoise, add_noise", "", 'brand_noise = BrandNoise("brand", start_timestep=951)',
        'noise = brand_noise(noise, latents, timesteps, batch["captions"], noise_scheduler, args)',
        "noisy_latents = add_noise(latents, noise, noise_scheduler.alphas_cumprod[timesteps.cpu()])",
    ]  # fmt: skip
    assert not [line for line in patch.splitlines() if line.startswith("-") and line[1:3] != "--"]
