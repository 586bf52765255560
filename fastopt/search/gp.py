"""Bayesian optimisation with a Gaussian process, for objectives that cost seconds or more."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastopt._options import integer
from fastopt._random import Seed
from fastopt.search.engine import INFEASIBLE, Engine, fingerprint, hypercube
from fastopt.search.gaussian_process import Features, Model, squashed
from fastopt.search.layout import Matrix
from fastopt.search.space import Space

__all__ = ["GP"]

MOST = 250  # best trials that the model holds
FORMS = 2  # of the values, which take turns; see squashed
ITERATIONS, ITERATIONS_AFRESH = 8, 25
AFRESH = 4  # every how many fits the prior's mean is a start too
UNIFORM, NEAR, LEADERS = 1000, 25, 5  # candidates
WIDTHS = (0.3, 0.1, 0.03, 0.01)
ROUNDS, KEPT, EACH = 4, 20, 10  # of refinement
CLOUD, WHICH, SHIFT, ROUND, MORE = 41, 42, 43, 44, 60  # streams


class GP(Engine):
    """Gaussian process with expected improvement, for budgets up to a few hundred trials.

    Parameters
    ----------
    space : Space or dict of variables
        Any kinds: options enter one-hot, integers rounded, orders as keys.
    x0 : dict, list of dicts, or matrix for a numeric space, optional
        Trials to begin with; a Latin hypercube follows.
    n_start : int, optional
        Trials before the model is used; min(2 + 2 d, 12) by default.
    seed : int, SeedSequence or Generator

    Notes
    -----
    Matern-5/2 with one length scale per variable, its parameters at the maximum of the marginal
    likelihood under log-normal priors, the variance in closed form (Rasmussen & Williams 2006,
    section 5.4). Values enter in two forms, which take turns: the logarithm of the
    gap to the best, and its mean with the normal score of the rank (``squashed``). Candidates are
    1000 uniform points and clouds around the five best; the best 20 by expected improvement are
    refined four times and the best point not yet tried is proposed. Trials that are not told yet
    count as equal to the best (constant liar, Ginsbourger et al. 2010).
    Cost: O(n^3) per trial, n at most 250.

    Examples
    --------
    >>> from fastopt import Choice, Float, Space
    >>> algo = GP(Space(x=Float(-5, 5), c=Choice("a", "b")), seed=0)
    >>> for _ in range(25):
    ...     t = algo.ask(1)
    ...     algo.tell(t, (t["x"] - 1) ** 2 + (t["c"] == "a"))
    >>> algo.x["c"], bool(abs(algo.x["x"] - 1) < 0.1)
    ('b', True)
    """

    method = "gp"
    batch = 1
    proposals = 2
    _state_names = ("_first", "_values", "_y", "_waiting", "_theta", "_fitted", "_fits")

    def __init__(
        self,
        space: Space | Mapping[str, Any],
        *,
        x0: Any = None,
        n_start: int | None = None,
        seed: Seed = 0,
    ) -> None:
        super().__init__(space, seed=seed)
        d = self.space.n_columns
        if n_start is None:
            n_start = min(2 + 2 * d, 12)
        self._n_start = integer(n_start, "n_start", low=2)
        self._first: Matrix = hypercube(self._key, self._n_start, self.space)
        if x0 is not None:
            self._first = np.concatenate([self.space.parse(x0, "x0"), self._first])
        self._features = Features(self.space)
        self._values: Matrix = np.empty((0, d))
        self._y: NDArray[np.float64] = np.empty(0)
        self._waiting: Matrix = np.empty((0, d))  # asked and not told
        # For each form of the values: parameters, how often and with how many trials fitted.
        self._theta: Matrix = np.tile(self._features.prior(), (FORMS, 1))
        self._fits: NDArray[np.int64] = np.zeros(FORMS, np.int64)
        self._fitted: NDArray[np.int64] = np.zeros(FORMS, np.int64)

    def options(self) -> dict[str, Any]:
        return {"n_start": self._n_start}

    def wants(self) -> int:
        return max(1, len(self._first) - self._asked)

    def propose(self, k: int) -> Matrix:
        first, self._asked = self._asked, self._asked + k
        chosen = self._first[first : first + k]
        if len(chosen) < k:
            finite = np.isfinite(self._y) & (self._y < INFEASIBLE)
            if finite.sum() < 2 and not (self._y >= INFEASIBLE).sum() > 2:
                more = self.space.values_of(self._random(first + len(chosen), k - len(chosen)))
            else:
                more = self._by_model(first + len(chosen), k - len(chosen))
            chosen = np.concatenate([chosen, more])
        self._waiting = np.concatenate([self._waiting, chosen])
        return chosen

    def absorb(self, values: Matrix, y: NDArray[np.float64]) -> None:
        self._values = np.concatenate([self._values, values])
        self._y = np.concatenate([self._y, y])
        for row in values:
            same = np.flatnonzero((self._waiting == row).all(axis=1))
            if len(same):
                self._waiting = np.delete(self._waiting, same[0], axis=0)

    # --- inside

    def _by_model(self, first: int, k: int) -> Matrix:
        order = np.argsort(np.where(np.isnan(self._y), np.inf, self._y), kind="stable")[:MOST]
        leaders = self._values[order[:LEADERS]]
        order = np.sort(order)
        x, y = self._features.of(self._values[order]), self._y[order]
        seen = {fingerprint(row) for row in self._values} | {fingerprint(r) for r in self._waiting}
        chosen = np.empty((k, self.space.n_columns))
        pending = self._features.of(self._waiting)
        for i in range(k):
            form = (first + i) % FORMS
            t = squashed(y, form)
            self._fit(x, t, form)
            told = np.append(t, np.full(len(pending), t.min()))
            model = Model(self._features, np.concatenate([x, pending]), told, self._theta[form])
            chosen[i] = self._best_unseen(first + i, model, leaders, seen)
            seen.add(fingerprint(chosen[i]))
            pending = np.concatenate([pending, self._features.of(chosen[i : i + 1])])
        return chosen

    def _fit(self, x: Matrix, t: NDArray[np.float64], form: int) -> None:
        """The parameters for one form of the values, where enough is new since the last fit."""
        if not t.any() or len(self._y) - self._fitted[form] < max(1, len(t) // 20):
            return
        last, afresh = self._theta[form], self._fits[form] % AFRESH == 0
        starts = [self._features.prior(), last] if afresh else [last]
        most = ITERATIONS_AFRESH if afresh else ITERATIONS
        self._theta[form] = self._features.fit(x, t, starts, most)
        self._fits[form] += 1
        self._fitted[form] = len(self._y)

    def _best_unseen(self, number: int, model: Model, leaders: Matrix, seen: set[int]) -> Matrix:
        """The candidate of the highest expected improvement that was never proposed."""
        space = self.space
        genomes = np.concatenate(
            [self._random(number * UNIFORM + (1 << 40), UNIFORM), self._clouds(number, leaders)]
        )
        values = space.values_of(genomes)
        gain = model.gain(self._features.of(values))
        for r in range(ROUNDS):
            top = np.argsort(-gain, kind="stable")[:KEPT]
            near = np.repeat(space.genomes_of(values[top]), EACH, axis=0)
            moved = self._moved(near, 0.1 * 0.4**r, number, ROUND + r)
            fresh = space.values_of(moved)
            values = np.concatenate([values[top], fresh])
            gain = np.concatenate([gain[top], model.gain(self._features.of(fresh))])
        for i in np.argsort(-gain, kind="stable"):
            if fingerprint(values[i]) not in seen:
                return np.asarray(values[i])
        pool = space.values_of(self._random(number * UNIFORM + (1 << 50), UNIFORM))
        new = [v for v in pool if fingerprint(v) not in seen]
        return np.asarray((new or list(values))[0])

    def _clouds(self, number: int, leaders: Matrix) -> Matrix:
        genomes = np.repeat(self.space.genomes_of(leaders), NEAR * len(WIDTHS), axis=0)
        widths = np.tile(np.repeat(WIDTHS, NEAR), len(leaders))[:, None]
        return self._moved(genomes, widths, number, CLOUD)

    def _moved(self, genomes: Matrix, width: Any, number: int, stream: int) -> Matrix:
        """Normal steps in some coordinates; options are drawn anew with a like chance."""
        space, k = self.space, len(genomes)
        d = space.n_columns
        first = number * 4096
        u = self._uniform(first, k, stream)
        radius = np.sqrt(-2 * np.log1p(-self._uniform(first, k, stream + MORE)))
        step = radius * np.cos(2 * math.pi * u) * (space.high - space.low)
        chance = self._uniform(first, k, stream + 2 * MORE)
        part = chance < np.maximum(1.0 / d, self._uniform(first, k, stream + 3 * MORE)[:, :1])
        moved = np.clip(genomes + np.where(part, width * step, 0.0), space.low, space.high)
        c = space.categorical
        if len(c):
            fresh = space.low[c] + u[:, c] * (space.high - space.low)[c]
            moved[:, c] = np.where(chance[:, c] < 0.5 / len(c), fresh, genomes[:, c])
        return np.asarray(moved)
