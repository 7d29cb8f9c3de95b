"""The prior as a file: the same after a round trip, refused where it does not belong, nothing executed."""

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from onbrand.core import Conditional, Gaussian, Prior, Provenance
from worlds import raises

ABOUT = Provenance("ab" * 32, 0.18215, 0.0, (64, 48), "owner/model", True, (255, 254, 253))


def gaussian(seed: int, k: int = 3) -> Gaussian:
    generator = torch.Generator().manual_seed(seed)
    components = torch.linalg.qr(torch.randn(4 * 8 * 6, k, generator=generator))[0].T.contiguous()
    return Gaussian(
        torch.randn(4, 8, 6, generator=generator), components, 30.0 / torch.arange(1, k + 1), 99.5, 60 + seed
    )


def regression(k: int = 3) -> Conditional:
    generator = torch.Generator().manual_seed(5)
    numbers = [torch.rand(size, generator=generator) for size in ((7, k), (7,), (k,), (k,))]
    weight, text_mean, intercept, shrink = numbers
    return Conditional(weight, text_mean, intercept, shrink, torch.eye(k), shrink - 0.1, alpha=10.0)


@pytest.fixture
def prior() -> Prior:
    classes = {"garment": gaussian(1), "garment on a person": gaussian(2, 2), "Büste": gaussian(3)}
    return Prior(classes, ABOUT, {"Büste": regression()})


def test_a_round_trip_changes_nothing(prior: Any, tmp_path: Path) -> None:
    prior.save(tmp_path / "new" / "prior.safetensors")
    copy = Prior.load(tmp_path / "new" / "prior.safetensors")
    assert copy.classes == prior.classes and copy.provenance == ABOUT
    assert (copy.k, copy.shape) == (2, (4, 8, 6))
    assert [g.count for g in copy.gaussians.values()] == [61, 62, 63]
    for name, original in prior.gaussians.items():
        torch.testing.assert_close(copy.mean(name)[0], original.mean, rtol=0, atol=0)
        torch.testing.assert_close(copy.gaussians[name].components, original.components, rtol=0, atol=0)
        assert copy.gaussians[name].residual == original.residual
    embedding = torch.randn(2, 7)
    draws = [p.text["Büste"].mean(p.gaussians["Büste"], embedding) for p in (prior, copy)]
    torch.testing.assert_close(*draws, rtol=0, atol=0)
    assert copy.fingerprint == prior.fingerprint
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["prior.safetensors"]


def test_equal_priors_are_equal_bytes(prior: Any, tmp_path: Path) -> None:
    for name in "abcdef":
        prior.save(tmp_path / name)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_the_file_is_plain_safetensors(prior: Any, tmp_path: Path) -> None:
    prior.save(tmp_path / "prior.safetensors")
    assert torch.equal(load_file(tmp_path / "prior.safetensors")["class.0.mean"], prior.gaussians["garment"].mean)


def test_the_fingerprint_tells_every_change(prior: Any) -> None:
    garment = prior.gaussians["garment"]
    other = Gaussian(garment.mean + 1e-6, garment.components, garment.variances, garment.total, garment.count)
    variants = [
        Prior({**prior.gaussians, "garment": other}, ABOUT, prior.text),
        Prior(prior.gaussians, replace(ABOUT, flip=False), prior.text),
        Prior(prior.gaussians, ABOUT),
        Prior({name.title(): g for name, g in prior.gaussians.items()}, ABOUT),
    ]
    assert len({p.fingerprint for p in [prior, *variants]}) == 5


def test_a_file_that_is_no_prior_is_refused_and_not_executed(prior: Any, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "executed",)

    (tmp_path / "trap").write_bytes(pickle.dumps(Trap()))
    with raises("prior", "safetensors", f"{tmp_path / 'trap'} is not"):
        Prior.load(tmp_path / "trap")
    assert not (tmp_path / "executed").exists()
    pickle.loads((tmp_path / "trap").read_bytes())
    assert (tmp_path / "executed").exists()  # the trap was a live one

    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with raises("prior", "no prior", tmp_path / "foreign.safetensors"):
        Prior.load(tmp_path / "foreign.safetensors")
    with raises("prior", "onbrand fit", tmp_path / "missing.safetensors"):
        Prior.load(tmp_path / "missing.safetensors")


def test_an_altered_file_is_refused(prior: Any, tmp_path: Path) -> None:
    path = tmp_path / "prior.safetensors"
    prior.save(path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # the last bit of a tensor
    path.write_bytes(content)
    with raises("prior", "fingerprint", path):
        Prior.load(path)


def test_it_refuses_a_model_that_it_does_not_belong_to(prior: Any) -> None:
    prior.check(vae="ab" * 32, resolution=(64, 48), scaling_factor=0.18215, shift_factor=0.0)
    prior.check()
    settings = {"vae": "cd" * 32, "resolution": 64, "scaling_factor": 0.13025, "shift_factor": 0.1}
    for name, value in settings.items():
        own = getattr(ABOUT, name)
        with raises("prior", f"{name} {own}", "'owner/model'", value if name != "resolution" else (value, value)):
            prior.check(**{name: value})


def test_it_knows_its_text_encoder_and_is_known_by_what_it_was_before(prior: Any, tmp_path: Path) -> None:
    """A prior of before has none, is read, and goes with any; its fingerprint is the numbers', with or without."""
    new = Prior(prior.gaussians, replace(ABOUT, text_encoder="ef" * 32), prior.text)
    for one in (prior, new):
        one.save(tmp_path / "one")
        assert Prior.load(tmp_path / "one").provenance == one.provenance
        with safe_open(tmp_path / "one", "pt") as file:
            about = json.loads(file.metadata()["onbrand"])["provenance"]
        assert ("text_encoder" in about) == (one is new)
    assert new.fingerprint == prior.fingerprint
    for value in ("ef" * 32, None):
        new.check(text_encoder=value)
    prior.check(text_encoder="cd" * 32)
    with raises("prior", "text_encoder", "ef" * 32, "cd" * 32, "'owner/model'", "start mean"):
        new.check(text_encoder="cd" * 32)


def test_each_image_gets_its_class(prior: Any) -> None:
    names = ["garment on a person", "garment", "garment"]
    means = prior.mean(names)
    torch.testing.assert_close(means, torch.stack([prior.gaussians[name].mean for name in names]))
    assert prior.mean("garment").shape == (1, 4, 8, 6)
    x0 = torch.randn(3, 4, 8, 6)
    torch.testing.assert_close(prior.project(x0, names, 2)[:1], prior.gaussians[names[0]].project(x0[:1], 2))
    torch.testing.assert_close(prior.project(x0, "garment", 2)[:1], prior.gaussians["garment"].project(x0[:1], 2))
    first, again = (prior.sample(names, 2, torch.Generator().manual_seed(4)) for _ in range(2))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert (
        prior.gaussians["garment"].coordinates(first[1:2]) - prior.gaussians["garment"].coordinates(first[2:])
    ).any()
    torch.testing.assert_close(prior.sample(names, 0), means)


def test_draws_are_given_their_own_class(prior: Any) -> None:
    names = [name for name in prior.classes for _ in range(4)]
    classes, likelihoods = prior.classify(prior.sample(names, 2) + 0.1 * torch.randn(12, 4, 8, 6))
    assert classes == names and likelihoods.shape == (12, 3)


def test_the_class_is_the_prompts_longest_prefix(prior: Any) -> None:
    assert prior.class_of("garment, a red boot") == "garment"
    assert prior.class_of("Garment on a person wearing it") == "garment on a person"
    assert prior.class_of("  büste") == "Büste"
    for prompt in ("garments, two", "a garment", ""):
        with raises("prior", repr(prompt), "'garment', 'garment on a person', 'Büste'"):
            prior.class_of(prompt)
    assert Prior({"only": gaussian(1)}, ABOUT).class_of("anything at all") == "only"


def test_wrong_input_is_refused(prior: Any) -> None:
    for call in (lambda: prior.mean("shoe"), lambda: prior.sample(["garment", "shoe"], 1)):
        with raises("prior", "'shoe'", "'garment', 'garment on a person', 'Büste'"):
            call()
    with raises("value", "2 components", "k = 3"):
        prior.sample(prior.classes, 3)
    with raises("prior", "2 names", "3 images"):
        prior.project(torch.zeros(3, 4, 8, 6), ["garment"] * 2, 1)
    with raises("prior", "one class", "none"):
        Prior({}, ABOUT)
    with raises("prior", "(4, 8, 6)", "(4, 8, 8)"):
        Prior(
            {"a": gaussian(1), "b": Gaussian(torch.zeros(4, 8, 8), torch.zeros(0, 256), torch.zeros(0), 1.0, 9)}, ABOUT
        )
    with raises("prior", "'a'", "2 components", "has 3"):
        Prior({"a": gaussian(1)}, ABOUT, {"a": regression(2)})
    with raises("prior", "'b'", "'a'"):
        Prior({"a": gaussian(1)}, ABOUT, {"b": regression()})


def test_a_copy_in_half_precision_keeps_its_classes(prior: Any) -> None:
    half = prior.to(dtype=torch.float16)
    assert half.mean("garment").dtype == torch.float16 and half.text["Büste"].weight.dtype == torch.float16
    torch.testing.assert_close(half.mean("garment").float(), prior.mean("garment"), rtol=1e-3, atol=1e-3)
    assert prior.mean("garment").dtype == torch.float32
