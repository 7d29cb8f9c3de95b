"""The work of a comparison: a training and a row of images are jobs, named by content, shared by any processes."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from onbrand.api._check import check
from onbrand.api._generate import generate
from onbrand.api._inputs import open_model
from onbrand.api._output import LOCK
from onbrand.api._train import train
from onbrand.comparison.baselines import paste, through
from onbrand.comparison.methods import Method, Training
from onbrand.core import Prior
from onbrand.core.prior import FILE as PRIOR
from onbrand.errors import OnbrandError
from onbrand.io import whole_folder
from onbrand.models.checkpoint import base_of, is_lora
from onbrand.options.former import BEFORE, GENERATE, downgrade
from onbrand.options.generate import SamplingSettings
from onbrand.training.state import STEPLESS, counting, settings_of

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
    beginning = time.time()
    while True:
        rest = [job for job in jobs if not job.mark.exists() and job.mark not in broken]
        if not rest:
            return failed
        progress = False
        for job in rest:
            if job.needs in broken:
                broken.add(job.mark)
                failed[job.words], progress = "its training failed", True
            elif job.needs is None or job.needs.exists():
                try:
                    with FileLock(locks / f"{hashlib.sha256(str(job.mark).encode()).hexdigest()[:16]}.lock", timeout=0):
                        if not job.mark.exists():
                            count = sum(other.mark.exists() for other in jobs)
                            say(f"[{count + 1}/{len(jobs)}] {job.words} ({time.time() - beginning:.0f} s so far)")
                            job.run()
                            if not job.mark.exists():  # or it would be done for ever
                                raise OnbrandError("comparison", f"the work left no {job.mark}")
                            progress = True
                except Timeout:
                    continue
                except OnbrandError as error:
                    if error.code == "space":  # there is none for the others either
                        raise
                    broken.add(job.mark)
                    failed[job.words], progress = str(error), True
                    say(f"failed: {job.words}: {error}")
        if not progress:
            time.sleep(WAIT)


def named(*parts: object) -> str:
    """Twelve hex digits of what determines a piece of work."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:12]


def slug(name: str) -> str:
    """A method's name as a folder's."""
    name = name.replace("/", "_").replace(":", "-").replace("@", "_at_")
    return re.sub(r'[\x00-\x1f\x7f<>"\\|?*]', "_", name)[:120]


@dataclass(frozen=True)
class Trials:
    """Where everything of a comparison lies, and how each piece is made."""

    photos: str | Path
    model: str | Path
    out: Path
    split: str | None
    device: str | None
    attributes: str | Path | None
    clip: str | Path | None
    files: dict[str, Path]
    """Set of requests -> its file; "": the prompts."""
    priors: dict[str, Path]
    """Name -> prior; "": the brand's folder."""
    models: dict[str, Path]
    """Training with a noise schedule of its own -> the model that it starts from."""
    fitted: Prior
    weights: str
    """Fingerprint of the denoiser and the text encoder of the model as it is."""
    config: str | Path | None = None
    """Of a model in one file: a folder of its kind in diffusers' layout."""
    folders: dict[str, Path] = field(default_factory=dict, compare=False)
    """What determines a row of images, as twelve digits -> its folder: methods that are the same work share it."""

    @property
    def origin(self) -> tuple[str, ...]:
        """What all work depends on."""
        return str(self.photos), str(self.split), self.weights, self.fitted.fingerprint

    def run_of(self, training: Training, steps: bool = True) -> Path:
        """A training's folder, named by what determines its weights; without `steps`, whatever their number.

        The hash is that of the names of schema 1, and later settings count only if they are not what they were before:
        work that is finished is found again."""
        assert training.config is not None
        before, stops = BEFORE["train"], training.config.early_stopping_patience is not None
        settings = {
            k: v for k, v in counting(settings_of(training.config)).items() if k not in before or v != before[k]
        }
        former = {k: v for k, v in downgrade(settings).items() if k != "steps" and (stops or not k.startswith("log."))}
        name = f"{slug(training.base)}-{named(training.base, former, *self.origin)}"
        return self.out / "runs" / (f"{name}-{training.config.max_train_steps}" if steps else name)

    def images_of(self, method: Method) -> Path:
        """The folder of a method's images: its name, for people, and a hash of what determines them.

        The hash decides. A folder that is there by another name, of a method that is the same work, is the method's."""
        weights = "" if method.training.config is None else self.run_of(method.training).name
        prompts = hashlib.sha256(self.files[method.requests].read_bytes()).hexdigest()
        default = asdict(SamplingSettings()) | {"look_ahead": 0}  # as before there were looks: folders keep their names
        former = {new: old for old, new in GENERATE.items()}
        settings = {name: value for name, value in asdict(method.start).items() if value != default[name]}
        start = {former.get(name, name): value for name, value in settings.items()}
        digits = named(weights, start, method.paste, prompts, self.priors[method.prior].name, *self.origin)
        if digits not in self.folders:
            own = self.out / "images" / f"{slug(method.name)}-{digits}"
            others = [] if own.exists() else sorted((self.out / "images").glob(f"[!.]*-{digits}"))
            self.folders[digits] = others[0] if others else own
        return self.folders[digits]

    def references(self, real: str | Path) -> dict[str, Path]:
        """A copy of real images, to be checked beside the rows, and where the autoencoder returns them to."""
        files = (file for file in Path(real).rglob("*") if file.name != LOCK)
        listed = sorted((str(file.relative_to(real)), file.stat().st_size) for file in files)
        folder = self.out / "images" / f"real-{named(str(real), listed)}"
        if not folder.exists():
            with whole_folder(folder) as draft:
                shutil.copytree(real, draft, ignore=shutil.ignore_patterns("check.*", LOCK), dirs_exist_ok=True)
        return {"real": folder, "autoencoder": folder.with_name(f"autoencoder-{named(folder.name, *self.origin)}")}

    def checked(self, folder: Path) -> Path:
        """The file that a folder has once it was checked by these judges."""
        return folder / f".checked-{named(self.attributes, self.clip)}"

    def jobs(self, methods: Sequence[Method], references: Mapping[str, Path]) -> list[Job]:
        """Every training and every row, in the methods' order; what a long training goes on from comes before it."""
        jobs: dict[Path, Job] = {}
        for name, folder in references.items():
            make = partial(self.check, folder) if name == "real" else partial(self.returned, references["real"], folder)
            jobs[self.checked(folder)] = Job(f"checking real images ({name})", self.checked(folder), make)
        trainings = {self.run_of(m.training): m.training for m in methods if m.training.config}

        def add(training: Training) -> Path:
            mark = model_mark(self.run_of(training))
            if mark not in jobs:
                shorter = self.shorter(training, trainings.values())
                needs = add(shorter) if shorter else None
                jobs[mark] = Job(f"fine-tuning: {training.words}", mark, partial(self.train, training, shorter), needs)
            return mark

        for method in methods:
            needs = add(method.training) if method.training.config else None
            mark = self.checked(self.images_of(method))
            jobs.setdefault(mark, Job(f"images: {method.name}", mark, partial(self.row, method), needs))
        return list(jobs.values())

    def shorter(self, training: Training, others: Iterable[Training]) -> Training | None:
        """The longest of the other trainings that this one can go on from: the same but for fewer steps."""
        assert training.config is not None
        if training.config.lr_scheduler not in STEPLESS:
            return None
        same = [one for one in others if one.config and self.run_of(one, False) == self.run_of(training, False)]
        fewer = [one for one in same if one.config and one.config.max_train_steps < training.config.max_train_steps]
        return max(fewer, key=lambda one: one.config.max_train_steps if one.config else 0, default=None)

    def train(self, training: Training, shorter: Training | None) -> None:
        """One fine-tuning, on from a shorter one where there is one."""
        run = self.run_of(training)
        assert training.config is not None
        if shorter and not run.exists():
            with whole_folder(run) as draft:
                shutil.copytree(self.run_of(shorter) / "state", draft / "state")
                shutil.copy2(self.run_of(shorter) / "log.jsonl", draft)
        model, prior = self.models.get(training.schedule, self.model), self.priors[training.prior]
        train(self.photos, model, run, prior=prior, **vars(training.config), split=self.split, device=self.device,
              model_config=self.config_of(model))  # fmt: skip

    def config_of(self, model: str | Path) -> str | Path | None:
        """The `config` for a model, or for a run, if what it is made of is one file."""
        base = base_of(model) if is_lora(model) else model
        return self.config if Path(base).is_file() else None

    def row(self, method: Method) -> None:
        """One row of images, made and checked."""
        folder = self.images_of(method)
        raw = folder.with_name(f"{folder.name}-unpasted") if method.paste else folder
        weights = self.model if method.training.config is None else self.run_of(method.training)
        prior, start = self.priors[method.prior], method.start
        if method.prior.startswith("leak") and start.k is None:  # all of its components
            start = replace(start, k=Prior.load(prior / PRIOR).k)
        generate(
            self.files[method.requests], model=weights, output_dir=raw, **vars(start), prior=prior, device=self.device,
            model_config=self.config_of(weights),
        )  # fmt: skip
        if method.paste:
            paste(raw, folder, self.fitted.provenance.resolution)
        self.check(folder)

    def returned(self, real: Path, folder: Path) -> None:
        """Real images through the model's autoencoder, made and checked."""
        if not folder.exists():
            through(
                open_model(self.model, self.device, config=self.config), real, folder, self.fitted.provenance.resolution
            )
        self.check(folder)

    def check(self, folder: Path) -> None:
        """Check a folder of images by the comparison's judges, and mark it."""
        check(folder, self.photos, split=self.split, prior=self.priors[""], model=self.model,
              attributes=self.attributes, clip=self.clip, device=self.device, model_config=self.config)  # fmt: skip
        self.checked(folder).touch()

    def line(self, method: Method, scheduler: object) -> Line:
        """What a table says of a method, its mismatch included; scheduler: of the model as it is."""
        from onbrand.comparison.tables import Line

        config, start = method.training.config, method.start
        # nothing is known beforehand of a leak's prior, of what the network will propose, of what the verbs will choose
        unknown = method.prior.startswith("leak") or start.look_ahead != 0 or start.start is None
        unknown = unknown or (config is not None and config.start is None)
        nats = None if unknown else self.mismatch(method, scheduler)
        return Line(method.name, method.training.words, method.words, self.images_of(method), method.requests, nats)

    def mismatch(self, method: Method, scheduler: object) -> float:
        """Nats an image at the method's first step, mean over the classes: it needs no network and no image."""
        from onbrand.core.leak import mismatch
        from onbrand.models.scheduler import open_scheduler, read_scheduler, with_options

        base, start = self.models.get(method.training.schedule), method.start
        live = with_options(open_scheduler(base) if base else scheduler, start.scheduler, start.timestep_spacing)
        abar = read_scheduler(live, start.num_inference_steps).abar
        config = method.training.config
        trained = "image" if config is None or config.start == "noise" else str(config.start)
        sampled = "pca" if start.start == "image" and start.k is not None else str(start.start)
        text = self.fitted.text
        nats = [
            mismatch(gaussian, abar, trained, sampled, text[name].shrink if name in text else 0.0, start.k)
            for name, gaussian in self.fitted.gaussians.items()
        ]
        return sum(nats) / len(nats)


def model_mark(run: Path) -> Path:
    """What a finished run has, and no other: it gets its name when it is whole."""
    return run / "model"
