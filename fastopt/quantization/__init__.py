"""Integer and limited-precision quantisation: formats, conversions, products, methods.

Row 2: NumPy arrays in and out; no idea of a model.
"""

from __future__ import annotations

from fastopt.quantization.formats import Format, format_of
from fastopt.quantization.qparams import QParams, choose_qparams, qparams_from_range

__all__ = [
    "Format",
    "QParams",
    "choose_qparams",
    "format_of",
    "qparams_from_range",
]
