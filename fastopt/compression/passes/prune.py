"""Remove the units that the next layers miss least; those layers are refitted (OBS)."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt._arrays import Array
from fastopt.compression.passes.calibration import Calibration
from fastopt.models import Group, Model
from fastopt.pruning import select_units
from fastopt.search import Float

NAME = "prune"
SMALLEST_SHARE = 1 / 32


def variables(model: Model) -> dict[str, Float]:
    """For each group the share of its units that stays."""
    return {name: Float(SMALLEST_SHARE, 1.0, log=True) for name in model.groups}


def start(share: float) -> float:
    """Keep that share of the units."""
    return share


def apply(model: Model, place: str, value: Any, calibration: Calibration) -> str | None:
    """Keep ``value`` of the group's units."""
    group = model.groups[place]
    n_keep = units_left(group, value)
    if n_keep == group.n_units:
        return None
    weights = [model.layers[name].weight for name in group.consumers]
    chosen = select_units(calibration.gram(model, group.tap), np.hstack(weights).T, n_keep)
    model.replace_units(
        place,
        {name: keep_columns(model, name, chosen.index) for name in group.producers},
        split_consumers(model, group, chosen.w_next.T, chosen.bias_shift),
    )
    return f"{group.n_units} -> {n_keep} units, next layer refitted"


def units_left(group: Group, share: float) -> int:
    """At least one unit stays."""
    return max(1, round(share * group.n_units))


def keep_columns(model: Model, name: str, index: Array) -> tuple[Array, Array | None]:
    """A producer's weight and bias with the units ``index`` only."""
    layer = model.layers[name]
    return layer.weight[:, index], None if layer.bias is None else layer.bias[index]


def split_consumers(
    model: Model, group: Group, w_next: Array, shift: Array
) -> dict[str, tuple[Array, Array | None]]:
    """The refitted weights, stacked side by side, handed back to each consumer."""
    found: dict[str, tuple[Array, Array | None]] = {}
    start = 0
    for name in group.consumers:
        layer = model.layers[name]
        stop = start + layer.weight.shape[1]
        old = 0 if layer.bias is None else layer.bias
        bias = np.asarray(old + shift[start:stop], np.float32)
        found[name] = (w_next[:, start:stop], bias)
        start = stop
    return found
