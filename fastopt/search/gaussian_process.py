"""The model of the ``gp`` engine: a Gaussian process over the points of a search space."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from fastopt import _kernels
from fastopt.optim import descend
from fastopt.search.engine import INFEASIBLE
from fastopt.search.layout import Matrix
from fastopt.search.space import Space

__all__ = ["Features", "Model", "negative_log_posterior", "squashed"]

# Priors of the logarithms, mean and deviation: length scales in shares of the range, noise as a
# share of the variance. These, SPREAD and SOFTENING were chosen on the tuning tasks of
# benchmarks/search_quality.py.
LENGTH = (math.log(0.25), 1.0)
NOISE = (-5.0, 2.0)
BOUND = 12.0  # of every logarithm: beyond it nothing changes any more
TOLERANCE = 1e-3  # slope of the posterior at which a fit ends
NUGGET = 1e-8  # on the diagonal, so that repeated points can be factored
SPREAD = 2.0  # values above median + SPREAD (median - best) are clipped
SOFTENING = (0.05, 0.3)  # of the logarithms: gaps below this share of the range look alike
NORMAL = NormalDist()


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
        self.scale_of = np.concatenate([self.plain, self.options]).astype(np.intp)
        self.n_scales = space.n_columns

    def of(self, values: Matrix) -> Matrix:
        genomes = (self.space.genomes_of(values) - self.space.low) / self.width
        hot = (values[:, self.options] == self.option) * math.sqrt(0.5)
        return np.hstack([genomes[:, self.plain], hot])

    def prior(self) -> Matrix:
        return np.append(np.full(self.n_scales, LENGTH[0]), NOISE[0])

    def fit(
        self,
        x: Matrix,
        t: NDArray[np.float64],
        starts: list[Matrix],
        max_iter: int,
    ) -> Matrix:
        """Log length scales and log noise of the highest posterior, climbed from each start."""
        x, work = (
            np.ascontiguousarray(x),
            np.empty(4 * len(x) ** 2 + (2 * x.shape[1] + 3) * len(x)),
        )

        def loss(theta: Matrix) -> tuple[float, Matrix]:
            return negative_log_posterior(theta, x, t, self.scale_of, work)

        ends = [
            descend(loss, start, optimizer="lbfgs", max_iter=max_iter, tol=TOLERANCE)
            for start in starts
        ]
        best = min(ends, key=lambda end: float(end.fun))
        return np.clip(best.x, -BOUND, BOUND)


def negative_log_posterior(
    theta: Matrix,
    x: Matrix,
    t: NDArray[np.float64],
    scale_of: NDArray[np.intp],
    work: NDArray[np.float64],
) -> tuple[float, Matrix]:
    """n/2 log(t' K^-1 t / n) + log|K| / 2 less the log prior, and its gradient.

    ``theta`` (d + 1,): log length scales and log noise; ``x`` (n, p) features, of which ``f`` has
    length scale ``scale_of[f]``.
    """
    d = len(theta) - 1
    noise = math.exp(min(max(float(theta[d]), -BOUND), BOUND)) + NUGGET
    weights = np.exp(-np.clip(theta[:d], -BOUND, BOUND))[scale_of]
    gradient = np.empty(d + 1)
    value = _kernels.gp.likelihood(gradient, x, t, weights, scale_of, noise, work)
    away = theta - np.append(np.full(d, LENGTH[0]), NOISE[0])
    spread = np.append(np.full(d, LENGTH[1]), NOISE[1])
    value += 0.5 * float(((away / spread) ** 2).sum())
    return value, gradient + away / spread**2


class Model:
    """The posterior over standardised values at fixed parameters.

    Parameters
    ----------
    x : (n, p) float64
        Features of the trials.
    t : (n,) float64
        Their values.
    theta : (d + 1,) float64
        Log length scales and log noise.
    """

    def __init__(
        self,
        features: Features,
        x: Matrix,
        t: NDArray[np.float64],
        theta: Matrix,
    ) -> None:
        n, p = x.shape
        self.weights = np.exp(-theta[: features.n_scales])[features.scale_of]
        self.rows, self.inverse, self.alpha = np.empty((p, n)), np.empty((n, n)), np.empty(n)
        noise = math.exp(theta[-1]) + NUGGET
        x, work = np.ascontiguousarray(x), np.empty(2 * n * n)
        while not _kernels.gp.fit(
            self.inverse, self.alpha, self.rows, x, t, self.weights, noise, work
        ):
            noise *= 10
        self.variance = max(float((t * self.alpha).sum()) / n, 1e-12)
        self.best = float(t.min())

    def gain(self, x: Matrix) -> NDArray[np.float64]:
        """(m,) logarithm of the expected improvement over the best value at (m, p) features."""
        out = np.empty(len(x))
        _kernels.gp.gain(
            out,
            np.ascontiguousarray(x),
            self.rows,
            self.weights,
            self.inverse,
            self.alpha,
            self.variance,
            self.best,
            1,
        )
        return out


def squashed(y: NDArray[np.float64], form: int) -> NDArray[np.float64]:
    """Values for the model, standardised: what is bad does not shape the model near the best.

    Form 0 is the logarithm of the gap to the best, bad values clipped; with it a smooth minimum
    is approached fast. Form 1 is softer and is averaged with the normal score of the rank, which
    keeps the order of all values, so that a valley among bad ones is seen. Failed trials (NaN),
    infinite and infeasible values count as the worst of the others; without a feasible trial the
    violations take the values' place.
    """
    good = np.isfinite(y) & (y < INFEASIBLE)
    if not good.any():
        y = np.log10(np.where(np.isfinite(y), y, 1e300))
        good = np.ones(len(y), bool)
    best, worst, middle = y[good].min(), y[good].max(), float(np.median(y[good]))
    y = np.where(good, y, worst)
    clipped = np.minimum(y, middle + SPREAD * (middle - best))
    span = clipped.max() - best
    if not span > 0:
        return np.zeros(len(y))
    gap = _standardised(np.log((clipped - best) / span + SOFTENING[form]))
    if form == 0:
        return gap
    rows = np.sort(y)
    shares = (rows.searchsorted(y, "left") + rows.searchsorted(y, "right")) / (2 * len(y))
    return _standardised(
        gap + _standardised(np.array([NORMAL.inv_cdf(v) for v in shares.tolist()]))
    )


def _standardised(t: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray((t - t.mean()) / t.std())
