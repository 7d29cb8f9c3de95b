"""What prompts name, and whether a reader finds it."""

import pytest
import torch

from onbrand.datasets.fashion import COLOURS, KINDS, caption
from onbrand.evaluation.text import AttributeClassifier, all_right, asked, open_judge, read


def test_every_caption_of_the_catalogue_names_its_kind_and_colour():
    pairs = [(kind, colour) for kind in KINDS for colour in COLOURS]
    prompts = [caption(kind, colour) for kind, colour in pairs]
    assert [KINDS[i] for i in asked(prompts, KINDS)] == [kind for kind, _ in pairs]
    assert [list(COLOURS)[i] for i in asked(prompts, list(COLOURS))] == [colour for _, colour in pairs]


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
def test_labels_are_whole_words_the_longest_first(prompt, label):
    labels = ["bag", "shirt", "t-shirt", "ankle boot", "sandal"]
    assert asked([prompt], labels).item() == (labels.index(label) if label else -1)


def test_of_two_as_long_the_first_named_counts():
    assert asked(["a red bag, tan strap"], ["tan", "red"]).item() == 1


class Named:
    """A reader that says what it was built to say, in probabilities."""

    attributes = {"kind": ["bag", "shirt"], "colour": ["red", "blue", "pink"]}

    def __call__(self, pictures):
        n = len(pictures)
        return {"kind": torch.eye(2)[[0] * n], "colour": torch.eye(3)[[1] * n]}


def test_read_holds_the_picture_against_its_own_prompt():
    prompts = ["a blue bag", "a red bag", "a blue shirt", "a bag", "something"]
    right = read(Named(), torch.rand(5, 3, 8, 8), prompts, batch=2)
    nan = float("nan")
    assert torch.equal(right["kind"].nan_to_num(9), torch.tensor([1.0, 1, 0, 1, 9]))
    assert torch.equal(right["colour"].nan_to_num(9), torch.tensor([1.0, 0, 1, 9, 9]))
    assert torch.equal(all_right(right).nan_to_num(9), torch.tensor([1.0, 0, 0, 1, nan]).nan_to_num(9))
    with pytest.raises(ValueError, match="one prompt a picture"):
        read(Named(), torch.rand(2, 3, 8, 8), ["one"])


def test_attributes_told_outweigh_the_prompt_and_unknown_labels_are_refused():
    prompts, told = ["a red shirt", "a blue bag", "a blue bag"], [{"colour": "blue"}, {"kind": "shirt"}, None]
    right = read(Named(), torch.rand(3, 3, 8, 8), prompts, told)
    nan = float("nan")
    assert torch.equal(right["kind"].nan_to_num(9), torch.tensor([nan, 0, 1]).nan_to_num(9))
    assert torch.equal(right["colour"].nan_to_num(9), torch.tensor([1, nan, 1]).nan_to_num(9))
    with pytest.raises(ValueError, match="kind is one of bag, shirt; picture 1 is to show 'hat'"):
        read(Named(), torch.rand(2, 3, 8, 8), prompts[:2], [None, {"kind": "hat"}])


def test_the_real_reader_is_one_and_opens_from_its_folder(tmp_path):
    torch.manual_seed(0)
    reader = AttributeClassifier({"kind": ["bag", "shirt"]}, width=4).eval()
    reader.save(tmp_path)
    pictures = torch.rand(6, 3, 32, 32)
    opened = open_judge(tmp_path)
    names = reader.read(pictures)["kind"]
    assert read(opened, pictures, [f"a {name}" for name in names])["kind"].tolist() == [1] * 6


def test_a_folder_with_neither_is_refused(tmp_path):
    with pytest.raises(ValueError, match="neither|reader.json"):
        open_judge(tmp_path)
