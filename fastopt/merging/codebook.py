"""Similar weights share a value: 1-D k-means to a small codebook."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastopt._arrays import Array, as_array, check_finite, out_for
from fastopt._interrupts import interruptible
from fastopt._options import integer
from fastopt.errors import ArrayError

__all__ = ["Codebook", "cluster_weights"]

_BINS = 2048  # the optimal partition is sought on
_RANKS = 16384  # quantiles among the cuts of the bins that are joined to those
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Codebook:
    """Weights as indices into a table of shared values.

    Attributes
    ----------
    codes : array of uint8 (up to 256 values) or uint16, of the weight's shape
        Index of each weight's value.
    centroids : (k,) array of the weight's dtype
        The shared values, ascending; k <= n_clusters.
    """

    codes: Array
    centroids: Array

    @property
    def nbytes(self) -> int:
        """Bytes once the codes are packed to the bits they need, and the table."""
        bits = max(1, (len(self.centroids) - 1).bit_length())
        return -(-self.codes.size * bits // 8) + int(self.centroids.nbytes)

    def decode(self, out: Any = None) -> Array:
        """centroids[codes], the weights with shared values."""
        result = out_for(out, "out", self.codes.shape, self.centroids.dtype.name)
        np.take(self.centroids, self.codes, out=result, mode="clip")
        return result


def cluster_weights(w: Any, n_clusters: int = 16) -> Codebook:
    """The n_clusters values c and the codes that minimise sum (w - c[code])^2.

    Parameters
    ----------
    w : array of float32 or float64, any shape
        Weights, finite. Not changed.
    n_clusters : int
        Shared values, 1..65536. Fewer come back where w has fewer different ones.

    Returns
    -------
    Codebook
        ``.codes``, ``.centroids``, ``.nbytes``, ``.decode()``.

    Raises
    ------
    DTypeError, ArrayError, OptionError
        A bad argument, NaN or infinity, or an empty array.

    Notes
    -----
    The values are sorted and cut into some ten thousand bins: by rank, by value, by distance from
    the median, the ends one by one, so that spikes, outliers and thin stretches all have bins of
    their own (with fewer different values: one each). Bins are joined to at most 2048 of about
    equal error; the partition of these is the optimum, by dynamic programming with divide and
    conquer; Lloyd's iterations then move its cuts to the exact place. Up to 2048 different values
    the result is the optimum, else the squared error is within 0.1 % of it. Codes are exact: each
    weight gets the nearest value, the lower one on a tie. Deterministic, whatever the scale.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> book = fastopt.cluster_weights(np.array([0.0, 0.1, 5.0, 5.1, 9.0]), n_clusters=3)
    >>> book.centroids.round(2).tolist(), book.codes.tolist()
    ([0.05, 5.05, 9.0], [0, 0, 1, 1, 2])
    """
    a = as_array(w, "w")
    k = integer(n_clusters, "n_clusters", low=1, high=65536)
    if a.size == 0:
        raise ArrayError("w: expected at least one weight")
    check_finite(a, "w")
    ordered = interruptible(50.0 * a.size, np.sort, a, None)
    # a power of two times the weights: squares of any float64 stay in range
    power = -int(np.frexp(max(abs(float(ordered[0])), abs(float(ordered[-1]))))[1])
    ordered = np.ldexp(ordered, power)
    starts = _fine(ordered)
    if len(starts) <= k:
        cuts, k = starts, len(starts)
    else:
        counts, means, spread = _moments(ordered, starts)
        bins = _Bins(counts, means, spread)
        edges = bins.coarse(max(_BINS, k))
        inside = _optimal(bins, edges, k)
        cuts = _lloyd(ordered, starts[_settled(counts, means, edges[inside])])
    counts = np.diff(cuts, append=len(ordered))
    centroids = np.add.reduceat(ordered, cuts, dtype=np.float64) / counts
    centroids = np.unique(np.ldexp(centroids, -power).astype(a.dtype))
    return Codebook(_assign(a, centroids, k), centroids)


def _fine(ordered: Array) -> Array:
    """Starts of the bins of sorted values, each at the first of equal ones."""
    n = len(ordered)
    ranks = [np.arange(n)]
    if n > 4 * _RANKS:
        middle, low, high = ordered[n // 2], ordered[0], ordered[-1]
        reach = np.geomspace(1e-12, 1.0, _RANKS // 4) * max(middle - low, high - middle)
        values = [
            np.linspace(low, high, _RANKS // 2),
            np.linspace(ordered[n // 100], ordered[n - 1 - n // 100], _RANKS // 2),
            middle - reach,
            middle + reach,
        ]
        ends = np.arange(_RANKS // 8)
        ranks = [np.linspace(0, n - 1, _RANKS).astype(np.int64), ends, n - 1 - ends]
        ranks += [np.minimum(np.searchsorted(ordered, v.astype(ordered.dtype)), n - 1)
                  for v in values]  # fmt: skip
    firsts = np.searchsorted(ordered, ordered[np.unique(np.concatenate(ranks))])
    starts: Array = np.unique(firsts)
    return starts


def _moments(ordered: Array, starts: Array) -> tuple[Array, Array, Array]:
    """(count, mean, sum of squares about the mean) of each bin, float64."""
    ends = np.append(starts[1:], len(ordered))
    counts = (ends - starts).astype(np.float64)
    means, spread = np.empty(len(starts)), np.empty(len(starts))
    step = max(1, len(starts) * _PIECE // len(ordered))
    for first in range(0, len(starts), step):
        part = slice(first, first + step)
        begin, end = starts[first], ends[part][-1]
        values = ordered[begin:end].astype(np.float64)
        own = starts[part] - begin
        means[part] = np.add.reduceat(values, own) / counts[part]
        values -= np.repeat(means[part], ends[part] - starts[part])
        spread[part] = np.add.reduceat(values * values, own)
    return counts, means, spread


class _Bins:
    """Squared error of every run of bins from prefix sums.

    The sums begin at the median and grow outwards, about it and in extended precision where the
    machine has it: outliers do not drown the bins between them.
    """

    def __init__(self, counts: Array, means: Array, spread: Array) -> None:
        middle = int(np.searchsorted(np.cumsum(counts), counts.sum() / 2))
        x = means.astype(np.longdouble) - means[middle]

        def outwards(values: Array) -> Array:
            left, right = values[:middle], values[middle:]
            inner = -np.cumsum(left[::-1])[::-1]
            return np.concatenate([inner, np.zeros(1, np.longdouble), np.cumsum(right)])

        self.x, self.c = x, outwards(counts.astype(np.longdouble))
        self.s, self.q = outwards(counts * x), outwards(counts * x * x + spread)

    def cost(self, i: Array, j: Array) -> Array:
        """Squared error of the bins [i, j)."""
        total, count = self.s[j] - self.s[i], self.c[j] - self.c[i]
        result: Array = self.q[j] - self.q[i] - total * total / np.maximum(count, 1)
        return np.maximum(result, 0)

    def coarse(self, most: int) -> Array:
        """Edges of at most that many runs of bins: those of the largest error are cut at their
        mean until none has any or there are enough."""
        edges = np.array([0, len(self.x)])
        while len(edges) <= most:
            i, j = edges[:-1], edges[1:]
            error = np.where(j - i > 1, self.cost(i, j), 0)
            order = np.argsort(-error, kind="stable")[: most + 1 - len(edges)]
            order = order[error[order] > 0.1 * error.max()]
            if not len(order):
                break
            i, j = i[order], j[order]
            mean = (self.s[j] - self.s[i]) / (self.c[j] - self.c[i])
            cut = np.clip(np.searchsorted(self.x, mean, side="right"), i + 1, j - 1)
            edges = np.unique(np.concatenate([edges, cut]))
        return edges


def _optimal(bins: _Bins, edges: Array, k: int) -> Array:
    """Numbers of the edges where the k runs of least squared error start; O(k n log n), each level
    of the divide and conquer (the best last start is monotone) done at once."""
    n = len(edges) - 1
    if k >= n:
        return np.arange(n)

    def cost(i: Array, j: Array) -> Array:
        return bins.cost(edges[i], edges[j])

    ends = np.arange(n + 1)
    best = cost(np.zeros(n + 1, np.int64), ends)
    chosen = np.zeros((k, n + 1), np.int64)
    for layer in range(1, k):
        new = np.full(n + 1, np.inf, np.longdouble)
        pick = chosen[layer]
        low, high = np.array([layer + 1]), np.array([n])
        first, last = np.array([layer]), np.array([n - 1])
        while len(low):
            mid = (low + high) // 2
            width = np.minimum(last, mid - 1) - first + 1
            offset = np.cumsum(width) - width
            start = np.repeat(first - offset, width) + np.arange(width.sum())
            total = best[start] + cost(start, np.repeat(mid, width))
            least = np.minimum.reduceat(total, offset)
            hit = np.flatnonzero(total == np.repeat(least, width))
            owner = np.searchsorted(offset, hit, side="right") - 1
            at = hit[np.unique(owner, return_index=True)[1]]
            new[mid], pick[mid] = least, start[at]
            left, right = low < mid, mid < high
            low, high, first, last = (
                np.concatenate([low[left], mid[right] + 1]),
                np.concatenate([mid[left] - 1, high[right]]),
                np.concatenate([first[left], pick[mid][right]]),
                np.concatenate([pick[mid][left], last[right]]),
            )
        best = new
    starts = np.zeros(k, np.int64)
    end = n
    for layer in range(k - 1, 0, -1):
        end = starts[layer] = chosen[layer, end]
    return starts


def _settled(counts: Array, means: Array, cuts: Array) -> Array:
    """Lloyd's iterations on the bins until none moves."""
    sums = means * counts
    for _ in range(50):
        centroids = np.add.reduceat(sums, cuts) / np.add.reduceat(counts, cuts)
        moved = _nearest(means, centroids)
        if np.array_equal(moved, cuts):
            break
        cuts = moved
    return cuts


def _lloyd(ordered: Array, cuts: Array) -> Array:
    """The same on the sorted values themselves, from cuts that are nearly right."""
    for _ in range(20):
        counts = np.diff(cuts, append=len(ordered))
        centroids = np.add.reduceat(ordered, cuts, dtype=np.float64) / counts
        moved = _nearest(ordered, centroids)
        if np.array_equal(moved, cuts):
            break
        cuts = moved
    return cuts


def _nearest(ordered: Array, centroids: Array) -> Array:
    """Where the values nearest to each centroid start."""
    middles = (centroids[1:] + centroids[:-1]) / 2
    starts = np.unique(np.concatenate([[0], np.searchsorted(ordered, middles, side="right")]))
    kept: Array = starts[starts < len(ordered)]
    return kept


def _assign(a: Array, centroids: Array, k: int) -> Array:
    """Index of the nearest centroid, the lower on a tie."""
    wide = centroids.astype(np.float64)
    middles = wide[:-1] / 2 + wide[1:] / 2
    flat = a.reshape(-1)
    codes = np.empty(flat.size, np.uint8 if k <= 256 else np.uint16)
    for start in range(0, flat.size, _PIECE):
        part = flat[start : start + _PIECE]
        codes[start : start + _PIECE] = np.searchsorted(middles, part, side="left")
    result: Array = codes.reshape(a.shape)
    return result
