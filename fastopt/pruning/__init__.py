"""Pruning: unimportant connections become zeros, unimportant units go away."""

from __future__ import annotations

from fastopt.pruning.sparse_linear import SparseLinear
from fastopt.pruning.units import Selection, removal_order, select_units
from fastopt.pruning.weights import Pruned, prune

__all__ = ["Pruned", "Selection", "SparseLinear", "prune", "removal_order", "select_units"]
