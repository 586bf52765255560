"""Merging: similar neurons become one, similar weights share a value."""

from __future__ import annotations

from fastopt.merging.batch_norm import fold_batch_norm
from fastopt.merging.codebook import Codebook, cluster_weights
from fastopt.merging.linear import fold_linear
from fastopt.merging.neurons import Merged, merge_neurons

__all__ = [
    "Codebook",
    "Merged",
    "cluster_weights",
    "fold_batch_norm",
    "fold_linear",
    "merge_neurons",
]
