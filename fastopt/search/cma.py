"""CMA-ES: a normal distribution that learns the shape of the objective, with restarts.

Equation numbers are those of Hansen, "The CMA evolution strategy: a tutorial" (arXiv 1604.00772).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastopt import _kernels
from fastopt._options import choice, integer, number
from fastopt._random import Seed
from fastopt.search.engine import Engine
from fastopt.search.layout import Matrix
from fastopt.search.margin import Categories, keep_margin
from fastopt.search.space import Space

__all__ = ["CMA"]

SEPARABLE_ABOVE = 200  # columns from which C is diagonal: O(d) instead of O(d^2) per trial
RESAMPLES = 10  # tries to draw a sample whose every coordinate is at most EDGE outside
EDGE = 0.03  # share of the range at each bound over which the box is rounded
NORMAL, START = 21, 22  # streams of draws
CONDITION = 1e14
HISTORY = 20_000  # generations that the stagnation test looks back at


@dataclass(frozen=True)
class Rates:
    """Weights and learning rates of d columns and n samples."""

    weights: Matrix  # (n,), negative for the worse half (eq. 49-53)
    mu: int
    mu_eff: float
    c_sigma: float
    d_sigma: float
    c_c: float
    c_1: float
    c_mu: float
    chi: float  # expected length of a standard normal vector


@lru_cache(maxsize=64)
def rates_of(d: int, n: int, separable: bool) -> Rates:
    """Equations 49 to 58; the diagonal form learns (d + 2) / 3 times as fast (Ros 2008)."""
    raw = math.log((n + 1) / 2) - np.log(np.arange(1, n + 1))  # 49
    mu = max(1, n // 2)
    good, bad = raw[:mu], raw[mu:]
    mu_eff = good.sum() ** 2 / (good**2).sum()
    mu_eff_bad = bad.sum() ** 2 / (bad**2).sum() if len(bad) and bad.any() else 0.0
    c_c = (4 + mu_eff / d) / (d + 4 + 2 * mu_eff / d)  # 56
    c_1 = 2 / ((d + 1.3) ** 2 + mu_eff)  # 57
    c_mu = min(1 - c_1, 2 * (0.25 + mu_eff + 1 / mu_eff - 2) / ((d + 2) ** 2 + mu_eff))  # 58
    if separable:
        c_1 = min(0.5, c_1 * (d + 2) / 3)
        c_mu = min(1 - c_1, c_mu * (d + 2) / 3)
    c_sigma = (mu_eff + 2) / (d + mu_eff + 5)  # 55
    d_sigma = 1 + 2 * max(0.0, math.sqrt((mu_eff - 1) / (d + 1)) - 1) + c_sigma  # 55
    limit = min(
        1 + c_1 / c_mu,  # 50
        1 + 2 * mu_eff_bad / (mu_eff + 2),  # 51
        (1 - c_1 - c_mu) / (d * c_mu),  # 52
    )
    scale = limit / np.abs(bad).sum() if mu_eff_bad else 0.0
    weights = np.concatenate([good / good.sum(), bad * scale])  # 53
    weights.flags.writeable = False
    chi = math.sqrt(d) * (1 - 1 / (4 * d) + 1 / (21 * d * d))
    return Rates(weights, mu, float(mu_eff), c_sigma, d_sigma, c_c, c_1, c_mu, chi)


def far(x: Matrix) -> NDArray[np.intp]:
    """Rows with a coordinate outside [-EDGE, 1 + EDGE]."""
    return np.flatnonzero(((x < -EDGE) | (x > 1 + EDGE)).any(axis=1))


def boxed(x: Matrix) -> Matrix:
    """Any real number into [0, 1]: the identity but near the bounds, where the slope falls to 0.

    Between -EDGE and EDGE it is (x + EDGE)^2 / 4 EDGE, at the upper bound likewise, further out
    the mirror image: an optimum on a bound is then an inner one of a smooth function (pycma's
    BoundTransform).
    """
    half = 1 + 2 * EDGE
    beyond = (x < -EDGE) | (x > 1 + EDGE)
    y = np.where(beyond, half - np.abs((x + EDGE) % (2 * half) - half) - EDGE, x)
    low, high = y + EDGE, 1 + EDGE - y
    return np.where(
        y < EDGE, low * low / (4 * EDGE), np.where(y > 1 - EDGE, 1 - high * high / (4 * EDGE), y)
    )


def unboxed(v: Matrix) -> Matrix:
    """The x in [-EDGE, 1 + EDGE] that ``boxed`` makes v of."""
    low = 2 * np.sqrt(EDGE * np.clip(v, 0, EDGE)) - EDGE
    high = 1 + EDGE - 2 * np.sqrt(EDGE * np.clip(1 - v, 0, EDGE))
    return np.where(v < EDGE, low, np.where(v > 1 - EDGE, high, v))


class CMA(Engine):
    """Active CMA-ES with restarts: reals by a full covariance matrix, integers and options with
    margins.

    Parameters
    ----------
    space : Space or dict of variables
    x0 : dict, list of dicts, or matrix for a numeric space, optional
        Trials to begin with; the distribution starts at the best of them. Without it, a uniform
        sample of ``population`` trials is the beginning.
    sigma : float
        First standard deviation, as a share of each variable's range.
    population : int, optional
        Samples of one generation; 4 + 3 ln d by default, twice that with integers or options.
    restarts : "ipop", "bipop" or "none"
        A run that has converged is followed by one with twice the population at another place;
        "bipop" spends as many trials on small runs with short steps.
    separable : bool, optional
        Keep only the diagonal of C; by default above 200 columns.
    seed : int, SeedSequence or Generator

    Notes
    -----
    The box: a sample far outside is drawn again, up to 10 times, then mirrored; the last 3 % of
    the range at each bound are rounded so that an optimum on a bound looks like one inside
    (``boxed``). Integers are rounded samples whose marginal probability of leaving the
    present value is kept above 1 / (n d), options are drawn from their own probabilities
    (Hamano et al., CatCMA with margin, arXiv 2504.07884). Trials that were not asked are taken
    as samples, long steps shortened (Hansen, arXiv 1110.4181).
    Cost: O(d^2) per trial and one eigen-decomposition every few generations.

    Examples
    --------
    >>> from fastopt import Space, Vector
    >>> algo = CMA(Space(x=Vector(4, -5, 5)), seed=0)
    >>> while algo.n_told < 1500:
    ...     X = algo.ask(algo.wants())
    ...     algo.tell(X, (X @ np.array([1, 10, 100, 1000.0])) ** 2 + (X**2).sum(axis=1))
    >>> algo.fun < 1e-10
    True
    """

    method = "cma"
    proposals = 2
    _state_names = (
        "_mean",
        "_sigma",
        "_c",
        "_basis",
        "_axes",
        "_path_sigma",
        "_path_c",
        "_stretch",
        "_odds",
        "_generation",
        "_decomposed",
        "_size",
        "_waiting",
        "_told_genomes",
        "_told_y",
        "_best_of",
        "_median_of",
        "_run",
        "_large",
        "_spent",
        "_small",
        "_first_sigma",
        "_opening",
        "_first",
    )

    def __init__(
        self,
        space: Space | Mapping[str, Any],
        *,
        x0: Any = None,
        sigma: float = 0.2,
        population: int | None = None,
        restarts: str = "ipop",
        separable: bool | None = None,
        seed: Seed = 0,
    ) -> None:
        super().__init__(space, seed=seed)
        d = self.space.n_columns
        self.sigma = number(sigma, "sigma", low=0, low_open=True, high=10)
        if population is not None:
            population = integer(population, "population", low=2)
        if population is None:
            population = 4 + int(3 * math.log(d))  # table 1
            if not self.space.identity and len(self.space.ordered) + len(self.space.categorical):
                population *= 2  # ranks of rounded points tell less (benchmarks/search_quality.py)
        self.population = population
        self.restarts = choice(restarts, "restarts", ("ipop", "bipop", "none"))
        self.separable = d > SEPARABLE_ABOVE if separable is None else bool(separable)
        self._first: Matrix = np.empty((0, d))
        if x0 is not None:
            self._first = self.space.parse(x0, "x0")
        self._opening = len(self._first) or self.population  # trials before the first run
        self._width: Matrix = np.where(
            self.space.high > self.space.low, self.space.high - self.space.low, 1.0
        )
        self._free: Matrix = (self.space.high > self.space.low).astype(np.float64)
        self._categories = Categories(self.space)
        self._waiting: Matrix = np.empty((0, 2 * d))  # values and genome of what was asked
        self._told_genomes: Matrix = np.empty((0, d))
        self._told_y: NDArray[np.float64] = np.empty(0)
        self._run = 0
        self._large = 0  # runs of the doubling kind
        self._spent = 0  # trials of the doubling runs less those of the small ones
        self._small = 0  # whether the present run is a small one
        self._begin(np.full(d, 0.5), self.sigma, self.population)

    def options(self) -> dict[str, Any]:
        return {
            "sigma": self.sigma,
            "population": self.population,
            "restarts": self.restarts,
            "separable": self.separable,
        }

    def wants(self) -> int:
        if self._asked < self._opening:
            return self._opening - self._asked
        if self._told < self._opening:
            return self._size
        left = self._size - len(self._told_y) - len(self._waiting)
        return left if left > 0 else self._size

    def propose(self, k: int) -> Matrix:
        first, self._asked = self._asked, self._asked + k
        if self._told < self._opening:
            values = self.space.values_of(self._random(first, k))
            given = self._first[first : first + k]
            values[: len(given)] = given
            return values
        genomes = self._sample(first, k)
        values = self.space.values_of(self.space.low + boxed(genomes) * self._width)
        self._waiting = np.concatenate([self._waiting, np.hstack([values, genomes])])
        return values

    def absorb(self, values: Matrix, y: NDArray[np.float64]) -> None:
        if self._told <= self._opening:
            if self._told >= self._opening and self._best is not None:
                self._mean = self._unit(self._best[None])[0]
            return
        genomes = self._genomes_told(values)
        self._told_genomes = np.concatenate([self._told_genomes, genomes])
        self._told_y = np.concatenate([self._told_y, np.where(np.isnan(y), np.inf, y)])
        if len(self._told_y) >= self._size:
            genomes, y = self._told_genomes, self._told_y
            self._told_genomes, self._told_y = genomes[:0], y[:0]
            self._spent += -len(y) if self._small else len(y)
            if y.min() < math.inf:
                self._update(genomes, y)
            self._after(y)

    @property
    def converged(self) -> int:
        """How many runs have ended."""
        return self._run

    # --- one run

    def _begin(self, mean: Matrix, sigma: float, size: int) -> None:
        d = len(mean)
        self._mean, self._sigma, self._first_sigma = mean, sigma, sigma
        self._size = size
        self._c = np.ones(d) if self.separable else np.eye(d)
        self._basis = np.empty((0, d)) if self.separable else np.eye(d)
        self._axes = np.ones(d)  # square roots of the eigenvalues of C
        self._path_sigma, self._path_c = np.zeros(d), np.zeros(d)
        self._stretch = np.ones(d)  # extra standard deviation that margins ask for
        self._odds = self._categories.uniform()
        self._generation = self._decomposed = 0
        self._best_of: list[float] = []
        self._median_of: list[float] = []

    def _sample(self, first: int, k: int) -> Matrix:
        """(k, d) samples in the unit box; sample i is a function of (seed, first + i)."""
        x: Matrix = self._mean + self._steps(first, k, NORMAL)
        outside = far(x)
        for attempt in range(1, RESAMPLES + 1):
            if not len(outside):
                break
            again: Matrix = self._mean + self._steps(first, k, NORMAL + 64 * attempt, outside)
            x[outside] = again
            outside = outside[far(again)]
        if self._categories:
            self._categories.draw(x, self._odds, self._uniform(first, k, START))
        return x

    def _steps(
        self, first: int, k: int, stream: int, rows: NDArray[np.intp] | None = None
    ) -> Matrix:
        """sigma N(0, C) (eq. 38-40), rows ``first`` + ``rows`` of a stream of draws."""
        d = len(self._mean)
        u = self._uniform(first, k, stream, 2 * ((d + 1) // 2))
        if rows is not None:
            u = u[rows]
        step, scale = np.empty((len(u), d)), self._sigma * self._stretch * self._free
        _kernels.cma.sample(step, u, scale, self._axes, self._basis, np.empty(d))
        return step

    def _update(self, genomes: Matrix, y: NDArray[np.float64]) -> None:
        """One generation: mean, paths, step size and C from n samples."""
        n, d = genomes.shape
        r = rates_of(d, n, self.separable)
        genomes = genomes[np.argsort(y, kind="stable")]
        if self._categories:
            self._categories.learn(self._odds, genomes, r.weights[: r.mu])
            genomes[:, self._categories.columns] = self._mean[self._categories.columns]
        scale = self._sigma * self._stretch
        self._generation += 1
        length = _kernels.cma.update(
            self._c,
            self._mean,
            self._path_sigma,
            self._path_c,
            (genomes - self._mean) / scale,
            r.weights,
            scale,
            self._axes,
            self._basis,
            np.empty(2 * d),
            r.mu,
            r.mu_eff,
            r.c_sigma,
            r.c_c,
            r.c_1,
            r.c_mu,
            r.chi,
            1 - (1 - r.c_sigma) ** (2 * self._generation),
        )
        self._sigma *= math.exp(min(1.0, r.c_sigma / r.d_sigma * (length / r.chi - 1)))  # 44
        gap = 1 / (10 * d * (r.c_1 + r.c_mu))
        if self._generation - self._decomposed >= gap:
            self._decompose()
        keep_margin(self, n)

    def _decompose(self) -> None:
        self._decomposed = self._generation
        if self.separable:
            self._axes = np.sqrt(np.maximum(self._c, 1e-300))
            return
        d = len(self._axes)
        _kernels.cma.decompose(self._basis, self._axes, self._c, np.empty(2 * d * d + 3 * d))

    # --- between runs

    def _after(self, y: NDArray[np.float64]) -> None:
        self._best_of.append(float(y.min()))
        self._median_of.append(float(np.sort(y)[len(y) // 2]))
        if self.restarts == "none" or not self._ended():
            return
        self._run += 1
        rest = self._uniform(self._run, 1, START + 1)[0]
        mean, u = rest, self._uniform(self._run, 2, START + 2)[:, 0]
        if self.restarts == "bipop" and self._spent > 0:
            self._small = 1
            big = self.population << self._large
            size = int(self.population * (0.5 * big / self.population) ** (u[0] ** 2))
            self._begin(mean, self.sigma * 10 ** (-2 * u[1]), max(2, size))
            return
        self._small = 0
        self._large += 1
        self._begin(mean, self.sigma, self.population << self._large)

    def _ended(self) -> bool:
        """The usual criteria (Hansen 2016, B.3), made independent of the objective's scale."""
        d, n = len(self._mean), self._size
        best = self._best_of
        recent = 10 + math.ceil(30 * d / n)
        last = best[-recent:]
        spread, first = max(last) - min(last), self._median_of[0] - best[0]
        ulp = 4 * np.finfo(float).eps * abs(best[-1])
        if not math.isfinite(best[-1]):
            return len(best) > recent
        if len(best) >= recent and (spread <= ulp or spread <= 1e-15 * abs(first)):
            return True
        deviation = self._sigma * np.sqrt(self._c if self.separable else np.diag(self._c))
        if (deviation * self._stretch < 1e-12 * self._first_sigma).all():
            return True
        if self._axes.max() > math.sqrt(CONDITION) * self._axes.min():
            return True
        if self._sigma * self._axes.max() > 1e4 * self._first_sigma:
            return True
        back = min(HISTORY, int(120 + 30 * d / n + 0.2 * len(best)))  # stagnation
        if len(best) > back:
            third = max(1, int(0.3 * back))
            old, new = best[-back : -back + third], best[-third:]
            older, newer = self._median_of[-back : -back + third], self._median_of[-third:]
            if np.median(new) >= np.median(old) and np.median(newer) >= np.median(older):
                return True
        return False

    # --- what was told

    def _unit(self, values: Matrix) -> Matrix:
        return unboxed((self.space.genomes_of(values) - self.space.low) / self._width)

    def _genomes_told(self, values: Matrix) -> Matrix:
        """The samples behind ``values``; a trial that was not asked is its own, shortened."""
        d, k = self.space.n_columns, len(values)
        waiting = self._waiting
        if len(waiting) >= k and np.array_equal(waiting[:k, :d], values):  # in order: the usual
            self._waiting = waiting[k:]
            return waiting[:k, d:]
        genomes = self._unit(values)
        place = {row.tobytes(): i for i, row in reversed(list(enumerate(waiting[:, :d])))}
        found = [place.pop(row.tobytes(), -1) for row in values]
        for i, j in enumerate(found):
            if j >= 0:
                genomes[i] = waiting[j, d:]
            else:
                genomes[i] = self._shortened(genomes[i])
        self._waiting = np.delete(waiting, [j for j in found if j >= 0], axis=0)
        return genomes

    def _shortened(self, genome: Matrix) -> Matrix:
        """Injection (arXiv 1110.4181): Mahalanobis length cut at sqrt(d) + 2 d / (d + 2)."""
        d = len(genome)
        step = (genome - self._mean) / (self._sigma * self._stretch)
        white = step / self._axes if self.separable else (step @ self._basis) / self._axes
        length = float(np.linalg.norm(white))
        limit = math.sqrt(d) + 2 * d / (d + 2)
        shortened: Matrix = self._mean + (genome - self._mean) * min(
            1.0, limit / max(length, 1e-300)
        )
        return shortened
