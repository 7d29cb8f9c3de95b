"""A folder on disk -> the page: what it shows is what the files say, and it stands alone."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import struct
import zlib
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from onbrand.reporting import figures
from onbrand.reporting.folder import read
from onbrand.reporting.page import Score, image, render
from worlds import CHECK, MANIFEST_LINE, raises

VOID = {"meta", "img", "br", "hr", "link", "input"}
PROMPTS = ("a red bag, white background", "a blue coat, white background", "a teal dress, white background")


def write_row(folder: Path, start: str, keys: list[tuple[str, int]], background: float, failures: list[str]) -> None:
    """An images folder of 8 x 8 images whose red channel is their seed; the first image fails `failures`."""
    folder.mkdir(parents=True)
    lines = []
    for i, (prompt, seed) in enumerate(keys):
        Image.new("RGB", (8, 8), (seed, 10, 20)).save(folder / f"{i:05d}.png")
        lines.append(json.dumps(MANIFEST_LINE | {"index": i, "file": f"{i:05d}.png", "prompt": prompt, "seed": seed}))
    (folder / "manifest.jsonl").write_text("\n".join(lines) + '\n{"file": "torn')
    entry = {
        "title": "on the brand's background", "rule": "within 3 of white", "rate": background, "low": background - 0.02,
        "high": background + 0.02, "n": 600,
    }  # fmt: skip
    images = [{"file": f"{i:05d}.png", "failed": failures if i == 0 else [], "values": {}} for i in range(len(keys))]
    content = CHECK | {"count": 600, "properties": {"background": entry}}
    content |= {"all": {"rate": background / 2, "low": 0.0, "high": 1.0, "n": 600}}
    (folder / "check.json").write_text(json.dumps(content | {"images": images, "command": f"onbrand check {start}"}))


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    """Two rows that share two of three (prompt, seed) pairs, a brand, a run, and a plan."""
    folder = tmp_path / "demo"
    keys = [(prompt, seed) for seed, prompt in enumerate(PROMPTS)]
    write_row(folder / "images" / "a-ours", "mean", keys[::-1], 0.96, [])
    write_row(folder / "images" / "z-plain", "noise", keys[:2], 0.05, ["background"])
    trace = folder / "images" / "a-ours" / "trace" / "00000"
    trace.mkdir(parents=True)
    for step, t in enumerate((951, 901)):
        Image.new("RGB", (8, 8), (0, 0, t % 256)).save(trace / f"{step:02d}-t{t}-x0.png")
        Image.new("RGB", (8, 8)).save(trace / f"{step:02d}-t{t}-xt.png")
    (folder / "brand" / "means").mkdir(parents=True)
    Image.new("RGB", (8, 8), (255, 255, 255)).save(folder / "brand" / "means" / "product photo.png")
    fit = {"model": "tiny", "resolution": [8, 8], "k": 4, "used": 1200, "flip": False}
    fit |= {"classes": {"product photo": {"count": 1200, "file": "product photo"}}}
    fit |= {"refused": [{"file": "photos/<b>.png", "reason": "truncated"}], "versions": {"torch": "2.13.0"}}
    (folder / "brand" / "fit.json").write_text(json.dumps(fit))
    numbers = {"count": 1200, "sigma": 6.5, "k_worth": 2, "mean_power": [9, 1], "spread_power": [4, 0.5]}
    leak: dict[str, object] = {"classes": {"product photo": numbers | {"nats": 8.0, "auc": 1.0, "brightness": 6.0}}}
    leak |= {"scheduler": "DDIMScheduler", "num_inference_steps": 20, "start_timestep": 951, "abar": 0.005}
    finding = {"code": "OB001", "title": "The mean is seen", "sentence": "It stands out.", "remedy": "Start there."}
    leak["findings"] = [finding | {"level": "problem", "class": "product photo"}]
    (folder / "brand" / "leak.json").write_text(json.dumps(leak))
    run = folder / "runs" / "ours"
    run.mkdir(parents=True)
    log = [
        {"step": s, "loss": 0.2, "loss_outside": 0.1, "loss_inside": 0.05 if s > 2 else None, "seconds": 60}
        for s in range(1, 9)
    ]
    (run / "log.jsonl").write_text("\n".join(json.dumps(line) for line in log))
    rows = [{"name": "z-plain", "caption": "Plain"}, {"name": "a-ours", "caption": "Ours"}, {"name": "missing"}]
    plan = {"title": "The demo", "before": "z-plain", "after": "a-ours", "rows": rows}
    (folder / "demo.json").write_text(json.dumps(plan))
    return folder


class Parsed(HTMLParser):
    """Collects tags, texts and the nesting's faults."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.faults: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def pixels(src: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(src.split(",", 1)[1]))).convert("RGB"))


def test_columns_are_equal_prompts_and_seeds(demo: Path) -> None:
    page = read(demo)
    assert [row.name for row in page.rows] == ["z-plain", "a-ours"]
    assert page.columns == ("a red bag", "a blue coat") and page.ending == "white background"
    for row in page.rows:  # the red channel is the seed
        assert [pixels(thumb.src)[0, 0, 0] for thumb in row.images] == [0, 1]


def test_a_row_of_other_prompts_shows_its_own_and_leaves_the_columns_as_they_are(demo: Path) -> None:
    write_row(demo / "images" / "control", "image", [("another", 70), ("one more", 71)], 0.9, [])
    (demo / "demo.json").write_text(
        json.dumps({"rows": [{"name": "z-plain"}, {"name": "control"}, {"name": "a-ours"}]})
    )
    page = read(demo)
    assert page.columns == ("a red bag", "a blue coat")
    assert [pixels(thumb.src)[0, 0, 0] for row in page.rows for thumb in row.images] == [0, 1, 70, 71, 0, 1]
    assert page.rows[1].images[0].alt == "another, seed 70"


def test_the_only_row_has_its_own_prompts_over_it(demo: Path) -> None:
    (demo / "images" / "z-plain" / "manifest.jsonl").unlink()
    assert read(demo).columns == ("a teal dress", "a blue coat", "a red bag")


def test_real_photos_have_a_row_without_seeds(demo: Path) -> None:
    real = demo / "images" / "real"
    real.mkdir()
    Image.new("RGB", (8, 8), (200, 0, 0)).save(real / "p.png")
    (real / "metadata.jsonl").write_text('{"file_name": "p.png", "text": "a photo"}\n' * 2)
    (demo / "demo.json").write_text(json.dumps({"real": "real", "after": "a-ours"}))
    page = read(demo)
    assert page.columns == ("a blue coat", "a red bag") and page.rows[1].tone == "real"
    assert [len(row.images) for row in page.rows] == [2, 2, 2]
    assert page.rows[1].images[0].alt == "photo: a photo"


def test_what_the_files_say_is_what_the_page_says(demo: Path) -> None:
    page = read(demo)
    assert page.before and page.after and (page.before.caption, page.after.caption) == ("Plain", "Ours")
    assert [number.after.text() for number in page.numbers] == ["48\u00a0%", "96\u00a0%"]
    assert page.numbers[1].before and page.numbers[1].before.text() == "5\u00a0%"
    assert page.rows[0].images[0].failed == ("background",) and not page.rows[0].images[1].failed
    assert [thumb.caption for thumb in page.strips[0].images] == ["t = 951", "t = 901"]
    assert page.findings[0].code == "OB001" and page.classes[0].count == 1200
    assert ("torch", "2.13.0") in page.facts and "onbrand check noise" in page.commands
    document = Parsed(render(page))
    dots = [attrs["style"] for tag, attrs in document.tags if tag == "b" and "style" in attrs]
    assert dots == ["left: 2.5%", "left: 48.0%", "left: 5.0%", "left: 96.0%"]


def test_the_page_stands_alone_and_is_well_formed(demo: Path) -> None:
    document = Parsed(render(read(demo)))
    assert not document.faults and not document.open
    images = [attrs for tag, attrs in document.tags if tag == "img"]
    assert len(images) > 8
    assert all((attrs["src"] or "").startswith("data:image/") and attrs["alt"] for attrs in images)
    assert not {tag for tag, _ in document.tags} & {"script", "link", "iframe", "object"}
    links = [value for _, attrs in document.tags for name, value in attrs.items() if name in ("href", "srcset")]
    assert all((value or "").startswith("#") for value in links)
    style = render(read(demo)).split("<style>")[1].split("</style>")[0]
    assert "url(" not in style and "@import" not in style and "@media print" in style
    targets = {attrs["id"] for _, attrs in document.tags if "id" in attrs}
    assert {value[1:] for value in links if value} <= targets  # every link on the page leads somewhere


def test_words_from_outside_are_escaped(demo: Path) -> None:
    html = render(replace(read(demo), title="<script>alert(1)</script>"))
    assert "<script>" not in html and "&lt;script&gt;" in html and "&lt;b&gt;.png" in html


@pytest.mark.parametrize("part", ["brand", "runs/ours", "images/a-ours", "."])
def test_any_part_has_a_page(demo: Path, part: str) -> None:
    page = read(demo / part)
    html = render(page)
    assert ("The diagnosis" in html) == (part in ("brand", "."))
    assert ("How training went" in html) == (part in ("runs/ours", "."))
    assert ('id="comparison"' in html) == (part in ("images/a-ours", "."))


def test_a_page_nobody_introduced_says_what_there_is(demo: Path) -> None:
    (demo / "demo.json").unlink()
    assert read(demo).lead == (
        "1,200 photos fitted · ours: 8 training steps, 8 minutes · a-ours: 600 images checked"
        " · z-plain: 600 images checked"
    )


def test_a_brand_elsewhere_is_named_and_not_shown(demo: Path) -> None:
    (demo / "runs" / "ours" / "run.json").write_text(json.dumps({"prior": str(demo / "brand")}))
    page = read(demo / "runs" / "ours")
    assert not page.classes and ("prior", str(demo / "brand")) in page.facts


def test_nothing_to_report_is_an_error(tmp_path: Path) -> None:
    with raises("folder", tmp_path, "fit.json", "manifest.jsonl"):
        read(tmp_path)
    with raises("folder", f"got {tmp_path / 'missing'}"):
        read(tmp_path / "missing")


def test_a_row_nobody_made_is_left_out_and_no_page_without_common_images_fails(demo: Path) -> None:
    write_row(demo / "images" / "other", "noise", [("a pink bag, white background", 77)], 0.5, [])
    (demo / "demo.json").unlink()
    assert len(read(demo).rows) == 3 and len(read(demo).columns) == 2
    (demo / "images" / "z-plain" / "manifest.jsonl").unlink()
    page = read(demo)
    assert len(page.rows) == 2 and page.columns == () and all(row.images for row in page.rows)
    assert 'aria-hidden="true"></div>' in render(page)


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (1, "100\u00a0%"),
        (0.996, "99.6\u00a0%"),
        (0.9951, "99.5\u00a0%"),
        (0.97, "97\u00a0%"),
        (0.004, "0.4\u00a0%"),
        (0, "0\u00a0%"),
    ],
)
def test_nearly_all_is_not_all(rate: float, text: str) -> None:
    assert Score("s", "s", rate).text() == text


def test_numbers_of_their_own_scale() -> None:
    texts = [Score("s", "s", value, rate=False).text() for value in (0.75, 1.0, 15.24, 136.6, 9.999)]
    assert texts == [".75", "1.00", "15.2", "137", "10.0"]
    assert Score("s", "s", 0.8, 0.75, 0.85, rate=False).interval() == ".75 to .85"


def test_a_small_image_is_kept_to_the_pixel_and_a_large_one_is_made_small() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8))
    assert np.array_equal(pixels(image(noise, "x").src), np.asarray(noise))
    large = pixels(image(Image.new("RGB", (1024, 512), (255, 255, 255)), "x").src)
    assert large.shape == (128, 256, 3) and large.min() >= 254


def test_curves_are_means_of_neighbours_and_leave_out_what_was_not_measured() -> None:
    points = [(float(i), float(i * i)) for i in range(40)]
    smooth = figures._smooth(points, 4)
    assert np.allclose(smooth, np.asarray(points).reshape(10, 4, 2).mean(1))
    log = [{"step": 1, "loss": 1.0, "loss_inside": None}, {"step": 2, "loss": 0.5, "loss_inside": None}]
    assert figures.curves({"run": log}, "loss_inside", "loss") == ""
    svg = figures.curves({"run": log}, "loss", "loss")
    assert "<svg" in svg and svg == figures.curves({"run": log}, "loss", "loss")


def test_a_run_with_held_out_images_has_their_curve_and_no_other_has(tmp_path: Path) -> None:
    for name, loss in (("with", 0.5), ("without", None)):
        lines = [{"step": s, "loss": 1.0, "seconds": 1.0, "held": loss if s % 2 else None} for s in range(1, 7)]
        (tmp_path / name).mkdir()
        (tmp_path / name / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [caption[:8] for caption, _ in read(tmp_path / "with").curves] == ["The loss", "The loss"]
    assert [caption[:8] for caption, _ in read(tmp_path / "without").curves] == ["The loss"]


def test_contact_sheet_frames_what_fails() -> None:
    images = [Image.new("RGB", (16, 16), (0, 0, 255))] * 3
    sheet = figures.contact_sheet(images, ["a", "b", "c" * 99], [[], ["background"], []], columns=2, side=40)
    assert sheet.size == (2 * 50 + 10, 2 * 94 + 10)
    colours = sheet.load()
    assert (
        colours is not None and colours[60, 30] == figures.BAD and colours[9, 30] != figures.BAD
    )  # left frames of b and a
    assert colours[30, 30] == (0, 0, 255)  # drawn at the cell's size, not at 16 pixels
    with raises("value", "contact sheet", "none"):
        figures.contact_sheet([], [], [])


SECRET = (1, 2, 3)
"""The colour of an image that no page may hold."""


def lead_out_of_a_manifest(demo: Path, secret: Path) -> None:
    row = demo / "images" / "z-plain"
    text = (row / "manifest.jsonl").read_text()
    (row / "manifest.jsonl").write_text(text.replace('"00000.png"', json.dumps(f"../../../{secret.name}")))


def lead_out_absolutely(demo: Path, secret: Path) -> None:
    row = demo / "images" / "z-plain"
    (row / "manifest.jsonl").write_text((row / "manifest.jsonl").read_text().replace('"00000.png"', f'"{secret}"'))


def lead_out_of_metadata(demo: Path, secret: Path) -> None:
    (demo / "demo.json").unlink()
    (demo / "images" / "real").mkdir()
    line = json.dumps({"file_name": f"../../../{secret.name}", "text": "a photo"})
    (demo / "images" / "real" / "metadata.jsonl").write_text(line + "\n")


def lead_out_of_a_fit(demo: Path, secret: Path) -> None:
    fit = json.loads((demo / "brand" / "fit.json").read_text())
    fit["classes"]["product photo"]["file"] = f"../../../{secret.stem}"
    (demo / "brand" / "fit.json").write_text(json.dumps(fit))


def link_an_image(demo: Path, secret: Path) -> None:
    (demo / "images" / "z-plain" / "00000.png").unlink()
    (demo / "images" / "z-plain" / "00000.png").symlink_to(secret)


def link_a_mean(demo: Path, secret: Path) -> None:
    (demo / "brand" / "means" / "product photo.png").unlink()
    (demo / "brand" / "means" / "product photo.png").symlink_to(secret)


def link_a_step(demo: Path, secret: Path) -> None:
    (demo / "images" / "a-ours" / "trace" / "00000" / "02-t851-x0.png").symlink_to(secret)


def link_a_validation_sheet(demo: Path, secret: Path) -> None:
    (demo / "runs" / "ours" / "validation").mkdir()
    (demo / "runs" / "ours" / "validation" / "step-000002.png").symlink_to(secret)


def link_a_folder_of_images(demo: Path, secret: Path) -> None:
    (demo / "images" / "more").symlink_to(secret.parent)


def link_a_json(demo: Path, secret: Path) -> None:
    (demo / "brand" / "leak.json").unlink()
    (demo / "brand" / "leak.json").symlink_to(secret.with_name("secret.json"))


LEADS = [lead_out_of_a_manifest, lead_out_absolutely, lead_out_of_metadata, lead_out_of_a_fit, link_an_image,
         link_a_mean, link_a_step, link_a_validation_sheet, link_a_folder_of_images, link_a_json]  # fmt: skip


@pytest.mark.parametrize("lead", LEADS)
def test_nothing_from_outside_of_the_folder_is_shown(demo: Path, lead: Any) -> None:
    secret = demo.parent / "secret.png"
    Image.new("RGB", (8, 8), SECRET).save(secret)
    secret.with_name("secret.json").write_text('{"classes": {}}')
    lead(demo, secret)
    with raises(
        "folder", "secret" if lead is not link_a_folder_of_images and "link" not in lead.__name__ else "a link"
    ):
        read(demo)


def eps(file: Path, mark: Path) -> None:
    """An EPS that, were Ghostscript started on it, would leave a file behind."""
    file.write_bytes(f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n({mark}) (w) file closefile\n".encode())


def bomb(file: Path, _: Path) -> None:
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks + b"\x00\x00\x00\x00IEND\xaeB`\x82")


def torn(file: Path, _: Path) -> None:
    file.write_bytes(file.read_bytes()[:40])


def empty(file: Path, _: Path) -> None:
    file.write_bytes(b"")


def gone(file: Path, _: Path) -> None:
    file.unlink()


def pipe(file: Path, _: Path) -> None:
    file.unlink()
    os.mkfifo(file)


PLACES = ["images/z-plain/00000.png", "images/a-ours/trace/00000/00-t951-x0.png", "brand/means/product photo.png",
          "runs/ours/validation/step-000002.png"]  # fmt: skip
"""Images that a page shows, one of each kind."""


@pytest.mark.parametrize(
    ("spoil", "place"),
    [*((spoil, place) for spoil in (eps, bomb, torn, empty) for place in PLACES), (gone, PLACES[0]), (pipe, PLACES[0])],
)
def test_an_image_that_cannot_be_shown_is_said_in_its_place(demo: Path, spoil: Any, place: str) -> None:
    (demo / "runs" / "ours" / "validation").mkdir()
    Image.new("RGB", (8, 8)).save(demo / "runs" / "ours" / "validation" / "step-000002.png")
    spoil(demo / place, demo / "executed")
    with pytest.warns(UserWarning, match=f"{Path(place).name}: .*the page says so"):
        html = render(read(demo))
    assert "not shown: " in html and not (demo / "executed").exists()
    assert all(attrs["src"] for tag, attrs in Parsed(html).tags if tag == "img")


NAMES = ["pay $x^{$ now", "$a$", r"\frac{1}{", "tab\tline\n", "\x1b[2J", "_hidden", "<script>alert(1)</script>", "a|b",
         "%s{0}", "' onload='x"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_drawn_and_written_as_it_is(demo: Path, name: str) -> None:
    for file in ("fit.json", "leak.json"):
        content = json.loads((demo / "brand" / file).read_text())
        content["classes"] = {name: content["classes"]["product photo"], "another": content["classes"]["product photo"]}
        (demo / "brand" / file).write_text(json.dumps(content))
    (demo / "brand" / "means").rename(demo / "brand" / "other")
    plan = json.loads((demo / "demo.json").read_text())
    shutil.copytree(demo / "runs" / "ours", demo / "runs" / "theirs")
    (demo / "demo.json").write_text(json.dumps(plan | {"runs": {"ours": name}}))
    page = read(demo)
    assert page.curves and page.modes and page.classes[0].name == name
    document = Parsed(render(page))
    assert not document.faults and not {tag for tag, _ in document.tags} & {"script"}
    assert not [key for _, attrs in document.tags for key in attrs if key.startswith("on")]
    image = Image.new("RGB", (16, 16))
    assert figures.contact_sheet([image], [name], [[name, name]]).size == (132, 176)
