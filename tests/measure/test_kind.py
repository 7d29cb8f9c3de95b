"""The kind of picture: closed forms, and which pictures belong to none."""

import math

import torch

from onbrand.core import Gaussian, Prior, Provenance
from onbrand.measure.kind import belongs, kind_of


def test_kind_is_the_likeliest_class_and_how_likely():
    found = kind_of(torch.tensor([[-10.0, -4.0], [-1.0, -9.0]]), torch.tensor([0, 0]), 2)
    assert found["kind_lead"].tolist() == [-3, 4] and found["kind_likelihood"].tolist() == [-5, -0.5]
    assert kind_of(torch.tensor([[-3.0]]), torch.tensor([0]), 1)["kind_lead"].item() == float("inf")


def test_pictures_beyond_every_line_belong_to_no_kind():
    gaussians = {
        name: Gaussian(torch.full((1, 1, 2), mean), torch.eye(2), torch.ones(2), total=2.0, count=99)
        for name, mean in (("a", 0.0), ("b", 10.0))
    }
    prior = Prior(gaussians, Provenance("", 1.0, 0.0, (8, 8), "", False, (255, 255, 255)))
    radius = 3.0  # log p = -log(2 pi) - r^2 / 2, in two dimensions
    line = (-math.log(2 * math.pi) - radius**2 / 2) / 2
    x0 = torch.tensor([[0.0, 2.9], [0.0, 3.1], [10.0, 7.1], [10.0, 6.9], [5.0, 5.0]]).view(5, 1, 1, 2)
    assert belongs({"a": line, "b": line}, prior, x0).tolist() == [True, False, True, False, False]
    assert belongs({"a": line, "b": -math.inf}, prior, x0).all()
    assert belongs({"": line}, prior, x0).tolist() == [True, False, True, False, False], "one line for all"
