"""How much each unit matters, and how layers share a budget of units.

Scores alone are far behind a selection with compensation: pass the order to
:func:`~fastopt.pruning.select_units`, which refits the next layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastopt._arrays import Array, as_array, check_finite
from fastopt._options import choice, integer, number
from fastopt.calibration import Gram, check_gram
from fastopt.errors import ArrayError, DTypeError, OptionError

__all__ = ["share_units", "unit_scores"]

_METHODS = ("norm", "fpgm", "activation", "taylor")


def unit_scores(
    w: Any,
    method: str = "norm",
    *,
    gram: Gram | None = None,
    grads: Any = None,
    unit_size: int = 1,
) -> Array:
    """One score per unit of a layer, larger is more important.

    Parameters
    ----------
    w : (n_units * unit_size, ...) float32 or float64
        The layer's weight; ``unit_size`` consecutive rows make one unit.
    method : str
        "norm": ||w_u|| (Li et al., "Pruning filters for efficient convnets", 2017).
        "fpgm": the distance to all other units, sum_v ||w_u - w_v|| (He et al., "Filter pruning
        via geometric median", 2019, eq. 4).
        "activation": the standard deviation of the unit's output, from ``gram``.
        "taylor": (sum w dL/dw)^2 over the unit (Molchanov et al., "Importance estimation for
        neural network pruning", 2019, eq. 8), from ``grads``.
    gram : Gram, optional
        Of the units' activations, for "activation".
    grads : array, optional
        Gradients of ``w``, for "taylor".
    unit_size : int
        Rows per unit (the width of an attention head).

    Returns
    -------
    (n_units,) float64

    Raises
    ------
    DTypeError, ArrayError, OptionError
        A bad argument, or data that the method lacks or does not use.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.pruning import unit_scores
    >>> unit_scores(np.array([[3.0, 4.0], [1.0, 0.0]])).tolist()
    [5.0, 1.0]
    """
    weight = as_array(w, "w")
    if weight.ndim == 0:
        raise ArrayError("w: expected one row per unit, got a scalar")
    name = choice(method, "method", _METHODS)
    size = integer(unit_size, "unit_size", low=1)
    if len(weight) % size:
        raise OptionError(f"unit_size: expected a divisor of {len(weight)}, got {size}")
    check_finite(weight, "w")
    for argument, given, user in (("gram", gram, "activation"), ("grads", grads, "taylor")):
        if (given is None) == (name == user):
            wanted = "needs" if given is None else "does not use"
            raise OptionError(f"{argument}: method={name!r} {wanted} it")
    n = len(weight) // size
    units = weight.reshape(n, -1).astype(np.float64)
    score: Array
    if gram is not None:
        variance = check_gram(gram, len(weight)).variance
        score = np.sqrt(variance.reshape(n, size).sum(axis=1))
    elif grads is not None:
        slope = as_array(grads, "grads", shape=weight.shape)
        check_finite(slope, "grads")
        score = np.square((units * slope.reshape(n, -1)).sum(axis=1))
    elif name == "norm":
        score = np.linalg.norm(units, axis=1)
    else:
        square = np.einsum("ij,ij->i", units, units)
        gaps = square[:, None] + square - 2 * (units @ units.T)
        score = np.sqrt(np.maximum(gaps, 0.0)).sum(axis=1)
    return score


def share_units(
    costs: Sequence[Any],
    prices: Sequence[float],
    budget: float,
    *,
    multiple_of: int = 1,
) -> list[int]:
    """Units to remove from each layer so that ``budget`` is saved at the least total cost.

    Parameters
    ----------
    costs : sequence of (n_units - 1,) arrays
        For each layer the cost of each removal in order, as :func:`removal_order` gives it,
        divided by the variance of the layer's output so that layers compare.
    prices : sequence of float
        What one unit of each layer saves: bytes, multiply-adds or seconds.
    budget : float
        What has to be saved in all, in the unit of ``prices``.
    multiple_of : int
        Remove units in steps of this many (8 keeps widths that vector instructions like).

    Returns
    -------
    list of int
        Units to remove per layer.

    Raises
    ------
    DTypeError
        ``costs`` or ``prices`` is no sequence.
    OptionError
        The budget is more than all layers together can save.

    Notes
    -----
    Greedy on cost per price over steps of ``multiple_of`` removals: the steps of a layer are taken
    in its order, and a later step that is cheaper is merged with the one before it (the lower
    convex hull), for which the greedy choice is optimal up to the last step.

    Examples
    --------
    >>> from fastopt.pruning import share_units
    >>> share_units([[0.1, 0.2, 5.0], [1.0, 1.0, 1.0]], [10.0, 10.0], 30.0)
    [2, 1]
    """
    step = integer(multiple_of, "multiple_of", low=1)
    wanted = number(budget, "budget", low=0.0)
    if not isinstance(costs, Sequence) or not isinstance(prices, Sequence):
        raise DTypeError("costs: expected a sequence of arrays, and prices a sequence of numbers")
    if len(costs) != len(prices):
        raise OptionError(f"prices: expected {len(costs)} numbers, got {len(prices)}")
    pieces: list[tuple[float, int, int, float]] = []  # (cost per price, layer, units, price)
    for layer, (given, price) in enumerate(zip(costs, prices, strict=True)):
        cost = as_array(given, f"costs[{layer}]", cast="float64", ndim=1)
        worth = number(price, f"prices[{layer}]", low=0.0, low_open=True)
        pieces.extend((ratio, layer, units, worth) for ratio, units in _hull(cost, step, worth))
    removed, saved = [0] * len(costs), 0.0
    for _, layer, units, worth in sorted(pieces, key=lambda p: p[:2]):
        if saved >= wanted:
            break
        missing = -(-int(np.ceil((wanted - saved) / worth)) // step) * step
        taken = min(units, missing)
        removed[layer] += taken
        saved += taken * worth
    if saved < wanted:
        raise OptionError(f"budget: all layers together save {saved:g}, not {wanted:g}")
    return removed


def _hull(cost: Array, step: int, price: float) -> list[tuple[float, int]]:
    """(cost per price, units) of a layer's removals, merged until the ratios do not fall."""
    merged: list[tuple[float, int]] = []  # (summed cost, units)
    for start in range(0, len(cost) - step + 1, step):
        total, units = float(cost[start : start + step].sum()), step
        while merged and merged[-1][0] * units >= total * merged[-1][1]:
            before, more = merged.pop()
            total, units = total + before, units + more
        merged.append((total, units))
    return [(total / (units * price), units) for total, units in merged]
