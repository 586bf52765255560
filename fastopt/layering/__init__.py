"""Layering: one layer becomes two thinner ones, one model a cascade of levels."""

from __future__ import annotations

from fastopt.layering.cascade import Cascade
from fastopt.layering.low_rank import split_low_rank

__all__ = ["Cascade", "split_low_rank"]
