"""Remove the units that the next layers miss least; those layers are refitted (OBS)."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt._arrays import Array
from fastopt.compression.passes.calibration import Calibration
from fastopt.errors import UnsupportedError
from fastopt.models import Group, Model
from fastopt.pruning import select_units
from fastopt.search import Float

NAME = "prune"
SMALLEST_SHARE = 1 / 32


def variables(model: Model) -> dict[str, Float]:
    """For each group that is not frozen the share of its units that stays."""
    return {
        name: Float(SMALLEST_SHARE, 1.0, log=True)
        for name, group in model.groups.items()
        if group.frozen is None and group.consumers and group.n_units > 1
    }


def start(share: float, variable: Float) -> float:
    """Keep that share of the units."""
    return share


def apply(model: Model, place: str, value: Any, calibration: Calibration) -> str | None:
    """Keep ``value`` of the group's units."""
    group = model.groups[place]
    n_keep = units_left(group, value)
    if n_keep == group.n_units:
        return None
    index, weights = chosen(model, group, n_keep, calibration)
    model.keep_units(place, index, weights)
    return f"{group.n_units} -> {n_keep} units, next layer refitted"


def units_left(group: Group, share: float) -> int:
    """At least one unit stays."""
    return max(1, round(share * group.n_units))


def chosen(
    model: Model, group: Group, n_keep: int, calibration: Calibration
) -> tuple[Array, dict[str, tuple[Array, Array | None]]]:
    """The units that stay, and the consumers' refitted weights.

    The widest stack of consumers that share one input chooses; the others are refitted for that
    choice.
    """
    layers = model.layers
    grams = calibration.grams(m.tensor for m in group.consumers)
    stacks = [s for s in group.stacks(layers) if s[0].tensor in grams]
    stacks.sort(key=lambda s: -sum(layers[m.tensor].weight.size for m in s))
    index: Array | None = None
    weights: dict[str, tuple[Array, Array | None]] = {}
    for members in stacks:
        weight, columns, n_units = group.stack(members, layers)
        gram = grams[members[0].tensor].take(columns[:n_units])
        size = n_units // group.n_units
        order = None if index is None else gone(index, group.n_units)
        found = select_units(gram, weight[:, :n_units], n_keep, unit_size=size, order=order)
        index = found.index
        rest = weight[:, n_units:]
        fitted = np.hstack([found.w_next, rest])
        weights |= group.unstack(members, layers, index, fitted, found.bias_shift)
    if index is None:
        raise UnsupportedError(f"prune: no consumer of {group.name} can be observed")
    return index, weights


def gone(index: Array, n_units: int) -> Array:
    """The units that are not in ``index``."""
    return np.setdiff1d(np.arange(n_units), index)
