"""A dense layer: y = activation(x @ W^T + b)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fastopt._arrays import Array
from fastopt._options import choice, integer
from fastopt._random import Seed, generator_of
from fastopt.errors import ArrayError
from fastopt.models.network.activations import ACTIVATIONS
from fastopt.models.network.integer import integer_product, runs_in_integers
from fastopt.models.network.module import Module, float_array, vector
from fastopt.quantization import QuantizedArray

__all__ = ["Dense", "uniform"]


@dataclass
class Dense(Module):
    """One layer: ``activation(x @ weight.T + bias)`` over the last axis.

    Attributes
    ----------
    weight : (n_out, n_in) float32
    bias : (n_out,) float32 or None
    activation : {"identity", "relu", "tanh", "sigmoid", "silu", "gelu"}
    stored : QuantizedArray or None
        Set by ``Network.store``; ``weight`` then holds its dequantised values.
    dynamic : bool
        Whether it then multiplies in integers, its input quantised as it arrives.
    """

    kind: ClassVar[str] = "dense"
    arrays: ClassVar[tuple[str, ...]] = ("weight", "bias")

    weight: Array
    bias: Array | None
    activation: str = "identity"
    name: str = ""
    stored: QuantizedArray | None = None
    inputs: tuple[str, ...] = ()
    dynamic: bool = False

    def __post_init__(self) -> None:
        self.weight = float_array(self.weight, "weight", 2)
        if self.bias is not None:
            self.bias = vector(self.bias, "bias", len(self.weight))
        choice(self.activation, "activation", ACTIVATIONS)

    @classmethod
    def random(
        cls, n_in: int, n_out: int, activation: str = "identity", seed: Seed = None, **more: Any
    ) -> Dense:
        """A fresh layer: see :func:`uniform`; biases are 0."""
        shape = (integer(n_out, "n_out", low=1), integer(n_in, "n_in", low=1))
        weight = uniform(shape, activation == "relu", seed)
        return cls(weight, np.zeros(n_out, np.float32), activation, **more)

    def __call__(self, x: Array) -> Array:
        return self.forward(x)[0]

    def shape(self, *shapes: tuple[int, ...]) -> tuple[int, ...]:
        """The last axis becomes n_out."""
        (given,) = shapes
        if not given or given[-1] != self.weight.shape[1]:
            raise ArrayError(
                f"layers: {self.name} takes {self.weight.shape[1]} columns, got shape {given}"
            )
        return (*given[:-1], len(self.weight))

    def forward(self, *xs: Array, training: bool = False) -> tuple[Array, Any]:
        """activation(x @ weight.T + bias)."""
        if runs_in_integers(self, training):
            z = integer_product(self, xs[0])
        else:
            z = xs[0] @ self.weight.T
        if self.bias is not None:
            z += self.bias
        y = ACTIVATIONS[self.activation][0](z)
        return y, (xs[0], z, y)

    def backward(
        self, dy: Array, saved: Any, dx: bool = True
    ) -> tuple[list[Array | None], dict[str, Array]]:
        """dz = dy * activation'(z);  dW = dz^T x,  db = sum dz,  dx = dz W."""
        x, z, y = saved
        if self.activation != "identity":
            dy = dy * ACTIVATIONS[self.activation][1](z, y)
        flat = dy.reshape(-1, dy.shape[-1])
        grads = {"weight": flat.T @ x.reshape(-1, x.shape[-1])}
        if self.bias is not None:
            grads["bias"] = flat.sum(axis=0)
        return [dy @ self.weight if dx else None], grads

    def macs(self, shape: tuple[int, ...], *inputs: tuple[int, ...]) -> int:
        """One product with the weight for each position."""
        return self.weight.size * int(np.prod(shape[:-1], dtype=np.int64))


def uniform(shape: tuple[int, ...], rectified: bool, seed: Seed) -> Array:
    """A fresh weight (n_out, n_in, ...), uniform within a bound.

    The bound is sqrt(6 / fan_in) before a ReLU (He et al. 2015, eq. 10) and
    sqrt(6 / (fan_in + fan_out)) elsewhere (Glorot and Bengio 2010, eq. 16).
    """
    kernel = int(np.prod(shape[2:], dtype=np.int64))
    fan_in, fan_out = shape[1] * kernel, shape[0] * kernel
    bound = np.sqrt(6 / fan_in) if rectified else np.sqrt(6 / (fan_in + fan_out))
    found: Array = generator_of(seed).uniform(-bound, bound, shape).astype(np.float32)
    return found
