"""Multi-head attention, and the five modules that make self-attention of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fastopt._arrays import Array
from fastopt._options import integer
from fastopt._random import Seed, generator_of
from fastopt.errors import ArrayError
from fastopt.models.network.activations import softmax
from fastopt.models.network.dense import Dense
from fastopt.models.network.module import Module

__all__ = ["Attention", "self_attention"]


@dataclass
class Attention(Module):
    """softmax(q k^T / sqrt(d)) v in each head (Vaswani et al. 2017, equation 1).

    It reads query, key and value, (tokens, n_heads * d) each, and has no weights: those are dense
    layers before and after it, which :func:`self_attention` makes.

    Attributes
    ----------
    n_heads : int
    """

    kind: ClassVar[str] = "attention"
    n_inputs: ClassVar[int | None] = 3

    n_heads: int
    name: str = ""
    inputs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        integer(self.n_heads, "n_heads", low=1)

    def shape(self, *shapes: tuple[int, ...]) -> tuple[int, ...]:
        """(queries, width of the values)."""
        q, k, v = shapes
        fits = len(q) == len(k) == len(v) == 2 and q[1] == k[1] and k[0] == v[0]
        if not fits or q[1] % self.n_heads or v[1] % self.n_heads:
            raise ArrayError(
                f"layers: {self.name} takes (tokens, {self.n_heads} heads * d) three times, got "
                f"{list(shapes)}"
            )
        return q[0], v[1]

    def macs(self, shape: tuple[int, ...], *inputs: tuple[int, ...]) -> int:
        """Both products between tokens."""
        q, k, v = inputs
        return q[0] * k[0] * (q[1] + v[1])

    def _cut(self, x: Array) -> Array:
        """(n, tokens, heads * d) as (n, heads, tokens, d)."""
        n, tokens, width = x.shape
        heads: Array = x.reshape(n, tokens, self.n_heads, width // self.n_heads)
        turned: Array = heads.transpose(0, 2, 1, 3)
        return turned

    def _joined(self, x: Array) -> Array:
        n, heads, tokens, d = x.shape
        joined: Array = x.transpose(0, 2, 1, 3).reshape(n, tokens, heads * d)
        return joined

    def forward(self, *xs: Array, training: bool = False) -> tuple[Array, Any]:
        """The heads' means of the values, side by side."""
        q, k, v = map(self._cut, xs)
        share = softmax((q @ k.swapaxes(-1, -2)) * np.float32(q.shape[-1] ** -0.5))
        return self._joined(share @ v), (q, k, v, share)

    def backward(
        self, dy: Array, saved: Any, dx: bool = True
    ) -> tuple[list[Array | None], dict[str, Array]]:
        """Through both products and the softmax between them."""
        q, k, v, share = saved
        dy = self._cut(dy)
        g = share * (dy @ v.swapaxes(-1, -2))
        scores = g - share * g.sum(axis=-1, keepdims=True)
        scores *= np.float32(q.shape[-1] ** -0.5)
        backs = (scores @ k, scores.swapaxes(-1, -2) @ q, share.swapaxes(-1, -2) @ dy)
        return [self._joined(b) for b in backs], {}


def self_attention(
    name: str, width: int, n_heads: int, source: str, seed: Seed = None
) -> list[Module]:
    """Five modules: dense ``name.q``, ``.k`` and ``.v``, attention ``name``, dense ``name.out``.

    Parameters
    ----------
    width : int
        Features of a token, a multiple of ``n_heads``.
    source : str
        Name of the module that they read.

    Examples
    --------
    >>> from fastopt.models import Network
    >>> from fastopt.models.network import Dense, Mean, self_attention
    >>> layers = [Dense.random(8, 16, name="tokens"), *self_attention("a", 16, 4, "tokens")]
    >>> net = Network([*layers, Mean(), Dense.random(16, 3)], input_shape=(5, 8))
    >>> net.groups["a.q"].n_units  # heads
    4
    """
    integer(n_heads, "n_heads", low=1)
    if integer(width, "width", low=1) % n_heads:
        raise ArrayError(f"width: {width} cannot be cut into {n_heads} heads")
    rng = generator_of(seed)
    names = [f"{name}.{part}" for part in "qkv"]
    made = [Dense.random(width, width, seed=rng, name=n, inputs=(source,)) for n in names]
    out = Dense.random(width, width, seed=rng, name=f"{name}.out", inputs=(name,))
    return [*made, Attention(n_heads, name, tuple(names)), out]
