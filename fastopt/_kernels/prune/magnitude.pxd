"""Ranking by magnitude: the bits of |x| as an integer order like |x| itself, infinities above all
numbers and NaN above infinity. Blocks of fixed length go through local arrays, so that the
compiler unrolls them and needs no check for overlap: the result may lie on its source."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

ctypedef fused bits_t:
    int32_t
    int64_t

cdef enum:
    LINE = 64  # elements that are handled together
    TILE = 4096  # elements whose candidates wait in L1

cdef extern from "prune/compress.h" nogil:
    Py_ssize_t fo_compress32(
        int32_t* out, const int32_t* x, Py_ssize_t n, int32_t low, int32_t high,
        const uint64_t* order, Py_ssize_t* stored, Py_ssize_t* below
    ) noexcept
    Py_ssize_t fo_compress64(
        int64_t* out, const int64_t* x, Py_ssize_t n, int64_t low, int64_t high,
        Py_ssize_t* stored, Py_ssize_t* below
    ) noexcept


cdef inline bits_t magnitude(bits_t x) noexcept nogil:
    if bits_t is int32_t:
        return x & 0x7FFFFFFF
    else:
        return x & ~(<int64_t> 1 << 63)


cdef inline Py_ssize_t compress(
    bits_t* out, const bits_t* x, Py_ssize_t n, bits_t low, bits_t high, const uint64_t* order,
    Py_ssize_t* below,
) noexcept nogil:
    """out = the magnitudes in [low, high] in order; returns how many, and adds to ``below`` how
    many are smaller. ``out`` has room for n + 16; vectors first, the rest without a branch (a few
    per cent of the elements are inside, which no predictor learns)."""
    cdef Py_ssize_t i, stored = 0, under = 0
    cdef bits_t b, width = high - low
    if bits_t is int32_t:
        i = fo_compress32(out, x, n, low, high, order, &stored, &under)
    else:
        i = fo_compress64(out, x, n, low, high, &stored, &under)
    while i < n:
        b = magnitude(x[i])
        out[stored] = b
        if bits_t is int32_t:
            stored += <uint32_t> (b - low) <= <uint32_t> width
        else:
            stored += <uint64_t> (b - low) <= <uint64_t> width
        under += b < low
        i += 1
    below[0] += under
    return stored


cdef inline Py_ssize_t above(const bits_t* x, Py_ssize_t n, bits_t limit) noexcept nogil:
    """How many of n <= 2**31 magnitudes are > limit."""
    cdef bits_t count = 0
    cdef Py_ssize_t i
    for i in range(n):
        count += magnitude(x[i]) > limit
    return count


cdef inline Py_ssize_t find(
    const bits_t* x, Py_ssize_t n, bits_t value, int64_t* nth
) noexcept nogil:
    """Index of the nth (from 0) magnitude equal to value, or -1; nth loses those passed."""
    cdef Py_ssize_t start = 0, i, m
    cdef bits_t count
    while start < n:
        m = min(<Py_ssize_t> 1024, n - start)
        count = 0
        for i in range(start, start + m):
            count += magnitude(x[i]) == value
        if count > nth[0]:
            for i in range(start, start + m):
                if magnitude(x[i]) == value:
                    if nth[0] == 0:
                        return i
                    nth[0] -= 1
        nth[0] -= count
        start += m
    return -1


cdef inline void tally(
    uint32_t* table, const bits_t* x, Py_ssize_t n, int shift, int width, bits_t prefix
) noexcept nogil:
    """Add 1 to table[window of the magnitude] where the bits above it are prefix: four tables of
    2048, so that equal neighbours do not wait for each other's store."""
    cdef bits_t b, window = (<bits_t> 1 << width) - 1
    cdef Py_ssize_t i
    for i in range(n):
        b = magnitude(x[i]) >> shift
        table[(i & 3) * 2048 + (b & window)] += (b >> width) == prefix


cdef inline void zero_line(bits_t* out, const bits_t* x, bits_t limit) noexcept nogil:
    """LINE elements, +0 where the magnitude is below limit."""
    cdef bits_t[LINE] made
    cdef int k
    for k in range(LINE):
        made[k] = x[k] if magnitude(x[k]) >= limit else 0
    memcpy(out, &made[0], sizeof(made))


cdef inline void keep_line(uint8_t* keep, const bits_t* x, bits_t limit) noexcept nogil:
    cdef uint8_t[LINE] made
    cdef int k
    for k in range(LINE):
        made[k] = magnitude(x[k]) >= limit
    memcpy(keep, &made[0], sizeof(made))


cdef inline void zero_run(
    bits_t* out, uint8_t* keep, const bits_t* x, Py_ssize_t n, bits_t limit
) noexcept nogil:
    """n elements; ``keep`` (NULL: not wanted) is 1 where they stay."""
    cdef bits_t[LINE] given
    cdef bits_t[LINE] made
    cdef uint8_t[LINE] stay
    cdef Py_ssize_t i = 0
    while i + LINE <= n:
        if keep != NULL:
            keep_line(keep + i, x + i, limit)
        zero_line(out + i, x + i, limit)
        i += LINE
    if i < n:
        memset(&given[0], 0, sizeof(given))
        memcpy(&given[0], x + i, (n - i) * sizeof(bits_t))
        if keep != NULL:
            keep_line(&stay[0], &given[0], limit)
            memcpy(keep + i, &stay[0], n - i)
        zero_line(&made[0], &given[0], limit)
        memcpy(out + i, &made[0], (n - i) * sizeof(bits_t))
