"""Pools: the maximum or the mean of a window, of a whole image, or over the tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fastopt._arrays import Array
from fastopt.errors import ArrayError, OptionError
from fastopt.models.network.module import Module, images, pair
from fastopt.models.network.patches import Window, from_planes, to_planes

__all__ = ["AvgPool2d", "GlobalAvgPool2d", "MaxPool2d", "Mean"]


@dataclass
class _Pool(Module):
    """What both pools hold, with torch's names; a stride of None is the kernel's size."""

    kernel_size: Any = 2
    stride: Any = None
    padding: Any = 0
    name: str = ""
    inputs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.kernel_size = pair(self.kernel_size, "kernel_size", 1)
        stride = self.kernel_size if self.stride is None else self.stride
        self.stride = pair(stride, "stride", 1)
        self.padding = pair(self.padding, "padding", 0)
        if any(2 * p > k for p, k in zip(self.padding, self.kernel_size, strict=True)):
            raise OptionError("padding: expected at most half of kernel_size")

    @property
    def window(self) -> Window:
        """Where it looks."""
        return Window(self.kernel_size, self.stride, self.padding)

    def shape(self, *shapes: tuple[int, ...]) -> tuple[int, ...]:
        """(channels, height, width)."""
        c, h, w = images(shapes[0], self.name)
        return (c, *self.window.places((h, w), self.name))


@dataclass
class MaxPool2d(_Pool):
    """The largest value of each window; its gradient goes to the first one, as torch's."""

    kind: ClassVar[str] = "max_pool2d"

    def forward(self, *xs: Array, training: bool = False) -> tuple[Array, Any]:
        """The maxima."""
        window = self.window
        x = window.padded(to_planes(xs[0]), -np.inf)
        taps = window.taps(window.places(xs[0].shape[2:]))
        y = x[:, taps[0][2], taps[0][3]].copy()
        for _, _, rows, cols in taps[1:]:
            np.maximum(y, x[:, rows, cols], out=y)
        return from_planes(y), (x, y)

    def backward(
        self, dy: Array, saved: Any, dx: bool = True
    ) -> tuple[list[Array | None], dict[str, Array]]:
        """dy, at the place of the maximum."""
        x, y = saved
        dy = to_planes(dy)
        around, left = np.zeros_like(x), np.ones(y.shape, bool)
        for _, _, rows, cols in self.window.taps(y.shape[1:3]):
            here = x[:, rows, cols] == y
            here &= left
            left ^= here
            around[:, rows, cols] += dy * here
        return [from_planes(self.window.inside(around))], {}


@dataclass
class AvgPool2d(_Pool):
    """The mean of each window, zeros of the padding counted, as torch's default."""

    kind: ClassVar[str] = "avg_pool2d"

    def forward(self, *xs: Array, training: bool = False) -> tuple[Array, Any]:
        """The means."""
        window = self.window
        x = window.padded(to_planes(xs[0]))
        taps = window.taps(window.places(xs[0].shape[2:]))
        y = x[:, taps[0][2], taps[0][3]].copy()
        for _, _, rows, cols in taps[1:]:
            y += x[:, rows, cols]
        y /= np.float32(len(taps))
        return from_planes(y), x.shape

    def backward(
        self, dy: Array, saved: Any, dx: bool = True
    ) -> tuple[list[Array | None], dict[str, Array]]:
        """An equal share of dy at every place of the window."""
        dy = to_planes(dy)
        taps = self.window.taps(dy.shape[1:3])
        around, part = np.zeros(saved, np.float32), dy / np.float32(len(taps))
        for _, _, rows, cols in taps:
            around[:, rows, cols] += part
        return [from_planes(self.window.inside(around))], {}


@dataclass
class GlobalAvgPool2d(Module):
    """The mean of each channel's image: (channels, height, width) becomes (channels,)."""

    kind: ClassVar[str] = "global_avg_pool2d"

    name: str = ""
    inputs: tuple[str, ...] = ()

    def shape(self, *shapes: tuple[int, ...]) -> tuple[int, ...]:
        """(channels,)."""
        return (images(shapes[0], self.name)[0],)

    def forward(self, *xs: Array, training: bool = False) -> tuple[Array, Any]:
        """The means."""
        planes = to_planes(xs[0])
        c, h, w, n = planes.shape
        return planes.reshape(c, h * w, n).mean(axis=1).T, (h, w)

    def backward(
        self, dy: Array, saved: Any, dx: bool = True
    ) -> tuple[list[Array | None], dict[str, Array]]:
        """An equal share of dy at every place."""
        h, w = saved
        part = np.ascontiguousarray(dy.T) / np.float32(h * w)
        c, n = part.shape
        return [from_planes(np.broadcast_to(part[:, None, None], (c, h, w, n)))], {}


@dataclass
class Mean(Module):
    """The mean over the first axis, such as that of tokens: (tokens, features) -> (features,)."""

    kind: ClassVar[str] = "mean"

    name: str = ""
    inputs: tuple[str, ...] = ()

    def shape(self, *shapes: tuple[int, ...]) -> tuple[int, ...]:
        """Without the first axis."""
        if len(shapes[0]) < 2:
            raise ArrayError(f"layers: {self.name} takes (tokens, features), got {shapes[0]}")
        return shapes[0][1:]

    def forward(self, *xs: Array, training: bool = False) -> tuple[Array, Any]:
        """The means."""
        return xs[0].mean(axis=1), xs[0].shape

    def backward(
        self, dy: Array, saved: Any, dx: bool = True
    ) -> tuple[list[Array | None], dict[str, Array]]:
        """An equal share of dy at every place."""
        return [np.broadcast_to(dy[:, None] / np.float32(saved[1]), saved)], {}
