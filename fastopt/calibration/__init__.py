"""What the data says about an array: the Gram of a layer's input, and the range observers."""

from __future__ import annotations

from fastopt.calibration.gram import Gram, check_gram
from fastopt.calibration.histograms import HistogramObserver, PercentileObserver
from fastopt.calibration.observers import MinMaxObserver, MovingAverageMinMaxObserver

__all__ = [
    "Gram",
    "HistogramObserver",
    "MinMaxObserver",
    "MovingAverageMinMaxObserver",
    "PercentileObserver",
    "check_gram",
]
