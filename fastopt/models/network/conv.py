"""Convolution over images: im2col and one product with BLAS, block by block of output lines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fastopt._arrays import Array
from fastopt._options import integer
from fastopt._random import Seed
from fastopt.errors import ArrayError
from fastopt.models.network.dense import uniform
from fastopt.models.network.module import Module, float_array, images, pair, vector
from fastopt.models.network.patches import Window, from_planes, to_planes
from fastopt.quantization import QuantizedArray

__all__ = ["Conv2d"]

_BLOCK = 1 << 20  # elements of columns at a time: they are still in the cache when multiplied


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

    def _blocks(self, places: tuple[int, int], n: int) -> Iterator[tuple[int, int]]:
        """Output lines at a time."""
        line = self.weight[0].size * self.groups * places[1] * n
        step = max(1, _BLOCK // max(1, line))
        for first in range(0, places[0], step):
            yield first, min(first + step, places[0])

    def forward(self, *xs: Array, training: bool = False) -> tuple[Array, Any]:
        """The sums, in the memory order that ``patches`` describes."""
        window, n_out = self.window, len(self.weight)
        x = window.padded(to_planes(xs[0]))
        places, n = window.places(xs[0].shape[2:]), len(xs[0])
        y = np.empty((n_out, *places, n), np.float32)
        if self.depthwise:
            self._each(x, y)
        else:
            weight = self.weight.reshape(self.groups, n_out // self.groups, -1)
            for first, last in self._blocks(places, n):
                columns = window.columns(x, places, first, last)
                found = weight @ columns.reshape(self.groups, weight.shape[2], -1)
                y[:, first:last] = found.reshape(n_out, last - first, places[1], n)
        if self.bias is not None:
            y += self.bias[:, None, None, None]
        return from_planes(y), x

    def _each(self, x: Array, y: Array) -> None:
        """A sum over the window's places: y[c] = sum of w[c, i, j] * x[c, i ..., j ...]."""
        product = np.empty_like(y)
        for k, (i, j, rows, cols) in enumerate(self.window.taps(y.shape[1:3])):
            w = self.weight[:, 0, i, j][:, None, None, None]
            if k:
                np.multiply(x[:, rows, cols], w, out=product)
                y += product
            else:
                np.multiply(x[:, rows, cols], w, out=y)

    def backward(
        self, dy: Array, saved: Any, dx: bool = True
    ) -> tuple[list[Array | None], dict[str, Array]]:
        """dW = dy columns^T;  dx adds up W^T dy where the columns came from."""
        window, x, n_out = self.window, saved, len(self.weight)
        dy = to_planes(dy)
        places = dy.shape[1:3]
        grads = {"weight": np.zeros_like(self.weight)}
        if self.bias is not None:
            grads["bias"] = dy.reshape(n_out, -1).sum(axis=1)
        around = np.zeros_like(x) if dx else None
        if self.depthwise:
            self._each_back(dy, x, grads["weight"], around)
        else:
            weight = self.weight.reshape(self.groups, n_out // self.groups, -1)
            total = grads["weight"].reshape(weight.shape)
            for first, last in self._blocks(places, dy.shape[3]):
                columns = window.columns(x, places, first, last)
                columns = columns.reshape(self.groups, weight.shape[2], -1)
                part = dy[:, first:last].reshape(self.groups, weight.shape[1], -1)
                total += part @ columns.transpose(0, 2, 1)
                if around is not None:
                    back = weight.transpose(0, 2, 1) @ part
                    window.scatter(back, around, places, first, last)
        return [None if around is None else from_planes(window.inside(around))], grads

    def _each_back(self, dy: Array, x: Array, dw: Array, around: Array | None) -> None:
        for i, j, rows, cols in self.window.taps(dy.shape[1:3]):
            dw[:, 0, i, j] = np.einsum("chwn,chwn->c", dy, x[:, rows, cols])
            if around is not None:
                around[:, rows, cols] += dy * self.weight[:, 0, i, j][:, None, None, None]
