"""Row 1: numbers and names that enter, checked once."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import Any

import numpy as np

from fastopt.errors import DTypeError, OptionError

__all__ = ["choice", "flag", "integer", "number"]


def number(
    value: Any,
    name: str,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    low_open: bool = False,
    high_open: bool = False,
) -> float:
    """``value`` as a finite float inside the interval, or OptionError naming the argument."""
    if isinstance(value, (str, bytes)):
        raise DTypeError(f"{name}: expected a number, got {value!r}")
    try:
        result = float(value)
    except (TypeError, ValueError):
        raise DTypeError(f"{name}: expected a number, got {type(value).__name__}") from None
    below = result <= low if low_open else result < low
    above = result >= high if high_open else result > high
    if not math.isfinite(result) or below or above:
        left = "(" if low_open or math.isinf(low) else "["
        right = ")" if high_open or math.isinf(high) else "]"
        wanted = (
            "a finite number"
            if math.isinf(low) and math.isinf(high)
            else f"a number in {left}{low:g}, {high:g}{right}"
        )
        raise OptionError(f"{name}: expected {wanted}, got {value!r}")
    return result


def integer(value: Any, name: str, *, low: int | None = None, high: int | None = None) -> int:
    """``value`` as an int inside [low, high], or OptionError naming the argument."""
    if isinstance(value, bool):
        raise DTypeError(f"{name}: expected an integer, got {value!r}")
    try:
        result = operator.index(value)
    except TypeError:
        raise DTypeError(f"{name}: expected an integer, got {value!r}") from None
    if (low is not None and result < low) or (high is not None and result > high):
        bounds = f">= {low}" if high is None else f"<= {high}" if low is None else f"{low}..{high}"
        raise OptionError(f"{name}: expected an integer {bounds}, got {result}")
    return result


def flag(value: Any, name: str) -> bool:
    """``value`` as a bool if it is one, or DTypeError naming the argument."""
    if not isinstance(value, (bool, np.bool_)):
        raise DTypeError(f"{name}: expected True or False, got {value!r}")
    return bool(value)


def choice(value: Any, name: str, options: Iterable[str]) -> str:
    """``value`` if it is one of ``options``, or OptionError that lists them."""
    if isinstance(options, (tuple, dict)) and isinstance(value, str) and value in options:
        return value
    allowed = list(options)
    if not isinstance(value, str) or value not in allowed:
        raise OptionError(
            f"{name}: expected one of {', '.join(map(repr, allowed))}, got {value!r}"
        )
    return value
