"""Eq. 9: what the images of one class look like, as a mean, principal components and their variances."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from onbrand.errors import OnbrandError, quote

FLOOR = 1e-4
"""Least variance a direction is given in log_likelihood, as a share of the mean variance: few images span few."""
LARGEST = 1e6
"""No number of x0, which is of a few units, and none of its variances is beyond: float32 draws from it stay finite."""


@dataclass(frozen=True, eq=False)
class Gaussian:
    """x = mean + sum_i xi_i p_i, xi_i ~ N(0, variance_i) (Eq. 9), fitted on the x0 of one class.

    Raises OnbrandError if the tensors do not fit together, or their numbers are of no images.
    """

    mean: Tensor
    """`(C, H, W)` float32: the class mean mu^c, in units of x0 (scaled latents)."""
    components: Tensor
    """`(K, C*H*W)` float32, orthonormal rows p_i; K may be 0."""
    variances: Tensor
    """`(K,)` float32, falling: lambda_i."""
    total: float
    """Trace of the covariance: the variance of all directions together, fitted or not."""
    count: int
    """Images it was fitted on."""

    def __post_init__(self) -> None:
        if isinstance(self.count, bool) or not isinstance(self.count, int) or self.count < 1:
            raise OnbrandError("value", f"a Gaussian is fitted on 1 image or more: got count {quote(self.count)}")
        if isinstance(self.total, bool) or not isinstance(self.total, int | float):
            raise OnbrandError("value", f"a Gaussian's total variance is a number: got {quote(self.total)}")
        if self.mean.ndim != 3 or not self.mean.numel():
            raise OnbrandError(
                "value", f"a Gaussian's mean is (C, H, W): got shape {tuple(self.mean.shape)}; drop the batch axis"
            )
        k, d = self.variances.numel(), self.mean.numel()
        if self.components.shape != (k, d) or self.variances.ndim != 1:
            raise OnbrandError(
                "value",
                f"components are (K, C*H*W) and variances (K,): got {tuple(self.components.shape)} and "
                f"{tuple(self.variances.shape)} for a mean of {d} numbers; flatten the components",
            )
        if not all(part.is_floating_point() for part in self._parts):
            raise OnbrandError(
                "value", f"a Gaussian holds floating-point numbers: got {[p.dtype for p in self._parts]}"
            )
        parts = (*self._parts, torch.tensor(self.total, dtype=torch.float64))
        names = ("mean", "components", "variances", "total")
        wrong = [name for name, part in zip(names, parts, strict=True) if not bool(part.isfinite().all())]
        wrong += ["a negative variance"] if self.total < 0 or bool((self.variances < 0).any()) else []
        if wrong:
            raise OnbrandError(
                "value",
                f"a Gaussian holds finite numbers and no negative variance: not so {', '.join(wrong)}; fit it again",
            )
        largest = {"mean": self.mean.abs(), "variances": self.variances, "total": torch.tensor(self.total / d)}
        for name, part in largest.items():
            if part.numel() and float(part.max()) > LARGEST:
                raise OnbrandError(
                    "value",
                    f"a Gaussian is of x0, a few units large: got {float(part.max()):.3g} in its {name}, over "
                    f"{LARGEST:g}; scale the latents (scaling_factor)",
                )
        sum_of_variances = float(self.variances.double().sum())
        if sum_of_variances > 2 * self.total + 1e-6:  # a sketch may overrate them a little
            raise OnbrandError(
                "value",
                f"a Gaussian's variances are part of its total: got a sum of {sum_of_variances:.3g} and total "
                f"{self.total:.3g}; fit it again",
            )
        if k > 1 and bool((self.variances.diff() > 1e-3 * self.variances[0]).any()):
            raise OnbrandError(
                "value", f"a Gaussian's variances fall: got {quote(self.variances.tolist())}; sort its components"
            )
        gram = self.components.float() @ self.components.float().T
        off = float((gram - torch.eye(k, device=gram.device)).abs().max()) if k else 0.0
        if off > 0.02:
            raise OnbrandError(
                "value",
                f"components are orthonormal rows: got products that are off by {off:.3g}; orthonormalise them "
                "(torch.linalg.qr)",
            )

    @property
    def k(self) -> int:
        """Components kept, K."""
        return len(self.variances)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of x0."""
        c, h, w = self.mean.shape
        return c, h, w

    @property
    def residual(self) -> float:
        """Variance in each direction outside the components: what is left of the total, shared equally."""
        dimensions = self.mean.numel() - self.k
        return max(self.total - float(self.variances.double().sum()), 0.0) / dimensions if dimensions else 0.0

    def draw(self, n: int, k: int = 0, generator: torch.Generator | None = None, noise: Tensor | None = None) -> Tensor:
        """N independent draws of x_start from Q with k components (Eq. 9); k = 0: the mean, n times.

        One generator state gives nested draws: those with a smaller k share the first k coordinates with those of a
        larger one.

        Args:
            n: draws
            k: components, 0 <= k <= K
            generator: on the CPU
            noise: standard normal `(n, k)`, instead of drawing

        Returns:
            x_start `(n, C, H, W)`.

        Raises:
            OnbrandError: k exceeds what was fitted, or noise has another shape.
        """
        self.check_k(k)
        if noise is None:
            # drawn on the CPU, in float32, for all components: the same on every device and for every k
            noise = torch.randn(n, self.k, generator=generator)[:, :k] if k else torch.zeros(n, 0)
        if noise.shape != (n, k):
            raise OnbrandError(
                "value", f"noise for {n} draws of {k} components is ({n}, {k}): got {tuple(noise.shape)}"
            )
        return self.place(noise.to(self.mean) * self.variances[:k].sqrt())

    def place(self, coordinates: Tensor) -> Tensor:
        """Mean + sum_i xi_i p_i (Eq. 9).

        Args:
            coordinates: xi `(B, k)`, k <= K

        Returns:
            `(B, C, H, W)`.

        Raises:
            OnbrandError: k exceeds what was fitted.
        """
        self.check_k(coordinates.shape[1])
        offset = coordinates.to(self.mean) @ self.components[: coordinates.shape[1]]
        return self.mean + offset.reshape(-1, *self.mean.shape)

    def coordinates(self, x0: Tensor) -> Tensor:
        """p_i . (x0 - mean) for each component: x0 `(B, C, H, W)` to `(B, K)`. Raises OnbrandError on another shape."""
        return self._centred(x0) @ self.components.T

    def project(self, x0: Tensor, k: int) -> Tensor:
        """The nearest point that k components reach, the paper's x_K (section 3.4).

        Args:
            x0: `(B, C, H, W)`
            k: components, 0 <= k <= K

        Returns:
            x_K `(B, C, H, W)`.

        Raises:
            OnbrandError: k exceeds what was fitted, or x0 has another shape.
        """
        self.check_k(k)
        return self.place(self.coordinates(x0)[:, :k])

    def log_likelihood(self, x: Tensor) -> Tensor:
        """Log N(x; mean, P^T diag(variances) P + residual (I - P^T P)), closed form.

        Summed in float64 on the CPU. No direction is given less than FLOOR of the mean variance.

        Args:
            x: `(B, C, H, W)`

        Returns:
            Nats `(B,)`, float32.

        Raises:
            OnbrandError: the class has no spread at all (one image), or x has another shape.
        """
        d, floor = self.mean.numel(), FLOOR * self.total / self.mean.numel()
        if self.total <= 0:
            raise OnbrandError(
                "value", f"a likelihood needs spread: this class has none ({self.count} image); fit it on more"
            )
        offsets = self._centred(x).double().cpu()
        coordinates = offsets @ self.components.double().cpu().T
        variances, residual = self.variances.double().cpu().clamp(min=floor), max(self.residual, floor)
        outside = (offsets.square().sum(1) - coordinates.square().sum(1)).clamp(min=0) * (d > self.k)
        logdet = variances.log().sum() + (d - self.k) * math.log(residual)
        distance = (coordinates.square() / variances).sum(1) + outside / residual
        return (-0.5 * (d * math.log(2 * math.pi) + logdet + distance)).float().to(x.device)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Gaussian":
        """A copy moved to a device or dtype."""
        mean, components, variances = (part.to(device=device, dtype=dtype or part.dtype) for part in self._parts)
        return Gaussian(mean, components, variances, self.total, self.count)

    def check_k(self, k: int, name: str = "") -> None:
        """Raise OnbrandError unless 0 <= k <= K. name: of its class."""
        if not 0 <= k <= self.k:
            raise OnbrandError(
                "value",
                f"{f'class {name!r}' if name else 'this class'} was fitted with {self.k} components: got k = {k}; use "
                "fewer, or fit with --k",
            )

    @property
    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.mean, self.components, self.variances

    def _centred(self, x0: Tensor) -> Tensor:
        """`(B, C*H*W)`, x0 less the mean."""
        if x0.ndim != 4 or x0.shape[1:] != self.mean.shape:
            raise OnbrandError("value", f"x0 is (B, {', '.join(map(str, self.shape))}) here: got {tuple(x0.shape)}")
        return (x0.to(self.mean) - self.mean).flatten(1)
