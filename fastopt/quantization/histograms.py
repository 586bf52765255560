"""Observers that keep a histogram of the stream and read ranges from it."""

from __future__ import annotations

import numpy as np

from fastopt import _threads
from fastopt._arrays import Array
from fastopt._kernels import histogram
from fastopt._options import choice, integer, number
from fastopt.errors import FormatError, OptionError
from fastopt.quantization.clipping import entropy_range, mse_range
from fastopt.quantization.observers import SERIAL_BELOW, Observer, pieces_of

__all__ = ["HistogramObserver", "PercentileObserver"]

_LOWEST = -126  # smallest exponent of a bin's width: its inverse is a finite float32


class HistogramObserver(Observer):
    """Histogram of everything seen; the range minimises the squared error or the KL divergence.

    Parameters
    ----------
    method : {"mse", "entropy"}
        "mse": least sum of (x - dequantised x)^2. "entropy": least Kullback-Leibler divergence
        between the histogram and its quantised self (the TensorRT method).
    bins : int
        A power of two from 64 to 65536, half on each side of zero.
    axis : int, optional
        One histogram per index of this axis.

    Attributes
    ----------
    counts_ : (channels, bins) int64
        Values per bin.
    exponent_ : (channels,) int32
        log2 of a bin's width.
    min_, max_ : (channels,) float64
        The range, exact.
    count : int
        Batches seen.

    Notes
    -----
    Widths are powers of two and bins are aligned to zero, so growing the range adds neighbouring
    bins and nothing is interpolated: the state is a function of the values alone, whatever the
    batches, their order, the merging and the thread count, bit for bit. The larger side of zero
    has between bins / 4 and bins / 2 bins in use. Memory is 8 bytes a bin and channel; time about
    1 ns per element. Sources: TensorRT's entropy calibration (S. Migacz, "8-bit inference with
    TensorRT", GTC 2017).

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.quantization import HistogramObserver
    >>> x = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    >>> x[0] = 40.0                                    # one outlier
    >>> low, high = HistogramObserver("mse").partial_fit(x).range("int4")
    >>> bool(high < 4)
    True
    """

    _CONFIG = ("method", "bins", "axis")
    _ARRAYS = ("min_", "max_", "exponent_", "counts_")

    def __init__(self, method: str = "mse", bins: int = 4096, axis: int | None = None) -> None:
        super().__init__(axis)
        self.method = choice(method, "method", ("mse", "entropy"))
        self._allocate(bins)

    def _allocate(self, bins: int) -> None:
        self.bins = integer(bins, "bins", low=64, high=65536)
        if self.bins & (self.bins - 1):
            raise OptionError(f"bins: expected a power of two, got {bins}")
        self.exponent_ = np.full(self.min_.shape, _LOWEST, np.int32)
        self.counts_ = np.zeros((self.min_.size, self.bins), np.int64)

    def _absorb(
        self, a: Array, layout: tuple[int, int, int], low: Array, high: Array, threads: int | None
    ) -> None:
        # smallest width with max|x| / width < bins / 2: frexp gives max|x| < 2^k
        _, k = np.frexp(np.maximum(-low, high))
        needed = np.maximum(k - (self.bins.bit_length() - 2), _LOWEST).astype(np.int32)
        needed[np.maximum(-low, high) == 0] = _LOWEST
        pieces = pieces_of(a, layout)
        if self.count:
            exponent = np.maximum(self.exponent_, needed)
            counts = _coarser(self.counts_, exponent - self.exponent_)
            if counts is self.counts_ and len(pieces) > 1:
                counts = counts.copy()  # Ctrl-C between two pieces leaves the old ones
        else:
            exponent, counts = needed, np.zeros((low.size, self.bins), np.int64)
        inv = np.ldexp(1.0, -exponent)
        for piece, shape in pieces:
            used = _threads.resolve(threads, piece.size, SERIAL_BELOW)
            histogram.count(counts, piece, inv, *shape, used)
        self.exponent_, self.counts_ = exponent, counts
        self._widen(low, high)

    def _merge(self, other: HistogramObserver) -> None:
        exponent = np.maximum(self.exponent_, other.exponent_)
        self.counts_ = _coarser(self.counts_, exponent - self.exponent_) + _coarser(
            other.counts_, exponent - other.exponent_
        )
        self.exponent_ = exponent
        self._widen(other.min_, other.max_)

    def _range(self, dtype: str, symmetric: bool) -> tuple[Array, Array]:
        if self.method == "entropy":
            return entropy_range(
                self.counts_, self.width_, self.min_, self.max_, dtype, symmetric=symmetric
            )
        return mse_range(
            self._centres(), self.counts_, self.min_, self.max_, dtype, symmetric=symmetric
        )

    @property
    def width_(self) -> Array:
        """Width of a bin, (channels,) float64, a power of two."""
        result: Array = np.ldexp(1.0, self.exponent_)
        return result

    def _centres(self) -> Array:
        result: Array = np.multiply.outer(self.width_, np.arange(self.bins) - self.bins / 2 + 0.5)
        return result

    def _check(self) -> None:
        super()._check()
        if (self.counts_ < 0).any() or (np.abs(self.exponent_.astype(np.int64)) > 1100).any():
            raise FormatError("observer state: negative counts or an impossible bin width")


class PercentileObserver(HistogramObserver):
    """Range that holds a percentage of the values: (100 - p) / 2 % are cut on each side.

    Parameters
    ----------
    percentile : float
        p in (0, 100]; the symmetric range holds p % of |x|.
    bins : int
        A power of two from 64 to 65536.
    axis : int, optional
        One range per index of this axis.

    Notes
    -----
    Read from the histogram of :class:`HistogramObserver`, linearly inside a bin: at most one bin
    off, at most 4 / bins of max|x|. 100 gives the exact minimum and maximum.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.quantization import PercentileObserver
    >>> x = np.arange(-1000, 1001, dtype=np.float32)
    >>> low, high = PercentileObserver(99).partial_fit(x).range(symmetric=False)
    >>> round(float(low)), round(float(high))
    (-990, 990)
    """

    _CONFIG = ("percentile", "bins", "axis")

    def __init__(
        self, percentile: float = 99.99, bins: int = 4096, axis: int | None = None
    ) -> None:
        Observer.__init__(self, axis)
        self.percentile = number(percentile, "percentile", low=0.0, high=100.0, low_open=True)
        self._allocate(bins)

    def _range(self, dtype: str, symmetric: bool) -> tuple[Array, Array]:
        keep = self.percentile / 100.0
        half = self.bins // 2
        if symmetric:
            top = np.maximum(-self.min_, self.max_)
            folded = self.counts_[:, half:] + self.counts_[:, :half][:, ::-1]
            high = np.minimum(_quantile(folded, keep) * self.width_, top)
            return -high, high
        cut = (1.0 - keep) / 2.0
        high = (_quantile(self.counts_, 1.0 - cut) - half) * self.width_
        low = (half - _quantile(self.counts_[:, ::-1], 1.0 - cut)) * self.width_
        low = np.clip(low, self.min_, self.max_)
        return low, np.maximum(low, np.clip(high, self.min_, self.max_))


def _quantile(counts: Array, keep: float) -> Array:
    """Position, in bins from the left, below which a fraction ``keep`` of each row lies."""
    total = np.cumsum(counts, axis=1, dtype=np.float64)
    wanted = keep * total[:, -1]
    index = np.minimum((total < wanted[:, None]).sum(axis=1), counts.shape[1] - 1)
    rows = np.arange(len(counts))
    inside = counts[rows, index].astype(np.float64)
    before = total[rows, index] - inside
    result: Array = index + np.clip((wanted - before) / np.maximum(inside, 1.0), 0.0, 1.0)
    return result


def _coarser(counts: Array, steps: Array) -> Array:
    """Histograms of bins 2^steps times as wide, neighbours added about the middle; ``counts``
    itself where there is nothing to do."""
    if not steps.any():
        return counts
    result: Array = counts.copy()
    half = counts.shape[1] // 2
    for c in np.flatnonzero(steps):
        k = min(int(steps[c]), half.bit_length() - 1)  # from here on all is in the middle two
        part = counts[c].reshape(-1, 1 << k).sum(axis=1)
        result[c] = 0
        result[c, half - len(part) // 2 : half + len(part) // 2] = part
    return result
