"""Genetic search over mixed spaces: mu + lambda, tournament, SBX and polynomial mutation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastopt import _kernels
from fastopt._options import integer, number
from fastopt._random import Seed
from fastopt._threads import resolve
from fastopt.search.engine import Engine, fingerprint, hypercube
from fastopt.search.operators import MUTATIONS, SBX, SERIAL_BELOW
from fastopt.search.space import Matrix, Space

__all__ = ["Genetic"]

# Cells up to which the first population is a Latin hypercube (it sorts every column).
HYPERCUBE_BELOW = 1 << 20
# Tries to turn a child that was seen before into a new one, with a rising mutation rate.
RETRIES = 8
POOL = 256  # draws from which a new one is picked after that
# Streams of uniform draws, apart from those of random trials and the hypercube (0 to 2).
EXCHANGE, RESET, CHANCE, STRIDE, RETRY = 3, 4, 5, 6, 7


class Genetic(Engine):
    """Genetic algorithm over a mixed space (mu + lambda).

    The first ``population`` trials are the given points and a Latin hypercube; every later child
    comes from two tournament winners of the best ``population`` trials told so far: SBX on real
    and integer variables, exchange of options, then polynomial mutation, steps of integers and
    fresh options, each with probability 1 / d.

    Parameters
    ----------
    space : Space or dict of variables
    population : int
        mu: how many of the best trials can be parents.
    x0 : list of dicts, or matrix for a numeric space, optional
        Trials to begin with.
    tournament : int
        Contestants for each parent.
    eta, mutation_eta : float
        Distribution indices of SBX and of the polynomial mutation.
    unique : bool
        Never propose a point of the space twice (while new ones can be found): for objectives
        that take longer than some microseconds.
    seed : int, SeedSequence or Generator
    threads : int, optional
        For large populations; the proposals do not depend on it.

    Notes
    -----
    Failed trials (NaN) never become parents. ``ask(k)`` may follow ``ask(k)``: children are
    numbered within the generation, which a ``tell`` ends. Small populations and a broad SBX do
    best per evaluation (see docs/search.md). Source: Deb & Agrawal 1995; Deb, "Multi-objective
    optimization using evolutionary algorithms", 2001, section 3.

    Examples
    --------
    >>> from fastopt import Float, Space
    >>> algo = Genetic(Space(x=Float(-5, 5), y=Float(-5, 5)), population=20, seed=0)
    >>> for _ in range(50):
    ...     X = algo.ask(20)
    ...     algo.tell(X, (X**2).sum(axis=1))
    >>> algo.fun < 1e-3
    True
    """

    method = "genetic"
    _state_names = ("_genomes", "_fitness", "_generation", "_children", "_first", "_seen")

    def __init__(
        self,
        space: Space | Mapping[str, Any],
        *,
        population: int = 50,
        x0: Any = None,
        tournament: int = 2,
        eta: float = 3.0,
        mutation_eta: float = 20.0,
        unique: bool = False,
        seed: Seed = 0,
        threads: int | None = None,
    ) -> None:
        super().__init__(space, seed=seed)
        self.population = integer(population, "population", low=2)
        self.tournament = integer(tournament, "tournament", low=1)
        self.eta = number(eta, "eta", low=0, high=1000)
        self.mutation_eta = number(mutation_eta, "mutation_eta", low=0, high=1000)
        self.unique = bool(unique)
        self.threads = threads
        d = self.space.n_columns
        self._first: Matrix = np.empty((0, d))  # values to propose first
        if x0 is not None:
            self._first = self.space.parse(x0, "x0")
        self._genomes: Matrix = np.empty((0, d))
        self._fitness: NDArray[np.float64] = np.empty(0)
        self._generation = 0
        self._children = 0  # proposed in this generation
        self._seen: set[int] = set()

    def options(self) -> dict[str, Any]:
        return {
            "population": self.population,
            "tournament": self.tournament,
            "eta": self.eta,
            "mutation_eta": self.mutation_eta,
            "unique": self.unique,
        }

    def propose(self, k: int) -> Matrix:
        first, self._asked = self._asked, self._asked + k
        if first >= self.population and len(self._fitness) >= 2:
            return self._offspring(k)
        values = self._opening(first, k)
        if first + k > self.population and len(self._fitness) >= 2:
            n = self.population - first
            values[n:] = self._offspring(k - n)
        return values

    def absorb(self, values: Matrix, y: NDArray[np.float64]) -> None:
        self._generation += 1
        self._children = 0
        if self.unique:
            self._seen.update(fingerprint(row) for row in values)
        good = ~np.isnan(y)
        if not good.all():
            values, y = values[good], y[good]
        new = self.space.genomes_of(values)
        room = self.population - len(y)
        if not len(self._fitness) or room < 0:
            keep = np.argsort(np.concatenate([self._fitness, y]), kind="stable")[: self.population]
            self._genomes = np.concatenate([self._genomes, new])[keep]
            self._fitness = np.concatenate([self._fitness, y])[keep]
            return
        self._survive(new, y)

    # --- inside

    def _survive(self, new: Matrix, y: NDArray[np.float64]) -> None:
        """Keep the best ``population`` of old and new; only the rows that change are written."""
        old = len(self._fitness)
        both = np.concatenate([self._fitness, y])
        order = np.argsort(both, kind="stable")
        keep, drop = order[: self.population], order[self.population :]
        arrive = np.sort(keep[keep >= old]) - old
        leave = np.sort(drop[drop < old])
        n = len(leave)
        self._genomes[leave] = new[arrive[:n]]
        self._fitness[leave] = y[arrive[:n]]
        if n < len(arrive):
            self._genomes = np.concatenate([self._genomes, new[arrive[n:]]])
            self._fitness = np.concatenate([self._fitness, y[arrive[n:]]])

    def _opening(self, first: int, k: int) -> Matrix:
        """Given points, then a Latin hypercube of the population, then uniform draws."""
        values = self.space.values_of(self._random(first, k))
        n = self.population
        if first < n and n * self.space.n_columns <= HYPERCUBE_BELOW:
            cube = hypercube(self._key, n, self.space)[first : first + k]
            values[: len(cube)] = cube
        given = self._first[first : first + k]
        values[: len(given)] = given
        if self.unique and len(given) < k:
            rest = values[len(given) :]
            self._renew(rest, self.space.genomes_of(rest), np.arange(len(given), k))
        return values

    def _offspring(self, k: int) -> Matrix:
        """Children number ``_children``.. of this generation."""
        before, self._children = self._children, self._children + k
        m = self._children + self._children % 2
        winners = np.empty(m, np.intp)
        step = self._generation & 0xFFFFFFFF
        threads = resolve(self.threads, m * self.space.n_columns, SERIAL_BELOW)
        _kernels.genetic_select.tournament(
            winners, self._fitness, self.tournament, self._key, step, threads
        )
        child = np.empty((m, self.space.n_columns))
        _kernels.genetic.breed(
            child,
            self._genomes,
            winners,
            self.space.low,
            self.space.high,
            SBX,
            0.9,
            0.5,
            self.eta,
            MUTATIONS["polynomial"],
            1.0 / self.space.n_columns,
            self.mutation_eta,
            self._key,
            step,
            threads,
        )
        child, mates = child[before : self._children], winners.reshape(-1, 2)
        if not (self.unique or len(self.space.categorical) or len(self.space.ordered)):
            return self.space.values_of(child)
        rows = np.arange(before, self._children)
        self._exchange(child, mates[rows // 2], rows)
        rate = 1.0 / self.space.n_columns
        self._step(child, rows, rate, 0)
        values = self.space.values_of(child)
        if self.unique:
            self._renew(values, child, rows)
        return values

    def _draw(self, rows: NDArray[np.intp], stream: int, attempt: int) -> Matrix:
        """One row of uniforms for each child, by (generation, child, stream, attempt)."""
        first = (self._generation & 0xFFFFF) << 12 | attempt << 8 | stream
        u = self._uniform(int(rows[0]), int(rows[-1] - rows[0]) + 1, first)
        drawn: Matrix = u[rows - rows[0]]
        return drawn

    def _exchange(self, child: Matrix, mates: NDArray[np.intp], rows: NDArray[np.intp]) -> None:
        """Options have no order: a child takes each from one of its parents, siblings apart."""
        c = self.space.categorical
        if not len(c):
            return
        pairs, inverse = np.unique(rows // 2, return_inverse=True)
        second = self._draw(pairs, EXCHANGE, 0)[inverse][:, c] < 0.5
        second ^= (rows % 2 == 1)[:, None]
        genomes = self._genomes
        child[:, c] = np.where(second, genomes[mates[:, 1]][:, c], genomes[mates[:, 0]][:, c])

    def _step(self, child: Matrix, rows: NDArray[np.intp], rate: float, attempt: int) -> None:
        """In place: fresh options and steps of whole numbers, each with probability ``rate``."""
        space = self.space
        chance = self._draw(rows, CHANCE, attempt) < rate
        fresh = self._draw(rows, RESET, attempt)
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
            stride = (high - low) * 0.25 * self._draw(rows, STRIDE, attempt)[:, o] ** 4
            stride = np.maximum(stride, space.cell(child[:, o], o))
            moved = child[:, o] + np.where(fresh[:, o] < 0.5, -stride, stride)
            moved = np.where(moved < low, 2 * low - moved, moved)
            moved = np.where(moved > high, 2 * high - moved, moved)
            child[:, o] = np.where(chance[:, o], np.clip(moved, low, high), child[:, o])

    def _renew(self, values: Matrix, child: Matrix, rows: NDArray[np.intp]) -> None:
        """In place: children that were seen before are mutated harder until they are new."""
        space = self.space
        taken: set[int] = set()
        for i in range(len(values)):
            row = slice(i, i + 1)
            attempt = 0
            key = fingerprint(values[i])
            while (key in self._seen or key in taken) and attempt <= RETRIES:
                attempt += 1
                if attempt > RETRIES:
                    number = (self._asked + int(rows[i])) * POOL
                    pool = space.values_of(self._random(number, POOL))
                    keys = [fingerprint(v) for v in pool]
                    new = [
                        v
                        for v, h in zip(pool, keys, strict=True)
                        if h not in self._seen and h not in taken
                    ]
                    values[i] = (new or list(pool))[0]
                else:
                    rate = min(1.0, (1 + attempt) / space.n_columns)
                    fresh = child[row].copy()
                    _kernels.genetic.mutate(
                        fresh,
                        space.low,
                        space.high,
                        MUTATIONS["polynomial"],
                        rate,
                        self.mutation_eta,
                        self._key ^ (RETRY + attempt),
                        (self._generation * 4099 + int(rows[i])) & 0xFFFFFFFF,
                        1,
                    )
                    self._step(fresh, rows[row], rate, attempt)
                    values[i] = space.values_of(fresh)[0]
                key = fingerprint(values[i])
            taken.add(key)
