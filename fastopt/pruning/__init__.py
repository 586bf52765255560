"""Pruning: unimportant connections become zeros, unimportant units go away."""

from __future__ import annotations

from fastopt.pruning.gradual import GradualPruning
from fastopt.pruning.ranking import share_units, unit_scores
from fastopt.pruning.schedule import cubic_sparsity
from fastopt.pruning.sparse_linear import SparseLinear
from fastopt.pruning.units import Selection, removal_order, select_units
from fastopt.pruning.weights import Pruned, prune

__all__ = [
    "GradualPruning",
    "Pruned",
    "Selection",
    "SparseLinear",
    "cubic_sparsity",
    "prune",
    "removal_order",
    "select_units",
    "share_units",
    "unit_scores",
]
