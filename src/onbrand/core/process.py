"""Eq. 1-3: x0 and noise to x_t and back, in diffusers' three parametrisations; the one broadcasting helper."""

import torch
from torch import Tensor

from onbrand.errors import OnbrandError

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


def expand(coef: Tensor, like: Tensor) -> Tensor:
    """View a coefficient per sample so that it multiplies a batch.

    Args:
        coef: `(B,)` or a scalar `()`
        like: the batch, `(B, ...)`

    Returns:
        `(B, 1, ...)` (or `()`) in like's dtype, on its device.

    Raises:
        OnbrandError: coef is neither a scalar nor one number a sample.
    """
    if coef.ndim > 0 and coef.shape != like.shape[:1]:
        raise OnbrandError(
            "value",
            f"a coefficient is a scalar or one number a sample: got shape {tuple(coef.shape)} "
            f"for a batch of shape {tuple(like.shape)}; index the schedule with the batch's timesteps",
        )
    coef = coef.to(like.device, like.dtype)
    return coef.reshape(-1, *[1] * (like.ndim - 1)) if coef.ndim else coef


def weights(abar: Tensor | float, like: Tensor) -> tuple[Tensor, Tensor]:
    """sqrt(abar) and sqrt(1 - abar), broadcastable to like `(B, ...)`.

    abar: float or `(B,)`, in [0, 1]. A float outside is an OnbrandError. A tensor is not read: it may be on a device.
    """
    if not isinstance(abar, Tensor):
        if not 0.0 <= abar <= 1.0:
            raise OnbrandError(
                "value", f"abar (alphas_cumprod) lies in [0, 1]: got {abar}; pass abar, not beta or a timestep"
            )
        abar = torch.tensor(abar, dtype=torch.float64)
    return expand(abar.sqrt(), like), expand((1 - abar).sqrt(), like)


def same_shape(**tensors: Tensor) -> None:
    """Raise OnbrandError unless all of the named tensors have one shape: a silent broadcast would mix samples."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        words = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise OnbrandError(
            "value", f"these tensors must have one shape: got {words}; expand or index them to the batch first"
        )


def add_noise(x0: Tensor, noise: Tensor, abar: Tensor | float) -> Tensor:
    """x_t = sqrt(abar) x0 + sqrt(1 - abar) eps (Eq. 1).

    Args:
        x0: `(B, ...)`
        noise: eps `(B, ...)`, standard normal
        abar: alphas_cumprod at t: a float or `(B,)`, in [0, 1]

    Returns:
        x_t `(B, ...)`.

    Raises:
        OnbrandError: the shapes differ, or a float abar lies outside [0, 1].
    """
    same_shape(x0=x0, noise=noise)
    signal, spread = weights(abar, x0)
    return signal * x0 + spread * noise


def remove_noise(x_t: Tensor, noise: Tensor, abar: Tensor | float) -> Tensor:
    """x0 = (x_t - sqrt(1 - abar) eps) / sqrt(abar) (Eq. 3).

    Args:
        x_t: `(B, ...)`
        noise: the eps in it, `(B, ...)`
        abar: alphas_cumprod at t: a float or `(B,)`, in (0, 1]

    Returns:
        x0 `(B, ...)`.

    Raises:
        OnbrandError: the shapes differ, or a float abar is 0, at which x_t holds nothing of x0.
    """
    same_shape(x_t=x_t, noise=noise)
    if not isinstance(abar, Tensor) and abar == 0:
        raise OnbrandError(
            "value", "x0 can be recovered where abar > 0: got abar 0, pure noise; ask at an earlier timestep"
        )
    signal, spread = weights(abar, x_t)
    return (x_t - spread * noise) / signal


def target(prediction_type: str, x0: Tensor, noise: Tensor, abar: Tensor | float) -> Tensor:
    """What the network is to predict (Eq. 2; Eq. 14 follows if noise is matched noise).

    Args:
        prediction_type: "epsilon", "v_prediction" or "sample"
        x0: `(B, ...)`
        noise: eps `(B, ...)`
        abar: alphas_cumprod at t: a float or `(B,)`, in [0, 1]

    Returns:
        eps, v = sqrt(abar) eps - sqrt(1 - abar) x0, or x0: `(B, ...)`.

    Raises:
        OnbrandError: another prediction type, or the shapes differ.
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
    """What a network's output at x_t and abar stands for (Eq. 3).

    Args:
        prediction_type: "epsilon", "v_prediction" or "sample"
        output: the network's, `(B, ...)`
        x_t: what it was given, `(B, ...)`
        abar: alphas_cumprod at t: a float or `(B,)`, in (0, 1)

    Returns:
        (x0_hat, eps_hat), each `(B, ...)`.

    Raises:
        OnbrandError: another prediction type, the shapes differ, or a float abar is 0 under "epsilon".
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
    """Raise OnbrandError unless prediction_type is one of diffusers' three for variance-preserving schedules."""
    if prediction_type not in PREDICTION_TYPES:
        raise OnbrandError(
            "value",
            f"prediction_type is one of {', '.join(PREDICTION_TYPES)}: got {prediction_type!r}; "
            "take it from the model's own scheduler (scheduler.config.prediction_type)",
        )
