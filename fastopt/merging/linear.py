"""Two linear layers with nothing between them are one."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt._arrays import Array, as_array, check_finite
from fastopt.errors import ArrayError

__all__ = ["fold_linear"]


def fold_linear(w1: Any, b1: Any, w2: Any, b2: Any = None) -> tuple[Array, Array | None]:
    """w = w2 w1, b = w2 b1 + b2: the layer that computes both, one after the other.

    Parameters
    ----------
    w1 : (n, n_in) float32 or float64
        The layer that runs first.
    b1 : (n,) array or None
    w2 : (n_out, n) array of the dtype of ``w1``
        The layer after it.
    b2 : (n_out,) array or None

    Returns
    -------
    w : (n_out, n_in) array
    b : (n_out,) array or None
        None where neither layer has a bias. In the dtype of ``w1``, computed in float64.

    Raises
    ------
    DTypeError, ArrayError
        A bad argument, NaN or infinity.

    Notes
    -----
    Smaller only where n (n_in + n_out) > n_in n_out: two thin layers around a bottleneck are
    better left alone.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.merging import fold_linear
    >>> w, b = fold_linear(np.array([[2.0], [1.0]]), np.ones(2), np.array([[1.0, 3.0]]))
    >>> w.tolist(), b.tolist()
    ([[5.0]], [4.0])
    """
    first = as_array(w1, "w1", ndim=2)
    dtype = first.dtype.name
    second = as_array(w2, "w2", dtypes=(dtype,), ndim=2)
    n_out, n = second.shape
    if n != len(first):
        raise ArrayError(f"w2: expected shape (n_out, {len(first)}), got {second.shape}")
    inner = None if b1 is None else as_array(b1, "b1", dtypes=(dtype,), shape=(n,))
    outer = None if b2 is None else as_array(b2, "b2", dtypes=(dtype,), shape=(n_out,))
    for name, a in (("w1", first), ("b1", inner), ("w2", second), ("b2", outer)):
        if a is not None:
            check_finite(a, name)
    wide = second.astype(np.float64)
    w: Array = (wide @ first).astype(first.dtype)
    if inner is None and outer is None:
        return w, None
    bias = np.zeros(n_out) if outer is None else outer.astype(np.float64)
    if inner is not None:
        bias = bias + wide @ inner
    b: Array = bias.astype(first.dtype)
    return w, b
