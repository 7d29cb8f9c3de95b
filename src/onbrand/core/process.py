"""Eq. 1-3: x0 and noise to x_t and back, in diffusers' three parametrisations; the one broadcasting helper."""

import torch
from torch import Tensor

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


def expand(coef: Tensor, like: Tensor) -> Tensor:
    """View a coefficient per sample so that it multiplies a batch.

    coef: `(B,)` or a scalar `()`; like: `(B, ...)`. Returns `(B, 1, ...)` (or `()`) in like's dtype, on its device.
    Raises ValueError where coef is neither a scalar nor one number a sample.
    """
    if coef.ndim > 0 and coef.shape != like.shape[:1]:
        raise ValueError(
            f"a coefficient is a scalar or one number a sample: got shape {tuple(coef.shape)} "
            f"for a batch of shape {tuple(like.shape)}; index the schedule with the batch's timesteps"
        )
    coef = coef.to(like.device, like.dtype)
    return coef.reshape(-1, *[1] * (like.ndim - 1)) if coef.ndim else coef


def weights(abar: Tensor | float, like: Tensor) -> tuple[Tensor, Tensor]:
    """sqrt(abar) and sqrt(1 - abar), broadcastable to like `(B, ...)`.

    abar: float or `(B,)`, in [0, 1]. A float outside is a ValueError; a tensor is not read, for it may be on a device.
    """
    if not isinstance(abar, Tensor):
        if not 0.0 <= abar <= 1.0:
            raise ValueError(f"abar (alphas_cumprod) lies in [0, 1]: got {abar}; pass abar, not beta or a timestep")
        abar = torch.tensor(abar, dtype=torch.float64)
    return expand(abar.sqrt(), like), expand((1 - abar).sqrt(), like)


def same_shape(**tensors: Tensor) -> None:
    """Raise ValueError unless all of the named tensors have one shape: a silent broadcast would mix samples."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        told = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"these tensors must have one shape: got {told}; expand or index them to the batch first")


def add_noise(x0: Tensor, noise: Tensor, abar: Tensor | float) -> Tensor:
    """x_t `(B, ...)` from x0 and noise `(B, ...)` at abar, float or `(B,)` in [0, 1] (Eq. 1).

    Raises ValueError where the shapes differ.
    """
    same_shape(x0=x0, noise=noise)
    signal, spread = weights(abar, x0)
    return signal * x0 + spread * noise


def remove_noise(x_t: Tensor, noise: Tensor, abar: Tensor | float) -> Tensor:
    """x0 `(B, ...)` from x_t and the noise in it at abar, float or `(B,)` in (0, 1] (Eq. 3).

    Raises ValueError where the shapes differ, and at a float abar of 0, where x_t holds nothing of x0.
    """
    same_shape(x_t=x_t, noise=noise)
    if not isinstance(abar, Tensor) and abar == 0:
        raise ValueError("x0 can be recovered where abar > 0: got abar 0, pure noise; ask at an earlier timestep")
    signal, spread = weights(abar, x_t)
    return (x_t - spread * noise) / signal


def target(prediction_type: str, x0: Tensor, noise: Tensor, abar: Tensor | float) -> Tensor:
    """What the network is to predict (Eq. 2; Eq. 14 follows where noise is matched noise).

    prediction_type: "epsilon" | "v_prediction" | "sample"; x0, noise: `(B, ...)`; abar: float or `(B,)` in [0, 1].
    Raises ValueError for another prediction type or where the shapes differ.
    """
    same_shape(x0=x0, noise=noise)
    check_prediction_type(prediction_type)
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return x0
    signal, spread = weights(abar, x0)
    return signal * noise - spread * x0


def estimate(prediction_type: str, output: Tensor, x_t: Tensor, abar: Tensor | float) -> tuple[Tensor, Tensor]:
    """(x0_hat, eps_hat), each `(B, ...)`, that a network's output at x_t and abar stands for (Eq. 3).

    prediction_type: "epsilon" | "v_prediction" | "sample"; output, x_t: `(B, ...)`; abar: float or `(B,)` in (0, 1).
    Raises ValueError for another prediction type, where the shapes differ, and at a float abar of 0 under "epsilon".
    """
    same_shape(output=output, x_t=x_t)
    check_prediction_type(prediction_type)
    if prediction_type == "epsilon":
        return remove_noise(x_t, output, abar), output
    signal, spread = weights(abar, x_t)
    if prediction_type == "sample":
        return output, (x_t - signal * output) / spread
    return signal * x_t - spread * output, signal * output + spread * x_t


def check_prediction_type(prediction_type: str) -> None:
    """Raise ValueError unless prediction_type is one of diffusers' three for variance-preserving schedules."""
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(
            f"prediction_type is one of {', '.join(PREDICTION_TYPES)}: got {prediction_type!r}; "
            "take it from the model's own scheduler (scheduler.config.prediction_type)"
        )
