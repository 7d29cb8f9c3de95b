"""Latents, batch by batch, to a Gaussian per class (Eq. 9): additive partial sums, so that parts can be merged."""

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from onbrand.core.gaussian import Gaussian
from onbrand.errors import OnbrandError

EXACT = 4096
"""Up to this many dimensions the whole second moment is summed; above it, a sketch of it."""
BLOCK = 1024
"""Rows of the second moment that are summed at once."""
ROWS = 8
"""Rows that are summed at once in float32: few enough for the processor's caches."""
TOGETHER = 256
"""Rows whose products are summed in float32; sums of these are float64."""
FEW = 50
"""Below this many images a class mean shows those images."""
WIDTH = 128
"""Columns of a test matrix at least, for which two passes are made."""
SEED = 0x0B
"""Of the sketch's test matrix, which all parts must share."""


@dataclass
class Sums:
    """What is kept of a class's images; every field is a plain sum over them, in float64."""

    count: Tensor
    """`()` images."""
    first: Tensor
    """`(d,)` sum of x0."""
    square: Tensor
    """`()` sum of |x0|^2."""
    second: Tensor
    """`(d, d)` sum of x0 x0^T, its upper triangle; sketched: `(d, m)`, that times the test matrix; k = 0: none."""


class Fitter:
    """Sums x0 of any number of batches; `finish` makes the Gaussians. O(d) memory for k = 0.

    For k > 0 the second moment is exact up to d = EXACT dimensions. Above, it is an additive Nystrom sketch (Tropp et
    al. 2017, arXiv 1706.05736).

    Args:
        shape: (C, H, W) of x0
        k: components to find, 0 <= k <= C*H*W

    Raises:
        OnbrandError: another shape, or impossible k.
    """

    def __init__(self, shape: Sequence[int], k: int = 0) -> None:
        self.shape, self.k = tuple(int(side) for side in shape), int(k)
        self._sums: dict[str, Sums] = {}
        self.dimensions = math.prod(self.shape)
        if len(self.shape) != 3 or self.dimensions < 1 or not 0 <= self.k <= self.dimensions:
            raise OnbrandError(
                "value", f"a fitter takes shape (C, H, W) and 0 <= k <= C*H*W: got {self.shape} and k = {k}"
            )
        self._test = self._test_matrix()

    def update(self, x0: Tensor, classes: Sequence[str]) -> None:
        """Add a batch.

        Args:
            x0: scaled latents `(B, C, H, W)`, finite
            classes: one class name an image

        Raises:
            OnbrandError: another shape, another number of names, or numbers that are not finite. Nothing is added then.
        """
        if x0.ndim != 4 or tuple(x0.shape[1:]) != self.shape:
            raise OnbrandError(
                "value", f"this fitter takes x0 (B, {', '.join(map(str, self.shape))}): got {tuple(x0.shape)}"
            )
        if isinstance(classes, str) or len(classes) != len(x0):
            raise OnbrandError(
                "value", f"one class name an image, {len(x0)} here: got {classes!r}; pass a list of names"
            )
        places: dict[str, list[int]] = {}
        for i, name in enumerate(classes):
            places.setdefault(name, []).append(i)
        rows = x0.detach().cpu().flatten(1)
        if len(places) > 1:
            rows = rows.index_select(0, torch.tensor([i for own in places.values() for i in own]))
        blocks = not self.k and self.dimensions > EXACT
        rows = rows if blocks else rows.double()
        parts = dict(zip(places, rows.split([len(own) for own in places.values()]), strict=True)) if places else {}
        moments = {name: (_by_blocks if blocks else _moments)(part) for name, part in parts.items()}
        if not sum((square for _, square in moments.values()), torch.zeros(())).isfinite():  # faster than each number
            bad = (~x0.detach().flatten(1).isfinite().all(1)).nonzero().flatten().tolist()
            if bad:
                raise OnbrandError(
                    "value", f"x0 must be finite: rows {bad} are not; encode those images again, in float32"
                )
        for name, part in parts.items():
            rows, square = moments[name]
            if name not in self._sums:
                self._sums[name] = self._empty()
            sums = self._sums[name]
            for row in rows:
                sums.first += row
            sums.count += len(part)
            sums.square += square
            if self._test is not None:
                sums.second.addmm_(part.T, part @ self._test)
            elif self.k:
                for row in range(0, self.dimensions, BLOCK):  # the lower triangle mirrors the upper one
                    sums.second[row : row + BLOCK, row:].addmm_(part[:, row : row + BLOCK].T, part[:, row:])

    def merge(self, other: "Fitter") -> "Fitter":
        """A fitter that has seen what both have. Raises OnbrandError if their shape or k differ."""
        union = Fitter(self.shape, self.k)
        for part in (self, other):
            union.add(part)
        return union

    def add(self, other: "Fitter") -> None:
        """Takes in what another has seen, in place. Raises OnbrandError if their shape or k differ."""
        if (other.shape, other.k) != (self.shape, self.k):
            raise OnbrandError(
                "value",
                f"parts of one fit share shape and k: got {self.shape}, k = {self.k} and {other.shape}, k = {other.k}",
            )
        for name, sums in other._sums.items():
            if name not in self._sums:
                self._sums[name] = Sums(*(value.clone() for value in vars(sums).values()))
                continue
            for field, value in vars(sums).items():
                getattr(self._sums[name], field).add_(value)

    def finish(self) -> dict[str, Gaussian]:
        """A Gaussian for each class seen.

        Components fall by variance (over count - 1, as in scikit-learn). A class of n images has at most n - 1 of them.
        A class under FEW images is warned of: its mean shows those images.

        Raises:
            OnbrandError: nothing was seen.
        """
        if not self._sums:
            raise OnbrandError("value", "a fit needs images: this fitter has seen none")
        return {name: self._fit(name, sums) for name, sums in self._sums.items()}

    def state(self) -> dict[str, Tensor]:
        """The partial sums as tensors that safetensors can write."""
        state = {"shape": torch.tensor(self.shape), "k": torch.tensor(self.k)}
        for name, sums in self._sums.items():
            state |= {f"{field}/{name}": value for field, value in vars(sums).items()}
        return state

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> "Fitter":
        """The fitter that `state` was taken from. Raises OnbrandError if the sums are of another layout, or no sums."""
        absent = torch.tensor([])
        for field, shape in (("shape", (3,)), ("k", ())):
            numbers = state.get(field, absent)
            if numbers.shape != shape or numbers.is_floating_point() or bool((numbers < 0).any()):
                raise OnbrandError("value", f"a fitter's state has {field}, whole numbers: got {numbers.tolist()}")
        names = [key.partition("/")[2] for key in state if key.startswith("count/")]
        d = math.prod(state["shape"].tolist())
        for name in names:  # before a fitter of the size that it claims is made
            if state.get(f"first/{name}", absent).numel() != d:
                raise OnbrandError("value", f"first of {name!r} has {d} numbers, as the fitter's shape says")
        fitter = cls(state["shape"].tolist(), int(state["k"]))
        for name in names:
            sums = fitter._sums[name] = fitter._empty()
            for part, empty in vars(sums).items():
                tensor = state.get(f"{part}/{name}", absent)
                if tensor.shape != empty.shape or tensor.dtype != torch.float64 or not bool(tensor.isfinite().all()):
                    raise OnbrandError(
                        "value",
                        f"{part} of {name!r} is float64 {tuple(empty.shape)}, finite: got "
                        f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}",
                    )
                setattr(sums, part, tensor.clone())
            if float(sums.count) < 1 or float(sums.count) % 1:
                raise OnbrandError("value", f"count of {name!r} is a number of images: got {float(sums.count):g}")
        return fitter

    def _fit(self, name: str, sums: Sums) -> Gaussian:
        count = int(sums.count)
        if count < FEW:
            warnings.warn(
                f"{name!r} was fitted on {count} images: its mean shows those images; use {FEW} or more",
                stacklevel=3,
            )
        mean = sums.first / count
        rest = max(count - 1, 1)
        total = max(float(sums.square - count * mean.square().sum()), 0.0) / rest
        k = min(self.k, count - 1)
        variances, components = torch.zeros(0), torch.zeros(0, self.dimensions)
        if k:
            if self._test is None:
                second = sums.second.triu() + sums.second.triu(1).T
                pairs = _largest(lambda v: (second @ v - count * mean[:, None] * (mean @ v)) / rest, self.dimensions, k)
            else:
                sketch = (sums.second - count * mean[:, None] * (mean @ self._test)) / rest
                pairs = _nystrom(sketch, self._test, total, k)
            positive = pairs[0] > 1e-10 * total
            variances, components = pairs[0][positive].float(), _sign(pairs[1][:, positive].T).float().contiguous()
        return Gaussian(mean.float().reshape(self.shape), components, variances, total, count)

    def _empty(self) -> Sums:
        """Sums over nothing."""
        width = 0 if not self.k else self.dimensions if self._test is None else self._test.shape[1]
        shapes = (), (self.dimensions,), (), (self.dimensions, width)
        return Sums(*(torch.zeros(shape, dtype=torch.float64) for shape in shapes))

    def _test_matrix(self) -> Tensor | None:
        """`(d, m)`, the same for every part of a fit; None if the second moment is exact or not needed."""
        if not self.k or self.dimensions <= EXACT:
            return None
        width = min(max(256, 8 * self.k), self.dimensions)
        return torch.randn(self.dimensions, width, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)


def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """`(1, d)` sum and `()` sum of squares of rows `(n, d)` float64."""
    return rows.sum(0, keepdim=True), rows.square().sum()


def _by_blocks(rows: Tensor) -> tuple[Tensor, Tensor]:
    """`_moments` of rows of any type: blocks are summed in float32, about the first row, and blocks' sums in float64.

    The first row is near the mean, so that float32 rounds the rows' spread and not their size. Few rows are returned as
    they are, `(n, d)`: their sum would be as large.
    """
    if len(rows) < ROWS:
        numbers = rows.double().flatten()
        return rows, numbers @ numbers
    pivot = rows[0].to(torch.promote_types(rows.dtype, torch.float32))
    first, square = torch.zeros(len(pivot), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for block in rows.split(ROWS):
        offsets = block - pivot
        first += offsets.sum(0)
        square += offsets.square_().sum(1).double().sum()
    pivot = pivot.double()
    square += pivot @ (2 * first + len(rows) * pivot)
    return first.add_(pivot, alpha=len(rows))[None], square


def fit_components(gaussian: Gaussian, k: int, blocks: Callable[[], Iterable[Tensor]]) -> Gaussian:
    """The Gaussian with the k largest principal components of its class, by two passes over the class's x0.

    A randomised range finder (Halko et al. 2011, arXiv 0909.4061): the covariance times a Gaussian test matrix gives a
    basis, the covariance times that basis Nystrom's approximation. Products of rows are float32 about the mean, a block
    at a time; their sums are float64. On variances that fall as those of photos (1 / i, over white noise), 16
    components explain less by 0.05 % at most than those of a full decomposition, and each variance is within 1.5 %
    (tests/core/test_fit.py); on steeper ones less. A class of few images is decomposed in full.

    Args:
        gaussian: mean and total of the class, as a Fitter of k = 0 gives them
        k: components to find
        blocks: called once a pass; the class's x0 `(B, C, H, W)`, finite, in blocks of any size, on one device that
            knows float64. Some hundreds of rows a block are fastest.
    """
    k, width = min(k, gaussian.count - 1), max(WIDTH, 8 * k)
    if k < 1:
        return gaussian
    if gaussian.count <= 2 * width:
        exact = fit_rows(torch.cat(list(blocks())), k)
        return replace(gaussian, components=exact.components, variances=exact.variances)
    mean, image = gaussian.mean.flatten().float(), torch.zeros(0)
    basis = torch.randn(len(mean), width, generator=torch.Generator().manual_seed(SEED))
    for _ in range(2):
        basis = torch.linalg.qr(image)[0].float() if len(image) else basis
        image = _image(blocks(), mean, basis) / (gaussian.count - 1)
    values, vectors = torch.linalg.eigh(_symmetric(basis.T.double() @ image))
    seen = values > 1e-6 * values[-1]  # below, float32's own noise
    half = image @ (vectors[:, seen] / values[seen].sqrt())
    variances, turn = torch.linalg.eigh(_symmetric(half.T @ half))
    variances, turn = variances.flip(0)[:k], turn.flip(1)[:, :k]
    components = _sign((half @ turn / variances.sqrt()).T).float().contiguous()
    return replace(gaussian, components=components, variances=variances.float())


def _image(blocks: Iterable[Tensor], mean: Tensor, basis: Tensor) -> Tensor:
    """`(d, m)` float64 sum of y y^T basis over y = x0 - mean."""
    image, products, count = torch.zeros(basis.shape[::-1], dtype=torch.float64), torch.zeros(basis.shape[::-1]), 0
    for x0 in blocks:
        mean, basis, image, products = (part.to(x0.device) for part in (mean, basis, image, products))
        rows = x0.detach().flatten(1).float() - mean
        products.addmm_((rows @ basis).T, rows)
        count += len(rows)
        if count >= TOGETHER:
            image += products
            products, count = products.zero_(), 0
    return (image + products).T.cpu()


def fit_rows(x0: Tensor, k: int) -> Gaussian:
    """The Gaussian of one class's x0 `(n, C, H, W)`, all in memory: what a Fitter makes of them, exact at any d.

    By the n x n products of the rows, so for some hundreds of them. OnbrandError for fewer than one row.
    """
    count, rest = len(x0), max(len(x0) - 1, 1)
    if not count:
        raise OnbrandError("value", "a fit needs images: got none")
    rows = x0.detach().to("cpu", torch.float64).flatten(1)
    mean = rows.mean(0)
    offsets = rows - mean
    values, vectors = torch.linalg.eigh(offsets @ offsets.T / rest)
    total, k = float(values.sum()), min(k, count - 1)
    values, vectors = values.flip(0)[:k], vectors.flip(1)[:, :k]
    positive = values > 1e-10 * total
    directions = torch.nn.functional.normalize(vectors[:, positive].T @ offsets)
    return Gaussian(
        mean.float().reshape(x0.shape[1:]), _sign(directions).float(), values[positive].float(), total, count
    )


def _largest(covariance: Callable[[Tensor], Tensor], d: int, k: int) -> tuple[Tensor, Tensor]:
    """The k largest eigenvalues, falling, and eigenvectors `(d, k)` of a symmetric operator `(d, m)` -> `(d, m)`.

    Subspace iteration until the residuals are below 1e-7 of the eigenvalues; where d is small, one full decomposition.
    """
    width = min(max(4 * k, 64), d)
    basis = torch.eye(d, dtype=torch.float64)
    if d > 512:
        start = torch.randn(d, width, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)
        basis = torch.linalg.qr(start)[0]
    for _ in range(300):
        image = covariance(basis)
        values, turn = torch.linalg.eigh(_symmetric(basis.T @ image))
        vectors, image = basis @ turn[:, -k:], image @ turn
        misfit = (image[:, -k:] - vectors * values[-k:]).norm(dim=0)
        if bool((misfit <= 1e-7 * values[-k:] + 1e-12 * values[-1]).all()):
            break
        basis = torch.linalg.qr(image)[0]
    return values[-k:].flip(0), vectors.flip(1)


def _nystrom(sketch: Tensor, test: Tensor, total: float, k: int) -> tuple[Tensor, Tensor]:
    """The k largest eigenvalues and eigenvectors `(d, k)` of the matrix A of trace `total` whose A @ test is given.

    Nystrom's approximation shows an eigenvalue l as l^2 / (l + c), c m being the trace that it misses (Derezinski et
    al. 2020, arXiv 2006.10653); that is taken back. Where A has rank m or less nothing is missed.
    """
    # the shift gives test^T (A + shift I) test a Cholesky factor even if A has rank below m; it is taken off again
    shift = 1e-10 * float(sketch.norm() / test.norm())
    shifted = sketch + shift * test
    core = torch.linalg.cholesky(_symmetric(test.T @ shifted))
    half = torch.linalg.solve_triangular(core, shifted.T, upper=False).T
    # half half^T = (A test) (test^T A test)^-1 (A test)^T is Nystrom's approximation, and half^T half has its spectrum
    values, vectors = torch.linalg.eigh(_symmetric(half.T @ half))
    missed = max(total - float(values.sum() - shift * len(values)), 0.0) / len(values)
    values, vectors = values[-k:].flip(0), vectors[:, -k:].flip(1)
    # an eigenvalue l shows as s = l^2 / (l + c): l = (s + sqrt(s (s + 4 c))) / 2
    visible = (values - shift).clamp(min=0)
    return (visible + (visible * (visible + 4 * missed)).sqrt()) / 2, half @ vectors / values.sqrt()


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.T) / 2


def _sign(rows: Tensor) -> Tensor:
    """Each row turned so that its largest entry is positive: eigenvectors have no sign of their own."""
    largest = rows.gather(1, rows.abs().argmax(1, keepdim=True))
    return rows * largest.sign()
