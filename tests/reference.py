"""A plain NumPy twin of every kernel: the oracle that the compiled code is compared with.

One section a kernel file, in the order of the names of those files.
"""

from __future__ import annotations

from functools import reduce
from math import erfc
from operator import add

import numpy as np


# --- quantize
def encode_affine(x, scale, zero_point, low, high):
    """Codes; scale and zero point already have a shape that broadcasts against x."""
    wide = np.dtype("f8") if zero_point.dtype.itemsize == 4 else x.dtype
    with np.errstate(all="ignore"):
        v = np.rint(x.astype(wide) / scale.astype(wide)) + zero_point.astype(wide)
    v = np.where(v > low, v, wide.type(low))  # NaN gives low
    return np.where(v < high, v, wide.type(high)).astype("i8").astype(zero_point.dtype)


def encode(x, scale, zero_point, low, high, mode, join, times, wrap, words):
    """Codes as float64 before they saturate, and the codes; scale and zero point broadcast and
    have the arithmetic's dtype, words are random."""
    wide, zero, x = scale.dtype, zero_point, x.astype(scale.dtype)
    with np.errstate(all="ignore"):
        v = x * (1 / scale) if times else x / scale
        if join == 2 and wide == "f4":
            v = (x.astype("f8") * (1 / scale) + zero).astype("f4")
        elif join:
            v = v + zero
        t = np.trunc(v)
        away = t + np.where(np.abs(v - t) >= 0.5, np.sign(v), wide.type(0))
        up = np.floor((np.rint(v.astype("f8") * 65536) + words.reshape(v.shape)) / 65536)
        v = (np.rint(v), away, np.floor(v), t, up)[mode].astype(wide)
        v = (v if join else v + zero).astype("f8")
        if wrap:
            return v, np.where(np.isfinite(v), (v - low) % (high - low + 1) + low, 0.0)
    return v, np.where(np.isnan(v), high if join else low, np.clip(v, low, high))


def noise16(key, n):
    """16-bit words of elements 0..n-1: both halves of each of ``noise``, 128 low, 128 high."""
    i = np.arange(n, dtype="i8")
    word = noise(key, n // 256 * 128 + 128)[i // 256 * 128 + i % 128]
    return word >> (i % 256 // 128 * 16) & 0xFFFF


# --- dequantize
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


# --- sparse


def sparse_product(value, index, start, x):
    """Row groups one after the other; each entry adds its products, in order."""
    rows = value.shape[1]
    y = np.zeros((len(start) - 1, rows, x.shape[1]), x.dtype)
    for g in range(len(start) - 1):
        for p in range(start[g], start[g + 1]):
            y[g] += value[p][:, None] * x[index[p]]
    return y.reshape(rows * (len(start) - 1), x.shape[1])


# --- update
# In place, like the kernel; `dt` scalars so that float32 arrays round as the kernel does.


def sgd(p, g, buf, t, lr, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False, scale=1):
    dt = p.dtype.type
    g = dt(scale) * g + dt(weight_decay) * p if weight_decay else dt(scale) * g
    if momentum:
        buf[...] = dt(momentum if t > 1 else 0) * buf + dt(1 - dampening if t > 1 else 1) * g
        g = g + dt(momentum) * buf if nesterov else buf
    p[...] = p - dt(lr) * g


def moments(p, g, m, v, b1, b2, coupled=0.0, scale=1):
    dt = p.dtype.type
    g = dt(scale) * g + dt(coupled) * p if coupled else dt(scale) * g
    m[...] = m + dt(1 - b1) * (g - m)
    v[...] = dt(b2) * v + dt(1 - b2) * g * g  # in this order: finite for g up to 5.8e20
    return g


def adam(p, g, m, v, top, t, lr, b1, b2, eps, coupled=0.0, decoupled=0.0, scale=1):
    dt = p.dtype.type
    moments(p, g, m, v, b1, b2, coupled, scale)
    if top is not None:
        np.maximum(top, v, out=top)
    root = np.sqrt(v if top is None else top) * dt(1 / (1 - b2**t) ** 0.5) + dt(eps)
    p[...] = dt(1 - lr * decoupled) * p + dt(-(lr / (1 - b1**t))) * m / root


def nadam(p, g, m, v, t, lr, b1, b2, eps, psi, coupled=0.0, decoupled=0.0):
    dt = p.dtype.type
    g = moments(p, g, m, v, b1, b2, coupled)
    mu = [b1 * (1 - 0.5 * 0.96 ** (s * psi)) for s in range(1, t + 2)]
    product = np.cumprod(mu)
    a, b = -lr * mu[t] / (1 - product[t]), -lr * (1 - mu[t - 1]) / (1 - product[t - 1])
    root = np.sqrt(v) * dt(1 / (1 - b2**t) ** 0.5) + dt(eps)
    p[...] = dt(1 - lr * decoupled) * p + (dt(b) * g + dt(a) * m) / root


def radam(p, g, m, v, t, lr, b1, b2, eps, coupled=0.0, decoupled=0.0):
    dt = p.dtype.type
    moments(p, g, m, v, b1, b2, coupled)
    c2, top = 1 - b2**t, 2 / (1 - b2) - 1
    rho, step = top - 2 * t * b2**t / c2, -(lr / (1 - b1**t))
    if rho > 5:
        step *= c2**0.5 * ((rho - 4) * (rho - 2) * top / ((top - 4) * (top - 2) * rho)) ** 0.5
    change = dt(step) * m / (np.sqrt(v) + dt(eps)) if rho > 5 else dt(step) * m
    p[...] = dt(1 - lr * decoupled) * p + change


def adamax(p, g, m, u, t, lr, b1, b2, eps, coupled=0.0):
    dt = p.dtype.type
    g = g + dt(coupled) * p if coupled else g
    m[...] = m + dt(1 - b1) * (g - m)
    u[...] = np.maximum(dt(b2) * u, np.abs(g) + dt(eps))
    p[...] = p + dt(-(lr / (1 - b1**t))) * m / u


def rmsprop(p, g, v, mean, buf, lr, alpha, eps, momentum=0.0, coupled=0.0):
    dt = p.dtype.type
    g = g + dt(coupled) * p if coupled else g
    v[...] = spread_v = dt(alpha) * v + dt(1 - alpha) * g * g
    if mean is not None:
        mean[...] = mean + dt(1 - alpha) * (g - mean)
        spread_v = spread_v - mean * mean
    root = np.sqrt(spread_v) + dt(eps)
    if buf is not None:
        buf[...] = dt(momentum) * buf + g / root
    p[...] = p + (dt(-lr) * g / root if buf is None else dt(-lr) * buf)


def adagrad(p, g, total, t, lr, lr_decay, eps, coupled=0.0):
    dt = p.dtype.type
    g = g + dt(coupled) * p if coupled else g
    total[...] = total + g * g
    p[...] = p + dt(-(lr / (1 + (t - 1) * lr_decay))) * g / (np.sqrt(total) + dt(eps))


def adadelta(p, g, v, d, lr, rho, eps, coupled=0.0):
    dt = p.dtype.type
    g = g + dt(coupled) * p if coupled else g
    v[...] = dt(rho) * v + dt(1 - rho) * g * g
    delta = np.sqrt(d + dt(eps)) / np.sqrt(v + dt(eps)) * g
    d[...] = dt(rho) * d + dt(1 - rho) * (delta * delta)
    p[...] = p + dt(-lr) * delta


def adafactor(p, g, row, col, v, t, lr, tau, eps1, eps2, d, decoupled=0.0, scale=1):
    g, w, mean = p.dtype.type(scale) * g, t**tau, lambda a, k: (a * a).mean(k, keepdims=True)
    rms_p = np.sqrt(mean(p.astype("f8"), None)).item()
    for state, now in ((row, mean(g, -1)), (col, mean(g, -2))) if v is None else ((v, g * g),):
        state[...] = state + w * (now - state)
    if v is None:
        v = row * col / np.maximum(row.mean(-2, keepdims=True), eps1)
    u = (g / np.sqrt(np.maximum(v, eps1 * eps1))).astype("f8")
    step = max(eps2, rms_p) * min(lr, t**-0.5) / max(1.0, np.sqrt(mean(u, None)).item() / d)
    p[...] = (1 - lr * decoupled) * p - step * u


def lion(p, g, m, lr, b1, b2, decoupled=0.0, scale=1):
    dt = p.dtype.type
    g = dt(scale) * g
    u = dt(b1) * m + dt(1 - b1) * g
    m[...] = dt(b2) * m + dt(1 - b2) * g
    p[...] = dt(1 - lr * decoupled) * p - dt(lr) * np.where(
        u > 0, dt(1), np.where(u < 0, dt(-1), u)
    )


def in_order(values):
    """Plain left-to-right sum: Python 3.12's own ``sum`` of floats compensates."""
    return reduce(add, values, 0.0)


def tree_of_squares(x, width):
    lanes = np.zeros(width, x.dtype)
    for row in np.append(x, np.zeros(-x.size % width, x.dtype)).reshape(-1, width):
        lanes = lanes + row * row
    lanes = lanes.astype("f8")
    while lanes.size > 1:
        lanes = lanes[: lanes.size // 2] + lanes[lanes.size // 2 :]
    return float(lanes[0])


def unit_sums(x):
    """Sums of squares of units of 256: floats in 32 lanes, tails and what leaves float's range in
    16 of double; the lanes are added as a tree in double."""
    sums = []
    for unit in np.split(x.ravel(), range(256, x.size, 256)):
        fits = x.dtype == np.float32 and unit.size % 32 == 0
        total = tree_of_squares(unit, 32) if fits else 0.0
        wide = not 1e-24 < total < 1e38
        sums.append(tree_of_squares(unit.astype("f8"), 16) if wide else total)
    return sums


def lamb(p, g, m, v, t, lr, b1, b2, eps, decoupled=0.0, scale=1):
    dt = p.dtype.type
    moments(p, g, m, v, b1, b2, 0.0, scale)
    root = np.sqrt(v) * dt(1 / (1 - b2**t) ** 0.5) + dt(eps)
    u = m * dt(1 / (1 - b1**t)) / root + dt(decoupled) * p
    norms = [np.sqrt(in_order(unit_sums(x))) for x in (p, u)]
    p[...] = p - dt(lr * (1.0 if 0 in norms else norms[0] / norms[1])) * u


def companded(codes, signed):
    """What 8-bit state codes are worth for a scale of 1: the bit pattern of code / 128 2^-63 (code
    / 256 2^-95) doubled (times four), as a share of that of 127 (255) (codes.h)."""
    one, shift = (2.0**-70, 1) if signed else (2.0**-103, 2)
    roots = (np.abs(codes) * one).astype("f4")
    return np.sign(codes) * (roots.view("u4") << shift).view("f4") / (2 * 63 / 64)


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


def keep_n_of_m(x, inner, n, m):
    """Groups of m along the middle axis; of equal magnitudes the later ones stay."""
    bits = magnitude_bits(x).reshape(-1, m, inner)[:, ::-1]
    rank = np.argsort(np.argsort(bits.max(initial=0) - bits, axis=1, kind="stable"), axis=1)
    keep = (rank[:, ::-1] < n).reshape(x.shape)
    return np.where(keep, x, x.dtype.type(0)), keep


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


# --- matmul
def multiply_i32(a, b, za, zb):
    """Exact product of codes minus zero points, in int64."""
    return (a.astype(np.int64) - za[:, None]) @ (b.astype(np.int64) - zb)


def excess(b):
    """What is taken off the second int8 weight of each pair of rows for exact 16-bit sums."""
    w = b.astype(np.int64)
    first, second = w[0 : len(w) - 1 : 2], w[1::2]
    kept = np.minimum(second, 128 - np.maximum(first, 0))
    out = np.zeros_like(w)
    out[1::2] = second - np.maximum(kept, -128 - np.minimum(first, 0))
    return out


def multiply_q8(a, b, za, zb, scale, zero_point, dtype):
    """The product requantised: half to even before the zero point, saturated."""
    y = np.rint(multiply_i32(a, b, za, zb).astype(np.float64) * scale) + zero_point
    return np.clip(y, np.iinfo(dtype).min, np.iinfo(dtype).max).astype(dtype)


def quantize_row(x, bits):
    """Codes, scale and zero point of one row of activations (7 or 8 bits affine, 16 symmetric)."""
    low, high = np.float64(min(0, x.min(initial=0))), np.float64(max(0, x.max(initial=0)))
    top = np.float32({7: 127, 8: 255, 16: 32767}[bits])
    span = max(high, -low) if bits == 16 else high - low
    scale = np.float32(1) if span == 0 else max(np.float32(span / top), np.finfo("f").tiny)
    inverse = np.float32(1 / np.float64(scale))
    zero = np.float32(0) if bits == 16 else min(np.rint(np.float32(-low) * inverse), top)
    return np.clip(np.rint(x * inverse) + zero, -top if bits == 16 else 0, top), scale, zero


def gelu(y):
    """0.5 y (1 + erf(y / sqrt 2)), erf as the kernel's ratio of polynomials."""
    f = np.float32
    t = np.clip(y * f(0.70710678), f(-3.925), f(3.925))
    p = [2.04596336e-06, 0.000284836016, 0.0037724704, 0.05276905, 0.190592676, 1.12837911]
    q = [3.80467136e-05, 0.00116382737, 0.0149830496, 0.114182182, 0.502241075, 1.0]
    top, below = (np.polyval(np.array(c, f), t * t).astype(f) for c in (p, q))
    return f(0.5) * y * (f(1) + t * top / below)


def linear(x, codes, zb, scale, bias, activation, group, bits_a):
    """Exact group sums, times scales, in order; zb and scale (groups, n), codes (n, k)."""
    rows = [quantize_row(row, bits_a) for row in x]
    y = np.zeros((len(x), len(codes)), np.float32)
    for m, (a, scale_a, za) in enumerate(rows):
        for g, k0 in enumerate(range(0, max(1, x.shape[1]), group)):
            b = codes[:, k0 : k0 + group].astype(np.int64) - zb[g][:, None]
            term = (b @ (a[k0 : k0 + group] - za).astype(np.int64)).astype(np.float32) * scale[g]
            y[m] = term if g == 0 else y[m] + term
        y[m] = y[m] * scale_a + bias
    return [y, np.where(y > 0, y, np.float32(0)), gelu(y)][activation]


# --- genetic
def philox(key, c0, c1, stream, step, rounds=10):
    """Philox4x32: the four words of each counter (c0, c1, stream, step), shape (4, ...)."""
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    c = [np.asarray(v, np.uint64) & low for v in np.broadcast_arrays(c0, c1, stream, step)]
    k = np.array([key & 0xFFFFFFFF, key >> 32], np.uint64)
    for _ in range(rounds):
        a, b = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [(b >> half) ^ c[1] ^ k[0], b & low, (a >> half) ^ c[3] ^ k[1], a & low]
        k = (k + np.array([0x9E3779B9, 0xBB67AE85], np.uint64)) & low
    return np.stack(c)


def gene_words(key, d, row, stream, step, rounds=10):
    """One word a gene: blocks in groups of 16, word w of a group's blocks for 16 genes."""
    blocks = philox(key, np.arange(-(-d // 64) * 16), row, stream, step, rounds)
    return blocks.reshape(4, -1, 16).transpose(1, 0, 2).ravel()[:d]


def tournament(fitness, m, size, key, step):
    slots, draws = np.arange(m)[:, None], np.arange(size)
    words = philox(key, slots, draws // 4, 1, step)
    words = np.take_along_axis(words, (draws % 4)[None, None].repeat(m, 1), 0)[0]
    rows = (words * np.uint64(len(fitness)) >> 32).astype(np.intp)
    rank = np.unique(fitness, return_inverse=True)[1]  # NaN comes last, ties share a rank
    return rows[np.arange(m), np.argmin(rank[rows], axis=1)]


def exchanged(d, pair, kind, gene_rate, key, step):
    """Which genes of pair ``pair`` change sides: (d,) bool."""
    if kind == "uniform":
        return (gene_words(key, d, pair, 3, step) >> 1) < gene_rate * 2**31
    w = philox(key, pair, 0, 2, step)
    if kind == "one_point":
        first, last = 1 + (int(w[1]) * (d - 1) >> 32) if d > 1 else d, d
    else:
        a, b = int(w[1]) * (d + 1) >> 32, int(w[2]) * d >> 32
        first, last = sorted((a, b + (b >= a)))
    return (np.arange(d) >= first) & (np.arange(d) < last)


def packed_mask(d, pair, gene_rate, key, step):
    """Which packed genes change sides: the digits of k / 2^16, the last one first."""
    k, tiles = int(gene_rate * 2**16 + 0.5), -(-d // 2048)
    words = gene_words(key, tiles * 1024, pair, 4, step).astype("<u4").reshape(tiles, 16, 64)
    drawn = np.unpackbits(words.view(np.uint8), axis=2, bitorder="little")
    mask = np.full((tiles, 2048), k >> 16, np.uint8)
    for digit in range(16 if k < 2**16 else 0):
        mask = mask | drawn[:, digit] if k >> digit & 1 else mask & drawn[:, digit]
    return mask.ravel()[:d].astype(bool)


def sbx(a, b, low, high, eta, gene_rate, pair, key, step):
    """Both children of one pair in float64 (the kernel's beta is float32)."""
    w, mask = (gene_words(key, len(a), pair, stream, step, 7) for stream in (3, 4))
    if gene_rate * 256 % 1 == 0:  # bits 1 to 8, at the top
        mask = w << np.uint64(23) & np.uint64(0xFFFFFFFF)
    u, span = ((w >> 9) + 0.5) / 2**23, np.maximum(np.abs(b - a), 1e-300)
    room = np.minimum(np.minimum(a, b) - low, high - np.maximum(a, b))
    q = np.clip(1 + 2 * room / span, 1, 1e18) ** -(eta + 1)
    v = q + (2 - q) * u
    beta = np.where(v < 1, v, (2 - q) * (1 - u)) ** (np.where(v < 1, -1, 1) / (eta + 1))
    t = 0.5 - 0.5 * np.where(w % 2, -beta, beta)
    t = np.where((mask >> 1) < gene_rate * 2**31, t, 0.0)
    return np.clip(a + t * (b - a), low, high), np.clip(b - t * (b - a), low, high)


def gene_pairs(key, d, row, stream, step):
    """Two words a gene: blocks in groups of 16, words 0 and 1 first of each, then 2 and 3."""
    w = philox(key, np.arange(-(-d // 32) * 16), row, stream, step)
    w = w.reshape(2, 2, *w.shape[1:-1], -(-d // 32), 16)
    w = np.moveaxis(w, 1, -2)
    return w.reshape(*w.shape[:-3], -(-d // 32) * 32)[..., :d]


def mutations(d, row, rate, key, step):
    """Mutated genes of a row and their value words: (positions, word, turn)."""
    if rate > 0.125:
        mask, (w, turn) = gene_pairs(key, d, row, 8, step)[0], gene_pairs(key, d, row, 6, step)
        at = np.flatnonzero((mask >> 1) < rate * 2**31)
        return at, w[at], turn[at]
    w = philox(key, row, np.arange(d + 1), 5, step)
    gaps = np.log2((w[0] + 0.5) / 2**32) / np.log2(1 - rate) if rate else np.full(d, d)
    at = np.cumsum(np.floor(gaps) + 1) - 1
    n = int((at < d).sum())
    return at[:n].astype(np.intp), w[1, :n], w[2, :n]


def polynomial(x, low, high, eta, word):
    u = (word + 0.5) / 2**32
    side = np.where(u < 0.5, high - x, x - low) / (high - low)
    near = 2 * np.where(u < 0.5, u, 1 - u)
    delta = 1 - (near + (1 - near) * side ** (eta + 1)) ** (1 / (eta + 1))
    return np.clip(x + np.where(u < 0.5, -delta, delta) * (high - low), low, high)


def gaussian(x, low, high, sigma, word, turn):
    radius = np.sqrt(-2 * np.log((word + 0.5) / 2**32))
    z = radius * np.cos(((turn >> 1) + 0.5) * (np.pi / 2**32)) * np.where(turn % 2, -1, 1)
    x = x + sigma * (high - low) * z
    x = np.where(x < low, 2 * low - x, x)
    return np.clip(np.where(x > high, 2 * high - x, x), low, high)


def flips(d, row, rate, key, step):
    """Flipped bits of a row: geometric gaps, four words a block."""
    w = philox(key, row, np.arange(d // 4 + 1), 5, step).T.ravel()
    gaps = np.floor(np.log2((w + 0.5) / 2**32) / np.log2(1 - rate)) if rate < 1 else 0 * w
    at = np.cumsum(gaps + 1) - 1
    return at[at < d].astype(np.intp)


def uniform_rows(n, d, first, key, step):
    high, low = gene_pairs(key, d, first + np.arange(n)[:, None], 7, step)
    return ((high >> 6) * 2.0**27 + (low >> 5)) / 2.0**53


# --- linear
def linear_loss(name, z, t, epsilon=0.1):
    """(loss, dloss/dz) elementwise; t is the target, or +-1 for the losses of a margin."""
    r, m = z - t, z * t
    a = np.abs(r)
    over = np.maximum(a - epsilon, 0)
    return {
        "squared_error": lambda: (r * r / 2, r),
        "huber": lambda: (
            np.where(a <= epsilon, r * r / 2, epsilon * a - epsilon**2 / 2),
            np.clip(r, -epsilon, epsilon),
        ),
        "epsilon_insensitive": lambda: (over, np.sign(r) * (a > epsilon)),
        "squared_epsilon_insensitive": lambda: (over**2, 2 * np.sign(r) * over),
        "log_loss": lambda: (np.logaddexp(0, -m), -t * np.exp(-np.logaddexp(0, m))),
        "hinge": lambda: (np.maximum(1 - m, 0), -t * (m < 1)),
        "squared_hinge": lambda: (np.maximum(1 - m, 0) ** 2, -2 * t * np.maximum(1 - m, 0)),
        "modified_huber": lambda: (
            np.where(m >= -1, np.maximum(1 - m, 0) ** 2, -4 * m),
            np.where(m >= -1, -2 * t * np.maximum(1 - m, 0), -4 * t),
        ),
        "perceptron": lambda: (np.maximum(-m, 0), -t * (m <= 0)),
    }[name]()


def linear_softmax(z, codes):
    """(loss (n,), dloss/dz (n, k)) of the cross-entropy."""
    shifted = z - z.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    hit = np.arange(z.shape[1]) == np.asarray(codes)[:, None]
    return -log_p[hit], np.exp(log_p) - hit


def linear_step(rule, w, m, v, g, lr, step, momentum=0.9, beta2=0.999, eps=1e-8):
    """(w, m, v) after one step of the rule with gradient g."""
    if rule == "sgd":
        return w - lr * g, m, v
    if rule in ("momentum", "nesterov"):
        m = momentum * m + g
        return w - lr * (m if rule == "momentum" else g + momentum * m), m, v
    m, v = momentum * m + (1 - momentum) * g, beta2 * v + (1 - beta2) * g * g
    root = np.sqrt(v / (1 - beta2**step)) + eps
    return w - lr * m / (1 - momentum**step) / root, m, v


# --- calibrate
def clip_part(x, weight, low, high, parts, ends, symmetric, steps, zero, qmin, qmax):
    """The first part of [low, high] with the least error; sums of 256 in order, in float32."""
    a, b = (np.float32(v) * (parts if e in ends else parts * 0 + 1).astype("f4")
            for e, v in enumerate((low, high)))  # fmt: skip
    s = np.where((s := (b if symmetric else b - a) / np.float32(steps)) > 0, s, np.float32(1))
    z = zero if symmetric else np.clip(np.rint(qmin - a * (1 / s)), qmin, qmax)
    u = x[:, None] * (1 / s)
    d = (u - np.clip(np.rint(u), qmin - z, qmax - z)) ** 2 * weight[:, None]
    sums = (np.add.accumulate(d[i : i + 256])[-1].astype("f8") for i in range(0, len(x), 256))
    return parts[np.argmin(reduce(add, sums, np.zeros(parts.size)) * s.astype("f8") ** 2)]


def best_range(x, weight, low, high, wide, near, symmetric, *rule):
    """The best part of a row's range: of both ends, then of the high and of the low one."""
    exponent = np.frexp(np.abs(x).max(initial=0))[1] - 1
    unit = np.ldexp(np.float32(1), -np.clip(exponent, -127, 126))
    low, high = (-max(-low, high), max(-low, high)) if symmetric else (min(low, 0), max(high, 0))
    for parts, ends in ((wide, (0, 1)), (near, (1,)), (near, (0,)))[: 1 if symmetric else 3]:
        way = (x * unit, weight, low * float(unit), high * float(unit), parts, ends)
        part = clip_part(*way, symmetric, *rule) if parts.size else 1
        low, high = low * (part if 0 in ends else 1), high * (part if 1 in ends else 1)
    return low, high


def gptq_feedback(w, a, order, cost, size, early, choose, qmin, qmax):
    """Codes, scales and zero points; choose(x, cost) gives a run's scale and zero point."""
    t, code, runs = w[:, order].copy(), np.zeros(w.shape, "i4"), range(0, w.shape[1], size)
    s, z = np.ones((2, len(w), len(runs)), "f4")
    for k, at in enumerate(order):
        for g in runs if early and k == 0 else [k] if k in runs and not early else []:
            for r, x in enumerate(w if early else t):
                s[r, g // size], z[r, g // size] = choose(x[g : g + size], cost[g : g + size])
        scale, zero = s[:, at // size], z[:, at // size]
        code[:, at] = q = np.clip(np.rint(t[:, k] / scale) + zero, qmin, qmax)
        t[:, k + 1 :] += a[k, k + 1 :] * (w[:, at] - scale * (q - zero))[:, None]
    return code, s, z


def eliminate(h, w):
    """Optimal Brain Surgeon on one row: (indices in the order they leave, their costs)."""
    h, w, left, order, loss = h.copy(), w.copy(), list(range(len(w))), [], []
    while left:
        i = min(left, key=lambda j: w[j] ** 2 / h[j, j])
        order.append(i)
        loss.append(w[i] ** 2 / h[i, i])
        w = w - h[:, i] * (w[i] / h[i, i])
        h = h - np.outer(h[:, i], h[i]) / h[i, i]
        left.remove(i)
    return order, loss


# --- cast
def values_of(spec):
    """The magnitudes of codes 0..max_code of a narrow format, in float64."""
    c = np.arange(spec.max_code + 1)
    e, m = c >> spec.man, (c & ((1 << spec.man) - 1)) / (1 << spec.man)
    return np.where(e == 0, m * 2.0 ** (1 - spec.bias), (1 + m) * 2.0 ** (e - float(spec.bias)))


def narrow(x, spec):
    """Codes, half to even: the last code whose midpoint with the one below is not above |x|."""
    v, a = values_of(spec), np.abs(x.astype("f8"))
    middle = np.append((v[1:] + v[:-1]) / 2, v[-1] + (v[-1] - v[-2]) / 2)  # the last one overflows
    c = np.searchsorted(middle, a, side="right")
    tie = (c > 0) & (middle[np.maximum(c - 1, 0)] == a)
    c = np.where(tie & (c % 2 == 1), c - 1, c)  # every odd code gives a tie away
    c = np.where(np.isnan(a), spec.nan, np.where(c > spec.max_code, spec.over, c))
    return (c | (np.signbit(x).astype("i8") << (spec.bits - 1))).astype(f"u{spec.bits // 8}")


def widen(codes, spec):
    """Values."""
    c = codes & ((1 << (spec.bits - 1)) - 1)
    v = values_of(spec)[np.minimum(c, spec.max_code)]
    v = np.where(c > spec.max_code, np.nan if spec.over == spec.nan else np.inf, v)
    v = np.where((c > spec.max_code) & (c != spec.over), np.nan, v)
    return np.where(codes >> (spec.bits - 1), -v, v).astype("f4")


def narrow_random(x, words, spec):
    """Codes, up with the probability of the fraction; words are uniform 32-bit integers."""
    v, a = values_of(spec), np.abs(x.astype("f8"))
    c = np.maximum(np.searchsorted(v, a, side="right") - 1, 0)
    gap = np.append(np.diff(v), v[-1] - v[-2])[c]
    with np.errstate(invalid="ignore"):
        share, bits = (a - v[c]) / gap, 23 - spec.man
        small = np.floor(share * 2.0**17) + (words >> 15) >= 2.0**17
        normal = (words >> (32 - bits)) + share * 2.0**bits >= 2.0**bits
        c = c + np.where((a < 2.0 ** (1 - spec.bias)) & (spec.bias < 127), small, normal)
    c = np.where(np.isnan(a), spec.nan, np.where(c > spec.max_code, spec.over, c))
    return (c | (np.signbit(x).astype("i8") << (spec.bits - 1))).astype(f"u{spec.bits // 8}")


def noise(key, n):
    """Words of elements 0..n-1: Philox4x32-7, counter 16 (i//64) + i % 16, word i % 64 // 16."""
    i = np.arange(n, dtype="u8")
    counter, k0, k1 = i // 64 * 16 + i % 16, np.uint64(key & 0xFFFFFFFF), np.uint64(key >> 32)
    c, low = [counter & 0xFFFFFFFF, counter >> 32, i * 0, i * 0], np.uint64(0xFFFFFFFF)
    for r in range(7):
        a, b = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        m0, m1 = (k0 + np.uint64(r * 0x9E3779B9)) & low, (k1 + np.uint64(r * 0xBB67AE85)) & low
        c = [(b >> 32) ^ c[1] ^ m0, b & low, (a >> 32) ^ c[3] ^ m1, a & low]
    return np.choose((i % 64 // 16).astype("i8"), c).astype("i8")


# --- pack
def pack_nibbles(codes, gguf):
    """Bytes; gguf pairs j with j + 16 in blocks of 32, onnx pairs neighbours."""
    c = codes.astype("u1") & 15
    c = (
        c.reshape(-1, 2, 16)
        if gguf
        else np.append(c, np.zeros(c.size % 2, "u1")).reshape(-1, 2, 1)
    )
    return (c[:, 0] | c[:, 1] << 4).ravel()


# --- topk
def top_k(scores, k):
    """(score, row) of the k largest of each row of scores; of equals the lower row."""
    rows = np.argsort(-scores.astype("i8"), axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, rows, axis=1), rows


# --- codebook
def codebook_encode(x, scale, bound, sign):
    """Codes, one an element; the scale has a shape that broadcasts against x (float32)."""
    with np.errstate(all="ignore"):
        v = x * (np.float32(1) / scale)
    below = (np.abs(v) if sign else v)[..., None] > bound
    return (below.sum(-1) + (8 * np.signbit(v) if sign else 0)).astype(np.uint8)


def codebook_scale(x, peak, power):
    """Scale of each row: max|x| or the power of two below it, over peak; 1 for zeros."""
    top = np.abs(x).max(1)
    base = np.ldexp(np.float32(1), np.frexp(top)[1] - 1) if power else top
    return np.where(top == 0, 1, np.maximum(base / peak, np.finfo("f4").tiny)).astype("f4")


def ggml_head(x, kind):
    """The heads of blocks of 32 (n, 32) as bytes, and what their values are multiplied by."""
    top = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)
    if kind == "MXFP4":
        e = np.clip(np.frexp(top)[1] - 3, -127, 127) * (top != 0) - 127 * (top == 0)
        return (e + 127).astype("u1"), np.ldexp(np.float32(1), -e)
    with np.errstate(all="ignore"):
        d = np.abs(top) / np.float32(127) if kind == "Q8_0" else top / np.float32(-8)
        inverse = np.float32(1) / d
        return d.astype("<f2").view("u1"), np.where(np.isfinite(inverse), inverse, np.float32(0))


def ggml_codes(x, unit, kind):
    """Codes by ggml's rules: ties away from zero, cut off after 8.5, the smaller magnitude."""
    v = x * unit
    if kind == "Q8_0":
        size = np.abs(v.astype("f8"))
        return np.copysign(np.floor(size + 0.5), v).astype("i1").view("u1")
    if kind == "Q4_0":
        return np.minimum(np.trunc(v + np.float32(8.5)), 15).astype("u1")
    code = (np.abs(v)[..., None] > np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5])).sum(axis=2)
    return code.astype("u1") | ((x < 0) & (code > 0)).astype("u1") << 3


def ggml_body(codes, kind):
    """Bytes or nibbles (element j low, j + 16 high)."""
    return codes if kind == "Q8_0" else codes[:, :16] | codes[:, 16:] << 4


# --- search
def matern(a, b):
    """Matern-5/2 of points that are divided by their length scales: (n, m)."""
    r = np.sqrt(5.0) * np.sqrt(((a[:, None] - b) ** 2).sum(axis=2))
    return (1 + r + r * r / 3) * np.exp(-r)


def log_improvement(z):
    """log(phi(z) + z Phi(z)), by its series below -6."""
    near, far = np.maximum(z, -6.0), np.minimum(z, -6.0)
    share = np.array([0.5 * erfc(-v / np.sqrt(2)) for v in near])
    inside = np.log(np.exp(-0.5 * near**2) / np.sqrt(2 * np.pi) + near * share)
    tail = -0.5 * far**2 - 0.5 * np.log(2 * np.pi) - 2 * np.log(-far)
    return np.where(z < -6, tail + np.log1p(-3 / far**2 + 15 / far**4), inside)


def likelihood(x, t, weights, noise):
    """n/2 log(t' K^-1 t / n) + log|K| / 2."""
    k = matern(x * weights, x * weights) + noise * np.eye(len(t))
    fit = t @ np.linalg.solve(k, t)
    return 0.5 * len(t) * np.log(fit / len(t)) + 0.5 * np.linalg.slogdet(k)[1]


def gain(points, x, t, weights, noise, variance, best):
    """log EI by the posterior's mean and deviation."""
    k = matern(x * weights, x * weights) + noise * np.eye(len(t))
    cross = matern(points * weights, x * weights)
    rest = 1 - (cross * np.linalg.solve(k, cross.T).T).sum(axis=1)
    deviation = np.sqrt(variance * np.maximum(rest, 1e-12))
    z = (best - cross @ np.linalg.solve(k, t)) / deviation
    return log_improvement(z) + np.log(deviation)


def fronts(y):
    """Peel the rows that no other row dominates, again and again."""
    rank, left = np.full(len(y), -1), np.arange(len(y))
    while len(left):
        here = y[left]
        lower = (here[:, None] <= here).all(axis=2) & (here[:, None] < here).any(axis=2)
        rank[left[~lower.any(axis=0)]] = rank.max() + 1
        left = left[lower.any(axis=0)]
    return rank


def cma_update(c, mean, path_sigma, path_c, steps, w, scale, axes, basis, r, fresh):
    """Equations 41 to 47 of Hansen's tutorial; ``r``: mu, mu_eff, c_sigma, c_c, c_1, c_mu, chi."""
    mu, mu_eff, cs, cc, c1, cmu, chi = r
    d, full = len(mean), len(basis) > 0
    white = (steps @ basis if full else steps) / axes
    move = w[:mu] @ steps[:mu]
    back = basis @ ((move @ basis) / axes) if full else move / axes
    path_sigma = (1 - cs) * path_sigma + np.sqrt(cs * (2 - cs) * mu_eff) * back
    length = np.linalg.norm(path_sigma)
    h = length / np.sqrt(fresh) < (1.4 + 2 / (d + 1)) * chi
    path_c = (1 - cc) * path_c + h * np.sqrt(cc * (2 - cc) * mu_eff) * move
    signed = np.where(w >= 0, w, w * d / (white**2).sum(axis=1))
    new = c1 * np.outer(path_c, path_c) + cmu * (steps.T * signed) @ steps
    keep = 1 + c1 * (1 - h) * cc * (2 - cc) - c1 - cmu * w.sum()
    return keep * c + (new if full else np.diag(new)), mean + scale * move, path_sigma, path_c


# --- trees
def forest_sums(code, feature, nan_left, cut, right, leaf, root, column, value, n_outputs):
    """Row by row and tree by tree, as one would walk by hand; a feature of -1 is a leaf."""
    out = np.zeros((len(code), n_outputs))
    for r, row in enumerate(code):
        for first, c in zip(root, column):
            node = first
            while feature[node] >= 0:
                v = row[feature[node]]
                left = v <= cut[node] or (v == 0xFFFF and nan_left[node])
                node = node + 1 if left else right[node]
            out[r, c : c + value.shape[1]] += value[leaf[node]]
    return out


# --- filter
def depthwise(x, w, shape, sh, sw, dh, dw):
    """y of planes x, and what each (i, j) of y reads: x[:, i * sh + a * dh, j * sw + b * dw]."""
    _, height, width, n = shape
    seen = np.zeros((*w.shape, height, width, n))
    for a in range(w.shape[1]):
        for b in range(w.shape[2]):
            rows = a * dh + sh * np.arange(height)
            seen[:, a, b] = x[:, rows[:, None], b * dw + sw * np.arange(width)]
    return np.einsum("cabijn,cab->cijn", seen, w.astype(np.float64)), seen
