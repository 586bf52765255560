"""Merging: similar neurons become one, similar weights share a value."""

from __future__ import annotations

from fastopt.merging.codebook import Codebook, cluster_weights
from fastopt.merging.neurons import Merged, merge_neurons

__all__ = ["Codebook", "Merged", "cluster_weights", "merge_neurons"]
