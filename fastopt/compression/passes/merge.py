"""Merge similar units into one; the next layers take the merged units."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt.compression.passes.calibration import Calibration
from fastopt.compression.passes.prune import units_left
from fastopt.merging import merge_neurons
from fastopt.models import Group, Model
from fastopt.search import Float

NAME = "merge"
SMALLEST_SHARE = 1 / 8


def variables(model: Model) -> dict[str, Float]:
    """For each group that one layer makes and one input reads the share of units that stays."""
    return {
        name: Float(SMALLEST_SHARE, 1.0, log=True)
        for name, group in model.groups.items()
        if group.frozen is None and group.n_units > 1 and _mergeable(model, group)
    }


def start(share: float, variable: Float) -> float:
    """Merge nothing."""
    return 1.0


def apply(model: Model, place: str, value: Any, calibration: Calibration) -> str | None:
    """Merge the group's units down to ``value`` of them."""
    group = model.groups.get(place)
    if group is None:  # one unit is left, which no label tells from a broadcast axis
        return None
    n_keep = units_left(group, value)
    if n_keep == group.n_units:
        return None
    layers = model.layers
    (members,) = group.stacks(layers)
    (producer,) = group.producers
    layer = layers[producer.tensor]
    weight, columns, n_units = group.stack(members, layers)
    gram = calibration.gram(members[0].tensor).take(columns[:n_units])
    own = producer.index.reshape(-1)
    merged = merge_neurons(
        layer.weight[own],
        None if layer.bias is None else layer.bias[own],
        weight[:, :n_units],
        n_keep,
        gram=gram,
    )
    fitted = np.hstack([merged.w_out, weight[:, n_units:]])
    weights = group.unstack(members, layers, merged.index, fitted, merged.bias_shift)
    model.keep_units(place, merged.index, weights)
    return f"{group.n_units} -> {n_keep} units, similar ones merged"


def _mergeable(model: Model, group: Group) -> bool:
    """One dense producer, one stack of consumers, one column per unit."""
    stacks = group.stacks(model.layers)
    if len(group.producers) != 1 or len(stacks) != 1:
        return False
    reader = model.layers[stacks[0][0].tensor]
    return (
        stacks[0][0].index.shape[1] == 1
        and group.producers[0].index.shape[1] == 1
        and reader.tap is not None
        and reader.n_blocks == 1
    )
