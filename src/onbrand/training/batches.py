"""Positions in the run -> a batch: latents drawn from their posteriors, captions, noise, timesteps, x_start."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from onbrand.data.conditioning import read_conditioning
from onbrand.models.pipeline import embed, to_x0, tokens_of
from onbrand.options.train import TrainConfig
from onbrand.training import rng
from onbrand.training.objective import Batch

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from onbrand.core.prior import Prior
    from onbrand.data.latents import Store, Summary
    from onbrand.data.records import Record


class Batches:
    """The batch at given positions of the run: a pure function of them and the seed, whoever asks and in what order."""

    def __init__(
        self,
        pipe: StableDiffusionPipeline,
        pictures: Summary,
        store: Store,
        prior: Prior | None,
        config: TrainConfig,
        timesteps: int,
    ) -> None:
        self.pipe, self.pictures, self.store, self.config, self.timesteps = pipe, pictures, store, config, timesteps
        self.prior, self.device = prior, pipe.device
        learns = config.method == "lora" and config.lora.text_encoder
        self.captions = Captions(pipe, (record.text for record in pictures.used), tokens=learns)
        self.apart = self.captions.kept or not learns
        """Whether a batch may be made while the network works: not if it is read by a text encoder that learns."""

    def conditions(self, records: Sequence[Record], flipped: Sequence[bool] | None) -> Tensor:
        """(B, 3, H, W) in [0, 1]: the records' control pictures, mirrored where the pictures are."""
        turned, size = flipped or [False] * len(records), self.store.key.resolution
        pairs = zip(records, turned, strict=True)
        return torch.stack([read_conditioning(str(record.conditioning), size, flip) for record, flip in pairs])

    def __call__(self, positions: Sequence[int]) -> Batch:
        """The samples at `positions` (0 is the run's first), on the pipeline's device."""
        seed, config = self.config.seed, self.config
        order = rng.order(seed, len(self.pictures.used), positions)
        chosen = [self.pictures.used[i] for i in order]
        flipped = (rng.uniform(seed, "flip", positions) < 0.5).tolist() if self.store.key.flip else None
        mean, logvar = self.store.get([self.pictures.keys[i] for i in order], flipped)
        shape = mean.shape[1:]
        posterior = mean + (logvar / 2).exp() * rng.normal(seed, "posterior", positions, shape)
        x0 = self._moved(to_x0(self.pipe, posterior).float())
        noise = rng.normal(seed, "noise", positions, shape)
        if config.loss.noise_offset:
            noise = noise + config.loss.noise_offset * rng.normal(seed, "offset", positions, (shape[0], 1, 1))
        perturbation = None
        if config.loss.input_perturbation:
            fresh = rng.normal(seed, "perturbation", positions, shape)
            perturbation = self._moved(config.loss.input_perturbation * fresh)
        low, high = config.loss.timesteps or (0, self.timesteps - 1)
        hidden, pooled = self.captions([record.text for record in chosen])
        # only the network's caption is dropped, the start's is not: both branches of guidance meet the same latent
        hidden[rng.uniform(seed, "dropout", positions) < config.loss.dropout] = self.captions.empty
        coordinates = self._moved(rng.normal(seed, "start", positions, (config.k,)))
        classes = [record.class_name for record in chosen]
        x_start = starts(self.prior, config, x0, classes, self._moved(pooled), coordinates)
        return Batch(
            x0=x0,
            x_start=x_start,
            noise=self._moved(noise),
            timesteps=self._moved(rng.timesteps(seed, positions, high + 1, low)),
            hidden=self._moved(hidden),
            perturbation=perturbation,
            condition=self._moved(self.conditions(chosen, flipped)) if config.method == "controlnet" else None,
        )

    def _moved(self, tensor: Tensor) -> Tensor:
        """The tensor on the device. To a GPU it goes from pinned memory, for from other memory a copy waits until the
        GPU has done all that it was given before."""
        pinned = self.device.type == "cuda"
        return (tensor.pin_memory() if pinned else tensor).to(self.device, non_blocking=pinned)


def starts(
    prior: Prior | None,
    config: TrainConfig,
    x0: Tensor,
    classes: Sequence[str],
    pooled: Tensor,
    coordinates: Tensor,
) -> Tensor:
    """x_start (B, C, H, W) for clean latents x0 (B, C, H, W) (section 3.4; METHOD.md sections 3 and 5).

    pooled: (B, E) text embeddings, for offset text; coordinates: (B, k) standard normal, for independent PCA rng.
    Plain training has no start: x0 itself, at gain zero.
    """
    if prior is None or config.offset == "none":
        return x0
    if config.offset == "mean":
        return prior.mean(classes).to(x0)
    if config.offset == "text":
        rows = zip(classes, pooled.to(x0).split(1), strict=True)
        return torch.cat([prior.text[name].mean(prior.gaussians[name], text) for name, text in rows])
    if config.draw == "projected":
        return prior.project(x0, classes, config.k)
    rows = zip(classes, coordinates.to(x0).split(1), strict=True)
    return torch.cat([prior.gaussians[name].draw(1, config.k, noise=xi) for name, xi in rows])


CHUNK = 32
LIMIT = 2**30
"""Bytes of the table; more captions than fit are encoded batch by batch."""


class Captions:
    """Encodes captions such that the same ones asked for together are the same bits, in this process or another:
    either all are encoded ahead in fixed chunks, or none is kept."""

    def __init__(
        self, pipe: StableDiffusionPipeline, texts: Iterable[str], limit: int = LIMIT, tokens: bool = False
    ) -> None:
        """tokens: in place of hidden states, for a text encoder that learns, give what it reads: (B, L) int64."""
        self._pipe, self._tokens = pipe, tokens
        self._rows: dict[str, int] = {}
        unique = sorted({"", *texts})
        chunks = [unique[i : i + CHUNK] for i in range(0, len(unique), CHUNK)]
        hidden, pooled = self._encode(chunks[0])
        self.empty = hidden[0].clone()
        """(L, E) hidden states of the empty caption, or its (L,) tokens."""
        if (hidden[0].nbytes + pooled[0].nbytes) * len(unique) > limit:
            return
        rest = [self._encode(chunk) for chunk in chunks[1:]]
        self._rows = {text: row for row, text in enumerate(unique)}
        self._hidden = torch.cat([hidden] + [item[0] for item in rest])
        self._pooled = torch.cat([pooled] + [item[1] for item in rest])

    @property
    def kept(self) -> bool:
        """Whether all are encoded: no text encoder is asked any more."""
        return bool(self._rows)

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(hidden (B, L, E) or tokens (B, L), pooled (B, E)), on the CPU, what is no token in float32."""
        if not self.kept:
            return self._encode(list(texts))
        rows = [self._rows[text] for text in texts]
        return self._hidden[rows], self._pooled[rows]

    def _encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            hidden, pooled = embed(self._pipe, texts)
        told = tokens_of(self._pipe, texts) if self._tokens else hidden.float()
        return told.cpu(), pooled.float().cpu()
