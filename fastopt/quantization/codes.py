"""Calls of the conversion kernels with checked arrays: arithmetic, thread count, streaming.

Every array was checked by the caller, an ``out`` of the user's also for memory it shares.
"""

from __future__ import annotations

import numpy as np

from fastopt import _threads
from fastopt._arrays import Array
from fastopt._kernels import dequantize as decode_kernel
from fastopt._kernels import quantize as kernel
from fastopt._options import choice
from fastopt._random import Seed, key_of
from fastopt.errors import ArrayError, OptionError
from fastopt.quantization.formats import FLOAT_SPECS, FloatSpec, Format
from fastopt.quantization.layout import Layout

__all__ = [
    "OVERFLOWS",
    "PARITIES",
    "ROUNDINGS",
    "check_rules",
    "decode",
    "decode_floats",
    "encode",
    "encode_derived",
    "encode_floats",
    "fake",
]

ROUNDINGS = ("nearest", "nearest_away", "floor", "trunc", "stochastic")  # in the kernel's order
OVERFLOWS = ("saturate", "wrap")
PARITIES = ("onnx", "torch")

# Elements up to which a run is still in the L2 cache when it is read again; the largest float32.
_RUN = 1 << 17
_LARGEST = float(np.finfo(np.float32).max)

# When the zero point is added, as the kernel numbers it.
_AFTER, _BEFORE, _FUSED = 0, 1, 2


def check_rules(rounding: str, parity: str) -> None:
    """Check the names; torch's rule goes with its own rounding only."""
    choice(rounding, "rounding", ROUNDINGS)
    choice(parity, "parity", PARITIES)
    if parity == "torch" and rounding != "nearest":
        raise OptionError(f"parity: 'torch' rounds to nearest, not by {rounding!r}")


def encode(
    out: Array,
    x: Array,
    scale: Array,
    zero_point: Array,
    layout: Layout,
    low: float,
    high: float,
    threads: int | None,
    *,
    rounding: str = "nearest",
    overflow: str = "saturate",
    seed: Seed = None,
    parity: str = "onnx",
    check: bool = False,
    packed: bool = False,
) -> bool:
    """out = clip(round(x / scale) + zero_point, low, high). With ``check``: whether x holds NaN.

    Computes in x's dtype, or in float64 for 32-bit codes. ``packed``: out holds 4-bit codes two to
    a byte, the first one low.
    """
    join = _AFTER
    if parity == "torch":
        join = _FUSED if layout.scale_shape == () else _BEFORE
    wide = np.float64 if x.dtype == np.float64 or out.dtype.itemsize == 4 else np.float32
    return kernel.encode(
        out,
        x,
        scale.astype(wide, copy=False),
        zero_point.astype(wide, copy=False),
        *layout.loops,
        low,
        high,
        ROUNDINGS.index(rounding),
        join,
        parity == "torch",
        overflow == "wrap",
        check,
        key_of(seed) if rounding == "stochastic" else 0,
        packed,
        x.nbytes + out.nbytes >= _threads.STREAM_FROM,
        _threads.resolve(threads, x.size),
    )


def encode_floats(
    out: Array,
    x: Array,
    scale: Array,
    layout: Layout,
    spec: FloatSpec,
    threads: int | None,
    *,
    rounding: str = "nearest",
    seed: Seed = None,
) -> None:
    """out = bare codes of x / scale as narrow floats; computes in x's dtype."""
    kernel.narrow(
        out,
        scale.astype(x.dtype, copy=False),
        x,
        *layout.loops,
        0.0,
        *spec,
        rounding == "stochastic",
        key_of(seed) if rounding == "stochastic" else 0,
        x.nbytes + out.nbytes >= _threads.STREAM_FROM,
        _threads.resolve(threads, x.size),
    )


def encode_derived(
    x: Array, layout: Layout, fmt: Format, threads: int | None
) -> tuple[Array, Array] | None:
    """Symmetric min-max scales and codes in one pass over x, the bits of ``choose_qparams`` and
    :func:`encode` or :func:`encode_floats`; None where the kernel does not do it: it takes
    float32, signed codes or float8, and runs that follow one another and fit into the L2 cache."""
    unit = layout.width if layout.depth % layout.width == 0 else layout.depth
    if not layout.is_chain(x.size) or unit > _RUN:
        return None
    if x.dtype != np.float32 or x.size == 0 or fmt.symmetric_zero_point != 0:
        return None
    scale = np.empty(layout.scale_shape, np.float32)
    shape = (x.size + 1) // 2 if fmt.packed else x.shape
    codes = np.empty(shape, "uint8" if fmt.packed else fmt.storage)
    streamed = x.nbytes + codes.nbytes >= _threads.STREAM_FROM
    workers = _threads.resolve(threads, x.size)
    if fmt.floating:
        spec = FLOAT_SPECS[fmt.name]._replace(over=FLOAT_SPECS[fmt.name].max_code)
        odd = kernel.narrow(
            codes, scale, x, *layout.loops, fmt.peak, *spec, False, 0, streamed, workers
        )
    else:
        reach = fmt.symmetric_range
        cap = float(np.nextafter(np.float32(_LARGEST / reach), np.float32(0)))
        odd = kernel.encode_derived(
            codes,
            scale,
            x,
            *layout.loops,
            reach,
            cap,
            -reach,
            reach,
            fmt.packed,
            streamed,
            workers,
        )
    if odd:
        raise ArrayError("x: holds NaN or infinity, so it has no scale; clean the data first")
    return codes, scale


def fake(
    out: Array,
    mask: Array | None,
    x: Array,
    scale: Array,
    zero_point: Array,
    layout: Layout,
    low: float,
    high: float,
    rounding: str,
    seed: Seed,
    threads: int | None,
    *,
    parity: str = "onnx",
    check: bool = False,
) -> bool:
    """out = what :func:`decode` makes of :func:`encode`'s codes, in one pass; ``mask`` =
    where the codes did not saturate. out may be x."""
    wide = np.float64 if x.dtype == np.float64 or zero_point.dtype.itemsize == 4 else np.float32
    return kernel.fake(
        out,
        mask,
        x,
        scale.astype(wide, copy=False),
        zero_point.astype(wide, copy=False),
        *layout.loops,
        low,
        high,
        ROUNDINGS.index(rounding),
        _AFTER,
        parity == "torch",
        check,
        key_of(seed) if rounding == "stochastic" else 0,
        out is not x and x.nbytes + out.nbytes >= _threads.STREAM_FROM,
        _threads.resolve(threads, x.size),
    )


def decode(
    out: Array,
    codes: Array,
    scale: Array,
    zero_point: Array,
    layout: Layout,
    threads: int | None,
    *,
    packed: bool = False,
) -> None:
    """out = (codes - zero_point) * scale. ``packed``: two 4-bit codes per byte, the first low."""
    decode_kernel.decode(
        out,
        codes,
        scale,
        zero_point,
        *layout.loops,
        packed,
        codes.nbytes + out.nbytes >= _threads.STREAM_FROM,
        _threads.resolve(threads, out.size),
    )


def decode_floats(
    out: Array,
    codes: Array,
    scale: Array,
    layout: Layout,
    spec: FloatSpec,
    threads: int | None,
) -> None:
    """out = value of bare codes of narrow floats * scale, in out's dtype."""
    decode_kernel.widen(
        out,
        codes,
        scale.astype(out.dtype, copy=False),
        *layout.loops,
        *spec,
        codes.nbytes + out.nbytes >= _threads.STREAM_FROM,
        _threads.resolve(threads, out.size),
    )
