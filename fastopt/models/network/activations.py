"""Elementwise functions with their slopes, and softmax."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fastopt._arrays import Array
from fastopt._options import choice
from fastopt.models.network.module import Module

__all__ = ["ACTIVATIONS", "Activation", "Softmax", "softmax"]


def _relu(z: Array) -> Array:
    return np.maximum(z, 0)


def _relu_slope(z: Array, y: Array) -> Array:
    slope: Array = y > 0
    return slope


def _tanh_slope(z: Array, y: Array) -> Array:
    return 1 - y * y


def _sigmoid(z: Array) -> Array:
    y: Array = 0.5 * (np.tanh(0.5 * z) + 1)  # no overflow for any z
    return y


def _sigmoid_slope(z: Array, y: Array) -> Array:
    slope: Array = y * (1 - y)
    return slope


def _silu(z: Array) -> Array:
    y: Array = z * _sigmoid(z)
    return y


def _silu_slope(z: Array, y: Array) -> Array:
    s = _sigmoid(z)
    slope: Array = s + y * (1 - s)
    return slope


def _normal_cdf(z: Array) -> Array:
    """P(N(0, 1) <= z) to 1e-7 (Abramowitz and Stegun, formula 7.1.26, for erf(z / sqrt 2))."""
    x = np.abs(z) * np.float32(np.sqrt(0.5))
    t = 1 / (1 + np.float32(0.3275911) * x)
    tail = np.float32(1.061405429) * t - np.float32(1.453152027)
    for c in (1.421413741, -0.284496736, 0.254829592):
        tail = tail * t + np.float32(c)
    tail *= t * np.exp(-x * x)
    found: Array = np.where(z < 0, 0.5 * tail, 1 - 0.5 * tail)
    return found


def _gelu(z: Array) -> Array:
    y: Array = z * _normal_cdf(z)
    return y


def _gelu_slope(z: Array, y: Array) -> Array:
    density = np.exp(-0.5 * z * z) * np.float32(1 / np.sqrt(2 * np.pi))
    slope: Array = _normal_cdf(z) + z * density
    return slope


def _same(z: Array) -> Array:
    return z


# name -> (function, its derivative written in the function's input and output)
ACTIVATIONS: dict[str, tuple[Callable[[Array], Array], Callable[[Array, Array], Any]]] = {
    "identity": (_same, lambda z, y: 1.0),
    "relu": (_relu, _relu_slope),
    "tanh": (np.tanh, _tanh_slope),
    "sigmoid": (_sigmoid, _sigmoid_slope),
    "silu": (_silu, _silu_slope),
    "gelu": (_gelu, _gelu_slope),
}


@dataclass
class Activation(Module):
    """y = function(x), element by element.

    Attributes
    ----------
    function : {"relu", "tanh", "sigmoid", "silu", "gelu", "identity"}
        "gelu" is the exact one, x times the normal distribution function.
    """

    kind: ClassVar[str] = "activation"

    function: str = "relu"
    name: str = ""
    inputs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        choice(self.function, "function", ACTIVATIONS)

    def forward(self, *xs: Array, training: bool = False) -> tuple[Array, Any]:
        """The function's values."""
        y = ACTIVATIONS[self.function][0](xs[0])
        return y, (xs[0], y)

    def backward(
        self, dy: Array, saved: Any, dx: bool = True
    ) -> tuple[list[Array | None], dict[str, Array]]:
        """dx = dy * function'(x)."""
        return [dy * ACTIVATIONS[self.function][1](*saved)], {}


def softmax(x: Array) -> Array:
    """exp(x) / sum of exp(x) over the last axis."""
    y: Array = np.exp(x - x.max(axis=-1, keepdims=True))
    y /= y.sum(axis=-1, keepdims=True)
    return y


@dataclass
class Softmax(Module):
    """y = exp(x) / sum of exp(x) over the last axis."""

    kind: ClassVar[str] = "softmax"

    name: str = ""
    inputs: tuple[str, ...] = ()

    def forward(self, *xs: Array, training: bool = False) -> tuple[Array, Any]:
        """Positive values that sum to 1."""
        y = softmax(xs[0])
        return y, y

    def backward(
        self, dy: Array, saved: Any, dx: bool = True
    ) -> tuple[list[Array | None], dict[str, Array]]:
        """dx = y * (dy - sum(dy * y))."""
        weighted = dy * saved
        return [weighted - saved * weighted.sum(axis=-1, keepdims=True)], {}
