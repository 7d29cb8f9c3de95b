"""The folders that the app was opened with: photos and models that may be chosen, and a folder for each brand."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onbrand.data.listing import SUFFIXES
from onbrand.errors import OnbrandError
from onbrand.hub import is_hub_id
from onbrand.io import file_names, inside, read_json, write_json, write_text
from onbrand.models.loading import SHIPPED

BRANDS = "onbrand"
"""The folder of results in the one that was opened."""
SETTINGS = "ui.json"
"""In a brand's folder: what was last chosen for it."""
LOOK = "look.json"
"""Beside it: what step 1 saw."""
DEPTH = 3
"""Folders deep that photos and models are looked for."""
REPORT = "report.html"
"""The page that `report` writes in it."""


@dataclass(frozen=True)
class Brand:
    """One brand's folder, in the layout that `report` reads: brand/, images/NAME/, runs/NAME/."""

    path: Path

    @property
    def prior(self) -> Path:
        """What `fit` writes."""
        return self.path / "brand"

    @property
    def name(self) -> str:
        """As it was given, but for what no file may be called."""
        return self.path.name

    @property
    def settings(self) -> dict[str, Any]:
        """What was last chosen."""
        return read_json(self.path / SETTINGS)

    @property
    def look(self) -> dict[str, Any]:
        """What step 1 saw of `photos` and `model`; {} before."""
        content = read_json(self.path / LOOK)
        return {part: content[part] for part in ("photos", "model") if part in content}

    @property
    def fit(self) -> dict[str, Any]:
        """fit.json; {} before."""
        return read_json(self.prior / "fit.json")

    @property
    def leak(self) -> dict[str, Any]:
        """leak.json; {} before."""
        return read_json(self.prior / "leak.json")

    @property
    def image_sets(self) -> list[str]:
        """Folders of images, the newest first."""
        return _newest(self.path / "images", "manifest.jsonl")

    @property
    def runs(self) -> list[str]:
        """Trainings, the newest first."""
        return _newest(self.path / "runs", "config.yaml")

    def images(self, name: str) -> Path:
        """A folder of images."""
        return inside(self.path, f"images/{name}", self.path)

    def run(self, name: str) -> Path:
        """A run's folder."""
        return inside(self.path, f"runs/{name}", self.path)

    def log(self, title: str) -> Path:
        """What a job says."""
        return self.path / "ui" / f"{title}.log"

    def choose(self, **settings: Any) -> None:
        """Remembers what was chosen."""
        write_json(self.path / SETTINGS, self.settings | settings)

    def next_name(self, room: str) -> str:
        """A number, 001 and on, that nothing in images/ or runs/ begins with."""
        taken = [int(one.name[:3]) for one in (self.path / room).glob("[0-9][0-9][0-9]*")]
        return f"{max(taken, default=0) + 1:03d}"

    def write_requests(self, name: str, prompts: Sequence[str], class_name: str | None, seed: int) -> Path:
        """images/NAME.jsonl: a request a prompt, seeds from `seed` on."""
        file = self.images(f"{name}.jsonl")
        file.parent.mkdir(exist_ok=True)
        shared = {"class": class_name} if class_name else {}
        rows = [{"prompt": prompt, "seed": seed + i, **shared} for i, prompt in enumerate(prompts)]
        write_text(file, "".join(json.dumps(row) + "\n" for row in rows))
        return file

    def stamp(self) -> str:
        """Changes whenever a verb has written what is shown, but for a run's log."""
        files = [self.path / LOOK, self.prior / "fit.json", self.prior / "leak.json", self.path / REPORT]
        files += [*self.path.glob("images/*/check.json"), *self.path.glob("images/*/manifest.jsonl")]
        return _stamp([*files, *self.path.glob("runs/*/config.yaml"), *self.path.glob("runs/*/model")])

    def stamp_of_run(self, run: str) -> str:
        """Changes with the log of a run and its validation images."""
        return _stamp([self.run(run) / "log.jsonl", *(self.run(run) / "validation").glob("*.png")])


@dataclass(frozen=True)
class Studio:
    """What was opened."""

    root: Path
    models_folder: Path | None = None

    @property
    def folders(self) -> list[Path]:
        """All that may be read."""
        return [self.root] + ([self.models_folder] if self.models_folder else [])

    def brand(self, name: str | None) -> Brand:
        """A brand's folder by its name, made where it is not there. OnbrandError: it has none."""
        name = (name or "").strip()
        if not name:
            raise OnbrandError("option", "a brand has a name; give one at the top of the page")
        safe = file_names([name])[name]
        brand = Brand(self.root / BRANDS / safe)
        self.path_of(str(brand.path))
        brand.path.mkdir(parents=True, exist_ok=True)
        return brand

    def known(self, name: str | None) -> Brand | None:
        """A brand that is there; None for another."""
        return Brand(self.root / BRANDS / name) if name and name in self.brands() else None

    def brands(self) -> list[str]:
        """Names, the one that was used last first."""
        return _newest(self.root / BRANDS, SETTINGS)

    def photos(self) -> list[str]:
        """Folders that hold images or a table of them, relative to the root."""
        found = []
        for folder, files in _walk(self.root):
            some = any(Path(name).suffix.lower() in SUFFIXES or name.endswith(".parquet") for name in files)
            if (some or "metadata.jsonl" in files) and folder != self.root:
                found.append(str(folder.relative_to(self.root)))
        return found

    def models(self) -> list[str]:
        """Models that may be chosen: those that ship, folders with a model_index.json, checkpoints in one file."""
        found = [*SHIPPED]
        for start in self.folders:
            for folder, files in _walk(start):
                if "model_index.json" in files:
                    found.append(self.name_of(folder))
                else:
                    large = (folder / name for name in files if name.endswith((".safetensors", ".ckpt")))
                    found += [self.name_of(file) for file in large if file.stat().st_size > 2**28]
        return list(dict.fromkeys(found))

    def name_of(self, path: Path) -> str:
        """A path as it is shown: relative to the root where it lies in it."""
        return str(path.relative_to(self.root) if path.is_relative_to(self.root) else path)

    def path_of(self, name: str | None) -> Path:
        """A path that the page names, in one of the opened folders, links followed. OnbrandError: it leads out."""
        if not (name or "").strip():
            raise OnbrandError("option", "choose a folder of photos first")
        path = self.root / str(name)
        real = Path(os.path.realpath(path))
        if not any(real.is_relative_to(os.path.realpath(folder)) for folder in self.folders):
            raise OnbrandError(
                "folder", f"{name} lies outside of {self.root}, which was opened: put it there, or open another folder"
            )
        return path

    def model_of(self, name: str | None) -> str:
        """A model that the page names: shipped, a path in an opened folder, or a Hub id."""
        name = (name or "").strip()
        if not name:
            raise OnbrandError("option", "choose a model first")
        if name in SHIPPED or (is_hub_id(name) and not (self.root / name).exists()):
            return name
        return str(self.path_of(name))


def _walk(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Folders to DEPTH with their files, without hidden ones and the app's own results."""
    for place, folders, files in os.walk(root):
        path = Path(place)
        deep = len(path.relative_to(root).parts) >= DEPTH or "model_index.json" in files
        folders[:] = [] if deep else sorted(n for n in folders if n[0] != "." and not (n == BRANDS and path == root))
        yield path, sorted(files)


def _newest(folder: Path, mark: str) -> list[str]:
    """Names of the folders in `folder` that hold a file `mark`, the one that was last written first."""
    marks = sorted(folder.glob(f"*/{mark}"), key=lambda file: (-file.stat().st_mtime, file.parent.name))
    return [file.parent.name for file in marks]


def _stamp(files: Iterable[Path]) -> str:
    return str(sorted((str(file), file.stat().st_mtime_ns) for file in files if file.exists()))
