"""A ControlNet: only its weights learn, from nothing changed; diffusers loads it alone; its start is known."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, DiffusionPipeline
from job import lay, open_all, settings
from PIL import Image

from onbrand import api
from onbrand.data.buckets import Bucket
from onbrand.data.images import open_image, to_tensor
from onbrand.models import pipeline
from onbrand.models.controlnet import nets_of, new_controlnet, open_controlnets
from onbrand.models.denoiser import controlnet, full
from onbrand.options.generate import SamplingSettings
from onbrand.sampling.manifest import remake
from onbrand.sampling.requests import Request, read_requests
from onbrand.sampling.sampler import plan, sample
from onbrand.sampling.start import start
from onbrand.training.batches import Batches
from onbrand.training.loop import train
from onbrand.training.validation import make_validation
from worlds import raises, tiny_pipeline

OPTIONS = {"method": "controlnet", "max_train_steps": 3, "learning_rate": 1e-2, "gain": "constant"}
FEW = SamplingSettings(num_inference_steps=20, guidance_scale=2.0, batch_size=3, start="mean")


@pytest.fixture(scope="module")
def run(home: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run folder, and the pipeline as training left it."""
    out = tmp_path_factory.mktemp("controlnet")
    pipe, *rest = open_all(home, method="controlnet")
    for _ in train(pipe, *rest, settings(**OPTIONS), out):
        pass
    return out, pipe


def requests_of(home: Any, count: Any = 3) -> Any:
    """Requests that are the photos' own."""
    return read_requests(home / "photos" / "metadata.jsonl")[:count]


def answer(denoiser: Any, condition: Any) -> torch.Tensor:
    draw = torch.Generator().manual_seed(3)
    x, hidden, pooled = (torch.randn(2, *shape, generator=draw) for shape in ((4, 8, 8), (32, 16), (16,)))
    with torch.no_grad():
        return denoiser(x, torch.tensor([900, 20]), hidden, pooled, condition)


def test_at_first_it_changes_nothing_and_then_it_reads_the_control_image(home: Any, run: Any) -> None:
    black, white = torch.zeros(2, 3, 16, 16), torch.ones(2, 3, 16, 16)
    alone = answer(full(open_all(home)[0]), None)
    fresh = controlnet(open_all(home, method="controlnet")[0])
    assert torch.equal(answer(fresh, black), alone) and torch.equal(answer(fresh, white), alone)
    denoiser = controlnet(run[1])
    assert not torch.allclose(answer(denoiser, black), answer(denoiser, white), atol=1e-4)


def test_only_the_controlnet_learns_unless_the_unet_is_asked_for(home: Any, run: Any, tmp_path: Path) -> None:
    before = open_all(home)[0].unet.state_dict()
    assert all(torch.equal(weight, before[name]) for name, weight in run[1].unet.state_dict().items())
    pipe, *rest = open_all(home, method="controlnet")
    for _ in train(pipe, *rest, settings(**OPTIONS | {"train_unet": True, "max_train_steps": 1}), tmp_path):
        pass
    assert not all(torch.equal(weight, before[name]) for name, weight in pipe.unet.state_dict().items())


def test_images_are_what_diffusers_own_pipeline_makes_without_onbrand(home: Any, run: Any) -> None:
    """Its loading, its reading of a PIL control image, its ControlNet branch; ours is the start alone."""
    out, _ = run
    prior, requests = open_all(home)[3], requests_of(home)
    ours = list(sample(pipeline.load(out), prior, requests, FEW))
    theirs = DiffusionPipeline.from_pretrained(out / "model")
    theirs.set_progress_bar_config(disable=True)
    prompts = [request.prompt for request in requests]
    latents = start(pipeline.load(out), prior, prompts, seeds=[r.seed for r in requests], start="mean",
                    classes=[r.class_name for r in requests])  # fmt: skip
    control = []
    for request in requests:
        cutout = Image.open(request.conditioning[0])
        control.append(Image.alpha_composite(Image.new("RGBA", cutout.size, (0, 255, 0, 255)), cutout).convert("RGB"))
    expected = theirs(prompts, image=control, latents=latents, num_inference_steps=20, guidance_scale=2.0,
                      output_type="latent", controlnet_conditioning_scale=1.0)  # fmt: skip
    torch.testing.assert_close(torch.stack([p.latents for p in ours]), expected.images, atol=1e-5, rtol=1e-5)


def test_several_are_given_each_its_image_and_its_scale(home: Any, run: Any, tmp_path: Path) -> None:
    out, _ = run
    prior = open_all(home)[3]
    other = new_controlnet(open_all(home)[0], 5)
    with torch.no_grad():
        for weight in other.controlnet.parameters():
            weight += 0.05
    other.controlnet.save_pretrained(tmp_path / "other")
    place = [out, tmp_path / "other"]
    requests = [Request(r.prompt, r.seed, r.class_name, conditioning=(*r.conditioning, str(home / "photos" / "0.png")))
                for r in requests_of(home, 2)]  # fmt: skip

    def of(scale: Any, pipe: Any = None) -> Any:
        pipe = pipe or pipeline.load(home / "model", controlnet=place)
        config = SamplingSettings(
            num_inference_steps=20, guidance_scale=2.0, start="mean", look_ahead=0, controlnet_conditioning_scale=scale
        )
        return torch.stack([p.latents for p in sample(pipe, prior, requests, config)])

    alone = SamplingSettings(num_inference_steps=20, guidance_scale=2.0, start="mean", look_ahead=0)
    first = list(sample(pipeline.load(out), prior, requests_of(home, 2), alone))
    torch.testing.assert_close(of((1.0, 0.0)), torch.stack([p.latents for p in first]), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(of((1.0, 0.5)), of((1.0, 0.0)), atol=1e-3)
    torch.testing.assert_close(of(0.5), of((0.5, 0.5)))
    nets = [ControlNetModel.from_pretrained(p) for p in (out / "model" / "controlnet", tmp_path / "other")]
    theirs = type(other).from_pretrained(home / "model", controlnet=nets)
    torch.testing.assert_close(of((0.3, 0.5), theirs), of((0.3, 0.5)))


def test_what_is_given_can_be_laid_over_what_is_made(home: Any, run: Any) -> None:
    """To the last byte where it is given, and nothing beside it is touched; edges are never laid over."""
    prior, requests = open_all(home)[3], requests_of(home)
    requests[1] = replace(requests[1], conditioning=(str(home / "photos" / "1.png"),))
    over, bare = (
        list(sample(pipeline.load(run[0]), prior, requests, replace(FEW, overlay=over))) for over in (True, False)
    )
    for i, (one, two) in enumerate(zip(over, bare, strict=True)):
        cutout = np.asarray(Image.open(home / "photos" / "cut" / f"{i}.png"))
        region = cutout[..., 3:] == (0 if i == 1 else 255)
        expected = np.where(region & (i != 1), cutout[..., :3], np.asarray(two.image))
        assert np.array_equal(np.asarray(one.image), expected) and torch.equal(one.latents, two.latents)
    with raises("option", "overlay True", "ControlNets 0"):
        plan(open_all(home)[0], prior, requests, replace(FEW, overlay=True))


def test_how_it_was_trained_goes_where_it_goes(home: Any, run: Any) -> None:
    out, _ = run
    record = pipeline.trained_start_in(out)
    assert record["gain"] == "constant" and record["start_timestep"] == 951
    for model in (pipeline.load(out), pipeline.load(home / "model", controlnet=[out])):
        assert pipeline.trained_start_of(model) == record
        assert plan(model, open_all(home)[3], requests_of(home), SamplingSettings()).start.start == "mean"


def test_from_the_command_line_to_an_image_made_again(home: Any, run: Any, tmp_path: Path) -> None:
    out, _ = run
    options = {"model": home / "model", "controlnet": str(out), **vars(FEW)}
    few = home / "photos" / "few.jsonl"
    few.write_text("".join((home / "photos" / "metadata.jsonl").read_text().splitlines(True)[:2]))
    api.generate(few, output_dir=tmp_path / "images", **options)
    line = json.loads((tmp_path / "images" / "manifest.jsonl").read_text().splitlines()[1])
    assert line["conditioning"] == [str(home / "photos" / "cut" / "1.png")]
    assert line["start"] == "mean" and len(line["conditioning_sha256"][0]) == 64
    pipe, prior = pipeline.load(home / "model", controlnet=[out]), open_all(home)[3]
    pixels = to_tensor(remake(tmp_path / "images", 1, pipe, prior).image)
    assert torch.equal(pixels, to_tensor(open_image(tmp_path / "images" / "00001.png")))
    with raises("folder", "image 1", "fingerprints.controlnet", pipeline.fingerprint(nets_of(pipe)[0])):
        remake(tmp_path / "images", 1, pipeline.load(home / "model"), prior)
    photos = shutil.copytree(home / "photos", tmp_path / "photos")
    folder = shutil.copytree(tmp_path / "images", tmp_path / "moved")
    few.write_text(few.read_text().replace("cut/1.png", "cut/2.png"))
    with pytest.warns(UserWarning, match=r"1 of 2 requests are others than before \(image 1\)"):
        api.generate(few, output_dir=tmp_path / "images", **options)
    text = (folder / "manifest.jsonl").read_text().replace(str(home / "photos"), str(photos))
    (folder / "manifest.jsonl").write_text(text)
    remake(folder, 1, pipe, prior)
    shutil.copy(photos / "cut" / "2.png", photos / "cut" / "1.png")
    with raises("folder", photos / "cut" / "1.png", "image 1"):
        remake(folder, 1, pipe, prior)


def test_a_batch_has_the_images_own_controls_mirrored_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay(tmp_path / "job", flip=True)
    pipe, records, store, prior = open_all(tmp_path / "job", flip=True, method="controlnet")
    get = store.get
    monkeypatch.setattr(store, "get", lambda *args: (get(*args)[0], torch.full_like(get(*args)[1], -100)))
    batches = Batches(pipe, store.look_up(records), store, prior, settings(**OPTIONS), 1000)
    batch = batches(range(16))
    flips = set()
    for x0, control in zip(batch.x0, batch.condition, strict=True):
        candidates = []
        for i, record in enumerate(records):
            for flip in (False, True):
                mean, _ = store.get([store.look_up([record]).keys[0]], [flip])
                distance = (mean[0] * pipe.vae.config.scaling_factor - x0).abs().max()
                candidates.append((float(distance), i, flip))
        distance, i, flip = min(candidates)
        assert distance < 1e-4
        cutout = to_tensor(open_image(records[i].conditioning, background=(0, 255, 0)))
        expected = (cutout.flip(-1) if flip else cutout) / 2 + 0.5
        torch.testing.assert_close(control, expected)
        flips.add(flip)
    assert flips == {False, True}


def test_what_does_not_go_is_said_before_any_work(home: Any, run: Any, tmp_path: Path) -> None:
    out, pipe = run
    plain, records, store, prior = open_all(home)
    with raises("model", "method controlnet", "has 0", "new_controlnet"):
        train(plain, records, store, prior, settings(**OPTIONS), tmp_path / "run")
    bare = [replace(records[0], conditioning=None), *records[1:]]
    with raises("training", home / "photos" / "0.png", "1 of 8", "conditioning_file_name"):
        train(open_all(home, method="controlnet")[0], bare, store, prior, settings(**OPTIONS), tmp_path / "run")
    with raises("training", "method full", "method controlnet", "train_unet"):
        train(open_all(home, method="controlnet")[0], records, store, prior, settings(), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    model = pipeline.load(out)
    with raises("start", "here 1", "request 0 has 0"):
        plan(model, prior, [Request("product photo", 0)], FEW)
    with raises("image", "gone.png", "missing"):
        plan(model, prior, [Request("product photo", 0, conditioning=("gone.png",))], FEW)
    with raises("start", "controlnet_conditioning_scale", "each of 1", "got 2"):
        plan(model, prior, requests_of(home), SamplingSettings(controlnet_conditioning_scale=(1.0, 2.0)))
    with raises("controlnet", tmp_path, "Hub id"):
        open_controlnets(plain, [tmp_path])
    for key, value in {"cross_attention_dim": 24, "layers_per_block": 2}.items():
        other = open_all(home)[0]
        other.unet.register_to_config(**{key: value})
        with raises("controlnet", out, f"{key} {value} and"):
            open_controlnets(other, [out])
    with raises("option", "controlnet_conditioning_scale 0.5", "ControlNets 0"):
        plan(plain, prior, requests_of(home), replace(FEW, controlnet_conditioning_scale=0.5))
    pair = pipeline.load(home / "model", lora=lora_with_words(home, tmp_path / "lora"))
    with raises("model", "LoRA", "onbrand merge"):
        pipeline.save(pair, tmp_path / "saved")
    with raises("training", "LoRA", "onbrand merge"):
        train(pair, records, store, prior, settings(), tmp_path / "run")
    assert not (tmp_path / "run").exists() and not (tmp_path / "saved").exists()


def lora_with_words(home: Any, out: Any) -> Any:
    """A run folder of a LoRA of UNet and text encoder."""
    options = {"method": "lora", "rank": 2, "train_text_encoder": True, "max_train_steps": 1}
    for _ in train(*open_all(home), settings(**options), out):
        pass
    return out


def test_a_control_image_that_does_not_open_is_said_before_the_first_step(tmp_path: Path) -> None:
    lay(tmp_path / "job")
    (tmp_path / "job" / "photos" / "cut" / "5.png").write_bytes(b"no image")
    with raises("image", tmp_path / "job" / "photos" / "cut" / "5.png", "header"):
        train(*open_all(tmp_path / "job", method="controlnet"), settings(**OPTIONS), tmp_path / "run")
    config = settings(**OPTIONS | {"validation_steps": 1})
    options = {"prior": tmp_path / "job" / "prior.safetensors", **vars(config)}
    metadata = tmp_path / "job" / "photos" / "metadata.jsonl"
    metadata.write_text(metadata.read_text().replace(', "conditioning_file_name": "cut/5.png"', ""))
    with (
        pytest.warns(UserWarning, match="named by no metadata"),
        raises("training", tmp_path / "job" / "photos" / "5.png", "1 of 8"),
    ):
        api.train(tmp_path / "job" / "photos", tmp_path / "job" / "model", tmp_path / "run", **options)
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_one_that_learnt_with_its_unet_goes_with_it_alone(home: Any, tmp_path: Path) -> None:
    pipe, *rest = open_all(home, method="controlnet")
    for _ in train(pipe, *rest, settings(**OPTIONS | {"train_unet": True, "max_train_steps": 1}), tmp_path):
        pass
    assert len(nets_of(pipeline.load(tmp_path))) == 1
    with raises("controlnet", tmp_path, "UNet", "whole"):
        pipeline.load(home / "model", controlnet=[tmp_path])


def test_more_are_put_beside_the_models_own(run: Any) -> None:
    """And beside the UNet of a pipeline that was made in code, not read."""
    out, pipe = run
    assert len(nets_of(open_controlnets(tiny_pipeline(), [out]))) == 1
    both = pipeline.load(out, controlnet=[out])
    assert [pipeline.fingerprint(net) for net in nets_of(both)] == [pipeline.fingerprint(nets_of(pipe)[0])] * 2


def test_half_precision_alone_is_found(home: Any, run: Any, tmp_path: Path) -> None:
    nets_of(run[1])[0].save_pretrained(tmp_path / "half", variant="fp16")
    (file,) = (tmp_path / "half").glob("*.safetensors")
    assert file.name.endswith(".fp16.safetensors")
    assert len(nets_of(pipeline.load(home / "model", controlnet=[tmp_path / "half"]))) == 1
    file.rename(file.with_suffix(".bin"))
    with raises("controlnet", tmp_path / "half", "safetensors"):
        pipeline.load(home / "model", controlnet=[tmp_path / "half"])


def test_it_is_resumed_on_its_own_control_images_and_unet(home: Any, run: Any, tmp_path: Path) -> None:
    out, _ = run
    pipe, records, store, prior = open_all(home, method="controlnet")
    other_records = [replace(records[0], conditioning=records[1].conditioning), *records[1:]]
    with raises("resume", out / "state", "3 steps of other images"):
        train(pipe, other_records, store, prior, settings(**OPTIONS), out)
    with torch.no_grad():
        pipe.unet.conv_in.bias += 1
    with raises("resume", out / "state", "3 steps of another model"):
        train(pipe, records, store, prior, settings(**OPTIONS), out)
    model = pipeline.load(out)  # a run's model is trained on, its ControlNet with it
    assert [step.step for step in train(model, records, store, prior, settings(**OPTIONS), tmp_path)] == [1, 2, 3]


def test_first_weights_follow_from_the_seed_alone() -> None:
    def first_weights(seed: Any) -> Any:
        torch.rand(seed + 5)  # whatever was drawn before
        return new_controlnet(tiny_pipeline(), seed).controlnet.controlnet_cond_embedding.conv_in.weight

    assert torch.equal(first_weights(1), first_weights(1)) and not torch.equal(first_weights(1), first_weights(2))


@pytest.mark.parametrize("halvings", [1, 2, 3])
def test_a_control_image_is_brought_to_the_latents_size_of_any_vae(halvings: Any) -> None:
    pipe = tiny_pipeline()
    pipe.vae.register_to_config(block_out_channels=(8,) * (halvings + 1))
    net = new_controlnet(pipe).controlnet
    assert net.controlnet_cond_embedding(torch.zeros(1, 3, 64, 64)).shape[-1] == 64 >> halvings


def test_validation_is_made_with_the_records_own_control_images(home: Any, run: Any, tmp_path: Path) -> None:
    config = settings(**OPTIONS | {"validation_steps": 1, "num_validation_images": 2})
    validation = make_validation(
        run[1], [Bucket(open_all(home)[2], open_all(home)[1])], open_all(home)[3], config, tmp_path
    )
    folder = home / "photos" / "cut"
    assert [request.conditioning for request in validation.plan.requests] == [
        (str(folder / f"{i}.png"),) for i in (0, 1)
    ]


def test_a_control_images_contrast_comes_through_to_the_last_layer() -> None:
    """That one is zero and learns first: what it is given must tell images apart. torch's own draw: a thousandth."""
    pipe = tiny_pipeline()
    pipe.vae.register_to_config(block_out_channels=(8,) * 4)
    embedding = new_controlnet(pipe).controlnet.controlnet_cond_embedding
    images, features = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(0)), []
    embedding.conv_out.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    with torch.no_grad():
        embedding(images)
    assert 0.05 < float(features[0].std(0).mean() / images.std(0).mean()) < 10
    assert not embedding.conv_out.weight.any() and not embedding.conv_out.bias.any()
