"""Similar weights share a value: 1-D k-means to a small codebook."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastopt._arrays import Array, as_array, check_finite, out_for
from fastopt._options import integer
from fastopt.errors import ArrayError

__all__ = ["Codebook", "cluster_weights"]

# Bins the optimal partition is sought on; the 65,536 bins of the histogram are joined to as many.
_BINS = 2048
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
    Up to 2048 different values (or bins) the partition is the optimum, by dynamic programming
    with divide and conquer; with more, it is the optimum over a histogram of the top 16 bits of
    float32, joined to 2048 bins, then Lloyd's iterations on all 65,536 bins. Codes are exact: each
    weight gets the nearest value, the lower one on a tie. Deterministic. float64 input is
    clustered on its float32 rounding and assigned exactly.

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
    flat = a.reshape(-1)
    values = np.unique(flat) if flat.size <= 65536 else None
    if values is not None and len(values) <= max(_BINS, k):
        counts = np.bincount(np.searchsorted(values, flat), minlength=len(values)).astype(float)
        sums = values * counts
        if len(values) <= k:
            return Codebook(_assign(a, values, len(values)), values)
        cuts = _optimal(counts, sums, sums * values, k)
    else:
        counts, sums, squares = _histogram(flat)
        coarse = _join(counts)
        c, s, q = (np.add.reduceat(x, coarse) for x in (counts, sums, squares))
        cuts = coarse[_optimal(c, s, q, min(k, len(coarse)))]
        cuts = _lloyd(counts, sums, cuts)
    centroids = np.add.reduceat(sums, cuts) / np.add.reduceat(counts, cuts)
    centroids = np.unique(centroids.astype(a.dtype))
    codes = _assign(a, centroids, k)
    return Codebook(codes, centroids)


def _histogram(flat: Array) -> tuple[Array, Array, Array]:
    """(count, sum, sum of squares) over the non-empty bins of the top 16 bits, ascending."""
    counts = np.zeros(65536)
    sums, squares = np.zeros(65536), np.zeros(65536)
    for start in range(0, flat.size, _PIECE):
        with np.errstate(over="ignore"):
            part = flat[start : start + _PIECE].astype(np.float32)
        top = (part.view(np.uint32) >> np.uint32(16)).astype(np.intp)
        # ascending order: negative numbers reversed below the positive ones
        top = np.where(top >= 32768, 65535 - top, top + 32768)
        exact = flat[start : start + _PIECE].astype(np.float64)
        counts += np.bincount(top, minlength=65536)
        sums += np.bincount(top, exact, minlength=65536)
        squares += np.bincount(top, exact * exact, minlength=65536)
    used = counts > 0
    return counts[used], sums[used], squares[used]


def _join(counts: Array) -> Array:
    """Starts of at most _BINS runs of bins of about equal count."""
    if len(counts) <= _BINS:
        return np.arange(len(counts))
    rank = (np.cumsum(counts) - counts) * (_BINS / counts.sum())
    starts: Array = np.flatnonzero(np.diff(rank.astype(np.int64), prepend=-1))
    return starts


def _optimal(counts: Array, sums: Array, squares: Array, k: int) -> Array:
    """Starts of the k runs of least squared error; O(k n log n), each level of the divide and
    conquer (the best last start is monotone) done at once."""
    n = len(counts)
    if k >= n:
        return np.arange(n)
    # centred prefix sums: no cancellation where the mean is large
    middle = sums.sum() / counts.sum()
    c = np.concatenate([[0.0], np.cumsum(counts)])
    s = np.concatenate([[0.0], np.cumsum(sums - middle * counts)])
    q = np.concatenate([[0.0], np.cumsum(squares - middle * (2 * sums - middle * counts))])

    def cost(i: Array, j: Array) -> Array:
        """Squared error of the run [i, j)."""
        total: Array = s[j] - s[i]
        result: Array = q[j] - q[i] - total * total / np.maximum(c[j] - c[i], 1e-300)
        return np.maximum(result, 0.0)

    ends = np.arange(n + 1)
    best = cost(np.zeros(n + 1, np.int64), ends)
    chosen = np.zeros((k, n + 1), np.int64)
    for layer in range(1, k):
        new = np.full(n + 1, np.inf)
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


def _lloyd(counts: Array, sums: Array, cuts: Array) -> Array:
    """Lloyd's iterations on the bins until no bin moves."""
    means = sums / counts
    for _ in range(50):
        centroids = np.add.reduceat(sums, cuts) / np.add.reduceat(counts, cuts)
        middles = (centroids[1:] + centroids[:-1]) / 2
        moved = np.unique(np.concatenate([[0], np.searchsorted(means, middles, side="right")]))
        moved = moved[moved < len(means)]
        if len(moved) == len(cuts) and (moved == cuts).all():
            break
        cuts = moved
    return cuts


def _assign(a: Array, centroids: Array, k: int) -> Array:
    """Index of the nearest centroid, the lower on a tie."""
    wide = centroids.astype(np.float64)
    middles = wide[:-1] + (wide[1:] - wide[:-1]) / 2
    flat = a.reshape(-1)
    codes = np.empty(flat.size, np.uint8 if k <= 256 else np.uint16)
    for start in range(0, flat.size, _PIECE):
        part = flat[start : start + _PIECE]
        codes[start : start + _PIECE] = np.searchsorted(middles, part, side="left")
    result: Array = codes.reshape(a.shape)
    return result
