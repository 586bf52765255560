"""Unstructured magnitude pruning: the k smallest |w| of one array or of many become zero."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastopt import _threads
from fastopt._arrays import Array
from fastopt._kernels import prune as kernel
from fastopt.errors import ArrayError

__all__ = ["Cut", "cut_at", "largest_change", "threshold_of", "zero_below"]

# Below this many elements one partition of all magnitudes is faster than sampling a bracket.
_PARTITION_BELOW = 1 << 16
_SAMPLE = 1 << 14
# Elements per kernel call: about 20 ms, so that Ctrl-C gets through between calls.
_PIECE = 1 << 24
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


def _pieces(a: Array) -> Iterator[Array]:
    flat = a.reshape(-1)
    for start in range(0, flat.size, _PIECE):
        yield flat[start : start + _PIECE]


def _bits(a: Array) -> Array:
    """The bits of |a|, a new array."""
    unsigned = np.dtype(f"u{a.itemsize}")
    result: Array = a.reshape(-1).view(unsigned) & unsigned.type(np.iinfo(unsigned).max >> 1)
    return result


def _bracket(arrays: Sequence[Array], total: int, k: int) -> tuple[int, int, int]:
    """(lo, hi, candidates expected): bits that hold the k-th magnitude but for 1 case in 1e6."""
    draws = np.sort(np.random.default_rng(0).integers(0, total, _SAMPLE))
    ends = np.cumsum([a.size for a in arrays])
    sample = []
    for a, start, stop in zip(arrays, ends - [a.size for a in arrays], ends, strict=True):
        first, last = np.searchsorted(draws, [start, stop])
        if last > first:
            sample.append(_bits(a.reshape(-1)[draws[first:last] - start]))
    values = np.sort(np.concatenate(sample))
    p = k / total
    slack = 5 * (_SAMPLE * p * (1 - p)) ** 0.5 + 8
    low, high = int(_SAMPLE * p - slack), int(_SAMPLE * p + slack) + 1
    lo = int(values[low]) if low >= 0 else 0
    hi = int(values[high]) if high < _SAMPLE else int(np.iinfo(values.dtype).max >> 1)
    return lo, hi, int(2 * slack / _SAMPLE * total)


def _within(
    arrays: Sequence[Array], k: int, lo: int, hi: int, room: int, threads: int
) -> tuple[int, int, int] | None:
    """(bits, below, equal) of the k-th magnitude if [lo, hi] holds it and fits into ``room``."""
    candidates = np.empty(room, f"u{arrays[0].itemsize}")
    below = filled = 0
    for a in arrays:
        for x in _pieces(a):
            used = threads if x.size >= _threads.SERIAL_BELOW else 1
            under, inside = kernel.compact(candidates[filled:], x, lo, hi, used)
            if inside < 0:
                return None
            below, filled = below + under, filled + inside
    rank = k - 1 - below
    if not 0 <= rank < filled:
        return None
    found = candidates[:filled]
    found.partition(rank)
    bits = found[rank]
    return int(bits), below + int((found < bits).sum()), int((found == bits).sum())


def _radix(arrays: Sequence[Array], k: int, room: int, threads: int) -> tuple[int, int, int]:
    """(bits, below, equal) of the k-th magnitude by narrowing windows of bits: always exact."""
    prefix = below = equal = 0
    for shift, width in _WINDOWS[arrays[0].itemsize]:
        counts = np.zeros(2048, np.int64)
        for a in arrays:
            for x in _pieces(a):
                kernel.histogram(counts, x, shift, width, prefix)
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


def cut_at(arrays: Sequence[Array], k: int, threads: int) -> Cut:
    """The cut that removes exactly the k smallest magnitudes of all arrays together.

    Arrays are C-contiguous, of one dtype, float32 or float64, and k <= the total size.
    """
    total = sum(a.size for a in arrays)
    if k == 0:
        return Cut(0, 0, 0)
    if k == total:
        found = (max(_highest(a) for a in arrays if a.size), 0, total)
    elif total < _PARTITION_BELOW:
        magnitudes = np.concatenate([_bits(a) for a in arrays])
        magnitudes.partition(k - 1)
        bits = magnitudes[k - 1]
        equal = int((magnitudes == bits).sum())
        found = (int(bits), int((magnitudes < bits).sum()), equal)
    else:
        lo, hi, expected = _bracket(arrays, total, k)
        room = expected + expected // 4 + 4096 * threads
        found = _within(arrays, k, lo, hi, room, threads) or _radix(arrays, k, room, threads)
    bits, below, equal = found
    if bits > _INFINITY[arrays[0].itemsize]:
        raise ArrayError(
            f"w: {k} of {total} elements are to go, but fewer are numbers; NaN is never pruned"
        )
    if k == total or k - below == equal:  # every tie goes
        return Cut(int(bits), len(arrays), 0)
    left = k - below
    for i, a in enumerate(arrays):
        start = 0
        for x in _pieces(a):
            at, left = kernel.find_equal(x, bits, left)
            if at >= 0:  # the first tie that stays
                return Cut(bits, i, start + at)
            start += x.size
    return Cut(bits, len(arrays), 0)


def _highest(a: Array) -> int:
    return max(int(_bits(x).max()) for x in _pieces(a))


def threshold_of(cut: Cut, dtype: np.dtype[Any]) -> float:
    """The magnitude that ``cut.bits`` stands for."""
    return float(np.array(cut.bits, f"u{dtype.itemsize}").view(dtype))


def largest_change(a: Array, pruned: Array) -> float:
    """Largest |a| that ``pruned`` set to zero: the bits of kept elements cancel out."""
    unsigned = np.dtype(f"u{a.itemsize}")
    before, after = a.reshape(-1).view(unsigned), pruned.reshape(-1).view(unsigned)
    top = 0
    for start in range(0, a.size, 1 << 16):  # stays in cache, needs no large temporary
        changed = before[start : start + (1 << 16)] ^ after[start : start + (1 << 16)]
        changed &= unsigned.type(np.iinfo(unsigned).max >> 1)
        top = max(top, int(changed.max()))
    return float(np.array(top, unsigned).view(a.dtype))


def zero_below(
    outs: Sequence[Array],
    keeps: Sequence[Array | None],
    arrays: Sequence[Array],
    cut: Cut,
    threads: int,
) -> None:
    """outs = arrays with all that ``cut`` removes set to +0; keeps = True where it stays."""
    for i, (out, keep, a) in enumerate(zip(outs, keeps, arrays, strict=True)):
        if i < cut.array:
            split = a.size
        else:
            split = cut.position if i == cut.array else 0
        used = threads if a.size >= _threads.SERIAL_BELOW else 1
        flat_out, flat_keep = out.reshape(-1), None if keep is None else keep.reshape(-1)
        for start in range(0, a.size, _PIECE):
            part = slice(start, start + _PIECE)
            kernel.zero_below(
                flat_out[part],
                None if flat_keep is None else flat_keep[part],
                a.reshape(-1)[part],
                cut.bits + 1,
                split - start,
                cut.bits,
                used,
            )
