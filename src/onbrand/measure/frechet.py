"""Frechet distance of two Gaussians, as between generated pictures and the brand's in the prior's coordinates."""

import torch
from torch import Tensor


def frechet(mean_a: Tensor, covariance_a: Tensor, mean_b: Tensor, covariance_b: Tensor) -> float:
    """|m_a - m_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2) of N(m_a, A) and N(m_b, B); means `(k,)`, covariances `(k, k)`.

    In squared units of the means; float64. Symmetric roots by eigen-decomposition: A^1/2 B A^1/2 is symmetric where
    A B is not, and the traces of their roots are equal. ValueError where the shapes differ.
    Source: Dowson & Landau 1982, eq. 16.
    """
    k = len(mean_a)
    if mean_a.shape != mean_b.shape or not covariance_a.shape == covariance_b.shape == (k, k):
        shapes = [tuple(part.shape) for part in (mean_a, covariance_a, mean_b, covariance_b)]
        raise ValueError(f"two Gaussians have means (k,) and covariances (k, k) of one k: got {shapes}")
    a, b = covariance_a.double(), covariance_b.double()
    half = root(a)
    cross = torch.linalg.eigvalsh(half @ b @ half).clamp(min=0).sqrt().sum()
    return float((mean_a.double() - mean_b.double()).square().sum() + a.trace() + b.trace() - 2 * cross)


def root(matrix: Tensor) -> Tensor:
    """Symmetric square root `(k, k)` of a symmetric matrix without negative eigenvalues (tiny ones are taken as 0)."""
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def moments(coordinates: Tensor) -> tuple[Tensor, Tensor]:
    """Mean `(k,)` and covariance `(k, k)`, float64, of coordinates `(B, k)`; ValueError for fewer than two."""
    if coordinates.ndim != 2 or len(coordinates) < 2:
        shape = tuple(coordinates.shape)
        raise ValueError(f"a covariance needs coordinates (B, k) of at least two pictures: got {shape}")
    coordinates = coordinates.double()
    centred = coordinates - coordinates.mean(0)
    return coordinates.mean(0), centred.T @ centred / (len(coordinates) - 1)


def distance(coordinates: Tensor, reference: Tensor) -> float:
    """Frechet distance of the Gaussians fitted to two sets of coordinates, `(B, k)` and `(B', k)`.

    With few pictures it is biased upwards; compare only rows of one number of pictures. It is a distance in *this*
    prior's components and no FID.
    """
    return frechet(*moments(coordinates), *moments(reference))
