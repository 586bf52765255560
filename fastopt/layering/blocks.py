"""Whole blocks of a deep model that change their input little."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt._arrays import Array, as_array, check_finite
from fastopt.errors import ArrayError

__all__ = ["block_influence"]


def block_influence(before: Any, after: Any) -> float:
    """1 - mean cosine of a block's input and output rows: near 0, the block can be dropped.

    Parameters
    ----------
    before, after : (..., n) float32 or float64 arrays of one shape
        The hidden state that enters a residual block and the one that leaves it.

    Returns
    -------
    float
        0..2.

    Raises
    ------
    DTypeError, ArrayError
        Shapes that differ, no rows, NaN or infinity.

    Notes
    -----
    Men et al., "ShortGPT: layers in large language models are more redundant than you expect"
    (2024), eq. 1. Rank the blocks, drop the least, and check the model again: influences are not
    additive. A row of zeros on one side only counts as unrelated (cosine 0).

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.layering import block_influence
    >>> x = np.eye(3)
    >>> block_influence(x, 2 * x), block_influence(x, -x)
    (0.0, 2.0)
    """
    x = as_array(before, "before", cast="float64")
    y = as_array(after, "after", cast="float64", shape=x.shape)
    if x.ndim < 2 or not x.size:
        raise ArrayError(f"before: expected rows (..., n), got shape {x.shape}")
    check_finite(x, "before")
    check_finite(y, "after")
    dots: Array = (x * y).sum(axis=-1)
    sizes = np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)
    same = np.where((x == y).all(axis=-1), 1.0, 0.0)  # a row of zeros that stays so
    cosine = np.where(sizes > 0, dots / np.where(sizes > 0, sizes, 1.0), same)
    return max(0.0, float(1.0 - cosine.mean()))
