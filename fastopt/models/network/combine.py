"""Modules without weights that join or reshape: sums, products, concatenation, flattening."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fastopt._arrays import Array
from fastopt.errors import ArrayError
from fastopt.models.network.module import Module

__all__ = ["Add", "Concat", "Flatten", "Mul"]


@dataclass
class _Equal(Module):
    """Inputs of one shape, two or more."""

    n_inputs: ClassVar[int | None] = None

    name: str = ""
    inputs: tuple[str, ...] = ()

    def shape(self, *shapes: tuple[int, ...]) -> tuple[int, ...]:
        """As each input's."""
        if len(set(shapes)) != 1:
            raise ArrayError(f"layers: {self.name} takes equal shapes, got {list(shapes)}")
        return shapes[0]


@dataclass
class Add(_Equal):
    """The sum of its inputs, such as a residual connection."""

    kind: ClassVar[str] = "add"

    def forward(self, *xs: Array, training: bool = False) -> tuple[Array, Any]:
        """x_0 + x_1 + ..."""
        y = xs[0] + xs[1]
        for x in xs[2:]:
            y += x
        return y, len(xs)

    def backward(
        self, dy: Array, saved: Any, dx: bool = True
    ) -> tuple[list[Array | None], dict[str, Array]]:
        """dy for each."""
        return [dy] * saved, {}


@dataclass
class Mul(_Equal):
    """The product of its inputs, such as a gate and what it lets through."""

    kind: ClassVar[str] = "mul"

    def forward(self, *xs: Array, training: bool = False) -> tuple[Array, Any]:
        """x_0 * x_1 * ..."""
        return math.prod(xs[1:], start=xs[0]), xs

    def backward(
        self, dy: Array, saved: Any, dx: bool = True
    ) -> tuple[list[Array | None], dict[str, Array]]:
        """dy times the other inputs."""
        others = [[x for j, x in enumerate(saved) if j != k] for k in range(len(saved))]
        return [math.prod(rest, start=dy) for rest in others], {}


@dataclass
class Concat(Module):
    """Its inputs one after the other, along the channels (axis 0 of a row's shape).

    Attributes
    ----------
    axis : int
        Of a row's shape: 0 are the channels of an image; -1 the features of tokens.
    """

    kind: ClassVar[str] = "concat"
    n_inputs: ClassVar[int | None] = None

    axis: int = 0
    name: str = ""
    inputs: tuple[str, ...] = ()

    def shape(self, *shapes: tuple[int, ...]) -> tuple[int, ...]:
        """Sizes added up along the axis."""
        rank = len(shapes[0])
        if not -rank <= self.axis < rank:
            raise ArrayError(f"layers: {self.name} has axis {self.axis}, got shape {shapes[0]}")
        axis = self.axis % rank
        rests = {(*s[:axis], *s[axis + 1 :]) for s in shapes}
        if len(rests) != 1 or any(len(s) != rank for s in shapes):
            raise ArrayError(f"layers: {self.name} cannot join the shapes {list(shapes)}")
        return (*shapes[0][:axis], sum(s[axis] for s in shapes), *shapes[0][axis + 1 :])

    def _place(self, x: Array) -> int:
        return self.axis % (x.ndim - 1) + 1

    def forward(self, *xs: Array, training: bool = False) -> tuple[Array, Any]:
        """All of them in one array."""
        place = self._place(xs[0])
        order = (*range(1, xs[0].ndim), 0) if xs[0].ndim == 4 else tuple(range(xs[0].ndim))
        joined = np.concatenate([x.transpose(order) for x in xs], axis=order.index(place))
        return joined.transpose(np.argsort(order)), [x.shape[place] for x in xs]

    def backward(
        self, dy: Array, saved: Any, dx: bool = True
    ) -> tuple[list[Array | None], dict[str, Array]]:
        """The parts of dy."""
        return list(np.split(dy, np.cumsum(saved)[:-1], axis=self._place(dy))), {}


@dataclass
class Flatten(Module):
    """A row's axes as one, the last one fastest."""

    kind: ClassVar[str] = "flatten"

    name: str = ""
    inputs: tuple[str, ...] = ()

    def shape(self, *shapes: tuple[int, ...]) -> tuple[int, ...]:
        """The number of elements."""
        return (math.prod(shapes[0]),)

    def forward(self, *xs: Array, training: bool = False) -> tuple[Array, Any]:
        """(n, everything)."""
        shape = xs[0].shape
        return xs[0].reshape(shape[0], math.prod(shape[1:])), shape

    def backward(
        self, dy: Array, saved: Any, dx: bool = True
    ) -> tuple[list[Array | None], dict[str, Array]]:
        """dy in the input's shape."""
        return [dy.reshape(saved)], {}
