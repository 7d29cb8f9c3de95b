"""Would a flow model gain by a start below sigma 1? Exact affine networks, as in docs/concepts/method.md, section 10.

`python research/flow.py` prints the table of docs/research/log.md. Flow: x = (1 - s) x0 + s eps, velocity eps - x0.
"""

from __future__ import annotations

import numpy as np

MU, TEXT, LEFT = 110.0, 300.0, 300.0
"""A white background: its mean, the variance that the prompt tells, the variance that it leaves."""


def end(first: float, trained: bool, steps: int = 20, shift: float = 3.0) -> tuple[float, float, float]:
    """Share of the mean, variance over the class's, slope on the text, of images started from the class mean at sigma
    `first` by a network that knows that start under the constant gain (trained) or was trained as usual."""
    begin = first / (shift - (shift - 1) * first)
    unshifted = np.append(np.linspace(begin, begin / steps, steps), 0.0)
    sigmas = shift * unshifted / (1 + (shift - 1) * unshifted)
    # coefficients of 1, of the text's part m - mu, and of eps
    mean, start, x = np.array([MU, 1, 0]), np.array([MU, 0, 0]), np.array([(1 - first) * MU, 0, first])
    for s, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        k = s * min((1 - s) / s, (1 - first) / first) if trained else 0.0
        c = 1 - s - k
        x0_hat = mean + c * LEFT / (c**2 * LEFT + s**2) * (x - c * mean - k * start)
        x = x + (following - s) * (x - x0_hat) / s
    return float(x[0] / MU), float((x[1] ** 2 * TEXT + x[2] ** 2) / (TEXT + LEFT)), float(x[1])


def table() -> list[str]:
    """The rows of the log's table."""
    rows = []
    for first in (0.8, 0.95):
        cells = [" / ".join(f"{number:.2f}" for number in end(first, trained)[1:]) for trained in (False, True)]
        rows.append(f"| {first:g} | {' | '.join(cells)} |".replace("0.", ".").replace("1.00", "1"))
    variance, text = end(1.0, False)[1:]
    return [*rows, f"| 1 | {variance:.2f} / {text:.0f} | the same |".replace("0.", ".")]


if __name__ == "__main__":
    print("\n".join(table()))
