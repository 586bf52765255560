"""Row 1: optional packages, imported where they are used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["package"]


def package(name: str, purpose: str, install: str | None = None) -> Any:
    """The module ``name``.

    Parameters
    ----------
    name : str
        For example "safetensors.numpy".
    purpose : str
        What needs it, the beginning of the message.
    install : str, optional
        What pip installs; default the package itself.

    Raises
    ------
    ImportError
        It is not installed: says what needs it and how to install it.
    """
    try:
        return import_module(name)
    except ImportError:
        top = name.partition(".")[0]
        raise ImportError(
            f"{purpose} needs the package {top}: pip install '{install or top}'"
        ) from None
