"""Who of parents and children stays in a population: the best (mu + lambda)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["first_of_value", "survivors"]

Genomes = NDArray[Any]
Merits = NDArray[np.float64]


def survivors(
    genomes: Genomes, merits: Merits, new: Genomes, y: Merits, size: int
) -> tuple[Genomes, Merits]:
    """The ``size`` lowest of both, of equal ones the first.

    Parameters
    ----------
    genomes, merits : (n, d), (n,) arrays, overwritten where only some rows change
    new, y : (k, d), (k,) arrays
        What arrives.
    size : int

    Returns
    -------
    genomes, merits
        Not sorted.
    """
    old = len(merits)
    both = np.concatenate([merits, y])
    if not old or size < len(y):
        keep = np.argsort(both, kind="stable")[:size]
        return np.concatenate([genomes, new])[keep], both[keep]
    kept = _smallest(both, size)
    arrive, leave = np.flatnonzero(kept[old:]), np.flatnonzero(~kept[:old])
    n = len(leave)
    genomes[leave] = new[arrive[:n]]
    merits[leave] = y[arrive[:n]]
    if n < len(arrive):
        genomes = np.concatenate([genomes, new[arrive[n:]]])
        merits = np.concatenate([merits, y[arrive[n:]]])
    return genomes, merits


def first_of_value(merits: Merits, y: Merits) -> NDArray[np.bool_]:
    """Which of ``y`` are neither among ``merits`` nor equal to one before."""
    both = np.concatenate([merits, y])
    fresh = np.zeros(len(both), bool)
    fresh[np.unique(both, return_index=True)[1]] = True
    return fresh[len(merits) :]


def _smallest(y: Merits, k: int) -> NDArray[np.bool_]:
    """Which are the k smallest; of equal ones the first."""
    if k >= len(y):
        return np.ones(len(y), bool)
    limit = np.partition(y, k - 1)[k - 1]
    kept: NDArray[np.bool_] = y < limit
    kept[np.flatnonzero(y == limit)[: k - np.count_nonzero(kept)]] = True
    return kept
