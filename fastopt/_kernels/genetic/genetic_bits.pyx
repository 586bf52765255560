"""A generation on bit strings, one bit per uint8 or 64 per uint64: exchange and flip; distances.

Uniform, one-point and two-point exchange of a pair's genes (crossover.pxd where a bit is a byte,
packed.pxd where it is not); then each bit of a child flipped with probability ``mutation_rate``,
by geometric skips, so that a child costs about d mutation_rate draws. The words are those of
``genetic.pyx``.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from fastopt._kernels.genetic.crossover cimport cross
from fastopt._kernels.genetic.mutation cimport bits, flip_row
from fastopt._kernels.genetic.packed cimport DIGITS, cross_words
from fastopt._kernels.genetic.words cimport PAIR, SBX, Variation, limit_of, skip_of, tile
from fastopt._kernels.shared cimport numpy as cnp
from fastopt._kernels.shared.arguments cimport data_of
from fastopt._kernels.shared.philox cimport GROUP, TILE
from fastopt._kernels.shared.pool cimport run_polled

from fastopt.errors import ArrayError, OptionError

cnp.import_array()

cdef enum:
    BYTES = 1 << 16  # that a thread takes at a time, of one bit each
    WORDS = 1 << 11  # the same of 64 bits

cdef extern from *:
    int ones "__builtin_popcountll"(uint64_t word) noexcept nogil

cdef struct Work:  # one call
    Variation how
    bint packed  # 64 bits per element
    void* child  # or what is flipped in place
    const void* parents  # NULL: no crossover
    const Py_ssize_t* mates
    Py_ssize_t n, d, width  # rows, bits, elements of a row
    Py_ssize_t groups, step  # of GROUP pairs, or GROUP rows; that a thread takes at a time
    uint32_t rate  # of packed genes, in 2^-DIGITS


cdef void vary_group(
    const Work* w, bits* child, const bits* parents, Py_ssize_t group
) noexcept nogil:
    """GROUP pairs, or GROUP rows."""
    cdef uint32_t[TILE] words
    cdef Py_ssize_t lane, pair, row, m = w.width, first = group * GROUP
    cdef Py_ssize_t rows = min(<Py_ssize_t> GROUP, w.n - first)
    cdef bits* a
    cdef const bits* pa
    cdef const bits* pb
    if parents != NULL:
        tile(words, w.how.key, <uint32_t> first, 0, PAIR, w.how.generation)
        rows = 2 * min(<Py_ssize_t> GROUP, w.n // 2 - first)
        for lane in range(rows // 2):
            pair = first + lane
            a = child + 2 * pair * m
            pa, pb = parents + w.mates[2 * pair] * m, parents + w.mates[2 * pair + 1] * m
            if bits is uint8_t:
                cross(a, a + m, pa, pb, <bits*> NULL, <bits*> NULL, m, pair, &words[lane], &w.how)
            else:
                cross_words(a, a + m, pa, pb, w.d, w.rate, pair, &words[lane], &w.how)
        first = 2 * first
    if w.how.mutation_rate > 0:
        for row in range(first, first + rows):
            flip_row(child + row * m, w.d, row, &w.how)


cdef void vary_chunk(void* context, Py_ssize_t k, int worker) noexcept nogil:
    cdef const Work* w = <const Work*> context
    cdef Py_ssize_t i
    for i in range(k * w.step, min(w.groups, (k + 1) * w.step)):
        if w.packed:
            vary_group(w, <uint64_t*> w.child, <const uint64_t*> w.parents, i)
        else:
            vary_group(w, <uint8_t*> w.child, <const uint8_t*> w.parents, i)


cdef int vary(Work* w, Py_ssize_t rows, int threads) except -1:
    """In groups of so many rows."""
    cdef Py_ssize_t chunk = WORDS if w.packed else BYTES
    w.groups = (w.n + rows - 1) // rows
    w.step = max(<Py_ssize_t> 1, chunk // (rows * max(w.width, <Py_ssize_t> 1)))
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

cdef int begin(
    Work* w, cnp.ndarray x, str name, Py_ssize_t d, double mutation_rate, uint64_t key,
    uint32_t generation,
) except -1:
    """What both doors take: x (any, d) uint8 or (any, ceil(d / 64)) uint64, to be written."""
    memset(w, 0, sizeof(w[0]))
    if d < 0:
        raise OptionError(f"d: expected at least 0 genes, got {d}")
    w.packed = cnp.PyArray_TYPE(x) != cnp.NPY_UINT8
    w.d, w.width = d, (d + 63) // 64 if w.packed else d
    w.child = pointer(w, x, True, name)
    w.n = x.shape[0]
    w.how.key, w.how.generation = key, generation
    w.how.mutation_rate, w.how.skip = mutation_rate, skip_of(mutation_rate)
    return 0


cdef void* pointer(const Work* w, cnp.ndarray x, bint writable, str name) except? NULL:
    if x.ndim != 2 or x.shape[1] != w.width:
        raise ArrayError(
            f"{name}: expected shape (any, {w.width}) for {w.d} genes, "
            f"got {(<object> x).shape}"
        )
    return data_of(x, cnp.NPY_UINT64 if w.packed else cnp.NPY_UINT8, -1, writable, name)


def breed_bits(
    cnp.ndarray child not None, cnp.ndarray parents not None, cnp.ndarray mates not None,
    Py_ssize_t d, int crossover, double rate, double gene_rate, double mutation_rate,
    uint64_t key, uint32_t generation, int threads,
):
    """Children 2 p and 2 p + 1 from parents mates[2 p] and mates[2 p + 1], then flips.

    child, parents (any, d) uint8 or (any, ceil(d / 64)) uint64; a pair crosses with probability
    ``rate``, a gene takes part in a uniform exchange with ``gene_rate``."""
    cdef Work w
    cdef Py_ssize_t i, n
    begin(&w, child, "child", d, mutation_rate, key, generation)
    w.parents, n = pointer(&w, parents, False, "parents"), parents.shape[0]
    if w.n % 2:
        raise ArrayError(f"child: expected an even number of rows, got {w.n}")
    if crossover == SBX:
        raise ArrayError("parents: bits have no SBX")
    w.mates = <Py_ssize_t*> data_of(mates, cnp.NPY_INTP, w.n, False, "mates")
    for i in range(w.n):
        if w.mates[i] < 0 or w.mates[i] >= n:
            raise ArrayError(f"mates: expected rows 0..{n - 1}, got {w.mates[i]} at {i}")
    w.how.crossover, w.how.rate, w.how.gene_limit = crossover, rate, limit_of(gene_rate)
    gene_rate = gene_rate if gene_rate > 0 else 0  # also NaN
    w.rate = <uint32_t> (min(gene_rate, <double> 1) * (1 << DIGITS) + 0.5)
    vary(&w, 2 * GROUP, threads)


def flip(
    cnp.ndarray x not None, Py_ssize_t d, double mutation_rate, uint64_t key,
    uint32_t generation, int threads,
):
    """In place: each of the d genes of a row of x flipped with probability ``mutation_rate``;
    x as ``child`` of breed_bits."""
    cdef Work w
    begin(&w, x, "x", d, mutation_rate, key, generation)
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
    w.step = max(<Py_ssize_t> 1, 4 * WORDS // max(w.words, <Py_ssize_t> 1))
    with nogil:
        run_polled(count_chunk, &w, (w.n + w.step - 1) // w.step, threads)
