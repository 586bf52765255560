"""Observers: the range of a stream of activations, in memory that does not depend on the stream.

What they share, and those that keep the extremes alone; :mod:`fastopt.quantization.histograms` has
those that count.

``observer.partial_fit(batch)`` adds a batch, ``a + b`` merges two observers (files, workers, days)
and ``observer.qparams("int8")`` answers with a scale and a zero point. With ``axis`` every index
of that axis has its own range.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import numpy as np

from fastopt import _threads
from fastopt._arrays import Array, as_array, as_numbers
from fastopt._kernels import quantize_range
from fastopt._options import integer, number
from fastopt.errors import ArrayError, ConcurrentUseError, DTypeError, FormatError, OptionError
from fastopt.quantization.qparams import QParams, qparams_from_range

__all__ = ["MinMaxObserver", "MovingAverageMinMaxObserver", "Observer"]

SERIAL_BELOW = 1 << 17  # elements; counting costs about 1 ns each
_PIECE = 1 << 26  # elements between two checks for Ctrl-C

_Self = TypeVar("_Self", bound="Observer")


class Observer:
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
                value = as_numbers(state[key], key).astype(template.dtype, casting="same_kind")
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


class MinMaxObserver(Observer):
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
    >>> from fastopt.quantization import MinMaxObserver
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


class MovingAverageMinMaxObserver(Observer):
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
    >>> from fastopt.quantization import MovingAverageMinMaxObserver
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


def pieces_of(a: Array, layout: tuple[int, int, int]) -> list[tuple[Array, tuple[int, int, int]]]:
    """``a`` in parts of about _PIECE elements, so that Ctrl-C is seen between them."""
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
    lows, highs = [], []
    for piece, (blocks, _, run) in pieces_of(a, (outer, channels, inner)):
        low, high = np.empty((2, channels), a.dtype)
        rows = inner == 1 and channels > 1
        loops = (rows, blocks, channels, blocks) if rows else (False, channels * run, run, 0)
        used = _threads.resolve(threads, piece.size, SERIAL_BELOW)
        quantize_range.min_max(low, high, piece, *loops, used)
        lows.append(low)
        highs.append(high)
    least: Array = np.minimum.reduce(lows).astype(np.float64) + 0.0  # -0.0 becomes 0.0
    most: Array = np.maximum.reduce(highs).astype(np.float64) + 0.0
    if np.isnan(least).any():
        raise ArrayError("x: holds NaN or infinity; clean the data first")
    return least, most
