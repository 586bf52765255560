"""Row 0, the only door to the compiled kernels: picks the build for this CPU.

``FASTOPT_ISA=v2|v3|v4`` forces a level; one that this CPU lacks raises ImportError.
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from types import ModuleType

from fastopt._kernels.shared import cpu

__all__ = ["isa", "levels"]


def levels() -> tuple[str, ...]:
    """The builds that this CPU can run, the best one first, of those that were made."""
    here, able = Path(__file__).parent, cpu.levels()
    return tuple(name for name in able if any((here / name).glob("update.*"))) or able


isa: str = os.environ.get("FASTOPT_ISA") or levels()[0]


def __getattr__(name: str) -> ModuleType:
    """Load a kernel module of the chosen level on first use."""
    if name.startswith("_"):
        raise AttributeError(name)
    path = f"{__name__}.{isa}.{name}"
    try:
        module = import_module(path)
    except ModuleNotFoundError as error:
        if error.name != path:
            raise
        raise AttributeError(f"no kernel module {name!r}") from None
    globals()[name] = module
    return module


if isa not in ("v2", "v3", "v4", "plain"):
    raise ImportError(f"FASTOPT_ISA: expected v2, v3, v4 or plain, got {isa!r}")
import_module(f"{__name__}.{isa}")  # raises ImportError where the CPU lacks the level
