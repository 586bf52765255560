"""What objectives return and report, as numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastopt._arrays import as_array
from fastopt.errors import FastoptError, TrialError

__all__ = ["as_numbers", "real"]


def real(raw: Any) -> float:
    """One real number, NaN and infinities included."""
    if type(raw) is float:
        return raw
    if isinstance(raw, (np.floating, np.integer, np.bool_, int)) or (
        hasattr(raw, "__float__") and not hasattr(raw, "__len__") and not hasattr(raw, "dtype")
    ):
        try:
            return float(raw)
        except (OverflowError, TypeError, ValueError) as error:
            raise TrialError(f"objective: expected a number, got {raw!r}: {error}") from None
    value: float = as_numbers(raw, ()).item()
    return value


def as_numbers(raw: Any, shape: tuple[int | None, ...]) -> NDArray[np.float64]:
    """What f returned, as a new float64 array of that shape (None: any length)."""
    known = str(shape).replace("None", "any")
    wanted = "a number" if shape == () else f"numbers of shape {known}"
    if raw is None or isinstance(raw, (str, bytes, complex)):
        raise TrialError(f"objective: expected {wanted}, got {raw!r}")
    try:
        y = as_array(raw, "objective", dtypes=("float64",), cast="float64", shape=shape)
    except FastoptError as error:
        if shape == () and np.ndim(raw) == 1:
            hint = '; several objectives need method="nsga2"'
        elif shape == (None,) and np.ndim(raw) == 0:
            hint = '; for one objective choose another method than "nsga2"'
        else:
            hint = ""
        raise TrialError(f"objective: expected {wanted}: {error}{hint}") from None
    return np.array(y)
