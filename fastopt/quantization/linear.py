"""QuantizedLinear: a dense layer that multiplies in integers.

The weight is held in 8 or 4 bits; every row of the input is quantised on its own as it arrives
(dynamic, per token), to 7, 8 or 16 bits. Sums are exact integers; scale, bias and activation are
applied while a tile of them is still in the cache.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastopt import _threads
from fastopt._arrays import Array, as_array, check_finite, out_for
from fastopt._kernels import matmul as _kernel
from fastopt._options import choice, flag, integer
from fastopt.errors import ArrayError, DTypeError, OptionError
from fastopt.quantization.array import QuantizedArray
from fastopt.quantization.choose_qparams import choose_qparams
from fastopt.quantization.codes import encode
from fastopt.quantization.formats import format_of
from fastopt.quantization.layout import layout_of
from fastopt.quantization.matmul import SERIAL_BELOW
from fastopt.quantization.packed_matrix import aligned_bytes, excess_of

__all__ = ["SCHEMES", "QuantizedLinear"]

SCHEMES = {"w8a8": (8, 8), "w8a7": (8, 7), "w8a16": (8, 16), "w4a8": (4, 8), "w4a16": (4, 16)}
ACTIVATIONS = {None: 0, "relu": 1, "gelu": 2}
# The longest sum of (code - zero point) products that int32 holds whatever the data:
# 255 * 255, 127 * 255, 32767 * 255, 255 * 15, 32767 * 15 a term. Multiples of 8.
LONGEST = {(8, 8): 33_024, (8, 7): 66_304, (8, 16): 256, (4, 8): 561_432, (4, 16): 4_368}


class QuantizedLinear:
    """act(x @ W.T + bias) with W in 8 or 4 bits and each row of x in 7, 8 or 16 bits.

    Parameters
    ----------
    w : (out_features, in_features) float32 array, or QuantizedArray
        The weight. Floats are quantised here, per output channel or per group, rounding to
        nearest; a QuantizedArray of dtype int8, uint8, int4 or uint4 (per tensor, per axis 0, or
        in groups along axis 1), such as :func:`fastopt.quantization.gptq` makes, is taken as it
        is.
    bias : (out_features,) float32 array, optional
        Added after scaling.
    scheme : str
        "w8a8", "w8a7", "w8a16", "w4a8" or "w4a16": bits of the weight and of the activations.
        "w8a7" is what torch's fbgemm does on a CPU without 8-bit dot products: activations in
        0..127 cannot saturate the 8-bit instruction of AVX2, so it is faster there than "w8a8" at
        twice the rounding error of the activations.
    group_size : int, optional
        Weights along in_features that share a scale: a multiple of 8; default all of a channel.
    activation : str, optional
        "relu" or "gelu" (the exact one, by erf), applied to the result.
    symmetric : bool
        Weight codes without a zero point; the default, with one, is more accurate and as fast.
    threads : int, optional
        Threads for packing the weight.

    Attributes
    ----------
    in_features, out_features, scheme, group_size, activation, bias
        As given.
    scale : (out_features, n_groups) float32
        Scales of the weight.
    zero_point : (out_features, n_groups) int8
        Zero points of the weight, for signed codes.

    Raises
    ------
    ArrayError
        NaN or infinity in w or bias; wrong shapes.
    OptionError, DTypeError

    Notes
    -----
    8-bit activations are affine, uint8, range widened to hold 0, as in ONNX's
    DynamicQuantizeLinear but one scale per row, and 7-bit ones the same with 127 steps; 16-bit
    ones are symmetric, scale max|row| / 32767 (so an outlier costs the other elements of its row
    resolution, 2**-15 of it, where float16 would
    not). Sums of a group are exact in int32; where K is longer than int32 can hold it is cut. A
    group's sum becomes float32, times its scale, groups added in order, times the row's scale,
    plus bias: the same bits for every thread count and instruction set.
    The packed weight is bits / 8 bytes per weight; the object may be used by many threads at once.
    A pickle holds plain codes, not the memory layout, which belongs to this machine.

    Examples
    --------
    >>> import numpy as np
    >>> w = np.array([[1.0, -2.0, 0.5], [0.0, 4.0, 2.0]], np.float32)
    >>> layer = QuantizedLinear(w, np.array([1.0, -20.0], np.float32), activation="relu")
    >>> layer(np.array([[1.0, 2.0, 4.0]], np.float32)).round(1)
    array([[0., 0.]], dtype=float32)
    >>> layer(np.array([[2.0, 1.0, 4.0]], np.float32)).round(1)
    array([[3., 0.]], dtype=float32)
    """

    def __init__(
        self,
        w: Any,
        bias: Any = None,
        *,
        scheme: str = "w8a8",
        group_size: int | None = None,
        activation: str | None = None,
        symmetric: bool = False,
        threads: int | None = None,
    ) -> None:
        self.scheme = choice(scheme, "scheme", SCHEMES)
        self.activation = _activation(activation)
        flag(symmetric, "symmetric")
        bits = SCHEMES[scheme][0]
        if isinstance(w, QuantizedArray):
            if group_size is not None and group_size != w.group_size:
                raise OptionError(
                    f"group_size: the weight is quantised with {w.group_size}, got {group_size}"
                )
            codes, scale, zero = _quantised_weight(w, bits)
            group_size = w.group_size
        else:
            codes, scale, zero = _quantise(w, bits, group_size, symmetric, threads)
        self.out_features, self.in_features = codes.shape
        self.group_size = _group_size(group_size)
        self.scale, self.zero_point = scale, zero
        if bias is None:
            self.bias = np.zeros(self.out_features, np.float32)
        else:
            given = as_array(
                bias, "bias", dtypes=("float32",), cast="float32", shape=(self.out_features,)
            )
            check_finite(given, "bias")
            self.bias = given.copy()
        self._pack(codes, threads)

    def __call__(self, x: Any, out: Any = None, *, threads: int | None = None) -> Array:
        """act(x @ W.T + bias).

        Parameters
        ----------
        x : (..., in_features) float32
            Input; other real dtypes are converted. Finite.
        out : (..., out_features) float32, optional
            Overwritten with the result and returned.
        threads : int, optional
            Thread count; the result does not depend on it.

        Returns
        -------
        (..., out_features) float32

        Raises
        ------
        ArrayError
            x holds NaN or infinity, or a shape does not fit; nothing has been written.
        """
        plain = type(x) is np.ndarray and x.dtype == np.float32 and x.flags.carray
        a = x if plain else as_array(x, "x", dtypes=("float32",), cast="float32")
        n, k = self.out_features, self.in_features
        if a.ndim == 0 or a.shape[-1] != k:
            raise ArrayError(f"x: expected a last axis of {k} (in_features), got shape {a.shape}")
        shape = (*a.shape[:-1], n)
        result = out_for(out, "out", shape, "float32", [("x", a)])
        m = math.prod(shape[:-1])
        bits, bits_a = SCHEMES[self.scheme]
        finite = _kernel.linear(
            result, a, self._panels, self._narrow, self.bias,
            ACTIVATIONS[self.activation], m, n, k, self._group, bits, bits_a,
            _threads.resolve(threads, m * n * k, SERIAL_BELOW), self._excess,
        )  # fmt: skip
        if not finite:
            raise ArrayError("x: holds NaN or infinity, so its rows have no scale")
        return result

    @property
    def codes(self) -> Array:
        """The weight's codes, (out_features, in_features) int8, unpacked into a new array."""
        codes = np.empty((self.out_features, self.in_features), np.int8)
        bits = SCHEMES[self.scheme][0]
        _kernel.unpack(
            codes, self._panels, self.out_features, self.in_features, self._group, bits, True
        )
        return codes

    @property
    def nbytes(self) -> int:
        """Bytes to keep: codes at their own width, scales, zero points and bias."""
        bits = SCHEMES[self.scheme][0]
        codes = (self.out_features * self.in_features * bits + 7) // 8
        return int(codes + self.scale.nbytes + self.zero_point.nbytes + self.bias.nbytes)

    def dequantize(self) -> Array:
        """The weight that is multiplied, (codes - zero_point) * scale, float32."""
        group = self.group_size or max(1, self.in_features)
        scale = self.scale.repeat(group, 1)[:, : self.in_features]
        zero = self.zero_point.repeat(group, 1)[:, : self.in_features]
        return (self.codes.astype(np.float32) - zero) * scale

    def _pack(self, codes: Array, threads: int | None) -> None:
        """The kernel's form: panels that hold scales and zero points, in its own groups."""
        n, k = codes.shape
        bits, bits_a = SCHEMES[self.scheme]
        size = self.group_size if self.group_size and self.group_size < k else 0
        self._group = _kernel_group(k, size, LONGEST[bits, bits_a])
        starts = np.arange(0, max(1, k), self._group or max(1, k))
        of_group = starts // (size or max(1, k))
        self._panels = aligned_bytes(_kernel.packed_size(n, k, self._group, bits, True))
        self._narrow = _kernel.pack(
            self._panels, None,
            np.ascontiguousarray(self.scale[:, of_group].T, np.float32),
            np.ascontiguousarray(self.zero_point[:, of_group].T, np.int32),
            codes, n, k, self._group, bits, True, _threads.resolve(threads, n * k),
        )  # fmt: skip
        clips = (bits, bits_a) == (8, 8) and not self._group and not self._narrow
        self._excess = excess_of(self._panels, n, k, True, threads) if clips else None

    def __getstate__(self) -> dict[str, Any]:
        return {
            "codes": self.codes,
            "scale": self.scale,
            "zero_point": self.zero_point,
            "bias": self.bias,
            "scheme": self.scheme,
            "group_size": self.group_size,
            "activation": self.activation,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        codes = state.pop("codes")
        self.__dict__.update(state)
        self.out_features, self.in_features = codes.shape
        self._pack(codes, None)

    def __repr__(self) -> str:
        parts = [f"{self.in_features} -> {self.out_features}", self.scheme]
        parts += [f"group_size={self.group_size}"] if self.group_size else []
        parts += [self.activation] if self.activation else []
        return f"QuantizedLinear({', '.join(parts)})"


def _activation(activation: Any) -> str | None:
    return None if activation is None else choice(activation, "activation", ("relu", "gelu"))


def _group_size(group_size: Any) -> int | None:
    """Whether groups begin at whole pairs of quads of the packed panels."""
    if group_size is None:
        return None
    size = integer(group_size, "group_size", low=8)
    if size % 8:
        raise OptionError(f"group_size: expected a multiple of 8, got {size}")
    return size


def _kernel_group(k: int, size: int, longest: int) -> int:
    """The longest group that divides ``size`` (0: any) into equal parts and int32 can sum; 0 for
    the whole of k."""
    if size == 0:
        return 0 if k <= longest else longest
    parts = -(-size // longest)
    while size % (8 * parts):
        parts += 1
    return size // parts


def _quantise(
    w: Any, bits: int, group_size: int | None, symmetric: bool, threads: int | None
) -> tuple[Array, Array, Array]:
    """Codes, scales and zero points (out_features, n_groups) of a float weight."""
    weight = as_array(w, "w", dtypes=("float32",), cast="float32", ndim=2)
    check_finite(weight, "w")
    size = _group_size(group_size)
    k = weight.shape[1]
    if size is not None and size >= k:
        size = None
    axis = 0 if size is None else 1
    fmt = format_of("int8" if bits == 8 else "int4")
    scale, zero = choose_qparams(
        weight, fmt, axis=axis, group_size=size, symmetric=symmetric, threads=threads
    )
    codes = np.empty(weight.shape, np.int8)
    low, high = fmt.limits(symmetric)
    layout = layout_of(weight.shape, axis, size)
    encode(codes, weight, scale, zero, layout, low, high, threads)
    shape = (len(weight), -1 if len(weight) else 1)
    return codes, scale.reshape(shape).astype(np.float32), zero.reshape(shape).astype(np.int8)


def _quantised_weight(q: QuantizedArray, bits: int) -> tuple[Array, Array, Array]:
    """The same for a weight that is already quantised."""
    fmt = q.format
    if q.ndim != 2:
        raise ArrayError(f"w: expected 2 dimensions, got shape {q.shape}")
    if not fmt.affine or fmt.bits != bits:
        raise DTypeError(f"w: expected dtype int{bits} or uint{bits}, got {q.dtype}")
    n = q.shape[0]
    by_channel = q.group_size is None and q.axis in (None, 0, -2)
    by_group = q.group_size is not None and q.axis in (None, 1, -1)
    if not (by_channel or by_group):
        raise ArrayError(
            "w: expected scales per tensor, per axis 0 or per group along axis 1, got "
            f"axis {q.axis} and group_size {q.group_size}"
        )
    move = 0 if fmt.signed else 1 << (bits - 1)
    codes = (q.unpacked().astype(np.int16) - move).astype(np.int8)
    with np.errstate(over="ignore"):
        scale = q.scale.astype(np.float32)
    check_finite(scale, "w")
    zero = q.zero_point.astype(np.int16) - move
    if not codes.size:
        scale, zero = np.ones((n, 1), np.float32), np.zeros((n, 1), np.int8)
    shape = (n, -1) if scale.ndim else (n, 1)
    if not scale.ndim:
        scale, zero = np.broadcast_to(scale, shape), np.broadcast_to(zero, shape)
    return (
        np.ascontiguousarray(codes),
        scale.reshape(shape).copy(),
        zero.reshape(shape).astype(np.int8),
    )
