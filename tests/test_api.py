"""The whole job on a tiny pipeline of the real classes: fit, diagnose, train, generate, check, report."""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image
from safetensors.torch import load_file, save_file

from onbrand import api, cli
from onbrand.core import Conditional, ConditionalFitter, Prior
from onbrand.core.text import Method
from onbrand.data.images import to_image, to_tensor
from onbrand.models import pipeline
from onbrand.options.generate import SamplingSettings
from onbrand.options.train import TrainSettings
from onbrand.reporting.folder import read
from onbrand.sampling.start import start
from worlds import COUNT, raises

RUN = TrainSettings(start="mean", gain="window", max_train_steps=2, train_batch_size=4, validation_steps=2)


@pytest.fixture(scope="module")
def world(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the world, with a broken file."""
    folder = tmp_path_factory.mktemp("broken") / "world"
    shutil.copytree(world, folder)
    (folder / "photos" / "broken.png").write_bytes((folder / "photos" / "000.png").read_bytes()[:60])
    with (folder / "photos" / "metadata.jsonl").open("a") as file:
        file.write(json.dumps({"file_name": "broken.png", "text": "block, red", "class": "block"}))
    return folder


@pytest.fixture(scope="module")
def brand(world: Path) -> Path:
    with pytest.warns(UserWarning, match="its mean shows those images"):
        api.fit(world / "photos", world / "model", world / "brand", k=4)
    return world / "brand"


@pytest.fixture(scope="module")
def run(world: Path, brand: Path) -> Path:
    api.train(world / "photos", world / "model", world / "run", prior=brand, **vars(RUN))
    return world / "run"


def test_fit_writes_what_was_fitted(world: Path, brand: Path) -> None:
    content = json.loads((brand / "fit.json").read_text())
    assert content["used"] == COUNT and content["classes"]["block"]["count"] == 30 and content["resolution"] == [16, 16]
    assert [Path(entry["file"]).name for entry in content["refused"]] == ["broken.png"] and content["refused"][0][
        "reason"
    ]
    prior = Prior.load(brand / "prior.safetensors")
    assert prior.classes == ("block", "tall block") and prior.provenance.background == (255, 255, 255)
    assert content["fingerprints"]["prior"] == prior.fingerprint
    assert set(prior.text) == set(prior.classes)
    assert prior.provenance.text_encoder == pipeline.text_fingerprint(pipeline.load(world / "model"))
    starts = [entry["starts"] for entry in content["classes"].values()]
    assert starts == [["pca", "mean with a look ahead", "text with a look ahead"]] * 2

    # the mean over the photos themselves, encoded here one by one
    pipe = pipeline.load(world / "model")
    from onbrand.data.images import open_image, pad

    x0 = []
    for i in range(0, COUNT, 2):
        image = open_image(world / "photos" / f"{i:03d}.png")
        assert isinstance(image, Image.Image)
        x0.append(pipeline.to_x0(pipe, pipeline.encode(pipe, to_tensor(pad(image, (16, 16)))[None])[0]))
    mean = torch.cat(x0).mean(0)
    assert torch.allclose(prior.mean("block")[0], mean, atol=1e-5)
    image = np.asarray(Image.open(brand / "means" / "block.png")).astype(int)
    assert np.abs(image - np.asarray(to_image(pipeline.decode(pipe, mean[None])[0])).astype(int)).max() <= 1


def test_a_prior_fitted_in_bfloat16_is_its_models_own(world: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="its mean shows those images"):
        api.fit(world / "photos", world / "model", tmp_path / "brand", k=2, dtype="bfloat16")
    prior = Prior.load(tmp_path / "brand" / "prior.safetensors")
    assert prior.provenance.vae == pipeline.fingerprint(pipeline.load(world / "model").vae)
    config = SamplingSettings(start="mean", num_inference_steps=2, guidance_scale=1.0)
    for dtype in ("float32", "bfloat16"):
        options = {"prior": tmp_path / "brand", "output_dir": tmp_path / dtype, "prompt": "block", "dtype": dtype}
        api.generate(model=world / "model", **vars(config), **options)
    assert (tmp_path / "bfloat16" / "00000.png").exists()


def test_fit_again_encodes_nothing(world: Path, brand: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fingerprint = Prior.load(brand / "prior.safetensors").fingerprint
    with pytest.warns(UserWarning, match="its mean shows those images"):
        api.fit(world / "photos", world / "model", brand, k=4)
    output = capsys.readouterr().out
    assert "60 photos used (0 encoded now), 1 refused" in output and "broken.png: " in output
    assert Prior.load(brand / "prior.safetensors").fingerprint == fingerprint


@pytest.mark.parametrize("text", ["reduced-rank", "cca"])
def test_the_captions_may_be_regressed_on_by_another_method(
    world: Path, tmp_path: Path, text: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods: list[str] = []
    finish = ConditionalFitter.finish

    def record(self: ConditionalFitter, *args: Any, **options: Any) -> Conditional:
        methods.append(options.get("method", "ridge"))
        return finish(self, *args, **options)

    monkeypatch.setattr(ConditionalFitter, "finish", record)
    with pytest.warns(UserWarning, match="its mean shows those images"):
        content = api.fit(world / "photos", world / "model", tmp_path, k=4, text=text)
    assert methods == [text, text] and f"--text {text}" in content["command"]


@pytest.mark.parametrize(
    ("options", "code", "values"),
    [
        ({"resolution": 15}, "model", ("multiple of 2", "15 x 15", "resolution 14 14")),
        ({"k": -1}, "option", ("k must", "at least 0", "-1")),
        ({"text": "lasso"}, "option", ("text", "ridge, reduced-rank, cca", "'lasso'")),
        ({"device": "cuda:99"}, "option", ("device", "torch", "'cuda:99'")),
        ({"dtype": "float8"}, "option", ("dtype", "float32", "'float8'")),
    ],
)
def test_fit_refuses_before_it_works(
    world: Path, tmp_path: Path, options: dict[str, object], code: str, values: tuple[str, ...]
) -> None:
    with raises(code, *values):
        api.fit(world / "photos", world / "model", tmp_path / "brand", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "brand").exists()


def test_fit_writes_no_images_among_the_photos(world: Path, tmp_path: Path) -> None:
    for out in (world / "photos", world / "photos" / "brand"):
        with raises("folder", f"got {out}:"):
            api.fit(world / "photos", world / "model", out)
    (tmp_path / "file").touch()
    with raises("folder", f"got {tmp_path / 'file'}, a file"):
        api.fit(world / "photos", world / "model", tmp_path / "file")


def test_a_folder_of_broken_photos_is_an_error(world: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"\x89PNG")
    with raises("data", tmp_path / "photos", "1 refused", tmp_path / "photos" / "a.png"):
        api.fit(tmp_path / "photos", world / "model", tmp_path / "brand")


def test_diagnose_says_it_in_a_table_and_a_file(world: Path, brand: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = api.diagnose(brand, num_inference_steps=20)
    assert result["start_timestep"] == 951 and abs(result["abar"] - 0.008155) < 1e-6
    prior = Prior.load(brand / "prior.safetensors")
    for name in prior.classes:
        sigma = np.sqrt(result["abar"]) * float(prior.mean(name).norm())
        assert result["classes"][name]["sigma"] == pytest.approx(sigma, rel=1e-4)
    assert json.loads((brand / "leak.json").read_text()) == {"schema": 2} | result
    output = capsys.readouterr().out
    assert "DDIMScheduler, 20 steps: starts at timestep 951" in output
    assert all(entry["code"] in output and entry["sentence"] in output for entry in result["findings"])
    for name, gaussian in prior.gaussians.items():
        # section 7 of docs/concepts/method.md, mode by mode, weighted by what the captions tell of each
        variances = prior.text[name].shrink.numpy() * gaussian.variances.numpy()
        rest = result["abar"] * (gaussian.variances.numpy() - variances)
        q = np.sqrt(rest / (rest + 1 - result["abar"]))
        for looks in (0, 1, 2, 4):
            say = result["classes"][name]["prompt_say"]
            assert say["modes"][str(looks)] == pytest.approx(1 - q ** (2 * looks + 1), rel=1e-4)
            assert say["all"][str(looks)] == pytest.approx(
                np.average(1 - q ** (2 * looks + 1), weights=variances), rel=1e-4
            )
    assert "The prompt's say from the class mean, by looks ahead" in output
    diagnosis = api.diagnose(brand, scheduler="DPMSolverMultistepScheduler", timestep_spacing="trailing")
    assert diagnosis["start_timestep"] == 999 and "trailing" in diagnosis["command"]
    with raises("scheduler", "FlowMatchEulerDiscreteScheduler", "flow matching"):
        api.diagnose(brand, scheduler="FlowMatchEulerDiscreteScheduler")


def test_zero_snr_mends_the_mismatch_under_trailing_spacing_only(world: Path, brand: Path, tmp_path: Path) -> None:
    prior = Prior.load(brand / "prior.safetensors")
    far = {name: replace(one, mean=one.mean * 100) for name, one in prior.gaussians.items()}  # as far out as SD's
    replace(prior, gaussians=far).save(tmp_path / "prior.safetensors")

    def codes(**options: Any) -> set[str]:
        return {finding["code"] for finding in api.diagnose(tmp_path, **options)["findings"]}

    assert "OB001" in codes() and "OB001" in codes(timestep_spacing="trailing")
    assert "OB001" in codes(rescale_betas_zero_snr=True)
    assert codes(rescale_betas_zero_snr=True, timestep_spacing="trailing") == {"OB005"}
    for scheduler in ("DDIMScheduler", "EulerDiscreteScheduler"):  # abar 0, and 2^-24
        diagnosis = api.diagnose(
            tmp_path, rescale_betas_zero_snr=True, timestep_spacing="trailing", scheduler=scheduler
        )
        assert not any("prompt_say" in one for one in diagnosis["classes"].values()), (
            "no start, nothing that it lets through"
        )
    config = pipeline.load(world / "model").scheduler.config
    theirs = DDIMScheduler.from_config(config, rescale_betas_zero_snr=True).alphas_cumprod[951]
    assert api.diagnose(tmp_path, rescale_betas_zero_snr=True)["abar"] == pytest.approx(float(theirs)) and theirs > 0


def test_train_leaves_a_model_a_log_and_the_way_back(world: Path, brand: Path, run: Path) -> None:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    content = json.loads((run / "run.json").read_text())
    settings = "--start mean --gain window --max_train_steps 2 --train_batch_size 4 --validation_steps 2"
    assert content["command"].endswith(f" --prior {brand} {settings}"), (
        "and of the others no word: they are the defaults"
    )
    with Image.open(run / "validation" / "step-000002.png") as sheet:
        assert sheet.width > 200
    record = {"schema": 2, "gain": "window", "start": "mean", "k": 0, "start_timestep": 950}
    assert pipeline.trained_start_in(run) == record | {"prior": Prior.load(brand / "prior.safetensors").fingerprint}
    # diagnose reads the trained window off the run
    outside = api.diagnose(brand, model=run, num_inference_steps=10)
    assert "OB003" in {entry["code"] for entry in outside["findings"]}
    api.diagnose(brand)


def test_train_without_a_word_is_by_constant_gain_from_what_the_prior_can_tell(
    world: Path, brand: Path, tmp_path: Path
) -> None:
    for start_name, prior in (("text", Prior.load(brand / "prior.safetensors")), ("mean", None)):
        if prior is None:  # as of photos without captions
            prior = Prior.load(brand / "prior.safetensors")
            prior = Prior(prior.gaussians, prior.provenance)
        prior.save(tmp_path / start_name / "prior.safetensors")
        config = TrainSettings(max_train_steps=1, train_batch_size=4, validation_steps=1)
        run = tmp_path / f"{start_name}-run"
        api.train(world / "photos", world / "model", run, prior=tmp_path / start_name, **vars(config))
        record = {"schema": 2, "gain": "constant", "start": start_name, "k": 0, "start_timestep": 951}
        assert pipeline.trained_start_in(run) == record | {"prior": prior.fingerprint}


def test_train_uses_the_latents_of_the_fit(
    world: Path, brand: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    api.train(world / "photos", world / "model", run, prior=brand, **vars(RUN))
    assert "0 encoded now" in capsys.readouterr().out and not (run / "latents").exists()
    assert len((run / "log.jsonl").read_text().splitlines()) == 2


def test_train_refuses_what_does_not_fit_the_prior(world: Path, brand: Path, tmp_path: Path) -> None:
    with raises("prior", "resolution (16, 16)", "(32, 32)"):
        api.train(world / "photos", world / "model", tmp_path / "run", prior=brand, resolution=32)
    with raises("training", "prior", "random_flip"):
        api.train(world / "photos", world / "model", tmp_path / "run", prior=brand, random_flip=True)
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_train_writes_no_images_among_the_photos(world: Path, tmp_path: Path) -> None:
    photos, others = tmp_path / "photos", world / "photos"
    photos.mkdir()
    for images, validation_data in ((photos, None), (others, photos)):
        with raises("folder", f"got {photos / 'run'}:"):
            api.train(
                images, world / "model", photos / "run", start="noise", validation_data=validation_data,
                validation_loss_steps=int(validation_data is not None),
            )  # fmt: skip
    assert not list(photos.iterdir())


@pytest.mark.parametrize(
    ("options", "code", "values"),
    [
        ({"start": None}, "training", ("start mean", "prior")),
        ({"mixed_precision": "fp16"}, "training", ("fp16", "GPU")),
        ({"report_to": "nothing"}, "training", ("report_to", "nothing")),
        ({"timestep_range": (0, 5000)}, "training", ("timestep_range", 5000)),
        ({"method": "lora", "target_modules": ["to_x"]}, "model", ("target_modules", "'to_x'")),
        ({"device": "meta"}, "option", ("device", "'meta'")),
        ({"method": "controlnet"}, "training", ("have none", "conditioning_file_name")),
    ],
)
def test_train_refuses_before_it_works(
    world: Path, tmp_path: Path, options: dict[str, object], code: str, values: tuple[object, ...]
) -> None:
    with raises(code, *values):
        api.train(world / "photos", world / "model", tmp_path / "run", **{"start": "noise"} | options)  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists(), "no image was encoded"


def test_training_ends_where_no_more_images_pass_and_stays_ended(
    world: Path, brand: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {
        "validation_steps": 2,
        "num_validation_images": 3,
        "early_stopping_patience": 2,
        "checkpointing_steps": 100,
    }
    config = replace(RUN, max_train_steps=10, **settings)

    def go(**options: Any) -> list[dict[str, Any]]:
        api.train(world / "photos", world / "model", tmp_path / "run", prior=brand, **vars(replace(config, **options)))
        return [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]

    lines = go()
    rates = [line["passed"] for line in lines if line["passed"] is not None]
    assert len(lines) == 6 and rates == [0.0] * 3, "nothing that an untrained model makes is on brand"
    assert "stopped: at best 0.0% of the validation images passed, and not in the last 2" in capsys.readouterr().out
    assert (tmp_path / "run" / "model" / "model_index.json").exists()
    weights = tmp_path / "run" / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    assert go() == lines and weights.read_bytes() == content, "the same command has nothing left to do"
    assert len(go(early_stopping_patience=3)) == 8, "more patience goes on from there"
    assert len(go(early_stopping_patience=None)) == 10

    from onbrand.evaluation import check
    from onbrand.training import validation

    judgements = {}

    def judge(images: Any, *rest: Any) -> dict[str, Any]:
        content = check.judge_images(images, *rest)
        judgements[len(judgements)] = images.prompts, content
        return content | {"all": {"rate": 1.0 if len(judgements) == 1 else 0.5}}

    monkeypatch.setattr(validation, "judge_images", judge)
    shutil.rmtree(tmp_path / "run")
    assert [line["passed"] for line in go() if line["passed"] is not None] == [1.0, 0.5, 0.5]
    assert judgements[0][0] == ["block, red", "tall block, blue", "block, green"]
    assert {"background", "class"} <= set(judgements[0][1]["properties"])


def test_a_run_says_what_memory_it_took(
    world: Path, brand: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import resource

    def most() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9

    config, peaks, start = replace(RUN, max_train_steps=1, validation_steps=0), [], most()
    for _ in range(2):
        api.train(world / "photos", world / "model", tmp_path / "run", prior=brand, **vars(config))
        peaks.append(json.loads((tmp_path / "run" / "run.json").read_text())["peak_memory_gb"])
        output = capsys.readouterr().out
        line = f"peak memory {peaks[0]:.2f} GB (resident in the process)"
        assert (line in output) == (len(peaks) == 1), "a run that was over took none"
    assert start - 0.001 <= peaks[0] <= most() + 0.001 and peaks[0] == peaks[1]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["peak_memory_of"] == "resident in the process"


@pytest.fixture(scope="module")
def images(world: Path, run: Path) -> Path:
    requests = [{"prompt": "block, red"}, {"prompt": "a tall block", "class": "tall block", "seed": 9}]
    (world / "prompts.jsonl").write_text("\n".join(map(json.dumps, requests)))
    config = SamplingSettings(num_inference_steps=20, guidance_scale=1.0, trace=1)
    files = api.generate(world / "prompts.jsonl", model=run, output_dir=world / "images", **vars(config))
    assert files == [world / "images" / "00000.png", world / "images" / "00001.png"]
    return world / "images"


def test_generate_starts_from_the_prior_beside_the_model(
    world: Path, brand: Path, run: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [json.loads(line) for line in (images / "manifest.jsonl").read_text().splitlines()]
    assert [(line["class"], line["seed"]) for line in lines] == [("block", 0), ("tall block", 9)]
    prior = Prior.load(brand / "prior.safetensors")
    assert lines[0]["fingerprints"]["prior"] == prior.fingerprint and lines[0]["start"] == "mean"
    # the same image by diffusers' own hand, from the latents that start gives
    pipe = pipeline.load(run)
    latents = start(pipe, prior, ["block, red"], seeds=[0], start="mean", num_inference_steps=20)
    image = pipe("block, red", latents=latents, num_inference_steps=20, guidance_scale=1.0).images[0]
    assert np.abs(np.asarray(image).astype(int) - np.asarray(Image.open(images / "00000.png")).astype(int)).max() <= 1
    command = shlex.split(json.loads((images / "run.json").read_text())["command"])
    assert cli.main(command[1:]) == 0  # what is written beside the images is what made them: nothing is left to do
    assert "wrote 0 images" in capsys.readouterr().out


def test_generate_one_prompt(world: Path, run: Path, tmp_path: Path) -> None:
    config = SamplingSettings(num_inference_steps=20, guidance_scale=1.0, start="noise")
    with pytest.warns(UserWarning, match="trained to start from mean"):
        files = api.generate(
            model=run, output_dir=tmp_path, prompt="block", num_images_per_prompt=2, seed=5, **vars(config)
        )
    assert [file.name for file in files] == ["00000.png", "00001.png"]
    with raises("request", "prompts", "(prompt)", "neither"):
        api.generate(model=run, output_dir=tmp_path / "other")


@pytest.fixture(scope="module")
def check_folder(world: Path, brand: Path, images: Path) -> Path:
    """Eight of the photos as images to check: four as they are, two on a grey background, two out of the frame."""
    folder = world / "mixed"
    folder.mkdir()
    rows = [json.loads(line) for line in (world / "photos" / "metadata.jsonl").read_text().splitlines()][8:16]
    for i, row in enumerate(rows):
        photo = Image.open(world / "photos" / row["file_name"])
        if i in (4, 5):
            photo = Image.fromarray(np.minimum(np.asarray(photo), 190))
        if i in (6, 7):
            canvas = Image.new("RGB", photo.size, (255, 255, 255))
            canvas.paste(photo, (9, 0))
            photo = canvas
        photo.save(folder / row["file_name"])
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    api.check(folder, world / "photos", prior=brand)
    return folder


def test_check_marks_what_was_broken(world: Path, check_folder: Path) -> None:
    content = json.loads((check_folder / "check.json").read_text())
    failures = [set(entry["failed"]) for entry in content["images"]]
    assert all("background" in failures[i] for i in (4, 5)) and not any("background" in failures[i] for i in range(4))
    assert all({"centring", "cropping"} & failures[i] for i in (6, 7))
    shares = content["properties"]
    assert shares["background"]["rate"] == sum("background" not in names for names in failures) / 8
    assert content["all"]["rate"] == sum(not names for names in failures) / 8
    assert all(entry["low"] <= entry["rate"] <= entry["high"] for entry in shares.values())
    assert content["measures"]["diversity"]["value"] > 0 and content["measures"]["frechet"]["value"] >= 0
    with Image.open(check_folder / "check.png") as sheet:
        assert sheet.width > 500


@pytest.mark.parametrize("verb", ["check", "diagnose"])
def test_a_prior_is_not_asked_by_another_autoencoder(
    verb: str, world: Path, brand: Path, check_folder: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(world / "model", other)
    weights = load_file(other / "vae" / "diffusion_pytorch_model.safetensors")
    save_file({name: 1.01 * weight for name, weight in weights.items()},
              other / "vae" / "diffusion_pytorch_model.safetensors", {"format": "pt"})  # fmt: skip
    with raises("prior", "vae", "fit a prior with this model"):
        if verb == "check":
            api.check(check_folder, world / "photos", prior=brand, model=other)
        else:
            api.diagnose(brand, model=other)


def test_check_requires(world: Path, brand: Path, check_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["check", str(check_folder), "--against", str(world / "photos"), "--prior", str(brand)]
    assert cli.main([*line, "--require", ".95"]) == 1
    assert "fewer than the required 95.0%" in capsys.readouterr().out
    assert cli.main([*line, "--require", "0", "--json"]) == 0
    assert {"schema": 2} | json.loads(capsys.readouterr().out) == json.loads((check_folder / "check.json").read_text())
    assert cli.main([*line, "--require", "95"]) == 2


def test_check_learns_once_and_anew_when_a_photo_changes(
    world: Path, brand: Path, check_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onbrand.evaluation import loading

    counts: list[int] = []

    def learn(pixels: torch.Tensor, *args: object, **options: object) -> object:
        counts.append(len(pixels))
        raise ValueError("learns")

    monkeypatch.setattr(loading, "learn", learn)
    api.check(check_folder, world / "photos", prior=brand)
    assert not counts
    photo = world / "photos" / "059.png"
    Image.open(photo).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(photo)
    with pytest.raises(ValueError, match="learns"):
        api.check(check_folder, world / "photos", prior=brand)
    assert counts == [COUNT]


def test_report_on_the_whole(world: Path, brand: Path, run: Path, images: Path, check_folder: Path) -> None:
    api.diagnose(brand)
    demo = world / "demo"
    (demo / "images").mkdir(parents=True)
    (demo / "runs").mkdir()
    shutil.copytree(images, demo / "images" / "ours")
    shutil.copytree(check_folder, demo / "images" / "real")
    shutil.copytree(run, demo / "runs" / "ours")
    shutil.copytree(brand, demo / "brand", ignore=shutil.ignore_patterns("latents"))
    (demo / "demo.json").write_text(json.dumps({"real": "real", "rows": [{"name": "ours"}, {"name": "real"}]}))
    page = read(demo)
    assert [card.name for card in page.classes] == ["block", "tall block"] and page.findings and page.modes
    assert len(page.strips) == 1 and len(page.strips[0].images) == 20
    assert page.curves and len(page.validation) == 1 and page.refused[0][0] == "broken.png"
    assert {"onbrand fit", "onbrand train", "onbrand generate", "onbrand check"} <= {
        " ".join(command.split()[:2]) for command in page.commands
    }
    assert [len(row.images) for row in page.rows] == [2, 8] and page.rows[1].score("background")
    file = api.report(demo)
    assert file == demo / "report.html" and file.stat().st_size < 2e6
    html = api.report(run, output_file=world / "run.html").read_text()
    assert "OB00" not in html and str(brand) in html  # a brand elsewhere is named, and has a report of its own


def test_one_split_of_photos_is_fitted_trained_on_and_checked_against(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for split, part in (("train", range(0, 50)), ("test", range(50, 60))):
        folder = tmp_path / "photos" / split
        folder.mkdir(parents=True)
        rows = [json.loads(line) for line in (world / "photos" / "metadata.jsonl").read_text().splitlines()]
        for i in part:
            shutil.copy(world / "photos" / rows[i]["file_name"], folder)
        (folder / "metadata.jsonl").write_text("\n".join(json.dumps(rows[i]) for i in part))
    photos, brand, run = tmp_path / "photos", tmp_path / "brand", tmp_path / "run"
    with raises("data", photos, "['test', 'train']"):
        api.fit(photos, world / "model", brand, k=2)
    with pytest.warns(UserWarning, match="its mean shows those images"):
        content = api.fit(photos, world / "model", brand, k=2, split="train")
    assert content["used"] == 50 and "--split train" in content["command"]
    config = TrainSettings(max_train_steps=2, train_batch_size=2, validation_loss_steps=1)
    with pytest.warns(UserWarning, match="8 of 10 validation images are trained on too"):  # few blocks differ
        api.train(photos, world / "model", run, prior=brand, split="train", validation_data="test", **vars(config))
    output = capsys.readouterr().out
    assert "50 photos used" in output and "10 validation photos, 0 refused" in output
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert lines[0]["validation_loss"] > 0 and lines[1]["validation_loss"] != lines[0]["validation_loss"]
    assert read(run).curves[-1][0].startswith("The loss on validation images"), "the report has their curve"
    assert "--validation_data test" in json.loads((run / "run.json").read_text())["command"]
    with pytest.warns(UserWarning, match="8 of 10"):
        monkeypatch.chdir(tmp_path)
        options = {"prior": brand, "split": "train", **vars(config)}
        other = api.train(photos, world / "model", tmp_path / "other", validation_data="photos/test", **options).parent
    again = [json.loads(line) for line in (other / "log.jsonl").read_text().splitlines()]
    losses = [[line["validation_loss"] for line in log] for log in (lines, again)]
    assert losses[0] == losses[1], "by its name or by its folder"
    with raises("training", "validation_data", "50 given", "50 are"):
        api.train(photos, world / "model", tmp_path / "same", validation_data="train", **options)
    assert api.check(photos / "test", photos, split="train").content["n_reference"] == 40
