"""One dense layer as two thinner ones: w ~ A @ B."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt._arrays import Array, as_array, check_finite
from fastopt._options import integer, number
from fastopt.calibration import Gram
from fastopt.errors import ArrayError, DTypeError, OptionError

__all__ = ["split_low_rank"]


def split_low_rank(
    w: Any, rank: int | None = None, *, energy: float | None = None, gram: Gram | None = None
) -> tuple[Array, Array]:
    """w ~ A @ B of rank r that minimises ||w - A B||, or ||(w - A B) x|| over the data of a Gram.

    Parameters
    ----------
    w : (n_out, n_in) float32 or float64
        The weight of ``x @ w.T + bias``; B runs first, the bias stays with A. Not changed.
    rank : int, optional
        1..min(n_out, n_in).
    energy : float, optional
        Instead of ``rank``: the smallest rank that keeps this share, 0..1, of the squared
        singular values (with ``gram``: of the mean squared output).
    gram : Gram, optional
        Of the layer's input: what the data never excites is not spent rank on.

    Returns
    -------
    A : (n_out, r) array
    B : (r, n_in) array
        In the dtype of ``w``, C-contiguous; column i of A and row i of B have the same norm.

    Raises
    ------
    DTypeError, ArrayError, OptionError
        A bad argument, NaN or infinity in ``w``, both or neither of rank and energy.

    Notes
    -----
    Eckart and Young (1936); with a Gram the same in the norm of the second moment M = X^T X / n:
    A = U_r and B = U_r^T w, where U_r are the leading eigenvectors of w M w^T (no inverse, so a
    singular M is harmless). Rank r pays where r (n_in + n_out) < n_in n_out. Computed in float64.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> w = np.outer([1.0, 2.0, 3.0], [1.0, 0.5])
    >>> a, b = fastopt.split_low_rank(w, rank=1)
    >>> a.shape, b.shape, bool(np.allclose(a @ b, w))
    ((3, 1), (1, 2), True)
    """
    weight = as_array(w, "w", ndim=2)
    n_out, n_in = weight.shape
    if not weight.size:
        raise ArrayError(f"w: expected a weight with elements, got shape {weight.shape}")
    if (rank is None) == (energy is None):
        raise OptionError("rank: give either rank or energy")
    most = min(n_in, n_out)
    r = None if rank is None else integer(rank, "rank", low=1, high=most)
    share = 0.0 if energy is None else number(energy, "energy", low=0.0, high=1.0)
    if gram is not None:
        if not isinstance(gram, Gram):
            raise DTypeError(
                f"gram: expected a fastopt.calibration.Gram, got {type(gram).__name__}"
            )
        if gram.n != n_in or gram.count == 0:
            raise ArrayError(
                f"gram: expected one of {n_in} inputs that has seen data, got {gram!r}"
            )
    check_finite(weight, "w")
    wide = weight.astype(np.float64)
    if gram is None:
        left, values, right = np.linalg.svd(wide, full_matrices=False)
        power = values**2
    else:
        power, left = _output_axes(wide, gram.second / gram.count)
    if r is None:
        total = power.sum()
        kept = np.cumsum(power) >= share * total * (1 - 1e-12)
        r = int(np.argmax(kept)) + 1 if total > 0 else 1
    if gram is None:
        a, b = left[:, :r] * values[:r], right[:r]
    else:
        a = left[:, :r]
        b = a.T @ wide
    columns, rows = np.linalg.norm(a, axis=0), np.linalg.norm(b, axis=1)
    scale = np.sqrt(np.where((columns > 0) & (rows > 0), columns / np.where(rows > 0, rows, 1), 1))
    return (a / scale).astype(weight.dtype), (b * scale[:, None]).astype(weight.dtype)


def _output_axes(w: Array, moment: Array) -> tuple[Array, Array]:
    """Eigenvalues (descending) and eigenvectors (columns) of w M w^T, completed to span w."""
    n_out, n_in = w.shape
    values, vectors = np.linalg.eigh(w @ moment @ w.T)
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
    if n_in < n_out or values[-1] <= 1e-12 * values[0]:
        # Axes the data never excites are in no order: sort those by what w itself needs, so that
        # the full rank min(n_in, n_out) is lossless.
        seen = int((values > 1e-12 * values[0]).sum())
        rest = vectors[:, seen:]
        turn, _, _ = np.linalg.svd(rest.T @ w, full_matrices=True)
        vectors = np.hstack([vectors[:, :seen], rest @ turn])
    most = min(n_in, n_out)
    return values[:most], vectors[:, :most]
