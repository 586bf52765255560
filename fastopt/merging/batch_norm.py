"""A batch normalisation merged into the layer before it."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt._arrays import Array, as_array, check_finite
from fastopt._options import integer, number
from fastopt.errors import ArrayError, OptionError

__all__ = ["fold_batch_norm"]


def fold_batch_norm(
    w: Any,
    b: Any,
    mean: Any,
    var: Any,
    gamma: Any = None,
    beta: Any = None,
    *,
    eps: float = 1e-5,
    axis: int = 0,
) -> tuple[Array, Array]:
    """w' = w g, b' = (b - mean) g + beta with g = gamma / sqrt(var + eps), per output channel.

    Parameters
    ----------
    w : array of float32 or float64
        Weight of the dense or convolution layer before the normalisation. Not changed.
    b : (channels,) array or None
        Its bias.
    mean, var : (channels,) arrays
        Running statistics; var >= 0.
    gamma, beta : (channels,) arrays, optional
        Scale and shift; 1 and 0 where not given.
    eps : float
        As the normalisation has it.
    axis : int
        Axis of ``w`` that holds the output channels: 0 for (n_out, n_in) and for convolutions
        (out, in, h, w), 1 for transposed convolutions.

    Returns
    -------
    w', b' : arrays
        In the dtype of ``w``; computed in float64, rounded once.

    Raises
    ------
    DTypeError, ArrayError, OptionError
        A bad argument, NaN or infinity, a negative variance, or var + eps = 0.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.merging import fold_batch_norm
    >>> w, b = fold_batch_norm(np.ones((1, 2)), None, np.array([1.0]), np.array([4.0]), eps=0)
    >>> w.tolist(), b.tolist()
    ([[0.5, 0.5]], [-0.5])
    """
    weight = as_array(w, "w")
    along = integer(axis, "axis")
    if weight.ndim == 0 or not -weight.ndim <= along < weight.ndim:
        raise OptionError(f"axis: w of shape {weight.shape} has no axis {along}")
    n = weight.shape[along]
    small = number(eps, "eps", low=0.0)
    check_finite(weight, "w")
    wide: dict[str, Array] = {}
    for name, given, default in (
        ("b", b, 0.0), ("mean", mean, None), ("var", var, None),
        ("gamma", gamma, 1.0), ("beta", beta, 0.0),
    ):  # fmt: skip
        if given is None and default is not None:
            wide[name] = np.full(n, default)
            continue
        a = as_array(given, name, cast="float64", shape=(n,))
        check_finite(a, name)
        wide[name] = a.astype(np.float64)
    if (wide["var"] < 0).any() or (wide["var"] + small == 0).any():
        raise ArrayError("var: expected var >= 0 and var + eps > 0")
    scale = wide["gamma"] / np.sqrt(wide["var"] + small)
    shape = [1] * weight.ndim
    shape[along] = n
    new_w: Array = (weight.astype(np.float64) * scale.reshape(shape)).astype(weight.dtype)
    new_b: Array = ((wide["b"] - wide["mean"]) * scale + wide["beta"]).astype(weight.dtype)
    return new_w, new_b
