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
from onbrand.core.prior_file import fingerprint_of
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


def test_numbers_are_the_same_bytes_however_long_the_header_is(tmp_path: Path) -> None:
    """A longer model name moves the tensors in the file; a product of them is rounded by where they begin in memory."""
    generator = torch.Generator().manual_seed(0)
    components = torch.linalg.qr(torch.randn(4 * 32 * 32, 16, generator=generator))[0].T.contiguous()
    garment = Gaussian(torch.randn(4, 32, 32, generator=generator), components, torch.ones(16), 99.5, 60)
    x0 = torch.randn(1, 4, 32, 32, generator=generator)
    projections = []
    for letters in range(0, 64, 8):
        Prior({"garment": garment}, replace(ABOUT, model="m" * letters)).save(tmp_path / "prior.safetensors")
        projections.append(Prior.load(tmp_path / "prior.safetensors").project(x0, "garment"))
    assert all(torch.equal(projection, projections[0]) for projection in projections)


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


def forge(path: Path, change: Any, tensors: Any = None, sealed: bool = True) -> None:
    """Rewrites a prior's header (a function that changes it) and tensors, with the fingerprint that they then have."""
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["onbrand"])
        parts = {name: file.get_tensor(name) for name in file.keys()} | (tensors or {})  # noqa: SIM118
    header.pop("fingerprint")
    change(header)
    parts = {name: part for name, part in parts.items() if part is not None}
    seal = {"fingerprint": fingerprint_of(header, parts)} if sealed and "provenance" in header else {}
    save_file(parts, path, {"onbrand": json.dumps(header | seal, sort_keys=True)})


def setting(*path: Any, to: Any) -> Any:
    """A change of a header: what lies at the path becomes `to`."""

    def change(header: Any) -> None:
        for step in path[:-1]:
            header = header[step]
        header[path[-1]] = to

    return change


def without(*path: Any) -> Any:
    """A change of a header: what lies at the path is taken out."""

    def change(header: Any) -> None:
        for step in path[:-1]:
            header = header[step]
        del header[path[-1]]

    return change


@pytest.mark.parametrize(
    ("change", "values"),
    [
        (setting("classes", 0, "count", to="many"), ("'garment'", "count 'many'")),
        (setting("classes", 0, "count", to=0), ("'garment'", "count 0")),
        (setting("classes", 0, "count", to=True), ("count True",)),
        (setting("classes", 0, "count", to=1.5), ("count 1.5",)),
        (setting("classes", 1, "total", to="wide"), ("'garment on a person'", "total variance", "'wide'")),
        (setting("classes", 1, "total", to=float("nan")), ("not so total",)),
        (setting("classes", 1, "total", to=float("inf")), ("not so total",)),
        (setting("classes", 1, "total", to=-1.0), ("negative variance",)),
        (setting("classes", 1, "total", to=1e30), ("total", "over 1e+06")),
        (setting("classes", 1, "total", to=1.0), ("part of its total", "total 1")),
        (setting("classes", 1, "total", to=None), ("total variance", "None")),
        (setting("classes", 2, "alpha", to="a"), ("'Büste'", "alpha", "'a'")),
        (setting("classes", 2, "alpha", to=-1), ("alpha", "-1")),
        (setting("classes", 2, "alpha", to=None), ("tensors", "class.2.text.intercept")),
        (setting("classes", 0, "alpha", to=1.0), ("tensors", "class.0.text.intercept")),
        (setting("classes", 0, "name", to=3), ("class",)),
        (setting("classes", 0, "name", to=""), ("class",)),
        (setting("classes", 0, "name", to="Büste"), ("twice",)),
        (setting("classes", 0, to=[]), ("class", "alpha, count, name, total")),
        (setting("classes", to=[]), ("tensors",)),
        (setting("classes", to={}), ("classes",)),
        (without("classes", 0, "count"), ("alpha, count, name, total",)),
        (without("classes"), ("classes",)),
        (without("provenance"), ("provenance",)),
        (without("provenance", "vae"), ("provenance", "vae")),
        (setting("provenance", "resolution", to=[0, 64]), ("resolution", "1 to 65536", "(0, 64)")),
        (setting("provenance", "resolution", to=[64]), ("resolution", "(64,)")),
        (setting("provenance", "resolution", to=[64.0, 48]), ("resolution", "64.0")),
        (setting("provenance", "resolution", to=64), ("resolution", "64")),
        (setting("provenance", "scaling_factor", to=0), ("scaling_factor", "above 0")),
        (setting("provenance", "scaling_factor", to=float("inf")), ("scaling_factor", "inf")),
        (setting("provenance", "shift_factor", to=float("nan")), ("shift_factor", "nan")),
        (setting("provenance", "flip", to=1), ("flip", "true or false")),
        (setting("provenance", "ground", to=[0, 0, 256]), ("background", "0 to 255", "256")),
        (setting("provenance", "ground", to="white"), ("background", "'white'")),
        (setting("provenance", "model", to=None), ("model", "None")),
        (setting("provenance", "vae", to=["ab"]), ("vae", "ab")),
        (setting("provenance", "paper", to=1), ("provenance",)),
        (setting("format", to=2), ("format 1", "2")),
        (setting("format", to="1"), ("format 1", "'1'")),
        (setting("more", to="\0"), ("NUL",)),
    ],
)
def test_a_forged_header_is_refused_with_its_field(prior: Any, tmp_path: Path, change: Any, values: Any) -> None:
    prior.save(path := tmp_path / "prior.safetensors")
    forge(path, change)
    with raises("prior", f"{path} is damaged", *values, "fit it again"):
        Prior.load(path)


VARIANCES = torch.tensor([30.0, 15.0, 10.0])


@pytest.mark.parametrize(
    ("part", "tensor", "values"),
    [
        ("class.0.variances", VARIANCES * 1e30, ("'garment'", "over 1e+06")),
        ("class.0.variances", VARIANCES * 100, ("part of its total",)),
        ("class.0.variances", VARIANCES.flip(0), ("fall",)),
        ("class.0.variances", -VARIANCES, ("negative variance",)),
        ("class.0.variances", VARIANCES.double(), ("float32", "class.0.variances")),
        ("class.0.variances", VARIANCES.half(), ("float32",)),
        ("class.0.variances", VARIANCES[:2], ("(3, 192)", "(2,)")),
        ("class.0.variances", VARIANCES[:, None], ("(3, 1)",)),
        ("class.0.variances", torch.tensor(1.0), ("()",)),
        ("class.0.mean", torch.full((4, 8, 6), torch.nan), ("not so mean",)),
        ("class.0.mean", torch.full((4, 8, 6), 1e9), ("over 1e+06",)),
        ("class.0.mean", torch.zeros(4, 8, 8), ("256 numbers",)),
        ("class.0.mean", torch.zeros(4, 0, 6), ("(4, 0, 6)",)),
        ("class.0.mean", torch.zeros(4, 8, 6, dtype=torch.int64), ("float32",)),
        ("class.0.mean", None, ("class.0.mean",)),
        ("class.0.components", torch.zeros(3, 192), ("orthonormal",)),
        ("class.0.components", torch.full((3, 192), torch.inf), ("not so components",)),
        ("class.2.text.shrink", torch.tensor([0.5, 2.0, 0.1]), ("'Büste'", "shrink", "[0, 1]")),
        ("class.2.text.r2", torch.tensor([0.5, 2.0, 0.1]), ("r2",)),
        ("class.2.text.residual", -torch.eye(3), ("residual", "negative variance")),
        ("class.2.text.residual", torch.eye(2), ("residual", "(3, 3)")),
        ("class.2.text.weight", torch.full((7, 3), 1e20), ("weight",)),
        ("class.2.text.weight", torch.zeros(7), ("(7,)",)),
        ("class.2.text.text_mean", torch.full((7,), torch.nan), ("text_mean",)),
        ("class.9.mean", torch.zeros(1), ("class.9.mean",)),
    ],
)
def test_forged_tensors_are_refused_with_their_name(
    prior: Any, tmp_path: Path, part: Any, tensor: Any, values: Any
) -> None:
    prior.save(path := tmp_path / "prior.safetensors")
    forge(path, lambda header: None, {part: tensor})
    with raises("prior", f"{path} is damaged", *values, "fit it again"):
        Prior.load(path)


def test_the_same_forged_with_nothing_is_the_same(prior: Any, tmp_path: Path) -> None:
    prior.save(path := tmp_path / "prior.safetensors")
    forge(path, lambda header: None)
    assert Prior.load(path).fingerprint == prior.fingerprint
    forge(path, lambda header: None, sealed=False)
    with raises("prior", path, "fingerprint"):
        Prior.load(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "[" * 9999, '{"a": ' + "9" * 5000 + "}"])
def test_a_header_that_is_no_json_is_refused(tmp_path: Path, text: str) -> None:
    save_file({"class.0.mean": torch.zeros(1)}, path := tmp_path / "prior.safetensors", {"onbrand": text})
    with raises("prior", f"{path} is damaged", "fit it again"):
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
    with raises("value", "'garment on a person'", "2 components", "k = 3"):
        prior.sample(prior.classes, 3)
    with raises("value", "'garment on a person'", "2 components", "k = 3"):
        prior.project(torch.zeros(1, 4, 8, 6), "garment on a person", 3)
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
