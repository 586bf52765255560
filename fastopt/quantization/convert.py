"""Checked arrays to the conversion kernels: thread count, streaming, overlap."""

from __future__ import annotations

from fastopt import _threads
from fastopt._arrays import Array, check_disjoint
from fastopt._kernels import quantize as kernel
from fastopt.quantization.layout import Layout

__all__ = ["STREAM_FROM", "decode", "encode"]

# Bytes read and written from which the kernels write past the caches: a result of such a pass has
# left them before anybody reads it, and fetching its lines first wastes bandwidth.
STREAM_FROM = 32 << 20


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
