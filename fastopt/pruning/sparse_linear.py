"""A pruned weight that runs as one: only what is left is stored and multiplied."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from fastopt import _threads
from fastopt._arrays import Array, as_array, check_disjoint, out_for
from fastopt._kernels import sparse as kernel
from fastopt._options import choice, integer
from fastopt.errors import ArrayError, FormatError

__all__ = ["SparseLinear"]

_ROWS = {"csr": 1, "4x1": 4}
_FORMATS = (*_ROWS, "dense")
_ROUNDS, _AT_LEAST_S = 5, 2e-4  # of a measurement
# Stored entries per weight above which groups of 4 rows waste more than they save: the block
# product does about three times the multiply-adds a second of the row product.
_FILL = 3.0


class SparseLinear:
    """y = W @ x with W (n_out, n_in) sparse; made by :meth:`from_dense`.

    Attributes
    ----------
    shape : (n_out, n_in)
    bias : (n_out,) array or None
    format : "csr", "4x1" or "dense"
        Rows on their own, or groups of 4 rows that share their columns (what
        ``prune(w, pattern="4x1")`` leaves), or W as it was, where that runs faster.
    reason : str
        Why this format: the seconds measured, or that it was asked for.
    nnz : int
        Weights that are not zero.
    nbytes : int
        Bytes of values, columns and row starts.

    Notes
    -----
    Sums run in the order of the stored columns, so the result has the same bits on every machine
    and thread count. NaN and infinity in W are stored; those in x do not meet the zeros of W.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> from fastopt.pruning import SparseLinear
    >>> w = fastopt.prune(np.arange(32.0).reshape(8, 4), 0.5, pattern="4x1").arrays
    >>> s = SparseLinear.from_dense(w, "sparse")
    >>> s.format, s.nnz, bool(np.allclose(s @ np.ones((4, 2)), w @ np.ones((4, 2))))
    ('4x1', 16, True)
    """

    def __init__(
        self,
        shape: tuple[int, int],
        format: str,
        values: Array,
        columns: Array,
        starts: Array,
        bias: Array | None = None,
        reason: str = "asked for",
    ) -> None:
        if not isinstance(shape, (tuple, list)) or len(shape) != 2:
            raise ArrayError(f"shape: expected (n_out, n_in), got {shape!r}")
        n_out, n_in = (integer(n, "shape", low=0, high=2**48) for n in shape)
        self.shape = (n_out, n_in)
        self.format = choice(format, "format", _FORMATS)
        self.reason = reason
        dense = self.format == "dense"
        rows = n_in if dense else _ROWS[self.format]
        groups = 0 if dense else -(-n_out // rows)
        # copies: the kernel trusts the columns and starts that were checked here
        self._values = as_array(values, "values", ndim=2).copy()
        self._columns = as_array(columns, "columns", dtypes=("int32",), ndim=1).copy()
        self._starts = as_array(starts, "starts", dtypes=("int64",), shape=(groups + 1,)).copy()
        count = len(self._columns)
        if (
            self._values.shape != (n_out if dense else count, rows)
            or self._starts[0] != 0
            or self._starts[-1] != count
            or (np.diff(self._starts) < 0).any()
            or (count and (self._columns.min() < 0 or self._columns.max() >= self.shape[1]))
        ):
            raise FormatError("SparseLinear: values, columns and starts do not fit together")
        self.bias = None
        if bias is not None:
            name = self._values.dtype.name
            self.bias = as_array(bias, "bias", dtypes=(name,), cast=name, shape=(n_out,)).copy()

    def __repr__(self) -> str:
        return f"SparseLinear(shape={self.shape}, format={self.format!r}, nnz={self.nnz})"

    @classmethod
    def from_dense(
        cls, w: Any, format: str = "auto", *, bias: Any = None, batch: int = 64
    ) -> SparseLinear:
        """Store the non-zeros of ``w``.

        Parameters
        ----------
        w : (n_out, n_in) float32 or float64
            A pruned weight. Not changed, not kept.
        format : {"auto", "sparse", "csr", "4x1", "dense"}
            "sparse" takes 4x1 where the groups of 4 rows hold at most three times the non-zeros,
            else csr. "auto" times that against the dense product, here and now, and keeps W dense
            where it is no faster; ``reason`` says so.
        bias : (n_out,) array, optional
            Added by :meth:`__call__`.
        batch : int
            Columns of x that "auto" measures with.
        """
        a = as_array(w, "w", ndim=2)
        name = choice(format, "format", ("auto", "sparse", *_FORMATS))
        n = integer(batch, "batch", low=1)
        n_out, n_in = a.shape
        if n_in >= 2**31:
            raise ArrayError(f"w: expected fewer than 2**31 columns, got {n_in}")
        if name == "dense":
            none = np.zeros(0, np.int32), np.zeros(1, np.int64)
            return cls((n_out, n_in), name, a, *none, bias)
        live = a != 0
        tall = np.zeros((-(-n_out // 4), n_in), np.bool_)
        for r in range(4):
            tall[: len(live[r::4])] |= live[r::4]
        measure, reason = name == "auto", "asked for"
        if name in ("auto", "sparse"):
            stored, used = 4 * int(tall.sum()), int(live.sum())
            name = "4x1" if stored <= _FILL * used else "csr"
            reason = f"groups of 4 rows hold {stored} values, of them {used} not zero"
        rows = _ROWS[name]
        group, column = np.nonzero(tall if rows == 4 else live)
        groups = -(-n_out // rows)
        starts = np.zeros(groups + 1, np.int64)
        np.cumsum(np.bincount(group, minlength=groups), out=starts[1:])
        values = np.zeros((len(column), rows), a.dtype)
        for r in range(rows):
            there = group * rows + r < n_out
            values[there, r] = a[group[there] * rows + r, column[there]]
        made = cls((n_out, n_in), name, values, column.astype(np.int32), starts, bias, reason)
        return _faster(made, cls.from_dense(a, "dense", bias=bias), n) if measure else made

    @property
    def nnz(self) -> int:
        """Weights that are not zero."""
        return int(np.count_nonzero(self._values))

    @property
    def nbytes(self) -> int:
        """Bytes stored."""
        return int(self._values.nbytes + self._columns.nbytes + self._starts.nbytes)

    def to_dense(self) -> Array:
        """W as an array (n_out, n_in)."""
        if self.format == "dense":
            kept: Array = self._values.copy()
            return kept
        rows = _ROWS[self.format]
        groups = len(self._starts) - 1
        full = np.zeros((groups, rows, self.shape[1]), self._values.dtype)
        group = np.repeat(np.arange(groups), np.diff(self._starts))
        full[group, :, self._columns] = self._values
        result: Array = full.reshape(groups * rows, self.shape[1])[: self.shape[0]].copy()
        return result

    def matmul(self, x: Any, *, out: Any = None, threads: int | None = None) -> Array:
        """y = W @ x.

        Parameters
        ----------
        x : (n_in, n) or (n_in,) array of the dtype of W
            One column a sample.
        out : (n_out, n) or (n_out,) array, optional
            Overwritten; may not share memory with ``x``.
        threads : int, optional
            Threads; the result does not depend on them.
        """
        dtype = self._values.dtype.name
        a = as_array(x, "x", dtypes=(dtype,), ndim=(1, 2))
        if a.shape[0] != self.shape[1]:
            raise ArrayError(f"x: expected {self.shape[1]} rows, got shape {a.shape}")
        n = 1 if a.ndim == 1 else a.shape[1]
        result = out_for(out, "out", (self.shape[0], *a.shape[1:]), dtype)
        if out is not None:
            check_disjoint([("out", result)], [("x", a)])
        if self.format == "dense":
            np.matmul(self._values, a, out=result)
            return result
        used = _threads.resolve(threads, self._values.size * n, 1 << 19)
        rows = _ROWS[self.format]
        groups = len(self._starts) - 1
        whole = groups * rows == self.shape[0]
        y = result if whole else np.empty((groups * rows, n), dtype)
        kernel.product(y, self._values, self._columns, self._starts, a, n, rows, used)
        if not whole:
            result[...] = y[: self.shape[0]].reshape(result.shape)
        return result

    def __call__(self, x: Any, *, threads: int | None = None) -> Array:
        """y = x @ W.T + bias, as a layer: one row a sample.

        Parameters
        ----------
        x : (..., n_in) array of the dtype of W
        threads : int, optional

        Returns
        -------
        (..., n_out) array
        """
        a = as_array(x, "x", dtypes=(self._values.dtype.name,), ndim=(1, 2, 3, 4))
        if a.shape[-1] != self.shape[1]:
            raise ArrayError(f"x: expected {self.shape[1]} columns, got shape {a.shape}")
        columns = np.ascontiguousarray(a.reshape(-1, a.shape[-1]).T)
        y = self.matmul(columns, threads=threads).T
        y = np.ascontiguousarray(y) if self.bias is None else y + self.bias
        result: Array = y.reshape(*a.shape[:-1], self.shape[0])
        return result

    def __matmul__(self, x: Any) -> Array:
        return self.matmul(x)

    # NumPy must not take ``array @ self`` apart element by element
    __array_ufunc__ = None


def _faster(sparse: SparseLinear, dense: SparseLinear, batch: int) -> SparseLinear:
    """The one whose product with ``batch`` columns takes less time, and why."""
    x = np.ones((sparse.shape[1], batch), sparse._values.dtype)
    out = np.empty((sparse.shape[0], batch), x.dtype)
    times = _seconds([sparse, dense], x, out)
    taken, left = (sparse, dense) if times[0] < times[1] else (dense, sparse)
    first, second = sorted(times)
    taken.reason = (
        f"{taken.format} takes {first * 1e6:.3g} us, {left.format} {second * 1e6:.3g} us "
        f"for {batch} columns"
    )
    return taken


def _seconds(layers: list[SparseLinear], x: Array, out: Array) -> list[float]:
    """Least seconds of a product, interleaved; short ones are repeated."""
    least = [float("inf")] * len(layers)
    for _ in range(_ROUNDS):
        for k, layer in enumerate(layers):
            start, count = time.perf_counter(), 0
            while (spent := time.perf_counter() - start) < _AT_LEAST_S or not count:
                layer.matmul(x, out=out)
                count += 1
            least[k] = min(least[k], spent / count)
    return least
