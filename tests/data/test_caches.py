"""Other trainers' latent caches: read if they are this model's, of the whole image and new; else said by name."""

import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from samples import KEY, Encoder, content, draw

from onbrand.data.caches import KNOWN, Caches
from onbrand.data.encode import encode_all
from onbrand.data.images import open_image, to_tensor
from onbrand.data.latents import Key, Store
from onbrand.data.records import read_folder
from onbrand.io import digest
from onbrand.models import pipeline
from onbrand.models.fitting import encode_records
from worlds import FAMILIES, raises, tiny_pipeline

MD5 = {"hex": "0123456789abcdef" * 2, "base 64": "AbC-_ef0123456789abcde"}


def draws(file: Path) -> Any:
    """What a trainer would have cached: the encoder's mean and a little noise."""
    mean = Encoder()(to_tensor(open_image(file))[None])[0][0]
    return mean + 0.01 * torch.randn(mean.shape, generator=torch.Generator().manual_seed(1))


def kohya(file: Path, latents: Any, end: str = "", suffix: str = "_0032x0032_sd", **others: Any) -> Path:
    cache = file.with_name(f"{file.stem}{suffix}.npz")
    arrays = {"latents": latents.numpy(), "original_size": np.array([32, 32]), "crop_ltrb": np.array([0, 0, 32, 32])}
    np.savez(cache, **{f"{name}{end}": value for name, value in (arrays | others).items()})
    return cache


def toolkit(file: Path, latents: Any, md5: str = MD5["hex"], **about: Any) -> Path:
    cache = file.parent / "_latent_cache" / f"{file.stem}_{md5}.safetensors"
    cache.parent.mkdir(exist_ok=True)
    said = {"scale_to_width": "32", "crop_width": "32", "scale_to_height": "32", "crop_height": "32", "flip_x": "false"}
    save_file({"latent": latents.contiguous()}, cache, metadata=said | about)
    return cache


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(6):
        (folder / f"{i}.png").write_bytes(content(draw(i)))
        os.utime(folder / f"{i}.png", (1e9, 1e9))
    return folder


def encode(photos: Path, folder: Path, trainer: Any, scale: float = 0.18215, family: str = "sd") -> Any:
    """(store, summary, encoder) of photos whose caches are read."""
    store, encoder = Store(folder, Key(KEY.vae, KEY.resolution, source=trainer)), Encoder()
    caches = Caches(trainer, (32, 32), (4, 4, 4), family, scale)
    summary = encode_all(read_folder(photos)[0], encoder, store, batch=4, progress=False, caches=caches)
    return store, summary, encoder


@pytest.mark.parametrize(
    "write",
    [
        kohya,
        lambda file, latents: kohya(file, latents, "_4x4"),
        lambda file, latents: kohya(file, latents, suffix=""),
        toolkit,
        lambda file, latents: toolkit(file, latents, MD5["base 64"]),
        lambda file, latents: toolkit(file, latents * 0.18215),
    ],
    ids=["kohya", "kohya, sizes in keys", "kohya, old", "ai-toolkit", "ai-toolkit, base 64", "ai-toolkit, scaled"],
)
def test_caches_are_read_and_not_encoded(photos: Path, tmp_path: Path, write: Any, request: Any, capsys: Any) -> None:
    for file in sorted(photos.glob("*.png")):
        write(file, draws(file))
    trainer = "ai-toolkit" if "ai-toolkit" in request.node.name else "kohya"
    store, summary, encoder = encode(photos, tmp_path / "store", trainer)
    assert summary.encoded == 0 and encoder.count == 6  # each is compared
    mean, logvar = store.get(summary.keys)
    assert torch.allclose(mean, torch.stack([draws(one.file) for one in summary.used]), atol=1e-5)
    assert (logvar == KNOWN).all()
    assert f"6 latents read from the caches of {trainer}" in capsys.readouterr().err
    own = Store(tmp_path / "store", KEY)
    assert own.folder != store.folder and len(own) == 0  # a fit without caches has latents of its own
    again, _, encoder = encode(photos, tmp_path / "other", trainer)
    names = [file.name for file in store.folder.iterdir()]
    assert all((again.folder / name).read_bytes() == (store.folder / name).read_bytes() for name in names)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_reads_the_caches_that_kohya_names_after_it(photos: Path, tmp_path: Path, family: str) -> None:
    pipe = tiny_pipeline(family=family, size=32)
    for record in read_folder(photos)[0]:
        mean = pipeline.encode(pipe, to_tensor(record.open())[None])[0][0]
        kohya(record.file, mean, suffix=f"_0032x0032_{'sdxl' if family == 'sdxl' else 'sd'}")
        kohya(record.file, mean + 99, suffix=f"_0032x0032_{'sd' if family == 'sdxl' else 'sdxl'}")
    _, summary = encode_records(pipe, read_folder(photos)[0], tmp_path / "store", (32, 32), False, source="kohya")
    assert (len(summary.used), summary.encoded) == (6, 0)


def test_the_key_of_a_store_of_before_is_what_it_was() -> None:
    about = {"vae": KEY.vae, "resolution": [32, 32], "flip": False, "ground": None, "dtype": "float32"}
    assert KEY.digest == digest(json.dumps(about | {"preparation": 1}, sort_keys=True).encode())
    assert "source" not in KEY.about


def older(cache: Path, file: Path, latents: Any) -> None:
    os.utime(file)
    os.utime(cache, (1e9, 1e9))


def bomb(cache: Path, file: Path, latents: Any) -> None:
    with zipfile.ZipFile(cache, "w") as archive:
        header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (4, 100000, 100000), }"
        archive.writestr("latents.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)


class Trap:
    def __reduce__(self) -> Any:
        return os.mkdir, ("executed",)


def pickled(cache: Path) -> None:
    np.savez(cache, latents=np.array([Trap()], object))


UNFIT = {
    "older": (older, "newer than their cache"),
    "another size": (lambda c, f, z: kohya(f, torch.zeros(4, 8, 8)), "of another size or model, not 4 x 4 x 4"),
    "16 channels": (lambda c, f, z: kohya(f, torch.zeros(16, 4, 4)), "of another size or model, not 4 x 4 x 4"),
    "not finite": (lambda c, f, z: kohya(f, z.index_fill(0, torch.tensor([0]), float("nan"))), "cache is not finite"),
    "another image's": (lambda c, f, z: kohya(f, z, original_size=np.array([64, 32])), "of an image of another size"),
    "sdxl": (lambda c, f, z: c.rename(f.with_name(f"{f.stem}_0032x0032_sdxl.npz")), "without one"),
    "cut": (lambda c, f, z: c.write_bytes(c.read_bytes()[:300]), "damaged"),
    "empty": (lambda c, f, z: c.write_bytes(b""), "damaged"),
    "pickle": (lambda c, f, z: c.write_bytes(pickle.dumps(Trap())), "damaged"),
    "pickled array": (lambda c, f, z: pickled(c), "of another size or model"),
    "terabytes": (bomb, "of another size or model"),
    "integers": (lambda c, f, z: kohya(f, z.int()), "of another size or model"),
    "transparent": (lambda c, f, z: recolour(c, f), "with transparency"),
    "ratio": (lambda c, f, z: reshape(c, f), "of another ratio"),
}


def recolour(cache: Path, file: Path) -> None:
    file.write_bytes(content(open_image(file).convert("RGBA")))
    os.utime(file, (1e9, 1e9))


def reshape(cache: Path, file: Path) -> None:
    file.write_bytes(content(draw(2, (32, 48))))
    os.utime(file, (1e9, 1e9))


@pytest.mark.filterwarnings("ignore::UserWarning:zipfile")
@pytest.mark.parametrize("fault", UNFIT)
def test_a_cache_that_cannot_be_right_is_said_and_its_image_encoded(
    photos: Path, tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for file in photos.glob("*.png"):
        kohya(file, draws(file))
    change, word = UNFIT[fault]
    file = photos / "2.png"
    change(photos / "2_0032x0032_sd.npz", file, draws(file))
    with pytest.warns(UserWarning, match="not all latents are read from the caches of kohya: 1 images") as said:
        store, summary, _ = encode(photos, tmp_path / "store", "kohya")
    assert word in str(said[0].message) and str(file) in str(said[0].message)
    assert summary.encoded == 1 and len(summary.used) == 6 and not Path("executed").exists()
    mean, logvar = store.get(summary.keys)
    assert [bool((row == KNOWN).all()) for row in logvar] == [True, True, False, True, True, True]


@pytest.mark.parametrize(
    ("about", "word"),
    [({"flip_x": "true"}, "of a mirrored image"), ({"scale_to_width": "64"}, "of a part of the image")],
)
def test_mirrored_and_cropped_latents_are_not_read(photos: Path, tmp_path: Path, about: Any, word: str) -> None:
    for file in photos.glob("*.png"):
        toolkit(file, draws(file))
    toolkit(photos / "2.png", draws(photos / "2.png"), **about)
    with pytest.warns(UserWarning, match=f"1 images whose cache is {word}"):
        assert encode(photos, tmp_path / "store", "ai-toolkit")[1].encoded == 1


@pytest.mark.parametrize("fault", ["another model", "scaled", "mirrored"])
def test_caches_of_another_model_are_refused(photos: Path, tmp_path: Path, fault: str) -> None:
    for i, file in enumerate(sorted(photos.glob("*.png"))):
        latents = draws(file)
        noise = torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(i))
        kohya(file, {"another model": noise, "scaled": latents * 0.18215, "mirrored": latents.flip(-1)}[fault])
    with raises("latents", photos / "0.png", "not this model's", "Leave latents_from out"):
        encode(photos, tmp_path / "store", "kohya")


def test_photos_without_any_cache_are_an_error(photos: Path, tmp_path: Path) -> None:
    with raises("latents", "no cache of kohya", "none is there"):
        encode(photos, tmp_path / "store", "kohya")
    kohya(photos / "0.png", torch.zeros(4, 8, 8))
    with raises("latents", "1 images whose cache is of another size or model", "latents_from"):
        encode(photos, tmp_path / "store", "kohya")
