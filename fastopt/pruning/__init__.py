"""Pruning: unimportant connections become zeros, unimportant units go away."""

from __future__ import annotations

from fastopt.pruning.weights import Pruned, prune

__all__ = ["Pruned", "prune"]
