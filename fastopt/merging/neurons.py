"""Merge similar neurons: fewer units in a layer, the next layer compensated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastopt._arrays import Array, as_array, check_finite
from fastopt._options import integer, number
from fastopt.calibration import Gram, check_gram, refit
from fastopt.errors import ArrayError

__all__ = ["Merged", "merge_neurons"]


@dataclass(frozen=True, slots=True, eq=False)
class Merged:
    """What :func:`merge_neurons` made.

    Attributes
    ----------
    w_in : (n_keep, n_in) array
        The layer's new weight, one row per unit.
    b_in : (n_keep,) array or None
        The layer's new bias; None where none was given.
    w_out : (n_out, n_keep) array
        The next layer's new weight, one column per unit.
    bias_shift : (n_out,) array
        To add to the next layer's bias (zeros without a Gram).
    index : (n_keep,) int64
        The unit that stands for each merged one, ascending.
    labels : (n_units,) int64
        Which merged unit each old unit went into.
    """

    w_in: Array
    b_in: Array | None
    w_out: Array
    bias_shift: Array
    index: Array
    labels: Array


def merge_neurons(
    w_in: Any,
    b_in: Any,
    w_out: Any,
    n_keep: int,
    *,
    gram: Gram | None = None,
    damp: float = 1e-3,
) -> Merged:
    """Merge the most similar units until ``n_keep`` are left; exact duplicates merge without loss.

    Without ``gram`` units i, j of least cost m_i m_j / (m_i + m_j) ||v_i - v_j||^2 become one at
    their centre of mass, where v = (row of w_in, bias) and m = ||column of w_out||^2; their
    columns of w_out are added. With ``gram`` the unit j goes whose activations another unit i
    explains best, cost m_j S_jj (1 - corr_ij^2); i stays as it is, takes over beta w_out_j with
    beta = S_ij / S_ii, and at the end w_out is refitted by least squares with a bias shift.

    Parameters
    ----------
    w_in : (n_units, n_in) float32 or float64
        The layer's weight, one row per unit. Not changed.
    b_in : (n_units,) array or None
        Its bias.
    w_out : (n_out, n_units) array of the dtype of ``w_in``
        The next layer's weight, one column per unit.
    n_keep : int
        Units left, 1..n_units.
    gram : Gram, optional
        Of the units' activations. Far better than without: merging then knows the activation
        function and the data.
    damp : float
        Ridge of the refit, a fraction of the mean variance.

    Returns
    -------
    Merged
        ``.w_in``, ``.b_in``, ``.w_out``, ``.bias_shift``, ``.index``, ``.labels``.

    Raises
    ------
    DTypeError, ArrayError, OptionError
        A bad argument, or NaN or infinity in a weight.

    Notes
    -----
    Without data the cost is the first-order bound of the output's change for an activation of
    slope 1 (Ward's criterion with the outgoing power as mass; the idea of Srinivas and Babu,
    "Data-free parameter pruning for deep neural networks", 2015). Computed in float64; about
    n^2 (n_in + n_units - n_keep) multiply-adds. Ties go to the lower indices.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> w_in = np.array([[1.0], [2.0], [1.0]])          # units 0 and 2 are the same
    >>> w_out = np.array([[1.0, 5.0, 3.0]])
    >>> m = fastopt.merge_neurons(w_in, np.zeros(3), w_out, 2)
    >>> m.w_in.tolist(), m.w_out.tolist(), m.labels.tolist()
    ([[1.0], [2.0]], [[4.0, 5.0]], [0, 1, 0])
    """
    first = as_array(w_in, "w_in", ndim=2)
    dtype = first.dtype
    n = first.shape[0]
    bias = None if b_in is None else as_array(b_in, "b_in", dtypes=(dtype.name,), shape=(n,))
    second = as_array(w_out, "w_out", dtypes=(dtype.name,), shape=(None, n))
    keep = integer(n_keep, "n_keep", low=1, high=max(1, n))
    ridge = number(damp, "damp", low=0.0)
    for name, a in (("w_in", first), ("b_in", bias), ("w_out", second)):
        if a is not None:
            check_finite(a, name)
    if n == 0:
        raise ArrayError("w_in: holds no units")
    if gram is not None:
        check_gram(gram, n)
    wide = second.astype(np.float64)
    if gram is None:
        vectors = first.astype(np.float64)
        if bias is not None:
            vectors = np.column_stack([vectors, bias.astype(np.float64)])
        heads, centres, outgoing, index = _by_weights(vectors, wide.T, keep)
        new_in, new_out = centres[:, : first.shape[1]], outgoing.T
        shift = np.zeros(second.shape[0])
        new_bias = None if bias is None else centres[:, -1]
    else:
        heads = _by_activations(gram.covariance(), wide.T.copy(), keep)
        index = np.unique(heads)
        new_out, shift, _ = refit(gram, gram.covariance(damp=ridge), wide, index)
        new_in, new_bias = first[index], None if bias is None else bias[index]
    labels = np.searchsorted(index, heads)
    return Merged(
        np.ascontiguousarray(new_in, dtype),
        None if new_bias is None else np.ascontiguousarray(new_bias, dtype),
        np.ascontiguousarray(new_out, dtype),
        shift.astype(dtype),
        index,
        labels,
    )


def _by_weights(v: Array, w_out: Array, keep: int) -> tuple[Array, Array, Array, Array]:
    """Ward's agglomeration: (head of each unit, merged v, merged w_out, heads kept).

    Here and below w_out has one row of outgoing weights per unit.
    """
    n = len(v)
    mass = np.einsum("ij,ij->i", w_out, w_out)
    mass += 1e-12 * (mass.mean() or 1.0)  # a unit nobody reads still has a place
    v, w_out, weight = v.copy(), w_out.copy(), mass.copy()
    square = np.einsum("ij,ij->i", v, v)
    distance = square[:, None] + square - 2 * (v @ v.T)
    np.maximum(distance, 0, out=distance)
    cost = distance * (weight[:, None] * weight / (weight[:, None] + weight))
    cost[np.diag_indices(n)] = np.inf
    head = np.arange(n)
    near, best = cost.argmin(axis=1), cost.min(axis=1)
    alive = np.ones(n, bool)
    for _ in range(n - keep):
        i = int(best.argmin())
        j = int(near[i])
        i, j = min(i, j), max(i, j)
        total = weight[i] + weight[j]
        if (v[i] != v[j]).any():  # equal units keep their bits
            v[i] = (weight[i] * v[i] + weight[j] * v[j]) / total
        w_out[i] += w_out[j]
        weight[i] = total
        head[head == j] = i
        alive[j] = False
        cost[j], cost[:, j], best[j] = np.inf, np.inf, np.inf
        others = np.flatnonzero(alive)
        others = others[others != i]
        if not len(others):
            break
        gap = v[others] - v[i]
        new = np.einsum("ij,ij->i", gap, gap) * (weight[others] * total / (weight[others] + total))
        cost[i, others] = cost[others, i] = new
        stale = others[(near[others] == i) | (near[others] == j)]
        closer = others[new < best[others]]
        near[closer], best[closer] = i, cost[closer, i]
        stale = np.append(stale, i)
        near[stale] = cost[stale].argmin(axis=1)
        best[stale] = cost[stale, near[stale]]
    index = np.flatnonzero(alive)
    return head, v[index], w_out[index], index


def _by_activations(s: Array, w_out: Array, keep: int) -> Array:
    """Head of each unit; unit j joins i where m_j (S_jj - S_ij^2 / S_ii) is least."""
    n = len(s)
    variance = s.diagonal().copy()
    scale = np.where(variance > 0, variance, 1.0)
    left = np.maximum(variance - s * s / scale[:, None], 0.0)  # [i, j]: of j, once i explains it
    left[np.diag_indices(n)] = np.inf
    head = np.arange(n)
    near, rest = left.argmin(axis=0), left.min(axis=0)
    alive = np.ones(n, bool)
    mass = np.einsum("ij,ij->i", w_out, w_out)
    for _ in range(n - keep):
        cost = np.where(alive, mass * rest, np.inf)
        j = int(cost.argmin())
        i = int(near[j])
        w_out[i] += (s[i, j] / scale[i]) * w_out[j]
        mass[i] = float(w_out[i] @ w_out[i])
        head[head == j] = i
        alive[j] = False
        left[j] = np.inf
        stale = np.flatnonzero(alive & (near == j))
        near[stale] = left[:, stale].argmin(axis=0)
        rest[stale] = left[near[stale], stale]
    return head
