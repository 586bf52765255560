"""Row 1: numbers and names that enter, checked once."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from fastopt.errors import DTypeError, OptionError

__all__ = [
    "choice",
    "flag",
    "function",
    "integer",
    "items",
    "mapping",
    "names",
    "number",
    "real",
    "shape",
    "short",
    "text",
]


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
    if type(value) is float and low < value < high:  # most calls, ten times as fast
        return value
    result = real(value, name)
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
        raise OptionError(f"{name}: expected {wanted}, got {short(value)}")
    return result


def real(value: Any, name: str) -> float:
    """``value`` as a float, NaN and infinity too: a number or an array of one, nothing that only
    can be read as one (strings, dates, masked or complex values)."""
    taken = isinstance(value, (float, int, np.floating, np.integer)) and not _is_span(value)
    if not taken and (
        isinstance(value, (str, bytes, bytearray, complex, np.ma.MaskedArray))
        or (
            isinstance(value, (np.ndarray, np.generic))
            and (value.dtype.kind not in "fiubOV" or value.size != 1)
        )
    ):
        raise DTypeError(f"{name}: expected a number, got {short(value)}")
    try:
        return float(value)
    except OverflowError:
        raise OptionError(f"{name}: {short(value)} is beyond the range of a float") from None
    except Exception as error:  # whatever an object's own __float__ raises
        raise DTypeError(
            f"{name}: expected a number, got {type(value).__name__}: {error}"
        ) from None


def _is_span(value: Any) -> bool:
    return isinstance(value, np.timedelta64)  # an integer to NumPy


def short(value: Any) -> str:
    """``repr``, cut where it is long; integers of thousands of digits have none."""
    try:
        text = repr(value)
    except Exception:
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:60]}..."


def function(value: Any, name: str) -> Callable[..., Any]:
    """``value`` if it can be called, or DTypeError naming the argument."""
    if not callable(value):
        raise DTypeError(f"{name}: expected a function, got {type(value).__name__}")
    return value  # type: ignore[no-any-return]


def integer(value: Any, name: str, *, low: int | None = None, high: int | None = None) -> int:
    """``value`` as an int inside [low, high], or OptionError naming the argument."""
    if isinstance(value, (bool, np.ma.MaskedArray)) or _is_span(value):
        raise DTypeError(f"{name}: expected an integer, got {value!r}")
    try:
        result = operator.index(value)
    except Exception:  # whatever an object's own __index__ raises
        raise DTypeError(f"{name}: expected an integer, got {short(value)}") from None
    if not -(1 << 63) <= result < 1 << 63:  # the kernels' integers, and NumPy's lengths
        raise OptionError(f"{name}: {short(result)} is beyond the range of 64-bit integers")
    if (low is not None and result < low) or (high is not None and result > high):
        bounds = f">= {low}" if high is None else f"<= {high}" if low is None else f"{low}..{high}"
        raise OptionError(f"{name}: expected an integer {bounds}, got {short(result)}")
    return result


def flag(value: Any, name: str) -> bool:
    """``value`` as a bool if it is one, or DTypeError naming the argument."""
    if not isinstance(value, (bool, np.bool_)):
        raise DTypeError(f"{name}: expected True or False, got {short(value)}")
    return bool(value)


def items(value: Any, name: str) -> list[Any]:
    """What a sequence holds, or DTypeError: text and mappings are no sequences here."""
    if isinstance(value, (str, bytes, bytearray, memoryview, Mapping)):
        raise DTypeError(f"{name}: expected a sequence, got {short(value)}")
    try:
        return list(value)
    except Exception:  # whatever an object's own __iter__ raises
        raise DTypeError(f"{name}: expected a sequence, got {short(value)}") from None


def names(value: Any, name: str) -> tuple[str, ...]:
    """``value``, one name or a sequence of them, as a tuple, or DTypeError."""
    found = (value,) if isinstance(value, str) else tuple(items(value, name))
    if not all(isinstance(v, str) for v in found):
        raise DTypeError(f"{name}: expected names, got {short(value)}")
    return found


def text(value: Any, name: str) -> str:
    """``value`` if it is a str, or DTypeError naming the argument."""
    if not isinstance(value, str):
        raise DTypeError(f"{name}: expected text, got {short(value)}")
    return value


def mapping(value: Any, name: str) -> dict[str, Any]:
    """``value`` as a dict if it is a mapping whose keys are names, or DTypeError."""
    if not isinstance(value, Mapping) or not all(isinstance(k, str) for k in value):
        raise DTypeError(f"{name}: expected a dict by name, got {short(value)}")
    return dict(value)


def shape(value: Any, name: str) -> tuple[int, ...]:
    """``value``, an integer or a tuple or list of them, as the lengths of an array's axes."""
    sizes = value if isinstance(value, (tuple, list)) else (value,)
    found = tuple(integer(n, name, low=0) for n in sizes)
    if math.prod(found) >= 1 << 60:
        raise OptionError(f"{name}: an array of {short(found)} is larger than any memory")
    return found


def choice(value: Any, name: str, options: Iterable[str]) -> str:
    """``value`` if it is one of ``options``, or OptionError that lists them."""
    if isinstance(options, (tuple, dict)) and isinstance(value, str) and value in options:
        return value
    allowed = list(options)
    if not isinstance(value, str) or value not in allowed:
        raise OptionError(
            f"{name}: expected one of {', '.join(map(repr, allowed))}, got {short(value)}"
        )
    return value
