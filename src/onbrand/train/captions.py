"""Captions -> the frozen text encoder's output: each one encoded once where they fit in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from onbrand.models.codec import embed

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

CHUNK = 32
LIMIT = 2**30
"""Bytes of the table; more captions than fit are encoded batch by batch."""


class Captions:
    """Encodes captions such that the same ones asked for together are the same bits, in this process or another:
    either all are encoded ahead in fixed chunks, or none is kept."""

    def __init__(self, pipe: StableDiffusionPipeline, texts: Iterable[str], limit: int = LIMIT) -> None:
        self._pipe = pipe
        self._rows: dict[str, int] = {}
        unique = sorted({"", *texts})
        chunks = [unique[i : i + CHUNK] for i in range(0, len(unique), CHUNK)]
        hidden, pooled = self._encode(chunks[0])
        self.empty = hidden[0].clone()
        """(L, E) hidden states of the empty caption."""
        if (hidden[0].nbytes + pooled[0].nbytes) * len(unique) > limit:
            return
        rest = [self._encode(chunk) for chunk in chunks[1:]]
        self._rows = {text: row for row, text in enumerate(unique)}
        self._hidden = torch.cat([hidden] + [item[0] for item in rest])
        self._pooled = torch.cat([pooled] + [item[1] for item in rest])

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(hidden (B, L, E), pooled (B, E)), float32 on the CPU."""
        if not self._rows:
            return self._encode(list(texts))
        rows = [self._rows[text] for text in texts]
        return self._hidden[rows], self._pooled[rows]

    def _encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            hidden, pooled = embed(self._pipe, texts)
        return hidden.float().cpu(), pooled.float().cpu()
