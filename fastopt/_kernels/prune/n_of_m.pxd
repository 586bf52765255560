"""N of M: in each group of m the n largest magnitudes stay, the later ones of equals.

No sort: the rank of an element is the count of those that beat it, and i < j is beaten by j where
|x[j]| >= |x[i]|, else it beats j. Groups are ranked side by side, LANES of them.
"""

from libc.stdint cimport int32_t, uint8_t
from libc.string cimport memcpy

from fastopt._kernels.prune.magnitude cimport bits_t, magnitude
from fastopt._kernels.shared.stream cimport prefetch

cdef enum:
    LANES = 32
    AHEAD = 1024  # elements between a read and its prefetch
    MOST = 32  # elements of a group

cdef extern from "prune/four.h" nogil:
    int32_t fo_four(int32_t* out, int32_t* stay, const int32_t* x, int n) noexcept


cdef inline bits_t rank_tile(
    bits_t* out, uint8_t* keep, const bits_t* x, Py_ssize_t lanes, Py_ssize_t step,
    Py_ssize_t apart, int m, int n,
) noexcept nogil:
    """At most LANES groups, element i of group c at x[i * step + c * apart]; the largest magnitude
    that goes. Inlined with constants where they are known."""
    cdef bits_t[MOST * LANES] v
    cdef bits_t[MOST * LANES] rank
    cdef bits_t[LANES] top
    cdef bits_t most = 0, later, b
    cdef Py_ssize_t c
    cdef int i, j
    if step == 1:
        for c in range(lanes):
            for i in range(m):
                v[i * LANES + c] = x[c * apart + i]
    else:
        for i in range(m):
            for c in range(lanes):
                v[i * LANES + c] = x[i * step + c * apart]
    for i in range(m):
        for c in range(lanes):
            rank[i * LANES + c] = i
    for i in range(m):
        for j in range(i + 1, m):
            for c in range(lanes):
                later = magnitude(v[j * LANES + c]) >= magnitude(v[i * LANES + c])
                rank[i * LANES + c] += later
                rank[j * LANES + c] -= later
    for c in range(lanes):
        top[c] = 0
    for i in range(m):
        for c in range(lanes):
            b = 0 if rank[i * LANES + c] < n else magnitude(v[i * LANES + c])
            top[c] = max(top[c], b)
            v[i * LANES + c] = v[i * LANES + c] if rank[i * LANES + c] < n else 0
    for c in range(lanes):
        most = max(most, top[c])
    if step == 1:
        for c in range(lanes):
            for i in range(m):
                out[c * apart + i] = v[i * LANES + c]
        if keep != NULL:
            for c in range(lanes):
                for i in range(m):
                    keep[c * apart + i] = rank[i * LANES + c] < n
    else:
        for i in range(m):
            for c in range(lanes):
                out[i * step + c * apart] = v[i * LANES + c]
            if keep != NULL:
                for c in range(lanes):
                    keep[i * step + c * apart] = rank[i * LANES + c] < n
    return most


cdef inline int32_t keep_four(
    int32_t* out, uint8_t* keep, const int32_t* x, Py_ssize_t groups, int n
) noexcept nogil:
    """Groups of four float32, 16 at a time; ``groups`` is a multiple of that."""
    cdef int32_t[64] stay
    cdef uint8_t[64] mask
    cdef int32_t most = 0
    cdef Py_ssize_t at = 0
    cdef int k
    while at < 4 * groups:
        for k in range(4):
            prefetch(x + at + AHEAD + 16 * k)
        most = max(most, fo_four(out + at, &stay[0], x + at, n))
        if keep != NULL:
            for k in range(64):
                mask[k] = stay[k] & 1
            memcpy(keep + at, &mask[0], sizeof(mask))
        at += 64
    return most


cdef inline bits_t keep_adjacent(
    bits_t* out, uint8_t* keep, const bits_t* x, Py_ssize_t groups, int m, int n
) noexcept nogil:
    """Groups of m elements that lie side by side."""
    cdef bits_t most = 0
    cdef Py_ssize_t g = 0, at, lanes
    cdef uint8_t* mask = keep
    if bits_t is int32_t:
        if m == 4:
            g = groups & ~<Py_ssize_t> 15
            most = keep_four(out, keep, x, g, n)
    while g < groups:
        at = g * m
        lanes = min(<Py_ssize_t> LANES, groups - g)
        if keep != NULL:
            mask = keep + at
        if lanes == LANES and m == 4:
            most = max(most, rank_tile(out + at, mask, x + at, LANES, 1, 4, 4, n))
        elif lanes == LANES and m == 8:
            most = max(most, rank_tile(out + at, mask, x + at, LANES, 1, 8, 8, n))
        else:
            most = max(most, rank_tile(out + at, mask, x + at, lanes, 1, m, m, n))
        g += lanes
    return most


cdef inline bits_t keep_apart(
    bits_t* out, uint8_t* keep, const bits_t* x, Py_ssize_t inner, int m, int n
) noexcept nogil:
    """``inner`` groups whose elements lie ``inner`` apart."""
    cdef bits_t most = 0
    cdef Py_ssize_t c = 0, lanes
    cdef uint8_t* mask = keep
    while c < inner:
        lanes = min(<Py_ssize_t> LANES, inner - c)
        if keep != NULL:
            mask = keep + c
        if lanes == LANES and m == 4:
            most = max(most, rank_tile(out + c, mask, x + c, LANES, inner, 1, 4, n))
        elif lanes == LANES:
            most = max(most, rank_tile(out + c, mask, x + c, LANES, inner, 1, m, n))
        else:
            most = max(most, rank_tile(out + c, mask, x + c, lanes, inner, 1, m, n))
        c += lanes
    return most
