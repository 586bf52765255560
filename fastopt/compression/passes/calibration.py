"""What a pass may ask of the data: the inputs, the original's outputs, the Gram of a tensor."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from fastopt._arrays import Array
from fastopt.calibration import Gram
from fastopt.errors import OptionError
from fastopt.models import Model

__all__ = ["Calibration"]


class Calibration:
    """Calibration rows and the model that they were collected for.

    Parameters
    ----------
    model : Model
        The original.
    inputs : array
        Rows that stand for the data.
    """

    def __init__(self, model: Model, inputs: Array) -> None:
        self._model = model
        self.inputs = inputs

    @cached_property
    def outputs(self) -> Array:
        """The original model's outputs, one row an input row."""
        return np.concatenate([out for out, _ in self._model.run(self.inputs)])

    def gram(self, model: Model, tap: str) -> Gram:
        """The Gram of a tensor of ``model`` as it stands now."""
        gram: Gram | None = None
        for _, tapped in model.run(self.inputs, taps=(tap,)):
            gram = gram or Gram(tapped[tap].shape[-1])
            gram.update(tapped[tap])
        if gram is None:
            raise OptionError("calib: expected at least one row, got none")
        return gram
