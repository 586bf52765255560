"""Children in mixed spaces: options are exchanged, whole numbers step, orders are crossed.

The kernel of SBX and the polynomial mutation takes every column for a real number; what it makes
of the other columns is written over here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastopt import _kernels
from fastopt.search.layout import Matrix
from fastopt.search.operators import MUTATIONS, SBX
from fastopt.search.orders import CROSSOVERS, moved, reversed_part
from fastopt.search.space import Permutation, Space

__all__ = ["Breeding", "Draws"]

# Share of pairs that cross, and of a crossing pair's genes that take part: Deb & Agrawal 1995.
CROSSED, EXCHANGED = 0.9, 0.5
REVERSED = 0.7  # share of the mutations of an order that reverse a part; the others move one
# Streams of uniform draws, apart from those of random trials and the hypercube (0 to 2).
EXCHANGE, RESET, CHANCE, STRIDE, RETRY, CROSS, CHANGE = 3, 4, 5, 6, 7, 8, 9
STRIDE_OF_GENERATIONS = 4099  # a prime, so that rows of one generation and the next stay apart

Rows = NDArray[np.intp]


@dataclass(frozen=True)
class Draws:
    """Uniform draws of one generation."""

    key: int
    generation: int

    def of(self, rows: Rows, stream: int, attempt: int, columns: int) -> Matrix:
        """A row of uniforms for each child, by (generation, child, stream, attempt)."""
        first = (self.generation & 0xFFFFF) << 12 | attempt << 8 | stream
        u = np.empty((int(rows[-1] - rows[0]) + 1, columns))
        _kernels.genetic_select.uniform(u, int(rows[0]), self.key, first, 1)
        drawn: Matrix = u[rows - rows[0]]
        return drawn


class Breeding:
    """Crossover and mutation of options, whole numbers and orders, in place.

    Parameters
    ----------
    space : Space
    order_crossover : "ox", "pmx" or "edge"
    eta, mutation_eta : float
        Distribution indices of SBX and of the polynomial mutation.

    Attributes
    ----------
    orders : list of slice
        Columns of each Permutation.
    needed : bool
        Whether a column is anything but a real number.
    """

    def __init__(
        self, space: Space, order_crossover: str, eta: float, mutation_eta: float
    ) -> None:
        self.space, self.eta, self.mutation_eta = space, eta, mutation_eta
        self.cross_order = CROSSOVERS[order_crossover]
        self.orders = [
            space.slices[name] for name, v in space.variables.items() if isinstance(v, Permutation)
        ]
        self.needed = bool(len(space.categorical) or len(space.ordered) or self.orders)

    def real(self, genomes: Matrix, winners: Rows, draws: Draws, threads: int) -> Matrix:
        """Children of pairs of winners (an even number of rows), all columns as real numbers."""
        space = self.space
        child = np.empty((len(winners), space.n_columns))
        _kernels.genetic.breed(
            child,
            genomes,
            winners,
            space.low,
            space.high,
            SBX,
            CROSSED,
            EXCHANGED,
            self.eta,
            MUTATIONS["polynomial"],
            1.0 / space.n_columns,
            self.mutation_eta,
            draws.key,
            draws.generation & 0xFFFFFFFF,
            threads,
        )
        return child

    def cross(self, child: Matrix, genomes: Matrix, mates: Rows, rows: Rows, draws: Draws) -> None:
        """Options and orders of children number ``rows``; pair p has the parents mates[p]."""
        self._exchange(child, genomes, mates[rows // 2], rows, draws)
        self._cross_orders(child, genomes, mates, rows, draws)

    def mutate(self, child: Matrix, rows: Rows, rate: float, attempt: int, draws: Draws) -> None:
        """Orders change; fresh options and steps of whole numbers, each with chance ``rate``."""
        space, d = self.space, self.space.n_columns
        self._change_orders(child, rows, attempt, draws)
        if not (len(space.categorical) or len(space.ordered)):
            return
        chance = draws.of(rows, CHANCE, attempt, d) < rate
        fresh = draws.of(rows, RESET, attempt, d)
        c = space.categorical
        if len(c):
            options = space.high[c] - space.low[c]
            old = np.rint(child[:, c])
            other = np.floor(fresh[:, c] * np.maximum(options - 1.0, 0.0))
            other += other >= old  # one of the others, each as likely
            np.minimum(other, options - 1.0, out=other)
            child[:, c] = np.where(chance[:, c], other, child[:, c])
        o = space.ordered
        if len(o):
            # A two-sided stride with a heavy tail, at least one cell, within a quarter range.
            low, high = space.low[o], space.high[o]
            stride = (high - low) * 0.25 * draws.of(rows, STRIDE, attempt, d)[:, o] ** 4
            stride = np.maximum(stride, space.cell(child[:, o], o))
            moved = child[:, o] + np.where(fresh[:, o] < 0.5, -stride, stride)
            moved = np.where(moved < low, 2 * low - moved, moved)
            moved = np.where(moved > high, 2 * high - moved, moved)
            child[:, o] = np.where(chance[:, o], np.clip(moved, low, high), child[:, o])

    def harder(self, child: Matrix, rows: Rows, first: int, attempt: int, draws: Draws) -> None:
        """Children that were not new, once more, at a rate that rises with the attempt.

        ``first`` is the first child of the same proposal.
        """
        space = self.space
        rate = min(1.0, (1 + attempt) / space.n_columns)
        _kernels.genetic.mutate(
            child,
            space.low,
            space.high,
            MUTATIONS["polynomial"],
            rate,
            self.mutation_eta,
            draws.key ^ (RETRY + attempt),
            (draws.generation * STRIDE_OF_GENERATIONS + first) & 0xFFFFFFFF,
            1,
        )
        self.mutate(child, rows, rate, attempt, draws)

    # --- inside

    def _exchange(
        self, child: Matrix, genomes: Matrix, mates: Rows, rows: Rows, draws: Draws
    ) -> None:
        """Options have no order: a child takes each from one of its parents, siblings apart."""
        c = self.space.categorical
        if not len(c):
            return
        pairs, inverse = np.unique(rows // 2, return_inverse=True)
        second = draws.of(pairs, EXCHANGE, 0, self.space.n_columns)[inverse][:, c] < 0.5
        second ^= (rows % 2 == 1)[:, None]
        child[:, c] = np.where(second, genomes[mates[:, 1]][:, c], genomes[mates[:, 0]][:, c])

    def _cross_orders(
        self, child: Matrix, genomes: Matrix, mates: Rows, rows: Rows, draws: Draws
    ) -> None:
        """Half of the orders are crossings, the others those of one parent."""
        for which, where in enumerate(self.orders):
            u = draws.of(rows, CROSS, which, 4)
            for i, row in enumerate(rows.tolist()):
                a, b = mates[row // 2, row % 2], mates[row // 2, 1 - row % 2]
                order = np.argsort(genomes[a, where], kind="stable")
                if u[i, 3] < 0.5 and a != b:
                    other = np.argsort(genomes[b, where], kind="stable")
                    order = self.cross_order(order, other, u[i])
                _write_order(child[i, where], order)

    def _change_orders(self, child: Matrix, rows: Rows, attempt: int, draws: Draws) -> None:
        """A part of each order is reversed, or moved."""
        for which, where in enumerate(self.orders):
            u = draws.of(rows, CHANGE + 2 * which, attempt, 4)
            for i in range(len(rows)):
                order = np.argsort(child[i, where], kind="stable")
                change = reversed_part if u[i, 3] < REVERSED else moved
                _write_order(child[i, where], change(order, u[i]))


def _write_order(keys: Matrix, order: NDArray[np.intp]) -> None:
    """In place: keys whose order is ``order``."""
    keys[order] = (np.arange(len(order)) + 0.5) / len(order)
