"""Which elements share a scale: per tensor, per axis, or per group along an axis.

Every case becomes one of two loops, so that any axis of any array is read once, in order:

- ``runs``: elements of one run share a scale (per tensor; an axis that is not the last; groups
  along the last axis);
- ``rows``: each row meets a row of scales (the last axis; groups along another axis).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from fastopt._options import integer
from fastopt.errors import ArrayError, OptionError

__all__ = ["Layout", "layout_of", "normal_axis", "spread"]


@dataclass(frozen=True)
class Layout:
    """How an array of some shape is cut into parts that share a scale.

    Attributes
    ----------
    scale_shape : tuple of int
        ``()`` per tensor, ``(C,)`` per axis, the array's shape with the axis' length replaced by
        the number of groups per group (as in ONNX's blocked quantisation).
    rows : bool
        Which of the two loops.
    depth, width, group : int
        ``runs``: elements of one outer block, elements of one run, 1 if each outer block has its
        own scales. ``rows``: rows of one outer block, elements of a row, rows that share scales.
    axis : int or None
        The axis that the scales belong to, counted from the front; None per tensor.
    """

    scale_shape: tuple[int, ...]
    rows: bool
    depth: int
    width: int
    group: int
    axis: int | None = None

    @property
    def loops(self) -> tuple[bool, int, int, int]:
        """rows, depth, width, group: what the kernels take."""
        return self.rows, self.depth, self.width, self.group

    def is_chain(self, size: int) -> bool:
        """Whether the parts of an array of ``size`` elements are runs that follow one another."""
        return not self.rows and (self.group == 1 or self.depth == size)


def normal_axis(axis: int, ndim: int, name: str = "axis") -> int:
    """``axis`` as 0..ndim-1."""
    a = integer(axis, name)
    if not -ndim <= a < ndim:
        raise OptionError(f"{name}: expected -{ndim}..{ndim - 1} for {ndim} dimensions, got {a}")
    return a % ndim


def layout_of(shape: Sequence[int], axis: int | None, group_size: int | None) -> Layout:
    """The layout of ``shape`` quantised per tensor, per ``axis``, or per group along ``axis``.

    A group size without an axis groups along the last axis. The last group may be shorter.
    """
    plain = (axis is None or type(axis) is int) and (group_size is None or type(group_size) is int)
    return (_seen if plain else _layout)(tuple(shape), axis, group_size)


def _layout(shape: tuple[int, ...], axis: int | None, group_size: int | None) -> Layout:
    n = math.prod(shape)
    if group_size is None:
        if axis is None:
            return Layout((), False, max(n, 1), max(n, 1), 0)
        a = normal_axis(axis, len(shape))
        outer, channels, inner = math.prod(shape[:a]), shape[a], math.prod(shape[a + 1 :])
        if inner == 1:
            return Layout((channels,), True, max(outer, 1), max(channels, 1), max(outer, 1), a)
        return Layout((channels,), False, max(channels * inner, 1), max(inner, 1), 0, a)
    if not shape:
        raise ArrayError("x: a single number has no axis to group along")
    size = integer(group_size, "group_size", low=1)
    a = normal_axis(-1 if axis is None else axis, len(shape))
    length, inner = shape[a], math.prod(shape[a + 1 :])
    scales = (*shape[:a], -(-length // size), *shape[a + 1 :])
    size = max(1, min(size, length))
    if inner == 1:
        return Layout(scales, False, max(length, 1), size, 1, a)
    return Layout(scales, True, max(length, 1), max(inner, 1), size, a)


_seen = lru_cache(maxsize=1024)(_layout)


def spread(
    scale: np.ndarray[Any, Any], shape: Sequence[int], layout: Layout
) -> np.ndarray[Any, Any]:
    """Scales in a shape that broadcasts against an array of ``shape``."""
    a = layout.axis
    if a is None:
        return scale
    if scale.shape == (shape[a],):
        return scale.reshape([-1 if i == a else 1 for i in range(len(shape))])
    block = layout.group if layout.rows else layout.width
    return np.take(scale, np.arange(shape[a]) // block, axis=a)
