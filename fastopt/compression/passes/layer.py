"""Split a layer into two thinner ones (activation-aware low rank)."""

from __future__ import annotations

from typing import Any

from fastopt.compression.passes.calibration import Calibration
from fastopt.layering import split_low_rank
from fastopt.models import Model
from fastopt.search import Choice

NAME = "layer"
SHARES = (1.0, 0.75, 0.5, 0.35, 0.25)
KINDS = ("dense", "conv")
THINNEST = 8  # a thinner layer is not worth an operator of its own


def variables(model: Model) -> dict[str, Choice]:
    """For each layer the share of its multiply-adds that the two thinner ones keep."""
    return {
        name: Choice(*SHARES)
        for name, layer in model.layers.items()
        if layer.kind in KINDS
        and layer.n_blocks == 1
        and layer.uses == 1
        and min(layer.weight.shape) >= THINNEST
    }


def start(share: float, variable: Choice) -> float:
    """Split nothing."""
    return 1.0


def apply(model: Model, place: str, value: Any, calibration: Calibration) -> str | None:
    """Split the layer so that about ``value`` of its weights stay; 1 leaves it whole."""
    layer = model.layers.get(place)
    if value >= 1 or layer is None:  # pruned until nothing is left to split
        return None
    n_out, n_in = layer.weight.shape
    rank = max(1, int(value * n_in * n_out / (n_in + n_out)))
    if rank * (n_in + n_out) >= n_in * n_out:
        return None  # too thin already: two layers would be larger than one
    gram = calibration.grams([place]).get(place)
    a, b = split_low_rank(layer.weight, rank=rank, gram=gram)
    model.split_layer(place, a, b)
    return f"{n_in} x {n_out} split at rank {rank}"
