"""Observers: the range of a stream of activations, in memory that does not depend on the stream.

``observer.partial_fit(batch)`` adds a batch, ``a + b`` merges two observers (files, workers, days)
and ``observer.qparams("int8")`` answers with a scale and a zero point. With ``axis`` every index
of that axis has its own range.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np

from fastopt import _threads
from fastopt._arrays import Array, as_array
from fastopt._kernels import histogram
from fastopt._options import choice, integer, number
from fastopt.errors import ArrayError, ConcurrentUseError, DTypeError, FormatError, OptionError

if TYPE_CHECKING:
    from fastopt.quantization.qparams import QParams

__all__ = [
    "HistogramObserver",
    "MinMaxObserver",
    "MovingAverageMinMaxObserver",
    "PercentileObserver",
]

_SERIAL_BELOW = 1 << 17  # elements; counting costs about 1 ns each
_PIECE = 1 << 26  # elements between two chances for Ctrl-C
_LOWEST = -126  # smallest exponent of a bin's width: its inverse is a finite float32

_Self = TypeVar("_Self", bound="_Observer")


class _Observer:
    """What the observers share: the gate, the channels, merging, plain-data state."""

    _CONFIG: ClassVar[tuple[str, ...]] = ("axis",)
    _ARRAYS: ClassVar[tuple[str, ...]] = ("min_", "max_")

    axis: int | None
    count: int
    min_: Array
    max_: Array

    def __init__(self, axis: int | None) -> None:
        self.axis = None if axis is None else integer(axis, "axis")
        self.count = 0
        self.min_ = np.zeros(1 if axis is None else 0)
        self.max_ = self.min_.copy()
        self._busy = threading.Lock()

    def __repr__(self) -> str:
        options = ", ".join(f"{k}={getattr(self, k)!r}" for k in self._CONFIG)
        return f"{type(self).__name__}({options}, count={self.count})"

    # ---------------------------------------------------------------- adding data
    def partial_fit(self: _Self, x: Any, y: Any = None, *, threads: int | None = None) -> _Self:
        """In place: add a batch to what was seen.

        Parameters
        ----------
        x : array of any shape, float32 or float64 (others are converted)
            Activations. Not kept, not changed. With ``axis``, the length of that axis must be the
            same in every batch.
        y : ignored
            For pipelines.
        threads : int, optional
            Thread count; the result does not depend on it.

        Returns
        -------
        observer
            Itself, so calls chain.

        Raises
        ------
        ArrayError
            NaN or infinity, or another number of channels; nothing was added.
        ConcurrentUseError
            Another thread is inside a call of this object.
        """
        a = as_array(x, "x", cast="float32")
        outer, channels, inner = _layout(a, self.axis)
        if self.count and channels != self.min_.size:
            raise ArrayError(f"x: expected {self.min_.size} channels, got {channels}")
        if not self._busy.acquire(blocking=False):
            raise ConcurrentUseError(
                f"{type(self).__name__}: another thread is updating this object"
            )
        try:
            if a.size:
                low, high = _extent(a, outer, channels, inner, threads)
                self._absorb(a, (outer, channels, inner), low, high, threads)
                self.count += 1
        finally:
            self._busy.release()
        return self

    fit = partial_fit

    def _absorb(
        self, a: Array, layout: tuple[int, int, int], low: Array, high: Array, threads: int | None
    ) -> None:
        """Take in a checked batch and its extent; nothing here can fail half-way."""
        raise AssertionError("every observer has its own rule")  # pragma: no cover

    def _widen(self, low: Array, high: Array) -> None:
        if self.count:
            low, high = np.minimum(self.min_, low), np.maximum(self.max_, high)
        self.min_, self.max_ = low, high

    def __add__(self: _Self, other: _Self) -> _Self:
        """The observer of both objects' data (``other`` after ``self``); neither is changed."""
        if type(other) is not type(self):
            return NotImplemented
        for key in self._CONFIG:
            if getattr(self, key) != getattr(other, key):
                raise OptionError(
                    f"other: expected {key}={getattr(self, key)!r}, got {getattr(other, key)!r}"
                )
        if not self.count or not other.count:
            return (self if self.count else other).copy()
        if self.min_.size != other.min_.size:
            raise ArrayError(f"other: expected {self.min_.size} channels, got {other.min_.size}")
        result = self.copy()
        result._merge(other)
        result.count += other.count
        return result

    def __radd__(self: _Self, other: Any) -> _Self:
        """``sum(observers)`` starts from the integer 0."""
        if isinstance(other, int) and other == 0:
            return self.copy()
        return NotImplemented

    def _merge(self: _Self, other: _Self) -> None:
        self._widen(other.min_, other.max_)

    # ---------------------------------------------------------------- reading
    def range(self, dtype: str = "int8", *, symmetric: bool = True) -> tuple[Array, Array]:
        """Ends (low, high) of the range that a quantiser should cover, float64.

        Parameters
        ----------
        dtype : str
            The integer format whose codes will cover it (methods that weigh rounding against
            clipping depend on the number of codes).
        symmetric : bool
            low = -high.

        Returns
        -------
        low, high : () or (channels,) float64
        """
        if not self.count:
            raise OptionError(f"{type(self).__name__}: no data yet; call partial_fit first")
        low, high = self._range(dtype, symmetric)
        if symmetric:
            high = np.maximum(-low, high)
            low = -high
        if self.axis is None:
            return low.reshape(()), high.reshape(())
        return low, high

    def _range(self, dtype: str, symmetric: bool) -> tuple[Array, Array]:
        return self.min_.copy(), self.max_.copy()

    def qparams(self, dtype: str = "int8", symmetric: bool = True) -> QParams:
        """Scale (float32) and zero point for the range seen.

        Parameters
        ----------
        dtype : str
            "int8", "uint8", "int4", "uint4", "int16" or "uint16".
        symmetric : bool
            Symmetric or affine; an affine range is widened to hold 0.

        Returns
        -------
        QParams
            (scale, zero_point), of shape () or (channels,).
        """
        from fastopt.quantization.qparams import qparams_from_range

        low, high = self.range(dtype, symmetric=symmetric)
        top = float(np.finfo(np.float32).max)
        low, high = (np.clip(v, -top, top).astype(np.float32) for v in (low, high))
        return qparams_from_range(low, high, dtype, symmetric=symmetric)

    # ---------------------------------------------------------------- plain data
    def copy(self: _Self) -> _Self:
        """An independent object of the same state."""
        result = type(self).__new__(type(self))
        result.__setstate__(self.__getstate__())
        return result

    def to_dict(self) -> dict[str, Any]:
        """Options and state as plain data: numbers, strings and lists (JSON holds it exactly)."""
        state: dict[str, Any] = {"observer": type(self).__name__, "count": self.count}
        state.update({key: getattr(self, key) for key in self._CONFIG})
        state.update({key: getattr(self, key).tolist() for key in self._ARRAYS})
        return state

    @classmethod
    def from_dict(cls: type[_Self], state: Mapping[str, Any]) -> _Self:
        """The observer that :meth:`to_dict` came from, bit for bit.

        Raises
        ------
        FormatError
            A key is missing or a value has the wrong kind or shape.
        """
        if not isinstance(state, Mapping):
            raise DTypeError(f"state: expected a dict, got {type(state).__name__}")
        if state.get("observer") != cls.__name__:
            raise FormatError(f"observer state: expected a {cls.__name__}")
        try:
            result = cls(**{key: state[key] for key in cls._CONFIG})
            result.count = integer(state["count"], "count", low=0)
            for key in cls._ARRAYS:
                template = getattr(result, key)
                value = np.asarray(state[key], dtype=template.dtype)
                if template.ndim == 2 and value.size == 0:
                    value = value.reshape(0, template.shape[1])
                if value.shape[1:] != template.shape[1:] or value.ndim != template.ndim:
                    raise FormatError(f"observer state: {key} has shape {value.shape}")
                setattr(result, key, value)
        except KeyError as error:
            raise FormatError(f"observer state: key {error.args[0]!r} is missing") from None
        except (TypeError, ValueError, OverflowError) as error:
            raise FormatError(f"observer state: {error}") from None
        channels = {len(getattr(result, key)) for key in cls._ARRAYS}
        if len(channels) != 1 or (result.axis is None and channels != {1}):
            raise FormatError(f"observer state: arrays of {sorted(channels)} channels")
        result._check()
        return result

    def _check(self) -> None:
        if not (np.isfinite(self.min_).all() and np.isfinite(self.max_).all()):
            raise FormatError("observer state: holds NaN or infinity")

    def __getstate__(self) -> dict[str, Any]:
        state = {k: getattr(self, k) for k in ("count", *self._CONFIG)}
        return state | {key: getattr(self, key).copy() for key in self._ARRAYS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._busy = threading.Lock()


class MinMaxObserver(_Observer):
    """Range of everything seen: [min x, max x].

    Parameters
    ----------
    axis : int, optional
        One range per index of this axis.

    Attributes
    ----------
    min_, max_ : (channels,) float64
        The range, exact.
    count : int
        Batches seen.

    Notes
    -----
    One pass over the batch. Merging is exact and independent of order and chunks.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.calibration import MinMaxObserver
    >>> a = MinMaxObserver().partial_fit(np.array([0.0, 2.54], np.float32))
    >>> b = MinMaxObserver().partial_fit(np.array([-1.27], np.float32))
    >>> scale, zero_point = (a + b).qparams("int8")
    >>> round(float(scale), 6), int(zero_point)
    (0.02, 0)
    """

    def __init__(self, axis: int | None = None) -> None:
        super().__init__(axis)

    def _absorb(
        self, a: Array, layout: tuple[int, int, int], low: Array, high: Array, threads: int | None
    ) -> None:
        self._widen(low, high)


class MovingAverageMinMaxObserver(_Observer):
    """Range as an exponential average over batches: min += c * (min of the batch - min).

    Parameters
    ----------
    averaging_constant : float
        c in (0, 1]; the first batch sets the range, as in torch.ao.
    axis : int, optional
        One range per index of this axis.

    Attributes
    ----------
    min_, max_ : (channels,) float64
        The averaged range.
    count : int
        Batches seen.

    Notes
    -----
    ``a + b`` is the state after a's batches and then b's: the first batch's range is kept beside
    the average, so that its weight can be corrected (min_b + (1-c)^n_b (min_a - first_b)).

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.calibration import MovingAverageMinMaxObserver
    >>> o = MovingAverageMinMaxObserver(0.5).partial_fit(np.array([0.0, 4.0], np.float32))
    >>> float(o.partial_fit(np.array([0.0, 2.0], np.float32)).max_[0])
    3.0
    """

    _CONFIG = ("averaging_constant", "axis")
    _ARRAYS = ("min_", "max_", "first_min_", "first_max_")

    def __init__(self, averaging_constant: float = 0.01, axis: int | None = None) -> None:
        super().__init__(axis)
        self.averaging_constant = number(
            averaging_constant, "averaging_constant", low=0.0, high=1.0, low_open=True
        )
        self.first_min_ = self.min_.copy()
        self.first_max_ = self.max_.copy()

    def _absorb(
        self, a: Array, layout: tuple[int, int, int], low: Array, high: Array, threads: int | None
    ) -> None:
        if not self.count:
            self.first_min_, self.first_max_ = low, high
            self.min_, self.max_ = low.copy(), high.copy()
            return
        self.min_ = self.min_ + self.averaging_constant * (low - self.min_)
        self.max_ = self.max_ + self.averaging_constant * (high - self.max_)

    def _merge(self, other: MovingAverageMinMaxObserver) -> None:
        fade = (1.0 - self.averaging_constant) ** other.count
        self.min_ = other.min_ + fade * (self.min_ - other.first_min_)
        self.max_ = other.max_ + fade * (self.max_ - other.first_max_)


class HistogramObserver(_Observer):
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
    1 ns an element. Sources: TensorRT's entropy calibration (S. Migacz, "8-bit inference with
    TensorRT", GTC 2017).

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.calibration import HistogramObserver
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
        if self.count:
            exponent = np.maximum(self.exponent_, needed)
            counts = _coarser(self.counts_, exponent - self.exponent_)
        else:
            exponent, counts = needed, np.zeros((low.size, self.bins), np.int64)
        inv = np.ldexp(1.0, -exponent)
        for piece, shape in _pieces(a, layout):
            used = _threads.resolve(threads, piece.size, _SERIAL_BELOW)
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
        from fastopt.quantization.clipping import entropy_range, mse_range

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
    >>> from fastopt.calibration import PercentileObserver
    >>> x = np.arange(-1000, 1001, dtype=np.float32)
    >>> low, high = PercentileObserver(99).partial_fit(x).range(symmetric=False)
    >>> round(float(low)), round(float(high))
    (-990, 990)
    """

    _CONFIG = ("percentile", "bins", "axis")

    def __init__(
        self, percentile: float = 99.99, bins: int = 4096, axis: int | None = None
    ) -> None:
        _Observer.__init__(self, axis)
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
    """Histograms of bins 2^steps times as wide: neighbours added about the middle."""
    result: Array = counts.copy()
    half = counts.shape[1] // 2
    for c in np.flatnonzero(steps):
        k = min(int(steps[c]), half.bit_length() - 1)  # from here on all is in the middle two
        part = counts[c].reshape(-1, 1 << k).sum(axis=1)
        result[c] = 0
        result[c, half - len(part) // 2 : half + len(part) // 2] = part
    return result


def _layout(a: Array, axis: int | None) -> tuple[int, int, int]:
    """``a`` as [outer, channels, inner]."""
    if axis is None:
        return 1, 1, a.size
    if not -a.ndim <= axis < a.ndim:
        raise ArrayError(f"x: has {a.ndim} dimensions, so no axis {axis}")
    at = axis % a.ndim
    outer = int(np.prod(a.shape[:at], dtype=np.int64))
    inner = int(np.prod(a.shape[at + 1 :], dtype=np.int64))
    return outer, a.shape[at], inner


def _pieces(a: Array, layout: tuple[int, int, int]) -> list[tuple[Array, tuple[int, int, int]]]:
    """``a`` in parts of about _PIECE elements, so that Ctrl-C gets in between."""
    outer, channels, inner = layout
    flat = a.reshape(-1)
    if outer == 1 and channels == 1:
        parts = [flat[i : i + _PIECE] for i in range(0, flat.size, _PIECE)]
        return [(p, (1, 1, p.size)) for p in parts]
    row = channels * inner
    step = max(1, _PIECE // max(row, 1))
    return [
        (flat[o * row : (o + step) * row], (min(step, outer - o), channels, inner))
        for o in range(0, outer, step)
    ]


def _extent(
    a: Array, outer: int, channels: int, inner: int, threads: int | None
) -> tuple[Array, Array]:
    """Exact minimum and maximum of each channel in float64, or ArrayError for NaN, infinity."""
    whole = outer == 1 and channels == 1
    lows, highs, finite = [], [], True
    for piece, shape in _pieces(a, (outer, channels, inner)):
        used = _threads.resolve(threads, piece.size, _SERIAL_BELOW)
        tasks = max(1, min(64, piece.size // (_SERIAL_BELOW // 2))) if whole else channels
        low = np.full(tasks, np.inf, a.dtype)
        high = np.full(tasks, -np.inf, a.dtype)
        finite &= bool(histogram.extent(low, high, piece, *shape, used))
        lows.append(low.min(keepdims=True) if whole else low)
        highs.append(high.max(keepdims=True) if whole else high)
    if not finite:
        raise ArrayError("x: holds NaN or infinity; clean the data first")
    least: Array = np.minimum.reduce(lows).astype(np.float64) + 0.0  # one zero, not two
    most: Array = np.maximum.reduce(highs).astype(np.float64) + 0.0
    return least, most
