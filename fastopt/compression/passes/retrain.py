"""Train the edited model on for a few epochs, on labels; where the adapter has gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from fastopt._arrays import Array
from fastopt.compression.passes.calibration import Calibration
from fastopt.errors import UnsupportedError
from fastopt.models import Model
from fastopt.optim import Adam

NAME = "retrain"
PLACE = "weights"
_RATE = 1e-3


@runtime_checkable
class Trainable(Protocol):
    """A model that trains in place; compression works without it."""

    @property
    def params(self) -> Mapping[str, Array]:
        """The live arrays that an optimiser updates."""
        ...

    def fit(
        self,
        x: Any,
        y: Any,
        optimizer: Any,
        epochs: int = 10,
        batch_size: int | None = 64,
        seed: Any = 0,
    ) -> list[float]:
        """In place: train on mini-batches; the mean loss of each epoch."""
        ...


def variables(model: Model) -> dict[str, Any]:
    """Nothing by itself: ``compress(retrain_epochs=)`` asks for it."""
    return {}


def start(share: float, variable: Any) -> int:
    """Train wherever something was removed."""
    return int(variable.options[-1]) if share < 1 else 0


def apply(model: Model, place: str, value: Any, calibration: Calibration) -> str | None:
    """Train for ``value`` epochs on the calibration rows and their labels."""
    if not value:
        return None
    labels = calibration.labels
    if not isinstance(model, Trainable) or labels is None:
        raise UnsupportedError(f"retrain: no gradients of a {type(model).__name__}, or no labels")
    inputs = calibration.inputs
    params = [np.asarray(p) for p in model.params.values()]
    losses = model.fit(inputs, labels, Adam(params, lr=_RATE), epochs=int(value), seed=0)
    return f"trained on for {value} epochs, loss {losses[0]:.3g} -> {losses[-1]:.3g}"
