"""More images than one folder should hold: folders of FLAT, a table beside the lines, and what reads them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onbrand
from datasets import load_dataset
from onbrand.comparison.baselines import paste
from onbrand.comparison.tables import grid
from onbrand.evaluation.loading import open_images
from onbrand.options.generate import SamplingSettings
from onbrand.sampling import manifest
from onbrand.sampling.manifest import read_manifest, remake, write_images, write_table
from onbrand.sampling.requests import Request, read_requests
from worlds import MANIFEST_LINE, raises, write_blocks

REQUESTS = [
    Request(f"garment, item {seed}", 10 + seed, attributes={"colour": "red"} if seed % 2 else None) for seed in range(5)
]
CONFIG = SamplingSettings(num_inference_steps=1, guidance_scale=1.0, batch_size=2, start="mean")
NESTED = ["00000/00000.png", "00000/00001.png", "00001/00002.png", "00001/00003.png", "00002/00004.png"]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images a folder."""
    monkeypatch.setattr(manifest, "FLAT", 2)


@pytest.fixture(scope="module")
def flat(pipe: Any, prior: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flat") / "images"
    list(write_images(folder, pipe, prior, REQUESTS, CONFIG))
    return folder


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("[0-9]*.png"))}


def names_of(folder: Path) -> list[str]:
    return [entry["file"] for _, entry in sorted(read_manifest(folder).items())]


@pytest.mark.usefixtures("few")
def test_more_go_into_folders_the_same_images(pipe: Any, prior: Any, flat: Path, tmp_path: Path) -> None:
    list(write_images(tmp_path / "p", pipe, prior, REQUESTS, CONFIG))
    assert names_of(tmp_path / "p") == NESTED and all((tmp_path / "p" / name).is_file() for name in NESTED)
    assert bytes_of(tmp_path / "p") == bytes_of(flat) and not list((tmp_path / "p").glob("*.png"))
    remake(tmp_path / "p", 3, pipe, prior).image.save(tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "p" / NESTED[3]).read_bytes()


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("count", [1, 2, 3])
def test_stopped_and_gone_on_with(pipe: Any, prior: Any, flat: Path, tmp_path: Path, count: int) -> None:
    images = write_images(tmp_path / "p", pipe, prior, REQUESTS, CONFIG)
    for _ in range(count):
        next(images)
    images.close()
    draft = tmp_path / "p" / "00000" / ".00001.png.0123456789abcdef.tmp"
    draft.write_bytes(b"half an ima")
    (tmp_path / "p" / NESTED[0]).write_bytes(b"damaged")
    with pytest.warns(UserWarning, match=r"\(image 0\): they are made again"):
        indices = [image.index for image in write_images(tmp_path / "p", pipe, prior, REQUESTS, CONFIG)]
    assert indices == [0, *range(count, 5)] and bytes_of(tmp_path / "p") == bytes_of(flat) and not draft.exists()


def test_a_folder_goes_on_as_it_began(
    pipe: Any, prior: Any, flat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older, newer = shutil.copytree(flat, tmp_path / "older"), tmp_path / "newer"
    monkeypatch.setattr(manifest, "FLAT", 4)
    longer = [*REQUESTS, Request("garment, new", 5)]
    assert [image.index for image in write_images(older, pipe, prior, longer, CONFIG)] == [5]
    assert names_of(older) == [f"{index:05d}.png" for index in range(6)]
    images = write_images(newer, pipe, prior, longer, CONFIG)
    next(images)
    images.close()
    assert [image.index for image in write_images(newer, pipe, prior, longer[:3], CONFIG)] == [1, 2]
    assert names_of(newer) == ["00000/00000.png", "00000/00001.png", "00000/00002.png"]


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("target", ["elsewhere", "p/00000", "nothing"])
def test_nothing_is_written_through_a_link(pipe: Any, prior: Any, tmp_path: Path, target: str) -> None:
    images = write_images(tmp_path / "p", pipe, prior, REQUESTS, CONFIG)
    next(images)
    images.close()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "p" / "00001").symlink_to(tmp_path / target)
    with raises("folder", tmp_path / "p" / "00001", "link"):
        write_images(tmp_path / "p", pipe, prior, REQUESTS, CONFIG)
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.usefixtures("few")
def test_what_reads_images_reads_both(world: Path, tmp_path: Path) -> None:
    folders = {}
    write_blocks(tmp_path / "photos", 24)
    for name, most in (("nested", 2), ("plain", 1000)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(manifest, "FLAT", most)
            folders[name] = tmp_path / name
            (tmp_path / "r.txt").write_text("block, red\n" * 3)
            options: dict[str, Any] = {"start": "noise", "num_inference_steps": 1, "guidance_scale": 1.0}
            files = onbrand.generate(tmp_path / "r.txt", model=world / "model", output_dir=tmp_path / name, **options)
            assert all(file.is_file() for file in files)
        onbrand.report(tmp_path / name)
        paste(tmp_path / name, tmp_path / f"{name} pasted", (16, 16))
        grid([tmp_path / name], tmp_path / f"{name}.webp", 2)
    nested = sorted(folders["nested"].glob("*/0*.png"))
    assert [path.relative_to(folders["nested"]).as_posix() for path in nested] == NESTED[:3]
    checks = {name: onbrand.check(folder, tmp_path / "photos").content for name, folder in folders.items()}
    assert [entry["file"] for entry in checks["nested"]["images"]] == NESTED[:3]
    kept = {name: [(one["failed"], one["values"]) for one in checks[name]["images"]] for name in checks}
    assert kept["nested"] == kept["plain"] and checks["nested"]["all"] == checks["plain"]["all"]
    assert (tmp_path / "nested.webp").read_bytes() == (tmp_path / "plain.webp").read_bytes()
    pasted = [open_images(tmp_path / f"{name} pasted", (16, 16), None).pixels for name in folders]
    assert np.array_equal(*pasted)


@pytest.mark.usefixtures("few")
def test_the_table_has_the_rows_of_the_manifest(pipe: Any, prior: Any, tmp_path: Path) -> None:
    requests = [
        *REQUESTS[:4],
        replace(REQUESTS[4], attributes={}, seed=2**63 - 1, prompt="garment, \u00e9 \U0001f457\n"),
    ]
    list(write_images(tmp_path / "p", pipe, prior, requests, CONFIG))
    entries = read_manifest(tmp_path / "p")
    entries[1]["draws"] = [{"seed": 11, "failed": ["pose"]}, {"seed": 7, "failed": []}]
    entries[2] |= {"height": 16, "width": 16}
    write_table(tmp_path / "p", dict(reversed(entries.items())))
    rows = load_dataset(
        "parquet", data_files=str(tmp_path / "p" / "manifest.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    ).to_list()
    assert set(rows[0]) == {name for entry in entries.values() for name in entry}
    entries[4]["attributes"] = None  # Parquet holds no object without keys
    assert rows == [{name: entries[index].get(name) for name in rows[0]} for index in range(5)]


@pytest.mark.usefixtures("few")
def test_the_table_is_there_once_all_images_are(world: Path, tmp_path: Path) -> None:
    table, options = tmp_path / "p" / "manifest.parquet", {"start": "noise", "num_inference_steps": 1}

    def generate(count: int) -> None:
        (tmp_path / "r.txt").write_text("block\n" * count)
        onbrand.generate(tmp_path / "r.txt", model=world / "model", output_dir=tmp_path / "p", **options)

    generate(2)
    assert not table.exists(), "two images need none"
    generate(3)
    content = table.read_bytes()
    generate(3)
    assert table.read_bytes() == content
    (tmp_path / "p" / "00002.png").unlink()
    pipe, requests = onbrand.api._inputs.open_model(world / "model", "cpu"), read_requests(tmp_path / "r.txt")
    images = write_images(tmp_path / "p", pipe, None, requests, SamplingSettings(**options))
    assert not table.exists(), "not while an image is missing"
    images.close()
    generate(3)
    assert table.read_bytes() == content


def test_what_lines_have_in_common_is_held_once(tmp_path: Path) -> None:
    rows = [
        {**MANIFEST_LINE, "index": index, "file": f"{index}.png", "prompt": "a", "scheduler": {"n": index // 2}}
        for index in range(4)
    ]  # fmt: skip
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"index": 4')
    entries = read_manifest(tmp_path)
    assert list(entries.values()) == rows
    assert entries[0]["scheduler"] is entries[1]["scheduler"] is not entries[2]["scheduler"]
    first, second = ({name: name for name in entry} for entry in (entries[0], entries[3]))
    assert all(first[name] is second[name] for name in first)
