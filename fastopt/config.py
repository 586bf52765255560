"""What this installation runs on: for bug reports and for the curious."""

from __future__ import annotations

import importlib.metadata
import platform

import numpy as np

from fastopt import __version__
from fastopt._kernels import isa, levels
from fastopt._threads import get_num_threads

__all__ = ["config", "show_config"]

_OPTIONAL = ("scikit-learn", "torch", "onnx", "onnxruntime", "safetensors", "ml_dtypes")


def config() -> dict[str, str]:
    """The same facts as a dict: level, levels, threads and versions."""
    facts = {
        "fastopt": __version__,
        "level": isa,
        "levels": " ".join(levels()),
        "threads": str(get_num_threads()),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "numpy": np.__version__,
    }
    for name in _OPTIONAL:
        try:
            facts[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            facts[name] = "not installed"
    return facts


def show_config() -> None:
    """Print the kernel level in use, the thread count and the versions.

    Examples
    --------
    >>> import fastopt
    >>> fastopt.show_config()  # doctest: +ELLIPSIS
    fastopt ...
    """
    for name, value in config().items():
        print(f"{name:<13} {value}")
