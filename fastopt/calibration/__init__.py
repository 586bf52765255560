"""What the data says about an array: the Gram of a layer's input, and the range observers."""

from __future__ import annotations

from fastopt.calibration.gram import Gram

__all__ = ["Gram"]
