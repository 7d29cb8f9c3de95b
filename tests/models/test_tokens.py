"""A text as long as a book costs what a caption does, and what its tokenizer would have read of it is what is read."""

from __future__ import annotations

import time
from typing import Any

import pytest

from onbrand.models import pipeline
from onbrand.models.tokens import LETTERS, beginning, losses, tokenized
from worlds import LENGTH, tiny_tokenizer

TEXTS = {
    "words": "a red shoe, " * 2_000,
    "one word": "x" * 20_000,
    "letters of many bytes": "鞋" * 12_000,
    "spaces and a word": " " * 20_000 + "shoe " * 100,
    "lines": "a\nred\n\n\tshoe" * 2_000,
    "commas": "," * 20_000,
    "emoji": "\U0001f45f" * 12_000,
    "short": "a red shoe",
    "nothing": "",
    "long words": ("a" * 5_000 + " ") * 4,
}


@pytest.fixture(scope="module", params=["letters", "shipped"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    """One token a letter, and the merges of a real vocabulary."""
    return tiny_tokenizer() if request.param == "letters" else pipeline.load("tiny").tokenizer


@pytest.mark.parametrize("name", TEXTS)
def test_the_tokens_are_those_of_the_whole_text(tokenizer: Any, name: str) -> None:
    length = tokenizer.model_max_length
    options: dict[str, Any] = {"padding": "max_length", "max_length": length, "truncation": True}
    truth = tokenizer([TEXTS[name], "b"], return_tensors="pt", **options)
    ours = tokenized(tokenizer, [TEXTS[name], "b"], length)
    assert ours.input_ids.equal(truth.input_ids) and ours.attention_mask.equal(truth.attention_mask)
    whole = [one for one in tokenizer(TEXTS[name]).input_ids if one not in tokenizer.all_special_ids]
    lost = losses(tokenizer, ["b", TEXTS[name]], length)
    assert list(lost) == ([1] if len(whole) > length - 2 else [])
    assert all(len(words) < 300 and words.endswith("...") for words in lost.values())


def test_a_book_takes_neither_time_nor_memory(tokenizer: Any) -> None:
    books = [text * (5_000_000 // max(1, len(text))) for text in TEXTS.values()]
    began = time.perf_counter()
    assert tokenized(tokenizer, books, LENGTH).input_ids.shape == (len(books), LENGTH)
    losses(tokenizer, books, LENGTH)
    assert time.perf_counter() - began < 5  # 20 s each, and 2 GB, if the whole is tokenised
    assert max(len(beginning(book, LENGTH)) for book in books) <= LETTERS * (LENGTH + 1)


def test_many_captions_are_counted_though_one_is_long(tokenizer: Any) -> None:
    captions = ["a red shoe"] * 600 + ["a red shoe " * 300] + ["b"] * 300
    assert list(losses(tokenizer, captions, tokenizer.model_max_length)) == [600]
