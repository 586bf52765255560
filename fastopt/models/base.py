"""The protocol: what a compression pass needs of a model, and nothing more."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from fastopt._arrays import Array
from fastopt.quantization import QuantizedArray

__all__ = ["Fittable", "Group", "Layer", "Model"]


@dataclass(frozen=True)
class Layer:
    """One linear layer: y = x @ weight + bias.

    Attributes
    ----------
    name : str
    weight : (n_in, n_out) float32
        Dense values, also where the layer is stored quantised.
    bias : (n_out,) float32 or None
    macs : int
        Multiply-adds for one input row.
    tap : str
        Name of the tensor that feeds the layer; ``Model.run(data, taps=(tap,))`` yields it.
    stored : QuantizedArray or None
        The weight's codes, where the layer is stored quantised.
    """

    name: str
    weight: Array
    bias: Array | None
    macs: int
    tap: str
    stored: QuantizedArray | None = None

    @property
    def nbytes(self) -> int:
        """Bytes the layer takes in a file."""
        weight = self.weight.nbytes if self.stored is None else self.stored.nbytes
        return weight + (0 if self.bias is None else self.bias.nbytes)


@dataclass(frozen=True)
class Group:
    """A coupling group: units that live and die together.

    Attributes
    ----------
    name : str
    n_units : int
    unit_size : int
        Columns a unit: 1 for a neuron, the head's width for an attention head.
    producers, followers, consumers : tuple of str
        Layers that make the units, per-unit layers between, layers that read them.
    tap : str
        Name of the tensor that holds the units' activations.
    """

    name: str
    n_units: int
    unit_size: int
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    tap: str
    followers: tuple[str, ...] = field(default=())


class Model(Protocol):
    """A model as compression sees it. Every edit changes this object; ``copy`` before."""

    @property
    def layers(self) -> dict[str, Layer]:
        """The linear layers in order of execution."""
        ...

    @property
    def groups(self) -> dict[str, Group]:
        """The groups whose units can be removed or merged, in order of execution."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of all parameters as they would be saved."""
        ...

    @property
    def n_params(self) -> int:
        """Number of parameters."""
        ...

    @property
    def macs(self) -> int:
        """Multiply-adds for one input row."""
        ...

    def run(
        self, data: Any, taps: Sequence[str] = (), batch_size: int = 1024
    ) -> Iterator[tuple[Array, dict[str, Array]]]:
        """Outputs and tapped activations, batch by batch."""
        ...

    def set_layer(self, name: str, weight: Array, bias: Array | None) -> None:
        """Replace a layer's weight and bias (same shape)."""
        ...

    def replace_units(
        self,
        group: str,
        producers: Mapping[str, tuple[Array, Array | None]],
        consumers: Mapping[str, tuple[Array, Array | None]],
    ) -> None:
        """Give a group fewer units: new (weight, bias) for each of its producers and consumers."""
        ...

    def split_layer(self, name: str, first: Array, second: Array) -> None:
        """Replace a layer by two thinner ones, first (n_in, r) then second (r, n_out)."""
        ...

    def store_quantized(self, name: str, codes: QuantizedArray) -> None:
        """Store a layer's weight as ``codes``; it computes with their dequantised values."""
        ...

    def copy(self) -> Model:
        """An independent copy."""
        ...

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model to a new file."""
        ...


@runtime_checkable
class Fittable(Protocol):
    """A model whose parameters can all be fitted at once; compression works without it."""

    def match(self, x: Any, outputs: Any, max_iter: int) -> tuple[float, float]:
        """In place: bring the outputs on ``x`` close to ``outputs``; error before and after."""
        ...
