"""Each family of models against plain calls of diffusers: text, first input, loss, files, one-file checkpoints."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, EDMDPMSolverMultistepScheduler, EulerDiscreteScheduler, LCMScheduler
from ldm import to_ldm
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from onbrand.api import diagnose, merge
from onbrand.core.leak import channel_means_lost
from onbrand.models import pipeline
from onbrand.models.checkpoint import LORA
from onbrand.models.controlnet import new_controlnet, open_controlnets
from onbrand.models.denoiser import Denoiser, full, lora
from onbrand.models.families import FAMILIES, encoders_of, family_of
from onbrand.models.families.sdxl import SDXL
from onbrand.models.lora import KOHYA, fuse, save
from onbrand.models.scheduler import latents_for, marked, read_scheduler, set_steps, with_options
from onbrand.models.single_file import weights_of
from onbrand.options.generate import SamplingSettings
from onbrand.options.train import TrainSettings
from onbrand.sampling.requests import Request
from onbrand.sampling.sampler import sample
from onbrand.sampling.start import start
from onbrand.training.batches import Captions
from onbrand.training.export import set_scheduler
from onbrand.training.objective import Batch, make_objective
from worlds import FAMILIES as BUILDERS
from worlds import raises, tiny_pipeline, tiny_prior, tiny_unet

PROMPTS = ["a red boot", "a blue dress"]
STEPS = {"num_inference_steps": 4, "guidance_scale": 3.0}
WORDS = ("q_proj", "k_proj", "v_proj", "out_proj")


@pytest.fixture(scope="module", params=list(BUILDERS))
def model(request: pytest.FixtureRequest) -> DiffusionPipeline:
    return tiny_pipeline(family=request.param)


def own_call(pipe: Any, prompts: list[str]) -> dict[str, Any]:
    """What diffusers' own training scripts call the UNet with for captions, beside the state and the timestep."""
    if family_of(pipe).name != SDXL.name:
        return {"encoder_hidden_states": pipe.encode_prompt(prompts, "cpu", 1, False)[0]}
    hidden, _, pooled, _ = pipe.encode_prompt(prompts, do_classifier_free_guidance=False)
    ids = torch.tensor([[16.0, 16, 0, 0, 16, 16]]).repeat(len(prompts), 1)
    return {"encoder_hidden_states": hidden, "added_cond_kwargs": {"text_embeds": pooled, "time_ids": ids}}


def first_input(pipe: Any, **call: Any) -> tuple[Tensor, dict[str, Any]]:
    """The UNet's first input in a run of the pipeline, and what it was called with beside."""
    seen: list[Any] = []
    hook = pipe.unet.register_forward_pre_hook(lambda _, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
    try:
        pipe(**call, output_type="latent")
    finally:
        hook.remove()
    return seen[0][0][0], seen[0][1]


def test_every_family_is_known_by_its_pipelines(model: Any) -> None:
    family = family_of(model)
    assert family in FAMILIES and type(model) is family.pipelines[0]
    with raises("model", "Stable Diffusion XL", "object"):
        family_of(object())


def test_text_is_read_as_diffusers_reads_it(model: Any) -> None:
    hidden, pooled = pipeline.embed(model, PROMPTS)
    theirs = own_call(model, PROMPTS)
    assert torch.equal(hidden, theirs["encoder_hidden_states"])
    if "added_cond_kwargs" in theirs:
        assert torch.equal(pooled, theirs["added_cond_kwargs"]["text_embeds"])
    tokens = pipeline.tokens_of(model, PROMPTS)
    again = family_of(model).read(list(encoders_of(model).values()), tokens.unbind(1))
    assert torch.equal(again[0], hidden) and torch.equal(again[1], pooled)


@pytest.mark.parametrize("negative", ["", "grey"])
def test_an_image_is_what_diffusers_makes_of_the_same_latents(model: Any, negative: str) -> None:
    requests = [Request(prompt, seed, negative_prompt=negative) for seed, prompt in enumerate(PROMPTS)]
    images = list(sample(model, None, requests, SamplingSettings(**STEPS, start="noise", look_ahead=0)))
    noise = torch.cat([torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)])
    theirs = model(PROMPTS, negative_prompt=[negative] * 2 if negative else None, latents=noise, **STEPS)
    assert [image.image.tobytes() for image in images] == [image.tobytes() for image in theirs.images]


def test_a_request_is_the_same_image_whatever_its_batch_says(model: Any) -> None:
    """An empty negative prompt is the same beside one that is not empty."""
    one, other = Request("a boot", 3), Request("a boot", 4, negative_prompt="grey")
    settings = SamplingSettings(**STEPS, start="noise", batch_size=2)
    alone, together = (next(iter(sample(model, None, rows, settings))) for rows in ([one, one], [one, other]))
    torch.testing.assert_close(alone.latents, together.latents, rtol=0, atol=1e-5)


def test_guidance_is_the_familys_where_none_is_asked_for(model: Any) -> None:
    request, latents = [Request("a boot", 1, negative_prompt="grey")], []
    for guidance in (None, 5.0, 7.5):
        settings = SamplingSettings(num_inference_steps=2, start="noise", guidance_scale=guidance)
        latents.append(next(iter(sample(model, None, request, settings))).latents)
    assert [torch.equal(latents[0], other) for other in latents[1:]] == (
        [True, False] if family_of(model).name == SDXL.name else [False, True]
    )


def test_the_first_input_is_equation_8_under_every_scheduler(model: Any) -> None:
    x_start, noise = torch.randn(2, 1, 4, 8, 12, generator=torch.Generator().manual_seed(0))
    names = sorted(one.__name__ for one in model.scheduler.compatibles)
    tried = 0
    for name in names:
        try:
            scheduler = with_options(model.scheduler, name)
            abar = read_scheduler(scheduler, 6).abar
        except (ValueError, ImportError):  # EDM's, and one that needs a package
            continue
        pipe = copy.copy(model)
        pipe.scheduler = scheduler
        call = family_of(pipe).call(pipe, ["a boot"], None, (16, 24))
        x, beside = first_input(
            pipe, **call, latents=latents_for(set_steps(scheduler, 6), x_start, noise), num_inference_steps=6,
            guidance_scale=1.0,
        )  # fmt: skip
        torch.testing.assert_close(x, abar**0.5 * x_start + (1 - abar) ** 0.5 * noise, rtol=0, atol=1e-6)
        ids = (beside.get("added_cond_kwargs") or {}).get("time_ids")
        assert ids is None or ids.tolist() == [[16, 24, 0, 0, 16, 24]], "the size of the image, not of the model"
        tried += 1
    assert tried >= 12


@pytest.mark.parametrize("tokens", [False, True], ids=["frozen text encoders", "text encoders that learn"])
def test_the_loss_is_that_of_diffusers_own_call(model: Any, tokens: bool) -> None:
    captions = Captions(model, PROMPTS, tokens=tokens)
    hidden, pooled = captions(PROMPTS)
    family, draw = family_of(model), torch.Generator().manual_seed(1)
    x0, noise = torch.randn(2, 2, 4, 8, 8, generator=draw)
    hidden[1], pooled = captions.empty, torch.stack([pooled[0], captions.empty_pooled])
    objective = make_objective(model.scheduler, TrainSettings(start="noise", max_train_steps=1))
    reads = family.pooled_width(model.unet.config) is not None
    batch = Batch(x0, x0, noise, torch.tensor([900, 20]), hidden, pooled if reads else None)
    with torch.no_grad():
        loss = objective(Denoiser(model, text=tokens), batch).total
        theirs = own_call(model, [PROMPTS[0], ""])
        if family.drops_to_zero(model):
            theirs["encoder_hidden_states"][1] = 0
            theirs["added_cond_kwargs"]["text_embeds"][1] = 0
        x_t = model.scheduler.add_noise(x0, noise, batch.timesteps)
        kind = model.scheduler.config.prediction_type
        target = model.scheduler.get_velocity(x0, noise, batch.timesteps) if kind == "v_prediction" else noise
        expected = (model.unet(x_t, batch.timesteps, **theirs).sample - target).square().mean()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)


@pytest.fixture(params=list(BUILDERS))
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, DiffusionPipeline]:
    """A model's folder, and the pipeline."""
    pipe = tiny_pipeline(family=request.param)
    pipe.save_pretrained(tmp_path / "model")
    return tmp_path / "model", pipe


def images_of(pipe: Any) -> list[bytes]:
    pipe.set_progress_bar_config(disable=True)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return [image.tobytes() for image in pipe(PROMPTS, latents=latents, **STEPS).images]


def test_a_folder_and_its_half_precision_load(saved: Any) -> None:
    folder, pipe = saved
    model = pipeline.load(folder)
    assert type(model) is type(pipe) and images_of(model) == images_of(pipe)
    assert model.config.get("force_zeros_for_empty_prompt") == pipe.config.get("force_zeros_for_empty_prompt")
    half = pipeline.load(folder, dtype="float16")
    vae = torch.float32 if family_of(pipe).name == SDXL.name else torch.float16
    assert (half.unet.dtype, half.vae.dtype) == (torch.float16, vae), "SDXL's overflows in float16"


@pytest.mark.parametrize("kohya", [False, True])
def test_a_lora_is_the_same_without_onbrand(saved: Any, tmp_path: Path, kohya: bool) -> None:
    folder, pipe = saved
    learner = lora(pipe, 2, 2, ["to_q", "to_k", "to_v", "to_out.0"], text_encoder=True)
    with torch.no_grad():
        for name, weight in learner.learned.items():
            if "lora_B" in name:
                weight.copy_(0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name))))
    assert {name.split(".")[0] for name in learner.learned} == {"unet", *encoders_of(pipe)}
    save(pipe, tmp_path / "lora", base=str(folder))
    trained = images_of(pipe)
    file = tmp_path / "lora" / (KOHYA if kohya else LORA)
    theirs = type(pipe).from_pretrained(folder, local_files_only=True)
    before = images_of(theirs)
    theirs.load_lora_weights(str(file.parent), weight_name=file.name)
    assert images_of(theirs) == trained != before
    ours = pipeline.load(folder)
    fuse(ours, file)
    values = torch.tensor([list(image) for image in images_of(ours)], dtype=torch.int16)
    assert (values - torch.tensor([list(image) for image in trained], dtype=torch.int16)).abs().max() <= 1
    with safe_open(tmp_path / "lora" / KOHYA, "pt") as opened:
        metadata, names = opened.metadata(), list(opened.keys())
    starts = {name.split("_text_model")[0] for name in names if "text_model" in name}
    family = "sdxl" if len(encoders_of(pipe)) > 1 else "sd2" if pipe.unet.config.use_linear_projection else "sd"
    expected = {
        "sd": ({"lora_te"}, "sd_v1", "False"),
        "sd2": ({"lora_te"}, "sd_v2_768_v", "True"),
        "sdxl": ({"lora_te1", "lora_te2"}, "sdxl_base_v1-0", "False"),
    }[family]
    assert (starts, metadata["ss_base_model_version"], metadata["ss_v2"]) == expected


def test_a_lora_of_another_family_is_refused(tmp_path: Path) -> None:
    pipe = tiny_pipeline(family="sdxl")
    lora(pipe, 2, 2, ["to_k"], text_encoder=True)
    save(pipe, tmp_path / "sdxl")
    with raises("lora", "Stable Diffusion XL", "Stable Diffusion 1 or 2"):
        fuse(tiny_pipeline(family="sd"), tmp_path / "sdxl" / LORA)
    pipe = tiny_pipeline(family="sd")
    pipe.unet = tiny_unet(16, cross_attention_dim=24)
    lora(pipe, 2, 2, ["to_k"])
    save(pipe, tmp_path / "sd")
    with raises("lora", "another kind of model", "24 against 16"):
        fuse(tiny_pipeline(family="sdxl"), tmp_path / "sd" / LORA)


def test_a_controlnet_stands_beside_it_and_not_beside_another_family(saved: Any, tmp_path: Path) -> None:
    folder, pipe = saved
    pair = new_controlnet(pipeline.load(folder))
    image = torch.rand(2, 3, 16, 16)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    both = [
        one(PROMPTS, latents=latents, **STEPS, **more).images for one, more in ((pipe, {}), (pair, {"image": image}))
    ]
    assert [a.tobytes() for a in both[0]] == [b.tobytes() for b in both[1]], "it changes nothing yet"
    pair.controlnet.save_pretrained(tmp_path / "net")
    assert type(open_controlnets(pipeline.load(folder), [tmp_path / "net"])) is family_of(pipe).pipelines[1]
    other = tiny_pipeline(family="sd" if len(encoders_of(pipe)) > 1 else "sdxl")
    with raises("controlnet", "addition_embed_type"):
        open_controlnets(other, [tmp_path / "net"])


def test_a_checkpoint_in_one_file_with_its_configuration(saved: Any, tmp_path: Path) -> None:
    folder, pipe = saved
    file = tmp_path / "model.safetensors"
    save_file(to_ldm(pipe), file)
    model = pipeline.load(file, config=folder)
    for name in ("unet", "vae", *encoders_of(pipe)):
        assert pipeline.fingerprint(getattr(model, name)) == pipeline.fingerprint(getattr(pipe, name)), name
    assert type(model) is type(pipe) and images_of(model) == images_of(pipe)


def test_a_checkpoint_is_opened_by_the_configuration_of_its_own_kind(tmp_path: Path) -> None:
    for family in ("sd", "sdxl"):
        pipe = tiny_pipeline(family=family)
        save_file(to_ldm(pipe), tmp_path / f"{family}.safetensors")
        pipe.save_pretrained(tmp_path / family)
    with raises("model", "Stable Diffusion 1 or 2", "StableDiffusionXLPipeline", "model_config"):
        pipeline.load(tmp_path / "sd.safetensors", config=tmp_path / "sdxl")
    with raises("model", "Stable Diffusion XL", "StableDiffusionPipeline", "model_config"):
        pipeline.load(tmp_path / "sdxl.safetensors", config=tmp_path / "sd")


@pytest.mark.parametrize("marks", [["v_pred"], ["v_pred", "ztsnr"], []])
def test_marks_of_v_prediction_set_the_scheduler(tmp_path: Path, marks: list[str]) -> None:
    pipe = tiny_pipeline(family="sdxl")
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing="leading")
    pipe.save_pretrained(tmp_path / "config")
    save_file(to_ldm(pipe) | {mark: torch.empty(0) for mark in marks}, tmp_path / "model.safetensors")
    scheduler = pipeline.load(tmp_path / "model.safetensors", config=tmp_path / "config").scheduler
    assert scheduler.config.prediction_type == ("v_prediction" if marks else "epsilon")
    first, abar = read_scheduler(scheduler, 20).first, read_scheduler(scheduler, 20).abar
    assert (first, abar < 1e-6) == ((999, True) if "ztsnr" in marks else (951, False))


def test_a_configuration_that_says_zero_snr_over_alphas_without_it_is_refused() -> None:
    scheduler = EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    scheduler.register_to_config(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    with raises("scheduler", "rescale_betas_zero_snr", "0.0047", "from_config"):
        read_scheduler(scheduler, 20)
    read_scheduler(EulerDiscreteScheduler.from_config(scheduler.config), 20)
    assert marked(scheduler, []) is scheduler


def test_parts_that_do_not_go_together_are_named(tmp_path: Path) -> None:
    pipe = tiny_pipeline(family="sdxl")
    pipe.save_pretrained(tmp_path / "model")
    config = tmp_path / "model" / "text_encoder_2" / "config.json"
    entries = json.loads(config.read_text()) | {"projection_dim": 20}
    weights = load_file(config.parent / "model.safetensors")
    weights["text_projection.weight"] = torch.zeros(20, 10)
    save_file(weights, config.parent / "model.safetensors", {"format": "pt"})
    config.write_text(json.dumps(entries))
    with raises("model", 16, 20, "text_encoder_2"):
        pipeline.load(tmp_path / "model")


def test_all_that_learns_is_the_unet_or_its_lora(model: Any) -> None:
    pipe = copy.deepcopy(model)
    assert all(name.startswith("unet.") for name in full(pipe).learned)
    assert not any(weight.requires_grad for encoder in encoders_of(pipe).values() for weight in encoder.parameters())


@pytest.mark.parametrize(
    ("name", "options", "mark"),
    [("sdxl-Turbo", {}, "sdxl-Turbo"), ("model", {"scheduler": LCMScheduler}, "LCMScheduler"),
     ("model", {"time_cond_proj_dim": 32}, "time_cond_proj_dim"), ("turbulence", {}, None)],
)  # fmt: skip
def test_students_of_a_few_steps_are_told_of(
    tmp_path: Path, name: str, options: dict[str, Any], mark: str | None, recwarn: pytest.WarningsRecorder
) -> None:
    pipe = tiny_pipeline()
    if "scheduler" in options:
        pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    elif options:
        pipe.unet = type(pipe.unet).from_config(pipe.unet.config, **options)
    pipe.save_pretrained(tmp_path / name)
    pipeline.load(tmp_path / name)
    words = [str(one.message) for one in recwarn if "distilled" in str(one.message)]
    assert len(words) == (mark is not None) and all(str(mark) in word for word in words)


def test_an_edm_scheduler_over_a_discrete_model_is_replaced_to_train() -> None:
    pipe = tiny_pipeline(family="sdxl")
    pipe.scheduler = EDMDPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    with raises("scheduler", "EDMDPMSolverMultistepScheduler", "scheduler DDIMScheduler"):
        make_objective(pipe.scheduler, TrainSettings(start="noise"))
    set_scheduler(pipe, TrainSettings(start="noise", scheduler="DDIMScheduler"))
    plain = tiny_pipeline(family="sdxl").scheduler
    assert torch.equal(make_objective(pipe.scheduler, TrainSettings(start="noise")).abars, plain.alphas_cumprod)


def test_one_file_is_what_diffusers_reads_as_the_same_model(saved: Any, tmp_path: Path) -> None:
    folder, pipe = saved
    weights = weights_of(pipe)
    marks = {"v_pred"} if pipe.scheduler.config.prediction_type == "v_prediction" else set()
    theirs = to_ldm(pipe)
    assert set(weights) == set(theirs) | marks
    assert all(torch.equal(weights[name], value) for name, value in theirs.items())
    save_file(weights, tmp_path / "model.safetensors")
    model = type(pipe).from_single_file(
        str(tmp_path / "model.safetensors"), config=str(folder), local_files_only=True, scheduler=pipe.scheduler
    )
    assert images_of(model) == images_of(pipe)


def test_stable_diffusion_2_of_its_own_width_has_openclips_names() -> None:
    pipe = tiny_pipeline(family="sd2")
    pipe.unet = tiny_unet(16, cross_attention_dim=1024)
    names = [name for name in weights_of(pipe) if name.startswith("cond_stage_model.")]
    assert "cond_stage_model.model.transformer.resblocks.1.attn.in_proj_weight" in names
    assert all(name.startswith("cond_stage_model.model.") for name in names)


def test_a_merged_model_in_one_file_is_read_by_diffusers(saved: Any, tmp_path: Path) -> None:
    folder, pipe = saved
    learner = lora(pipe, 2, 2, ["to_q", "to_v"])
    with torch.no_grad():
        for name, weight in learner.learned.items():
            weight.copy_(0.2 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name))))
    save(pipe, tmp_path / "lora", base=str(folder))
    merge(tmp_path / "lora", tmp_path / "merged", single_file=True)
    file = tmp_path / "merged" / "model.safetensors"
    assert sorted(path.name for path in file.parent.iterdir()) == ["model.safetensors", "run.json"]
    theirs = type(pipe).from_single_file(str(file), config=str(folder), local_files_only=True, scheduler=pipe.scheduler)
    merge(tmp_path / "lora", tmp_path / "whole")
    assert images_of(theirs) == images_of(type(pipe).from_pretrained(tmp_path / "whole", local_files_only=True))
    merge(tmp_path / "lora", tmp_path / "merged", single_file=True)  # the same command again


@pytest.mark.parametrize(("name", "asked", "offset"), [("stabilityai/stable-diffusion-xl-base-1.0", None, 0.0357),
                                                       ("", None, 0.0), ("", 0.5, 0.5)])  # fmt: skip
def test_diagnose_knows_which_models_were_trained_with_offset_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, asked: float | None, offset: float
) -> None:
    pipe = tiny_pipeline(family="sdxl")
    pipe.save_pretrained(tmp_path / "model")
    prior = tiny_prior(pipe)
    prior.save(tmp_path / "brand" / "prior.safetensors")
    monkeypatch.setattr(pipeline, "name_of", lambda _: name)
    result = diagnose(tmp_path / "brand", model=tmp_path / "model", trained_noise_offset=asked)
    assert result["trained_noise_offset"] == offset
    assert ("OB008" in {entry["code"] for entry in result["findings"]}) == (offset > 0)
    abar = result["abar"]
    lost = {one: channel_means_lost(gaussian, abar, offset) for one, gaussian in prior.gaussians.items()}
    assert {one: entry.get("channel_means_lost") for one, entry in result["classes"].items()} == (
        lost if offset else dict.fromkeys(lost)
    )


def test_a_look_in_a_foreign_pipeline_is_told_the_size_of_its_latents() -> None:
    pipe, seen = tiny_pipeline(family="sdxl"), []
    prior = tiny_prior(tiny_pipeline(family="sdxl", size=32))  # the model's own are of 16
    pipe.unet.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["added_cond_kwargs"]["time_ids"][0].tolist()), with_kwargs=True
    )
    name = prior.classes[0]
    start(pipe, prior, [f"{name}, red"], seeds=[0], classes=[name], look_ahead=1, num_inference_steps=4)
    assert seen == [[32, 32, 0, 0, 32, 32]]
