"""Layering: one layer becomes two thinner ones, one model a cascade of levels."""

from __future__ import annotations

from fastopt.layering.blocks import block_influence
from fastopt.layering.cascade import Cascade
from fastopt.layering.convolution import split_convolution, split_cp, split_depthwise
from fastopt.layering.low_rank import split_low_rank

__all__ = [
    "Cascade",
    "block_influence",
    "split_convolution",
    "split_cp",
    "split_depthwise",
    "split_low_rank",
]
