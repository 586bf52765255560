"""Exchange between bit strings of 64 genes per uint64.

Gene j of a row is bit j % 64 of its word j // 64 (``np.packbits(..., bitorder="little")``); the
bits above gene d of the last word stay as the parents have them, so zeros stay zeros.
One-point and two-point exchange choose the same genes as where a gene is a byte.
Uniform exchange reads a mask: one word of Philox decides on 32 genes where the gene rate is 1/2.
Another rate is rounded to k / 2^16, and the mask of its digits (the first is 1/2) is built from
the last one up, m = m | word for a digit 1 and m & word for a digit 0: one word per digit.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy, memset

from fastopt._kernels.genetic.crossover cimport cuts
from fastopt._kernels.genetic.words cimport COPY, MASK, UNIFORM, Variation, tile, unit_32
from fastopt._kernels.shared.philox cimport GROUP, TILE

cdef enum:
    WORDS = TILE // 2  # of 64 genes in a tile
    DIGITS = 16  # of a gene rate


cdef inline void draw_mask(
    uint64_t* mask, uint32_t rate, uint32_t at, uint32_t pair, const Variation* how
) noexcept nogil:
    """A tile of words, number ``at``: each bit 1 with probability rate / 2^DIGITS."""
    cdef uint32_t[TILE] words
    cdef uint64_t[WORDS] drawn
    cdef int digit, j
    memset(mask, 255 if rate >> DIGITS else 0, WORDS * sizeof(uint64_t))
    if rate >> DIGITS or rate == 0:
        return
    for digit in range(DIGITS):
        if rate & ((<uint32_t> 2 << digit) - 1) == 0:
            continue  # trailing zeros
        tile(words, how.key, (at * DIGITS + digit) * GROUP, pair, MASK, how.generation)
        memcpy(&drawn[0], &words[0], sizeof(words))
        if rate >> digit & 1:
            for j in range(WORDS):
                mask[j] |= drawn[j]
        else:
            for j in range(WORDS):
                mask[j] &= drawn[j]


cdef inline void exchange(
    uint64_t* ca, uint64_t* cb, const uint64_t* pa, const uint64_t* pb, const uint64_t* mask,
    Py_ssize_t n
) noexcept nogil:
    """The genes under a mask of n <= WORDS words."""
    cdef uint64_t[WORDS] first
    cdef uint64_t[WORDS] second
    cdef Py_ssize_t j
    if n == WORDS:
        for j in range(WORDS):
            first[j] = pa[j] ^ ((pa[j] ^ pb[j]) & mask[j])
            second[j] = pb[j] ^ ((pa[j] ^ pb[j]) & mask[j])
    else:
        for j in range(n):
            first[j] = pa[j] ^ ((pa[j] ^ pb[j]) & mask[j])
            second[j] = pb[j] ^ ((pa[j] ^ pb[j]) & mask[j])
    memcpy(ca, &first[0], n * sizeof(uint64_t))
    memcpy(cb, &second[0], n * sizeof(uint64_t))


cdef inline uint64_t below(Py_ssize_t bits) noexcept nogil:
    """The lowest 0..64 bits."""
    return ~<uint64_t> 0 if bits >= 64 else (<uint64_t> 1 << bits) - 1


cdef inline void exchange_words(
    uint64_t* ca, uint64_t* cb, const uint64_t* pa, const uint64_t* pb, Py_ssize_t words,
    Py_ssize_t first, Py_ssize_t last,
) noexcept nogil:
    """The genes [first, last)."""
    cdef Py_ssize_t i
    cdef uint64_t mask
    memcpy(ca, pa, words * sizeof(uint64_t))
    memcpy(cb, pb, words * sizeof(uint64_t))
    for i in range(first // 64, (last + 63) // 64):
        mask = below(last - i * 64)
        if i == first // 64:
            mask &= ~below(first % 64)
        ca[i] = pa[i] ^ ((pa[i] ^ pb[i]) & mask)
        cb[i] = pb[i] ^ ((pa[i] ^ pb[i]) & mask)


cdef inline void cross_words(
    uint64_t* ca, uint64_t* cb, const uint64_t* pa, const uint64_t* pb, Py_ssize_t d,
    uint32_t rate, Py_ssize_t pair, const uint32_t* words, const Variation* how,
) noexcept nogil:
    """Both children of pair number ``pair``, d genes each, whose own words are words[0], [16],
    [32]; ``rate`` is that of the genes in 2^-DIGITS."""
    cdef uint64_t[WORDS] mask
    cdef Py_ssize_t at = 0, first = 0, last = 0, n, size = (d + 63) // 64
    cdef int kind = how.crossover
    if d == 0 or unit_32(words[0]) >= how.rate:
        kind = COPY
    if kind == UNIFORM:
        while at < size:
            n = min(<Py_ssize_t> WORDS, size - at)
            draw_mask(mask, rate, <uint32_t> (at // WORDS), <uint32_t> pair, how)
            if at + n == size:  # nothing above gene d
                mask[n - 1] &= below(d - (size - 1) * 64)
            exchange(ca + at, cb + at, pa + at, pb + at, mask, n)
            at += n
        return
    if kind != COPY:
        cuts(&first, &last, kind, d, words)
    exchange_words(ca, cb, pa, pb, size, first, last)
