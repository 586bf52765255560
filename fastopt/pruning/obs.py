"""Pruning with data: the weights that change the output least go, the others are refitted.

Up to EXACT inputs, unstructured: Optimal Brain Surgeon weight by weight (kernel `obs`), the
losses of all outputs compared. Above, and for patterns: alternating directions on
min ||(w - d) x||^2 over the pattern, then an exact least-squares fit on the mask found (Meng et
al., "ALPS: improved optimization for highly sparse one-shot pruning", 2024), which is matrix
products only.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fastopt._arrays import Array
from fastopt._kernels import obs as kernel
from fastopt.calibration import Gram, inverse, solve

__all__ = ["EXACT", "alternate", "exact_losses", "fit", "moment"]

EXACT = 512
_ROWS_PER_CALL = 1 << 28  # multiply-adds between two checks for Ctrl-C, about 0.1 s


def moment(gram: Gram, damp: float) -> Array:
    """X^T X / count with a ridge: not centred, since the layer keeps its bias."""
    s = gram.second / gram.count
    level = float(s.diagonal().mean())
    s[np.diag_indices(gram.n)] += damp * (level if level > 0 else 1.0)
    return s


def exact_losses(s: Array, w: Array, threads: int) -> tuple[Array, Array]:
    """(order, loss), both (n_out, n_in): the inputs in the order of removal, and the loss of each.

    The loss is made non-decreasing along a row, so that a threshold cuts each order once, and is
    a share of the output's power, so that layers compare.
    """
    n_out, n_in = w.shape
    h = inverse(s)
    order, loss = np.empty((n_out, n_in), np.int64), np.empty((n_out, n_in))
    step = max(threads, _ROWS_PER_CALL // max(1, n_in**3 // 6))
    for r in range(0, n_out, step):
        part = slice(r, r + step)
        kernel.eliminate(order[part], loss[part], h, w[part], threads)
    np.maximum.accumulate(loss, axis=1, out=loss)
    power = float(np.einsum("ij,ij->", w, w @ s))
    return order, loss / power if power > 0 else loss


def alternate(s: Array, w: Array, project: Callable[[Array], Array]) -> Array:
    """The mask that the iteration ends with; ``project`` makes the mask of an array."""
    scale = np.sqrt(s.diagonal())
    unit = s / np.multiply.outer(scale, scale)
    target = w * scale
    values, vectors = np.linalg.eigh(unit)
    values = np.maximum(values, 0)
    goal = target @ unit @ vectors
    rho, d, dual = 0.1, target, np.zeros_like(target)
    before: Array | None = None
    mask = project(target)
    for step in range(300):
        free = ((goal + (rho * d - dual) @ vectors) / (values + rho)) @ vectors.T
        shifted = free + dual / rho
        mask = project(shifted)
        d = np.where(mask, shifted, 0.0)
        dual += rho * (free - d)
        if step % 3 == 2:
            if before is not None:
                moved = int((mask != before).sum())
                if moved == 0:
                    break
                kept = max(1, int(mask.sum()))
                rho *= 1.3 if moved >= 0.1 * kept else 1.2 if moved >= 0.005 * kept else 1.1
            before = mask
    return mask


def fit(s: Array, w: Array, mask: Array) -> Array:
    """Each output's least-squares weights on its own mask."""
    result = np.zeros_like(w)
    goal = w @ s
    for r in range(w.shape[0]):
        kept = np.flatnonzero(mask[r])
        if len(kept):
            result[r, kept] = solve(s[np.ix_(kept, kept)], goal[r, kept])
    return result
