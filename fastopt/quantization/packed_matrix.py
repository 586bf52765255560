"""What the integer products take: a packed right operand, and the checks of codes, zero points and
scales against a product's shape."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt import _threads
from fastopt._arrays import Array, as_array, as_ndarray, as_numbers
from fastopt._kernels import matmul as _kernel
from fastopt.errors import ArrayError, DTypeError

CODES = ("int8", "uint8")


def aligned_bytes(size: int) -> Array:
    """``size`` bytes of new memory that begin on a cache line."""
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size]


# The share of weights beyond which clipping costs more than it saves, since each one clipped takes
# the time of 2.5 more. 1.7-2.8 % of the weights of real layers, 12 % of codes spread evenly.
MOST_EXCESS = 0.06


def excess_of(
    panels: Array, n: int, k: int, heads: bool, threads: int | None
) -> tuple[Array, Array, Array] | None:
    """What the kernel clips off a packed 8-bit matrix of one group to multiply it by the fast
    instruction of a level that saturates; None where that does not pay."""
    if not _kernel.CLIPS or k > 1 << 16:
        return None
    used = _threads.resolve(threads, k * n)
    count = np.empty(n, np.int32)
    _kernel.excess(count, None, None, None, panels, n, k, heads, used)
    if count.sum() > MOST_EXCESS * k * n:
        return None
    start = np.zeros(n + 1, np.int32)
    np.cumsum((count + 3) // 4, out=start[1:])
    row, value = np.empty(4 * start[-1], np.uint16), np.empty(4 * start[-1], np.int8)
    _kernel.excess(count, start, row, value, panels, n, k, heads, used)
    return start, row, value


class PackedMatrix:
    """A constant right operand b of :func:`~fastopt.quantization.matmul_integer`, packed once.

    Parameters
    ----------
    b : (K, N) int8 or uint8
        The matrix; it is copied. A transposed view of a C-contiguous (N, K) array is taken as it
        lies.
    threads : int, optional
        Thread count.

    Attributes
    ----------
    shape : tuple of int
        (K, N).
    dtype : numpy.dtype
        int8 or uint8.

    Notes
    -----
    The memory layout belongs to this machine's instruction set, so a pickle holds the plain matrix
    and packs it again when it is loaded.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.quantization import PackedMatrix, matmul_integer
    >>> b = PackedMatrix(np.full((768, 2), 127, np.int8))
    >>> matmul_integer(np.full((1, 768), 255, np.uint8), b)
    array([[24871680, 24871680]], dtype=int32)
    """

    def __init__(self, b: Any, *, threads: int | None = None) -> None:
        plain, transposed = matrix(b, "b")
        self.shape = plain.shape
        self.dtype = plain.dtype
        self._pack(plain.T if transposed else plain, transposed, threads)

    def _pack(self, plain: Array, transposed: bool, threads: int | None) -> None:
        """Panels and column sums of a (K, N) matrix, or an (N, K) one if ``transposed``."""
        k, n = self.shape
        self._panels = aligned_bytes(_kernel.packed_size(n, k, 0, 8, False))
        self._colsum = np.empty(n, np.int32)
        self._narrow = _kernel.pack(
            self._panels, self._colsum, None, None, plain, n, k, 0, 8, transposed,
            _threads.resolve(threads, k * n),
        )  # fmt: skip
        self._excess = None if self._narrow else excess_of(self._panels, n, k, False, threads)

    @property
    def nbytes(self) -> int:
        """Bytes of the packed matrix and its column sums."""
        parts = (self._panels, self._colsum, *(self._excess or ()))
        return sum(part.nbytes for part in parts)

    def unpack(self) -> Array:
        """The plain (K, N) matrix, a new array (the transposed view of an (N, K) one)."""
        k, n = self.shape
        codes = np.empty((n, k), np.int8)
        _kernel.unpack(codes, self._panels, n, k, 0, 8, False)
        plain: Array = codes
        if self.dtype == np.uint8:
            plain = codes.view(np.uint8) ^ np.uint8(0x80)
        result: Array = plain.transpose()
        return result

    def __getstate__(self) -> dict[str, Any]:
        return {"plain": self.unpack().T}

    def __setstate__(self, state: dict[str, Any]) -> None:
        plain = state["plain"]
        self.shape, self.dtype = plain.shape[::-1], plain.dtype
        self._pack(plain, True, None)

    def __repr__(self) -> str:
        return f"PackedMatrix(shape={self.shape}, dtype={self.dtype})"


def matrix(b: Any, name: str) -> tuple[Array, bool]:
    """A (K, N) matrix that is C-contiguous, or the transposed view of one that is (True)."""
    plain = as_array(b, name, dtypes=CODES, ndim=2, contiguous=False)
    if plain.flags.c_contiguous:
        return plain, False
    return (plain, True) if plain.T.flags.c_contiguous else (np.ascontiguousarray(plain), False)


def operands(a: Any, b: Any) -> tuple[Array, Any]:
    """a with at least two axes; b likewise or packed."""
    left = as_array(a, "a", dtypes=CODES)
    if left.ndim == 0:
        raise ArrayError("a: expected at least one axis, got a scalar")
    left = left[None, :] if left.ndim == 1 else left
    if isinstance(b, PackedMatrix):
        return left, b
    right = as_array(b, "b", dtypes=CODES, contiguous=False)
    if right.ndim == 0:
        raise ArrayError("b: expected at least one axis, got a scalar")
    return left, right[:, None] if right.ndim == 1 else right


def squeezed(shape: tuple[int, ...], a: Any, b: Any) -> tuple[int, ...]:
    """The product's shape without the axes that 1-D operands were given."""
    if not isinstance(b, PackedMatrix) and np.ndim(b) == 1:
        shape = shape[:-1]
        return shape[:-1] if np.ndim(a) == 1 else shape
    return (*shape[:-2], shape[-1]) if np.ndim(a) == 1 else shape


def _broadcastable(value: Array, operand: Any, axis: int, name: str) -> Array:
    """Scalar, vector along the rows (axis -1 is reduced) or columns (-2), or N-D, against a
    product."""
    if value.size == 1:
        return value.reshape(())
    if operand is None:
        raise ArrayError(f"{name}: expected one value, got shape {value.shape}")
    wanted = [*operand.shape]
    wanted[axis] = 1
    count = wanted[-3 - axis]  # of rows or of columns, the axis of the two that is not reduced
    if value.ndim == 1 and value.size == count:
        return value.reshape(wanted[-2:])
    fits = value.ndim >= 2 and value.shape[-2:] == tuple(wanted[-2:])
    if fits and value.ndim <= len(wanted):
        lead = zip(value.shape[-3::-1], wanted[-3::-1], strict=False)
        if all(v in (1, w) for v, w in lead):
            return value
    raise ArrayError(
        f"{name}: expected one value, {count} values or shape {tuple(wanted)}, "
        f"got shape {value.shape}"
    )


def zero_points(value: Any, operand: Any, axis: int, name: str) -> Array:
    """int32 zero points in the range of the operand's dtype."""
    if value is None:
        return np.zeros((), np.int32)
    zero = as_ndarray(value, name)
    info = np.iinfo(operand.dtype)
    plain = isinstance(value, int) and not isinstance(value, bool)
    if not plain and zero.dtype != operand.dtype:
        raise DTypeError(f"{name}: expected its matrix's dtype {operand.dtype}, got {zero.dtype}")
    if plain and not info.min <= value <= info.max:
        raise ArrayError(f"{name}: expected {info.min}..{info.max} for {info.dtype}, got {value}")
    return _broadcastable(zero.astype(np.int32), operand, axis, name)


def scales(value: Any, operand: Any, axis: int, name: str) -> Array:
    """Finite positive scales, in their own float dtype (float32 for plain numbers)."""
    scale = as_ndarray(value, name)
    if isinstance(value, (int, float, list, tuple)):
        with np.errstate(over="ignore"):
            scale = as_numbers(scale, name).astype(np.float32)
    if scale.dtype.kind != "f" and scale.dtype.name != "bfloat16":
        raise DTypeError(f"{name}: expected floats, got dtype {scale.dtype}")
    if not (np.isfinite(scale) & (scale > 0)).all():
        raise ArrayError(f"{name}: expected finite positive scales")
    return _broadcastable(scale, operand, axis, name)


def output_zero_point(value: Any, default: Any) -> tuple[int, str]:
    """The result's zero point and dtype."""
    if value is None:
        return 0, str(np.dtype(default))
    zero = as_ndarray(value, "y_zero_point")
    if isinstance(value, int) and not isinstance(value, bool):
        info = np.iinfo(default)
        if not info.min <= value <= info.max:
            raise ArrayError(f"y_zero_point: expected {info.min}..{info.max}, got {value}")
        return value, str(np.dtype(default))
    if zero.dtype.name not in CODES:
        raise DTypeError(f"y_zero_point: expected dtype int8 or uint8, got {zero.dtype}")
    if zero.size != 1:
        raise ArrayError(f"y_zero_point: expected one value, got shape {zero.shape}")
    return int(zero.reshape(())), zero.dtype.name


def flat(values: Array, size: int) -> Array:
    return np.broadcast_to(values.reshape(-1), (size,)) if values.size == 1 else values.reshape(-1)


def moved(zero: Array, operand: Any, dtype: type, by: int) -> Array:
    """The kernel multiplies uint8 a by int8 b: codes of the other sign are moved by 128."""
    return np.ascontiguousarray(zero + (by if operand.dtype == dtype else 0), np.int32)
