"""Whether a drop keeps the budget on rows that the search never saw, and how sure that is.

Paired per row: the same rows go through the original and the candidate. Without a confidence the
drop plus one standard error must keep the budget. With one, a fixed sequence of tests from the
safest candidate to the smallest (Learn then Test, Angelopoulos et al. 2021, section 3.2) bounds
the chance that the returned model drops more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fastopt._arrays import Array
from fastopt._random import Seed, generator_of
from fastopt.compression.data import Rows
from fastopt.compression.metric import Metric, Outputs

__all__ = ["Drop", "betting_p_value", "bootstrap_p_value", "drop_of", "rows_needed"]

_GROUPS = 20  # parts of the delete-a-group jackknife
_RESAMPLES = 400
_BETS = 64


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

    def drop(index: Array) -> float:
        part, reference = rows.select(index), original.select(index)
        return metric.score(reference, part, reference) - metric.score(
            ours.select(index), part, reference
        )

    everything = np.arange(n)
    value = drop(everything)
    if n < 2 or not value <= limit:
        return Drop(value, math.inf, n)
    groups = np.array_split(everything, min(n, _GROUPS))
    left = np.array([drop(np.setdiff1d(everything, g)) for g in groups])
    g = len(groups)
    error = math.sqrt((g - 1) / g * float(((left - left.mean()) ** 2).sum()))
    return Drop(value, error, n)


def betting_p_value(differences: Array, limit: float) -> float:
    """p-value of "the mean drop exceeds ``limit``" for per-row drops in -1..1.

    The capital of a gambler who bets on small drops, averaged over a grid of stakes, is under that
    hypothesis at least 1/p with probability at most p (Waudby-Smith and Ramdas, "Estimating means
    of bounded random variables by betting", JRSS B 2024, section 4 and the diversified bets of
    appendix B).

    Parameters
    ----------
    differences : (n,) array in -1..1
        Loss of the candidate minus loss of the original.
    limit : float
        The budget, below 1.

    Examples
    --------
    >>> import numpy as np
    >>> betting_p_value(np.zeros(300), 0.01) < 0.06 < betting_p_value(np.zeros(200), 0.01)
    True
    """
    stakes = np.arange(1, _BETS + 1) / _BETS / (1.0 - limit)
    gains = np.log1p(np.outer(stakes, limit - differences).clip(-1 + 1e-12)).sum(axis=1)
    top = float(gains.max())
    capital = top + math.log(float(np.exp(gains - top).mean()))
    return min(1.0, math.exp(-capital))


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
        part, reference = rows.select(index), original.select(index)
        drop = metric.score(reference, part, reference) - metric.score(
            ours.select(index), part, reference
        )
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
    return math.ceil(-math.log(1.0 - confidence) / float(gain.max()))
