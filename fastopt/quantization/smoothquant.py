"""SmoothQuant: part of the activations' scale moves into the weights."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fastopt._arrays import Array, as_array, check_finite
from fastopt._options import number
from fastopt.errors import ArrayError

__all__ = ["Smoothed", "smoothquant"]


class Smoothed(NamedTuple):
    """A weight whose inputs are rescaled: x W^T = (x / scale) weight^T.

    Attributes
    ----------
    weight : (n_out, n_in) array
        W times scale.
    scale : (n_in,) array
        What the layer's input is divided by (fold it into the layer before).
    """

    weight: Array
    scale: Array


def smoothquant(w: Any, act_absmax: Any, *, alpha: float = 0.5) -> Smoothed:
    """Move the difficulty from activations to weights: s_j = max|x_j|^a / max_i|w_ij|^(1-a).

    Parameters
    ----------
    w : (n_out, n_in) float32 or float64
        Weight of y = x w^T.
    act_absmax : (n_in,) array, or an observer with one range per input feature
        Largest magnitude of each input.
    alpha : float
        In [0, 1]: 0 leaves the weights' ranges equal, 1 the activations'.

    Returns
    -------
    Smoothed
        (weight, scale), in w's dtype. An input that is always zero, or whose weights are, keeps
        scale 1.

    Raises
    ------
    ArrayError
        ``act_absmax`` holds negative values.

    Notes
    -----
    Xiao et al., "SmoothQuant" (2022), equation 4. The product is unchanged up to rounding.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.quantization import smoothquant
    >>> weight, scale = smoothquant(np.array([[1.0, 1.0]]), np.array([16.0, 1.0]))
    >>> scale.tolist(), weight.tolist()
    ([4.0, 1.0], [[4.0, 1.0]])
    """
    a = as_array(w, "w", ndim=2, cast="float32")
    check_finite(a, "w")
    if hasattr(act_absmax, "min_") and hasattr(act_absmax, "max_"):
        act_absmax = np.maximum(-act_absmax.min_, act_absmax.max_)
    top = as_array(act_absmax, "act_absmax", cast="float64", shape=(a.shape[1],))
    check_finite(top, "act_absmax")
    if (top < 0).any():
        raise ArrayError("act_absmax: holds negative values; a magnitude is >= 0")
    power = number(alpha, "alpha", low=0.0, high=1.0)
    ours = np.abs(a).max(axis=0, initial=0.0).astype(np.float64)
    live = (top > 0) & (ours > 0)
    scale = np.ones(a.shape[1])
    scale[live] = top[live] ** power / ours[live] ** (1.0 - power)
    scale = np.clip(scale, 1e-5, 1e5).astype(a.dtype)
    return Smoothed(a * scale, scale)
