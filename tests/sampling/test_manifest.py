"""A folder of images: what its manifest says, that any image is made again from it, and what is refused."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image

from onbrand.data.images import to_image
from onbrand.models.families import encoders_of
from onbrand.models.pipeline import fingerprint
from onbrand.options.generate import GenerateOptions, SamplingSettings
from onbrand.sampling.manifest import read_manifest, read_settings, remake, write_images
from onbrand.sampling.requests import Request
from worlds import raises, tiny_pipeline, tiny_prior

REQUESTS = [
    Request(
        f"garment, item {seed}", 10 + seed, negative_prompt="blue", attributes={"colour": "red"} if seed % 2 else None
    )
    for seed in range(5)
]
CONFIG = SamplingSettings(num_inference_steps=4, guidance_scale=3.0, batch_size=3, start="pca", k=2)


@pytest.fixture(scope="module")
def original(pipe: Any, prior: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("made") / "images"
    assert [image.index for image in write_images(folder, pipe, prior, REQUESTS, CONFIG)] == [0, 1, 2, 3, 4]
    return folder


@pytest.fixture
def folder(original: Any, tmp_path: Path) -> Any:
    return shutil.copytree(original, tmp_path / "images")


def pixels(image: Any) -> Any:
    """(H, W, 3) of an image or of a file."""
    if isinstance(image, Image.Image):
        return np.asarray(image).astype(int)
    with Image.open(image) as file:
        return np.asarray(file).astype(int)


def bytes_of(folder: Any) -> Any:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.png"))}


def test_what_a_line_says(original: Any, pipe: Any, prior: Any) -> None:
    entry = read_manifest(original)[4]
    request = {key: entry[key] for key in ("file", "prompt", "class", "seed", "negative_prompt", "start", "k")}
    assert request == {"file": "00004.png", "prompt": "garment, item 4", "class": "garment", "seed": 14,
                    "negative_prompt": "blue", "start": "pca", "k": 2}  # fmt: skip
    assert entry["scheduler"]["class"] == "DDIMScheduler" and entry["scheduler"]["beta_end"] == 0.012
    settings = {key: entry[key] for key in ("schema", "num_inference_steps", "start_timestep", "guidance_scale")}
    assert settings == {"schema": 2, "num_inference_steps": 4, "start_timestep": 751, "guidance_scale": 3.0}
    assert (entry["dtype"], entry["device"]) == ("float32", "cpu")
    assert entry["abar"] == pytest.approx(float(pipe.scheduler.alphas_cumprod[751]))
    assert entry["batch"] == {"first": 3, "size": 2, "position": 1}
    assert entry["threads"] == torch.get_num_threads() and entry["versions"]["torch"] == version("torch")
    assert entry["fingerprints"] == {
        "unet": fingerprint(pipe.unet),
        "vae": fingerprint(pipe.vae),
        **{name: fingerprint(encoder) for name, encoder in encoders_of(pipe).items()},
        "prior": prior.fingerprint,
    }
    assert pixels(original / "00004.png").shape == (16, 16, 3)
    files = [f"{i:05d}.png" for i in range(5)] + ["config.json", "manifest.jsonl"]
    assert sorted(path.name for path in original.iterdir()) == files


@pytest.mark.parametrize("index", [1, 4])
def test_remade_to_the_byte_in_its_batch_and_closely_alone(
    original: Any, pipe: Any, prior: Any, index: Any, tmp_path: Path
) -> None:
    image = remake(original, index, pipe, prior)
    image.image.save(tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == (original / f"{index:05d}.png").read_bytes()
    assert (image.index, image.request) == (index, Request(**{**vars(REQUESTS[index]), "class_name": "garment"}))
    alone = remake(original, index, pipe, prior, alone=True)
    assert alone.batch == (index, 1)
    assert np.abs(pixels(alone.image) - pixels(image.image)).max() <= 1


def test_remade_with_the_threads_it_was_made_with(pipe: Any, prior: Any, tmp_path: Path) -> None:
    own = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        short = SamplingSettings(num_inference_steps=1, guidance_scale=2.0)
        list(write_images(tmp_path / "two", pipe, prior, REQUESTS[:2], short))
        torch.set_num_threads(1)
        counts = []
        handle = pipe.unet.register_forward_hook(lambda *args: counts.append(torch.get_num_threads()))
        image = remake(tmp_path / "two", 1, pipe, prior)
        handle.remove()
        assert set(counts) == {2} and torch.get_num_threads() == 1
        assert np.array_equal(pixels(image.image), pixels(tmp_path / "two" / "00001.png"))
    finally:
        torch.set_num_threads(own)


@pytest.mark.parametrize(
    "options",
    [
        {"scheduler": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"},
        {"scheduler": "DPMSolverMultistepScheduler", "use_karras_sigmas": True, "start": "text"},
    ],
)
def test_remade_under_another_scheduler_whatever_the_pipeline_has_now(
    pipe: Any, prior: Any, tmp_path: Path, options: Any
) -> None:
    config = SamplingSettings(num_inference_steps=4, guidance_scale=3.0, batch_size=3, **options)
    list(write_images(tmp_path / "p", pipe, prior, REQUESTS[:2], config))
    other = copy.copy(pipe)
    other.scheduler = DDIMScheduler(prediction_type="sample")
    image = remake(tmp_path / "p", 1, other, prior)
    assert np.array_equal(pixels(image.image), pixels(tmp_path / "p" / "00001.png"))
    assert other.scheduler.config.prediction_type == "sample"


def test_shifted_schedules_are_kept_once_not_in_every_line(pipe: Any, prior: Any, tmp_path: Path) -> None:
    """docs/concepts/method.md, section 3: a small model's schedule is 1,000 trained_betas."""
    other = copy.copy(pipe)
    abars = DDIMScheduler.from_config(pipe.scheduler.config).alphas_cumprod.double()
    abars = 16 * abars / (1 - abars + 16 * abars)
    betas = 1 - abars / torch.cat([torch.ones(1).double(), abars[:-1]])
    other.scheduler = DDIMScheduler(trained_betas=betas.tolist(), clip_sample=False, steps_offset=1)
    list(
        write_images(
            tmp_path / "p", other, prior, REQUESTS[:1], SamplingSettings(num_inference_steps=20, guidance_scale=2.0)
        )
    )
    line = (tmp_path / "p" / "manifest.jsonl").read_text()
    assert len(line) < 2500 and json.loads(line)["scheduler"]["trained_betas"].startswith("sha256:")
    assert json.loads(line)["abar"] == pytest.approx(0.116, abs=5e-4)
    image = remake(tmp_path / "p", 0, pipe, prior)
    assert np.array_equal(pixels(image.image), pixels(tmp_path / "p" / "00000.png"))
    with raises("folder", tmp_path / "p", "scheduler.trained_betas", "'sha256:"):
        write_images(
            tmp_path / "p", pipe, prior, REQUESTS[:1], SamplingSettings(num_inference_steps=20, guidance_scale=2.0)
        )


def test_image_starts_are_remade_from_the_same_image_only(pipe: Any, prior: Any, tmp_path: Path) -> None:
    to_image(torch.zeros(3, 16, 16)).save(tmp_path / "a.png")
    requests = [Request("garment", 1, image=str(tmp_path / "a.png"))]
    list(write_images(tmp_path / "p", pipe, prior, requests, SamplingSettings(num_inference_steps=2, start="image")))
    image = remake(tmp_path / "p", 0, pipe, prior)
    assert np.array_equal(pixels(image.image), pixels(tmp_path / "p" / "00000.png"))
    to_image(torch.ones(3, 16, 16)).save(tmp_path / "a.png")
    with raises("folder", tmp_path / "a.png", "image 0"):
        remake(tmp_path / "p", 0, pipe, prior)


def test_remake_refuses_what_it_cannot_make(folder: Any, pipe: Any, prior: Any) -> None:
    with raises("folder", folder, "image 7", "has 5"):
        remake(folder, 7, pipe, prior)
    with raises("folder", "image 1", "fingerprints.unet", fingerprint(pipe.unet)):
        other = copy.copy(pipe)
        other.unet = tiny_pipeline(seed=3).unet
        remake(folder, 1, other, prior)
    with raises("folder", "image 1", "fingerprints.prior", prior.fingerprint):
        remake(folder, 1, pipe, tiny_prior(pipe, ("garment",)))
    with raises("folder", "image 1", "dtype", "'float32'", "'float16'"):
        remake(folder, 1, copy.deepcopy(pipe).to(torch.float16), prior)
    with raises("folder", folder.parent, "manifest.jsonl"):
        remake(folder.parent, 1, pipe, prior)


def test_remake_says_what_changed_since(folder: Any, pipe: Any, prior: Any) -> None:
    lines = (folder / "manifest.jsonl").read_text().splitlines()
    old = json.loads(lines[4])
    old["versions"]["torch"] = "1.0"
    (folder / "manifest.jsonl").write_text("\n".join([*lines[:3], json.dumps(old)]) + "\n")
    with pytest.warns(UserWarning) as caught:
        image = remake(folder, 4, pipe, prior)
    messages = [str(warning.message) for warning in caught]
    assert messages[0] == "the manifest lacks part of the batch of image 4: made by itself"
    assert messages[1].startswith("image 4 was made with torch 1.0; this is ")
    assert np.abs(pixels(image.image) - pixels(folder / "00004.png")).max() <= 1


class TestResume:
    def test_nothing_is_left_to_do(self, folder: Any, pipe: Any, prior: Any) -> None:
        before = (folder / "manifest.jsonl").read_bytes()
        assert list(write_images(folder, pipe, prior, REQUESTS, CONFIG)) == []
        assert (folder / "manifest.jsonl").read_bytes() == before

    @pytest.mark.parametrize("cut", [1, 2, 300, -1])
    def test_a_line_cut_short_is_dropped_and_its_image_made_anew(
        self, folder: Any, pipe: Any, prior: Any, cut: Any
    ) -> None:
        whole = (folder / "manifest.jsonl").read_bytes()
        last = len(whole.splitlines(keepends=True)[-1])
        (folder / "manifest.jsonl").write_bytes(whole[: -cut if cut > 0 else -(last - 1)])
        before = bytes_of(folder)
        assert set(read_manifest(folder)) == {0, 1, 2, 3}
        assert [image.index for image in write_images(folder, pipe, prior, REQUESTS, CONFIG)] == [4]
        assert (folder / "manifest.jsonl").read_bytes() == whole and bytes_of(folder) == before

    def test_an_image_without_a_line_or_a_line_without_an_image(self, folder: Any, pipe: Any, prior: Any) -> None:
        before = bytes_of(folder)
        (folder / "00001.png").unlink()
        lines = (folder / "manifest.jsonl").read_text().splitlines()
        (folder / "manifest.jsonl").write_text("\n".join(lines[:4]) + "\n")
        (folder / "00004.png").write_bytes(b"half an ima")
        assert [image.index for image in write_images(folder, pipe, prior, REQUESTS, CONFIG)] == [1, 4]
        assert bytes_of(folder) == before and set(read_manifest(folder)) == {0, 1, 2, 3, 4}

    def test_damage_elsewhere_is_an_error(self, folder: Any, pipe: Any, prior: Any) -> None:
        lines = (folder / "manifest.jsonl").read_text().splitlines()
        (folder / "manifest.jsonl").write_text("\n".join([lines[0], "{", *lines[2:]]) + "\n")
        with raises("folder", f"{folder / 'manifest.jsonl'} line 2"):
            write_images(folder, pipe, prior, REQUESTS, CONFIG)

    @pytest.mark.parametrize(
        ("changes", "values"),
        [
            ({"config": replace(CONFIG, num_inference_steps=5)}, ("settings.num_inference_steps", "was 4", "is 5")),
            ({"config": replace(CONFIG, batch_size=2)}, ("settings.batch_size", "was 3", "is 2")),
            ({"requests": REQUESTS[:4]}, ("an image 4", "only 4 requests")),
            (
                {"trained_start": {"gain": "window", "start": "pca", "k": 2, "start_timestep": 700}},
                ("trained_start.gain", None, "'window'"),
            ),
        ],
    )
    def test_other_settings_are_an_error_that_names_them(
        self, folder: Any, pipe: Any, prior: Any, changes: Any, values: Any
    ) -> None:
        before = bytes_of(folder)
        arguments = {"requests": REQUESTS, "config": CONFIG, "trained_start": None} | changes
        with raises("folder", folder, *values):
            write_images(folder, pipe, prior, **arguments)
        assert bytes_of(folder) == before

    @pytest.mark.parametrize(
        ("other", "values"),
        [({"prompt": "garment, red"}, ("3 of 5", "prompt of image 2", "'garment, item 2'", "'garment, red'")),
         ({"seed": 7}, ("seed of image 2", "was 12", "is 7")),
         ({"attributes": {"colour": "blue"}}, ("attributes of image 2", "None", "blue")),
         ({"class_name": "garment on a person"}, ("class of image 2", "'garment'", "'garment on a person'"))],
    )  # fmt: skip
    def test_other_requests_are_an_error_that_names_the_first(
        self, folder: Any, pipe: Any, prior: Any, other: Any, values: Any
    ) -> None:
        before = bytes_of(folder)
        requests = [*REQUESTS[:2], *(replace(request, **other) for request in REQUESTS[2:])]
        with raises("folder", folder, *values):
            write_images(folder, pipe, prior, requests, CONFIG)
        assert bytes_of(folder) == before

    def test_of_a_mended_file_of_requests_what_is_as_it_was_stays(self, folder: Any, pipe: Any, prior: Any) -> None:
        before = bytes_of(folder)
        requests = [*REQUESTS, Request("garment, new", 5)]
        requests[2] = replace(REQUESTS[2], prompt="garment, mended")
        with pytest.warns(UserWarning, match=r"1 of 6 requests are others than before \(image 2\)"):
            images = write_images(folder, pipe, prior, requests, CONFIG)
        assert next(images).index == 2
        images.close()  # stopped there
        assert [image.index for image in write_images(folder, pipe, prior, requests, CONFIG)] == [5]
        after = bytes_of(folder)
        assert {name for name in before if before[name] != after[name]} == {"00002.png"}
        assert read_settings(folder)["requests"]["count"] == 6
        for index in (2, 3, 5):
            remake(folder, index, pipe, prior).image.save(folder / "again.png")
            assert (folder / "again.png").read_bytes() == after[f"{index:05d}.png"]

    def test_a_request_mended_and_mended_back_has_its_own_image(self, folder: Any, pipe: Any, prior: Any) -> None:
        """Even if a kill came between the new image and its line."""
        before, lines = bytes_of(folder), (folder / "manifest.jsonl").read_bytes()
        with pytest.warns(UserWarning, match="image 2"):
            images = write_images(
                folder, pipe, prior, [*REQUESTS[:2], replace(REQUESTS[2], seed=7), *REQUESTS[3:]], CONFIG
            )
        assert not (folder / "00002.png").exists(), "the line of before stands for no other image"
        images.close()
        assert (folder / "manifest.jsonl").read_bytes() == lines
        assert [image.index for image in write_images(folder, pipe, prior, REQUESTS, CONFIG)] == [2]
        assert bytes_of(folder) == before

    @pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "text", "a folder's", "a link"])
    def test_an_image_that_is_not_whole_is_made_again(self, folder: Any, pipe: Any, prior: Any, damage: Any) -> None:
        before, file = bytes_of(folder), folder / "00003.png"
        whole = file.read_bytes()
        middle = len(whole) // 2
        contents = {
            "empty": b"", "cut": whole[:-20], "text": b"half an image", "a folder's": b"\0" * len(whole),
            "flipped": whole[:middle] + bytes([whole[middle] ^ 4]) + whole[middle + 1 :],
        }  # fmt: skip
        if damage == "a link":
            file.rename(folder.parent / f"{folder.name} elsewhere.png")
            file.symlink_to(folder.parent / f"{folder.name} elsewhere.png")
        else:
            file.write_bytes(contents[damage])
        with pytest.warns(UserWarning, match=r"1 of 5 images .* \(image 3\): they are made again"):
            images = write_images(folder, pipe, prior, REQUESTS, CONFIG)
        assert [image.index for image in images] == [3] and bytes_of(folder) == before
        assert not file.is_symlink()

    def test_an_image_of_numbers_that_are_none_is_listed_and_the_others_are_made(
        self, pipe: Any, prior: Any, tmp_path: Path
    ) -> None:
        """An embedding that is not finite spoils the image of its prompt alone."""
        other = copy.copy(pipe)
        other.text_encoder = copy.deepcopy(pipe.text_encoder)
        token = pipe.tokenizer("4", add_special_tokens=False).input_ids[0]
        with torch.no_grad():
            other.text_encoder.get_input_embeddings().weight[token] = torch.nan
        images = write_images(tmp_path / "p", other, prior, REQUESTS, CONFIG)
        assert [next(images).index for _ in range(4)] == [0, 1, 2, 3]
        with raises("image", "1 of 5", "(4)", tmp_path / "p", "float32", "another model"):
            next(images)
        assert set(read_manifest(tmp_path / "p")) == {0, 1, 2, 3} and not (tmp_path / "p" / "00004.png").exists()

    def test_another_prior_is_another_run(self, folder: Any, pipe: Any, prior: Any) -> None:
        other = tiny_prior(pipe, ("garment",))
        with raises("folder", folder, "fingerprints.prior", prior.fingerprint, other.fingerprint):
            write_images(folder, pipe, other, REQUESTS, CONFIG)

    def test_strangers_images_are_not_written_over(self, pipe: Any, prior: Any, tmp_path: Path) -> None:
        (tmp_path / "00000.png").write_bytes(b"mine")
        with raises("folder", tmp_path, "config.json"):
            write_images(tmp_path, pipe, prior, REQUESTS, CONFIG)


def test_traces_lie_beside_the_images_and_leave_them_as_they_are(
    original: Any, pipe: Any, prior: Any, tmp_path: Path
) -> None:
    config = replace(CONFIG, trace=1)
    list(write_images(tmp_path / "p", pipe, prior, REQUESTS, config))
    assert bytes_of(tmp_path / "p") == bytes_of(original)
    steps = sorted(path.name for path in (tmp_path / "p" / "trace" / "00000").iterdir())
    assert steps == [f"{i:02d}-t{t:03d}-{what}.png" for i, t in enumerate((751, 501, 251, 1)) for what in ("x", "x0")]
    assert not (tmp_path / "p" / "trace" / "00001").exists()
    last = pixels(tmp_path / "p" / "trace" / "00000" / "03-t001-x0.png")
    assert np.abs(last - pixels(original / "00000.png")).max() <= 8, "the last estimate is nearly the image"
    assert list(write_images(tmp_path / "p", pipe, prior, REQUESTS, CONFIG)) == [], "tracing is no other run"


FORMER = {
    "num_inference_steps": "steps", "timestep_spacing": "spacing", "use_karras_sigmas": "karras",
    "guidance_scale": "guidance", "batch_size": "batch", "controlnet_conditioning_scale": "controlnet_scale",
}  # fmt: skip
"""What settings were called in schema 1."""
WINDOW = {"gain": "window", "start": "pca", "k": 2, "start_timestep": 700}
CONSTANT = {"gain": "constant", "start": "pca", "k": 2, "start_timestep": 751}
RECORDS = [
    (None, None),
    (WINDOW, {"gain": "window", "kind": "pca", "k": 2, "first": 700}),
    (CONSTANT, {"gain": "constant", "kind": "pca", "k": 2, "first": 0, "start": 751}),
]
"""Starts that weights were trained with, and how schema 1 had them."""


def write_schema_1(folder: Any, record: Any, without: Any = ()) -> None:
    """Rewrites a folder as schema 1 had it, less the settings that were not there yet."""
    settings = json.loads((folder / "config.json").read_text())
    del settings["schema"], settings["trained_start"]
    requests = {FORMER.get(name, name): value for name, value in settings.pop("settings").items()}
    entries = {"config": {name: value for name, value in requests.items() if name not in without}, "offset": record}
    (folder / "config.json").write_text(json.dumps(entries | settings))
    lines = []
    for line in (folder / "manifest.jsonl").read_text().splitlines():
        entry = {FORMER.get(name, name): value for name, value in json.loads(line).items() if name != "schema"}
        lines.append(json.dumps({"first" if name == "start_timestep" else name: v for name, v in entry.items()}))
    (folder / "manifest.jsonl").write_text("".join(line + "\n" for line in lines))


@pytest.mark.parametrize(("trained", "record"), RECORDS, ids=["plain", "window", "constant"])
def test_a_folder_of_schema_1_is_read_resumed_and_remade(
    pipe: Any, prior: Any, tmp_path: Path, trained: Any, record: Any
) -> None:
    folder, options = tmp_path / "p", {"timestep_spacing": "leading", "guidance_scale": 2.0, "trace": 1}
    list(write_images(folder, pipe, prior, REQUESTS, replace(CONFIG, **options), trained))
    present, former = read_settings(folder), bytes_of(folder)
    write_schema_1(folder, record)
    assert {"config", "offset"} < set(json.loads((folder / "config.json").read_text()))
    settings = read_settings(folder)
    expected = {"schema": 2} | trained if trained else None
    assert settings == present | {"trained_start": expected}
    assert SamplingSettings(**settings["settings"]) == replace(CONFIG, **options, zero_mean=True, look_ahead=0)
    assert list(write_images(folder, pipe, prior, REQUESTS, replace(CONFIG, **options), trained)) == []
    (folder / "00004.png").unlink()
    images = list(write_images(folder, pipe, prior, REQUESTS, replace(CONFIG, **options), trained))
    assert [image.index for image in images] == [4] and bytes_of(folder) == former
    for index in (1, 4):  # a line of either schema
        remake(folder, index, pipe, prior).image.save(tmp_path / "again.png")
        assert (tmp_path / "again.png").read_bytes() == former[f"{index:05d}.png"]
    with raises("folder", folder, "settings.guidance_scale", 2.0, 3.0):
        write_images(folder, pipe, prior, REQUESTS, replace(CONFIG, **options | {"guidance_scale": 3.0}), trained)


def test_a_folder_from_before_a_setting_was_there_is_resumed(pipe: Any, prior: Any, tmp_path: Path) -> None:
    config = replace(CONFIG, zero_mean=False, look_ahead=0)
    list(write_images(tmp_path / "p", pipe, prior, REQUESTS, config))
    later = ("zero_mean", "handoff", "look_ahead", "look_ahead_projection", "controlnet_scale", "overlay")
    write_schema_1(tmp_path / "p", None, later)
    assert list(write_images(tmp_path / "p", pipe, prior, REQUESTS, config)) == []
    with raises("folder", tmp_path / "p", "settings.zero_mean", False, True):
        write_images(tmp_path / "p", pipe, prior, REQUESTS, replace(config, zero_mean=True))
    with raises("folder", tmp_path / "p", "settings.look_ahead", "was 0", "is 2"):
        write_images(tmp_path / "p", pipe, prior, REQUESTS, replace(config, look_ahead=2))
    assert remake(tmp_path / "p", 0, pipe, prior).image.tobytes()


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"settings": {}}',
        '{"config": {}, "offset": {"gain": "window"}}',
        '{"config": 3, "offset": null}',
        '{"config": {}}',
        "[" * 9999,
        '{"schema": 2, "settings": {"k": -1}}',
        '{"schema": null}',
    ],
)
def test_a_damaged_config_is_an_error_that_names_it(folder: Any, pipe: Any, prior: Any, content: Any) -> None:
    (folder / "config.json").write_text(content)
    for use in (lambda: write_images(folder, pipe, prior, REQUESTS, CONFIG), lambda: remake(folder, 1, pipe, prior)):
        with raises("folder", f"{folder / 'config.json'} is damaged"):
            use()


def test_of_generates_options_those_of_the_images_are_recorded(pipe: Any, prior: Any, tmp_path: Path) -> None:
    """Not where they lie, nor on which device: the same run may go on elsewhere."""
    options = GenerateOptions(model="tiny", output_dir=tmp_path, prompt="garment", num_inference_steps=2, start="mean")
    list(write_images(tmp_path / "p", pipe, prior, REQUESTS[:1], options))
    assert set(read_settings(tmp_path / "p")["settings"]) == set(SamplingSettings.__dataclass_fields__)
    other = replace(options, output_dir=tmp_path / "other", device="cpu")
    assert list(write_images(tmp_path / "p", pipe, prior, REQUESTS[:1], other)) == []
    assert remake(tmp_path / "p", 0, pipe, prior).image.tobytes()


@pytest.mark.parametrize(
    ("change", "values"),
    [
        ({"num_inference_steps": "many"}, ("num_inference_steps must be a whole number, is 'many'",)),
        ({"eta": 3.0}, ("eta must lie in [0, 1]; got 3.0",)),
        ({"paper": 1}, ("paper", "no setting")),
        ({"look_ahead": -1}, ("look_ahead", "-1")),
        ({"guidance_scale": float("nan")}, ("guidance_scale", "nan")),
    ],
)
def test_a_setting_that_is_wrong_is_named(folder: Any, pipe: Any, prior: Any, change: Any, values: Any) -> None:
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"settings": settings["settings"] | change}))
    for use in (lambda: write_images(folder, pipe, prior, REQUESTS, CONFIG), lambda: remake(folder, 1, pipe, prior)):
        with raises("folder", folder / "config.json", *values, "output_dir"):
            use()


@pytest.mark.parametrize(
    ("change", "values"),
    [
        ({"index": "two"}, ("index must be a whole number, is 'two'",)),
        ({"file": "../../00001.png"}, ("file must be the name of a file in this folder", "'../../00001.png'")),
        ({"file": "C:\\x.png"}, ("file", "in this folder")),
        ({"file": "/etc/x.png"}, ("file", "in this folder")),
        ({"file": ""}, ("file", "in this folder")),
        ({"seed": -1}, ("seed must be at least 0, is -1",)),
        ({"seed": 1.5}, ("seed must be a whole number, is 1.5",)),
        ({"batch": {"first": 3, "size": 2}}, ("index 1 within its batch",)),
        ({"batch": [0, 3]}, ("batch must be an object",)),
        ({"threads": 10**9}, ("threads must be at most 4096",)),
        ({"attributes": {"colour": None}}, ("attributes.colour must be text, is None",)),
        ({"prompt": None}, ("prompt must be text, is None",)),
    ],
)
def test_a_line_that_is_wrong_is_named_with_its_field(folder: Any, change: Any, values: Any) -> None:
    lines = (folder / "manifest.jsonl").read_text().splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | change)
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    with raises("folder", f"{folder / 'manifest.jsonl'} line 2", *values, "take this line out"):
        read_manifest(folder)


def test_settings_of_a_later_version_or_none_are_refused(folder: Any, pipe: Any, prior: Any, tmp_path: Path) -> None:
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"schema": 99}))
    with raises("folder", folder / "config.json", "schema 99", "to 2"):
        remake(folder, 1, pipe, prior)
    (folder / "config.json").unlink()
    with raises("folder", f"{folder} holds images, but no config.json"):
        remake(folder, 1, pipe, prior)
    with raises("folder", f"{tmp_path} holds no images"):
        read_settings(tmp_path)


def test_what_a_killed_process_left_half_written_is_taken_away(folder: Any, pipe: Any, prior: Any) -> None:
    (folder / ".00001.png.1.tmp").write_bytes(b"half")
    assert list(write_images(folder, pipe, prior, REQUESTS, CONFIG)) == []
    assert not list(folder.glob(".*"))
