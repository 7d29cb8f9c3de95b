"""What prompts name, and whether an attribute classifier reads it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from onbrand.datasets.fashion import COLOURS, KINDS, caption
from onbrand.evaluation.text import AttributeClassifier, all_right, labels_of, open_judge, read
from worlds import raises


def test_every_caption_of_the_catalogue_names_its_kind_and_colour() -> None:
    pairs = [(kind, colour) for kind in KINDS for colour in COLOURS]
    prompts = [caption(kind, colour) for kind, colour in pairs]
    assert [KINDS[i] for i in labels_of(prompts, KINDS)] == [kind for kind, _ in pairs]
    assert [list(COLOURS)[i] for i in labels_of(prompts, list(COLOURS))] == [colour for _, colour in pairs]


@pytest.mark.parametrize(
    ("prompt", "label"),
    [
        ("a t-shirt", "t-shirt"),
        ("a shirt, white background", "shirt"),
        ("A SHIRT", "shirt"),
        ("a boot", None),
        ("shirts", None),
        ("", None),
        ("an ankle boot", "ankle boot"),
        ("a sandal on a bag", "sandal"),
    ],
)
def test_labels_are_whole_words_the_longest_first(prompt: Any, label: Any) -> None:
    labels = ["bag", "shirt", "t-shirt", "ankle boot", "sandal"]
    assert labels_of([prompt], labels).item() == (labels.index(label) if label else -1)


def test_of_two_as_long_the_first_named_counts() -> None:
    assert labels_of(["a red bag, tan strap"], ["tan", "red"]).item() == 1


class Named(AttributeClassifier):
    """A classifier that says what it was built to say, in probabilities."""

    def __init__(self) -> None:
        super().__init__({"kind": ["bag", "shirt"], "colour": ["red", "blue", "pink"]}, width=1)

    def forward(self, images: Any) -> Any:
        n = len(images)
        return {"kind": torch.eye(2)[[0] * n], "colour": torch.eye(3)[[1] * n]}


def test_read_holds_the_image_against_its_own_prompt() -> None:
    prompts = ["a blue bag", "a red bag", "a blue shirt", "a bag", "something"]
    right = read(Named(), torch.rand(5, 3, 8, 8), prompts, batch=2)
    nan = float("nan")
    assert torch.equal(right["kind"].nan_to_num(9), torch.tensor([1.0, 1, 0, 1, 9]))
    assert torch.equal(right["colour"].nan_to_num(9), torch.tensor([1.0, 0, 1, 9, 9]))
    assert torch.equal(all_right(right).nan_to_num(9), torch.tensor([1.0, 0, 0, 1, nan]).nan_to_num(9))
    with raises("classifier", "got 1 for 2 images"):
        read(Named(), torch.rand(2, 3, 8, 8), ["one"])


def test_attributes_outweigh_the_prompt_and_unknown_labels_are_refused() -> None:
    prompts, attributes = ["a red shirt", "a blue bag", "a blue bag"], [{"colour": "blue"}, {"kind": "shirt"}, None]
    right = read(Named(), torch.rand(3, 3, 8, 8), prompts, attributes)
    nan = float("nan")
    assert torch.equal(right["kind"].nan_to_num(9), torch.tensor([nan, 0, 1]).nan_to_num(9))
    assert torch.equal(right["colour"].nan_to_num(9), torch.tensor([1, nan, 1]).nan_to_num(9))
    with raises("classifier", "kind", "bag, shirt", "image 1", "'hat'"):
        read(Named(), torch.rand(2, 3, 8, 8), prompts[:2], [None, {"kind": "hat"}])


def test_the_real_classifier_is_one_and_opens_from_its_folder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    classifier = AttributeClassifier({"kind": ["bag", "shirt"]}, width=4).eval()
    classifier.save(tmp_path)
    images = torch.rand(6, 3, 32, 32)
    copy = open_judge(tmp_path)
    names = classifier.read(images)["kind"]
    assert read(copy, images, [f"a {name}" for name in names])["kind"].tolist() == [1] * 6


def test_a_folder_with_neither_is_refused(tmp_path: Path) -> None:
    with raises("classifier", "reader.json", "CLIPModel", tmp_path):
        open_judge(tmp_path)
