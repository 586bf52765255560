"""How near a candidate is to losing decisions, also where few rows show a loss.

A model of a few hundred rows may lose no decision at all while it is close to losing many. The
difference between a candidate's outputs and the original's is therefore made larger, k = 2 and 4
times and in both directions, and the metric is asked again: where decisions flip, the loss grows
in proportion to k as long as margins are spread evenly, so loss(k) / k estimates the loss out of
k times as many events. Probabilities are moved on the scale of their logits, where saturated ones
have a margin, too. Where the loss is a smooth function of the outputs it grows like k^2, which the
losses at 1 and 2 tell.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from fastopt._arrays import Array
from fastopt.compression.confirm import Drop, jackknife
from fastopt.compression.data import Rows
from fastopt.compression.metric import LEAST, Metric, Outputs, log_odds

__all__ = ["Margins", "margins_of", "moved"]

_FACTORS = (1.0, 2.0, 4.0)
_ERRORS = 2.0  # standard errors that count


@dataclass(frozen=True)
class Margins:
    """Losses when the difference to the original is k times as large.

    Attributes
    ----------
    losses : (3,) array
        The mean loss of both directions for k = 1, 2, 4; the first one is at least the plain drop.
    std_error : float
        Of :attr:`value`.
    power : float
        The loss grows like k**power.
    n : int
        Rows.
    least : float
        The plain drop minus its standard error, below which no estimate goes.
    """

    losses: Array
    std_error: float
    power: float
    n: int
    least: float = -math.inf

    @property
    def value(self) -> float:
        """The estimate of the loss (see :func:`estimate`)."""
        return max(self.least, estimate(self.losses, self.power))

    @property
    def cautious(self) -> float:
        """The estimate plus two standard errors."""
        return self.value + _ERRORS * self._error

    @property
    def scattered(self) -> float:
        """The same, with a standard error of value / sqrt(n) at least.

        Losses of rows are taken to scatter as much as they are large, as exponential ones do: a
        few rows that happen to agree do not say how much others differ.
        """
        return self.value + max(_ERRORS * self._error, max(self.value, 0.0) / math.sqrt(self.n))

    @property
    def _error(self) -> float:
        return self.std_error if math.isfinite(self.std_error) else 0.0

    def joined(self, other: Margins) -> Margins:
        """For the rows of both."""
        n = self.n + other.n
        errors = [m.std_error * m.n for m in (self, other) if math.isfinite(m.std_error)]
        return Margins(
            (self.n * self.losses + other.n * other.losses) / n,
            math.hypot(*errors) / n,
            min(self.power, other.power),
            n,
            (self.n * self.least + other.n * other.least) / n,
        )


def estimate(losses: Array, power: float) -> float:
    """The mean of loss(k) / k**power; the last of them where it is larger.

    Losses at small k are few events, whose chance the mean evens out. Where they grow faster than
    expected, rows that are next in line to flip are not among these few.
    """
    each = losses / np.array(_FACTORS) ** power
    return float(max(each.mean(), each[-1]))


def margins_of(
    metric: Metric,
    rows: Rows,
    original: Outputs,
    ours: Outputs,
    drop: Drop,
    axes: Mapping[str, int],
) -> Margins:
    """The margins of a candidate whose plain drop on these rows is ``drop``.

    The standard error is a delete-a-group jackknife's.

    Parameters
    ----------
    axes : mapping
        Axis of the classes, for outputs that are distributions.
    """
    n = len(rows)
    plain = Margins(np.full(len(_FACTORS), drop.value), drop.std_error, 0.0, n, drop.value)
    if not all(a.dtype.kind == "f" for a in original.parts[0].values()):
        return plain  # decisions themselves: there is nothing to enlarge
    scale = {name: _scale(name, original, axes) for name in original.parts[0]}
    further = {
        k: [moved(original, ours, sign * k, scale, axes) for sign in (1, -1)] for k in _FACTORS
    }

    def losses(index: Array | None) -> Array:
        found = []
        for k, both in further.items():
            drops = [metric.drop(original, o, rows, index) for o in both]
            found.append(max(drops[0], sum(drops) / 2) if k == 1 else sum(drops) / 2)
        return np.array(found)

    found = losses(None)
    if not np.isfinite(found).all():
        return plain
    power = 1.0
    if "values" in scale.values() and found[0] > 0 and found[1] > 0:
        power = min(2.0, max(1.0, math.log2(found[1] / found[0])))
    if n < 2:
        return Margins(found, math.inf, power, n)
    error = jackknife(n, lambda index: estimate(losses(index), power))
    return Margins(found, error, power, n, drop.value - drop.std_error)


def moved(
    original: Outputs,
    ours: Outputs,
    k: float,
    scale: Mapping[str, str],
    axes: Mapping[str, int],
) -> Outputs:
    """Outputs whose difference to the original's is ``k`` times that of ``ours``.

    Parameters
    ----------
    scale : mapping
        For each output the scale on which it is moved: "classes", "odds" or "values".
    """
    parts = [
        {name: _moved(a, part[name], k, scale[name], axes.get(name, -1)) for name, a in p.items()}
        for p, part in zip(original.parts, ours.parts, strict=True)
    ]
    return replace(ours, parts=parts, logits={})


def _scale(name: str, original: Outputs, axes: Mapping[str, int]) -> str:
    """ "classes" or "odds" where all values are probabilities, else "values"."""
    if all(a.size and a.min() >= 0 and a.max() <= 1 for a in (p[name] for p in original.parts)):
        return "classes" if name in axes else "odds"
    return "values"


def _moved(theirs: Array, ours: Array, k: float, scale: str, axis: int) -> Array:
    if theirs.shape != ours.shape:
        return ours
    if scale == "values":
        further: Array = theirs + np.asarray(k, theirs.dtype) * (ours - theirs)
        return further
    if scale == "odds":
        a, b = (log_odds(x) for x in (theirs, ours))
        found: Array = 0.5 + 0.5 * np.tanh(0.5 * (a + np.float32(k) * (b - a)))
        return found.astype(theirs.dtype)
    a, b = (np.log(np.maximum(x, LEAST)) for x in (theirs, ours))
    z = a + np.asarray(k, a.dtype) * (b - a)
    z = np.exp(z - z.max(axis=axis, keepdims=True))
    shares: Array = z / z.sum(axis=axis, keepdims=True)
    return shares.astype(theirs.dtype)
