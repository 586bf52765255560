"""The rows that a fit reads: a matrix in memory, compressed sparse rows, or a stream of blocks.

A kernel sees one piece at a time; ``pieces`` gives them in order, ``Stream.blocks`` in any order.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from fastopt import _threads
from fastopt._arrays import Array, check_finite
from fastopt._kernels import linear_sparse
from fastopt.errors import ArrayError, DTypeError

__all__ = ["BLOCK_BYTES", "CSR", "Rows", "Stream", "dense_pieces", "matmul", "pieces"]
__all__ += ["refuse_nonfinite", "size_of", "take_rows"]

BLOCK_BYTES = 1 << 24  # of a stream that are read at once
MAPPED_FROM = 1 << 26  # bytes from which a memory-mapped array is streamed


class CSR(NamedTuple):
    """A compressed sparse row matrix as plain, checked arrays."""

    data: Array
    indices: Array
    indptr: Array
    shape: tuple[int, int]

    @property
    def dtype(self) -> Any:
        return self.data.dtype

    def __len__(self) -> int:
        return self.shape[0]


class Stream:
    """Rows that stay in their file: a memory map, or anything sliced by rows, a block at a time.

    Blocks of a map in float32 or float64 are read in place. Others, and those of a source, are
    copied and converted block by block.
    """

    def __init__(self, source: Any) -> None:
        self.source = source
        self.shape: tuple[int, int] = (int(source.shape[0]), int(source.shape[1]))
        if np.dtype(source.dtype).kind not in "fiub":
            raise DTypeError(f"X: expected real numbers, got dtype {source.dtype}")
        kept = np.dtype(source.dtype) in (np.dtype(np.float32), np.dtype(np.float64))
        self.dtype: np.dtype[Any] = np.dtype(source.dtype if kept else np.float64)
        mapped = getattr(source, "_mmap", None)
        # A private map (mode "c") holds the user's changes in its pages: they must stay.
        shared = mapped is not None and getattr(source, "mode", "c") != "c"
        self._map: mmap.mmap | None = mapped if shared and hasattr(mapped, "madvise") else None
        if self._map is not None:
            whole = np.frombuffer(self._map, np.uint8)
            self._start = int(source.__array_interface__["data"][0]) - int(whole.ctypes.data)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def height(self) -> int:
        """Rows of a block of BLOCK_BYTES."""
        return max(1, BLOCK_BYTES // max(1, self.shape[1] * self.dtype.itemsize))

    def blocks(
        self, height: int | None = None, numbers: Iterable[int] | None = None
    ) -> Iterator[tuple[int, Array]]:
        """(first row, block) of the blocks with those numbers, by default all in order."""
        rows = self.height if height is None else height
        turn = list(range(-(-len(self) // rows)) if numbers is None else map(int, numbers))
        for i, number in enumerate(turn):
            if i + 1 < len(turn):
                self._advise("MADV_WILLNEED", turn[i + 1] * rows, rows)
            first = number * rows
            block = self._read(first, rows)
            yield first, np.ascontiguousarray(block.view(np.ndarray), self.dtype)
            self._advise("MADV_DONTNEED", first, rows)  # what is behind leaves the process

    def _read(self, first: int, rows: int) -> Array:
        """Those rows as the source gives them, which may be fewer or others than it said."""
        block = np.asarray(self.source[first : first + rows])
        wanted = (min(rows, len(self) - first), self.shape[1])
        if block.shape != wanted:
            raise ArrayError(
                f"X: rows from {first} on: expected shape {wanted}, got {block.shape}"
            )
        return block

    def _advise(self, advice: str, first: int, rows: int) -> None:
        option = getattr(mmap, advice, None)
        if self._map is None or option is None:
            return
        step = int(self.source.strides[0])
        low = self._start + first * step
        high = self._start + min(len(self), first + rows) * step
        page = mmap.PAGESIZE
        low = low // page * page if advice == "MADV_WILLNEED" else -(-low // page) * page
        high = min(high, len(self._map)) // page * page
        if step > 0 and high > low:
            with contextlib.suppress(OSError, ValueError):  # advice alone: nothing depends on it
                self._map.madvise(option, low, high - low)

    def take(self, rows: Array) -> Array:
        """Those rows (ascending numbers), copied."""
        if self._map is not None or isinstance(self.source, np.ndarray):
            return np.ascontiguousarray(np.asarray(self.source)[rows], self.dtype)
        out = np.empty((len(rows), self.shape[1]), self.dtype)
        for i, row in enumerate(map(int, rows)):
            out[i] = self._read(row, 1)[0]
        return out


Rows: TypeAlias = "Array | CSR | Stream"


def pieces(x: Rows) -> Iterator[tuple[int, Array | CSR]]:
    """(first row, rows) of each piece that a kernel can take, in order."""
    if isinstance(x, Stream):
        yield from x.blocks()
    else:
        yield 0, x


def dense_pieces(x: Rows) -> Iterator[tuple[int, Array]]:
    """The same with sparse rows written out, as many at once as a block holds."""
    if not isinstance(x, CSR):
        for first, piece in pieces(x):
            assert isinstance(piece, np.ndarray)
            yield first, piece
        return
    n, d = x.shape
    height = max(1, BLOCK_BYTES // (8 * d))
    for first in range(0, n, height):
        last = min(n, first + height)
        a, b = int(x.indptr[first]), int(x.indptr[last])
        row = np.repeat(np.arange(last - first), np.diff(x.indptr[first : last + 1]))
        # Columns that come twice in a row add up, as everywhere.
        cells = np.bincount(row * d + x.indices[a:b], x.data[a:b], (last - first) * d)
        yield first, cells.reshape(-1, d).astype(x.dtype, copy=False)


def size_of(x: Rows) -> int:
    """Values that a pass over the rows reads."""
    return len(x.data) if isinstance(x, CSR) else x.shape[0] * x.shape[1]


def refuse_nonfinite(x: Rows, name: str) -> None:
    """ArrayError if a value is NaN or infinite; in the memory of one block."""
    for _, piece in pieces(x):
        a = piece.data if isinstance(piece, CSR) else piece
        step = max(1, BLOCK_BYTES // max(1, a.nbytes // max(1, len(a))))
        for i in range(0, len(a), step):
            check_finite(a[i : i + step], name)


def matmul(x: Rows, coef: Array, threads: int | None = None) -> Array:
    """X @ coef.T; (n,) for coef (d,), (n, k) for (k, d)."""
    if isinstance(x, Stream):
        out = np.empty((len(x), *coef.shape[:-1]), np.result_type(x.dtype, coef.dtype))
        for first, block in x.blocks():
            out[first : first + len(block)] = block @ coef.T
        if not np.isfinite(out).all():
            refuse_nonfinite(x, "X")
        return out
    if isinstance(x, CSR):
        w = np.ascontiguousarray(np.atleast_2d(coef), x.dtype)
        out = np.empty((len(x), len(w)), x.dtype)
        count = _threads.resolve(threads, len(x.data) * len(w))
        linear_sparse.product(out, x.data, x.indices, x.indptr, w, count)
        return out[:, 0] if coef.ndim == 1 else out
    product: Array = x @ coef.T
    return product


def take_rows(x: Rows, rows: Array) -> Array | CSR:
    """The rows of those ascending numbers, as a copy."""
    if isinstance(x, Stream):
        return x.take(rows)
    if not isinstance(x, CSR):
        taken: Array = x[rows]
        return taken
    lengths = x.indptr[rows + 1] - x.indptr[rows]
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    chosen = np.arange(indptr[-1]) + np.repeat(x.indptr[rows] - indptr[:-1], lengths)
    return CSR(x.data[chosen], x.indices[chosen], indptr, (len(rows), x.shape[1]))
