"""Which variables matter: permutation importance on a forest fitted to the trials."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastopt._random import generator_of
from fastopt.search.layout import Matrix

__all__ = ["importance"]

TREES = 24
MOST_ROWS = 2000
LEAST_LEAF = 4
TRIES = 6  # random cuts looked at per node


def importance(genomes: Matrix, y: Matrix, groups: list[list[int]]) -> Matrix:
    """Share of each group of columns in what y varies, adding up to 1; zeros if nothing does.

    Extremely randomised trees (Geurts et al., Machine Learning 63 (2006)) are fitted to the ranks
    of y on one half of the rows; what is measured is by how much the squared error on the other
    half grows when a group's columns are shuffled among its rows (Breiman 2001), both ways round.

    Parameters
    ----------
    genomes : (n, d) float64
    y : (n,) float64
        Finite.
    groups : list of lists of int
        Columns of each variable.

    Returns
    -------
    (len(groups),) float64
    """
    n = len(y)
    shares = np.zeros(len(groups))
    if n < 4 * LEAST_LEAF:
        return shares
    rng = generator_of(0)
    rows = rng.permutation(n)[:MOST_ROWS]
    x = genomes[rows]
    rank = np.searchsorted(np.sort(y[rows]), y[rows]) / len(rows)  # equal values, equal ranks
    half = np.arange(len(rows)) % 2 == 0
    for train, test in ((half, ~half), (~half, half)):
        trees = [_Tree(x[train], rank[train], rng) for _ in range(TREES // 2)]

        def error(
            points: Matrix, wanted: Matrix = rank[test], trees: list[_Tree] = trees
        ) -> float:
            guess = np.mean([tree.predict(points) for tree in trees], axis=0)
            return float(((guess - wanted) ** 2).mean())

        base = error(x[test])
        for g, columns in enumerate(groups):
            shuffled = x[test].copy()
            shuffled[:, columns] = shuffled[rng.permutation(len(shuffled))][:, columns]
            shares[g] += max(0.0, error(shuffled) - base)
    total = shares.sum()
    return shares / total if total > 0 else shares


class _Tree:
    """One extremely randomised regression tree, as arrays of nodes."""

    def __init__(self, x: Matrix, y: Matrix, rng: np.random.Generator) -> None:
        self.column: list[int] = []
        self.cut: list[float] = []
        self.left: list[int] = []
        self.right: list[int] = []
        self.mean: list[float] = []
        todo = [(np.arange(len(y)), self._leaf(float(y.mean())))]
        while todo:
            rows, node = todo.pop()
            split = self._split(x[rows], y[rows], rng)
            if split is None:
                continue
            column, cut = split
            below = x[rows, column] <= cut
            self.column[node], self.cut[node] = column, cut
            for part, side in ((rows[below], self.left), (rows[~below], self.right)):
                side[node] = self._leaf(float(y[part].mean()))
                todo.append((part, side[node]))

    def _leaf(self, mean: float) -> int:
        self.column.append(-1)
        self.cut.append(0.0)
        self.left.append(-1)
        self.right.append(-1)
        self.mean.append(mean)
        return len(self.mean) - 1

    def _split(self, x: Matrix, y: Matrix, rng: np.random.Generator) -> tuple[int, float] | None:
        """The best of some random cuts; None for a leaf."""
        n = len(y)
        if n < 2 * LEAST_LEAF or np.ptp(y) == 0:
            return None
        best, found = 0.0, None
        low, high = x.min(axis=0), x.max(axis=0)
        open_ = np.flatnonzero(high > low)
        for column in rng.permutation(open_)[: max(TRIES, len(open_) // 2)]:
            cut = low[column] + rng.random() * (high[column] - low[column])
            below = x[:, column] <= cut
            k = int(below.sum())
            if min(k, n - k) < LEAST_LEAF:
                continue
            gain = (y[below].mean() - y[~below].mean()) ** 2 * k * (n - k)
            if gain > best:
                best, found = float(gain), (int(column), float(cut))
        return found

    def predict(self, x: Matrix) -> Matrix:
        column, cut = np.array(self.column), np.array(self.cut)
        left, right = np.array(self.left), np.array(self.right)
        node: NDArray[np.intp] = np.zeros(len(x), dtype=np.intp)
        while True:
            inner = np.flatnonzero(column[node] >= 0)
            if not len(inner):
                break
            at = node[inner]
            below = x[inner, column[at]] <= cut[at]
            node[inner] = np.where(below, left[at], right[at])
        values: Matrix = np.array(self.mean)[node]
        return values
