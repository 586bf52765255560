"""Which elements may go together: any, N of M along an axis, or whole blocks."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastopt import _threads
from fastopt._arrays import Array
from fastopt._kernels import prune as kernel
from fastopt.errors import ArrayError, DTypeError, OptionError
from fastopt.pruning import magnitude

__all__ = ["Blocks", "NofM", "pattern_of"]


@dataclass(frozen=True, slots=True)
class NofM:
    """Keep ``n`` of each ``m`` elements along the axis."""

    n: int
    m: int
    axis: int

    def check(self, a: Array, name: str) -> int:
        """Elements after the axis, or ArrayError where the axis is no multiple of m."""
        if not -a.ndim <= self.axis < a.ndim:
            raise OptionError(f"axis: {name} of shape {a.shape} has no axis {self.axis}")
        axis = self.axis % a.ndim
        if a.shape[axis] % self.m:
            raise ArrayError(
                f"{name}: axis {self.axis} of shape {a.shape} is no multiple of {self.m}"
            )
        inner: int = math.prod(a.shape[axis + 1 :])
        return max(1, inner)

    def apply(
        self, out: Array, keep: Array | None, a: Array, name: str, threads: int, *, fresh: bool
    ) -> float:
        """out = a pruned (``fresh``: just allocated); returns the largest magnitude that went."""
        if a.size == 0:
            return 0.0
        bits = kernel.keep_n_of_m(
            out, keep, a, self.check(a, name), self.n, self.m,
            _threads.streams(a, out, fresh),
            threads if a.size >= _threads.SERIAL_BELOW else 1,
        )  # fmt: skip
        if magnitude.is_nan(bits, a.dtype):
            raise ArrayError(f"{name}: a group holds too many NaN; NaN is never pruned")
        return magnitude.number_of(bits, a.dtype)


@dataclass(frozen=True, slots=True)
class Blocks:
    """Blocks of ``rows`` x ``columns`` of the first and the second axis stay or go whole."""

    rows: int
    columns: int

    def scores(self, a: Array, name: str) -> Array:
        """Root mean square of each block, (blocks down, blocks across); NaN where one is NaN."""
        if a.ndim != 2:
            raise ArrayError(f"{name}: blocks need 2 dimensions, got shape {a.shape}")
        wide = np.square(a, dtype=np.float64)
        for axis, size in enumerate((self.rows, self.columns)):
            if size > 1 and wide.size:
                starts = np.arange(0, wide.shape[axis], size)
                wide = np.add.reduceat(wide, starts, axis=axis)
                counts = np.minimum(size, a.shape[axis] - starts)
                wide /= counts[:, None] if axis == 0 else counts
        root: Array = np.sqrt(wide)
        return root

    def spread(self, keep: Array, shape: tuple[int, ...]) -> Array:
        """The mask of elements for a mask of blocks."""
        tall = np.repeat(keep, self.rows, axis=0)[: shape[0]]
        result: Array = np.ascontiguousarray(np.repeat(tall, self.columns, axis=1)[:, : shape[1]])
        return result


def pattern_of(pattern: Any, axis: int) -> NofM | Blocks | None:
    """The rule for a pattern's name; None is unstructured."""
    if not isinstance(pattern, str):
        raise DTypeError(f"pattern: expected a string, got {type(pattern).__name__}")
    if pattern == "unstructured":
        return None
    if found := re.fullmatch(r"(\d+):(\d+)", pattern):
        n, m = int(found[1]), int(found[2])
        if 0 < n <= m <= 32:
            return NofM(n, m, axis)
    elif found := re.fullmatch(r"(\d+)x(\d+)", pattern):
        rows, columns = int(found[1]), int(found[2])
        if rows and columns:
            return Blocks(rows, columns)
    raise OptionError(
        'pattern: expected "unstructured", "N:M" with N <= M <= 32 such as "2:4", or "RxC" '
        f'such as "4x1", got {pattern!r}'
    )


def block_masks(
    rule: Blocks, arrays: list[Array], names: list[str], fraction: float, threads: int
) -> tuple[list[Array], float]:
    """Masks that remove round(fraction * blocks) blocks of all arrays together; the threshold."""
    scores = [rule.scores(a, name) for a, name in zip(arrays, names, strict=True)]
    k = round(fraction * sum(s.size for s in scores))
    cut = magnitude.cut_at(scores, k, threads) if scores else magnitude.Cut(0, 0, 0)
    keeps = [np.empty(s.shape, np.bool_) for s in scores]
    magnitude.zero_below([np.empty_like(s) for s in scores], keeps, scores, cut, threads)
    masks = [rule.spread(k, a.shape) for k, a in zip(keeps, arrays, strict=True)]
    return masks, magnitude.number_of(cut.bits, np.dtype("f8"))
