"""Whether a drop keeps the budget on rows that the search never saw, and how sure that is.

Paired per row: the same rows go through the original and the candidate. Without a confidence the
drop plus one standard error must keep the budget. With one, a fixed sequence of tests from the
safest candidate to the smallest (Learn then Test, Angelopoulos et al. 2021, section 3.2) bounds
the chance that the returned model drops more.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fastopt._arrays import Array
from fastopt._random import Seed, generator_of
from fastopt.compression.data import Rows
from fastopt.compression.metric import Metric, Outputs

__all__ = ["Drop", "bootstrap_p_value", "drop_of", "jackknife", "p_value", "rows_needed"]

_LEAST_GAIN = 1e-300  # per row; the rows that it asks for are still a number

_GROUPS = 10  # parts of the delete-a-group jackknife
_RESAMPLES = 400
_BETS = 64
# Half of the first capital is staked on no loss at all, which certifies with the fewest rows.
_WEIGHTS = np.r_[np.full(_BETS - 1, 0.5 / (_BETS - 1)), 0.5]


@dataclass(frozen=True)
class Drop:
    """A paired drop and its uncertainty.

    Attributes
    ----------
    value, std_error : float
        The drop of the metric; its standard error, infinite for one row.
    n : int
        Rows.
    losses : (n,) array or None
        Loss of the candidate minus loss of the original per row, where the metric is a mean.
    """

    value: float
    std_error: float
    n: int
    losses: Array | None = None

    @property
    def margin(self) -> float:
        """One standard error, widened as Student's t where rows are few; infinite for one row."""
        few = 0.84 / math.pow(max(self.n - 1, 1), 1.2)
        return self.std_error * (1.0 + few)

    @property
    def interval(self) -> tuple[float, float]:
        """Value plus and minus 1.96 standard errors."""
        return self.value - 1.96 * self.std_error, self.value + 1.96 * self.std_error


def drop_of(
    metric: Metric, rows: Rows, original: Outputs, ours: Outputs, limit: float = math.inf
) -> Drop:
    """The drop on these rows: per-row differences for a mean, else a delete-a-group jackknife.

    Not finite where the metric is not finite; the standard error is infinite for one row, and
    not computed where the drop exceeds ``limit``.
    """
    n = len(rows)
    mine, theirs = metric.losses(ours, rows, original), metric.losses(original, rows, original)
    if mine is not None and theirs is not None:
        differences = mine.astype(np.float64) - theirs
        spread = float(differences.std(ddof=1)) / math.sqrt(n) if n > 1 else math.inf
        return Drop(float(differences.mean()), spread, n, differences)

    value = metric.drop(original, ours, rows, None)
    if n < 2 or not value <= limit:
        return Drop(value, math.inf, n)
    return Drop(value, jackknife(n, lambda index: metric.drop(original, ours, rows, index)), n)


def jackknife(n: int, statistic: Callable[[Array], float]) -> float:
    """The standard error of a statistic of n rows, groups of them left out in turn."""
    everything = np.arange(n)
    groups = np.array_split(everything, min(n, _GROUPS))
    left = np.array([statistic(np.setdiff1d(everything, part)) for part in groups])
    g = len(groups)
    return math.sqrt((g - 1) / g * float(((left - left.mean()) ** 2).sum()))


def p_value(differences: Array, limit: float) -> float:
    """p-value of "the mean drop is ``limit`` or more" for per-row drops in -1..1.

    Exact (binomial) where every row is kept or lost; else by betting: the capital of a gambler
    who stakes on small drops, averaged over fixed stakes, exceeds 1/p with probability at most p
    if the hypothesis holds (Waudby-Smith and Ramdas, "Estimating means of bounded random
    variables by betting", JRSS B 2024, section 4; the average over stakes as in appendix B).

    Parameters
    ----------
    differences : (n,) array in -1..1
        Loss of the candidate minus loss of the original.
    limit : float
        The budget, 0 < limit < 1.

    Examples
    --------
    >>> import numpy as np
    >>> p_value(np.zeros(299), 0.01) < 0.05 < p_value(np.zeros(298), 0.01)
    True
    """
    n = len(differences)
    if np.isin(differences, (0.0, 1.0)).all():
        lost = round(float(differences.sum()))
        return sum(_binomial(n, k, limit) for k in range(lost + 1))
    stakes = np.arange(1, _BETS + 1) / _BETS / (1.0 - limit)
    gains = np.log1p(np.outer(stakes, limit - differences).clip(-1 + 1e-12)).sum(axis=1)
    gains += np.log(_WEIGHTS)
    top = float(gains.max())
    return min(1.0, math.exp(-top - math.log(float(np.exp(gains - top).sum()))))


def _binomial(n: int, k: int, p: float) -> float:
    log = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.exp(log + k * math.log(p) + (n - k) * math.log1p(-p))


def bootstrap_p_value(
    metric: Metric, rows: Rows, original: Outputs, ours: Outputs, limit: float, seed: Seed
) -> float:
    """Share of resamples of the rows whose drop exceeds ``limit`` (percentile bootstrap).

    An approximation, unlike the betting bound: for metrics that are no mean over rows.
    """
    rng = generator_of(seed)
    n, above = len(rows), 0
    for _ in range(_RESAMPLES):
        index = np.sort(rng.integers(0, n, n))
        drop = metric.drop(original, ours, rows, index)
        above += not drop <= limit
    return (above + 1) / (_RESAMPLES + 1)


def rows_needed(limit: float, confidence: float, drop: float = 0.0) -> int:
    """Rows that would certify ``limit`` if the drop per row stayed what it is.

    With k of n rows lost, the best stake gains (1 - drop) log(1 + s limit) +
    drop log(1 - s (1 - limit)) per row; log(1 / (1 - confidence)) is needed.
    """
    if drop >= limit or limit <= 0:
        return 0
    stakes = np.linspace(0, 1, 400)[1:-1] / (1.0 - limit)
    gain = (1 - drop) * np.log1p(stakes * limit) + drop * np.log1p(-stakes * (1 - limit))
    needed = -math.log(1.0 - confidence) / max(float(gain.max()), _LEAST_GAIN)
    return math.ceil(needed)
