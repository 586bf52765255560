"""Checked arrays to the conversion kernels: thread count, streaming, overlap."""

from __future__ import annotations

import numpy as np

from fastopt import _threads
from fastopt._arrays import Array, check_disjoint
from fastopt._kernels import quantize as kernel
from fastopt._kernels import quantize_round as round_kernel
from fastopt._random import Seed, key_of
from fastopt.quantization.layout import Layout

__all__ = ["OVERFLOWS", "ROUNDINGS", "STREAM_FROM", "decode", "encode", "encode_rounded"]

# Bytes read and written from which the kernels write past the caches: a result of such a pass has
# left them before anybody reads it, and fetching its lines first wastes bandwidth.
STREAM_FROM = 32 << 20

ROUNDINGS = ("nearest", "nearest_away", "floor", "trunc", "stochastic")  # in the kernel's order
OVERFLOWS = ("saturate", "wrap")


def encode(
    out: Array,
    x: Array,
    scale: Array,
    zero_point: Array,
    layout: Layout,
    low: float,
    high: float,
    threads: int | None,
) -> None:
    """out = clip(rint(x / scale) + zero_point, low, high); arrays checked by the caller."""
    check_disjoint([("out", out)], [("x", x), ("scale", scale), ("zero_point", zero_point)])
    kernel.encode_affine(
        out,
        x,
        scale,
        zero_point,
        layout.rows,
        layout.depth,
        layout.width,
        layout.group,
        low,
        high,
        x.nbytes + out.nbytes >= STREAM_FROM,
        _threads.resolve(threads, x.size),
    )


def encode_rounded(
    out: Array,
    x: Array,
    scale: Array,
    zero_point: Array,
    layout: Layout,
    low: float,
    high: float,
    rounding: str,
    overflow: str,
    seed: Seed,
    threads: int | None,
) -> None:
    """As :func:`encode` with any rounding and overflow rule; computes in float64."""
    if rounding == "nearest" and overflow == "saturate":
        encode(out, x, scale, zero_point, layout, low, high, threads)
        return
    check_disjoint([("out", out)], [("x", x), ("scale", scale), ("zero_point", zero_point)])
    round_kernel.encode_rounded(
        out,
        x,
        scale,
        np.asarray(zero_point, np.int64),
        layout.rows,
        layout.depth,
        layout.width,
        layout.group,
        low,
        high,
        ROUNDINGS.index(rounding),
        overflow == "wrap",
        key_of(seed) if rounding == "stochastic" else 0,
        _threads.resolve(threads, x.size),
    )


def decode(
    out: Array,
    codes: Array,
    scale: Array,
    zero_point: Array,
    layout: Layout,
    threads: int | None,
) -> None:
    """out = (codes - zero_point) * scale; arrays checked by the caller."""
    check_disjoint(
        [("out", out)], [("codes", codes), ("scale", scale), ("zero_point", zero_point)]
    )
    kernel.decode_affine(
        out,
        codes,
        scale,
        zero_point,
        layout.rows,
        layout.depth,
        layout.width,
        layout.group,
        codes.nbytes + out.nbytes >= STREAM_FROM,
        _threads.resolve(threads, codes.size),
    )
