"""Narrow floats and 4-bit codebooks under scales: what the formats are, encode and decode.

NF4: 16 quantiles of a normal distribution, the part's largest magnitude mapped to 1 (Dettmers et
al., "QLoRA", 2023, appendix E). MXFP4: e2m1 elements under a power of two (OCP Microscaling
Formats v1.0). float16 and float8: IEEE and OCP FP8 elements under any scale.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fastopt import _threads
from fastopt._arrays import Array
from fastopt._kernels import codebook as kernel
from fastopt._random import Seed
from fastopt.errors import ArrayError
from fastopt.quantization.codes import decode_floats, encode_floats
from fastopt.quantization.formats import FLOAT_SPECS, Format
from fastopt.quantization.layout import layout_of
from fastopt.quantization.packing import pack_int4

__all__ = ["decode_narrow", "derive_codes", "encode_narrow", "exponents", "narrow_scale"]


# bitsandbytes' values (functional.get_4bit_type), whose codes users exchange
_NF4 = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453]
_NF4 += [-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0]
_NF4 += [0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224]
_NF4 += [0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]


class Codebook(NamedTuple):
    """A table of 16 values and the 15 bounds between them, as the kernel takes them.

    With ``sign`` the bounds are those of the magnitudes of the first 8 values. ``power``: a scale
    is a power of two, the one below max|x| over ``unit``; else it is max|x| / ``unit``.
    """

    bound: Array
    value: Array
    sign: bool
    power: bool
    unit: float


def _nf4() -> Codebook:
    value = np.array(_NF4, np.float32)
    return Codebook((value[1:] + value[:-1]) / np.float32(2), value, False, False, 1.0)


def _mxfp4() -> Codebook:
    magnitude = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
    bound = np.full(15, np.inf, np.float32)
    bound[:7] = (magnitude[1:] + magnitude[:-1]) / 2
    # a value on a bound goes down; ties go to the even code, so every other bound lies just below
    bound[1:7:2] = np.nextafter(bound[1:7:2], np.float32(0))
    return Codebook(bound, np.concatenate([magnitude, -magnitude]), True, True, 4.0)


CODEBOOKS = {"nf4": _nf4(), "mxfp4": _mxfp4()}


def narrow_scale(top: Array, fmt: Format, dtype: Any) -> Array:
    """Scale of parts whose largest magnitude is ``top``: 1 for zeros, positive, not denormal."""
    info = np.finfo(dtype)
    wide = top.astype(np.float64)
    if fmt.tabled:
        book = CODEBOOKS[fmt.name]
        base = np.ldexp(1.0, np.frexp(wide)[1] - 1) if book.power else wide
        scale = base / book.unit
    elif fmt.bits == 16:
        scale = np.ones(wide.shape)
    else:
        scale = wide / fmt.peak
    scale = np.where(wide == 0, 1.0, np.maximum(scale, float(info.tiny)))
    return np.asarray(scale, dtype)


def derive_codes(
    x: Array, fmt: Format, axis: int | None, group_size: int | None, threads: int | None
) -> tuple[Array, Array] | None:
    """Packed codes and scales of a float32 array in one pass over it; None where the parts are
    not runs of neighbours.

    Raises
    ------
    ArrayError
        NaN or infinity.
    """
    layout = layout_of(x.shape, axis, group_size)
    if not layout.is_chain(x.size) or layout.width == x.size:
        return None
    scale = np.ones(layout.scale_shape, np.float32)
    codes = _codebook_codes(x, fmt, scale, axis, group_size, True, threads)
    return codes, scale


def encode_narrow(
    x: Array,
    fmt: Format,
    scale: Array,
    axis: int | None,
    group_size: int | None,
    *,
    rounding: str = "nearest",
    saturate: bool = True,
    seed: Seed = None,
    threads: int | None = None,
) -> Array:
    """Codes of x / scale: bare codes of a narrow float, or a codebook's packed ones (float32)."""
    if fmt.tabled:
        return _codebook_codes(x, fmt, scale, axis, group_size, False, threads)
    codes = np.empty(x.shape, fmt.storage)
    spec = FLOAT_SPECS[fmt.name]
    if saturate and fmt.bits == 8:
        spec = spec._replace(over=spec.max_code)
    layout = layout_of(x.shape, axis, group_size)
    encode_floats(codes, x, scale, layout, spec, threads, rounding=rounding, seed=seed)
    return codes


def decode_narrow(
    out: Array,
    codes: Array,
    fmt: Format,
    scale: Array,
    axis: int | None,
    group_size: int | None,
    threads: int | None = None,
) -> None:
    """out = value of the codes (bare, or packed where the format is) * scale."""
    if not out.size:
        return
    if fmt.tabled:
        book, layout = CODEBOOKS[fmt.name], layout_of(out.shape, axis, group_size)
        if codes.shape == out.shape and codes.shape != (1,):  # one code per byte
            codes = pack_int4(codes, threads=threads)
        kernel.decode(
            out, codes, scale, book.bound, book.value, book.sign, *layout.loops,
            codes.nbytes + out.nbytes >= _threads.STREAM_FROM, _threads.resolve(threads, out.size),
        )  # fmt: skip
        return
    layout = layout_of(out.shape, axis, group_size)
    decode_floats(out, codes, scale, layout, FLOAT_SPECS[fmt.name], threads)


def exponents(scale: Array) -> Array:
    """e8m0 codes (uint8, value 2**(code - 127)) of scales that are powers of two."""
    mantissa, exponent = np.frexp(scale)
    if not (mantissa == 0.5).all():
        raise ArrayError("scale: mxfp4 needs powers of two")
    codes: Array = np.clip(exponent + 126, 0, 254).astype(np.uint8)
    return codes


def _codebook_codes(
    x: Array,
    fmt: Format,
    scale: Array,
    axis: int | None,
    group_size: int | None,
    derive: bool,
    threads: int | None,
) -> Array:
    book, layout = CODEBOOKS[fmt.name], layout_of(x.shape, axis, group_size)
    codes = np.empty((x.size + 1) // 2, np.uint8)
    if not x.size:
        if derive:
            scale[...] = 1
        return codes
    finite = kernel.encode(
        codes, scale, x, book.bound, book.value, book.sign, *layout.loops,
        derive, book.power, book.unit, _threads.resolve(threads, x.size),
    )  # fmt: skip
    if not finite:
        raise ArrayError("x: holds NaN or infinity, so it has no scale; clean the data first")
    return codes
