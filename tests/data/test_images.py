"""Odd but good images: the pixels a viewer shows; broken ones: refused with the reason; padding: nothing is lost."""

import os
import warnings
import zlib
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageOps
from samples import BROKEN, break_one, chunk, content, draw, png

from onbrand.data.images import background_of, open_image, pad, to_image, to_tensor
from onbrand.errors import UnreadableImage
from worlds import raises


def pixels_of(data: Any, **options: Any) -> Any:
    image = open_image("a.png", data, **options)
    assert image.mode == "RGB"
    return np.asarray(image)


def reason_of(file: Any, content: Any = None) -> Any:
    """The error that says why a file cannot be used."""
    with pytest.raises(UnreadableImage) as error:
        open_image(file, content)
    return error.value


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_images_are_refused_with_their_reason(tmp_path: Path, fault: Any) -> None:
    name = break_one(tmp_path, fault, 3)
    error = reason_of(tmp_path / name)
    assert error.file == tmp_path / name and BROKEN[fault][2] in error.reason


def test_pipes_and_huge_files_are_refused_without_being_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for ever
    with open(tmp_path / "huge.png", "wb") as file:
        file.truncate((1 << 30) + 1)
    assert "regular" in reason_of(tmp_path / "pipe.png").reason
    assert "1 GiB" in reason_of(tmp_path / "huge.png").reason


def test_a_file_no_decoder_survives_is_still_only_refused() -> None:
    sound = content(draw(0), "TIFF", compression="tiff_lzw")
    for seed in range(60):
        rng = np.random.default_rng(seed)
        data = bytearray(sound if seed % 2 else content(draw(seed), "GIF"))
        for place in rng.integers(4, len(data), 20):
            data[place] = rng.integers(256)
        with suppress(UnreadableImage):
            open_image("a", bytes(data))


def test_the_suffix_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "really.png").write_bytes(content(draw(1), "WEBP", lossless=True))
    assert np.array_equal(np.asarray(open_image(tmp_path / "really.png")), draw(1))


def test_grey_palette_and_one_bit_are_the_same_image() -> None:
    grey = draw(2)[..., 0]
    for mode in ("L", "P"):
        assert np.array_equal(pixels_of(content(Image.fromarray(grey).convert(mode))), grey[..., None].repeat(3, 2))
    bits = Image.fromarray(grey > 99)
    assert np.array_equal(pixels_of(content(bits))[..., 0], np.where(grey > 99, 255, 0))


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_scaled_and_not_clipped(file_format: Any) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (20, 30)).astype(np.uint16)
    deep[0, :4] = 0, 257 * 7, 65535, 300
    actual = pixels_of(content(Image.fromarray(deep), file_format))
    assert np.array_equal(actual, np.round(deep / 257).astype(np.uint8)[..., None].repeat(3, 2))


def test_16_bit_rgb_keeps_its_high_byte() -> None:
    deep = np.random.default_rng(1).integers(0, 65536, (20, 30, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in deep)
    pixels = pixels_of(png(30, 20, zlib.compress(rows), depth=16)).astype(int)
    assert np.abs(pixels - deep / 257).max() <= 1


@pytest.mark.parametrize("background", [(255, 255, 255), (10, 200, 90)])
def test_transparency_lies_over_the_background(background: Any) -> None:
    rng = np.random.default_rng(3)
    rgb, alpha = rng.integers(0, 256, (20, 30, 3)).astype(np.uint8), rng.integers(0, 256, (20, 30)).astype(np.uint8)
    share = alpha[..., None] / 255

    def over(colour: Any) -> Any:
        return colour * share + np.array(background) * (1 - share)

    rgba = np.concatenate([rgb, alpha[..., None]], 2)
    assert np.abs(pixels_of(content(rgba), background=background) - over(rgb)).max() <= 1
    la = Image.merge("LA", [Image.fromarray(rgb[..., 0]), Image.fromarray(alpha)])
    assert np.abs(pixels_of(content(la), background=background) - over(rgb[..., :1])).max() <= 1


@pytest.mark.parametrize("transparency", ["one colour", "a share each"])
def test_a_palette_with_transparency_lies_over_white(transparency: Any) -> None:
    indices = np.random.default_rng(4).integers(0, 4, (20, 30)).astype(np.uint8)
    palette = np.array([[255, 0, 0], [0, 90, 0], [0, 0, 77], [3, 2, 1]], np.uint8)
    image = Image.fromarray(indices).convert("P")
    image.putdata(indices.ravel().tolist())
    image.putpalette(palette.ravel().tolist())
    alpha = np.array([255, 255, 0, 255] if transparency == "one colour" else [255, 128, 0, 51])
    actual = pixels_of(content(image, transparency=2 if transparency == "one colour" else bytes(alpha.tolist())))
    share = alpha[indices][..., None] / 255
    assert np.abs(actual - (palette[indices] * share + 255 * (1 - share))).max() <= 1


def test_a_grey_of_16_bits_may_name_one_value_transparent() -> None:
    deep = (np.random.default_rng(5).integers(0, 9, (20, 30)) * 1000).astype(">u2")
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in deep))
    actual = pixels_of(png(30, 20, data, depth=16, colour=0, extra=chunk(b"tRNS", (4000).to_bytes(2, "big"))))
    assert np.array_equal(actual[..., 0], np.where(deep == 4000, 255, np.round(deep / 257)))


def test_cmyk_is_seen_in_its_own_colours() -> None:
    inks = Image.new("CMYK", (20, 30), (0, 255, 255, 0))
    inks.paste((0, 0, 0, 0), (0, 0, 20, 15))
    assert np.array_equal(pixels_of(content(inks, "TIFF"))[[0, 29], 0], [[255, 255, 255], [255, 0, 0]])
    jpeg = pixels_of(content(inks, "JPEG", quality=100)).astype(int)  # Adobe's are stored inverted
    assert np.abs(jpeg[[0, 29], 0] - [[255, 255, 255], [255, 0, 0]]).max() <= 3


@pytest.mark.parametrize("alpha", [False, True])
def test_an_embedded_profile_is_applied_and_white_stays_white(alpha: Any) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    tags = {srgb[at : at + 4]: at for at in range(132, 132 + 12 * int.from_bytes(srgb[128:132], "big"), 12)}
    profile = bytearray(srgb.replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be")).replace(b"sRGB", b"swap"))
    red, green = tags[b"rXYZ"] + 4, tags[b"gXYZ"] + 4  # this profile's red is green, and its green red
    profile[red : red + 8], profile[green : green + 8] = srgb[green : green + 8], srgb[red : red + 8]
    pixels = draw(6)
    image = Image.fromarray(pixels).convert("RGBA" if alpha else "RGB")
    actual = pixels_of(content(image, icc_profile=bytes(profile))).astype(int)
    assert np.abs(actual - pixels[..., [1, 0, 2]]).max() <= 3 and np.all(actual[pixels.min(2) == 255] == 255)
    assert np.array_equal(pixels_of(content(image, icc_profile=srgb)), pixels)
    assert np.array_equal(pixels_of(content(image, icc_profile=b"no profile")), pixels)


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "TIFF", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_the_image_upright(file_format: Any, orientation: Any) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.zeros((24, 40, 3), np.uint8)
    pixels[:8, :16], pixels[16:, :8] = (255, 0, 0), (0, 0, 255)
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}
    data = content(pixels, file_format, exif=exif, **options.get(file_format, {}))
    truth = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.swapaxes(0, 1),
        6: np.rot90(pixels, -1),
        7: np.rot90(pixels, 2).swapaxes(0, 1),
        8: np.rot90(pixels),
    }[orientation]
    actual = pixels_of(data)
    assert actual.shape == truth.shape
    assert np.abs(actual.astype(int) - truth).max() <= (3 if file_format == "JPEG" else 0)
    assert np.array_equal(actual, np.asarray(ImageOps.exif_transpose(Image.open(BytesIO(data))).convert("RGB")))


def test_a_phones_jpeg_of_several_images_is_one_image() -> None:
    first, preview = Image.fromarray(draw(7)), Image.fromarray(draw(8, (16, 16)))
    jpeg = content(first, "MPO", save_all=True, append_images=[preview], quality=95)
    assert Image.open(BytesIO(jpeg)).format == "MPO"
    assert pixels_of(jpeg).shape == (32, 32, 3)


def test_up_to_100_megapixels_are_taken_without_a_warning() -> None:
    header = png(9_600, 10_000, zlib.compress(b"0"), depth=1, colour=0)  # over the 89 from which Pillow warns
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "truncated" in reason_of("a", header).reason  # it went on to decode it


def test_the_background_is_the_borders_median() -> None:
    photo = np.where(np.random.default_rng(0).random((128, 128, 3)) < 0.7, 255, 254).astype(np.uint8)
    photo[20:100, 20:100] = 30
    photo[40:60, 120:] = 0  # the product leaves the frame
    assert background_of(Image.fromarray(photo)) == (255, 255, 255)
    tint = np.full((64, 64, 3), (250, 128, 3), np.uint8)
    assert background_of(Image.fromarray(tint)) == (250, 128, 3)
    assert background_of(Image.fromarray(draw(0, (16, 200)))) == (255, 255, 255)


def test_padding_a_noisy_jpeg_leaves_no_seam() -> None:
    pixels = np.clip(np.random.default_rng(1).normal(254.7, 0.4, (60, 30, 3)).round(), 0, 255).astype(np.uint8)
    canvas = np.asarray(pad(open_image("a", content(pixels, "JPEG", quality=95)), (60, 60)))
    assert np.all(canvas[:, :15] == 255) and np.all(canvas[:, 45:] == 255)


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (200, 40), (50, 33)])
@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (100, 100), (300, 60)])
def test_padding_keeps_all_of_the_product(size: Any, shape: Any) -> None:
    pixels = np.full((*shape, 3), 255, np.uint8)
    pixels[1:-1, 1:-1] = 55  # a product up to one pixel of the edge: any crop would take of it
    scale = min(size[0] / shape[0], size[1] / shape[1])
    canvas = np.asarray(pad(Image.fromarray(pixels), size))
    assert canvas.shape == (*size, 3)
    mass = (255 - canvas.astype(float)).sum() / scale**2
    assert mass == pytest.approx((255 - pixels.astype(float)).sum(), rel=0.06)
    dark = np.argwhere(canvas.min(2) < 200)
    centre = (dark.min(0) + dark.max(0)) / 2
    assert np.abs(centre - (np.array(size) - 1) / 2).max() <= 1


def test_at_its_own_size_an_image_is_untouched_and_a_given_background_is_used() -> None:
    assert np.array_equal(np.asarray(pad(Image.fromarray(draw(1)), (32, 32))), draw(1))
    canvas = np.asarray(pad(Image.fromarray(draw(1)), (32, 40), (1, 2, 3)))
    assert np.array_equal(canvas[:, 4:36], draw(1)) and np.all(canvas[:, :4] == (1, 2, 3))
    with raises("image", (0, 32)):
        pad(Image.fromarray(draw(1)), (0, 32))


def test_pixels_survive_the_way_to_a_tensor_and_back() -> None:
    every = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    tensor = to_tensor(Image.fromarray(every))
    assert tensor.shape == (3, 16, 16) and tensor.dtype == torch.float32
    assert tensor.min() == -1 and tensor.max() == 1
    assert np.array_equal(np.asarray(to_image(tensor)), every)
    assert np.array_equal(np.asarray(to_image(tensor * 3)).max(), 255)
    with raises("image", (1, 3, 16, 16)):
        to_image(tensor[None])


PROGRAMS = {
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n",
    "binary eps": b"\xc5\xd0\xd3\xc6\x1e\x00\x00\x00"
    + b"\x00" * 22
    + b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "pdf": b"%PDF-1.7\n",
    "wmf": b"\xd7\xcd\xc6\x9a\x00\x00" + b"\x00" * 60,
    "psd": b"8BPS\x00\x01" + b"\x00" * 40,
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='http://localhost/x'/></svg>",
    "xpm": b"/* XPM */\nstatic char * a[] = {\n",
    "ico": b"\x00\x00\x01\x00\x01\x00\x20\x20\x00\x00\x01\x00\x20\x00",
    "zip": b"PK\x03\x04" + b"\x00" * 40,
    "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
}


@pytest.mark.parametrize("kind", PROGRAMS)
def test_what_is_no_image_of_ours_is_opened_by_no_other_program(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: Any, **__: Any) -> None:
        raise AssertionError("a program was started")

    for name in ("Popen", "run", "call", "check_call"):
        monkeypatch.setattr(f"subprocess.{name}", start)
    assert "not an image" in reason_of(f"a.{kind}", PROGRAMS[kind] * 3).reason


def test_too_little_memory_is_no_damage_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_: Any) -> None:
        raise MemoryError

    data = content(draw(0))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(MemoryError):
        open_image("a.png", data)


def test_a_profile_that_unpacks_to_gigabytes_is_refused() -> None:
    profile = chunk(b"iCCP", b"a\x00\x00" + zlib.compress(b"\x00" * 50_000_000))
    data = content(draw(0))
    assert "damaged" in reason_of("a.png", data[:33] + profile + data[33:]).reason


def test_what_is_only_shown_may_be_smaller() -> None:
    data = content(np.zeros((4, 9, 3), np.uint8))
    assert "at least 16 pixels" in reason_of("a.png", data).reason
    assert open_image("a.png", data, smallest=1).size == (9, 4)
