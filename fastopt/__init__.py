"""fastopt: make models small and fast on a CPU, and search for the best way to do it.

Importing this package imports NumPy and the level check, nothing else; every public name below is
loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import fastopt._kernels
import fastopt._threads

if TYPE_CHECKING:
    from fastopt import (
        calibration,
        compression,
        errors,
        integrations,
        layering,
        linear_model,
        merging,
        models,
        optim,
        pruning,
        quantization,
        report,
        search,
    )
    from fastopt._threads import get_num_threads, set_num_threads
    from fastopt.calibration import Gram
    from fastopt.compression import compress
    from fastopt.config import show_config
    from fastopt.layering import split_low_rank
    from fastopt.linear_model import LinearRegression
    from fastopt.merging import cluster_weights, merge_neurons
    from fastopt.pruning import prune
    from fastopt.quantization import QuantizedArray
    from fastopt.quantization.fake_quantize import fake_quantize
    from fastopt.quantization.quantize import dequantize, quantize
    from fastopt.search import Bool, Choice, Float, Int, Permutation, Space, Vector, minimize

__version__ = "0.2.0"

# Where each public name lives.
_HOME = {
    "Bool": "search",
    "Choice": "search",
    "Float": "search",
    "Gram": "calibration",
    "Int": "search",
    "LinearRegression": "linear_model",
    "Permutation": "search",
    "QuantizedArray": "quantization",
    "Space": "search",
    "Vector": "search",
    "cluster_weights": "merging",
    "compress": "compression",
    "dequantize": "quantization",
    "fake_quantize": "quantization",
    "get_num_threads": "_threads",
    "merge_neurons": "merging",
    "minimize": "search",
    "prune": "pruning",
    "quantize": "quantization",
    "set_num_threads": "_threads",
    "show_config": "config",
    "split_low_rank": "layering",
}
_MODULES = (
    "calibration",
    "compression",
    "errors",
    "integrations",
    "layering",
    "linear_model",
    "merging",
    "models",
    "optim",
    "pruning",
    "quantization",
    "report",
    "search",
)

__all__ = ["__version__", *_HOME, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    elif name in _MODULES:
        value = import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
