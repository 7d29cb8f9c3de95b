"""All captions of a run, encoded once before its first step: in memory, or in a file if they are too large for it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from filelock import FileLock
from torch import Tensor
from tqdm import tqdm

from onbrand.io import digest, whole_file
from onbrand.models.families import encoders_of, family_of
from onbrand.models.pipeline import embed, fingerprint, tokens_of, warn_long

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

CHUNK = 32
"""Captions encoded at once: the same ones together, so that they have the same bits in any process."""
LIMIT = 2**30
"""Bytes that they may take in memory; more are kept in a file, which the system reads as they are asked for."""


class Captions:
    """What the network and the prior read of captions.

    Args:
        pipe: the model whose text encoders read them.
        texts: all captions of the run.
        limit: bytes of what is kept in memory.
        tokens: give tokens (B, N, L) int64 in place of hidden states, for N text encoders that learn.
        folder: where to keep what is over the limit; all processes of a run share it. None: a temporary folder.
    """

    def __init__(
        self,
        pipe: DiffusionPipeline,
        texts: Iterable[str],
        limit: int = LIMIT,
        tokens: bool = False,
        folder: Path | None = None,
    ) -> None:
        self._pipe, self._tokens = pipe, tokens
        unique = sorted({"", *texts})
        warn_long(pipe, unique[1:])  # the first is the empty one
        self._rows = {text: row for row, text in enumerate(unique)}
        chunks = [unique[i : i + CHUNK] for i in range(0, len(unique), CHUNK)]
        hidden, pooled = self._encode(chunks[0])
        to_zero = family_of(pipe).drops_to_zero(pipe)
        self.empty = torch.full_like(hidden[0], -1 if tokens else 0) if to_zero else hidden[0].clone()
        """(L, E) hidden states of a caption that is dropped, or its (N, L) tokens, -1 if it is read as zeros."""
        self.empty_pooled = pooled[0] * (not to_zero)
        """(P,) its pooled text."""
        if tokens or hidden[0].nbytes * len(unique) <= limit:  # tokens are small
            parts = [(hidden, pooled), *map(self._encode, chunks[1:])]
            self._hidden, self._pooled = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
            return
        width, numbers = hidden[0].numel(), hidden[0].numel() + pooled[0].numel()
        # a file that is mapped may be removed at once, but for Windows
        with nullcontext(folder) if folder else tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
            table = self._table(chunks, Path(place), (len(unique), numbers))
        self._hidden, self._pooled = table[:, :width].unflatten(1, hidden.shape[1:]), table[:, width:]

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Hidden (B, L, E) float32 or tokens (B, N, L) int64, and pooled (B, P) float32, on the CPU."""
        rows = [self._rows[text] for text in texts]
        return self._hidden[rows], self._pooled[rows]

    def _encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            hidden, pooled = embed(self._pipe, texts)
        first = tokens_of(self._pipe, texts) if self._tokens else hidden.float()
        return first.cpu(), pooled.float().cpu()

    def _table(self, chunks: Sequence[Sequence[str]], folder: Path, shape: tuple[int, int]) -> Tensor:
        """All captions' numbers, a row each, float32, in a file: written by whichever process comes first."""
        encoders = [fingerprint(encoder) for encoder in encoders_of(self._pipe).values()]
        mark = digest(json.dumps([list(self._rows), encoders]).encode())[:16]
        file = folder / f".captions-{mark}"
        with FileLock(folder / ".captions.lock"):
            if not file.is_file() or file.stat().st_size != 4 * shape[0] * shape[1]:
                with whole_file(file) as draft, draft.open("r+b") as out:
                    for chunk in tqdm(chunks, "captions", unit=f" x {CHUNK}"):
                        rows = torch.cat([part.flatten(1) for part in self._encode(chunk)], 1)
                        out.write(rows.numpy().tobytes())
        return torch.from_file(str(file), size=shape[0] * shape[1], dtype=torch.float32).reshape(shape)


def remove_captions(folder: Path) -> None:
    """Remove what `Captions` keeps in a run's folder."""
    for file in (*folder.glob(".captions-*"), folder / ".captions.lock"):
        with suppress(OSError):  # where a file that is read cannot be removed
            file.unlink()
