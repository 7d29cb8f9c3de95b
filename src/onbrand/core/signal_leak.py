"""A rival's start as a Gaussian: the signal leak by element, or of low frequencies (Everaert et al., WACV 2024).

Written from the published description ("Exploiting the Signal-Leak Bias in Diffusion Models"); x_start drawn from these
with all components is that start.
"""

import math

import torch
from torch import Tensor

from onbrand.core.gaussian import Gaussian


def elementwise(x0: Tensor) -> Gaussian:
    """Each element of x0 `(B, C, H, W)` by itself: its mean and variance, K = C*H*W unit components.

    ValueError for fewer than two pictures.
    """
    rows = _rows(x0)
    variances, order = rows.var(0).sort(descending=True)
    unit = torch.zeros(len(order), len(order))
    unit[torch.arange(len(order)), order] = 1
    return Gaussian(
        rows.mean(0).float().reshape(x0.shape[1:]), unit, variances.float(), float(variances.sum()), len(x0)
    )


def low_frequencies(x0: Tensor, n: int = 3) -> Gaussian:
    """The n x n lowest DCT coefficients of every channel of x0 `(B, C, H, W)`, jointly; all others are 0 in x_start.

    K = min(C n^2, B - 1) components: the basis turned into the eigenvectors of the coefficients' covariance. ValueError
    for fewer than two pictures, and n beyond the sides.
    """
    rows, (c, h, w) = _rows(x0), x0.shape[1:]
    if not 1 <= n <= min(h, w):
        raise ValueError(f"n lowest frequencies of sides {h} and {w}: got n = {n}; take 1 to {min(h, w)}")
    one = torch.einsum("ay,bx->abyx", dct_basis(h)[:n], dct_basis(w)[:n]).reshape(n * n, h * w)
    basis = torch.kron(torch.eye(c, dtype=torch.float64), one)
    coefficients = rows @ basis.T
    mean = coefficients.mean(0)
    variances, vectors = torch.linalg.eigh(torch.cov(coefficients.T).reshape(len(basis), len(basis)))
    k = min(len(basis), len(x0) - 1)
    variances, vectors = variances.flip(0)[:k].clamp(min=0), vectors.flip(1)[:, :k]
    placed = (mean @ basis).reshape(c, h, w)
    return Gaussian(placed.float(), (vectors.T @ basis).float(), variances.float(), float(variances.sum()), len(x0))


def dct_basis(n: int) -> Tensor:
    """Orthonormal DCT-II `(n, n)`, float64: row k is frequency k (scipy.fft.dct with norm="ortho")."""
    places, k = torch.arange(n, dtype=torch.float64) + 0.5, torch.arange(n, dtype=torch.float64)[:, None]
    basis = (math.pi / n * k * places).cos() * math.sqrt(2 / n)
    basis[0] /= math.sqrt(2)
    return basis


def _rows(x0: Tensor) -> Tensor:
    if x0.ndim != 4 or len(x0) < 2:
        raise ValueError(f"a leak is fitted on x0 (B, C, H, W) of two pictures or more: got {tuple(x0.shape)}")
    return x0.detach().cpu().double().flatten(1)
