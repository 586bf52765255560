"""How much each connection matters, and how layers share a budget."""

from __future__ import annotations

import math

import numpy as np

from fastopt._arrays import Array
from fastopt._random import Seed, generator_of
from fastopt.calibration import Gram

__all__ = ["erk_fractions", "lamp", "movement", "random", "wanda"]


def random(w: Array, seed: Seed) -> Array:
    """Uniform random scores: the baseline that every other score has to beat."""
    return _keep_nan(np.asarray(generator_of(seed).random(w.shape)), w)


def wanda(w: Array, gram: Gram, comparable: bool) -> Array:
    """|w_ij| ||x_j||: Sun et al., "A simple and effective pruning approach for large language
    models" (2023), eq. 1. Scores are compared per output; where they have to be ``comparable``
    across rows, each becomes its rank within its row, 0..1."""
    score = np.abs(w).astype(np.float64) * np.sqrt(gram.second.diagonal())
    return _keep_nan(_ranks(score, axis=1) / max(1, w.shape[1]) if comparable else score, w)


def movement(w: Array, gradient: Array) -> Array:
    """The rank of -w dL/dw: weights that training moves towards zero go first.

    Sanh, Wolf and Rush, "Movement pruning: adaptive sparsity by fine-tuning" (2020), eq. 4;
    ``gradient`` may be a sum over steps.
    """
    moved = -(w.astype(np.float64) * gradient)
    return _keep_nan(_ranks(moved.reshape(1, -1), axis=1).reshape(w.shape), w)


def lamp(score: Array) -> Array:
    """s_i^2 / sum of s_j^2 over all s_j >= s_i: scores that compare across layers (Lee et al.,
    "Layer-adaptive sparsity for the magnitude-based pruning", 2021, eq. 3)."""
    square = np.square(score.reshape(-1), dtype=np.float64)
    order = np.argsort(square, kind="stable")
    tail = np.nancumsum(square[order][::-1])[::-1]
    result: Array = np.empty_like(square)
    result[order] = square[order] / np.where(tail > 0, tail, 1.0)
    shaped: Array = result.reshape(score.shape)
    return shaped


def erk_fractions(shapes: list[tuple[int, ...]], fraction: float) -> list[float]:
    """Fraction to remove from each array: density in proportion to sum(shape) / prod(shape).

    Erdos-Renyi-Kernel (Evci et al., "Rigging the lottery: making all tickets winners", 2020,
    appendix A): the share of connections that stay is larger in thin layers, at most 1, and the
    total is the budget.
    """
    sizes = np.array([math.prod(shape) for shape in shapes], np.float64)
    raw = np.array([sum(shape) / max(1, math.prod(shape)) for shape in shapes])
    full = np.zeros(len(shapes), bool)
    density = np.ones(len(shapes))
    for _ in shapes:
        left = (1 - fraction) * sizes.sum() - sizes[full].sum()
        weight = float((raw * sizes)[~full].sum())
        density = np.where(full, 1.0, raw * (max(0.0, left) / weight if weight > 0 else 1.0))
        if not (density > 1).any():
            break
        full |= density > 1
    return [float(x) for x in 1 - np.minimum(density, 1.0)]


def _ranks(score: Array, axis: int) -> Array:
    """0, 1, ... from the smallest along ``axis``; ties in order, NaN last."""
    order = np.argsort(score, axis=axis, kind="stable")
    ranks = np.empty(score.shape)
    steps = np.arange(score.shape[axis], dtype=np.float64)
    np.put_along_axis(ranks, order, np.broadcast_to(steps, score.shape), axis=axis)
    return ranks


def _keep_nan(score: Array, w: Array) -> Array:
    """A NaN weight is never pruned: its score is NaN, above all others."""
    return np.ascontiguousarray(np.where(np.isnan(w), np.nan, score))
