"""NSGA-II: genetic search for several objectives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastopt._options import integer
from fastopt.search.genetic import Genetic
from fastopt.search.layout import Matrix
from fastopt.search.pareto import crowding, fronts, thinned
from fastopt.search.space import Space

__all__ = ["NSGA2"]

DEFAULTS = {"population": 100, "eta": 15.0, "mutation_eta": 10.0, "unique": True}


class NSGA2(Genetic):
    """Non-dominated sorting genetic algorithm II, with constraints by Deb's rules.

    Parameters
    ----------
    space : Space or dict of variables
    objectives : int
        Numbers that an objective returns, all minimised; y is told as (k, objectives).
    **options
        Those of ``Genetic``. By default ``population`` is 100, ``unique`` true, ``eta`` 15 as in
        the paper and ``mutation_eta`` 10, half of the paper's: with 20 the search of ZDT2
        collapses to one point now and then (benchmarks/search_quality.py).

    Notes
    -----
    Parents and survivors are taken by front, then by crowding distance (Deb et al., IEEE TEC 6
    (2002)), which is computed anew whenever one of the last front has gone (``thinned``; Kukkonen
    & Deb, CEC 2006). ``pareto`` has the front of what was told so far, as far as the population
    holds it.

    Examples
    --------
    >>> from fastopt import Space, Vector
    >>> algo = NSGA2(Space(x=Vector(2, 0, 1)), population=40, seed=0)
    >>> for _ in range(150):
    ...     X = algo.ask(40)
    ...     algo.tell(X, np.column_stack([X[:, 0], (1 - X[:, 0]) ** 2 + X[:, 1]]))
    >>> values, y = algo.pareto
    >>> bool(values[:, 1].max() < 0.05)
    True
    """

    method = "nsga2"
    proposals = 5
    _state_names = (*Genetic._state_names, "_objectives")

    def __init__(
        self, space: Space | Mapping[str, Any], *, objectives: int = 2, **options: Any
    ) -> None:
        super().__init__(space, **{**DEFAULTS, **options})
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
        return self._population()[order], self._objectives[order]

    # --- inside

    def _keep(self, genomes: NDArray[Any], y: NDArray[np.float64]) -> None:
        """The best ``population`` of old and new by front and crowding; fitness is the place.

        Of the last front that fits, the most crowded row goes, one after the other: rows that
        are close to each other alone are not dropped together.
        """
        genomes = np.concatenate([self._genomes, genomes])
        if len(self._objectives):  # before, their number may not have been known
            y = np.concatenate([self._objectives, y])
        if not len(y):
            return
        front = fronts(y)
        last = int(np.sort(front)[min(self.population, len(y)) - 1])
        kept = [np.flatnonzero(front == rank) for rank in range(last + 1)]
        room = self.population - sum(map(len, kept[:-1]))
        if room < len(kept[-1]):
            kept[-1] = kept[-1][thinned(y[kept[-1]], room)]
        order = np.concatenate([own[np.argsort(-crowding(y[own]), kind="stable")] for own in kept])
        self._genomes, self._objectives = genomes[order], y[order]
        self._fitness = np.arange(float(len(order)))
