"""A plain NumPy twin of every kernel: the oracle that the compiled code is compared with.

One section a kernel file, in the order of the names of those files.
"""

from __future__ import annotations

import numpy as np


# --- quantize
def encode_affine(x, scale, zero_point, low, high):
    """Codes; scale and zero point already have a shape that broadcasts against x."""
    wide = np.dtype("f8") if zero_point.dtype.itemsize == 4 else x.dtype
    with np.errstate(all="ignore"):
        v = np.rint(x.astype(wide) / scale.astype(wide)) + zero_point.astype(wide)
    v = np.where(v > low, v, wide.type(low))  # NaN gives low
    return np.where(v < high, v, wide.type(high)).astype("i8").astype(zero_point.dtype)


def decode_affine(codes, scale, zero_point):
    """Values; 32-bit codes go through float64."""
    if codes.dtype.itemsize == 4:
        return ((codes.astype("f8") - zero_point) * scale.astype("f8")).astype(scale.dtype)
    return (codes.astype("i4") - zero_point.astype("i4")).astype(scale.dtype) * scale


def min_max(x, axis, group_size):
    """Extremes of each part; NaN for both where a part is not all finite."""
    n = x.shape[-1 if axis is None else axis] if group_size else 0
    if group_size is None:
        parts = [x.ravel()] if axis is None else np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1)
        low, high = ([f(p) for p in parts] for f in (np.min, np.max))
    else:
        axis = -1 if axis is None else axis
        cut = np.split(x, range(group_size, n, group_size), axis)
        low, high = (np.stack([f(p, axis) for p in cut], axis) for f in (np.min, np.max))
    low, high = (np.asarray(a, x.dtype) for a in (low, high))
    odd = ~np.isfinite(low) | ~np.isfinite(high)
    return np.where(odd, np.nan, low), np.where(odd, np.nan, high)


def spread(a, shape, axis, group_size):
    """Scales () or (C,) or per group, in a shape that broadcasts against x."""
    if a.ndim == 0:
        return a
    if group_size is None:
        return a.reshape([-1 if i == axis % len(shape) else 1 for i in range(len(shape))])
    axis = -1 if axis is None else axis
    return np.take(a, np.arange(shape[axis]) // group_size, axis=axis)


# --- update
# In place, like the kernel; `dt` scalars so that float32 arrays round as the kernel does.


def sgd(p, g, buf, t, lr, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False, scale=1):
    dt = p.dtype.type
    g = dt(scale) * g + dt(weight_decay) * p if weight_decay else dt(scale) * g
    if momentum:
        buf[...] = dt(momentum if t > 1 else 0) * buf + dt(1 - dampening if t > 1 else 1) * g
        g = g + dt(momentum) * buf if nesterov else buf
    p[...] = p - dt(lr) * g


def adam(p, g, m, v, top, t, lr, b1, b2, eps, coupled=0.0, decoupled=0.0, scale=1):
    dt = p.dtype.type
    g = dt(scale) * g + dt(coupled) * p if coupled else dt(scale) * g
    m[...] = m + dt(1 - b1) * (g - m)
    v[...] = dt(b2) * v + dt(1 - b2) * (g * g)
    if top is not None:
        np.maximum(top, v, out=top)
    root = np.sqrt(v if top is None else top) * dt(1 / (1 - b2**t) ** 0.5) + dt(eps)
    p[...] = dt(1 - lr * decoupled) * p + dt(-(lr / (1 - b1**t))) * m / root


# --- prune


def magnitude_bits(x):
    unsigned = f"u{x.itemsize}"
    return x.reshape(-1).view(unsigned) & np.array(np.iinfo(unsigned).max >> 1, unsigned)


def compact(x, lo, hi):
    bits = magnitude_bits(x)
    return int((bits < lo).sum()), bits[(bits >= lo) & (bits <= hi)]


def histogram_of_bits(x, shift, width, prefix):
    bits = magnitude_bits(x).astype(np.uint64) >> np.uint64(shift)
    inside = bits[bits >> np.uint64(width) == prefix] & np.uint64((1 << width) - 1)
    return np.bincount(inside.astype(np.int64), minlength=2048)


def zero_below(x, limit, split, limit_after):
    keep = magnitude_bits(x) >= np.where(np.arange(x.size) < split, limit, limit_after)
    return np.where(keep.reshape(x.shape), x, x.dtype.type(0)), keep.reshape(x.shape)


def prune_smallest(arrays, k):
    """The k smallest magnitudes of all arrays to zero; ties by order; NaN last."""
    flat = np.concatenate([a.reshape(-1) for a in arrays])
    flat[np.argsort(magnitude_bits(flat), kind="stable")[:k]] = 0
    parts = np.split(flat, np.cumsum([a.size for a in arrays])[:-1])
    return [p.reshape(a.shape) for p, a in zip(parts, arrays)]


# --- histogram
def extent(x, outer, channels, inner):
    """Smallest and largest element of each channel."""
    a = x.reshape(outer, channels, inner)
    return a.min(axis=(0, 2)), a.max(axis=(0, 2))


def histogram_count(x, inv, bins, outer, channels, inner):
    """Counts per channel: truncate towards zero, one less below zero, clamped to the table."""
    with np.errstate(over="ignore"):
        t = x.reshape(outer, channels, inner) * inv.astype(x.dtype)[:, None]
    edge = bins // 2 - 0.5
    index = np.trunc(np.clip(t, -edge, edge)).astype("i8") - np.signbit(t) + bins // 2
    return np.stack(
        [np.bincount(index[:, c].ravel(), minlength=bins) for c in range(channels)]
    ).reshape(channels, bins)


# --- clip
def candidate_errors(x, weight, scale, zero, qmin, qmax):
    """error[r, k] of row r rounded with candidate k, in float64."""
    s, z = scale[:, :, None].astype("f8"), zero[:, :, None].astype("f8")
    q = np.clip(np.rint(x[:, None, :] * (1 / scale)[:, :, None]) + z, qmin, qmax)
    d = x[:, None, :] - s * (q - z)
    return (d * d * (1.0 if weight is None else weight[:, None, :])).sum(axis=2)


# --- matmul
def multiply_i32(a, b, za, zb):
    """Exact product of codes minus zero points, in int64."""
    return (a.astype(np.int64) - za[:, None]) @ (b.astype(np.int64) - zb)


def multiply_q8(a, b, za, zb, scale, zero_point, dtype):
    """The product requantised: half to even before the zero point, saturated."""
    y = np.rint(multiply_i32(a, b, za, zb).astype(np.float64) * scale) + zero_point
    return np.clip(y, np.iinfo(dtype).min, np.iinfo(dtype).max).astype(dtype)
