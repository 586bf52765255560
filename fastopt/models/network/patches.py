"""Images as the convolutions and pools work on them: channels first, rows of data last.

A tensor between modules has torch's axes (n, channels, height, width). Its memory here is
(channels, height, width, n): a kernel's tap is then a slice with long runs of neighbours,
whatever the stride, and a channel is one run, so NumPy and BLAS work at their full speed.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import as_strided

from fastopt._arrays import Array
from fastopt.errors import ArrayError

__all__ = ["Window", "from_planes", "sums", "to_planes"]

Pair = tuple[int, int]


def to_planes(x: Array) -> Array:
    """(n, channels, h, w) as contiguous (channels, h, w, n); no copy where it is that already."""
    return np.ascontiguousarray(x.transpose(1, 2, 3, 0))


def from_planes(x: Array) -> Array:
    """(channels, h, w, n) seen as (n, channels, h, w)."""
    seen: Array = x.transpose(3, 0, 1, 2)
    return seen


_own = threading.local()


def _scratch(size: int) -> Array:
    """This thread's memory for columns: fresh pages cost as much as what is written to them."""
    if getattr(_own, "memory", None) is None or _own.memory.size < size:
        _own.memory = np.empty(size, np.float32)
    found: Array = _own.memory[:size]
    return found


def sums(x: Array) -> Array:
    """The sum of each channel's planes."""
    flat = x.reshape(len(x), -1)
    found: Array = flat @ np.ones(flat.shape[1], np.float32)  # three times as fast as sum(axis=1)
    return found


@dataclass(frozen=True)
class Window:
    """A window that slides over an image, as torch's convolutions and pools define it.

    Attributes
    ----------
    kernel, stride, padding, dilation : pair of int
    """

    kernel: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)

    @property
    def alone(self) -> bool:
        """Whether each place is its own window."""
        return self.kernel == (1, 1) == self.stride and self.padding == (0, 0)

    @property
    def turned(self) -> Window | None:
        """The window that gathers for each place of the input what it gave to the output.

        None for one that moves in steps, whose output has gaps, or is padded by more than it sees.
        """
        around = [
            d * (k - 1) - p
            for k, p, d in zip(self.kernel, self.padding, self.dilation, strict=True)
        ]
        if self.stride != (1, 1) or min(around) < 0:
            return None
        return Window(self.kernel, (1, 1), (around[0], around[1]), self.dilation)

    def places(self, size: Pair, name: str = "window") -> Pair:
        """Height and width of the output: floor((n + 2 p - d (k - 1) - 1) / s) + 1."""
        h, w = (
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip(
                size, self.kernel, self.stride, self.padding, self.dilation, strict=True
            )
        )
        if h < 1 or w < 1:
            raise ArrayError(f"layers: {name}'s window is larger than the image {size}")
        return h, w

    def padded(self, x: Array, value: float = 0.0) -> Array:
        """Planes with their border; no copy without one."""
        ph, pw = self.padding
        if not ph and not pw:
            return x
        c, h, w, n = x.shape
        made = np.empty((c, h + 2 * ph, w + 2 * pw, n), x.dtype)
        made[:, :ph], made[:, ph + h :] = value, value
        made[:, ph : ph + h, :pw], made[:, ph : ph + h, pw + w :] = value, value
        made[:, ph : ph + h, pw : pw + w] = x
        return made

    def inside(self, x: Array) -> Array:
        """Planes without their border."""
        ph, pw = self.padding
        return x[:, ph : x.shape[1] - ph, pw : x.shape[2] - pw]

    def taps(self, places: Pair) -> list[tuple[int, int, slice, slice]]:
        """For each place (i, j) in the window what it sees of the padded image's axes."""
        (sh, sw), (dh, dw) = self.stride, self.dilation
        return [
            (
                i, j,
                slice(i * dh, i * dh + (places[0] - 1) * sh + 1, sh),
                slice(j * dw, j * dw + (places[1] - 1) * sw + 1, sw),
            )
            for i in range(self.kernel[0])
            for j in range(self.kernel[1])
        ]  # fmt: skip

    def seen(self, x: Array, lines: int, width: int) -> Array:
        """Patches of padded planes without a copy, (channels, kh, kw, lines, width, n)."""
        c, _, _, n = x.shape
        (sh, sw), (dh, dw) = self.stride, self.dilation
        a, b, d, e = x.strides
        return as_strided(
            x, (c, *self.kernel, lines, width, n),
            (a, b * dh, d * dw, b * sh, d * sw, e), writeable=False,
        )  # fmt: skip

    def columns(self, x: Array, places: Pair, first: int, last: int) -> Array:
        """Patches of padded planes as columns (im2col), of the output's lines first ... last.

        Returns
        -------
        (channels * kh * kw, lines * width * n) float32
            In the order of a weight's (in, kh, kw); no copy where each place is its own window.
            Valid until this thread asks for others.
        """
        seen = self.seen(x[:, first * self.stride[0] :], last - first, places[1])
        n_rows = len(x) * self.kernel[0] * self.kernel[1]
        if self.alone:
            plain: Array = seen.reshape(n_rows, -1)
            return plain
        found = _scratch(seen.size).reshape(seen.shape)
        np.copyto(found, seen)
        columns: Array = found.reshape(n_rows, -1)
        return columns

    def rows(self, x: Array, places: Pair) -> Array:
        """Patches of images (n, channels, h, w) as (n, height, width, kh * kw * channels)."""
        (ph, pw), (sh, sw), (dh, dw) = self.padding, self.stride, self.dilation
        last = np.pad(x.transpose(0, 2, 3, 1), ((0, 0), (ph, ph), (pw, pw), (0, 0)))
        last = np.ascontiguousarray(last)
        n, a, b, c = last.strides
        shape = (len(x), *places, *self.kernel, x.shape[1])
        seen = as_strided(last, shape, (n, a * sh, b * sw, a * dh, b * dw, c), writeable=False)
        return seen.reshape(*shape[:3], math.prod(shape[3:]))

    def scatter(self, columns: Array, x: Array, places: Pair, first: int, last: int) -> None:
        """In place: add columns to the padded planes that :meth:`columns` read them from."""
        c, _, _, n = x.shape
        lines = last - first
        parts = columns.reshape(c, *self.kernel, lines, places[1], n)
        seen = x[:, first * self.stride[0] :]
        for i, j, rows, cols in self.taps((lines, places[1])):
            seen[:, rows, cols] += parts[:, i, j]
