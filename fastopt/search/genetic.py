"""Genetic search over mixed spaces: mu + lambda, tournament, SBX and polynomial mutation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fastopt import _kernels
from fastopt._options import choice, flag, integer, number
from fastopt._random import Seed
from fastopt._threads import resolve
from fastopt.search.breeding import Breeding, Draws
from fastopt.search.engine import Engine, fingerprint, hypercube
from fastopt.search.layout import Matrix
from fastopt.search.novelty import put_new, repeats, without
from fastopt.search.operators import SERIAL_BELOW, UNIFORM
from fastopt.search.orders import CROSSOVERS
from fastopt.search.packed import pack_bits, unpack_bits, words_of
from fastopt.search.space import Bool, Space
from fastopt.search.survivors import first_of_value, survivors

__all__ = ["Genetic"]

# Cells up to which the first population is a Latin hypercube (it sorts every column).
HYPERCUBE_BELOW = 1 << 20
# Tries to turn a child that was seen before into a new one, with a rising mutation rate.
RETRIES = 8
FINITE = 1 << 16  # points up to which a space's trials are all remembered
POOL = 256  # draws from which a new one is picked after that, in such spaces


class Genetic(Engine):
    """Genetic algorithm over a mixed space (mu + lambda).

    The first ``population`` trials are the given points and a Latin hypercube; every later child
    comes from two tournament winners of the best ``population`` trials told so far: SBX on real
    and integer variables, exchange of options, then polynomial mutation, steps of integers and
    fresh options, each with probability 1 / d. Orders are crossed half the time, then a part is
    reversed or moved.

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
    order_crossover : "ox", "pmx" or "edge"
        How two orders are crossed: order crossover, partially mapped crossover, or edge
        recombination, which keeps neighbours (round trips).
    unique : bool
        No child is equal to one of the population or to a trial not told yet, and in spaces of up
        to 65,536 points none is proposed twice while new ones can be found: for objectives that
        take longer than some microseconds.
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
    proposals = 4
    _state_names: ClassVar[tuple[str, ...]] = (
        "_genomes",
        "_fitness",
        "_generation",
        "_children",
        "_first",
        "_seen",
        "_waiting",
    )

    def __init__(
        self,
        space: Space | Mapping[str, Any],
        *,
        population: int = 50,
        x0: Any = None,
        tournament: int = 2,
        eta: float = 3.0,
        mutation_eta: float = 20.0,
        order_crossover: str = "ox",
        unique: bool = False,
        seed: Seed = 0,
        threads: int | None = None,
    ) -> None:
        super().__init__(space, seed=seed)
        self.population = integer(population, "population", low=2)
        self.tournament = integer(tournament, "tournament", low=1)
        self.eta = number(eta, "eta", low=0, high=1000)
        self.mutation_eta = number(mutation_eta, "mutation_eta", low=0, high=1000)
        self.order_crossover = choice(order_crossover, "order_crossover", tuple(CROSSOVERS))
        self.unique = flag(unique, "unique")
        self.threads = threads
        d = self.space.n_columns
        self._first: Matrix = np.empty((0, d))  # values to propose first
        if x0 is not None:
            self._first = self.space.parse(x0, "x0")
        self._fitness: NDArray[np.float64] = np.empty(0)
        self._generation = 0
        self._children = 0  # proposed in this generation
        self._seen: set[int] = set()  # all trials of a small finite space
        self._waiting: Matrix = np.empty((0, d))  # asked and not told, where ``unique``
        kinds = {type(v) for v in self.space.variables.values()}
        # Of Bools alone the population is kept as packed bits, a 64th of the memory.
        self._bits = kinds == {Bool} and not self.space.conditional
        self._genomes: NDArray[Any] = self._stored(np.empty((0, d)))
        self._breeding = Breeding(self.space, self.order_crossover, self.eta, self.mutation_eta)

    def options(self) -> dict[str, Any]:
        return {
            "population": self.population,
            "tournament": self.tournament,
            "eta": self.eta,
            "mutation_eta": self.mutation_eta,
            "order_crossover": self.order_crossover,
            "unique": self.unique,
        }

    def propose(self, k: int) -> Matrix:
        first, self._asked = self._asked, self._asked + k
        n = k if len(self._fitness) < 2 else min(k, max(0, self.population - first))
        parts = []
        if n:
            parts.append(self._noted(self._opening(first, n)))
        if n < k:
            parts.append(self._noted(self._offspring(k - n)))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def absorb(self, values: Matrix, y: NDArray[np.float64]) -> None:
        self._generation += 1
        self._children = 0
        if self.unique:
            if self.space.size <= FINITE:
                self._seen.update(fingerprint(row) for row in values)
            self._waiting = without(self._waiting, values)
        good = ~np.isnan(y).reshape(len(y), -1).any(axis=1)
        if not good.all():
            values, y = values[good], y[good]
        self._keep(self._stored(values), y)

    # --- for islands

    def best(self, k: int) -> tuple[NDArray[Any], NDArray[np.float64]]:
        """The k best rows of the population and their merits, the best first."""
        rows = np.argsort(self._fitness, kind="stable")[:k]
        return self._genomes[rows], self._fitness[rows]

    def receive(self, genomes: NDArray[Any], merits: NDArray[np.float64]) -> None:
        """Take in rows of another population, but for those that this one has."""
        here = {row.tobytes() for row in self._genomes}
        new = [row.tobytes() not in here for row in genomes]
        self._keep(genomes[new], merits[new])

    # --- inside

    def _stored(self, values: Matrix) -> NDArray[Any]:
        """Values as the population has them."""
        return pack_bits(values) if self._bits else self.space.genomes_of(values)

    def _population(self) -> Matrix:
        """The population's values."""
        if self._bits:
            return unpack_bits(self._genomes, self.space.n_columns).astype(np.float64)
        return self.space.values_of(self._genomes)

    def _keep(self, new: NDArray[Any], y: NDArray[np.float64]) -> None:
        """Keep the best ``population`` of old and new; only the rows that change are written.

        Among orders two of the same value are mostly one tour read from another place, so only
        the first of them stays.
        """
        if self._breeding.orders:
            fresh = first_of_value(self._fitness, y)
            if fresh.sum() + len(self._fitness) >= 2:
                new, y = new[fresh], y[fresh]
        self._genomes, self._fitness = survivors(
            self._genomes, self._fitness, new, y, self.population
        )

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
        space = self.space
        threads = resolve(self.threads, m * space.n_columns, SERIAL_BELOW)
        _kernels.genetic_select.tournament(
            winners, self._fitness, self.tournament, self._key, step, threads
        )
        if self._bits:
            return self._bred_bits(winners, before, threads)
        draws = Draws(self._key, self._generation)
        child = self._breeding.real(self._genomes, winners, draws, threads)
        child, mates = child[before : self._children], winners.reshape(-1, 2)
        rows = np.arange(before, self._children)
        if self._breeding.needed:
            self._breeding.cross(child, self._genomes, mates, rows, draws)
            self._breeding.mutate(child, rows, 1.0 / space.n_columns, 0, draws)
        values = space.values_of(child)
        if self.unique:
            self._renew(values, child, rows)
        return values

    def _bred_bits(self, winners: NDArray[np.intp], before: int, threads: int) -> Matrix:
        """The same where every variable is a Bool: uniform crossover, each bit flipped 1 / d."""
        d = self.space.n_columns
        child = np.empty((len(winners), words_of(d)), np.uint64)
        _kernels.genetic_bits.breed_bits(
            child,
            self._genomes,
            winners,
            d,
            UNIFORM,
            1.0,  # as options in mixed spaces, which every child takes from both parents
            0.5,
            1.0 / d,
            self._key,
            self._generation & 0xFFFFFFFF,
            threads,
        )
        values = unpack_bits(child[before : self._children], d).astype(np.float64)
        if self.unique:
            self._renew(values, values.copy(), np.arange(before, self._children))
        return values

    def _renew(self, values: Matrix, child: Matrix, rows: NDArray[np.intp]) -> None:
        """In place: children that are not new are mutated harder until they are.

        New is what neither the population nor a waiting trial has; in a small finite space, what
        was never told.
        """
        space, draws = self.space, Draws(self._key, self._generation)
        present = np.concatenate([self._population(), self._waiting])
        known = {row.tobytes() for row in present}
        for attempt in range(1, RETRIES + 1):
            clones = repeats(values, known, self._seen)
            if not clones:
                return
            fresh = child[clones]
            self._breeding.harder(fresh, rows[clones], int(rows[0]), attempt, draws)
            values[clones] = space.values_of(fresh)
        for i in repeats(values, known, self._seen) if space.size <= FINITE else ():
            number = (self._asked + int(rows[i])) * POOL
            put_new(values, i, space.values_of(self._random(number, POOL)), known, self._seen)

    def _noted(self, values: Matrix) -> Matrix:
        """The same values, remembered until they are told where ``unique``."""
        if self.unique:
            self._waiting = np.concatenate([self._waiting, values])
        return values
