"""In other people's trainers: the noise of their batch matched to the classes of its images (Eq. 14)."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from onbrand.core.offset import constant, matched_noise
from onbrand.core.prior import Prior, save_all
from onbrand.errors import OnbrandError
from onbrand.io import write_json

OFF = ("noise_offset", "input_perturbation", "multires_noise_iterations", "ip_noise_gamma")
"""Settings of diffusers' scripts and of kohya's that change the noise in ways of their own."""
CLASS = "class"
"""The column that names an image's class, and the entry of a batch that does."""


class BrandNoise:
    """What the lines of `onbrand patch` call: one for a training, made before it.

    The start is the class mean, the gain constant. With the first batch, the prior and the record of this start are
    written into `args.output_dir`/onbrand/, where every verb looks for them.

    Args:
        prior: the brand's folder, or its prior.safetensors.
        start_timestep: the first timestep of inference.

    Raises:
        OnbrandError: there is no such prior.
    """

    def __init__(self, prior: str | Path, start_timestep: int) -> None:
        self.prior, self.start_timestep = Prior.load(prior), start_timestep
        self._gain: Tensor | None = None

    def label(self, loader: Any, caption_column: str | None = None) -> None:
        """Let every batch of a loader also say what class its images are of, as batch["class"].

        The column `class` says it, or else the captions, each of which begins with the name of a class.

        Args:
            loader: a DataLoader of a `datasets.Dataset`, before its first batch.
            caption_column: the captions; None: text.

        Raises:
            OnbrandError: rows name a class that the prior has not, or none of several.
        """
        rows = loader.dataset
        captions = caption_column or "text"
        column = next((name for name in (CLASS, captions) if name in rows.column_names), None)
        if column is None and len(self.prior.sizes) > 1:
            raise OnbrandError(
                "training",
                f"the prior has {len(self.prior.sizes)} classes, and no column says an image's: looked for {CLASS} and "
                f"{captions} among {', '.join(rows.column_names)}; name that of the captions, caption_column",
            )
        faults = [
            f"row {row}: {reason}"
            for row, value in enumerate(rows.with_format(None)[column] if column else ())
            if (reason := self._fault(_text(value), column == CLASS))
        ]
        if faults:
            raise OnbrandError(
                "training", f"{len(faults)} of {len(rows)} values of column {column} name no class; {faults[0]}"
            )
        loader.collate_fn = partial(_collate, loader.collate_fn, column)

    def __call__(
        self, noise: Tensor, latents: Tensor, timesteps: Tensor, labels: Sequence[str], scheduler: Any, args: Any
    ) -> Tensor:
        """The batch's noise, matched to the class means.

        Args:
            noise: `(B, C, h, w)`, standard normal.
            latents: `(B, C, h, w)`, scaled as the network takes them.
            timesteps: `(B,)`, whole numbers in 0..T-1.
            labels: a class for each image, or a caption that begins with one.
            scheduler: the trainer's, of diffusers.
            args: the trainer's settings.

        Returns:
            What takes the noise's place in add_noise and in the target, `(B, C, h, w)`.

        Raises:
            OnbrandError: a setting of OFF is on, images are mirrored and were not for the prior, the scheduler is one
                of flow matching, a label names no class, or the prior has none of this size.
        """
        if self._gain is None:
            self._gain = self._begin(scheduler, args).to(latents.device)
        pixels = self.prior.size[0] // self.prior.shape[1]
        prior = self.prior.at((latents.shape[-2] * pixels, latents.shape[-1] * pixels))
        x_start = prior.mean([self.prior.class_of(label) for label in labels])
        return matched_noise(noise, latents, x_start, self._gain[timesteps])

    def _fault(self, text: str, whole: bool) -> str:
        """Why a text names no class of the prior, "" if it does; whole: it must be the name, not begin with it."""
        if whole:
            known = ", ".join(map(repr, self.prior.sizes))
            return "" if text in self.prior.sizes else f"{text!r} is none of {known}; mend it, or rename that column"
        try:
            self.prior.class_of(text)
        except OnbrandError as error:
            return str(error)
        return ""

    def _begin(self, scheduler: Any, args: Any) -> Tensor:
        """The gain `(T,)`, once the trainer's settings have been looked at; leaves the record."""
        for name in OFF:
            if value := getattr(args, name, None):
                raise OnbrandError(
                    "training", f"{name} {value} changes the noise that is to be matched: leave it out, or set it to 0"
                )
        if getattr(args, "random_flip", False) and not self.prior.provenance.flip:
            raise OnbrandError(
                "training",
                "the prior was fitted without mirrored images; got random_flip: fit with it, or leave it out",
            )
        if not hasattr(scheduler, "alphas_cumprod"):
            raise OnbrandError(
                "training",
                f"{type(scheduler).__name__} has no alphas_cumprod: flow matching starts from pure noise in training "
                "too, so nothing leaks; train without the patch",
            )
        gain = constant(scheduler, self.start_timestep)
        if os.environ.get("RANK", "0") == "0":
            beside = Path(args.output_dir) / "onbrand"
            save_all(self.prior, beside)
            record = {"gain": "constant", "start": "mean", "k": 0, "start_timestep": self.start_timestep}
            write_json(beside / "config.json", {**record, "prior": self.prior.fingerprint})
        return gain


def _collate(collate: Callable[[Any], dict[str, Any]], column: str | None, rows: Sequence[Any]) -> dict[str, Any]:
    """A trainer's own batch of these rows, and what class each is of; at module level, as worker processes need it."""
    return {**collate(rows), CLASS: [_text(row[column]) if column else "" for row in rows]}


def _text(value: Any) -> str:
    """A class or caption; of several captions of one image the first."""
    return str(value[0] if isinstance(value, list) and value else value)
