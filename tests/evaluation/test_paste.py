"""A background replaced by threshold: exact on flat backgrounds, and the product kept."""

from typing import Any

import pytest
import torch

from onbrand.evaluation.segmentation import pasted


@pytest.mark.parametrize("background", [(0.2, 0.6, 0.3), (0.98, 0.98, 0.98), (0.5, 0.5, 0.5)])
def test_a_flat_background_becomes_white_and_the_product_stays(background: Any) -> None:
    image = torch.tensor(background)[:, None, None].expand(3, 24, 24).clone()
    image[:, 8:16, 8:16] = torch.tensor([0.8, 0.1, 0.1])[:, None, None]
    out = pasted(image[None])[0]
    assert (out[:, :6] == 1).all() and (out[..., :6] == 1).all() and (out[:, 18:] == 1).all()
    torch.testing.assert_close(out[:, 9:15, 9:15], image[:, 9:15, 9:15])


def test_a_background_that_the_border_does_not_reach_stays() -> None:
    image = torch.ones(1, 3, 24, 24) * 0.9
    image[..., 6:18, 6:18] = 0.1
    image[..., 10:14, 10:14] = 0.9
    assert torch.equal(pasted(image)[..., 10:14, 10:14], image[..., 10:14, 10:14])
