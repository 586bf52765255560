"""Unstructured magnitude pruning: the k smallest |w| of one array or of many become zero."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fastopt import _threads
from fastopt._arrays import Array
from fastopt._kernels import prune as kernel
from fastopt.errors import ArrayError

__all__ = ["Cut", "cut_at", "holds_nan", "is_nan", "number_of", "zero_below"]

# Below this many elements one partition of all magnitudes is faster than sampling a bracket.
_PARTITION_BELOW = 1 << 14
# Draws for the bracket of n elements: n to this power. More draws cost more than the
# narrower bracket saves.
_SAMPLE = 0.55
_SERIAL_BELOW = 1 << 20  # elements of a pass
_INFINITY = {4: 0x7F800000, 8: 0x7FF0000000000000}
_WINDOWS = {
    4: ((20, 11), (10, 10), (0, 10)),
    8: ((52, 11), (41, 11), (30, 11), (19, 11), (8, 11), (0, 8)),
}


class Cut(NamedTuple):
    """Where pruning ends: everything below ``bits`` goes, and of the magnitudes equal to it those
    before element ``position`` of array number ``array``."""

    bits: int
    array: int
    position: int


def _bits(a: Array) -> Array:
    """The bits of |a|, a new array."""
    unsigned = np.dtype(f"u{a.itemsize}")
    result: Array = a.reshape(-1).view(unsigned) & unsigned.type(np.iinfo(unsigned).max >> 1)
    return result


def _bracket(arrays: Sequence[Array], total: int, k: int) -> tuple[int, int, int]:
    """(lo, hi, candidates expected): bits that hold the k-th magnitude, but for 1 case in 1e6."""
    n = round(total**_SAMPLE)
    jitter = np.random.default_rng(0).random(n)  # one draw from each of n strata, in order
    draws = np.minimum((np.arange(n) + jitter) * (total / n), total - 1).astype(np.intp)
    ends = np.cumsum([a.size for a in arrays])
    sample = []
    for a, start, stop in zip(arrays, ends - [a.size for a in arrays], ends, strict=True):
        first, last = np.searchsorted(draws, [start, stop])
        if last > first:
            sample.append(_bits(a.reshape(-1)[draws[first:last] - start]))
    values = np.sort(np.concatenate(sample))
    p = k / total
    slack = 5 * (n * p * (1 - p)) ** 0.5 + 8
    low, high = int(n * p - slack), int(n * p + slack) + 1
    lo = int(values[low]) if low >= 0 else 0
    hi = int(values[high]) if high < n else int(np.iinfo(values.dtype).max >> 1)
    return lo, hi, int(2 * slack / n * total)


def _used(a: Array, threads: int) -> int:
    """Threads for a pass over ``a``: passes are short and several follow one another, so a second
    thread pays only on large arrays."""
    return threads if a.size >= _SERIAL_BELOW else 1


def _within(
    arrays: Sequence[Array], k: int, lo: int, hi: int, room: int, threads: int
) -> tuple[int, int, int] | None:
    """(bits, below, equal) of the k-th magnitude if [lo, hi] holds it and fits into ``room``."""
    candidates = np.empty(room, f"u{arrays[0].itemsize}")
    below = filled = 0
    for x in arrays:
        under, inside = kernel.compact(candidates[filled:], x, lo, hi, _used(x, threads))
        if inside < 0:
            return None
        below, filled = below + under, filled + inside
    if not 0 < k - below <= filled:
        return None
    bits, under, equal = _select([candidates[:filled].view(arrays[0].dtype)], k - below, threads)
    return bits, below + under, equal


def _radix(arrays: Sequence[Array], k: int, room: int, threads: int) -> tuple[int, int, int]:
    """(bits, below, equal) of the k-th magnitude by narrowing windows of bits: always exact."""
    prefix = below = equal = 0
    for shift, width in _WINDOWS[arrays[0].itemsize]:
        counts = np.zeros(2048, np.int64)
        for x in arrays:
            kernel.histogram(counts, x, shift, width, prefix, _used(x, threads))
        upto = np.cumsum(counts)
        digit = int(np.searchsorted(upto, k - below))
        equal = int(counts[digit])
        below += int(upto[digit]) - equal
        prefix = (prefix << width) | digit
        if shift and equal < room // 2:
            first = prefix << shift
            found = _within(arrays, k, first, first + (1 << shift) - 1, room, threads)
            if found is not None:
                return found
    return prefix, below, equal


def _select(arrays: Sequence[Array], k: int, threads: int) -> tuple[int, int, int]:
    """(bits, how many are smaller, how many are equal) of the k-th magnitude, 0 < k <= the size:
    the search repeats inside the bracket until few elements are left."""
    total = sum(a.size for a in arrays)
    if total < _PARTITION_BELOW:
        magnitudes = np.concatenate([_bits(a) for a in arrays])
        magnitudes.partition(k - 1)
        bits = magnitudes[k - 1]
        return int(bits), int((magnitudes < bits).sum()), int((magnitudes == bits).sum())
    lo, hi, expected = _bracket(arrays, total, k)
    room = expected + expected // 4 + 4096
    return _within(arrays, k, lo, hi, room, threads) or _radix(arrays, k, room, threads)


def cut_at(arrays: Sequence[Array], k: int, threads: int) -> Cut:
    """The cut that removes exactly the k smallest magnitudes of all arrays together.

    Arrays are C-contiguous, of one dtype, float32 or float64, and k <= the total size.
    """
    total = sum(a.size for a in arrays)
    if k == 0:
        return Cut(0, 0, 0)
    if k == total:
        found = (max(int(_bits(a).max()) for a in arrays if a.size), 0, total)
    else:
        found = _select(arrays, k, threads)
    bits, below, equal = found
    if bits > _INFINITY[arrays[0].itemsize]:
        raise ArrayError(
            f"w: {k} of {total} elements are to go, but fewer are numbers; NaN is never pruned"
        )
    if k == total or k - below == equal:  # every tie goes
        return Cut(int(bits), len(arrays), 0)
    left = k - below
    for i, a in enumerate(arrays):
        at, left = kernel.find_equal(a, bits, left)
        if at >= 0:  # the first tie that stays
            return Cut(bits, i, at)
    return Cut(bits, len(arrays), 0)


def number_of(bits: int, dtype: np.dtype[Any]) -> float:
    """The magnitude with these ``bits``."""
    return float(np.dtype(f"u{dtype.itemsize}").type(bits).view(dtype))


def is_nan(bits: int, dtype: np.dtype[Any]) -> bool:
    return bits > _INFINITY[dtype.itemsize]


def holds_nan(a: Array, threads: int) -> bool:
    return bool(kernel.count_above(a, _INFINITY[a.itemsize], _used(a, threads)))


def zero_below(
    outs: Sequence[Array],
    keeps: Sequence[Array | None],
    arrays: Sequence[Array],
    cut: Cut,
    threads: int,
    *,
    fresh: bool = True,
) -> None:
    """outs (``fresh``: just allocated) = arrays with all that ``cut`` removes set to +0; keeps =
    True where it stays."""
    for i, (out, keep, a) in enumerate(zip(outs, keeps, arrays, strict=True)):
        if i < cut.array:
            split = a.size
        else:
            split = cut.position if i == cut.array else 0
        kernel.zero_below(
            out, keep, a, cut.bits + 1, split, cut.bits, _threads.streams(a, out, fresh),
            _used(a, threads),
        )  # fmt: skip
