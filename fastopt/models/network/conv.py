"""Convolution over images: im2col and one product with BLAS, block by block of output lines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fastopt import _threads
from fastopt._arrays import Array
from fastopt._kernels import depthwise as _filter
from fastopt._options import integer
from fastopt._random import Seed
from fastopt.errors import ArrayError
from fastopt.models.network.dense import uniform
from fastopt.models.network.integer import integer_product, runs_in_integers
from fastopt.models.network.module import Module, float_array, images, pair, vector
from fastopt.models.network.patches import Window, from_planes, sums, to_planes
from fastopt.quantization import QuantizedArray

__all__ = ["Conv2d"]

SERIAL_BELOW = 1 << 20  # multiply-adds of a depthwise layer
_BLOCK = 1 << 19  # elements of columns at a time: they are still in the cache when multiplied


@dataclass
class Conv2d(Module):
    """y[n, o] = bias[o] + sum over c, i, j of weight[o, c, i, j] * x[n, c, ...], as torch's.

    Attributes
    ----------
    weight : (n_out, n_in / groups, kernel height, kernel width) float32
    bias : (n_out,) float32 or None
    stride, padding, dilation : int or pair of int
        Padding is with zeros, on both sides.
    groups : int
        Blocks of channels that do not see each other; as many as channels for a depthwise one.
    stored : QuantizedArray or None
        Set by ``Network.store``; ``weight`` then holds its dequantised values.
    dynamic : bool
        Whether it then multiplies in integers, each patch quantised as it arrives.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.models.network import Conv2d
    >>> blur = Conv2d(np.full((1, 1, 3, 3), 1 / 9), padding=1)
    >>> blur.forward(np.ones((1, 1, 4, 4), np.float32))[0][0, 0].round(2)
    array([[0.44, 0.67, 0.67, 0.44],
           [0.67, 1.  , 1.  , 0.67],
           [0.67, 1.  , 1.  , 0.67],
           [0.44, 0.67, 0.67, 0.44]], dtype=float32)
    """

    kind: ClassVar[str] = "conv2d"
    arrays: ClassVar[tuple[str, ...]] = ("weight", "bias")

    weight: Array
    bias: Array | None = None
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1
    name: str = ""
    stored: QuantizedArray | None = None
    inputs: tuple[str, ...] = ()
    dynamic: bool = False

    def __post_init__(self) -> None:
        self.weight = float_array(self.weight, "weight", 4)
        if self.bias is not None:
            self.bias = vector(self.bias, "bias", len(self.weight))
        self.stride = pair(self.stride, "stride", 1)
        self.padding = pair(self.padding, "padding", 0)
        self.dilation = pair(self.dilation, "dilation", 1)
        integer(self.groups, "groups", low=1)
        if len(self.weight) % self.groups or not self.weight.size:
            raise ArrayError(
                f"weight: {self.weight.shape} cannot be cut into {self.groups} groups"
            )

    @classmethod
    def random(
        cls,
        n_in: int,
        n_out: int,
        kernel_size: Any,
        *,
        groups: int = 1,
        bias: bool = True,
        seed: Seed = None,
        **more: Any,
    ) -> Conv2d:
        """A fresh layer: uniform in +-sqrt(6 / fan_in) (He et al. 2015); biases are 0."""
        kernel = pair(kernel_size, "kernel_size", 1)
        if n_in % groups:
            raise ArrayError(f"groups: {n_in} channels cannot be cut into {groups}")
        weight = uniform((n_out, n_in // groups, *kernel), True, seed)
        zeros = np.zeros(n_out, np.float32) if bias else None
        return cls(weight, zeros, groups=groups, **more)

    @property
    def window(self) -> Window:
        """Where it looks."""
        kh, kw = self.weight.shape[2:]
        return Window((kh, kw), self.stride, self.padding, self.dilation)

    @property
    def depthwise(self) -> bool:
        """Whether every channel is filtered alone."""
        return self.weight.shape[1] == 1 and self.groups == len(self.weight)

    @property
    def _taps(self) -> Array:
        """A depthwise weight, (channels, kh, kw)."""
        return np.ascontiguousarray(self.weight[:, 0])

    def _steps(self, y: Array) -> tuple[int, int, int, int, int]:
        """Stride, dilation, threads for planes of the output's size."""
        work = y.size * self.weight[0].size
        return (*self.stride, *self.dilation, _threads.resolve(None, work, SERIAL_BELOW))

    def shape(self, *shapes: tuple[int, ...]) -> tuple[int, ...]:
        """(n_out, height, width)."""
        c, h, w = images(shapes[0], self.name)
        if c != self.weight.shape[1] * self.groups:
            raise ArrayError(
                f"layers: {self.name} takes {self.weight.shape[1] * self.groups} channels, got {c}"
            )
        return (len(self.weight), *self.window.places((h, w), self.name))

    def macs(self, shape: tuple[int, ...], *inputs: tuple[int, ...]) -> int:
        """One product with the weight for each place."""
        return self.weight.size * shape[1] * shape[2]

    def forward(self, *xs: Array, training: bool = False) -> tuple[Array, Any]:
        """The sums, in the memory order that ``patches`` describes."""
        window = self.window
        places = window.places(xs[0].shape[2:])
        if runs_in_integers(self, training):
            y = integer_product(self, window.rows(xs[0], places)).transpose(0, 3, 1, 2)
            return y if self.bias is None else y + self.bias[:, None, None], xs[0]
        x = window.padded(to_planes(xs[0]))
        if self.depthwise:
            y = np.empty((len(x), *places, x.shape[3]), np.float32)
            _filter.filter_planes(y, x, self._taps, *self._steps(y))
        else:
            y = _product(self._matrices(), x, window, places)
        if self.bias is not None:
            y += self.bias[:, None, None, None]
        return from_planes(y), xs[0]

    def _matrices(self) -> Array:
        """(groups, n_out / groups, columns)."""
        return self.weight.reshape(self.groups, len(self.weight) // self.groups, -1)

    def backward(
        self, dy: Array, saved: Any, dx: bool = True
    ) -> tuple[list[Array | None], dict[str, Array]]:
        """dW = dy columns^T;  dx adds up W^T dy where the columns came from."""
        window = self.window
        x = window.padded(to_planes(saved))
        dy = to_planes(dy)
        grads = {"weight": np.zeros_like(self.weight)}
        if self.bias is not None:
            grads["bias"] = sums(dy)
        if self.depthwise:
            steps = self._steps(dy)
            _filter.weigh_planes(grads["weight"][:, 0], x, dy, *steps)
            if not dx:
                return [None], grads
            turned = window.turned
            if turned is None:
                around = np.zeros_like(x)
                _filter.spread_planes(around, dy, self._taps, *steps)
                return [from_planes(window.inside(around))], grads
            back = np.empty_like(window.inside(x), order="C")
            taps = np.ascontiguousarray(self._taps[:, ::-1, ::-1])
            _filter.filter_planes(back, turned.padded(dy), taps, *steps)
            return [from_planes(back)], grads
        weight, places = self._matrices(), dy.shape[1:3]
        total = grads["weight"].reshape(weight.shape)
        for first, last in _blocks(window, x, places):
            columns = window.columns(x, places, first, last)
            columns = columns.reshape(self.groups, weight.shape[2], -1)
            part = dy[:, first:last].reshape(self.groups, weight.shape[1], -1)
            total += part @ columns.transpose(0, 2, 1)
        return [from_planes(self._back(dy, x.shape)) if dx else None], grads

    def _back(self, dy: Array, shape: tuple[int, ...]) -> Array:
        """The gradient by the planes, whose padded shape is given."""
        window, weight, places = self.window, self._matrices(), dy.shape[1:3]
        turned = window.turned
        if turned is not None:  # a convolution of dy with the kernel turned round
            flipped = self.weight[:, :, ::-1, ::-1].reshape(*weight.shape[:2], -1, *window.kernel)
            matrices = flipped.swapaxes(1, 2).reshape(self.groups, flipped.shape[2], -1)
            size = shape[1] - 2 * window.padding[0], shape[2] - 2 * window.padding[1]
            return _product(matrices, turned.padded(dy), turned, size)
        around = np.zeros(shape, np.float32)
        for first, last in _blocks(window, around, places):
            part = dy[:, first:last].reshape(self.groups, weight.shape[1], -1)
            window.scatter(weight.transpose(0, 2, 1) @ part, around, places, first, last)
        return window.inside(around)


def _blocks(window: Window, x: Array, places: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Output lines at a time."""
    line = len(x) * window.kernel[0] * window.kernel[1] * places[1] * x.shape[3]
    step = max(1, _BLOCK // max(1, line))
    for first in range(0, places[0], step):
        yield first, min(first + step, places[0])


def _product(matrices: Array, x: Array, window: Window, places: tuple[int, int]) -> Array:
    """Planes of matrices (groups, n_out, columns) times the columns of padded planes."""
    groups, n_out, width = matrices.shape
    y = np.empty((groups * n_out, *places, x.shape[3]), np.float32)
    for first, last in _blocks(window, x, places):
        columns = window.columns(x, places, first, last).reshape(groups, width, -1)
        if last - first == places[0]:
            np.matmul(matrices, columns, out=y.reshape(groups, n_out, -1))
        else:
            found = matrices @ columns
            y[:, first:last] = found.reshape(len(y), last - first, *y.shape[2:])
    return y
