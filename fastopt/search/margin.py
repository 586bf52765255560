"""Margins: what keeps the integers and options of a CMA-ES from freezing at one value.

Source: Hamano et al., CMA-ES with margin (GECCO 2022) and CatCMA with margin (arXiv 2504.07884).
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fastopt.search.layout import Matrix
from fastopt.search.space import Space

if TYPE_CHECKING:
    from fastopt.search.cma import CMA

__all__ = ["Categories", "keep_margin"]

NORMAL = NormalDist()


def keep_margin(run: CMA, n: int) -> None:
    """In place: mean and stretch of integer columns so that each side keeps its probability.

    With alpha = 1 / (n d): from a value at the edge of its range the other values keep alpha;
    from one inside, lower and higher values keep alpha / 2 each. The two quantiles fix mean and
    deviation (Hamano et al. 2022, section 4).
    """
    space = run.space
    o = space.ordered
    if not len(o):
        return
    d = len(run._mean)
    alpha = min(0.4, 1.0 / (n * d))
    low, width = space.low[o], run._width[o]
    genome = np.clip(low + run._mean[o] * width, space.low[o], space.high[o])
    row = space.low.copy()[None]
    row[0, o] = genome
    middle = space.genomes_of(space.values_of(row))[:, o]
    half = 0.5 * space.cell(middle, o)[0]
    lower, upper = (middle[0] - half - low) / width, (middle[0] + half - low) / width
    diagonal = run._c[o] if run.separable else np.diag(run._c)[o]
    plain = run._sigma * np.sqrt(np.maximum(diagonal, 1e-300))
    for i, j in enumerate(o):
        if not run._free[j]:
            continue
        deviation = plain[i] * run._stretch[j]
        m = min(max(run._mean[j], 0.0), 1.0)
        at_low, at_high = lower[i] <= 1e-9, upper[i] >= 1 - 1e-9
        if at_low and at_high:
            continue
        if at_low or at_high:
            reach = deviation * -NORMAL.inv_cdf(alpha)
            m = max(m, upper[i] - reach) if at_low else min(m, lower[i] + reach)
        else:
            down = NORMAL.cdf((lower[i] - m) / deviation)
            up = NORMAL.cdf((m - upper[i]) / deviation)
            if down < alpha / 2 or up < alpha / 2:
                new_down, new_up = max(down, alpha / 2), max(up, alpha / 2)
                stay = max(1e-12, 1 - down - up)
                excess = new_down + new_up + stay - 1
                room = new_down + new_up + stay - 3 * alpha / 2
                new_down -= excess * (new_down - alpha / 2) / room
                new_up -= excess * (new_up - alpha / 2) / room
                a = NORMAL.inv_cdf(min(new_down, 0.5 - 1e-9))
                b = -NORMAL.inv_cdf(min(new_up, 0.5 - 1e-9))
                deviation = (upper[i] - lower[i]) / (b - a)
                m = lower[i] - deviation * a
        run._mean[j] = m
        run._stretch[j] = deviation / plain[i]


class Categories:
    """Option probabilities of the categorical columns, one row per column.

    ``odds`` is (columns, 2 most + 2), most the largest number of options: probabilities, the path
    of their gradients, and gamma and delta of the adaptive step size (Akimoto et al., ASNG, ICML
    2019), which are the same in each row.
    """

    def __init__(self, space: Space) -> None:
        self.columns: NDArray[np.intp] = space.categorical
        self.counts = np.rint(space.high - space.low)[self.columns].astype(int)
        self.most = int(self.counts.max()) if len(self.counts) else 0
        self.inside = np.arange(self.most) < self.counts[:, None]
        spread = 1 - 0.73 ** (1 / max(len(self.counts), 1))
        self.floor = np.minimum(spread / np.maximum(self.counts - 1, 1), 1 / self.counts)[:, None]

    def __bool__(self) -> bool:
        return len(self.columns) > 0

    def uniform(self) -> Matrix:
        odds = np.zeros((len(self.columns), 2 * self.most + 2))
        odds[:, : self.most] = self.inside / self.counts[:, None]
        odds[:, -1] = 1.0
        return odds

    def draw(self, genomes: Matrix, odds: Matrix, u: Matrix) -> None:
        """In place: columns of ``genomes`` become the middle of a drawn option's cell."""
        up_to = np.cumsum(odds[:, : self.most], axis=1)
        drawn = np.minimum((u[:, self.columns, None] >= up_to).sum(axis=2), self.counts - 1)
        genomes[:, self.columns] = (drawn + 0.5) / self.counts

    def learn(self, odds: Matrix, genomes: Matrix, weights: Matrix) -> None:
        """In place: a natural gradient step along the best samples, then the margin."""
        q, path, (gamma, delta) = odds[:, : self.most], odds[:, self.most : -2], odds[0, -2:]
        chosen = np.floor(genomes[: len(weights), self.columns] * self.counts)
        hot = np.arange(self.most) == np.clip(chosen, 0, self.counts - 1)[..., None]
        gradient = np.where(self.inside, np.tensordot(weights, hot, axes=1) - q, 0.0)
        slope = gradient / np.sqrt(np.maximum(q, 1e-12))
        norm = float(np.sqrt((slope**2).sum())) + 1e-30
        q += min(delta / norm, 1.0) * gradient
        beta = min(1.0, delta / math.sqrt(max(1, (self.counts - 1).sum())))
        path *= 1 - beta
        path += math.sqrt(beta * (2 - beta)) * slope / norm
        gamma = (1 - beta) ** 2 * gamma + beta * (2 - beta)
        delta *= math.exp(min(1.0, beta * ((path**2).sum() / 1.5 - gamma)))
        odds[:, -2:] = gamma, min(max(delta, 1e-6), 1.0)
        np.maximum(q, np.where(self.inside, self.floor, 0.0), out=q)
        above = np.where(self.inside, q - self.floor, 0.0)
        excess = q.sum(axis=1, keepdims=True) - 1
        q -= above * excess / np.maximum(above.sum(axis=1, keepdims=True), 1e-300)
