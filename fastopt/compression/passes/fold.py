"""Merge operators where the function stays the same: BatchNorm, constant factors, HardSwish."""

from __future__ import annotations

from typing import Any

from fastopt.compression.passes.calibration import Calibration
from fastopt.models import Model
from fastopt.search import Choice

NAME = "fold"
PLACE = "graph"


def variables(model: Model) -> dict[str, Choice]:
    """One switch for the whole model, where there is something to fold."""
    return {PLACE: Choice(False, True)} if model.copy().fold() else {}


def start(share: float, variable: Choice) -> bool:
    """Folding costs nothing."""
    return True


def apply(model: Model, place: str, value: Any, calibration: Calibration) -> str | None:
    """Fold whatever the adapter can."""
    return "; ".join(model.fold()) or None if value else None
