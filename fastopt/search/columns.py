"""What each kind of variable puts into the columns of the matrix of trials."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastopt._options import number
from fastopt.errors import DTypeError, OptionError
from fastopt.search.variables import Bool, Choice, Float, Int, Permutation, Variable, Vector

__all__ = [
    "column_of",
    "conditions_of",
    "is_absent",
    "limits_of",
    "mutable_rows",
    "objects_of",
    "options_array",
]

Conditions: TypeAlias = dict[str, list[tuple[str, NDArray[np.float64]]]]

# Options that an objective could write into: it gets copies.
MUTABLE = (np.ndarray, list, dict, set, bytearray)


def conditions_of(
    variables: dict[str, Variable],
) -> dict[str, list[tuple[str, NDArray[np.float64]]]]:
    """Name -> (parent, its values at which the variable is active), parents before children."""
    ordered: Conditions = {}
    waiting = {name: v for name, v in variables.items() if v.when is not None}
    for name, v in waiting.items():
        for parent in v.when or ():
            if parent not in variables:
                raise OptionError(f"{name}: when names {parent!r}, which is no variable")
    while waiting:
        ready = [n for n, v in waiting.items() if not any(p in waiting for p in v.when or ())]
        if not ready:
            raise OptionError(f"{', '.join(waiting)}: when goes round in a circle")
        for name in ready:
            v = waiting.pop(name)
            ordered[name] = [
                (parent, codes_of(parent, variables[parent], wanted, name))
                for parent, wanted in (v.when or {}).items()
            ]
    return ordered


def codes_of(parent: str, v: Variable, wanted: tuple[Any, ...], name: str) -> NDArray[np.float64]:
    """Values of the parent's column for the values named in ``when``."""
    if isinstance(v, (Choice, Bool, Int)):
        codes: list[float] = []
        for value in wanted:
            try:
                if isinstance(v, Choice):
                    codes.append(v.index(value))
                else:
                    low, high = limits_of(v)
                    codes.append(number(value, parent, low=low, high=high))
            except (OptionError, DTypeError) as error:
                raise OptionError(f"{name}: when {parent} is {value!r}: {error}") from None
        return np.array(codes)
    raise OptionError(f"{name}: when can name a Choice, Bool or Int, not {parent}={v!r}")


def column_of(v: Variable) -> tuple[float, float, str, float]:
    """Genome bounds, kind of column, number of points."""
    if isinstance(v, Float):
        if v.log:
            return math.log(v.low), math.log(v.high), "log", 1.0 if v.low == v.high else math.inf
        if v.step is not None:
            steps = math.floor((v.high - v.low) / v.step * (1 + 1e-12))
            half = 0.5 * v.step * (1 - 1e-9)
            return v.low - half, v.low + steps * v.step + half, "step", float(steps + 1)
        return v.low, v.high, "real", 1.0 if v.low == v.high else math.inf
    if isinstance(v, Int):
        if v.log:
            return math.log(v.low - 0.5), math.log(v.high + 0.5), "log int", v.high - v.low + 1.0
        return v.low - 0.5, v.high + 0.5, "int", v.high - v.low + 1.0
    if isinstance(v, Choice):
        return -0.5, len(v.options) - 0.5, "category", float(len(v.options))
    if isinstance(v, Bool):
        return -0.5, 1.5, "category", 2.0
    if isinstance(v, Permutation):
        return 0.0, 1.0, "key", math.factorial(v.n) if v.n < 171 else math.inf
    return v.low, v.high, "real", 1.0 if v.low == v.high else math.inf


def limits_of(v: Variable) -> tuple[float, float]:
    """Lowest and highest number in the variable's columns."""
    if isinstance(v, Float) and v.step is not None:
        return v.low, v.low + v.step * math.floor((v.high - v.low) / v.step * (1 + 1e-12))
    if isinstance(v, (Float, Int, Vector)):
        return float(v.low), float(v.high)
    if isinstance(v, Choice):
        return 0.0, len(v.options) - 1.0
    if isinstance(v, Permutation):
        return 0.0, v.n - 1.0
    return 0.0, 1.0


def is_absent(value: Any, v: Variable) -> bool:
    """Whether a column's entry says that the variable is inactive."""
    if value is None:
        return not (isinstance(v, Choice) and None in v.options)
    if isinstance(v, (Float, Int)):
        return isinstance(value, float) and math.isnan(value)
    return isinstance(v, Vector) and bool(np.isnan(value).all())


def mutable_rows(v: Choice, codes: NDArray[np.intp]) -> list[int]:
    """Rows whose option an objective could write into."""
    risky = [i for i, option in enumerate(v.options) if isinstance(option, MUTABLE)]
    rows: list[int] = np.flatnonzero(np.isin(codes, risky)).tolist() if risky else []
    return rows


def options_array(v: Choice) -> NDArray[Any]:
    """Options as an array: str, bool or number dtype where all are of one such type."""
    kinds = {type(o) for o in v.options}
    if len(kinds) == 1 and kinds <= {str, bool, int, float}:
        return np.array(v.options)
    return objects_of(v.options)


def objects_of(items: Iterable[Any]) -> NDArray[Any]:
    """Objects as a one-dimensional array, whatever they are."""
    items = list(items)
    array = np.empty(len(items), dtype=object)
    for i, item in enumerate(items):
        array[i] = item
    return array
