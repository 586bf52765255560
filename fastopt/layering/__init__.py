"""Layering: one layer becomes two thinner ones, one model a cascade of levels."""

from __future__ import annotations

from fastopt.layering.low_rank import split_low_rank

__all__ = ["split_low_rank"]
