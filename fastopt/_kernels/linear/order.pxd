"""Integers beside the rows: which of two labels a row has, and the order of an epoch."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from fastopt._kernels.shared.philox cimport philox, u32x4
from fastopt._kernels.shared.restrict cimport u8

cdef extern from *:
    """
    #ifdef __SIZEOF_INT128__
    typedef unsigned __int128 fo_wide;
    #else
    typedef uint64_t fo_wide;
    #endif
    """
    ctypedef uint64_t wide "fo_wide"  # 128 bits where the compiler has them

ctypedef fused label:
    uint8_t
    uint32_t
    uint64_t


cdef inline bint number_labels(
    u8 codes, const label* labels, const label* few, Py_ssize_t n, Py_ssize_t first,
    Py_ssize_t last,
) noexcept nogil:
    """codes[i] = whether a label's bytes are those of few[1], for the sixteens first..last-1 of
    n >= 16 labels (the last begins at n - 16); True if one's bytes are those of neither."""
    cdef label zero = few[0], one = few[1]
    cdef label odd
    cdef const label* a
    cdef Py_ssize_t b, at
    cdef int lane, other = 0
    for b in range(first, last):
        at = min(16 * b, n - 16)
        a = labels + at
        odd = 0
        for lane in range(16):
            odd |= <label> 0 if a[lane] == one else a[lane] ^ zero
        for lane in range(16):
            codes[at + lane] = a[lane] == one
        other |= odd != 0
    return other


cdef inline uint64_t high_product(uint64_t a, uint64_t b) noexcept nogil:
    """The high 64 bits of a b."""
    cdef uint64_t al = <uint32_t> a, ah = a >> 32, bl = <uint32_t> b, bh = b >> 32, m, t
    if sizeof(wide) > 8:
        return <uint64_t> (<wide> a * <wide> b >> (8 * sizeof(wide) - 64))
    m = ah * bl + ((al * bl) >> 32)
    t = al * bh + <uint32_t> m
    return ah * bh + (m >> 32) + (t >> 32)


cdef inline void permute(int64_t* a, Py_ssize_t n, uint64_t key, uint32_t epoch) noexcept nogil:
    """Fisher and Yates; one block of Philox serves two elements."""
    cdef Py_ssize_t i
    cdef u32x4 draw
    cdef uint64_t bits, j
    cdef int64_t kept
    draw.w[0] = draw.w[1] = draw.w[2] = draw.w[3] = 0
    for i in range(n - 1, 0, -1):
        if i & 1 or i == n - 1:
            draw = philox(key, <uint64_t> (i >> 1), epoch, 0x5348)
        bits = (<uint64_t> draw.w[2 * (i & 1)] << 32) | draw.w[2 * (i & 1) + 1]
        j = high_product(bits, <uint64_t> (i + 1))
        kept = a[i]
        a[i] = a[j]
        a[j] = kept
