"""NSGA-II: genetic search for several objectives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastopt._options import integer
from fastopt._random import Seed
from fastopt.search.genetic import Genetic
from fastopt.search.pareto import crowding, fronts
from fastopt.search.space import Matrix, Space

__all__ = ["NSGA2"]


class NSGA2(Genetic):
    """Non-dominated sorting genetic algorithm II, with constraints by Deb's rules.

    Parameters
    ----------
    space : Space or dict of variables
    objectives : int
        Numbers that an objective returns, all minimised; y is told as (k, objectives).
    population : int
    x0, tournament, unique, seed, threads
        As in ``Genetic``.
    eta, mutation_eta : float
        Distribution indices of SBX and of the polynomial mutation, by default those of the paper.

    Notes
    -----
    Parents and survivors are taken by front, then by crowding distance (Deb et al., IEEE TEC 6
    (2002)). ``pareto`` has the front of what was told so far, as far as the population holds it.

    Examples
    --------
    >>> from fastopt import Space, Vector
    >>> algo = NSGA2(Space(x=Vector(2, 0, 1)), population=40, seed=0)
    >>> for _ in range(60):
    ...     X = algo.ask(40)
    ...     algo.tell(X, np.column_stack([X[:, 0], (1 - X[:, 0]) ** 2 + X[:, 1]]))
    >>> values, y = algo.pareto
    >>> bool(values[:, 1].max() < 0.05)
    True
    """

    method = "nsga2"
    _state_names = (*Genetic._state_names, "_objectives")

    def __init__(
        self,
        space: Space | Mapping[str, Any],
        *,
        objectives: int = 2,
        population: int = 100,
        x0: Any = None,
        tournament: int = 2,
        eta: float = 15.0,
        mutation_eta: float = 20.0,
        unique: bool = False,
        seed: Seed = 0,
        threads: int | None = None,
    ) -> None:
        super().__init__(
            space,
            population=population,
            x0=x0,
            tournament=tournament,
            eta=eta,
            mutation_eta=mutation_eta,
            unique=unique,
            seed=seed,
            threads=threads,
        )
        self.n_objectives = integer(objectives, "objectives", low=2)
        self._objectives: Matrix = np.empty((0, self.n_objectives))

    def options(self) -> dict[str, Any]:
        return {**super().options(), "objectives": self.n_objectives}

    @property
    def pareto(self) -> tuple[Matrix, Matrix]:
        """Values and objectives of the population's first front, sorted by the first objective."""
        first = fronts(self._objectives) == 0 if len(self._objectives) else np.empty(0, bool)
        order = np.flatnonzero(first)
        order = order[np.lexsort(self._objectives[order].T[::-1])]
        return self.space.values_of(self._genomes[order]), self._objectives[order]

    # --- inside

    def _keep(self, genomes: Matrix, y: NDArray[np.float64]) -> None:
        """The best ``population`` of old and new by front and crowding; fitness is the place."""
        genomes = np.concatenate([self._genomes, genomes])
        y = np.concatenate([self._objectives, y])
        if not len(y):
            return
        front = fronts(y)
        spread = np.empty(len(y))
        for rank in range(int(front.max()) + 1):
            own = front == rank
            spread[own] = crowding(y[own])
        order = np.lexsort((-spread, front))[: self.population]
        self._genomes, self._objectives = genomes[order], y[order]
        self._fitness = np.arange(float(len(order)))
