"""The start against diffusers' own txt2img and img2img, and what every kind of it is made of."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from onbrand.core import Prior
from onbrand.models.pipeline import embed
from onbrand.sampling.start import generator_for, noise_for
from onbrand.sampling.start import start as usual
from worlds import img2img_of, raises, tiny_pipeline, tiny_prior

PROMPTS = ["garment, a red coat", "garment on a person, a blue dress", "garment, a sandal"]
CLASSES = ["garment", "garment on a person", "garment"]
SEEDS = [11, 12, 13]
start = partial(usual, zero_mean=False, look_ahead=0)
"""With the seeds' noise as it is, as diffusers has it, and no look ahead (test_look_ahead.py)."""
ABAR = 0.008155  # docs/concepts/method.md, section 3: 951, the first of 20 leading steps


def with_scheduler(pipe: Any, scheduler: Any) -> Any:
    other = copy.copy(pipe)
    other.scheduler = scheduler
    return other


def generators() -> Any:
    return [torch.Generator().manual_seed(seed) for seed in SEEDS]


@pytest.fixture(scope="module")
def images() -> Any:
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(5)) * 2 - 1


@pytest.fixture(params=["noise", "mean", "pca", "text", "image"])
def options(request: pytest.FixtureRequest, images: Any) -> Any:
    return {"start": request.param} | ({"images": images} if request.param == "image" else {})


@pytest.mark.parametrize("scheduler_class", [DDIMScheduler, EulerDiscreteScheduler])
def test_noise_is_the_pipelines_own_start(pipe: Any, prior: Any, scheduler_class: Any) -> None:
    pipe = with_scheduler(pipe, scheduler_class.from_config(pipe.scheduler.config))
    theirs = pipe(PROMPTS, generator=generators(), num_inference_steps=4, output_type="pt").images
    latents = start(pipe, prior, PROMPTS, seeds=SEEDS, start="noise", num_inference_steps=4)
    torch.testing.assert_close(pipe(PROMPTS, latents=latents, num_inference_steps=4, output_type="pt").images, theirs)
    assert torch.equal(start(pipe, None, PROMPTS, seeds=SEEDS, start="noise"), latents), "needs no prior"


@pytest.mark.parametrize("scheduler_class", [DDIMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler])
def test_mean_start_is_img2img_at_strength_one_to_the_image(pipe: Any, prior: Any, scheduler_class: Any) -> None:
    scheduler = scheduler_class.from_config(pipe.scheduler.config, timestep_spacing="leading")
    pipe = with_scheduler(pipe, scheduler)
    img2img, arguments = img2img_of(pipe), {"num_inference_steps": 4, "output_type": "pt"}
    theirs = img2img(PROMPTS, image=prior.mean(CLASSES), strength=1.0, generator=generators(), **arguments).images
    latents = start(pipe, prior, PROMPTS, seeds=SEEDS, start="mean", num_inference_steps=4)
    torch.testing.assert_close(pipe(PROMPTS, latents=latents, **arguments).images, theirs, rtol=1e-4, atol=1e-5)


def test_all_kinds_share_the_noise(pipe: Any, prior: Any, options: Any) -> None:
    latents = start(pipe, prior, PROMPTS, seeds=SEEDS, **options)
    assert latents.shape == (3, 4, 8, 8) and latents.dtype == torch.float32
    if options["start"] == "noise":
        assert torch.equal(latents, noise_for(SEEDS, (4, 8, 8)))
    else:
        rest = latents - math.sqrt(1 - ABAR) * noise_for(SEEDS, (4, 8, 8))
        assert 0.002 < float(rest.std()) < 0.2, "sqrt(abar) x_start; 1.4 if the noise were another"


def test_a_seed_starts_alike_in_any_batch(pipe: Any, prior: Any, options: Any) -> None:
    whole = start(pipe, prior, PROMPTS, seeds=SEEDS, **options)
    for i in range(3):
        alone = options | ({"images": options["images"][i : i + 1]} if "images" in options else {})
        part = start(pipe, prior, PROMPTS[i], seeds=SEEDS[i], **alone)
        torch.testing.assert_close(part[0], whole[i], rtol=1e-5, atol=1e-6)
    reverse = options | ({"images": options["images"].flip(0)} if "images" in options else {})
    torch.testing.assert_close(start(pipe, prior, PROMPTS[::-1], seeds=SEEDS[::-1], **reverse), whole.flip(0))


def x_start_of(pipe: Any, prior: Any, **options: Any) -> Any:
    """What was put into the start, by taking the noise out again."""
    latents = start(pipe, prior, PROMPTS, seeds=SEEDS, **options)
    return (latents - math.sqrt(1 - ABAR) * noise_for(SEEDS, (4, 8, 8))) / math.sqrt(ABAR)


@pytest.mark.parametrize(("k", "rank"), [(None, 3), (1, 1), (2, 2)])
def test_pca_draws_lie_in_the_first_k_components(pipe: Any, prior: Any, k: Any, rank: Any) -> None:
    x_starts = x_start_of(pipe, prior, start="pca", k=k)
    for x_start, name in zip(x_starts, CLASSES, strict=True):
        gaussian = prior.gaussians[name]
        coordinates = gaussian.coordinates(x_start[None])[0]
        assert coordinates[:rank].abs().min() > 1e-2
        torch.testing.assert_close(gaussian.project(x_start[None], rank)[0], x_start, rtol=1e-3, atol=2e-3)
    assert float((x_starts[0] - x_starts[2]).norm()) > 0.02, "two seeds of one class"


def test_pca_draws_have_the_classes_spread(pipe: Any, prior: Any) -> None:
    """Standard deviations 3, 2, 1 over 400 seeds: sampling error 1 / sqrt(800), so 15 % is over 4 sigma."""
    seeds = list(range(400))
    latents = start(pipe, prior, classes="garment", seeds=seeds, start="pca")
    x_start = (latents - math.sqrt(1 - ABAR) * noise_for(seeds, (4, 8, 8))) / math.sqrt(ABAR)
    spread = prior.gaussians["garment"].coordinates(x_start).std(0)
    torch.testing.assert_close(spread, torch.tensor([3.0, 2.0, 1.0]), rtol=0.15, atol=0)
    own = [prior.gaussians["garment"].draw(1, 3, torch.Generator().manual_seed(seed)) for seed in seeds[:5]]
    assert not any(torch.allclose(a, b[0], atol=0.01) for a, b in zip(x_start, own, strict=False)), "not the noise's"


def test_components_that_were_not_fitted(pipe: Any, prior: Any) -> None:
    with raises("start", "start pca", "k of 1 to 3", "got 4", "take fewer"):
        start(pipe, prior, PROMPTS, seeds=SEEDS, start="pca", k=4)
    with raises("option", "k must", "at least 1", "got 0"):
        start(pipe, prior, PROMPTS, seeds=SEEDS, start="pca", k=0)
    flat = {n: replace(g, components=g.components[:0], variances=g.variances[:0]) for n, g in prior.gaussians.items()}
    with raises("start", "start pca", "has none", "start from the mean"):
        start(pipe, Prior(flat, prior.provenance), PROMPTS, seeds=SEEDS, start="pca")


@pytest.mark.parametrize("seed", [-1, 2**63, 1.0, True, "7", None])
def test_what_is_no_seed(pipe: Any, prior: Any, seed: Any) -> None:
    with raises("start", "a seed is a whole number from 0"):
        start(pipe, prior, "garment", seeds=[seed], start="mean")


def test_text_start_is_the_regression(pipe: Any, prior: Any) -> None:
    pooled = embed(pipe, PROMPTS)[1]
    x_starts = x_start_of(pipe, prior, start="text")
    for x_start, text, name in zip(x_starts, pooled, CLASSES, strict=True):
        gaussian, conditional = prior.gaussians[name], prior.text[name]
        shift = (0.9 * (text @ conditional.weight)) @ gaussian.components
        torch.testing.assert_close(x_start, gaussian.mean + shift.view(4, 8, 8), rtol=1e-3, atol=2e-3)
    residual = x_start_of(pipe, prior, start="text", residual=True) - x_starts
    assert float(residual.flatten(1).norm(dim=1).min()) > 0.05
    torch.testing.assert_close(prior.gaussians["garment"].project(residual[:1] + prior.mean("garment"), 3),
                               residual[:1] + prior.mean("garment"), rtol=1e-3, atol=2e-3)  # fmt: skip


def test_image_start_is_the_vaes_mode(pipe: Any, prior: Any, images: Any) -> None:
    with torch.no_grad():
        mode = pipe.vae.encode(images).latent_dist.mode() * pipe.vae.config.scaling_factor
    torch.testing.assert_close(x_start_of(pipe, prior, start="image", images=images), mode, rtol=1e-3, atol=2e-3)
    one = x_start_of(pipe, prior, start="image", images=images[:1])
    torch.testing.assert_close(one, mode[:1].expand(3, -1, -1, -1), rtol=1e-3, atol=2e-3)
    assert start(pipe, None, seeds=SEEDS, start="image", images=images).shape == (3, 4, 8, 8), "needs no prior"
    with raises("start", "(3)", "got 2"):
        start(pipe, prior, PROMPTS, seeds=SEEDS, start="image", images=images[:2])
    with raises("start", "(3)", "got none"):
        start(pipe, prior, PROMPTS, seeds=SEEDS, start="image")
    with raises("start", (16, 16), (24, 24)):
        start(pipe, prior, PROMPTS, seeds=SEEDS, start="image", images=torch.zeros(3, 3, 24, 24))


def test_options_of_another_start_are_refused(pipe: Any, prior: Any) -> None:
    with raises("option", "k 2", "start mean", "start pca or image"):
        start(pipe, prior, PROMPTS, seeds=SEEDS, start="mean", k=2)
    with raises("option", "residual True", "start mean", "start text"):
        start(pipe, prior, PROMPTS, seeds=SEEDS, start="mean", residual=True)


def test_image_start_projected_on_components(pipe: Any, prior: Any, images: Any) -> None:
    """Figs. 2, 3: what k components make of an image, by hand: no seed in it; whole again with k left out."""
    whole = x_start_of(pipe, prior, start="image", images=images)
    for k in (1, 3):
        x_starts = x_start_of(pipe, prior, start="image", images=images, k=k)
        for x_start, latent, name in zip(x_starts, whole, CLASSES, strict=True):
            gaussian = prior.gaussians[name]
            axes = gaussian.components[:k].flatten(1)
            rest = (latent - gaussian.mean).flatten()
            expected = gaussian.mean + (axes.T @ (axes @ rest)).view(4, 8, 8)
            torch.testing.assert_close(x_start, expected, rtol=1e-3, atol=5e-3)
    with raises("start", "start image", "k of 1 to 3", "got 4"):
        start(pipe, prior, PROMPTS, seeds=SEEDS, start="image", images=images, k=4)
    with raises("start", "k = 3", "a prior"):
        start(pipe, None, seeds=SEEDS, start="image", images=images, k=3)
    trained = {"gain": "window", "start": "pca", "k": 2, "start_timestep": 950}
    with pytest.warns(UserWarning, match=r"from pca \(k=2\); this start is image$"):
        start(pipe, prior, PROMPTS, seeds=SEEDS, start="image", images=images, trained_start=trained)
    with pytest.warns(UserWarning, match=r"this start is image \(k=2\)$"):
        start(pipe, prior, PROMPTS, seeds=SEEDS, start="image", images=images, k=2, trained_start=trained)


def test_literal_alpha(pipe: Any, prior: Any) -> None:
    """Eq. 8 as printed: abar_999 = .00466 (docs/concepts/method.md, section 3), though 20 steps start at 951."""
    latents = start(pipe, prior, PROMPTS, seeds=SEEDS, start="mean", literal=True)
    by_hand = math.sqrt(0.00466) * prior.mean(CLASSES) + math.sqrt(1 - 0.00466) * noise_for(SEEDS, (4, 8, 8))
    torch.testing.assert_close(latents, by_hand, rtol=1e-4, atol=1e-4)


def test_class_by_field_or_by_prefix(pipe: Any, prior: Any) -> None:
    by_prefix = start(pipe, prior, PROMPTS, seeds=SEEDS, start="mean")
    assert torch.equal(start(pipe, prior, seeds=SEEDS, start="mean", classes=CLASSES), by_prefix)
    assert torch.equal(start(pipe, prior, ["x"] * 3, seeds=SEEDS, start="mean", classes=CLASSES), by_prefix), (
        "the field goes first"
    )
    one = start(pipe, prior, seeds=SEEDS, start="mean", classes="garment")
    assert torch.equal(one[0], by_prefix[0]) and not torch.equal(one[1], by_prefix[1])
    with raises("prior", "image 1", "'shoe'", "'garment', 'garment on a person'"):
        start(pipe, prior, seeds=SEEDS, classes=["garment", "shoe", "garment"])
    with raises("prior", "'a shoe'", "'garment', 'garment on a person'"):
        start(pipe, prior, ["a shoe"] * 3, seeds=SEEDS)
    with raises("start", "classes", "3 seeds", "got 2"):
        start(pipe, prior, seeds=SEEDS, classes=CLASSES[:2])
    with raises("start", "prompts", "3 seeds", "got 2"):
        start(pipe, prior, PROMPTS[:2], seeds=SEEDS)


def test_what_a_start_cannot_be_made_of(pipe: Any, prior: Any) -> None:
    with raises("option", "start", "noise, mean, pca, text, image", "'median'"):
        start(pipe, prior, PROMPTS, seeds=SEEDS, start="median")
    with raises("start", "'mean'", "a prior"):
        start(pipe, None, PROMPTS, seeds=SEEDS, start="mean")
    silent = tiny_prior(pipe, ("garment",), text=False)
    with raises("start", "text regression", "garment"):
        start(pipe, silent, PROMPTS, seeds=SEEDS, classes="garment", start="text")
    with raises("start", "'text'", "prompts"):
        start(pipe, prior, seeds=SEEDS, classes="garment", start="text")
    with raises("prior", "vae", prior.provenance.vae):
        start(tiny_pipeline(seed=1), prior, PROMPTS, seeds=SEEDS)
    with raises("scheduler", "FlowMatchEulerDiscreteScheduler", "flow matching"):
        start(with_scheduler(pipe, FlowMatchEulerDiscreteScheduler()), prior, PROMPTS, seeds=SEEDS)


def test_another_scale_is_another_model(pipe: Any, prior: Any) -> None:
    other = copy.copy(pipe)
    other.vae = copy.deepcopy(pipe.vae)
    other.vae.register_to_config(scaling_factor=0.5)
    with raises("prior", "scaling_factor", pipe.vae.config.scaling_factor, 0.5):
        start(other, prior, PROMPTS, seeds=SEEDS, start="mean")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_a_cast_at_the_end(pipe: Any, prior: Any, dtype: Any) -> None:
    """A prior fitted in float32 belongs to the copy, and the noise is the same up to the last cast."""
    half = copy.deepcopy(pipe).to(dtype)
    latents = start(half, prior, PROMPTS, seeds=SEEDS, start="mean")
    assert latents.dtype == dtype
    assert torch.equal(latents, start(pipe, prior, PROMPTS, seeds=SEEDS, start="mean").to(dtype))


def test_no_effect_is_said(pipe: Any, prior: Any) -> None:
    zero = DDIMScheduler.from_config(pipe.scheduler.config, rescale_betas_zero_snr=True, timestep_spacing="trailing")
    blind = with_scheduler(pipe, zero)
    with pytest.warns(UserWarning, match="OB005: .*no effect"):
        latents = start(blind, prior, PROMPTS, seeds=SEEDS)
    assert torch.equal(latents, start(blind, prior, PROMPTS, seeds=SEEDS, start="noise"))
    leading = with_scheduler(pipe, DDIMScheduler.from_config(zero.config, timestep_spacing="leading"))
    start(leading, prior, PROMPTS, seeds=SEEDS)  # still leaks: no warning


def test_the_pipeline_is_left_alone(pipe: Any, prior: Any) -> None:
    pipe.scheduler.set_timesteps(7)
    before = pipe.scheduler.timesteps.clone()
    start(pipe, prior, PROMPTS, seeds=SEEDS)
    assert torch.equal(pipe.scheduler.timesteps, before)


def test_derived_generators_differ_by_seed_and_purpose() -> None:
    draws = [torch.randn(8, generator=generator_for(seed, what)) for seed in (1, 2) for what in ("x_start", "steps")]
    draws.append(noise_for([1], (8,))[0])
    assert len({tuple(draw.tolist()) for draw in draws}) == 5
    assert torch.equal(torch.randn(8, generator=generator_for(1, "steps")), draws[1])


def test_the_start_where_none_is_asked_for(pipe: Any, prior: Any) -> None:
    """What was trained with; else what the prior can do: text with prompts, the mean without, noise without a prior."""
    same = partial(start, pipe, seeds=SEEDS)
    assert torch.equal(same(prior, PROMPTS), same(prior, PROMPTS, start="text"))
    assert torch.equal(same(prior, classes=CLASSES), same(prior, classes=CLASSES, start="mean"))
    assert torch.equal(same(None, PROMPTS), same(None, PROMPTS, start="noise"))
    silent = Prior(prior.gaussians, prior.provenance)
    assert torch.equal(same(silent, PROMPTS), same(silent, PROMPTS, start="mean"))
    trained = {"gain": "constant", "start": "pca", "k": 2, "start_timestep": 951}
    assert torch.equal(
        same(prior, PROMPTS, trained_start=trained), same(prior, PROMPTS, start="pca", k=2, trained_start=trained)
    )


def test_noise_of_zero_mean_is_the_seeds_noise_without_its_mean(pipe: Any, prior: Any) -> None:
    noise, even = (start(pipe, None, PROMPTS, seeds=SEEDS, zero_mean=zero_mean) for zero_mean in (False, True))
    assert even.mean((2, 3)).abs().max() < 1e-6 < noise.mean((2, 3)).abs().max()
    torch.testing.assert_close(noise - even, noise.mean((2, 3), keepdim=True).expand_as(noise))
    plain, less = (start(pipe, prior, PROMPTS, seeds=SEEDS, start="mean", zero_mean=m) for m in (False, True))
    for start_name, expected in (("mean", less), ("noise", noise)):  # where nothing is said
        assert torch.equal(usual(pipe, prior, PROMPTS, seeds=SEEDS, start=start_name, look_ahead=0), expected)
    torch.testing.assert_close(plain - less, math.sqrt(1 - ABAR) * (noise - even), atol=1e-5, rtol=1e-4)


def test_a_record_of_an_earlier_version_says_where_to_start(pipe: Any, prior: Any) -> None:
    """Given by the caller, not read from a folder: kind and start were its start and its timestep."""
    former = {"gain": "constant", "kind": "mean", "start": 951}
    present = {"gain": "constant", "start": "mean", "start_timestep": 951}
    ours, theirs = (usual(pipe, prior, seeds=[1], classes=CLASSES[0], trained_start=r) for r in (former, present))
    assert torch.equal(ours, theirs)
    with raises("checkpoint", "trained_start", {"gain": "constant"}):
        usual(pipe, prior, seeds=[1], classes=CLASSES[0], trained_start={"gain": "constant"})


@pytest.mark.parametrize("former", ["kind", "offset"])
def test_the_former_names_of_an_argument_say_the_present_one(pipe: Any, prior: Any, former: Any) -> None:
    with raises("start", "called start", f"{former}='mean'"):
        usual(pipe, prior, seeds=[1], classes=CLASSES[0], **{former: "mean"})
