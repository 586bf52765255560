"""Structured pruning: removes the units that the next layer needs least, and refits that layer.

Optimal Brain Surgeon (Hassibi and Stork, "Second order derivatives for network pruning", 1993) on
the output of the next layer, with its exact quadratic: the covariance of the units' activations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastopt._arrays import Array, as_array, check_finite
from fastopt._options import integer, number
from fastopt.calibration import Gram, check_gram, inverse, refit
from fastopt.errors import ArrayError, OptionError

__all__ = ["Selection", "removal_order", "select_units"]

# Up to this many units are removed one at a time; above, _STEP at a time of the _POOL cheapest,
# which costs about 0.1 % of output error and is several times faster (matrix products instead of
# rank-1 updates).
_ONE_BY_ONE = 256
_STEP = 16
_POOL = 48


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """What :func:`select_units` chose.

    Attributes
    ----------
    index : (n_keep,) int64
        The units that stay, ascending.
    w_next : (n_out, n_keep * unit_size) array
        The next layer's refitted weight, dtype of the one given.
    bias_shift : (n_out,) array
        To add to the next layer's bias.
    error : float
        Share of the variance of the next layer's output that is lost, 0..1.
    """

    index: Array
    w_next: Array
    bias_shift: Array
    error: float


def select_units(
    gram: Gram,
    w_next: Any,
    n_keep: int,
    *,
    unit_size: int = 1,
    damp: float = 1e-3,
    order: Any = None,
) -> Selection:
    """Keep ``n_keep`` units; w' = w S_:K S_KK^-1 is the next layer's least-squares refit.

    Units leave greedily, each time the one of least cost ||w_:i||^2 / [S^-1]_ii, where S is the
    centred, damped covariance of the activations and w the weight compensated so far.

    Parameters
    ----------
    gram : Gram
        Of the units' activations (the next layer's input), on calibration data.
    w_next : (n_out, n_units * unit_size) float32 or float64
        The next layer's weight: it computes ``a @ w_next.T + bias``. For several consumers stack
        their weights on top of each other. Not changed.
    n_keep : int
        Units that stay, 1..n_units.
    unit_size : int
        Consecutive columns that form one unit (the width of an attention head).
    damp : float
        Ridge on S, a fraction of the mean variance; it pulls the refit towards the given weight.
    order : sequence of int, optional
        From :func:`removal_order`, computed once where many sizes are tried.

    Returns
    -------
    Selection
        ``.index``, ``.w_next``, ``.bias_shift``, ``.error``.

    Raises
    ------
    DTypeError, ArrayError, OptionError
        A bad argument; ``w_next`` holds NaN or infinity; the Gram is empty or of another size.

    Notes
    -----
    Computed in float64. Cost: about 2 n^2 (n - n_keep) multiply-adds plus one inverse. Ties go to
    the lower index. Use about twice as many calibration rows as units, or more.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.calibration import Gram, check_gram
    >>> from fastopt.pruning import select_units
    >>> a = np.random.default_rng(0).random((50, 3))
    >>> a[:, 2] = 2 * a[:, 0] + 1                   # unit 2 repeats unit 0
    >>> w = np.array([[1.0, 5.0, 1.0]])
    >>> s = select_units(Gram(3).update(a), w, 2)
    >>> y = a[:, s.index] @ s.w_next.T + s.bias_shift
    >>> bool(np.allclose(y, a @ w.T, atol=0.01))
    True
    """
    weight, n_units, size = _checked(gram, w_next, unit_size)
    keep = integer(n_keep, "n_keep", low=1, high=n_units)
    ridge = number(damp, "damp", low=0.0)
    s = gram.covariance(damp=ridge)
    wide = weight.astype(np.float64)
    if order is None:
        gone = _removals(s, wide, size, n_units - keep)[0]
    else:
        given = as_array(order, "order", dtypes=("int64",), cast="int64", ndim=1)
        fits = len(given) >= n_units - keep and given.size == np.unique(given).size
        if not fits or (given.size and (given.min() < 0 or given.max() >= n_units)):
            raise ArrayError(
                f"order: expected {n_units - keep} or more different units of 0..{n_units - 1}"
            )
        gone = given[: n_units - keep].tolist()
    index = np.setdiff1d(np.arange(n_units), gone)
    columns = (index[:, None] * size + np.arange(size)).reshape(-1)
    fitted, shift, error = refit(gram, s, wide, columns)
    return Selection(index, fitted.astype(weight.dtype), shift.astype(weight.dtype), error)


def removal_order(
    gram: Gram, w_next: Any, *, unit_size: int = 1, damp: float = 1e-3
) -> tuple[Array, Array]:
    """The order of removal, and the cost_i = ||w_:i||^2 / [S^-1]_ii of each unit at its removal.

    Parameters
    ----------
    gram, w_next, unit_size, damp
        As in :func:`select_units`. A selection for any size is a prefix of this order, so one call
        serves a whole search over sizes; costs of different layers' units compare once divided by
        the variance of their outputs.

    Returns
    -------
    order : (n_units - 1,) int64
        First to last unit to leave; the one that never leaves is not in it.
    cost : (n_units - 1,) float64
        Output variance that each removal adds (never negative).

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.calibration import Gram
    >>> from fastopt.pruning import removal_order
    >>> x = np.random.default_rng(0).standard_normal((99, 3))
    >>> order, cost = removal_order(Gram(3).update(x), np.array([[3.0, 0.1, 1.0]]))
    >>> order.tolist(), bool(cost[0] < cost[1])
    ([1, 2], True)
    """
    weight, n_units, size = _checked(gram, w_next, unit_size)
    s = gram.covariance(damp=number(damp, "damp", low=0.0))
    gone, cost = _removals(s, weight.astype(np.float64), size, n_units - 1)
    return np.array(gone, np.int64), np.array(cost)


def _checked(gram: Gram, w_next: Any, unit_size: int) -> tuple[Array, int, int]:
    check_gram(gram)
    weight = as_array(w_next, "w_next", ndim=2)
    size = integer(unit_size, "unit_size", low=1)
    if weight.shape[1] != gram.n:
        raise ArrayError(
            f"w_next: expected shape (n_out, {gram.n}), one column per feature of the Gram, "
            f"got {weight.shape}"
        )
    if gram.n % size:
        raise OptionError(f"unit_size: expected a divisor of {gram.n}, got {size}")
    check_finite(weight, "w_next")
    return weight, gram.n // size, size


def _removals(s: Array, w: Array, size: int, count: int) -> tuple[list[int], list[float]]:
    if count == 0:
        return [], []
    outgoing = w.T.copy()  # units are contiguous
    if size > 1:
        return _remove_blocks(inverse(s), outgoing, size, count)
    if len(s) <= _ONE_BY_ONE:
        return _remove_rows(inverse(s), outgoing, count, step=1, pool=1)
    return _remove_rows(inverse(s), outgoing, count, step=_STEP, pool=_POOL)


def _remove_rows(
    h: Array, w: Array, count: int, step: int, pool: int
) -> tuple[list[int], list[float]]:
    """Greedy removal with h = S^-1 and w overwritten: w -= h_:i w_i / h_ii, h -= h_:i h_i: / h_ii.

    w holds one row of outgoing weights per unit.
    The ``pool`` cheapest units are taken out as a small problem and ``step`` of them leave it
    exactly one by one (so two copies of a unit cannot leave together); the rest of h and w then
    gets one product of rank ``step``. Removed rows are dropped when a quarter is gone.
    """
    ids = np.arange(len(h))
    alive = np.ones(len(h), bool)
    gone: list[int] = []
    cost: list[float] = []
    while len(gone) < count:
        scores = np.full(len(ids), np.inf)
        scores[alive] = np.einsum("ij,ij->i", w[alive], w[alive]) / h.diagonal()[alive]
        todo = min(step, count - len(gone))
        if todo == 1:
            i = int(scores.argmin())
            out = np.array([i])
            cost.append(float(scores[i]))
            column = h[:, i] / h[i, i]
            w -= np.multiply.outer(column, w[i])
            h -= np.multiply.outer(column, h[i])
        else:
            near = np.argsort(scores, kind="stable")[: min(max(pool, todo), int(alive.sum()))]
            local, part = _remove_rows(h[np.ix_(near, near)], w[near], todo, 1, 1)
            out = near[local]
            cost.extend(part)
            columns = np.linalg.solve(h[np.ix_(out, out)], h[out])  # (step, n)
            w -= columns.T @ w[out]
            h -= columns.T @ h[out]
        gone.extend(ids[out].tolist())
        alive[out] = False
        h[out], h[:, out], w[out] = 0, 0, 0
        left = int(alive.sum())
        if left and left * 4 < len(ids) * 3:
            ids, w, h = ids[alive], w[alive], np.ascontiguousarray(h[np.ix_(alive, alive)])
            alive = np.ones(left, bool)
    return gone, cost


def _remove_blocks(h: Array, w: Array, size: int, count: int) -> tuple[list[int], list[float]]:
    """Units of ``size`` rows of h and w: cost_b = tr(w_b^T [h_bb]^-1 w_b), one unit at a time."""
    n = len(h) // size
    ids = list(range(n))
    gone: list[int] = []
    cost: list[float] = []
    while len(gone) < count:
        n = len(ids)
        diagonal = h.reshape(n, size, n, size)[np.arange(n), :, np.arange(n), :]
        blocks = w.reshape(n, size, -1)
        scores = np.einsum("bij,bij->b", blocks, np.linalg.solve(diagonal, blocks))
        i = int(scores.argmin())
        rows = np.arange(i * size, (i + 1) * size)
        columns = np.linalg.solve(diagonal[i], h[rows])
        rest = np.delete(np.arange(n * size), rows)
        w = (w - columns.T @ w[rows])[rest]
        h = (h - columns.T @ h[rows])[np.ix_(rest, rest)]
        gone.append(ids.pop(i))
        cost.append(float(scores[i]))
    return gone, cost
