"""SparseGPT: one pass over the columns; later columns compensate for what is removed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fastopt._arrays import Array
from fastopt.calibration import inverse

__all__ = ["sparsegpt"]


def sparsegpt(
    s: Array, w: Array, choose: Callable[[Array], Array], width: int
) -> tuple[Array, Array]:
    """(w', mask): Frantar and Alistarh, "SparseGPT" (2023), algorithm 1.

    Parameters
    ----------
    s : (n_in, n_in) float64
        Damped second moment of the input.
    w : (n_out, n_in) float64
    choose : callable
        Squared saliencies of a block of columns -> the mask of those that stay.
    width : int
        Columns whose mask is chosen together.
    """
    w = w.copy()
    n = w.shape[1]
    # S^-1 = U^T U with U upper triangular: row j tells how the columns after j compensate for j
    upper = np.linalg.cholesky(inverse(s)).T
    mask = np.ones(w.shape, np.bool_)
    for start in range(0, n, width):
        stop = min(n, start + width)
        block = slice(start, stop)
        diagonal = upper.diagonal()[block]
        mask[:, block] = choose((w[:, block] / diagonal) ** 2)
        errors = np.zeros((len(w), stop - start))
        for j in range(start, stop):
            error = np.where(mask[:, j], 0.0, w[:, j]) / upper[j, j]
            w[:, j:stop] -= np.multiply.outer(error, upper[j, j:stop])
            errors[:, j - start] = error
        w[:, stop:] -= errors @ upper[block, stop:]
    w[~mask] = 0.0
    return w, mask
