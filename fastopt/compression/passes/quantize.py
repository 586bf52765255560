"""Store a layer's weight in fewer bits, one scale an output channel."""

from __future__ import annotations

from typing import Any

from fastopt.compression.passes.calibration import Calibration
from fastopt.models import Model
from fastopt.quantization import quantize
from fastopt.search import Choice

NAME = "quantize"
FORMATS = ("float32", "int8")


def variables(model: Model) -> dict[str, Choice]:
    """For each layer the format of its weight."""
    return {name: Choice(*FORMATS) for name in model.layers}


def start(share: float) -> str:
    """Store in the smallest format."""
    return FORMATS[-1]


def apply(model: Model, place: str, value: Any, calibration: Calibration) -> str | None:
    """Store the layer (or the two it was split into) as ``value``."""
    if value == "float32":
        return None
    names = [name for name in model.layers if name == place or name.startswith(f"{place}.")]
    for name in names:
        model.store_quantized(name, quantize(model.layers[name].weight, value, axis=1))
    return f"stored as {value}, one scale an output channel"
