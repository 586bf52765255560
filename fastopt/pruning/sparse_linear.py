"""A pruned weight that runs sparse: only the non-zeros are stored and multiplied."""

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

_ROWS = {"csr": 1, "4x1": 4}  # rows of a group that share their columns
_FORMATS = (*_ROWS, "bitmask", "dense")
_FILL = 3.0  # stored entries per weight above which groups of 4 rows are not tried
_ROUNDS = 5  # of the measurement by "auto"; the minimum counts
_DECODED = 1 << 16  # weights of a bit mask decoded at a time: 256 KB of float32


class SparseLinear:
    """y = x @ W.T + bias with W (n_out, n_in) sparse; made by :meth:`from_dense`.

    Attributes
    ----------
    shape : (n_out, n_in)
    format : "csr", "4x1", "bitmask" or "dense"
        Rows on their own; groups of 4 rows that share their columns (what
        ``prune(w, pattern="4x1")`` and ``"8x1"`` leave); one bit per weight and the non-zeros,
        decoded in blocks of rows as they are needed; the weight as it was.
    bias : (n_out,) array of the dtype of W, or None
        Added by a call, not by ``@``.
    reason : str
        Why this format, with the times measured by "auto".
    nnz : int
        Weights that are not zero.
    nbytes : int
        Bytes of the stored weight.

    Raises
    ------
    ArrayError
        ``shape`` is not (n_out, n_in).
    FormatError
        Values, columns and starts do not fit together.

    Notes
    -----
    In "csr" and "4x1" sums run in the order of the stored columns, so the result has the same
    bits on every machine and thread count; NaN and infinity in x do not meet the zeros of W.
    "bitmask" and "dense" multiply by NumPy's BLAS.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> from fastopt.pruning import SparseLinear
    >>> w = fastopt.prune(np.arange(32.0).reshape(8, 4), 0.5, pattern="4x1").arrays
    >>> s = SparseLinear.from_dense(w, "4x1")
    >>> s.format, s.nnz, bool(np.allclose(s @ np.ones((4, 2)), w @ np.ones((4, 2))))
    ('4x1', 16, True)
    >>> s(np.ones((3, 4))).shape
    (3, 8)
    """

    def __init__(
        self,
        shape: tuple[int, int],
        format: str,
        values: Array,
        columns: Array,
        starts: Array,
        bias: Any = None,
    ) -> None:
        if not isinstance(shape, (tuple, list)) or len(shape) != 2:
            raise ArrayError(f"shape: expected (n_out, n_in), got {shape!r}")
        n_out, n_in = (integer(n, "shape", low=0, high=2**48) for n in shape)
        self.shape = (n_out, n_in)
        self.format = choice(format, "format", _FORMATS)
        self.reason = "asked for"
        # copies: the kernel trusts the columns and starts that are checked here
        self._values = as_array(values, "values", ndim=2).copy()
        bits = self.format == "bitmask"
        self._columns = as_array(
            columns, "columns", dtypes=("uint8" if bits else "int32",), ndim=2 if bits else 1
        ).copy()
        groups = 0 if self.format == "dense" else -(-n_out // _ROWS.get(self.format, 1))
        self._starts = as_array(starts, "starts", dtypes=("int64",), shape=(groups + 1,)).copy()
        if not self._fits():
            raise FormatError("SparseLinear: values, columns and starts do not fit together")
        dtype = self._values.dtype.name
        self.bias = (
            None if bias is None else
            as_array(bias, "bias", dtypes=(dtype,), cast=dtype, shape=(n_out,)).copy()
        )  # fmt: skip

    def _fits(self) -> bool:
        """Whether the three arrays describe a weight of this shape."""
        values, columns, starts = self._values, self._columns, self._starts
        if self.format == "dense":
            return values.shape == self.shape and not len(columns) and not starts[0]
        if self.format == "bitmask":
            row = -(-self.shape[1] // 8)
            if columns.shape != (self.shape[0], row) or values.shape != (starts[-1], 1):
                return False
            live = np.unpackbits(columns, axis=1)
            return not live[:, self.shape[1] :].any() and bool(
                (
                    starts == np.concatenate([[0], np.cumsum(live.sum(axis=1, dtype=np.int64))])
                ).all()
            )
        count = len(columns)
        return not (
            values.shape != (count, _ROWS[self.format])
            or starts[0] != 0
            or starts[-1] != count
            or (np.diff(starts) < 0).any()
            or (count and (columns.min() < 0 or columns.max() >= self.shape[1]))
        )

    def __repr__(self) -> str:
        return f"SparseLinear(shape={self.shape}, format={self.format!r}, nnz={self.nnz})"

    @classmethod
    def from_dense(
        cls,
        w: Any,
        format: str = "auto",
        *,
        bias: Any = None,
        batch: int = 64,
        threads: int | None = None,
    ) -> SparseLinear:
        """Store the non-zeros of ``w``.

        Parameters
        ----------
        w : (n_out, n_in) float32 or float64
            A pruned weight. Not changed, not kept.
        format : "auto", "csr", "4x1", "8x1", "bitmask" or "dense"
            "auto" multiplies ``batch`` samples in each form that may pay ("csr", "4x1", "dense")
            and takes the fastest on this machine; ``reason`` says what it measured. "8x1" is
            stored as two groups of 4 rows. "bitmask" is the smallest between about 10 % and 97 %
            of zeros.
        bias : (n_out,) array, optional
            Added by a call.
        batch : int
            Samples per product that "auto" measures with.
        threads : int, optional
            Threads of that measurement.

        Returns
        -------
        SparseLinear

        Raises
        ------
        ArrayError, DTypeError, OptionError
            A bad argument.
        """
        a = as_array(w, "w", ndim=2)
        name = choice(format, "format", ("auto", "8x1", *_FORMATS))
        samples = integer(batch, "batch", low=1, high=2**20)
        if a.shape[1] >= 2**31:
            raise ArrayError(f"w: expected fewer than 2**31 columns, got {a.shape[1]}")
        if name != "auto":
            return cls(a.shape, *_stored(a, "4x1" if name == "8x1" else name), bias)
        live = int(np.count_nonzero(a))
        names = ["dense", "csr"]
        if 4 * int(_tall(a != 0).sum()) <= _FILL * live:
            names.append("4x1")
        tried = {n: cls(a.shape, *_stored(a, n), bias) for n in names}
        x = np.random.default_rng(0).standard_normal((a.shape[1], samples)).astype(a.dtype)
        times = dict.fromkeys(names, np.inf)
        for _ in range(_ROUNDS):
            for n in names:
                start = time.perf_counter()
                tried[n].matmul(x, threads=threads)
                times[n] = min(times[n], time.perf_counter() - start)
        best = tried[min(names, key=times.__getitem__)]
        zeros = 1 - live / a.size if a.size else 0.0
        measured = ", ".join(
            f"{n} {1e6 * times[n]:.0f} us" for n in sorted(names, key=times.__getitem__)
        )
        best.reason = f"fastest for {samples} samples at {zeros:.0%} zeros: {measured}"
        return best

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
            dense: Array = self._values.copy()
            return dense
        if self.format == "bitmask":
            return self._decoded(0, self.shape[0])
        rows = _ROWS[self.format]
        groups = len(self._starts) - 1
        full = np.zeros((groups, rows, self.shape[1]), self._values.dtype)
        group = np.repeat(np.arange(groups), np.diff(self._starts))
        full[group, :, self._columns] = self._values
        result: Array = full.reshape(groups * rows, self.shape[1])[: self.shape[0]].copy()
        return result

    def _decoded(self, start: int, stop: int) -> Array:
        """Rows start..stop of a bit mask as an array."""
        live = np.unpackbits(self._columns[start:stop], axis=1, count=self.shape[1])
        rows: Array = np.zeros(live.shape, self._values.dtype)
        rows[live.view(np.bool_)] = self._values[self._starts[start] : self._starts[stop], 0]
        return rows

    def __call__(self, x: Any, out: Any = None, *, threads: int | None = None) -> Array:
        """x @ W.T + bias.

        Parameters
        ----------
        x : (..., n_in) array of the dtype of W
            One sample per row.
        out : (..., n_out) array, optional
            Overwritten; may not share memory with ``x``.
        threads : int, optional
            Threads; the result does not depend on them.

        Returns
        -------
        (..., n_out) array of the dtype of W

        Raises
        ------
        ArrayError, DTypeError
            ``x`` or ``out`` does not fit.
        """
        dtype = self._values.dtype.name
        a = as_array(x, "x", dtypes=(dtype,))
        if not a.ndim or a.shape[-1] != self.shape[1]:
            raise ArrayError(f"x: expected (..., {self.shape[1]}), got shape {a.shape}")
        result = out_for(out, "out", (*a.shape[:-1], self.shape[0]), dtype)
        if out is not None:
            check_disjoint([("out", result)], [("x", a)])
        flat = np.ascontiguousarray(a.reshape(-1, self.shape[1]).T)
        result[...] = self.matmul(flat, threads=threads).T.reshape(result.shape)
        if self.bias is not None:
            result += self.bias
        return result

    def matmul(self, x: Any, *, out: Any = None, threads: int | None = None) -> Array:
        """y = W @ x.

        Parameters
        ----------
        x : (n_in, n) or (n_in,) array of the dtype of W
            One sample per column.
        out : (n_out, n) or (n_out,) array, optional
            Overwritten; may not share memory with ``x``.
        threads : int, optional
            Threads; the result does not depend on them.

        Returns
        -------
        (n_out, n) or (n_out,) array of the dtype of W

        Raises
        ------
        ArrayError, DTypeError
            ``x`` or ``out`` does not fit.
        """
        dtype = self._values.dtype.name
        a = as_array(x, "x", dtypes=(dtype,), ndim=(1, 2))
        if a.shape[0] != self.shape[1]:
            raise ArrayError(f"x: expected {self.shape[1]} rows, got shape {a.shape}")
        n = 1 if a.ndim == 1 else a.shape[1]
        result = out_for(out, "out", (self.shape[0], *a.shape[1:]), dtype)
        if out is not None:
            check_disjoint([("out", result)], [("x", a)])
        used = _threads.resolve(threads, self._values.size * n, 1 << 19)
        if self.format == "dense":
            np.matmul(self._values, a, out=result)
            return result
        if self.format == "bitmask":
            step = max(1, _DECODED // max(self.shape[1], 1))
            for start in range(0, self.shape[0], step):
                stop = min(start + step, self.shape[0])
                result[start:stop] = self._decoded(start, stop) @ a
            return result
        rows = _ROWS[self.format]
        groups = len(self._starts) - 1
        whole = groups * rows == self.shape[0]
        y = result if whole else np.empty((groups * rows, n), dtype)
        kernel.product(y, self._values, self._columns, self._starts, a, n, rows, used)
        if not whole:
            result[...] = y[: self.shape[0]].reshape(result.shape)
        return result

    def __matmul__(self, x: Any) -> Array:
        return self.matmul(x)

    # so that NumPy does not apply ``array @ self`` element by element
    __array_ufunc__ = None


def _tall(live: Array) -> Array:
    """Columns in use per group of 4 rows."""
    tall = np.zeros((-(-len(live) // 4), live.shape[1]), np.bool_)
    for r in range(4):
        tall[: len(live[r::4])] |= live[r::4]
    return tall


def _stored(a: Array, name: str) -> tuple[str, Array, Array, Array]:
    """(format, values, columns, starts) of a dense weight."""
    if name == "dense":
        return name, a, np.empty(0, np.int32), np.zeros(1, np.int64)
    n_out = len(a)
    live = a != 0
    if name == "bitmask":
        starts = np.concatenate([[0], np.cumsum(live.sum(axis=1, dtype=np.int64))])
        return name, a[live][:, None], np.packbits(live, axis=1), starts
    rows = _ROWS[name]
    group, column = np.nonzero(_tall(live) if rows == 4 else live)
    groups = -(-n_out // rows)
    starts = np.zeros(groups + 1, np.int64)
    np.cumsum(np.bincount(group, minlength=groups), out=starts[1:])
    values = np.zeros((len(column), rows), a.dtype)
    for r in range(rows):
        there = group * rows + r < n_out
        values[there, r] = a[group[there] * rows + r, column[there]]
    return name, values, column.astype(np.int32), starts
