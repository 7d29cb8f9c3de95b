"""Q(x_start | class, text): a regression from the text embedding to PCA coordinates, and its residual.

docs/concepts/method.md, section 6.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from onbrand.core.gaussian import LARGEST, Gaussian
from onbrand.errors import OnbrandError, quote


@dataclass(frozen=True, eq=False)
class Conditional:
    """The coordinates of x_start given the text: N(shrink * (intercept + (text - text_mean) weight), residual).

    Raises OnbrandError if the tensors do not fit together, or their numbers are of no regression.
    """

    TENSORS: ClassVar[tuple[str, ...]] = ("weight", "text_mean", "intercept", "shrink", "residual", "r2")

    weight: Tensor
    """`(E, K)` float32: regression weights."""
    text_mean: Tensor
    """`(E,)` float32: mean of the pooled text embeddings."""
    intercept: Tensor
    """`(K,)` float32: mean coordinates of the images with text; 0 where those are the images of the Gaussian."""
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
            raise OnbrandError("value", f"a regression's weight is (E, K): got {tuple(self.weight.shape)}")
        e, k = self.weight.shape
        shapes = {"text_mean": (e,), "intercept": (k,), "shrink": (k,), "residual": (k, k), "r2": (k,)}
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise OnbrandError(
                    "value", f"a regression's {name} is {shape} here: got {tuple(getattr(self, name).shape)}"
                )
        wrong = [name for name in self.TENSORS if not _usable(getattr(self, name))]
        if wrong:
            raise OnbrandError(
                "value",
                f"a regression holds finite numbers of a few units, none over {LARGEST:g}: not so {', '.join(wrong)}; "
                "fit it again",
            )
        if k and not (float(self.shrink.min()) >= 0 and float(self.shrink.max()) <= 1.001):
            raise OnbrandError("value", f"a regression's shrink lies in [0, 1]: got {quote(self.shrink.tolist())}")
        if k and float(self.r2.max()) > 1.001:
            raise OnbrandError("value", f"a regression's r2 is 1 at most: got {float(self.r2.max()):.3g}")
        if bool((self.residual.diagonal() < 0).any()):
            raise OnbrandError("value", "a regression's residual is a covariance: got a negative variance in it")
        if isinstance(self.alpha, bool) or not isinstance(self.alpha, int | float) or not 0 <= self.alpha < math.inf:
            raise OnbrandError("value", f"a regression's alpha is a number from 0 on: got {quote(self.alpha)}")

    def coordinates(self, text: Tensor) -> Tensor:
        """Mean coordinates `(B, K)` given pooled text embeddings `(B, E)`. Raises OnbrandError on another width."""
        if text.ndim != 2 or text.shape[1] != len(self.text_mean):
            raise OnbrandError(
                "value",
                f"pooled text embeddings are (B, {len(self.text_mean)}) here: got {tuple(text.shape)}; "
                "use the text encoder that the prior was fitted with",
            )
        return self.shrink * (self.intercept + (text.to(self.weight) - self.text_mean) @ self.weight)

    def mean(self, gaussian: Gaussian, text: Tensor) -> Tensor:
        """The mean x_start given text `(B, E)`, in the class of gaussian: `(B, C, H, W)`."""
        return gaussian.place(self.coordinates(text))

    def draw(self, gaussian: Gaussian, text: Tensor, noise: Tensor) -> Tensor:
        """One x_start a text: its mean plus a draw of the residual.

        Args:
            gaussian: the class, which says where coordinates lie
            text: pooled embeddings `(B, E)`
            noise: standard normal `(B, K)`

        Returns:
            x_start `(B, C, H, W)`.

        Raises:
            OnbrandError: noise of another shape, or text of another width.
        """
        mean = self.coordinates(text)
        if noise.shape != mean.shape:
            raise OnbrandError("value", f"noise for these draws is {tuple(mean.shape)}: got {tuple(noise.shape)}")
        values, vectors = torch.linalg.eigh(self.residual.double().cpu())
        root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
        return gaussian.place(mean + noise.to(mean) @ root.to(mean))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Conditional:
        """A copy moved to a device or dtype."""
        parts = {name: getattr(self, name) for name in self.TENSORS}
        return Conditional(
            **{name: part.to(device=device, dtype=dtype or part.dtype) for name, part in parts.items()},
            alpha=self.alpha,
        )


def _usable(part: Tensor) -> bool:
    """Whether all its numbers are finite and none is over LARGEST, in size."""
    return part.is_floating_point() and (not part.numel() or float(part.abs().max()) <= LARGEST)


Method = Literal["ridge", "reduced-rank", "cca"]
ALPHAS = (1e-2, 1e-1, 1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6)
"""Ridges tried, as scikit-learn counts them: beside the summed squares of the embeddings."""
RANKS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Ranks tried by those that have one, besides the full one."""


@dataclass
class Sums:
    """What is kept of one fold; every field is a plain sum over its images, in float64."""

    count: Tensor
    """`()` images."""
    text: Tensor
    """`(E,)` sum of embeddings t."""
    coordinates: Tensor
    """`(K,)` sum of coordinates y."""
    tt: Tensor
    """`(E, E)` sum of t t^T."""
    ty: Tensor
    """`(E, K)` sum of t y^T."""
    yy: Tensor
    """`(K, K)` sum of y y^T."""

    def plus(self, other: Sums, sign: int = 1) -> Sums:
        """The sums over both (or, with sign -1, over those not in other)."""
        return Sums(*(mine + sign * its for mine, its in zip(vars(self).values(), vars(other).values(), strict=True)))


class ConditionalFitter:
    """Sums pairs of text and x0 of one class by fold; `finish` makes the regression. O(folds E^2) memory.

    Args:
        gaussian: the class as fitted, with K >= 1
        folds: of the cross-validation, >= 2

    Raises:
        OnbrandError: fewer components or folds.
    """

    def __init__(self, gaussian: Gaussian, folds: int = 5) -> None:
        if gaussian.k < 1 or folds < 2:
            raise OnbrandError(
                "value", f"text needs components and folds: got K = {gaussian.k}, {folds} folds; fit with --k 1 up"
            )
        self.gaussian = gaussian
        self._folds: list[Sums | None] = [None] * folds

    @property
    def count(self) -> int:
        """Images seen."""
        return sum(int(sums.count) for sums in self._folds if sums)

    def update(self, text: Tensor, x0: Tensor, index: Tensor | Sequence[int]) -> None:
        """Add a batch.

        Args:
            text: pooled embeddings `(B, E)`, finite
            x0: scaled latents `(B, C, H, W)`, finite
            index: each image's number; its fold is number % folds. Images that are copies of one another share one.

        Raises:
            OnbrandError: shapes that do not fit, or numbers that are not finite. Nothing is added then.
        """
        folds = torch.as_tensor(index).cpu() % len(self._folds)
        if text.ndim != 2 or not len(text) == len(x0) == len(folds):
            raise OnbrandError(
                "value",
                f"text (B, E), x0 (B, C, H, W) and index (B,) go together: got {tuple(text.shape)}, "
                f"{tuple(x0.shape)} and {len(folds)} numbers",
            )
        other = next((sums for sums in self._folds if sums), None)
        if other and other.text.shape != text.shape[1:]:
            raise OnbrandError(
                "value", f"one text encoder a fit: got embeddings of {len(other.text)} and {text.shape[1]} numbers"
            )
        finite = text.isfinite().flatten(1).all(1) & x0.isfinite().flatten(1).all(1).to(text.device)
        if not bool(finite.all()):
            rows = (~finite).nonzero().flatten().tolist()
            raise OnbrandError(
                "value", f"text and x0 must be finite: not so rows {rows[:20]}; encode them again, in float32"
            )
        t, y = text.detach().cpu().double(), self.gaussian.to("cpu", torch.float64).coordinates(x0.detach())
        for fold in sorted(set(folds.tolist())):
            a, b = t[folds == fold], y[folds == fold]
            count = torch.tensor(float(len(a)), dtype=torch.float64)
            self._add(fold, Sums(count, a.sum(0), b.sum(0), a.T @ a, a.T @ b, b.T @ b))

    def merge(self, other: ConditionalFitter) -> ConditionalFitter:
        """A fitter that has seen what both have. Raises OnbrandError if their folds or Gaussians differ."""
        mine, its = self.gaussian, other.gaussian
        if len(self._folds) != len(other._folds) or not torch.equal(mine.components, its.components):
            raise OnbrandError(
                "value", "parts of one fit share folds and Gaussian: got others; fit the Gaussian first, on all"
            )
        union = ConditionalFitter(mine, len(self._folds))
        for part in (self, other):
            for fold, sums in enumerate(part._folds):
                if sums:
                    union._add(fold, sums)
        return union

    def finish(self, alphas: Sequence[float] = ALPHAS, method: Method = "ridge", shrink: bool = True) -> Conditional:
        """The regression, its ridge chosen by squared error out of fold.

        Args:
            alphas: ridges to choose among, above 0, on scikit-learn's scale
            method: "ridge"; "reduced-rank", which keeps only the directions of the coordinates that the text explains
                best (Izenman 1975; with a ridge, Mukherjee & Zhu 2011); "cca", the same with the coordinates whitened,
                the leading canonical pairs (Hotelling 1936; the paper's Discussion). How many of RANKS is chosen with
                the ridge
            shrink: multiply each coordinate's prediction by its R^2 out of fold, cut to [0, 1], so that text that says
                nothing leaves the class mean

        Raises:
            OnbrandError: another method, alphas not above 0, or fewer than two folds that have images.
        """
        check_method(method)
        folds = [sums for sums in self._folds if sums]
        if len(folds) < 2 or not alphas or min(alphas) <= 0:
            raise OnbrandError(
                "value",
                f"cross-validation needs images in two folds and alphas above 0: got {self.count} images in "
                f"{len(folds)} folds, alphas {tuple(alphas)}; give more captions, or leave this class without",
            )
        # sums are additive: those of a fold's training images are the total less its own; no image is read twice
        total = folds[0]
        for sums in folds[1:]:
            total = total.plus(sums)
        ridges = [_Ridge(total.plus(sums, -1)) for sums in folds]
        ranks = [None] if method == "ridge" else [rank for rank in RANKS if rank < self.gaussian.k] + [None]
        candidates = [(alpha, method == "cca", rank) for alpha in alphas for rank in ranks]
        products = {
            candidate: _out_of_fold(folds, [ridge.solve(*candidate) for ridge in ridges]) for candidate in candidates
        }
        # |y - p|^2 = y^T y - 2 y^T p + p^T p, summed over all images, each predicted by the ridge that did not see it
        errors = {candidate: total.yy.diag() - 2 * yp.diag() + pp.diag() for candidate, (yp, pp) in products.items()}
        best = min(errors, key=lambda candidate: float(errors[candidate].sum()))
        spread = total.yy.diag() - total.coordinates.square() / total.count
        r2 = torch.where(spread > 0, 1 - errors[best] / spread.clamp(min=1e-300), 0.0)
        shrinkage = r2.clamp(0, 1) if shrink else torch.ones_like(r2)
        # what shrunk predictions s p leave open: the covariance of y - s p, again from sums alone
        yp, pp = products[best]
        residual = (total.yy - yp * shrinkage - (yp * shrinkage).T + shrinkage[:, None] * pp * shrinkage) / total.count
        final = _Ridge(total)
        tensors = final.solve(*best)[0], final.text_mean, final.intercept, shrinkage, residual, r2
        parts = {name: part.float() for name, part in zip(Conditional.TENSORS, tensors, strict=True)}
        return Conditional(**parts, alpha=float(best[0]))

    def _add(self, fold: int, sums: Sums) -> None:
        before = self._folds[fold]
        self._folds[fold] = before.plus(sums) if before else sums


class _Ridge:
    """Ridge regression from sums, of full or of lower rank; one eigendecomposition for all alphas."""

    def __init__(self, sums: Sums) -> None:
        self.text_mean, self.intercept = sums.text / sums.count, sums.coordinates / sums.count
        self.values, self.vectors = torch.linalg.eigh(sums.tt - torch.outer(sums.text, self.text_mean))
        self.turned = self.vectors.T @ (sums.ty - torch.outer(sums.text, self.intercept))
        spread, axes = torch.linalg.eigh(sums.yy - torch.outer(sums.coordinates, self.intercept))
        spread = spread.clamp(min=1e-9 * float(spread.max().clamp(min=1e-300))).sqrt()
        self.whiten, self.colour = (axes / spread) @ axes.T, (axes * spread) @ axes.T

    def solve(self, alpha: float, whitened: bool = False, rank: int | None = None) -> tuple[Tensor, Tensor]:
        """Weight `(E, K)` and the prediction at text 0 `(K,)`; with a rank, of the `rank` directions told best."""
        solution = self.turned / (self.values.clamp(min=0) + alpha)[:, None]
        weight = self.vectors @ solution
        if rank is not None:  # the fitted values' Gram matrix, B^T (S_tt + alpha) B = S_ty^T (S_tt + alpha)^-1 S_ty
            gram = self.turned.T @ solution
            there, back = (self.whiten, self.colour) if whitened else (torch.eye(len(gram)).to(gram),) * 2
            leading = torch.linalg.eigh(there @ gram @ there)[1][:, -rank:]
            weight = weight @ there @ leading @ leading.T @ back
        return weight, self.intercept - self.text_mean @ weight


def check_method(method: str) -> None:
    """Raise OnbrandError unless method is one of the three regressions."""
    if method not in get_args(Method):
        raise OnbrandError(
            "value", f"a regression from text is one of {', '.join(get_args(Method))}: got {method!r}; use ridge"
        )


def _out_of_fold(folds: list[Sums], solutions: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Sums `(K, K)` of y p^T and p p^T over all images, p being the prediction of the ridge that did not see them."""
    yp, pp = torch.zeros_like(folds[0].yy), torch.zeros_like(folds[0].yy)
    for sums, (weight, base) in zip(folds, solutions, strict=True):
        cross = torch.outer(sums.text @ weight, base)
        yp += torch.outer(sums.coordinates, base) + sums.ty.T @ weight
        pp += sums.count * torch.outer(base, base) + cross + cross.T + weight.T @ sums.tt @ weight
    return yp, pp
