"""The brand's images, and what is learned of them once for all tests."""

import numpy as np
import pytest
import torch
from torch import Tensor

from onbrand.datasets.fashion import brand_image, photos, tint_of
from onbrand.evaluation.reference import Reference, learn


def brand_images(split: str, count: int) -> Tensor:
    """`(count, 3, 64, 64)` in [0, 1], tinted as the catalogue does."""
    grey, _ = photos(split)
    images = np.stack([brand_image(grey[i], tint_of(i)) for i in range(count)])
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


@pytest.fixture(scope="session")
def held_out() -> Tensor:
    """1,000 images that nothing was learned from."""
    return brand_images("test", 1000)


@pytest.fixture(scope="session")
def reference() -> Reference:
    """Learned from 2,000 other images."""
    return learn(brand_images("train", 2000))
