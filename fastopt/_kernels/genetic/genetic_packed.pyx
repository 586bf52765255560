"""A generation on bit strings of 64 genes per uint64: exchange, bit flip, and Hamming distance.

Gene j of a row is bit j % 64 of its word j // 64 (``np.packbits(..., bitorder="little")``); the
bits above gene d of the last word stay as the parents have them, so zeros stay zeros.
One-point and two-point exchange and the flips choose the same genes as ``genetic_bits.pyx``.
Uniform exchange reads a mask: one word of Philox decides on 32 genes where the gene rate is 1/2.
Another rate is rounded to k / 2^16, and the mask of its digits (the first is 1/2) is built from
the last one up, m = m | word for a digit 1 and m & word for a digit 0: one word per digit.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from fastopt._kernels.genetic.crossover cimport cuts
from fastopt._kernels.genetic.mutation cimport flip_row
from fastopt._kernels.genetic.words cimport (
    COPY, MASK, PAIR, SBX, UNIFORM, Variation, skip_of, tile, unit_32
)
from fastopt._kernels.shared cimport numpy as cnp
from fastopt._kernels.shared.arguments cimport data_of
from fastopt._kernels.shared.philox cimport GROUP, TILE
from fastopt._kernels.shared.pool cimport run_polled

from fastopt.errors import ArrayError, OptionError

cnp.import_array()

cdef enum:
    CHUNK = 1 << 11  # words a thread takes at a time
    WORDS = TILE // 2  # of 64 genes in a tile
    DIGITS = 16  # of a gene rate

cdef extern from *:
    int ones "__builtin_popcountll"(uint64_t word) noexcept nogil

cdef struct Work:  # one call
    Variation how
    uint64_t* child  # or what is flipped in place
    const uint64_t* parents  # NULL: no crossover
    const Py_ssize_t* mates
    Py_ssize_t n, d, words
    Py_ssize_t groups, step  # of GROUP pairs, or GROUP rows; that a thread takes at a time
    uint32_t rate  # of genes, in 2^-DIGITS


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


cdef void exchange_segment(
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


cdef void cross(
    uint64_t* ca, uint64_t* cb, const uint64_t* pa, const uint64_t* pb, Py_ssize_t pair,
    const uint32_t* words, const Work* w,
) noexcept nogil:
    """Both children of pair number ``pair``, whose own words are words[0], [16], [32]."""
    cdef uint64_t[WORDS] mask
    cdef Py_ssize_t at = 0, first = 0, last = 0, n
    cdef int kind = w.how.crossover
    if w.d == 0 or unit_32(words[0]) >= w.how.rate:
        kind = COPY
    if kind == UNIFORM:
        while at < w.words:
            n = min(<Py_ssize_t> WORDS, w.words - at)
            draw_mask(mask, w.rate, <uint32_t> (at // WORDS), <uint32_t> pair, &w.how)
            if at + n == w.words:  # nothing above gene d
                mask[n - 1] &= below(w.d - (w.words - 1) * 64)
            exchange(ca + at, cb + at, pa + at, pb + at, mask, n)
            at += n
        return
    if kind != COPY:
        cuts(&first, &last, kind, w.d, words)
    exchange_segment(ca, cb, pa, pb, w.words, first, last)


cdef void vary_chunk(void* context, Py_ssize_t k, int worker) noexcept nogil:
    cdef Work* w = <Work*> context
    cdef uint32_t[TILE] words
    cdef Py_ssize_t group, lane, pair, row, first, rows, m = w.words
    for group in range(k * w.step, min(w.groups, (k + 1) * w.step)):
        first, rows = group * GROUP, min(<Py_ssize_t> GROUP, w.n - group * GROUP)
        if w.parents != NULL:
            tile(words, w.how.key, <uint32_t> first, 0, PAIR, w.how.generation)
            rows = 2 * min(<Py_ssize_t> GROUP, w.n // 2 - first)
            for lane in range(rows // 2):
                pair = first + lane
                cross(
                    w.child + 2 * pair * m, w.child + (2 * pair + 1) * m,
                    w.parents + w.mates[2 * pair] * m, w.parents + w.mates[2 * pair + 1] * m,
                    pair, &words[lane], w,
                )
            first = 2 * first
        if w.how.mutation_rate > 0:
            for row in range(first, first + rows):
                flip_row(w.child + row * m, w.d, row, &w.how)


cdef int vary(Work* w, Py_ssize_t rows, int threads) except -1:
    """In groups of so many rows; a thread takes about CHUNK words at a time."""
    w.groups = (w.n + rows - 1) // rows
    w.step = max(<Py_ssize_t> 1, CHUNK // (rows * max(w.words, <Py_ssize_t> 1)))
    with nogil:
        run_polled(vary_chunk, w, (w.groups + w.step - 1) // w.step, threads)
    return 0


# --- distances

cdef struct Counting:
    int64_t* out
    const uint64_t* x
    const uint64_t* y
    Py_ssize_t n, words, step
    Py_ssize_t stride  # of y: 0 compares every row with the same one


cdef void count_chunk(void* context, Py_ssize_t k, int worker) noexcept nogil:
    cdef Counting* w = <Counting*> context
    cdef Py_ssize_t i, j
    cdef const uint64_t* x
    cdef const uint64_t* y
    cdef int64_t count
    for i in range(k * w.step, min(w.n, (k + 1) * w.step)):
        x, y, count = w.x + i * w.words, w.y + i * w.stride, 0
        for j in range(w.words):
            count += ones(x[j] ^ y[j])
        w.out[i] = count


# --- doors

cdef Py_ssize_t words_of(cnp.ndarray x, Py_ssize_t d, str name) except -1:
    """The words of a row, after the shape of ``x`` is checked."""
    if d < 0:
        raise OptionError(f"d: expected at least 0 genes, got {d}")
    if x.ndim != 2 or x.shape[1] != (d + 63) // 64:
        raise ArrayError(
            f"{name}: expected shape (any, {(d + 63) // 64}) for {d} genes, "
            f"got {(<object> x).shape}"
        )
    return x.shape[1]


def breed_packed(
    cnp.ndarray child not None, cnp.ndarray parents not None, cnp.ndarray mates not None,
    Py_ssize_t d, int crossover, double rate, double gene_rate, double mutation_rate,
    uint64_t key, uint32_t generation, int threads,
):
    """Children 2 p and 2 p + 1 from parents mates[2 p] and mates[2 p + 1], then flips.

    child, parents (any, ceil(d / 64)) uint64; a pair crosses with probability ``rate``, a gene
    takes part in a uniform exchange with ``gene_rate``."""
    cdef Work w
    cdef Py_ssize_t i, n
    memset(&w, 0, sizeof(w))
    w.d, w.words = d, words_of(child, d, "child")
    words_of(parents, d, "parents")
    w.n, n = child.shape[0], parents.shape[0]
    if w.n % 2:
        raise ArrayError(f"child: expected an even number of rows, got {w.n}")
    if crossover == SBX:
        raise ArrayError("parents: bits have no SBX")
    w.child = <uint64_t*> data_of(child, cnp.NPY_UINT64, -1, True, "child")
    w.parents = <uint64_t*> data_of(parents, cnp.NPY_UINT64, -1, False, "parents")
    w.mates = <Py_ssize_t*> data_of(mates, cnp.NPY_INTP, w.n, False, "mates")
    for i in range(w.n):
        if w.mates[i] < 0 or w.mates[i] >= n:
            raise ArrayError(f"mates: expected rows 0..{n - 1}, got {w.mates[i]} at {i}")
    w.how.key, w.how.generation, w.how.crossover = key, generation, crossover
    w.how.rate = rate
    gene_rate = gene_rate if gene_rate > 0 else 0  # also NaN
    w.rate = <uint32_t> (min(gene_rate, <double> 1) * (1 << DIGITS) + 0.5)
    w.how.mutation_rate, w.how.skip = mutation_rate, skip_of(mutation_rate)
    vary(&w, 2 * GROUP, threads)


def flip_packed(
    cnp.ndarray x not None, Py_ssize_t d, double mutation_rate, uint64_t key,
    uint32_t generation, int threads,
):
    """In place: each of the d genes of a row of x flipped with probability ``mutation_rate``."""
    cdef Work w
    memset(&w, 0, sizeof(w))
    w.d, w.words, w.n = d, words_of(x, d, "x"), x.shape[0]
    w.child = <uint64_t*> data_of(x, cnp.NPY_UINT64, -1, True, "x")
    w.how.key, w.how.generation = key, generation
    w.how.mutation_rate, w.how.skip = mutation_rate, skip_of(mutation_rate)
    if mutation_rate > 0:
        vary(&w, GROUP, threads)


def distances(
    cnp.ndarray out not None, cnp.ndarray x not None, cnp.ndarray y not None, int threads
):
    """out (n,) int64: in how many bits row i of x (n, words) uint64 differs from row i of y, or
    from the only row of y; from zeros, how many are 1."""
    cdef Counting w
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or (
        y.shape[0] != 1 and y.shape[0] != x.shape[0]
    ):
        raise ArrayError(
            f"y: expected 1 row or the shape of x, {(<object> x).shape}, "
            f"got {(<object> y).shape}"
        )
    w.n, w.words = x.shape[0], x.shape[1]
    w.stride = 0 if y.shape[0] == 1 else w.words
    w.out = <int64_t*> data_of(out, cnp.NPY_INT64, w.n, True, "out")
    w.x = <const uint64_t*> data_of(x, cnp.NPY_UINT64, -1, False, "x")
    w.y = <const uint64_t*> data_of(y, cnp.NPY_UINT64, -1, False, "y")
    w.step = max(<Py_ssize_t> 1, 4 * CHUNK // max(w.words, <Py_ssize_t> 1))
    with nogil:
        run_polled(count_chunk, &w, (w.n + w.step - 1) // w.step, threads)
