"""Bring the edited model's outputs back to the original's: least squares over every parameter.

Distillation without labels (Hinton, Vinyals and Dean 2015, section 2.1, the limit of high
temperature): L-BFGS on the squared difference of the outputs on the calibration rows.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from fastopt.compression.passes.calibration import Calibration
from fastopt.errors import UnsupportedError
from fastopt.models import Model
from fastopt.search import Choice

NAME = "refit"
PLACE = "outputs"
# L-BFGS iterations: a few tell the search how good a recipe can be, the chosen one gets more.
SEARCHING, FINAL = 25, 150


@runtime_checkable
class Fittable(Protocol):
    """A model whose parameters can all be fitted at once; compression works without it."""

    def match(self, x: Any, outputs: Any, max_iter: int) -> tuple[float, float]:
        """In place: bring the outputs on ``x`` close to ``outputs``; error before and after."""
        ...


def variables(model: Model) -> dict[str, Choice]:
    """One switch for the whole model, where the model can be fitted: the iterations."""
    return {PLACE: Choice(0, SEARCHING)} if isinstance(model, Fittable) else {}


def start(share: float, variable: Choice) -> int:
    """Refit wherever something was removed."""
    return SEARCHING if share < 1 else 0


def final(value: Any) -> int:
    """More iterations once the search is over."""
    return FINAL if value else 0


def apply(model: Model, place: str, value: Any, calibration: Calibration) -> str | None:
    """Fit every parameter to the original model's outputs."""
    if not value:
        return None
    if not isinstance(model, Fittable):
        raise UnsupportedError(f"refit: a {type(model).__name__} cannot be fitted as a whole")
    before, after = model.match(calibration.inputs, calibration.outputs, max_iter=value)
    if after >= before:
        return None
    return (
        f"all weights fitted to the original's outputs, squared error {before:.3g} -> {after:.3g}"
    )
