"""Merging: similar neurons become one, similar weights share a value."""

from __future__ import annotations

from fastopt.merging.neurons import Merged, merge_neurons

__all__ = ["Merged", "merge_neurons"]
