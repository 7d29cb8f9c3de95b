"""A folder of pictures: what its manifest says, that any picture is made again from it, and what is refused."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image

from onbrand.data.images import to_picture
from onbrand.models.pipeline import fingerprint
from onbrand.options.generate import GenerateConfig
from onbrand.sampling.manifest import read, remake, write
from onbrand.sampling.requests import Request
from tiny import tiny_pipeline, tiny_prior

REQUESTS = [
    Request(
        f"garment, item {seed}", 10 + seed, negative_prompt="blue", attributes={"colour": "red"} if seed % 2 else None
    )
    for seed in range(5)
]
CONFIG = GenerateConfig(steps=4, guidance=3.0, batch=3, start="pca", k=2)


@pytest.fixture(scope="module")
def made(pipe, prior, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "pictures"
    assert [picture.index for picture in write(folder, pipe, prior, REQUESTS, CONFIG)] == [0, 1, 2, 3, 4]
    return folder


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "pictures")


def pixels(image):
    """(H, W, 3) of a picture or of a file."""
    if isinstance(image, Image.Image):
        return np.asarray(image).astype(int)
    with Image.open(image) as opened:
        return np.asarray(opened).astype(int)


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.png"))}


def test_what_a_line_says(made, pipe, prior):
    entry = read(made)[4]
    told = {key: entry[key] for key in ("file", "prompt", "class", "seed", "negative_prompt", "start", "k", "steps")}
    assert told == {"file": "00004.png", "prompt": "garment, item 4", "class": "garment", "seed": 14,
                    "negative_prompt": "blue", "start": "pca", "k": 2, "steps": 4}  # fmt: skip
    assert entry["scheduler"]["class"] == "DDIMScheduler" and entry["scheduler"]["beta_end"] == 0.012
    assert (entry["first"], entry["guidance"], entry["dtype"], entry["device"]) == (751, 3.0, "float32", "cpu")
    assert entry["abar"] == pytest.approx(float(pipe.scheduler.alphas_cumprod[751]))
    assert entry["batch"] == {"first": 3, "size": 2, "position": 1}
    assert entry["threads"] == torch.get_num_threads() and entry["versions"]["torch"] == torch.__version__
    assert entry["fingerprints"] == {
        "unet": fingerprint(pipe.unet),
        "vae": fingerprint(pipe.vae),
        "text_encoder": fingerprint(pipe.text_encoder),
        "prior": prior.fingerprint,
    }
    assert pixels(made / "00004.png").shape == (16, 16, 3)
    files = [f"{i:05d}.png" for i in range(5)] + ["config.json", "manifest.jsonl"]
    assert sorted(path.name for path in made.iterdir()) == files


@pytest.mark.parametrize("index", [1, 4])
def test_remade_to_the_byte_in_its_batch_and_closely_alone(made, pipe, prior, index, tmp_path):
    picture = remake(made, index, pipe, prior)
    picture.image.save(tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == (made / f"{index:05d}.png").read_bytes()
    assert (picture.index, picture.request) == (index, Request(**{**vars(REQUESTS[index]), "class_name": "garment"}))
    alone = remake(made, index, pipe, prior, alone=True)
    assert alone.batch == (index, 1)
    assert np.abs(pixels(alone.image) - pixels(picture.image)).max() <= 1


def test_remade_with_the_threads_it_was_made_with(pipe, prior, tmp_path):
    own = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        short = GenerateConfig(steps=1, guidance=1.0)
        list(write(tmp_path / "two", pipe, prior, REQUESTS[:2], short))
        torch.set_num_threads(1)
        seen = []
        handle = pipe.unet.register_forward_hook(lambda *args: seen.append(torch.get_num_threads()))
        picture = remake(tmp_path / "two", 1, pipe, prior)
        handle.remove()
        assert set(seen) == {2} and torch.get_num_threads() == 1
        assert np.array_equal(pixels(picture.image), pixels(tmp_path / "two" / "00001.png"))
    finally:
        torch.set_num_threads(own)


@pytest.mark.parametrize(
    "options",
    [
        {"scheduler": "EulerAncestralDiscreteScheduler", "spacing": "trailing"},
        {"scheduler": "DPMSolverMultistepScheduler", "karras": True, "start": "text"},
    ],
)
def test_remade_under_another_scheduler_whatever_the_pipeline_has_now(pipe, prior, tmp_path, options):
    config = GenerateConfig(steps=4, guidance=3.0, batch=3, **options)
    list(write(tmp_path / "p", pipe, prior, REQUESTS[:2], config))
    changed = copy.copy(pipe)
    changed.scheduler = DDIMScheduler(prediction_type="sample")
    picture = remake(tmp_path / "p", 1, changed, prior)
    assert np.array_equal(pixels(picture.image), pixels(tmp_path / "p" / "00001.png"))
    assert changed.scheduler.config.prediction_type == "sample"


def test_shifted_schedules_are_kept_once_not_in_every_line(pipe, prior, tmp_path):
    """METHOD.md section 7: a small model's schedule is 1,000 trained_betas."""
    shifted = copy.copy(pipe)
    abars = DDIMScheduler.from_config(pipe.scheduler.config).alphas_cumprod.double()
    abars = 16 * abars / (1 - abars + 16 * abars)
    betas = 1 - abars / torch.cat([torch.ones(1).double(), abars[:-1]])
    shifted.scheduler = DDIMScheduler(trained_betas=betas.tolist(), clip_sample=False, steps_offset=1)
    list(write(tmp_path / "p", shifted, prior, REQUESTS[:1], GenerateConfig(steps=20, guidance=1.0)))
    line = (tmp_path / "p" / "manifest.jsonl").read_text()
    assert len(line) < 2500 and json.loads(line)["scheduler"]["trained_betas"].startswith("sha256:")
    assert json.loads(line)["abar"] == pytest.approx(0.116, abs=5e-4)
    picture = remake(tmp_path / "p", 0, pipe, prior)
    assert np.array_equal(pixels(picture.image), pixels(tmp_path / "p" / "00000.png"))
    with pytest.raises(ValueError, match="scheduler.trained_betas was 'sha256:"):
        write(tmp_path / "p", pipe, prior, REQUESTS[:1], GenerateConfig(steps=20, guidance=1.0))


def test_image_starts_are_remade_from_the_same_picture_only(pipe, prior, tmp_path):
    to_picture(torch.zeros(3, 16, 16)).save(tmp_path / "a.png")
    requests = [Request("garment", 1, image=str(tmp_path / "a.png"))]
    list(write(tmp_path / "p", pipe, prior, requests, GenerateConfig(steps=2, start="image")))
    picture = remake(tmp_path / "p", 0, pipe, prior)
    assert np.array_equal(pixels(picture.image), pixels(tmp_path / "p" / "00000.png"))
    to_picture(torch.ones(3, 16, 16)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="a.png is not the picture any more that picture 0 started from"):
        remake(tmp_path / "p", 0, pipe, prior)


def test_remake_refuses_what_it_cannot_make(folder, pipe, prior):
    with pytest.raises(ValueError, match="no picture 7 in .*: it has 5"):
        remake(folder, 7, pipe, prior)
    with pytest.raises(ValueError, match="fingerprints.unet was '"):
        other = copy.copy(pipe)
        other.unet = tiny_pipeline(seed=3).unet
        remake(folder, 1, other, prior)
    with pytest.raises(ValueError, match="fingerprints.prior was '"):
        remake(folder, 1, pipe, tiny_prior(pipe, ("garment",)))
    with pytest.raises(ValueError, match="dtype was 'float32', is 'float16'"):
        remake(folder, 1, copy.deepcopy(pipe).to(torch.float16), prior)
    with pytest.raises(ValueError, match="no pictures in .*: looked for manifest.jsonl"):
        remake(folder.parent, 1, pipe, prior)


def test_remake_says_what_changed_since(folder, pipe, prior):
    lines = (folder / "manifest.jsonl").read_text().splitlines()
    old = json.loads(lines[4])
    old["versions"]["torch"] = "1.0"
    (folder / "manifest.jsonl").write_text("\n".join([*lines[:3], json.dumps(old)]) + "\n")
    with pytest.warns(UserWarning) as said:
        picture = remake(folder, 4, pipe, prior)
    told = [str(warning.message) for warning in said]
    assert told[0] == "the manifest lacks part of the batch of picture 4: made by itself"
    assert told[1].startswith("picture 4 was made with torch 1.0; this is ")
    assert np.abs(pixels(picture.image) - pixels(folder / "00004.png")).max() <= 1


class TestResume:
    def test_nothing_is_left_to_do(self, folder, pipe, prior):
        before = (folder / "manifest.jsonl").read_bytes()
        assert list(write(folder, pipe, prior, REQUESTS, CONFIG)) == []
        assert (folder / "manifest.jsonl").read_bytes() == before

    @pytest.mark.parametrize("cut", [1, 2, 300, -1])
    def test_a_line_cut_short_is_dropped_and_its_picture_made_anew(self, folder, pipe, prior, cut):
        whole = (folder / "manifest.jsonl").read_bytes()
        last = len(whole.splitlines(keepends=True)[-1])
        (folder / "manifest.jsonl").write_bytes(whole[: -cut if cut > 0 else -(last - 1)])
        before = bytes_of(folder)
        assert set(read(folder)) == {0, 1, 2, 3}
        assert [picture.index for picture in write(folder, pipe, prior, REQUESTS, CONFIG)] == [4]
        assert (folder / "manifest.jsonl").read_bytes() == whole and bytes_of(folder) == before

    def test_a_picture_without_a_line_or_a_line_without_a_picture(self, folder, pipe, prior):
        before = bytes_of(folder)
        (folder / "00001.png").unlink()
        lines = (folder / "manifest.jsonl").read_text().splitlines()
        (folder / "manifest.jsonl").write_text("\n".join(lines[:4]) + "\n")
        (folder / "00004.png").write_bytes(b"half a pict")
        assert [picture.index for picture in write(folder, pipe, prior, REQUESTS, CONFIG)] == [1, 4]
        assert bytes_of(folder) == before and set(read(folder)) == {0, 1, 2, 3, 4}

    def test_damage_elsewhere_is_an_error(self, folder, pipe, prior):
        lines = (folder / "manifest.jsonl").read_text().splitlines()
        (folder / "manifest.jsonl").write_text("\n".join([lines[0], "{", *lines[2:]]) + "\n")
        with pytest.raises(ValueError, match="manifest.jsonl line 2 is damaged"):
            write(folder, pipe, prior, REQUESTS, CONFIG)

    @pytest.mark.parametrize(
        ("changed", "said"),
        [
            ({"config": GenerateConfig(**{**vars(CONFIG), "steps": 5})}, "config.steps was 4, is 5"),
            ({"config": GenerateConfig(**{**vars(CONFIG), "batch": 2})}, "config.batch was 3, is 2"),
            ({"requests": REQUESTS[:4]}, "requests.count was 5, is 4; requests.sha256 was"),
            ({"offset": {"gain": "window", "kind": "pca", "k": 2, "first": 700}}, "offset.gain was None, is 'window'"),
        ],
    )
    def test_other_settings_are_an_error_that_names_them(self, folder, pipe, prior, changed, said):
        before = bytes_of(folder)
        asked = {"requests": REQUESTS, "config": CONFIG, "offset": None} | changed
        with pytest.raises(ValueError, match=said) as error:
            write(folder, pipe, prior, **asked)
        assert "made with other settings" in str(error.value) and bytes_of(folder) == before

    @pytest.mark.parametrize(
        ("other", "said"),
        [({"prompt": "garment, red"}, "prompt of picture 2 was 'garment, item 2', is 'garment, red'"),
         ({"seed": 7}, "seed of picture 2 was 12, is 7")],
    )  # fmt: skip
    def test_another_request_is_an_error_that_names_the_picture(self, folder, pipe, prior, other, said):
        requests = [*REQUESTS[:2], replace(REQUESTS[2], **other), *REQUESTS[3:]]
        with pytest.raises(ValueError, match=said):
            write(folder, pipe, prior, requests, CONFIG)

    def test_another_prior_is_another_run(self, folder, pipe):
        with pytest.raises(ValueError, match="fingerprints.prior was '.*', is '"):
            write(folder, pipe, tiny_prior(pipe, ("garment",)), REQUESTS, CONFIG)

    def test_strangers_pictures_are_not_written_over(self, pipe, prior, tmp_path):
        (tmp_path / "00000.png").write_bytes(b"mine")
        with pytest.raises(ValueError, match=f"{tmp_path} holds pictures, but no config.json: take another folder"):
            write(tmp_path, pipe, prior, REQUESTS, CONFIG)


def test_traces_lie_beside_the_pictures_and_leave_them_as_they_are(made, pipe, prior, tmp_path):
    config = GenerateConfig(**{**vars(CONFIG), "trace": 1})
    list(write(tmp_path / "p", pipe, prior, REQUESTS, config))
    assert bytes_of(tmp_path / "p") == bytes_of(made)
    steps = sorted(path.name for path in (tmp_path / "p" / "trace" / "00000").iterdir())
    assert steps == [f"{i:02d}-t{t:03d}-{what}.png" for i, t in enumerate((751, 501, 251, 1)) for what in ("x", "x0")]
    assert not (tmp_path / "p" / "trace" / "00001").exists()
    last = pixels(tmp_path / "p" / "trace" / "00000" / "03-t001-x0.png")
    assert np.abs(last - pixels(made / "00000.png")).max() <= 8, "the last estimate is nearly the picture"
    assert list(write(tmp_path / "p", pipe, prior, REQUESTS, CONFIG)) == [], "tracing is no other run"


def test_a_folder_from_before_a_setting_was_there_is_resumed(pipe, prior, tmp_path):
    config = GenerateConfig(**{**vars(CONFIG), "zero_mean": False, "look_ahead": 0})
    list(write(tmp_path / "p", pipe, prior, REQUESTS, config))
    file = tmp_path / "p" / "config.json"
    held = json.loads(file.read_text())
    for name in ("zero_mean", "handoff", "look_ahead", "look_ahead_projection"):
        del held["config"][name]
    file.write_text(json.dumps(held))
    assert list(write(tmp_path / "p", pipe, prior, REQUESTS, config)) == []
    with pytest.raises(ValueError, match="config.zero_mean was False, is True"):
        write(tmp_path / "p", pipe, prior, REQUESTS, replace(config, zero_mean=True))
    with pytest.raises(ValueError, match="config.look_ahead was 0, is 2"):
        write(tmp_path / "p", pipe, prior, REQUESTS, replace(config, look_ahead=2))
    assert remake(tmp_path / "p", 0, pipe, prior).image.tobytes()
