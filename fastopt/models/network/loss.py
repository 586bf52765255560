"""Losses: mean cross-entropy, or the mean squared error / 2."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt._arrays import Array, as_array, as_labels, as_ndarray
from fastopt.errors import ArrayError

__all__ = ["LOSSES", "labels_for", "loss_and_slope"]

LOSSES = ("cross_entropy", "squared")


def labels_for(loss: str, classes: Array | None, n_out: int, y: Any, n: int) -> Array:
    """y as the loss needs it: class indices (n,), or targets (n, n_out) float32."""
    if loss == "squared":
        targets = as_array(y, "y", dtypes=("float32",), cast="float32")
        if targets.size != n * n_out:
            raise ArrayError(f"y: expected ({n}, {n_out}) targets, got shape {targets.shape}")
        shaped: Array = targets.reshape(n, n_out)
        return shaped
    y = as_ndarray(y, "y") if classes is None else as_labels(y, "y")
    if y.shape != (n,):
        raise ArrayError(f"y: expected ({n},) labels, got shape {y.shape}")
    if classes is not None:
        order = np.argsort(classes)
        try:
            place = np.searchsorted(classes, y, sorter=order)
        except TypeError:  # text and numbers
            raise ArrayError("y: its labels are of another kind than the network's") from None
        k: Array = order[np.minimum(place, len(order) - 1)]
        if not (classes[k] == y).all():
            raise ArrayError("y: holds labels that are not in the network's classes")
        return k
    if y.dtype.kind not in "iu":
        raise ArrayError(f"y: expected integer classes, got dtype {y.dtype}; pass classes=")
    if n and (y.min() < 0 or y.max() >= n_out):
        raise ArrayError(
            f"y: expected classes 0..{n_out - 1}, got {y.min()}..{y.max()}; name them with "
            "Network(..., classes=)"
        )
    labels: Array = y
    return labels


def loss_and_slope(loss: str, z: Array, labels: Array) -> tuple[float, Array]:
    """The mean loss and its derivative by the output."""
    n = len(z)
    if n == 0:
        raise ArrayError("x: expected at least one row, got none")
    if loss == "squared":
        delta = z - labels
        return float((delta * delta).sum(dtype=np.float64)) / (2 * n), delta / np.float32(n)
    shifted = z - z.max(axis=1, keepdims=True)
    p = np.exp(shifted)
    total = p.sum(axis=1, keepdims=True)
    rows = np.arange(n)
    mean = float(np.mean(np.log(total[:, 0]) - shifted[rows, labels], dtype=np.float64))
    p /= total
    p[rows, labels] -= 1
    p /= np.float32(n)
    return mean, p
