"""The work of a comparison: a training and a row of pictures are jobs, named by content, shared by any processes."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from onbrand.api._check import check
from onbrand.api._generate import generate
from onbrand.api._inputs import open_model
from onbrand.api._train import train
from onbrand.comparison.baselines import paste, through
from onbrand.comparison.methods import Method, Training
from onbrand.core import Prior
from onbrand.core.prior import FILE as PRIOR
from onbrand.options.generate import GenerateConfig
from onbrand.training.state import LATER, counting, flatten

if TYPE_CHECKING:
    from onbrand.comparison.tables import Line

WAIT = 3.0
"""Seconds between two looks for work that another process has in hand."""


@dataclass(frozen=True)
class Job:
    """One piece of work, done when `mark` is there."""

    words: str
    mark: Path
    run: Callable[[], object]
    needs: Path | None = None
    """A mark that must be there first."""


def work(jobs: Sequence[Job], locks: Path, say: Callable[[str], None]) -> dict[str, str]:
    """Do the jobs, in order, but those that another process has in hand; returns the reasons of those that failed.

    Started several times, the same comparison is shared: a lock is the operating system's and falls with its process.
    """
    locks.mkdir(parents=True, exist_ok=True)
    failed: dict[str, str] = {}
    broken: set[Path] = set()
    began = time.time()
    while True:
        left = [job for job in jobs if not job.mark.exists() and job.mark not in broken]
        if not left:
            return failed
        moved = False
        for job in left:
            if job.needs in broken:
                broken.add(job.mark)
                failed[job.words], moved = "its training failed", True
            elif job.needs is None or job.needs.exists():
                try:
                    with FileLock(locks / f"{hashlib.sha256(str(job.mark).encode()).hexdigest()[:16]}.lock", timeout=0):
                        if not job.mark.exists():
                            done = sum(other.mark.exists() for other in jobs)
                            say(f"[{done + 1}/{len(jobs)}] {job.words} ({time.time() - began:.0f} s so far)")
                            job.run()
                            if not job.mark.exists():  # or it would be done for ever
                                raise ValueError(f"it left no {job.mark}")
                            moved = True
                except Timeout:
                    continue
                except (ValueError, FloatingPointError) as error:
                    broken.add(job.mark)
                    failed[job.words], moved = str(error), True
                    say(f"failed: {job.words}: {error}")
        if not moved:
            time.sleep(WAIT)


def named(*parts: object) -> str:
    """Twelve hex digits of what determines a piece of work."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:12]


def slug(name: str) -> str:
    """A method's name as a folder's."""
    return name.replace("/", "_").replace(":", "-").replace("@", "_at_")


@dataclass(frozen=True)
class Trials:
    """Where everything of a comparison lies, and how each piece is made."""

    photos: str | Path
    model: str | Path
    out: Path
    split: str | None
    device: str | None
    reader: str | None
    clip: str | None
    files: dict[str, Path]
    """Set of requests -> its file; "": the prompts."""
    priors: dict[str, Path]
    """Name -> prior; "": the brand's folder."""
    models: dict[str, Path]
    """Training with a noise schedule of its own -> the model that it starts from."""
    fitted: Prior
    weights: str
    """Fingerprint of the stock model's denoiser and text encoder."""

    @property
    def origin(self) -> tuple[str, ...]:
        """What all work depends on."""
        return str(self.photos), str(self.split), self.weights, self.fitted.fingerprint

    def run_of(self, training: Training, steps: bool = True) -> Path:
        """A training's folder, named by what determines its weights; without `steps`, whatever their number.

        Settings of LATER count where they are not what they were before: a folder keeps its name."""
        assert training.config is not None
        flat = {k: v for k, v in flatten(training.config).items() if k != "steps" and not k.startswith("log.")}
        settings = {k: v for k, v in counting(flat).items() if k not in LATER or v != LATER[k]}
        name = f"{slug(training.base)}-{named(training.base, settings, *self.origin)}"
        return self.out / "runs" / (f"{name}-{training.config.steps}" if steps else name)

    def pictures_of(self, method: Method) -> Path:
        """The folder of a method's pictures, named by what determines them."""
        weights = "" if method.training.config is None else self.run_of(method.training).name
        asked = hashlib.sha256(self.files[method.requests].read_bytes()).hexdigest()
        usual = asdict(GenerateConfig()) | {"look_ahead": 0}  # as before there were looks: folders keep their names
        start = {name: value for name, value in asdict(method.start).items() if value != usual[name]}
        told = (weights, start, method.pasted, asked, self.priors[method.prior].name, *self.origin)
        return self.out / "pictures" / f"{slug(method.name)}-{named(*told)}"

    def held(self, held: str | Path) -> dict[str, Path]:
        """A copy of the held-out pictures, to be checked beside the rows, and where the autoencoder returns them to."""
        listed = sorted((str(file.relative_to(held)), file.stat().st_size) for file in Path(held).rglob("*"))
        folder = self.out / "pictures" / f"real-{named(str(held), listed)}"
        if not folder.exists():
            draft = folder.with_name(f".{folder.name}.tmp")
            shutil.copytree(held, draft, ignore=shutil.ignore_patterns("check.*"), dirs_exist_ok=True)
            draft.rename(folder)
        return {"real": folder, "autoencoder": folder.with_name(f"autoencoder-{named(folder.name, *self.origin)}")}

    def checked(self, folder: Path) -> Path:
        """The file that a folder has once it was checked by these judges."""
        return folder / f".checked-{named(self.reader, self.clip)}"

    def jobs(self, methods: Sequence[Method], held: Mapping[str, Path]) -> list[Job]:
        """Every training and every row, in the methods' order; what a long training goes on from comes before it."""
        found: dict[Path, Job] = {}
        for name, folder in held.items():
            make = partial(self.check, folder) if name == "real" else partial(self.returned, held["real"], folder)
            found[self.checked(folder)] = Job(f"checking real pictures ({name})", self.checked(folder), make)
        trainings = {self.run_of(m.training): m.training for m in methods if m.training.config}

        def add(training: Training) -> Path:
            mark = model_mark(self.run_of(training))
            if mark not in found:
                shorter = self.shorter(training, trainings.values())
                needs = add(shorter) if shorter else None
                found[mark] = Job(f"fine-tuning: {training.words}", mark, partial(self.train, training, shorter), needs)
            return mark

        for method in methods:
            needs = add(method.training) if method.training.config else None
            mark = self.checked(self.pictures_of(method))
            found[mark] = Job(f"pictures: {method.name}", mark, partial(self.row, method), needs)
        return list(found.values())

    def shorter(self, training: Training, others: Iterable[Training]) -> Training | None:
        """The longest of the other trainings that this one can go on from: the same but for fewer steps."""
        assert training.config is not None
        same = [one for one in others if one.config and self.run_of(one, False) == self.run_of(training, False)]
        fewer = [one for one in same if one.config and one.config.steps < training.config.steps]
        return max(fewer, key=lambda one: one.config.steps if one.config else 0, default=None)

    def train(self, training: Training, shorter: Training | None) -> None:
        """One fine-tuning, on from a shorter one where there is one."""
        run = self.run_of(training)
        assert training.config is not None
        if shorter and not run.exists():
            made, draft = self.run_of(shorter), run.with_name(f".{run.name}.tmp")
            shutil.rmtree(draft, ignore_errors=True)
            shutil.copytree(made / "state", draft / "state")
            shutil.copy2(made / "log.jsonl", draft)
            draft.rename(run)
        train(self.photos, self.models.get(training.schedule, self.model), run, prior=self.priors[training.prior],
              config=training.config, split=self.split, device=self.device)  # fmt: skip

    def row(self, method: Method) -> None:
        """One row of pictures, made and checked."""
        folder = self.pictures_of(method)
        made = folder.with_name(f"{folder.name}-unpasted") if method.pasted else folder
        weights = self.model if method.training.config is None else self.run_of(method.training)
        prior, start = self.priors[method.prior], method.start
        if method.prior.startswith("leak"):  # every component that was fitted
            start = replace(start, k=Prior.load(prior / PRIOR).k)
        generate(self.files[method.requests], model=weights, out=made, config=start, prior=prior, device=self.device)
        if method.pasted:
            paste(made, folder, self.fitted.provenance.resolution)
        self.check(folder)

    def returned(self, real: Path, folder: Path) -> None:
        """Real pictures through the model's autoencoder, made and checked."""
        if not folder.exists():
            through(open_model(self.model, self.device), real, folder, self.fitted.provenance.resolution)
        self.check(folder)

    def check(self, folder: Path) -> None:
        check(folder, self.photos, split=self.split, prior=self.priors[""], model=self.model, reader=self.reader,
              clip=self.clip, device=self.device)  # fmt: skip
        self.checked(folder).touch()

    def line(self, method: Method, scheduler: object) -> Line:
        """What a table says of a method, the mismatch told beforehand included; scheduler: the stock model's."""
        from onbrand.comparison.tables import Line

        # of a rival's prior, and of what the network will propose, nothing is known beforehand
        unknown = method.prior.startswith("leak") or method.start.look_ahead
        nats = None if unknown else self.mismatch(method, scheduler)
        return Line(method.name, method.training.words, method.words, self.pictures_of(method), method.requests, nats)

    def mismatch(self, method: Method, scheduler: object) -> float:
        """Nats a picture at the method's first step, mean over the classes: it needs no network and no picture."""
        from onbrand.core.leak import mismatch
        from onbrand.models.scheduler import read, saved, with_options

        base, start = self.models.get(method.training.schedule), method.start
        live = with_options(saved(base) if base else scheduler, start.scheduler, start.spacing)
        abar = read(live, start.steps).abar
        config = method.training.config
        trained = "picture" if config is None or config.offset == "none" else str(config.offset)
        kind = str(start.start)
        begun = {"image": "picture" if start.k is None else "pca"}.get(kind, kind)
        text = self.fitted.text
        found = [
            mismatch(gaussian, abar, trained, begun, text[name].shrink if name in text else 0.0, start.k)
            for name, gaussian in self.fitted.gaussians.items()
        ]
        return sum(found) / len(found)


def model_mark(run: Path) -> Path:
    """What a finished run has, and no other: it gets its name when it is whole."""
    return run / "model"
