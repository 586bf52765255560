"""Forward and backward selection of subsets, with a beam."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastopt._options import choice, integer
from fastopt._random import Seed
from fastopt.errors import OptionError
from fastopt.search.engine import Engine
from fastopt.search.layout import Matrix
from fastopt.search.space import Bool, Space

__all__ = ["Subset"]

WALK = 71  # stream of the flips after the last level


class Subset(Engine):
    """Beam search over subsets: one element is added (or taken away) per level.

    Parameters
    ----------
    space : Space of Bool variables
        Which elements are in the subset.
    strategy : "forward" or "backward"
        From the empty set by adding, or from the full set by removing.
    beam : int
        Subsets of one level that are continued; 1 is plain greedy selection.
    x0 : dict or list of dicts, optional
        Subsets to begin with instead.
    seed : int, SeedSequence or Generator

    Raises
    ------
    OptionError
        The space holds variables that are not Bool, or conditions.

    Notes
    -----
    Every subset of a level is evaluated before the next level begins, a level being one batch:
    up to beam x n trials. No subset comes twice in a level. The levels go on to the end, past
    worse ones; what is asked after that are the best subset's neighbours by two random flips.
    Failed trials are not continued. Whitney, IEEE Trans. Computers 20 (1971).

    Examples
    --------
    >>> from fastopt import Bool, Space
    >>> algo = Subset(Space(a=Bool(), b=Bool(), c=Bool()), strategy="forward")
    >>> while algo.n_told < 7:
    ...     t = algo.ask(min(algo.wants(), 7 - algo.n_told))
    ...     algo.tell(t, 3 - 2.0 * t["a"] - 1.0 * t["c"] + t["b"])
    >>> algo.x
    {'a': True, 'b': False, 'c': True}
    """

    method = "subset"
    _state_names = ("_level", "_given", "_answers")

    def __init__(
        self,
        space: Space | Mapping[str, Any],
        *,
        strategy: str = "forward",
        beam: int = 1,
        x0: Any = None,
        seed: Seed = 0,
    ) -> None:
        super().__init__(space, seed=seed)
        if not all(isinstance(v, Bool) for v in self.space.variables.values()):
            raise OptionError("space: a selection of subsets needs Bool variables alone")
        if self.space.conditional:
            raise OptionError("space: a selection of subsets takes no conditions")
        self.strategy = choice(strategy, "strategy", ("forward", "backward"))
        self.beam = integer(beam, "beam", low=1)
        d = self.space.n_columns
        start = np.full((1, d), float(self.strategy == "backward"))
        self._level: Matrix = (
            start if x0 is None else np.unique(self.space.parse(x0, "x0"), axis=0)
        )
        self._answers: NDArray[np.float64] = np.full(len(self._level), -np.inf)  # not told
        self._given = 0

    def options(self) -> dict[str, Any]:
        return {"strategy": self.strategy, "beam": self.beam}

    def wants(self) -> int:
        return max(1, len(self._level) - self._given)

    def propose(self, k: int) -> Matrix:
        first, self._asked = self._asked, self._asked + k
        part: Matrix = self._level[self._given : self._given + k].copy()
        self._given += len(part)
        if len(part) == k:
            return part
        return np.concatenate([part, self._flips(first + len(part), k - len(part))])

    def absorb(self, values: Matrix, y: NDArray[np.float64]) -> None:
        place = {row.tobytes(): i for i, row in enumerate(self._level[: self._given])}
        for row, value in zip(values, np.where(np.isnan(y), np.inf, y).tolist(), strict=True):
            i = place.get(row.tobytes())
            if i is not None:
                self._answers[i] = value
        if len(self._level) and not np.isneginf(self._answers).any():
            self._descend()

    # --- inside

    def _descend(self) -> None:
        """The next level: each of the best subsets with one element more, or less."""
        order = np.argsort(self._answers, kind="stable")[: self.beam]
        parents = self._level[order[np.isfinite(self._answers[order])]]
        new = float(self.strategy == "forward")
        rows = []
        for parent in parents:
            columns = np.flatnonzero(parent != new)
            children = np.repeat(parent[None], len(columns), axis=0)
            children[np.arange(len(columns)), columns] = new
            rows.append(children)
        level = np.concatenate(rows) if rows else self._level[:0]
        self._level = np.unique(level, axis=0) if len(rows) > 1 else level
        self._answers = np.full(len(self._level), -math.inf)
        self._given = 0

    def _flips(self, first: int, k: int) -> Matrix:
        """The best subset with two elements put in or out, or any subset before there is one."""
        u = self._uniform(first, k, WALK)
        if self._best is None:
            return np.rint(u)
        rows = np.repeat(self._best[None], k, axis=0)
        two = np.argsort(u, axis=1)[:, :2]
        np.put_along_axis(rows, two, 1 - np.take_along_axis(rows, two, axis=1), axis=1)
        return rows
