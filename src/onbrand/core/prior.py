"""Q: a Gaussian per class of image, in one safetensors file that knows which VAE and resolution it belongs to."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onbrand.core.gaussian import Gaussian
from onbrand.core.prior_file import BACKGROUND, FORMAT, GAUSSIAN, fingerprint_of, read, write
from onbrand.core.text import Conditional
from onbrand.errors import OnbrandError, quote
from onbrand.hub import fetch
from onbrand.io import discard, whole_folder

FILE = "prior.safetensors"
"""Its name in a brand's folder, and in BESIDE of a model's."""
BESIDE = "onbrand"
BUCKETS = "buckets"
"""Beside it: a folder <H>x<W> for each further size."""
PROVENANCE = {
    "vae": "the fingerprint of a VAE", "scaling_factor": "a number above 0", "shift_factor": "a number",
    "resolution": "height and width in pixels, 1 to 65536", "model": "a model's name", "flip": "true or false",
    "background": "three numbers from 0 to 255", "text_encoder": "the fingerprint of a text encoder, or null",
}  # fmt: skip
"""Field of Provenance -> what it must be."""


@dataclass(frozen=True)
class Provenance:
    """Where a prior's x0 come from; a model of another VAE, scale or resolution has other x0."""

    vae: str
    """sha256 hex fingerprint of the VAE's weights."""
    scaling_factor: float
    """x0 = (latent - shift_factor) * scaling_factor."""
    shift_factor: float
    """0.0 where the VAE has none."""
    resolution: tuple[int, int]
    """(H, W) of the images, in pixels."""
    model: str
    """The model as it was named when fitting."""
    flip: bool
    """Whether mirrored images were fitted too."""
    background: tuple[int, int, int]
    """RGB, 0..255, of the images' background."""
    text_encoder: str | None = None
    """sha256 hex fingerprint of the text encoder whose output the regressions read; None: there are none, or the file
    is of before it was written."""

    def __post_init__(self) -> None:
        right = {
            "vae": isinstance(self.vae, str),
            "scaling_factor": _is_number(self.scaling_factor) and 0 < self.scaling_factor < 1e6,
            "shift_factor": _is_number(self.shift_factor) and abs(self.shift_factor) < 1e6,
            "resolution": _are_whole(self.resolution, 2, 1, 65536),
            "model": isinstance(self.model, str),
            "flip": isinstance(self.flip, bool),
            "background": _are_whole(self.background, 3, 0, 255),
            "text_encoder": isinstance(self.text_encoder, str | None),
        }
        for name in (name for name, good in right.items() if not good):
            raise OnbrandError(
                "prior", f"a prior's {name} must be {PROVENANCE[name]}, not {quote(getattr(self, name))}"
            )


@dataclass(frozen=True, eq=False)
class Prior:
    """Q(x_start | class), and Q(x_start | class, text) for the classes that have captions.

    Raises OnbrandError if there is no class, the classes' shapes differ, or a text regression has no class.
    """

    gaussians: Mapping[str, Gaussian]
    provenance: Provenance
    text: Mapping[str, Conditional] = field(default_factory=dict)
    buckets: Mapping[tuple[int, int], "Prior"] = field(default_factory=dict, repr=False)
    """All priors of the brand by their (H, W), this one among them (`joined`); empty: it is the only one. No part of
    its file and fingerprint."""

    def __post_init__(self) -> None:
        if not self.gaussians:
            raise OnbrandError("prior", "a prior holds at least one class: this one holds none; fit it on images")
        shapes = {gaussian.shape for gaussian in self.gaussians.values()}
        if len(shapes) > 1:
            raise OnbrandError(
                "prior", f"the classes of a prior share one shape: got {sorted(shapes)}; fit at one resolution"
            )
        for name, conditional in self.text.items():
            if len(conditional.shrink) != self._of(name).k:
                raise OnbrandError(
                    "prior",
                    f"the text regression of {name!r} is for {len(conditional.shrink)} components, "
                    f"its class has {self._of(name).k}; fit the two together",
                )

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes of image, in the order they were given."""
        return tuple(self.gaussians)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of x0."""
        return next(iter(self.gaussians.values())).shape

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of its images, in pixels."""
        return self.provenance.resolution

    @property
    def all(self) -> tuple["Prior", ...]:
        """The brand's priors, the main one, of the fullest bucket, first."""
        return tuple(self.buckets.values()) or (self,)

    @property
    def sizes(self) -> dict[str, list[tuple[int, int]]]:
        """Class -> the sizes that it was fitted at."""
        names = dict.fromkeys(name for prior in self.all for name in prior.classes)
        return {name: [prior.size for prior in self.all if name in prior.classes] for name in names}

    def at(self, size: tuple[int, int]) -> "Prior":
        """The brand's prior of images (H, W). OnbrandError, naming the sizes that there are, for another size."""
        for prior in (self, *self.all):
            if prior.size == tuple(size):
                return prior
        sizes = ", ".join(name_of(prior.size) for prior in self.all)
        raise OnbrandError(
            "prior",
            f"this brand has no prior of size {name_of(size)}, only of {sizes} (height x width): take one of these, or "
            "fit with enable_bucket on 50 photos or more of that ratio",
        )

    @property
    def k(self) -> int:
        """Components that every class has."""
        return min(gaussian.k for gaussian in self.gaussians.values())

    @property
    def fingerprint(self) -> str:
        """sha256 hex of the tensors and all that is said of them."""
        return fingerprint_of(self._header(), self._tensors())

    def mean(self, classes: str | Sequence[str]) -> Tensor:
        """Each image's class mean `(B, C, H, W)`; a name is a batch of one. OnbrandError for an unknown class."""
        return torch.stack([self._of(name).mean for name in _listed(classes)])

    def sample(self, classes: str | Sequence[str], k: int, generator: torch.Generator | None = None) -> Tensor:
        """A draw of x_start with k components for each name (Eq. 9).

        Args:
            classes: one name an image
            k: components, 0 <= k <= K
            generator: on the CPU

        Returns:
            x_start `(B, C, H, W)`.

        Raises:
            OnbrandError: an unknown class, or k exceeds what was fitted.
        """
        for name in _listed(classes):
            self.check_k(name, k)
        return torch.cat([self._of(name).draw(1, k, generator) for name in _listed(classes)])

    def project(self, x0: Tensor, classes: str | Sequence[str], k: int | None = None) -> Tensor:
        """Each x0 in k components of its class (section 3.4).

        Args:
            x0: `(B, C, H, W)`
            classes: one name an image, or one for the whole batch
            k: components; None: all that the class has

        Returns:
            x_K `(B, C, H, W)`.

        Raises:
            OnbrandError: an unknown class, another number of names than x0, or k exceeds what was fitted.
        """
        if isinstance(classes, str):
            gaussian = self._of(classes)
            self.check_k(classes, gaussian.k if k is None else k)
            return gaussian.project(x0, gaussian.k if k is None else k)
        if len(classes) != len(x0):
            raise OnbrandError("prior", f"one class an image: got {len(classes)} names for {len(x0)} images")
        return torch.cat([self.project(x0[i : i + 1], name, k) for i, name in enumerate(classes)])

    def classify(self, x0: Tensor) -> tuple[list[str], Tensor]:
        """The most likely class of each x0 `(B, C, H, W)`, and log-likelihoods in nats `(B, n_classes)`."""
        likelihoods = torch.stack([gaussian.log_likelihood(x0) for gaussian in self.gaussians.values()], dim=1)
        return [self.classes[best] for best in likelihoods.argmax(1).tolist()], likelihoods

    def class_of(self, prompt: str) -> str:
        """The class whose name the prompt starts with (whole words, any case; the longest), or the only one there is,
        of any of the brand's sizes.

        Raises:
            OnbrandError: the prompt names none of several; the message lists them.
        """
        words = prompt.strip().casefold()
        classes = [name for prior in self.all for name in prior.classes]
        names = [
            name
            for name in classes
            if words.startswith(name.casefold()) and words[len(name.casefold()) :][:1] in ("", " ", ",")
        ]
        if names:
            return max(names, key=len)
        if len(set(classes)) == 1:
            return classes[0]
        raise OnbrandError(
            "prior", f"the prompt {prompt!r} starts with no class; {self._known()}; name one, or pass the class"
        )

    def check(
        self,
        vae: str | None = None,
        resolution: tuple[int, int] | int | None = None,
        scaling_factor: float | None = None,
        shift_factor: float | None = None,
        text_encoder: str | None = None,
    ) -> None:
        """Raise OnbrandError unless this prior belongs to a model so described; what is None, here or there, is not
        compared."""
        if isinstance(resolution, int):
            resolution = (resolution, resolution)
        values = {
            "vae": vae, "resolution": resolution, "scaling_factor": scaling_factor, "shift_factor": shift_factor,
            "text_encoder": text_encoder,
        }  # fmt: skip
        for name, value in values.items():
            own = getattr(self.provenance, name)
            if value is not None and own is not None and own != (tuple(value) if name == "resolution" else value):  # type: ignore[arg-type]
                remedy = ", or take start mean, which reads no text" if name == "text_encoder" else ""
                raise OnbrandError(
                    "prior",
                    f"this prior was fitted with {name} {own} (model {self.provenance.model!r}): got {value}; "
                    f"its x_start means nothing there, fit a prior with this model{remedy}",
                )

    def check_k(self, name: str, k: int) -> None:
        """Raise OnbrandError unless the class is known and was fitted with k components or more."""
        self._of(name).check_k(k, name)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Prior":
        """A copy moved to a device or dtype; its text regressions too."""
        moved = []
        for prior in self.all:
            gaussians = {name: gaussian.to(device, dtype) for name, gaussian in prior.gaussians.items()}
            text = {name: part.to(device, dtype) for name, part in prior.text.items()}
            moved.append(Prior(gaussians, prior.provenance, text))
        return joined(moved).at(self.size)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all; equal priors, equal bytes."""
        write(Path(path), self._header(), self._tensors())

    @classmethod
    def load(cls, path: str | Path) -> "Prior":
        """Read what `save` wrote, or of a folder what `save_all` did: the main prior, which knows the others.

        Nothing in a file is executed, and no number of it is taken unseen.

        Raises:
            OnbrandError: there is no such file, it is no prior, of another format, altered since it was saved, or its
                numbers are of no images; or those of a folder are of several fits.
        """
        if Path(path).is_dir():
            return _load_all(Path(path))
        try:
            return cls._of_file(*read(Path(path)))
        except ValueError as error:
            raise OnbrandError("prior", f"{path} is damaged: {error}; copy it anew, or fit it again") from error

    @classmethod
    def from_pretrained(cls, name: str | Path, *, revision: str | None = None, subfolder: str = "") -> "Prior":
        """`load` of a repository on the Hub, or of a folder: the prior at its top, or in onbrand/ beside a model.

        A repository is fetched once and kept in the Hub's cache; without a network it is read from there.

        Args:
            name: owner/name on the Hub, a folder, or a prior's file
            revision: branch, tag or commit of the repository; None: its main branch
            subfolder: where else in it the prior is

        Raises:
            OnbrandError: there is no such repository, this token may not see it, the Hub does not answer, or it holds
                no prior; or as `load` does.
        """
        places, folder = [subfolder] if subfolder else ["", BESIDE], Path(name).expanduser()
        if folder.is_file():
            return cls.load(folder)
        if not folder.exists():
            files = [f"{place}/{file}".lstrip("/") for place in places for file in (FILE, f"{BUCKETS}/*/{FILE}")]
            folder = fetch(str(name), files, "prior", revision)
        for place in places:
            if (folder / place / FILE).is_file():
                return cls.load(folder / place)
        where = " or ".join(f"{place}/{FILE}".lstrip("/") for place in places)
        raise OnbrandError("prior", f"{name} has no {where}: write one with `onbrand fit`")

    @classmethod
    def _of_file(cls, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "Prior":
        """The prior of a file's header and tensors. Raises ValueError if they are not of one."""
        about = header["provenance"]
        values: dict[str, Any] = {name: tuple(one) if isinstance(one, list) else one for name, one in about.items()}
        values |= {"background": values.pop(BACKGROUND)} if BACKGROUND in values else {}
        needed = {field.name for field in fields(Provenance) if field.default is MISSING}
        if not needed <= set(values) <= {field.name for field in fields(Provenance)}:
            raise ValueError(f"its provenance has {', '.join(sorted(needed))}: not so {quote(about)}")
        gaussians, regressions = {}, {}
        for i, entry in enumerate(header["classes"]):
            name = entry["name"]
            try:
                parts = {part: tensors[f"class.{i}.{part}"] for part in GAUSSIAN}
                gaussians[name] = Gaussian(**parts, total=entry["total"], count=entry["count"])
                if entry["alpha"] is not None:
                    regression = {part: tensors[f"class.{i}.text.{part}"] for part in Conditional.TENSORS}
                    regressions[name] = Conditional(**regression, alpha=entry["alpha"])
            except OnbrandError as error:  # whose remedies are for who makes one
                raise ValueError(f"class {name!r}: {str(error).rpartition('; ')[0] or error}") from error
        return cls(gaussians, Provenance(**values), regressions)

    def _header(self) -> dict[str, Any]:
        """All but the tensors, as JSON has it."""
        classes = [
            {
                "name": name,
                "total": gaussian.total,
                "count": gaussian.count,
                "alpha": self.text[name].alpha if name in self.text else None,
            }
            for name, gaussian in self.gaussians.items()
        ]
        provenance = asdict(self.provenance)
        provenance[BACKGROUND] = provenance.pop("background")
        if provenance["text_encoder"] is None:
            del provenance["text_encoder"]
        return {"format": FORMAT, "provenance": provenance, "classes": classes}

    def _tensors(self) -> dict[str, Tensor]:
        """All tensors by the names they have in the file, float32 on the CPU."""
        tensors: dict[str, Tensor] = {}
        for i, (name, gaussian) in enumerate(self.gaussians.items()):
            tensors |= {f"class.{i}.{part}": getattr(gaussian, part) for part in GAUSSIAN}
            if name in self.text:
                tensors |= {f"class.{i}.text.{part}": getattr(self.text[name], part) for part in Conditional.TENSORS}
        return {name: tensor.detach().float().cpu().contiguous() for name, tensor in tensors.items()}

    def _of(self, name: str) -> Gaussian:
        if name not in self.gaussians:
            raise OnbrandError("prior", f"{name!r} is no class of this prior; {self._known()}")
        return self.gaussians[name]

    def _known(self) -> str:
        words = f"it knows {', '.join(map(repr, self.classes))}"
        others = (f"{name_of(one.size)} {', '.join(map(repr, one.classes))}" for one in self.all if one is not self)
        return words + "".join(f"; at {other}" for other in others)


def joined(priors: Sequence[Prior]) -> Prior:
    """The first of a brand's priors, each knowing all of them by their sizes; one alone as it is."""
    if len(priors) == 1:
        return priors[0]
    shared: dict[tuple[int, int], Prior] = {}
    for prior in priors:
        shared[prior.size] = replace(prior, buckets=shared)
    return next(iter(shared.values()))


def save_all(prior: Prior, folder: Path) -> None:
    """Write `folder`/FILE, and the brand's other priors into `folder`/BUCKETS/<H>x<W>/, in the place of former ones."""
    discard(folder / BUCKETS)  # first: killed at any moment, no prior lies beside those of another fit
    prior.save(folder / FILE)
    others = [one for one in prior.all if one.size != prior.size]
    if others:
        with whole_folder(folder / BUCKETS) as draft:
            for one in others:
                one.save(draft / name_of(one.size) / FILE)


def _load_all(folder: Path) -> Prior:
    main, others = Prior.load(folder / FILE), []
    for file in sorted((folder / BUCKETS).glob(f"*/{FILE}")):
        one = Prior.load(file)
        own, its = (replace(each.provenance, resolution=(1, 1), text_encoder=None) for each in (main, one))
        if own != its or file.parent.name != name_of(one.size) or one.size == main.size:
            raise OnbrandError(
                "prior",
                f"{file} is no bucket of the brand in {folder}, but of another fit: fit again, or remove {file.parent}",
            )
        others.append(one)
    return joined([main, *others])


def name_of(size: tuple[int, int]) -> str:
    """(H, W) as folders and messages have it."""
    return f"{size[0]}x{size[1]}"


def _listed(classes: str | Sequence[str]) -> Sequence[str]:
    return [classes] if isinstance(classes, str) else classes


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _are_whole(values: object, count: int, least: int, most: int) -> bool:
    """Whether these are a tuple of `count` whole numbers from `least` to `most`."""
    if not isinstance(values, tuple) or len(values) != count:
        return False
    return all(isinstance(n, int) and not isinstance(n, bool) and least <= n <= most for n in values)
