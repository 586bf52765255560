"""Differential evolution with success-history adaptation and a shrinking population (L-SHADE)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastopt._options import integer
from fastopt._random import Seed
from fastopt.search.engine import Engine, hypercube
from fastopt.search.layout import Matrix
from fastopt.search.space import Space

__all__ = ["DE"]

MEMORY = 6  # remembered settings
ARCHIVE = 2.6  # replaced parents kept, times the population
BEST = 0.11  # share of the population that can be the target of a step
SMALLEST = 4
SETTINGS, MATES, GENES, CROSS = 61, 62, 63, 64  # streams of draws


class DE(Engine):
    """L-SHADE: steps towards one of the best plus the difference of two others.

    Parameters
    ----------
    space : Space or dict of variables
        Integers are rounded, options and orders move as numbers: best for reals.
    budget : int
        Trials over which the population shrinks from ``population`` to 4.
    population : int, optional
        18 d by default, at most a fifth of the budget and at least 8.
    x0 : dict, list of dicts, or matrix for a numeric space, optional
        Trials to begin with.
    seed : int, SeedSequence or Generator

    Notes
    -----
    Child i is x_i + F (x_best - x_i) + F (x_a - x_b), crossed with x_i at rate CR; F and CR are
    drawn around settings that succeeded before, weighted by what they gained. A gene outside the
    box goes half-way from the parent to the bound. Tanabe & Fukunaga, CEC 2014.

    Examples
    --------
    >>> from fastopt import Space, Vector
    >>> algo = DE(Space(x=Vector(4, -5, 5)), budget=4000, seed=0)
    >>> while algo.n_told < 4000:
    ...     X = algo.ask(algo.wants())
    ...     algo.tell(X, (X**2).sum(axis=1))
    >>> algo.fun < 1e-6
    True
    """

    method = "de"
    _state_names = (
        "_first",
        "_genomes",
        "_fitness",
        "_archive",
        "_f",
        "_cr",
        "_place",
        "_next",
        "_waiting",
        "_won",
        "_generation",
        "_finished",
    )

    def __init__(
        self,
        space: Space | Mapping[str, Any],
        *,
        budget: int = 10_000,
        population: int | None = None,
        x0: Any = None,
        seed: Seed = 0,
    ) -> None:
        super().__init__(space, seed=seed)
        d = self.space.n_columns
        self.budget = integer(budget, "budget", low=1)
        if population is None:
            population = max(8, min(18 * d, self.budget // 5))
        self.population = integer(population, "population", low=SMALLEST)
        self._first: Matrix = hypercube(self._key, self.population, self.space)
        if x0 is not None:
            given = self.space.parse(x0, "x0")
            self._first = np.concatenate([given, self._first])[: max(len(given), self.population)]
        self._genomes: Matrix = np.empty((0, d))
        self._fitness: NDArray[np.float64] = np.empty(0)
        self._archive: Matrix = np.empty((0, d))
        self._f, self._cr = np.full(MEMORY, 0.5), np.full(MEMORY, 0.5)
        self._place = 0  # of the memory that is written next
        self._next = 0  # parent of the next child
        self._waiting: Matrix = np.empty((0, 2 * d + 3))  # values, genome, parent, F, CR
        self._won: Matrix = np.empty((0, 3))  # gain, F, CR of this generation's successes
        self._generation = 0
        self._finished = 0  # children told in this generation

    def options(self) -> dict[str, Any]:
        return {"budget": self.budget, "population": self.population}

    def wants(self) -> int:
        if self._asked < len(self._first):
            return len(self._first) - self._asked
        left = len(self._genomes) - self._next
        return left if left > 0 else max(1, len(self._genomes))

    def propose(self, k: int) -> Matrix:
        first, self._asked = self._asked, self._asked + k
        values = self._first[first : first + k]
        rest = k - len(values)
        if not rest:
            return values
        if len(self._genomes) < SMALLEST:
            more = self.space.values_of(self._random(first + len(values), rest))
        else:
            more = self._children(first + len(values), rest)
        return np.concatenate([values, more])

    def absorb(self, values: Matrix, y: NDArray[np.float64]) -> None:
        y = np.where(np.isnan(y), np.inf, y)
        d = self.space.n_columns
        places = {row.tobytes(): i for i, row in enumerate(self._waiting[:, :d])}
        taken = [places.pop(row.tobytes(), -1) for row in values]
        for row, value, at in zip(values, y.tolist(), taken, strict=True):
            if at < 0:
                self._join(row, value)
            else:
                self._replace(self._waiting[at], value)
        self._waiting = np.delete(self._waiting, [i for i in taken if i >= 0], axis=0)
        if self._finished >= len(self._genomes) > 0:
            self._turn()

    # --- inside

    def _children(self, first: int, k: int) -> Matrix:
        d, n = self.space.n_columns, len(self._genomes)
        parents = (self._next + np.arange(k)) % n
        self._next += k
        u = np.empty((k, 8))
        for stream, columns in ((SETTINGS, slice(0, 4)), (MATES, slice(4, 8))):
            u[:, columns] = self._uniform(first, k, stream, 4)
        memory = (u[:, 0] * MEMORY).astype(np.intp)
        # F: Cauchy around the memory, cut at 1, mirrored below 0; CR: normal, clipped.
        f = self._f[memory] + 0.1 * np.tan(math.pi * (u[:, 1] - 0.5))
        f = np.clip(np.abs(f), 0.02, 1.0)
        normal = np.sqrt(-2 * np.log1p(-u[:, 2])) * np.cos(2 * math.pi * u[:, 3])
        cr = np.clip(self._cr[memory] + 0.1 * normal, 0.0, 1.0)
        order = np.argsort(self._fitness, kind="stable")
        best = order[(u[:, 4] * max(2, round(BEST * n))).astype(np.intp)]
        a = (u[:, 5] * (n - 1)).astype(np.intp)
        a += a >= parents
        pool = np.concatenate([self._genomes, self._archive])
        b = (u[:, 6] * (len(pool) - 1)).astype(np.intp)
        b += b >= parents
        x = self._genomes[parents]
        step = f[:, None]
        child = x + step * (self._genomes[best] - x) + step * (self._genomes[a] - pool[b])
        cross = self._uniform(first, k, CROSS) < cr[:, None]
        cross[np.arange(k), (u[:, 7] * d).astype(np.intp)] = True
        child = np.where(cross, child, x)
        low, high = self.space.low, self.space.high
        child = np.where(
            child < low, 0.5 * (low + x), np.where(child > high, 0.5 * (high + x), child)
        )
        values = self.space.values_of(child)
        notes = np.column_stack([values, child, parents, f, cr])
        self._waiting = np.concatenate([self._waiting, notes])
        return values

    def _join(self, values: Matrix, y: float) -> None:
        """A trial without a parent: of the opening, or not asked; it may replace the worst."""
        genome = self.space.genomes_of(values[None])
        if len(self._genomes) < max(len(self._first), self.population) and self._generation == 0:
            self._genomes = np.concatenate([self._genomes, genome])
            self._fitness = np.append(self._fitness, y)
        elif len(self._fitness) and y < self._fitness.max():
            worst = int(np.argmax(self._fitness))
            self._genomes[worst], self._fitness[worst] = genome[0], y

    def _replace(self, note: Matrix, y: float) -> None:
        d = self.space.n_columns
        parent = int(note[2 * d])
        self._finished += 1
        if parent >= len(self._genomes) or not y <= self._fitness[parent]:
            return
        gain = self._fitness[parent] - y
        if gain > 0:
            self._archive = np.concatenate([self._archive, self._genomes[parent : parent + 1]])
            won = np.array([[min(gain, 1e300), note[2 * d + 1], note[2 * d + 2]]])
            self._won = np.concatenate([self._won, won])
        self._genomes[parent], self._fitness[parent] = note[d : 2 * d], y

    def _turn(self) -> None:
        """End of a generation: what succeeded is remembered, the population shrinks."""
        if len(self._won):
            weight = self._won[:, 0] / self._won[:, 0].sum()
            f, cr = self._won[:, 1], self._won[:, 2]
            self._f[self._place] = (weight * f * f).sum() / (weight * f).sum()
            total = (weight * cr).sum()
            self._cr[self._place] = (weight * cr * cr).sum() / total if total > 0 else 0.0
            self._place = (self._place + 1) % MEMORY
            self._won = self._won[:0]
        share = min(1.0, self._told / self.budget)
        size = max(SMALLEST, round(self.population + (SMALLEST - self.population) * share))
        if len(self._genomes) > size:
            keep = np.sort(np.argsort(self._fitness, kind="stable")[:size])
            self._genomes, self._fitness = self._genomes[keep], self._fitness[keep]
        most = int(ARCHIVE * len(self._genomes))
        if len(self._archive) > most:  # a random part of it
            u = self._uniform(self._generation, 1, GENES, len(self._archive))[0]
            self._archive = self._archive[np.sort(np.argsort(u, kind="stable")[:most])]
        self._generation += 1
        self._finished = self._next = 0
