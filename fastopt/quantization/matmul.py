"""Products of integer matrices by ONNX's operators, exact for every legal input.

Neither operator ever saturates an intermediate sum: on a CPU with 8-bit dot products (AVX-512
VNNI) they are used; elsewhere codes are widened to 16 bits, or where b is packed and has few pairs
that could saturate the faster instruction, these are multiplied apart (_kernels/matmul/clip.h).
Bits are equal for every instruction set and thread count.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt import _threads
from fastopt._arrays import Array, as_target, check_disjoint, out_for
from fastopt._kernels import matmul as _kernel
from fastopt.errors import ArrayError
from fastopt.quantization.packed_matrix import (
    PackedMatrix,
    flat,
    matrix,
    moved,
    operands,
    output_zero_point,
    scales,
    squeezed,
    zero_points,
)

__all__ = ["PackedMatrix", "matmul_integer", "qlinear_matmul"]

# (a - za)(b - zb) is at most 255 * 255: this many of them fit in int32 whatever the data.
SAFE_K = (2**31 - 1) // (255 * 255)
# Multiply-adds below which a second thread costs more than it saves.
SERIAL_BELOW = 1 << 20
# Rows of a from which packing all of b beats packing it slice by slice for each chunk of rows.
PACK_FROM_ROWS = 256

_PACKED, _ROWS_K, _ROWS_N = 0, 1, 2  # the kernel's layouts of b


def matmul_integer(
    a: Any,
    b: Any,
    a_zero_point: Any = None,
    b_zero_point: Any = None,
    *,
    out: Any = None,
    threads: int | None = None,
) -> Array:
    """(a - a_zero_point) @ (b - b_zero_point) in exact integers: ONNX MatMulInteger.

    Parameters
    ----------
    a : (..., M, K) or (K,) int8 or uint8
        Left operand.
    b : (..., K, N) or (K,) int8 or uint8, or PackedMatrix
        Right operand; leading axes broadcast as in numpy.matmul.
    a_zero_point : of a's dtype, optional
        A scalar, one per row (M,), or (..., M, 1).
    b_zero_point : of b's dtype, optional
        A scalar, one per column (N,), or (..., 1, N).
    out : (..., M, N) int32 or int64, optional
        Where the result goes.
    threads : int, optional
        Thread count; the result does not depend on it.

    Returns
    -------
    (..., M, N) int32
        ``out`` where given.

    Raises
    ------
    DTypeError, ArrayError
        Wrong dtype or shape; or a sum over more than 33,025 terms that int32 cannot hold (pass an
        int64 ``out`` then). Nothing has been written.

    Notes
    -----
    Up to K = 33,025 every input fits in int32. Beyond, sums are taken in int64.

    Examples
    --------
    >>> import numpy as np
    >>> a = np.array([[11, 7, 3], [10, 6, 2]], np.uint8)
    >>> b = np.array([[1, 4], [2, 5], [3, 6]], np.uint8)
    >>> matmul_integer(a, b, a_zero_point=12)
    array([[-38, -83],
           [-44, -98]], dtype=int32)
    """
    if a_zero_point is None and b_zero_point is None and isinstance(b, PackedMatrix):
        done = _plain_product(a, b, out, threads)
        if done is not None:
            return done
    left, right = operands(a, b)
    za = zero_points(a_zero_point, left, -1, "a_zero_point")
    zb = zero_points(b_zero_point, right, -2, "b_zero_point")
    product = _Product(left, right, za, zb, threads)
    shape = squeezed(product.shape, a, b)
    if out is None:
        result = np.empty(shape, np.int32)
    else:
        result = as_target(out, "out", dtypes=("int32", "int64"), shape=shape)
        check_disjoint([("out", result)], product.arrays())
    wide = result.dtype == np.int64
    if product.k <= SAFE_K:
        direct = np.empty(product.shape, np.int32) if wide else result.reshape(product.shape)
        product.into(direct)
        if wide:
            result[...] = direct.reshape(shape)
        return result
    total = product.long()
    if not wide and total.size and (total.min() < -(2**31) or total.max() >= 2**31):
        raise ArrayError(
            f"out: a sum over K = {product.k} terms does not fit in int32; "
            "pass out=numpy.empty(shape, numpy.int64)"
        )
    result[...] = total.reshape(shape)
    return result


def qlinear_matmul(
    a: Any,
    a_scale: Any,
    a_zero_point: Any,
    b: Any,
    b_scale: Any,
    b_zero_point: Any,
    y_scale: Any,
    y_zero_point: Any,
    *,
    out: Any = None,
    threads: int | None = None,
) -> Array:
    """saturate(round(C a_scale b_scale / y_scale) + y_zero_point), C exact: ONNX QLinearMatMul.

    C = (a - a_zero_point) @ (b - b_zero_point), as in :func:`matmul_integer`.

    Parameters
    ----------
    a, b : int8 or uint8
        As in :func:`matmul_integer`; b may be a PackedMatrix.
    a_scale, a_zero_point : scalar, (M,) or (..., M, 1)
        Scale (float) and zero point (of a's dtype) of a.
    b_scale, b_zero_point : scalar, (N,) or (..., 1, N)
        Scale and zero point of b.
    y_scale, y_zero_point : scalar
        Scale and zero point of the result; the zero point's dtype is the result's (a's dtype where
        it is None or a plain int).
    out : (..., M, N) int8 or uint8, optional
        Where the result goes.
    threads : int, optional
        Thread count; the result does not depend on it.

    Returns
    -------
    (..., M, N) int8 or uint8

    Raises
    ------
    DTypeError, ArrayError
        Wrong dtype or shape; a scale that is not finite and positive.

    Notes
    -----
    a_scale * b_scale / y_scale is computed in the scales' dtype (float32 for plain floats), its
    product with C in float64; rounding is half to even, before the zero point is added.

    Examples
    --------
    >>> import numpy as np
    >>> a = np.array([[208, 236], [3, 214]], np.uint8)
    >>> b = np.array([[152, 51], [60, 26]], np.uint8)
    >>> qlinear_matmul(a, 0.0066, np.uint8(113), b, 0.00705, np.uint8(114), 0.0107, np.uint8(118))
    array([[105,  45],
           [ 76, 109]], dtype=uint8)
    """
    left, right = operands(a, b)
    za = zero_points(a_zero_point, left, -1, "a_zero_point")
    zb = zero_points(b_zero_point, right, -2, "b_zero_point")
    product = _Product(left, right, za, zb, threads)
    zy, dtype = output_zero_point(y_zero_point, left.dtype)
    rows = scales(a_scale, left, -1, "a_scale")
    columns = scales(b_scale, right, -2, "b_scale")
    last = scales(y_scale, None, -1, "y_scale")
    with np.errstate(over="ignore", under="ignore"):
        factor = rows * columns / last
    if not np.isfinite(factor).all():
        raise ArrayError("a_scale * b_scale / y_scale: is not finite")
    shape = squeezed(product.shape, a, b)
    result = out_for(out, "out", shape, dtype)
    if out is not None:
        check_disjoint([("out", result)], product.arrays())
    if product.k <= SAFE_K:
        product.requantised_into(result.reshape(product.shape), factor, zy)
        return result
    info = np.iinfo(dtype)
    codes = np.rint(product.long() * factor.astype(np.float64)) + zy
    result[...] = np.clip(codes, info.min, info.max).astype(dtype).reshape(shape)
    return result


def _plain_product(a: Any, b: PackedMatrix, out: Any, threads: int | None) -> Array | None:
    """The common case without the general checks (60 us): a plain matrix of codes times a packed
    one. None where it is anything else."""
    if type(a) is not np.ndarray or a.ndim != 2 or not a.flags.carray:
        return None
    k, n = b.shape
    m = a.shape[0]
    if a.dtype not in (np.int8, np.uint8) or a.shape[1] != k or k > SAFE_K:
        return None
    if out is None:
        out = np.empty((m, n), np.int32)
    else:
        fits = type(out) is np.ndarray and out.dtype == np.int32 and out.shape == (m, n)
        if not fits or not out.flags.carray or np.may_share_memory(out, a):
            return None
    za = np.full(m, 128 if a.dtype == np.int8 else 0, np.int32)
    zb = np.full(n, -128 if b.dtype == np.uint8 else 0, np.int32)
    used = _threads.resolve(threads, m * n * k, SERIAL_BELOW)
    _kernel.multiply_i32(
        out, a, b._panels, _PACKED, b._colsum, b._narrow, za, zb, m, n, k, used, b._excess
    )  # fmt: skip
    result: Array = out
    return result


class _Product:
    """Checked operands of one call and the 2-D kernel calls that it takes."""

    def __init__(
        self,
        a: Array,
        b: Array | PackedMatrix,
        za: Array,
        zb: Array,
        threads: int | None,
    ) -> None:
        self.a, self.b, self.za, self.zb = a, b, za, zb
        self.k = a.shape[-1]
        m, n = a.shape[-2], b.shape[-1]
        if b.shape[-2] != self.k:
            raise ArrayError(
                f"b: expected {self.k} rows (a's last axis), got shape {tuple(b.shape)}"
            )
        try:
            self.batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        except ValueError:
            raise ArrayError(
                f"b: leading axes {b.shape[:-2]} do not broadcast with a's {a.shape[:-2]}"
            ) from None
        if len(b.shape) == 2 and zb.ndim <= 2:  # one b for all: stack the rows of a
            rows = a.size // self.k if self.k else m * int(np.prod(self.batch))
            self.za = np.broadcast_to(za, (*a.shape[:-1], 1)).reshape(-1, 1)
            self.a = a.reshape(rows, self.k)
            self.stacked: tuple[int, ...] = ()
        else:
            rows = m
            self.stacked = self.batch
        self.rows, self.n = rows, n
        self.shape = (*self.batch, m, n)
        self.threads = _threads.resolve(threads, rows * n * self.k, SERIAL_BELOW)

    def arrays(self) -> list[tuple[str, Array]]:
        return [("a", self.a)] + ([("b", self.b)] if isinstance(self.b, np.ndarray) else [])

    def _parts(self) -> list[tuple[tuple[int, ...], Array, Array | PackedMatrix, Array, Array]]:
        """(index in the batch, a, b, za, zb) of each 2-D product."""
        if not self.stacked:
            a = self.a.reshape(self.rows, self.k)
            return [((), a, self.b, flat(self.za, self.rows), flat(self.zb, self.n))]
        assert isinstance(self.b, np.ndarray)
        a = np.broadcast_to(self.a, (*self.batch, *self.a.shape[-2:]))
        b = np.broadcast_to(self.b, (*self.batch, *self.b.shape[-2:]))
        za = np.broadcast_to(self.za, (*self.batch, self.rows, 1))
        zb = np.broadcast_to(self.zb, (*self.batch, 1, self.n))
        return [
            (i, a[i], b[i], flat(za[i], self.rows), flat(zb[i], self.n))
            for i in np.ndindex(*self.batch)
        ]

    def into(self, out: Array) -> None:
        """int32 products."""
        out = out.reshape(*self.stacked, self.rows, self.n)
        for i, a, b, za, zb in self._parts():
            layout, data, colsum, narrow, excess = self._right(b)
            _kernel.multiply_i32(
                out[i], np.ascontiguousarray(a), data, layout, colsum, narrow,
                moved(za, a, np.int8, 128), moved(zb, b, np.uint8, -128),
                self.rows, self.n, self.k, self.threads, excess,
            )  # fmt: skip

    def requantised_into(self, out: Array, factor: Array, zero_point: int) -> None:
        """8-bit results; ``factor`` broadcasts against the product."""
        out = out.reshape(*self.stacked, self.rows, self.n)
        by_column = all(size == 1 for size in factor.shape[:-1])
        if by_column:
            scale = np.ascontiguousarray(np.broadcast_to(factor.reshape(-1), self.n), np.float64)
        else:
            full = np.broadcast_to(factor, self.shape).reshape(*self.stacked, self.rows, self.n)
        for i, a, b, za, zb in self._parts():
            layout, data, colsum, narrow, excess = self._right(b)
            if not by_column:
                scale = np.ascontiguousarray(full[i], np.float64)
            _kernel.multiply_q8(
                out[i], np.ascontiguousarray(a), data, layout, colsum, narrow,
                moved(za, a, np.int8, 128), moved(zb, b, np.uint8, -128), scale, zero_point,
                self.rows, self.n, self.k, self.threads, excess,
            )  # fmt: skip

    def long(self) -> Array:
        """int64 products for any K: exact int32 parts, summed."""
        plain = self.b.unpack() if isinstance(self.b, PackedMatrix) else self.b
        total = np.zeros((*self.stacked, self.rows, self.n), np.int64)
        part = np.empty(total.shape, np.int32)
        for k0 in range(0, self.k, SAFE_K):
            piece = _Product.__new__(_Product)
            piece.__dict__.update(self.__dict__)
            piece.a = self.a[..., k0 : k0 + SAFE_K]
            piece.b = plain[..., k0 : k0 + SAFE_K, :]
            piece.k = piece.a.shape[-1]
            piece.into(part)
            total += part
        return total.reshape(self.shape)

    def _right(self, b: Array | PackedMatrix) -> tuple[int, Array, Array | None, bool, Any]:
        """(layout, data, column sums, narrow, excess) of b for the kernel."""
        if isinstance(b, np.ndarray) and self.rows >= PACK_FROM_ROWS:
            b = PackedMatrix(b, threads=self.threads)
        if isinstance(b, PackedMatrix):
            return _PACKED, b._panels, b._colsum, b._narrow, b._excess
        plain, transposed = matrix(b, "b")
        if transposed:
            return _ROWS_N, plain.T, None, False, None
        return _ROWS_K, plain, None, False, None
