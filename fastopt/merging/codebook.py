"""Similar weights share a value: 1-D k-means to a small codebook."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fastopt import _threads
from fastopt._arrays import Array, as_array, check_finite, out_for
from fastopt._kernels import cluster
from fastopt._options import integer
from fastopt.errors import ArrayError

__all__ = ["Codebook", "cluster_weights"]

_KEYS = 1 << 16  # leading halves of the keys of float32
_FINE = 8192  # bins that carry most of the error are made this fine, at least
_FINE_PER_VALUE = 64  # and this many per shared value
_POINTS = 2048  # points for the optimal partition, at least
_POINTS_PER_VALUE = 32
_MOST_BINS = 1 << 18
_OPTIMAL_UP_TO = 256  # shared values; more begin as quantiles of the points
_SAMPLE = 1 << 15
_GAP = 70  # binary orders: the 53 bits of float64 and 17 more


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
        """Bytes of the codes, packed to the bits that they need, and of the table."""
        bits = max(1, (len(self.centroids) - 1).bit_length())
        return -(-self.codes.size * bits // 8) + int(self.centroids.nbytes)

    def decode(self, out: Any = None) -> Array:
        """centroids[codes], the weights with shared values."""
        result = out_for(out, "out", self.codes.shape, self.centroids.dtype.name)
        np.take(self.centroids, self.codes, out=result, mode="clip")
        return result


def cluster_weights(w: Any, n_clusters: int = 16, *, threads: int | None = None) -> Codebook:
    """The n_clusters values c and the codes that minimise sum (w - c[code])^2.

    Parameters
    ----------
    w : array of float32 or float64, any shape
        Weights, finite. Not changed.
    n_clusters : int
        Shared values, 1..65536. Fewer come back where w has fewer different ones.
    threads : int, optional
        Threads; the result does not depend on them.

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
    Weights are counted in bins that are finest where the error of the best codebook lies
    (count^1/3 width^2/3; Panter and Dite, 1951), whatever their exponents. The partition of at
    most 2048 joint bins (32 for each value, up to 8192) is the optimum, by dynamic programming
    with divide and conquer; Lloyd's iterations on all bins follow. Up to that many different
    weights the result is the optimum itself. Beyond 256 values the partition begins at equal
    shares of the error instead.
    Codes are exact: each weight gets the nearest value, the lower one on a tie. Deterministic.
    Cost: three reads of the weights.

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
    used = _threads.resolve(threads, flat.size)
    scale = _Scale.of(flat)
    far = _far(flat, k)
    if far is not None:
        rest = flat[np.abs(flat) < np.abs(far).min()]
        near = cluster_weights(rest, k - len(far), threads=threads).centroids
        both = np.sort(np.concatenate([far, near]))
        return Codebook(_codes(a, both, k, scale, used), both)
    values = _few(flat, max(_POINTS, k), scale, used)
    if values is not None:
        k = min(k, len(values))
        if len(values) > k:
            points = _Points.of_values(values, flat, scale, used)
            values = _values_of(points, points.partition(k), scale, a.dtype)
    else:
        fine = _Points.of_bins(flat, max(_FINE, _FINE_PER_VALUE * k), scale, used)
        coarse = fine.joined(max(_POINTS, min(_POINTS_PER_VALUE * k, 4 * _POINTS)))
        if k <= _OPTIMAL_UP_TO:
            cuts = coarse.starts[coarse.partition(min(k, len(coarse.count)))]
        else:
            cuts = fine.joined(k).starts
        values = _values_of(fine, fine.lloyd(cuts), scale, a.dtype)
    return Codebook(_codes(a, values, k, scale, used), values)


def _far(flat: Array, k: int) -> Array | None:
    """The different weights above a gap of _GAP binary orders, if fewer than k; else None.

    Two of them differ by more than the others are large times 2^17, so in a best codebook each has
    a value of its own; the others are clustered on a scale of their own.
    """
    size = np.abs(flat[:: max(1, flat.size // 4096)])
    top = max(abs(float(flat.min())), abs(float(flat.max())))
    if float(np.median(size)) > math.ldexp(top, -_GAP):
        return None
    exponent = np.frexp(flat)[1]
    found = np.unique(exponent[flat != 0])
    gaps = np.flatnonzero(np.diff(found) > _GAP)
    if not len(gaps):
        return None
    values = np.unique(flat[(exponent > found[gaps[-1]]) & (flat != 0)])
    return values if len(values) < k else None


class _Scale(NamedTuple):
    """y = x * unit - centre: numbers of size 1, finest near the middle of the weights."""

    unit: float
    centre: float

    @classmethod
    def of(cls, flat: Array) -> _Scale:
        sample = flat[:: max(1, flat.size // 4096)]
        top = max(abs(float(flat.min())), abs(float(flat.max())))
        unit = 2.0 ** -np.clip(np.frexp(top)[1], -1000, 1000) if top else 1.0
        return cls(float(unit), float(np.median(sample) * unit))

    def keys(self, x: Array) -> Array:
        """As the kernel's: uint32 in the order of the numbers."""
        y = (x.astype(np.float64) * self.unit - self.centre).astype(np.float32) + np.float32(0)
        u = y.view(np.uint32)
        keys: Array = np.where(u >> np.uint32(31), ~u, u | np.uint32(1 << 31))
        return keys


def _numbers(keys: Array) -> Array:
    """The y of keys, in float64."""
    k = keys.astype(np.uint32)
    u = np.where(k >> np.uint32(31), k ^ np.uint32(1 << 31), ~k)
    return u.view(np.float32).astype(np.float64)


def _spans(top: Array) -> Array:
    """From the first to the last number of each leading half; 0 for those of no number."""
    with np.errstate(invalid="ignore"):
        span = _numbers((top << 16) + 0xFFFF) - _numbers(top << 16)
    result: Array = np.where(np.isfinite(span), span, 0.0)
    return result


@dataclass(frozen=True, slots=True, eq=False)
class _Points:
    """Sorted points: how many weights each stands for and their sum (of y)."""

    count: Array
    total: Array
    starts: Array  # the first of the finer points that each one joins

    @classmethod
    def of_values(cls, values: Array, flat: Array, scale: _Scale, threads: int) -> _Points:
        codes = _codes(flat, values, len(values), scale, threads)
        count = np.bincount(codes, minlength=len(values)).astype(np.float64)
        y = values.astype(np.float64) * scale.unit - scale.centre
        return cls(count, count * y, np.arange(len(y)))

    @classmethod
    def of_bins(cls, flat: Array, n: int, scale: _Scale, threads: int) -> _Points:
        """About n bins, or as many as there are leading halves of keys."""
        sample = scale.keys(flat[:: max(1, flat.size // _SAMPLE)])
        lead, rest = sample >> np.uint32(16), (sample & np.uint32(0xFFFF)) / 65536.0
        counted = np.bincount(lead, minlength=_KEYS)
        top = np.flatnonzero(counted)
        seen = counted[top].astype(np.float64)
        mean, square = (np.bincount(lead, v, _KEYS)[top] / seen for v in (rest, rest * rest))
        # what part of its span a half uses: that of a uniform distribution of this variance
        spread = np.sqrt(12 * np.maximum(square - mean * mean, 0.0))
        spread = np.where(seen > 1, spread, 1.0).clip(2.0**-16, 1)
        share = np.cbrt(seen * (spread * _spans(top)) ** 2)
        bits = np.zeros(_KEYS, np.int64)
        if share.any():
            with np.errstate(divide="ignore"):
                fine = np.ceil(np.log2(share / spread * (n / share.sum())))
            bits[top] = np.clip(fine, 0, 16)
        while (1 << bits).sum() > _KEYS + _MOST_BINS:
            bits = np.maximum(bits - 1, 0)
        first = np.concatenate([[0], np.cumsum(1 << bits)])
        mapped = (first[:-1] << 5 | (16 - bits)).astype(np.uint32)
        count, low = np.zeros((2, int(first[-1])), np.int64)
        cluster.tally(count, low, flat, *scale, mapped, threads)
        used = np.flatnonzero(count)
        entry = np.repeat(np.arange(_KEYS), 1 << bits)[used]
        total = _numbers(entry << 16) * count[used] + _spans(entry) / 0xFFFF * low[used]
        return cls(count[used].astype(np.float64), total, np.arange(len(used)))

    def joined(self, n: int) -> _Points:
        """At most n runs of points of equal shares of the error."""
        if len(self.count) <= n:
            return self
        gap = np.diff(self.total / self.count)  # isolated points cover more than their bins
        width = (np.append(gap, gap[-1]) + np.insert(gap, 0, gap[0])) / 2
        share = np.cbrt(self.count * width**2)
        large = np.zeros(len(share), np.bool_)
        for _ in range(50):  # a point with more than one share is its own run
            unit = share[~large].sum() / max(n - int(large.sum()), 1)
            if not (share[~large] > unit).any():
                break
            large |= share > unit
        share = np.where(large, unit, share)
        rank = (np.cumsum(share) - share) * (n / share.sum()) + 1e-9  # whole ones stay whole
        starts = np.flatnonzero(np.diff(np.minimum(rank, n - 1).astype(np.int64), prepend=-1))
        count, total = (np.add.reduceat(x, starts) for x in (self.count, self.total))
        return _Points(count, total, starts)

    def partition(self, k: int) -> Array:
        """Starts of the k runs of least squared error.

        Fewer than k points that are a million times larger than all others get a run each: their
        error would be above that of all the rest, which is lost in sums with them.
        """
        n, size = len(self.count), np.abs(self.total / self.count)
        order = np.argsort(-size, kind="stable")[:k]
        outer = np.flatnonzero(size[order[:-1]] > 1e6 * size[order[1:]])
        if len(outer) and n > k:
            far = np.sort(order[: outer[-1] + 1])  # at both ends
            left = int((far < order[outer[-1] + 1]).sum())
            right = n - (len(far) - left)
            inner = _Points(self.count[left:right], self.total[left:right], self.starts)
            runs = left + inner.partition(k - len(far))
            return np.concatenate([np.arange(left), runs, np.arange(right, n)])
        centre = self.total.sum() / self.count.sum()
        starts = np.zeros(k, np.int64)
        count = np.concatenate([[0.0], np.cumsum(self.count)])
        # sums from the mean on, which loses no digits to it
        total = np.concatenate([[0.0], np.cumsum(self.total - centre * self.count)])
        chosen = np.empty((k, n + 1), np.int32)
        cluster.partition(starts, count, total, chosen, np.empty((2, n + 1)))
        return starts

    def lloyd(self, cuts: Array) -> Array:
        """Lloyd's iterations on the points until none moves."""
        means = self.total / self.count
        for _ in range(50):
            values = np.add.reduceat(self.total, cuts) / np.add.reduceat(self.count, cuts)
            middles = (values[1:] + values[:-1]) / 2
            moved = np.unique(np.concatenate([[0], np.searchsorted(means, middles, side="right")]))
            moved = moved[moved < len(means)]
            if len(moved) == len(cuts) and (moved == cuts).all():
                break
            cuts = moved
        return cuts


def _few(flat: Array, most: int, scale: _Scale, threads: int) -> Array | None:
    """The different weights, ascending, if there are at most so many; else None."""
    if flat.size <= _SAMPLE:
        values = np.unique(flat)
        return values if len(values) <= most else None
    seen = np.unique(flat[:: flat.size // _SAMPLE])
    if len(seen) > min(most, 1 << 15):
        return None
    found = np.take(seen, _codes(flat, seen, len(seen), scale, threads))
    for start in range(0, flat.size, _SAMPLE):  # what the sample did not see
        part = slice(start, start + _SAMPLE)
        rest = flat[part][found[part] != flat[part]]
        if len(rest):
            seen = np.union1d(seen, rest)
            if len(seen) > most:
                return None
    return seen


def _values_of(points: _Points, cuts: Array, scale: _Scale, dtype: Any) -> Array:
    """The means of runs, each once."""
    y = np.add.reduceat(points.total, cuts) / np.add.reduceat(points.count, cuts)
    return np.unique(((y + scale.centre) / scale.unit).astype(dtype))


def _codes(a: Array, values: Array, k: int, scale: _Scale, threads: int) -> Array:
    """Index of the nearest value, the lower one on a tie."""
    wide = values.astype(np.float64)
    middles = wide[:-1] / 2 + wide[1:] / 2
    # A leading half of keys is split into so many bins as keep most middles apart.
    keys = scale.keys(middles)
    top = (keys >> np.uint32(16)).astype(np.int64)
    bits = np.where(np.bincount(top, minlength=_KEYS) > 0, 6, 0)
    first = np.concatenate([[0], np.cumsum(1 << bits)])
    mapped = (first[:-1] << 5 | (16 - bits)).astype(np.uint32)
    at = first[top] + ((keys & np.uint32(0xFFFF)) >> (16 - bits[top]).astype(np.uint32))
    inside = np.bincount(at, minlength=int(first[-1]))
    below = np.cumsum(inside) - inside
    codes = np.empty(a.size, np.uint8 if k <= 256 else np.uint16)
    span = (below << 16 | inside).astype(np.uint32)
    cluster.assign(codes, a.reshape(-1), *scale, mapped, span, middles, threads)
    result: Array = codes.reshape(a.shape)
    return result
