"""Elementwise functions and their slopes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastopt._arrays import Array

__all__ = ["ACTIVATIONS"]


def _relu(z: Array) -> Array:
    return np.maximum(z, 0)


def _relu_slope(y: Array) -> Array:
    slope: Array = y > 0
    return slope


def _tanh_slope(y: Array) -> Array:
    return 1 - y * y


def _sigmoid(z: Array) -> Array:
    y: Array = 0.5 * (np.tanh(0.5 * z) + 1)  # no overflow for any z
    return y


def _sigmoid_slope(y: Array) -> Array:
    slope: Array = y * (1 - y)
    return slope


def _same(z: Array) -> Array:
    return z


# name -> (function, its derivative written in the function's own output)
ACTIVATIONS: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Any]]] = {
    "identity": (_same, lambda y: 1.0),
    "relu": (_relu, _relu_slope),
    "tanh": (np.tanh, _tanh_slope),
    "sigmoid": (_sigmoid, _sigmoid_slope),
}
