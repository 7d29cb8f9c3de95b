"""A ground replaced by threshold: exact on flat grounds, and the product kept."""

import pytest
import torch

from onbrand.evaluation.segmentation import pasted


@pytest.mark.parametrize("ground", [(0.2, 0.6, 0.3), (0.98, 0.98, 0.98), (0.5, 0.5, 0.5)])
def test_a_flat_ground_becomes_white_and_the_product_stays(ground):
    picture = torch.tensor(ground)[:, None, None].expand(3, 24, 24).clone()
    picture[:, 8:16, 8:16] = torch.tensor([0.8, 0.1, 0.1])[:, None, None]
    out = pasted(picture[None])[0]
    assert (out[:, :6] == 1).all() and (out[..., :6] == 1).all() and (out[:, 18:] == 1).all()
    torch.testing.assert_close(out[:, 9:15, 9:15], picture[:, 9:15, 9:15])


def test_a_ground_that_the_border_does_not_reach_stays():
    picture = torch.ones(1, 3, 24, 24) * 0.9
    picture[..., 6:18, 6:18] = 0.1
    picture[..., 10:14, 10:14] = 0.9
    assert torch.equal(pasted(picture)[..., 10:14, 10:14], picture[..., 10:14, 10:14])
