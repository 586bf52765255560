"""A dense layer: y = activation(x @ W^T + b)."""

from __future__ import annotations

from dataclasses import dataclass

from fastopt._arrays import Array, as_array
from fastopt._options import choice
from fastopt.models.network.activations import ACTIVATIONS
from fastopt.quantization import QuantizedArray

__all__ = ["Dense"]


@dataclass
class Dense:
    """One layer: ``activation(x @ weight.T + bias)``.

    Attributes
    ----------
    weight : (n_out, n_in) float32
    bias : (n_out,) float32 or None
    activation : {"identity", "relu", "tanh", "sigmoid"}
    stored : QuantizedArray or None
        Set by ``Network.store``; ``weight`` then holds its dequantised values.
    """

    weight: Array
    bias: Array | None
    activation: str = "identity"
    name: str = ""
    stored: QuantizedArray | None = None

    def __post_init__(self) -> None:
        self.weight = as_array(self.weight, "weight", dtypes=("float32",), cast="float32", ndim=2)
        if self.bias is not None:
            self.bias = as_array(
                self.bias,
                "bias",
                dtypes=("float32",),
                cast="float32",
                shape=(self.weight.shape[0],),
            )
        choice(self.activation, "activation", ACTIVATIONS)

    def __call__(self, x: Array) -> Array:
        z: Array = x @ self.weight.T
        if self.bias is not None:
            z += self.bias
        return ACTIVATIONS[self.activation][0](z)
