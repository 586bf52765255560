"""Bayesian optimisation with a Gaussian process, for objectives that cost seconds or more."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastopt._options import integer
from fastopt._random import Seed
from fastopt.optim import descend
from fastopt.search.engine import INFEASIBLE, Engine, fingerprint, hypercube
from fastopt.search.space import Matrix, Space

__all__ = ["GP", "log_expected_improvement", "matern", "squashed"]

MOST = 250  # best trials that the model holds
# Priors of the logarithms: length scales in shares of the range, noise as a share of the variance.
LENGTH = (math.log(0.3), 1.2)
NOISE = (-7.0, 2.0)
ITERATIONS, ITERATIONS_AFRESH = 8, 25
AFRESH = 8  # every how many fits the prior's mean is a start too
UNIFORM, NEAR, LEADERS = 1000, 25, 5  # candidates
WIDTHS = (0.3, 0.1, 0.03, 0.01)
ROUNDS, KEPT, EACH = 4, 20, 10  # of refinement
CLOUD, WHICH, SHIFT, ROUND, MORE = 41, 42, 43, 44, 60  # streams
NUGGET = 1e-8  # on the diagonal, so that repeated points can be factored
ROOT5 = math.sqrt(5.0)


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
    section 5.4). Values are clipped at median + 2 (median - best), then their distance to the
    best taken in logarithms: what is bad does not shape the model near the best. Candidates are
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
        self._theta: Matrix = self._features.prior()
        self._fitted = 0  # trials known when the parameters were fitted last
        self._fits = 0

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
        order = np.sort(order)
        values, t = self._values[order], squashed(self._y[order])
        x = self._features.of(values)
        if t.any() and len(self._y) - self._fitted >= max(1, len(t) // 20):
            again = self._fits % AFRESH == 0
            self._theta = self._features.fit(x, t, self._theta, again)
            self._fits += 1
            self._fitted = len(self._y)
        leaders = values[np.argsort(t, kind="stable")[:LEADERS]]
        seen = {fingerprint(row) for row in self._values} | {fingerprint(r) for r in self._waiting}
        chosen = np.empty((k, self.space.n_columns))
        pending = self._waiting
        for i in range(k):
            everywhere = np.concatenate([x, self._features.of(pending)]) if len(pending) else x
            told = np.append(t, np.full(len(pending), t.min()))
            model = Model(self._features, everywhere, told, self._theta)
            chosen[i] = self._best_unseen(first + i, model, leaders, seen)
            seen.add(fingerprint(chosen[i]))
            pending = np.concatenate([pending, chosen[i : i + 1]])
        return chosen

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


class Features:
    """Values as points of the model: unit-box genomes, options one-hot over sqrt(2)."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.width = np.where(space.high > space.low, space.high - space.low, 1.0)
        plain = np.ones(space.n_columns, bool)
        plain[space.categorical] = False
        self.plain = np.flatnonzero(plain)
        counts = np.rint((space.high - space.low)[space.categorical]).astype(int)
        self.options = np.repeat(space.categorical, counts)
        self.option = np.concatenate([[], *(np.arange(c) for c in counts)])
        # Which length scale each feature has.
        self.scale_of = np.concatenate([self.plain, self.options])
        self.n_scales = space.n_columns

    def of(self, values: Matrix) -> Matrix:
        genomes = (self.space.genomes_of(values) - self.space.low) / self.width
        hot = (values[:, self.options] == self.option) * math.sqrt(0.5)
        return np.hstack([genomes[:, self.plain], hot])

    def prior(self) -> Matrix:
        return np.append(np.full(self.n_scales, LENGTH[0]), NOISE[0])

    def fit(self, x: Matrix, t: NDArray[np.float64], last: Matrix, afresh: bool) -> Matrix:
        """Parameters of the highest posterior, climbed from the last ones; ``afresh`` from the
        prior's mean too."""
        gaps = np.zeros((self.n_scales, len(x), len(x)))
        for column, scale in enumerate(self.scale_of):
            gaps[scale] += (x[:, column, None] - x[:, column]) ** 2
        flat = gaps.reshape(self.n_scales, -1)

        def loss(theta: Matrix) -> tuple[float, Matrix]:
            return negative_log_posterior(theta, flat, t)

        ends = []
        most = ITERATIONS_AFRESH if afresh else ITERATIONS
        starts = [self.prior(), last] if afresh else [last]
        for start in starts:
            end = descend(loss, start, optimizer="lbfgs", max_iter=most, tol=1e-3)
            ends.append((float(end.fun), np.clip(end.x, -12, 8)))
        best = min(range(len(ends)), key=lambda i: ends[i][0])
        return np.asarray(ends[best][1])


def negative_log_posterior(
    theta: Matrix, gaps: Matrix, t: NDArray[np.float64]
) -> tuple[float, Matrix]:
    """n/2 log(t' K^-1 t / n) + log|K| / 2 less the log prior, and its gradient.

    ``theta``: log length scales, log noise; ``gaps`` (d, n n): squared differences per variable.
    """
    n, d = len(t), len(theta) - 1
    inverse = np.exp(-2 * np.clip(theta[:d], -12, 8))
    r = np.sqrt(inverse @ gaps)
    decay = np.exp(-ROOT5 * r)
    k = ((1 + ROOT5 * r + 5 / 3 * r * r) * decay).reshape(n, n)
    noise = math.exp(min(max(theta[d], -18.0), 8.0))
    k[np.diag_indices(n)] += noise + NUGGET
    lower = np.linalg.cholesky(k)
    half = np.linalg.inv(lower)
    k_inverse = half.T @ half
    alpha = k_inverse @ t
    fit = max(float(t @ alpha), 1e-300)
    away = theta - np.append(np.full(d, LENGTH[0]), NOISE[0])
    spread = np.append(np.full(d, LENGTH[1]), NOISE[1])
    value = 0.5 * n * math.log(fit / n) + float(np.log(np.diag(lower)).sum())
    value += 0.5 * float(((away / spread) ** 2).sum())
    weight = 0.5 * (k_inverse - (n / fit) * np.outer(alpha, alpha))
    slope = (5 / 3 * (1 + ROOT5 * r) * decay) * weight.ravel()
    gradient = np.append((gaps @ slope) * inverse, noise * np.trace(weight))
    return value, gradient + away / spread**2


class Model:
    """The posterior over standardised values at fixed parameters."""

    def __init__(
        self, features: Features, x: Matrix, t: NDArray[np.float64], theta: Matrix
    ) -> None:
        self.weights = np.exp(-theta[: features.n_scales])[features.scale_of]
        self.x = x * self.weights
        k = matern(self.x, self.x)
        k[np.diag_indices(len(x))] += math.exp(theta[-1]) + NUGGET
        self.inverse = np.linalg.inv(k)
        self.alpha = self.inverse @ t
        self.variance = max(float(t @ self.alpha) / len(t), 1e-12)
        self.best = float(t.min())

    def gain(self, x: Matrix) -> NDArray[np.float64]:
        """Logarithm of the expected improvement over the best value."""
        k = matern(x * self.weights, self.x)
        mean = k @ self.alpha
        rest = 1 - ((k @ self.inverse) * k).sum(axis=1)
        deviation = np.sqrt(self.variance * np.maximum(rest, 1e-12))
        return np.asarray(
            log_expected_improvement((self.best - mean) / deviation) + np.log(deviation)
        )


def matern(a: Matrix, b: Matrix) -> Matrix:
    """Matern-5/2 of scaled points: (1 + sqrt5 r + 5/3 r^2) exp(-sqrt5 r), (n, m)."""
    squares = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1) - 2 * (a @ b.T)
    r = np.sqrt(np.maximum(squares, 0.0, out=squares), out=squares)
    r *= ROOT5
    return np.asarray((1 + r + r * r / 3) * np.exp(-r))


def log_expected_improvement(z: NDArray[np.float64]) -> NDArray[np.float64]:
    """log(phi(z) + z Phi(z)), by its series below -6 where the two cancel."""
    near = np.maximum(z, -6.0)
    density = np.exp(-0.5 * near * near) / math.sqrt(2 * math.pi)
    share = 0.5 * np.array([math.erfc(-v / math.sqrt(2)) for v in near.tolist()])
    inside = np.log(np.maximum(density + near * share, 1e-300))
    far = np.minimum(z, -6.0)
    tail = -0.5 * far * far - 0.5 * math.log(2 * math.pi) - 2 * np.log(-far)
    tail += np.log1p(-3 / far**2 + 15 / far**4)
    return np.where(z < -6.0, tail, inside)


def squashed(y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values for the model: bad ones clipped, logarithm of the gap to the best, standardised.

    Failed trials (NaN), infinite and infeasible values count as the worst of the others; without
    a feasible trial the violations take the values' place.
    """
    good = np.isfinite(y) & (y < INFEASIBLE)
    if not good.any():
        y = np.log10(np.where(np.isfinite(y), y, 1e300))
        good = np.ones(len(y), bool)
    best, worst, middle = y[good].min(), y[good].max(), float(np.median(y[good]))
    clipped = np.minimum(np.where(good, y, worst), middle + 2 * (middle - best))
    span = clipped.max() - best
    if not span > 0:
        return np.zeros(len(y))
    t = np.log((clipped - best) / span + 0.05)
    return np.asarray((t - t.mean()) / t.std())
