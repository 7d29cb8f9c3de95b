"""Captions -> the text encoder's output as it was before training: each encoded once where they fit in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from onbrand.models.codec import embed, tokens_of

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

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
