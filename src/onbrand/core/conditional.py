"""Q(x_start | class, text): a regression from the text embedding to PCA coordinates, residual kept (METHOD.md 5)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from onbrand.core.gaussian import Gaussian


@dataclass(frozen=True, eq=False)
class Conditional:
    """The coordinates of x_start given the text: N(shrink * (intercept + (text - text_mean) weight), residual).

    Raises ValueError where the tensors do not fit together or are not finite.
    """

    TENSORS: ClassVar[tuple[str, ...]] = ("weight", "text_mean", "intercept", "shrink", "residual", "r2")

    weight: Tensor
    """`(E, K)` float32: regression weights."""
    text_mean: Tensor
    """`(E,)` float32: mean of the pooled text embeddings."""
    intercept: Tensor
    """`(K,)` float32: mean coordinates of the pictures with text; 0 where those are the pictures of the Gaussian."""
    shrink: Tensor
    """`(K,)` in [0, 1]: the cross-validated R^2 of each coordinate, cut to this range; 0 is the class mean. 1 where the
    regression was fitted without."""
    residual: Tensor
    """`(K, K)` float32: covariance of what the text leaves open, out of fold."""
    r2: Tensor
    """`(K,)` up to 1: the cross-validated R^2 as it was, below 0 where the text says nothing."""
    alpha: float
    """The ridge chosen by cross-validation, as scikit-learn counts it."""

    def __post_init__(self) -> None:
        if self.weight.ndim != 2:
            raise ValueError(f"a regression's weight is (E, K): got {tuple(self.weight.shape)}")
        e, k = self.weight.shape
        wanted = {"text_mean": (e,), "intercept": (k,), "shrink": (k,), "residual": (k, k), "r2": (k,)}
        for name, shape in wanted.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"a regression's {name} is {shape} here: got {tuple(getattr(self, name).shape)}")
        if not all(bool(getattr(self, name).isfinite().all()) for name in self.TENSORS):
            raise ValueError("a regression holds finite numbers: got others; fit it again")

    def coordinates(self, text: Tensor) -> Tensor:
        """Mean coordinates given pooled text embeddings: `(B, E)` to `(B, K)`. ValueError on another width."""
        if text.ndim != 2 or text.shape[1] != len(self.text_mean):
            raise ValueError(
                f"pooled text embeddings are (B, {len(self.text_mean)}) here: got {tuple(text.shape)}; "
                "use the text encoder that the prior was fitted with"
            )
        return self.shrink * (self.intercept + (text.to(self.weight) - self.text_mean) @ self.weight)

    def mean(self, gaussian: Gaussian, text: Tensor) -> Tensor:
        """The mean x_start given text `(B, E)`, in the class of gaussian: `(B, C, H, W)`."""
        return gaussian.place(self.coordinates(text))

    def draw(self, gaussian: Gaussian, text: Tensor, noise: Tensor) -> Tensor:
        """One x_start a text: mean plus a draw of the residual. text `(B, E)`, noise `(B, K)` standard normal.

        Returns `(B, C, H, W)`. Raises ValueError where noise has another shape.
        """
        mean = self.coordinates(text)
        if noise.shape != mean.shape:
            raise ValueError(f"noise for these draws is {tuple(mean.shape)}: got {tuple(noise.shape)}")
        values, vectors = torch.linalg.eigh(self.residual.double().cpu())
        root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
        return gaussian.place(mean + noise.to(mean) @ root.to(mean))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Conditional":
        """A copy moved to a device or dtype."""
        moved = {name: getattr(self, name) for name in self.TENSORS}
        return Conditional(
            **{name: part.to(device=device, dtype=dtype or part.dtype) for name, part in moved.items()},
            alpha=self.alpha,
        )
