"""Texts as a tokenizer reads them: no more of each than can count, so that a book costs what a caption does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import BatchEncoding

LETTERS = 100
"""Characters that a token stands for at most."""
BATCH = 256
"""Texts tokenised at a time where they are counted."""
QUOTED = 20
"""Tokens that are quoted of what a text loses."""


def tokenized(tokenizer: Any, texts: Sequence[str], length: int) -> BatchEncoding:
    """Texts -> input_ids and attention_mask `(B, length)` int64 on the CPU, padded and cut."""
    encoding: BatchEncoding = tokenizer(
        [beginning(text, length) for text in texts],
        padding="max_length",
        max_length=length,
        truncation=True,
        return_tensors="pt",
    )
    return encoding


def losses(tokenizer: Any, texts: Sequence[str], length: int) -> dict[int, str]:
    """Index -> first words that are cut, of each text over `length` tokens, two of them its begin and end."""
    room, special = length - 2, set(tokenizer.all_special_ids)
    lost = {}
    for first in range(0, len(texts), BATCH):
        part = [beginning(text, length) for text in texts[first : first + BATCH]]
        for index, ids in enumerate(tokenizer(part, truncation=False, verbose=False).input_ids, first):
            words = [token for token in ids if token not in special]
            if len(words) > room:
                more = " ..." if len(words) > room + QUOTED or len(part[index - first]) < len(texts[index]) else ""
                lost[index] = tokenizer.decode(words[room : room + QUOTED]) + more
    return lost


def beginning(text: str, length: int) -> str:
    """As much of a text as its first `length` tokens, and one more, come from: a word has one at least."""
    words = length + 1
    letters = LETTERS * words
    return text if len(text) <= letters else " ".join(text.split(maxsplit=words)[:words])[:letters]
