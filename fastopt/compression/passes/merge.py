"""Merge similar units into one; the next layers take the merged units."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt.compression.passes.calibration import Calibration
from fastopt.compression.passes.prune import split_consumers, units_left
from fastopt.errors import UnsupportedError
from fastopt.merging import merge_neurons
from fastopt.models import Model
from fastopt.search import Float

NAME = "merge"
SMALLEST_SHARE = 1 / 8


def variables(model: Model) -> dict[str, Float]:
    """For each group made by one layer the share of its units that stays."""
    return {
        name: Float(SMALLEST_SHARE, 1.0, log=True)
        for name, group in model.groups.items()
        if len(group.producers) == 1
    }


def start(share: float) -> float:
    """Merge nothing."""
    return 1.0


def apply(model: Model, place: str, value: Any, calibration: Calibration) -> str | None:
    """Merge the group's units down to ``value`` of them."""
    group = model.groups[place]
    if len(group.producers) != 1:
        raise UnsupportedError(f"merge: {place} is made by {len(group.producers)} layers, not one")
    n_keep = units_left(group, value)
    if n_keep == group.n_units:
        return None
    (producer,) = group.producers
    layer = model.layers[producer]
    weights = [model.layers[name].weight for name in group.consumers]
    merged = merge_neurons(
        layer.weight.T,
        layer.bias,
        np.hstack(weights).T,
        n_keep,
        gram=calibration.gram(model, group.tap),
    )
    model.replace_units(
        place,
        {producer: (merged.w_in.T, merged.b_in)},
        split_consumers(model, group, merged.w_out.T, merged.bias_shift),
    )
    return f"{group.n_units} -> {n_keep} units, similar ones merged"
