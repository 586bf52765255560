"""QuantizedArray: codes with the scale and zero point that give them a meaning."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastopt import _options
from fastopt._arrays import Array, as_array, name_of, out_for
from fastopt.errors import ArrayError, FastoptError, FormatError
from fastopt.quantization.codebooks import decode_narrow
from fastopt.quantization.codes import decode
from fastopt.quantization.formats import Format, format_of
from fastopt.quantization.gguf import read_blocks, to_gguf
from fastopt.quantization.layout import layout_of
from fastopt.quantization.packing import unpack_int4
from fastopt.quantization.storage import read, to_onnx, to_safetensors

__all__ = ["QuantizedArray"]

# Elements of the float block that ``matmul`` holds at a time (4 MiB of float32).
_BLOCK = 1 << 20
_INTEGERS = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))


@dataclass(frozen=True, eq=False)
class QuantizedArray:
    """An array held as codes: value = (code - zero_point) * scale, or decoded code * scale.

    Made by :func:`fastopt.quantize`; plain data that pickles and copies bit for bit.

    Attributes
    ----------
    codes : integer array
        The codes in the shape of the array; 4-bit codes may be packed, a 1-D uint8 array with
        two codes per byte in ONNX's order (as ``quantize`` makes them): see ``unpacked``. Narrow
        floats are bare codes: ``codes.view("float16")``.
    scale : float32 or float64 array
        Step of each part: shape () per tensor, (C,) per axis, one per group otherwise.
    zero_point : integer array, shape of ``scale``
        Code of the value 0.
    dtype : str
        Name of the format, such as "int8" or "q3.12".
    shape : tuple of int
        Shape of the array.
    axis, group_size : int or None
        How parts that share a scale are cut.
    symmetric : bool
        Whether the zero point is the format's own (then it carries no information).

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> w = np.array([[1.0, -2.0], [0.5, 127.0]], np.float32)
    >>> q = fastopt.quantize(w, "int8", axis=1)
    >>> q.codes.tolist()
    [[127, -2], [64, 127]]
    >>> q.nbytes
    12
    """

    codes: Array
    scale: Array
    zero_point: Array
    dtype: str
    shape: tuple[int, ...]
    axis: int | None = None
    group_size: int | None = None
    symmetric: bool = True

    # NumPy's operators give way to ours: ndarray @ QuantizedArray calls __rmatmul__.
    __array_ufunc__ = None

    def __post_init__(self) -> None:
        """Check that the parts fit together."""
        object.__setattr__(self, "shape", _options.shape(self.shape, "shape"))
        _options.flag(self.symmetric, "symmetric")
        fmt, parts = format_of(self.dtype), layout_of(self.shape, self.axis, self.group_size)
        codes = _part(self, "codes", (fmt.storage, "uint8"))
        scale = _part(self, "scale", ("float32", "float64"))
        zero = _part(self, "zero_point", ("int8", "uint8", "int16", "uint16", "int32", "uint32"))
        for name, a in (("scale", scale), ("zero_point", zero)):
            if a.shape != parts.scale_shape:
                raise ArrayError(f"{name}: expected shape {parts.scale_shape}, got {a.shape}")
        packed = ((self.size + 1) // 2,)
        if codes.shape != self.shape or name_of(codes.dtype) != fmt.storage:
            if not fmt.packed or codes.shape != packed or name_of(codes.dtype) != "uint8":
                either = f" or uint8 codes packed to {packed}" if fmt.packed else ""
                raise ArrayError(
                    f"codes: expected {fmt.storage} codes of shape {self.shape}{either}, "
                    f"got {codes.dtype} of {codes.shape}"
                )
        elif fmt.packed and codes.size:
            low, high = fmt.code_limits
            if codes.min() < low or codes.max() > high:
                raise ArrayError(f"codes: expected {low}..{high} for {self.dtype}")

    @property
    def format(self) -> Format:
        """The number format."""
        return format_of(self.dtype)

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes to keep: codes, scales (not for fixed point) and, if affine, zero points.

        4-bit codes count half a byte each, packed in memory or not; the scales of mxfp4, powers
        of two, a byte each (as files hold them).
        """
        total = (self.size + 1) // 2 if self.format.packed else self.codes.nbytes
        if self.dtype == "mxfp4":
            total += self.scale.size
        elif self.format.own_scale is None:
            total += self.scale.nbytes
        if not self.symmetric:
            total += self.zero_point.nbytes
        return int(total)

    def unpacked(self) -> Array:
        """The codes, one per element, in the shape of the array (int8 or uint8 for 4 bits)."""
        fmt = self.format
        if not fmt.packed or (self.codes.shape == self.shape and self.codes.dtype == fmt.storage):
            return self.codes
        return unpack_int4(self.codes, self.shape, signed=fmt.qmin < 0)

    def dequantize(self, out: Any = None, *, threads: int | None = None) -> Array:
        """The values, (codes - zero_point) * scale.

        Parameters
        ----------
        out : array of the scale's dtype and this shape, optional
            Overwritten with the result and returned.
        threads : int, optional
            Thread count.

        Returns
        -------
        ndarray, dtype of ``scale``

        Raises
        ------
        ArrayError, DTypeError
            ``out`` does not fit; nothing is written.
        """
        read = [("codes", self.codes), ("scale", self.scale), ("zero_point", self.zero_point)]
        result = out_for(out, "out", self.shape, name_of(self.scale.dtype), read)
        self._decode(result, self.codes, self.scale, self.zero_point, threads)
        return result

    def _decode(
        self, out: Array, codes: Array, scale: Array, zero: Array, threads: int | None
    ) -> None:
        """Decode codes into out: those of the whole array, or of some rows."""
        fmt = self.format
        if not fmt.integers:
            decode_narrow(out, codes, fmt, scale, self.axis, self.group_size, threads)
        else:
            layout = layout_of(out.shape, self.axis, self.group_size)
            whole = codes.shape == out.shape and codes.dtype == fmt.storage
            packed = fmt.packed and not whole
            decode(out, codes, scale, zero, layout, threads, packed=packed)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        if copy is False:
            raise ValueError("a QuantizedArray becomes an array only by copying")
        values = self.dequantize()
        return values if dtype is None else values.astype(dtype)

    def matmul(self, x: Any, *, threads: int | None = None) -> Array:
        """The product ``self @ x`` in the scale's precision, dequantising a block at a time.

        Parameters
        ----------
        x : (k,) or (k, n) array
            Right operand; this array must be (m, k).
        threads : int, optional
            Threads of the dequantisation (the product runs in NumPy's BLAS).

        Returns
        -------
        (m,) or (m, n) array

        Notes
        -----
        Holds at most 4 MiB of float values at a time besides the result (one row at least).
        """
        right = as_array(x, "x", dtypes=(self.scale.dtype.name,), cast=self.scale.dtype.name)
        self._check_product(right, right.shape[:1], self.shape[-1:])
        result = np.empty((self.shape[0], *right.shape[1:]), self.scale.dtype)
        step = self._block_rows()
        for start in range(0, self.shape[0], step):
            stop = min(start + step, self.shape[0])
            np.matmul(self._rows(start, stop, threads), right, out=result[start:stop])
        return result

    def __matmul__(self, x: Any) -> Array:
        return self.matmul(x)

    def __rmatmul__(self, x: Any) -> Array:
        left = as_array(x, "x", dtypes=(self.scale.dtype.name,), cast=self.scale.dtype.name)
        self._check_product(left, left.shape[-1:], self.shape[:1])
        result = np.zeros((*left.shape[:-1], self.shape[1]), self.scale.dtype)
        step = self._block_rows()
        for start in range(0, self.shape[0], step):
            stop = min(start + step, self.shape[0])
            result += np.matmul(left[..., start:stop], self._rows(start, stop, None))
        return result

    def error(self, x: Any) -> float:
        """Relative error ||x - dequantize()|| / ||x|| in the Frobenius norm.

        Parameters
        ----------
        x : array of this shape
            The original values.

        Returns
        -------
        float
            0 for an exact code of an all-zero array, infinity for an inexact one.
        """
        original = as_array(x, "x", cast="float32", shape=self.shape)
        wide = original.astype(np.float64)
        norm = float(np.linalg.norm(wide))
        wide -= self.dequantize()
        distance = float(np.linalg.norm(wide))
        if norm == 0.0:
            return 0.0 if distance == 0.0 else math.inf
        return distance / norm

    def config(self) -> dict[str, Any]:
        """Everything except the arrays, as plain data for JSON."""
        return {
            "dtype": self.dtype,
            "shape": list(self.shape),
            "axis": None if self.axis is None else int(self.axis),
            "group_size": None if self.group_size is None else int(self.group_size),
            "symmetric": self.symmetric,
        }

    def to_safetensors(self, path: str | os.PathLike[str]) -> None:
        """Write a file with a checksum; see :func:`fastopt.quantization.to_safetensors`."""
        to_safetensors(self, path)

    @staticmethod
    def from_safetensors(path: str | os.PathLike[str]) -> QuantizedArray:
        """Read what :func:`to_safetensors` wrote; every bit is checked.

        Parameters
        ----------
        path : path
            The file.

        Returns
        -------
        QuantizedArray

        Raises
        ------
        FormatError
            Not such a file, or damaged.
        MissingFileError, StorageError
            There is no such file, or it cannot be read.
        ImportError
            The package safetensors is missing.

        Examples
        --------
        >>> import os, tempfile
        >>> import safetensors
        >>> import numpy as np, fastopt
        >>> q = fastopt.quantize(np.arange(6.0), "int8")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "w.safetensors")
        ...     q.to_safetensors(path)
        ...     again = fastopt.QuantizedArray.from_safetensors(path)
        >>> bool((again.codes == q.codes).all())
        True
        """
        where, parts = read(path)
        try:
            return QuantizedArray(*parts)
        except FastoptError as error:
            raise FormatError(f"not a quantised array: {error}", where) from None

    def to_gguf(self, kind: str = "Q8_0") -> Array:
        """The bytes of ggml's blocks; see :func:`fastopt.quantization.to_gguf`."""
        return to_gguf(self, kind)

    @staticmethod
    def from_gguf(data: Any, kind: str = "Q8_0", *, threads: int | None = None) -> QuantizedArray:
        """The QuantizedArray that ggml's blocks hold; its values are exact.

        Parameters
        ----------
        data : (..., blocks * block bytes) uint8 array
            What :func:`to_gguf` or gguf-py gives (a GGUFReader's ``tensor.data``).
        kind, threads
            As in :func:`to_gguf`.

        Returns
        -------
        QuantizedArray
            int8, int4 or mxfp4 in groups of 32 along the last axis. Scales of Q4_0 may be
            negative.

        Raises
        ------
        ArrayError, DTypeError, OptionError
            The last axis does not hold whole blocks; an exponent of MXFP4 is NaN's (255) or 0 with
            codes that are not.

        Examples
        --------
        >>> import numpy as np, fastopt
        >>> q = fastopt.quantize(np.arange(32.0), "int8", group_size=32)
        >>> again = fastopt.QuantizedArray.from_gguf(q.to_gguf("Q8_0"), "Q8_0")
        >>> bool((again.codes == q.codes).all())
        True
        """
        return QuantizedArray(*read_blocks(data, kind, threads))

    def to_onnx(self, name: str) -> tuple[Any, list[Any]]:
        """A DequantizeLinear node and its initialisers; see
        :func:`fastopt.quantization.to_onnx`."""
        return to_onnx(self, name)

    def __repr__(self) -> str:
        parts = "".join(
            f", {name}={value}"
            for name, value in (("axis", self.axis), ("group_size", self.group_size))
            if value is not None
        )
        return f"QuantizedArray({self.dtype}, shape={self.shape}{parts}, nbytes={self.nbytes})"

    def _check_product(self, x: Array, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
        if self.ndim != 2:
            raise ArrayError(f"matmul: needs a quantised matrix, this has shape {self.shape}")
        if x.ndim not in (1, 2) or found != wanted:
            raise ArrayError(f"x: shape {x.shape} does not fit the quantised {self.shape}")

    def _block_rows(self) -> int:
        """Rows of a block: whole groups, about _BLOCK elements."""
        rows = max(2, _BLOCK // max(1, self.shape[1]) // 2 * 2)  # even: rows start on a byte
        if self.group_size is not None and self.axis == 0:
            whole = self.group_size * (1 + self.group_size % 2)
            rows = max(1, rows // whole) * whole
        return rows

    def _rows(self, start: int, stop: int, threads: int | None) -> Array:
        """Rows [start, stop) of a matrix as floats."""
        scale, zero = self.scale, self.zero_point
        if self.group_size is not None and self.axis == 0:
            first, last = start // self.group_size, -(-stop // self.group_size)
            scale, zero = scale[first:last], zero[first:last]
        elif self.axis == 0 or self.group_size is not None:
            scale, zero = scale[start:stop], zero[start:stop]
        out = np.empty((stop - start, self.shape[1]), scale.dtype)
        self._decode(out, self._row_codes(start, stop), scale, zero, threads)
        return out

    def _row_codes(self, start: int, stop: int) -> Array:
        """Codes of the rows [start, stop), unpacked but for codebooks; start * columns is even."""
        if self.codes.shape == self.shape:
            return self.codes[start:stop]
        width = self.shape[1]
        part = self.codes[start * width // 2 : (stop * width + 1) // 2]
        if self.format.tabled:
            return part
        return unpack_int4(part, (stop - start, width), signed=self.format.qmin < 0)


def _codes_in(a: Array, storage: str) -> Array:
    """Plain integers as zero points of a format."""
    info = np.iinfo(storage)
    if a.size and not (info.min <= a.min() and a.max() <= info.max):
        raise ArrayError(f"zero_point: expected {info.min}..{info.max} of {storage}")
    return a.astype(storage)


def _part(q: QuantizedArray, name: str, dtypes: tuple[str, ...]) -> Array:
    """One of the arrays of ``q``; array-likes are converted."""
    given = getattr(q, name)
    if type(given) is np.ndarray and name_of(given.dtype) in dtypes:
        return given
    if name == "zero_point" and not isinstance(given, np.ndarray):
        given = _codes_in(as_array(given, name, dtypes=_INTEGERS), format_of(q.dtype).storage)
    a = as_array(given, name, dtypes=dtypes, cast="float32" if name == "scale" else None)
    object.__setattr__(q, name, a)
    return a
