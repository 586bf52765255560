"""Genetic search on islands: populations that breed apart, and now and then send on their best."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fastopt._options import integer
from fastopt._random import Seed
from fastopt.search.engine import Engine, fingerprint
from fastopt.search.genetic import Genetic
from fastopt.search.layout import Matrix
from fastopt.search.space import Space

__all__ = ["Islands"]


class Islands(Engine):
    """Several genetic searches side by side, in a ring along which their best trials travel.

    Each ``ask`` is a generation of the next island. Its children depend on what was told of that
    island, and now and then of the one before, so as many batches as there are islands can be
    under way at a time: workers do not wait at the end of a generation, and the trials are the
    same for any number of them.

    Parameters
    ----------
    space : Space or dict of variables
    islands : int
    population : int
        Of each island.
    migrate_every : int
        Generations of an island after which it gets copies of the best trials of the one before.
    migrants : int
        How many.
    x0 : list of dicts, or matrix for a numeric space, optional
        Trials to begin with, dealt out to the islands.
    seed : int, SeedSequence or Generator
    **options
        The others of ``Genetic``, for every island.

    Notes
    -----
    Source: Tanese, "Distributed genetic algorithms", ICGA 1989; Alba & Tomassini, IEEE
    Trans. Evol. Comput. 6 (2002).

    Examples
    --------
    >>> from fastopt import Float, Space
    >>> algo = Islands(Space(x=Float(-5, 5), y=Float(-5, 5)), islands=3, seed=0)
    >>> for _ in range(150):
    ...     X = algo.ask(10)
    ...     algo.tell(X, (X**2).sum(axis=1))
    >>> algo.fun < 1e-3
    True
    """

    method = "islands"
    batch = 4
    proposals = 2
    _state_names: ClassVar[tuple[str, ...]] = ("_turn", "_waiting", "_owners", "_generations")

    def __init__(
        self,
        space: Space | Mapping[str, Any],
        *,
        islands: int = 4,
        population: int = 10,
        migrate_every: int = 1,
        migrants: int = 1,
        x0: Any = None,
        seed: Seed = 0,
        **options: Any,
    ) -> None:
        super().__init__(space, seed=seed)
        n = integer(islands, "islands", low=2, high=1024)
        self.migrate_every = integer(migrate_every, "migrate_every", low=1)
        self.migrants = integer(migrants, "migrants", low=1)
        d = self.space.n_columns
        first = np.empty((0, d)) if x0 is None else self.space.parse(x0, "x0")
        self.islands: list[Genetic] = []
        for i in range(n):
            given = self.space.dicts_of(first[i::n]) or None
            own_seed = np.random.SeedSequence(self._key, spawn_key=(i,))
            island = Genetic(self.space, population=population, x0=given, seed=own_seed, **options)
            self.islands.append(island)
            setattr(self, f"_island_{i}", island)  # its state is part of this one's
        self.lag = n - 1
        self._turn = 0  # the island that proposes next
        self._waiting: Matrix = np.empty((0, d))  # asked and not told
        self._owners: NDArray[np.int64] = np.empty(0, np.int64)  # the island of each
        self._generations: NDArray[np.int64] = np.zeros(n, np.int64)

    def options(self) -> dict[str, Any]:
        return {
            "islands": len(self.islands),
            "migrate_every": self.migrate_every,
            "migrants": self.migrants,
            **self.islands[0].options(),
        }

    def propose(self, k: int) -> Matrix:
        self._asked += k
        values = self.islands[self._turn].propose(k)
        self._waiting = np.concatenate([self._waiting, values])
        self._owners = np.concatenate([self._owners, np.full(k, self._turn)])
        self._turn = (self._turn + 1) % len(self.islands)
        return values

    def absorb(self, values: Matrix, y: NDArray[np.float64]) -> None:
        owners = self._owners_of(values)
        for i in np.unique(owners).tolist():
            rows = owners == i
            self.islands[i].learn(values[rows], y[rows])
            self._generations[i] += 1
            if self._generations[i] % self.migrate_every == 0:
                # Fetched rather than sent: what the neighbour was told by now does not depend on
                # how many batches are under way.
                self.islands[i].receive(*self.islands[i - 1].best(self.migrants))

    # --- inside

    def _owners_of(self, values: Matrix) -> NDArray[np.int64]:
        """The island of each trial, which no longer waits; of one that nobody asked for, any."""
        n = len(values)
        if np.array_equal(self._waiting[:n], values):
            owners = self._owners[:n]
            self._waiting, self._owners = self._waiting[n:], self._owners[n:]
            return owners
        places: dict[bytes, list[int]] = {}
        for place, row in enumerate(self._waiting):
            places.setdefault(row.tobytes(), []).append(place)
        owners, left = np.empty(n, np.int64), np.ones(len(self._waiting), bool)
        for i, row in enumerate(values):
            known = places.get(row.tobytes())
            if known:
                place = known.pop(0)
                owners[i], left[place] = self._owners[place], False
            else:
                owners[i] = fingerprint(row) % len(self.islands)
        self._waiting, self._owners = self._waiting[left], self._owners[left]
        return owners

    def _names(self) -> tuple[str, ...]:
        return (*super()._names(), *(f"_island_{i}" for i in range(len(self.islands))))
