"""Tables: a vector for each token, a vector for each position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fastopt._arrays import Array
from fastopt._random import Seed, generator_of
from fastopt.errors import ArrayError
from fastopt.models.network.module import Module, float_array
from fastopt.quantization import QuantizedArray

__all__ = ["Embedding", "Positions"]


@dataclass
class _Table(Module):
    """A weight with a vector in each row."""

    arrays: ClassVar[tuple[str, ...]] = ("weight",)

    weight: Array
    name: str = ""
    stored: QuantizedArray | None = None
    inputs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.weight = float_array(self.weight, "weight", 2)


@dataclass
class Embedding(_Table):
    """y = weight[x]: a row of the table for each integer.

    Attributes
    ----------
    weight : (n_rows, features) float32
    """

    kind: ClassVar[str] = "embedding"

    @classmethod
    def random(cls, n_rows: int, features: int, seed: Seed = None, **more: Any) -> Embedding:
        """A fresh table, normal with a standard deviation of 1 / sqrt(features)."""
        values = generator_of(seed).standard_normal((n_rows, features), np.float32)
        return cls(values / np.float32(np.sqrt(features)), **more)

    def shape(self, *shapes: tuple[int, ...]) -> tuple[int, ...]:
        """One axis more: the features."""
        return (*shapes[0], self.weight.shape[1])

    def forward(self, *xs: Array, training: bool = False) -> tuple[Array, Any]:
        """The rows."""
        x = xs[0]
        if x.size and (x.min() < 0 or x.max() >= len(self.weight)):
            raise ArrayError(
                f"x: expected integers 0..{len(self.weight) - 1}, got {x.min()}..{x.max()}"
            )
        return self.weight[x], x

    def backward(
        self, dy: Array, saved: Any, dx: bool = True
    ) -> tuple[list[Array | None], dict[str, Array]]:
        """Each row's gradients added up."""
        grad = np.zeros_like(self.weight)
        np.add.at(grad, saved.reshape(-1), dy.reshape(-1, grad.shape[1]))
        return [None], {"weight": grad}


@dataclass
class Positions(_Table):
    """y = x + weight: a learned vector for each position.

    Attributes
    ----------
    weight : (tokens, features) float32
    """

    kind: ClassVar[str] = "positions"

    @classmethod
    def random(cls, tokens: int, features: int, seed: Seed = None, **more: Any) -> Positions:
        """A fresh table, normal with a standard deviation of 0.02 (as BERT's)."""
        values = generator_of(seed).standard_normal((tokens, features), np.float32)
        return cls(values * np.float32(0.02), **more)

    def shape(self, *shapes: tuple[int, ...]) -> tuple[int, ...]:
        """As the input's."""
        if shapes[0] != self.weight.shape:
            raise ArrayError(
                f"layers: {self.name} takes shape {self.weight.shape}, got {shapes[0]}"
            )
        return shapes[0]

    def forward(self, *xs: Array, training: bool = False) -> tuple[Array, Any]:
        """The sum."""
        return xs[0] + self.weight, None

    def backward(
        self, dy: Array, saved: Any, dx: bool = True
    ) -> tuple[list[Array | None], dict[str, Array]]:
        """dy, and its sum over the rows."""
        return [dy], {"weight": dy.sum(axis=0)}
