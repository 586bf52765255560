"""Products in integers: stored codes by the kernels of ``QuantizedLinear``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from fastopt._arrays import Array
from fastopt.quantization import QuantizedArray, QuantizedLinear

__all__ = ["integer_product", "runs_in_integers"]


def runs_in_integers(module: Any, training: bool) -> bool:
    """Whether a dense or convolution module multiplies its codes."""
    return bool(module.dynamic and module.stored is not None and not training)


def integer_product(module: Any, rows: Array) -> Array:
    """rows (..., n_in) @ weight.T, each row quantised to 8 bits as it arrives; no bias.

    A convolution's rows hold its channels last. The packed weight is made at the first call and
    belongs to the codes: a module with others makes it anew.
    """
    made = module.__dict__.get("_integer")
    if made is None or made[0] is not module.stored:
        codes: QuantizedArray = module.stored
        if module.weight.ndim == 4:
            n_out, n_in, kh, kw = module.weight.shape
            turned = codes.unpacked().reshape(n_out, n_in, kh, kw).transpose(0, 2, 3, 1)
            codes = replace(codes, codes=np.ascontiguousarray(turned.reshape(n_out, -1)))
        scheme = "w8a8" if codes.format.bits == 8 else "w4a8"
        made = module.__dict__["_integer"] = module.stored, QuantizedLinear(codes, scheme=scheme)
    found: Array = made[1](np.ascontiguousarray(rows))
    return found
