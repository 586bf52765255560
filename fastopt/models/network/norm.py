"""Normalisation over the rows of a batch, or over the features of each position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fastopt._arrays import Array
from fastopt._options import number
from fastopt.errors import ArrayError
from fastopt.models.network.module import Module, float_array, vector
from fastopt.models.network.patches import sums

__all__ = ["BatchNorm", "LayerNorm"]


@dataclass
class BatchNorm(Module):
    """y = (x - mean) / sqrt(var + eps) * weight + bias for each channel (axis 1), as torch's.

    In training mean and (biased) variance are the batch's, and move the running ones, the
    variance as an unbiased one; otherwise they are the running ones (Ioffe and Szegedy 2015).

    Attributes
    ----------
    weight, bias, running_mean, running_var : (channels,) float32
    momentum : float
        running = (1 - momentum) * running + momentum * batch.
    eps : float

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.models.network import BatchNorm
    >>> norm = BatchNorm.fresh(2)
    >>> x = np.array([[1, 10], [3, 30]], np.float32)
    >>> norm.forward(x, training=True)[0].round(2)
    array([[-1., -1.],
           [ 1.,  1.]], dtype=float32)
    >>> norm.running_mean
    array([0.2, 2. ], dtype=float32)
    """

    kind: ClassVar[str] = "batch_norm"
    arrays: ClassVar[tuple[str, ...]] = ("weight", "bias")
    buffers: ClassVar[tuple[str, ...]] = ("running_mean", "running_var")

    weight: Array
    bias: Array
    running_mean: Array
    running_var: Array
    momentum: float = 0.1
    eps: float = 1e-5
    name: str = ""
    inputs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.weight = float_array(self.weight, "weight", 1)
        for field in ("bias", "running_mean", "running_var"):
            setattr(self, field, vector(getattr(self, field), field, len(self.weight)))
        if (self.running_var < 0).any():
            raise ArrayError("running_var: holds negative values")
        number(self.momentum, "momentum", low=0, high=1)
        number(self.eps, "eps", low=0)

    @classmethod
    def fresh(cls, channels: int, **more: Any) -> BatchNorm:
        """Weights and variances 1, biases and means 0."""
        one, zero = np.ones(channels, np.float32), np.zeros(channels, np.float32)
        return cls(one, zero, zero.copy(), one.copy(), **more)

    def shape(self, *shapes: tuple[int, ...]) -> tuple[int, ...]:
        """As the input's."""
        if not shapes[0] or shapes[0][0] != len(self.weight):
            raise ArrayError(
                f"layers: {self.name} takes {len(self.weight)} channels, got shape {shapes[0]}"
            )
        return shapes[0]

    def forward(self, *xs: Array, training: bool = False) -> tuple[Array, Any]:
        """The normalised input, scaled and shifted."""
        x = xs[0]
        if not training:
            root = 1 / np.sqrt(self.running_var + np.float32(self.eps))
            slope = root * self.weight
            y = x * _column(slope, x)
            y += _column(self.bias - self.running_mean * slope, x)
            return y, (x, self.running_mean, root)
        lines = _lines(x)
        n = lines.shape[1]
        mean = sums(lines) / np.float32(n)
        centred = lines - mean[:, None]
        var = np.einsum("ck,ck->c", centred, centred) / np.float32(n)
        share = np.float32(self.momentum)
        self.running_mean += share * (mean - self.running_mean)
        self.running_var += share * (var * np.float32(n / max(1, n - 1)) - self.running_var)
        root = 1 / np.sqrt(var + np.float32(self.eps))
        y = centred * (root * self.weight)[:, None]
        y += self.bias[:, None]
        return _unlined(y, x.shape), (centred, None, root)

    def backward(
        self, dy: Array, saved: Any, dx: bool = True
    ) -> tuple[list[Array | None], dict[str, Array]]:
        """dx = weight / sigma * (dy - mean(dy) - h * mean(dy * h)), h the normalised input.

        With running statistics h is no function of the batch: dx = weight / sigma * dy.
        """
        centred, mean, root = saved
        if mean is not None:
            centred = _lines(centred) - mean[:, None]
        lines = _lines(dy)
        grads = {
            "weight": root * np.einsum("ck,ck->c", lines, centred),
            "bias": sums(lines),
        }
        if not dx:
            return [None], grads
        slope = root * self.weight
        back = lines * slope[:, None]
        if mean is None:
            n = np.float32(lines.shape[1])
            centred *= (-slope * root * grads["weight"] / n)[:, None]  # not needed any more
            back += centred
            back -= (slope * grads["bias"] / n)[:, None]
        return [_unlined(back, dy.shape)], grads


def _column(v: Array, x: Array) -> Array:
    """One value per channel, to meet axis 1 of x."""
    return v.reshape(-1, *[1] * (x.ndim - 2))


def _lines(x: Array) -> Array:
    """(channels, everything else)."""
    lines: Array = x.transpose(*range(1, x.ndim), 0).reshape(x.shape[1], -1)
    return lines


def _unlined(lines: Array, shape: tuple[int, ...]) -> Array:
    found: Array = lines.reshape(*shape[1:], shape[0]).transpose(-1, *range(len(shape) - 1))
    return found


@dataclass
class LayerNorm(Module):
    """y = (x - mean) / sqrt(var + eps) * weight + bias over the last axis, as torch's.

    Attributes
    ----------
    weight : (features,) float32
    bias : (features,) float32 or None
    eps : float
    """

    kind: ClassVar[str] = "layer_norm"
    arrays: ClassVar[tuple[str, ...]] = ("weight", "bias")

    weight: Array
    bias: Array | None = None
    eps: float = 1e-5
    name: str = ""
    inputs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.weight = float_array(self.weight, "weight", 1)
        if self.bias is not None:
            self.bias = vector(self.bias, "bias", len(self.weight))
        number(self.eps, "eps", low=0)

    @classmethod
    def fresh(cls, features: int, **more: Any) -> LayerNorm:
        """Weights 1, biases 0."""
        return cls(np.ones(features, np.float32), np.zeros(features, np.float32), **more)

    def shape(self, *shapes: tuple[int, ...]) -> tuple[int, ...]:
        """As the input's."""
        if not shapes[0] or shapes[0][-1] != len(self.weight):
            raise ArrayError(
                f"layers: {self.name} takes {len(self.weight)} features, got shape {shapes[0]}"
            )
        return shapes[0]

    def forward(self, *xs: Array, training: bool = False) -> tuple[Array, Any]:
        """The normalised input, scaled and shifted."""
        h = xs[0] - xs[0].mean(axis=-1, keepdims=True)
        var = np.mean(h * h, axis=-1, keepdims=True)
        root = 1 / np.sqrt(var + np.float32(self.eps))
        h *= root
        y = h * self.weight
        return y if self.bias is None else y + self.bias, (h, root)

    def backward(
        self, dy: Array, saved: Any, dx: bool = True
    ) -> tuple[list[Array | None], dict[str, Array]]:
        """dx = (g - mean(g) - h * mean(g * h)) / sigma with g = dy * weight."""
        h, root = saved
        axes = tuple(range(dy.ndim - 1))
        grads = {"weight": (dy * h).sum(axis=axes)}
        if self.bias is not None:
            grads["bias"] = dy.sum(axis=axes)
        g = dy * self.weight
        back = g - g.mean(axis=-1, keepdims=True) - h * np.mean(g * h, axis=-1, keepdims=True)
        return [back * root], grads
