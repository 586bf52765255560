"""A generation on a population matrix of float32 or float64: crossover and mutation in one pass.

The operators are in crossover.pxd and mutation.pxd, the words they read in words.pxd.
"""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from fastopt._kernels.shared.approximate cimport exp2_d
from fastopt._kernels.genetic.crossover cimport cross, real
from fastopt._kernels.genetic.mutation cimport mutate_rows
from fastopt._kernels.genetic.words cimport COPY, PAIR, Variation, limit_of, skip_of, tile
from fastopt._kernels.shared cimport numpy as cnp
from fastopt._kernels.shared.arguments cimport data_of
from fastopt._kernels.shared.philox cimport GROUP, TILE
from fastopt._kernels.shared.pool cimport mark, marked, run_polled

from fastopt.errors import ArrayError, DTypeError

cnp.import_array()

cdef enum:
    CHUNK = 1 << 13  # genes a thread takes at a time, about 20 us

cdef struct Work:  # one call
    Variation how
    bint single  # float32
    void* child  # or what is mutated in place
    const void* parents  # NULL: no crossover
    const Py_ssize_t* mates
    const void* low
    const void* high
    Py_ssize_t n, d
    Py_ssize_t groups, step  # of GROUP pairs, or GROUP rows; that a thread takes at a time
    int outside


# --- groups of 16 pairs, or of 16 rows

cdef void vary_group(
    Work* w, real* child, const real* parents, const real* low, const real* high, Py_ssize_t group
) noexcept nogil:
    cdef uint32_t[TILE] words
    cdef Py_ssize_t d = w.d, pair, lane, pairs, first = group * GROUP
    cdef Py_ssize_t rows = min(<Py_ssize_t> GROUP, w.n - first)
    if parents != NULL:
        pairs = min(<Py_ssize_t> GROUP, w.n // 2 - first)
        tile(words, w.how.key, <uint32_t> first, 0, PAIR, w.how.generation)
        for lane in range(pairs):
            pair = first + lane
            cross(
                child + 2 * pair * d, child + (2 * pair + 1) * d, parents + w.mates[2 * pair] * d,
                parents + w.mates[2 * pair + 1] * d, low, high, d, pair, &words[lane], &w.how,
            )
        first, rows = 2 * first, 2 * pairs
    mutate_rows(child, low, high, first, rows, d, &w.how)


cdef void vary_chunk(void* context, Py_ssize_t k, int worker) noexcept nogil:
    cdef Work* w = <Work*> context
    cdef Py_ssize_t i
    for i in range(k * w.step, min(w.groups, (k + 1) * w.step)):
        if w.single:
            vary_group(w, <float*> w.child, <const float*> w.parents, <const float*> w.low,
                       <const float*> w.high, i)
        else:
            vary_group(w, <double*> w.child, <const double*> w.parents, <const double*> w.low,
                       <const double*> w.high, i)


cdef inline bint beyond(
    const real* x, const real* low, const real* high, Py_ssize_t d, const int rows
) noexcept nogil:
    """Is a gene of one of these rows of d outside its bounds? NaN is not. Several rows share the
    loads of the bounds; ``found`` is as wide as what is compared, so that no lane is narrowed."""
    cdef int64_t found = 0
    cdef int32_t found32 = 0
    cdef Py_ssize_t j
    cdef int r
    for j in range(d):
        for r in range(rows):
            if real is double:
                found |= <int64_t> (x[r * d + j] < low[j]) | <int64_t> (x[r * d + j] > high[j])
            else:
                found32 |= (x[r * d + j] < low[j]) | (x[r * d + j] > high[j])
    return (found | found32) != 0


cdef bint beyond_rows(
    const real* x, const real* low, const real* high, Py_ssize_t d, Py_ssize_t rows
) noexcept nogil:
    cdef Py_ssize_t i = 0
    cdef bint found = False
    while i + 4 <= rows:
        found |= beyond(x + i * d, low, high, d, 4)
        i += 4
    while i < rows:
        found |= beyond(x + i * d, low, high, d, 1)
        i += 1
    return found


cdef void look_chunk(void* context, Py_ssize_t k, int worker) noexcept nogil:
    cdef Work* w = <Work*> context
    cdef Py_ssize_t first = k * w.step, rows = min(w.step, w.n - first)
    cdef bint found
    if w.single:
        found = beyond_rows(<const float*> w.parents + first * w.d, <const float*> w.low,
                            <const float*> w.high, w.d, rows)
    else:
        found = beyond_rows(<const double*> w.parents + first * w.d, <const double*> w.low,
                            <const double*> w.high, w.d, rows)
    if found:
        mark(&w.outside)


# --- doors

cdef int real_matrix(
    Work* w, cnp.ndarray x, cnp.ndarray low, cnp.ndarray high, str name
) except -1:
    """The typenum of ``x`` (float32 or float64) after its shape and bounds are checked."""
    cdef int t = cnp.PyArray_TYPE(x)
    if t != cnp.NPY_FLOAT32 and t != cnp.NPY_FLOAT64:
        raise DTypeError(f"{name}: expected dtype float32 or float64, got {x.dtype}")
    if x.ndim != 2:
        raise ArrayError(f"{name}: expected a matrix, got {x.ndim} dimensions")
    w.single = t == cnp.NPY_FLOAT32
    w.n, w.d = x.shape[0], x.shape[1]
    w.low = data_of(low, t, w.d, False, "low")
    w.high = data_of(high, t, w.d, False, "high")
    return t


cdef Variation variation_of(
    int crossover, double rate, double gene_rate, double eta, int mutation, double mutation_rate,
    double mutation_scale, uint64_t key, uint32_t generation,
):
    cdef Variation how
    how.key, how.generation = key, generation
    how.crossover, how.mutation = crossover, mutation
    how.rate = rate
    how.gene_limit = limit_of(gene_rate)
    how.spare = 23 if 0 < gene_rate < 1 and 256 * gene_rate == <int> (256 * gene_rate) else 0
    how.power = <float> (eta + 1.0)
    how.whole = <int> how.power if 0 < how.power <= 1024 else 0
    if how.whole != how.power:
        how.whole = 0
    how.least = <float> exp2_d(-120.0 / how.power)
    how.mutation_rate = mutation_rate
    how.mutation_limit = limit_of(mutation_rate)
    how.skip = skip_of(mutation_rate)
    how.eta = how.sigma = mutation_scale
    return how


cdef int vary(Work* w, Py_ssize_t rows, int threads) except -1:
    """In groups of so many rows; a thread takes about CHUNK genes at a time."""
    w.groups = (w.n + rows - 1) // rows
    w.step = max(<Py_ssize_t> 1, CHUNK // (rows * max(w.d, <Py_ssize_t> 1)))
    with nogil:
        run_polled(vary_chunk, w, (w.groups + w.step - 1) // w.step, threads)
    return 0


def outside(
    cnp.ndarray x not None, cnp.ndarray low not None, cnp.ndarray high not None, int threads
):
    """Is a gene of the matrix x below low or above high? NaN is not."""
    cdef Work w
    w.parents = data_of(x, real_matrix(&w, x, low, high, "x"), -1, False, "x")
    w.outside = 0
    w.step = max(<Py_ssize_t> 1, 2 * CHUNK // max(w.d, <Py_ssize_t> 1))
    with nogil:
        run_polled(look_chunk, &w, (w.n + w.step - 1) // w.step, threads)
    return bool(marked(&w.outside))


def breed(
    cnp.ndarray child not None, cnp.ndarray parents not None, cnp.ndarray mates not None,
    cnp.ndarray low not None, cnp.ndarray high not None, int crossover, double rate,
    double gene_rate, double eta, int mutation, double mutation_rate, double mutation_scale,
    uint64_t key, uint32_t generation, int threads,
):
    """Children 2 p and 2 p + 1 from parents mates[2 p] and mates[2 p + 1], mutated in cache."""
    cdef Work w
    cdef int t = real_matrix(&w, child, low, high, "child")
    cdef Py_ssize_t i, n
    if w.n % 2:
        raise ArrayError(f"child: expected an even number of rows, got {w.n}")
    if parents.ndim != 2 or parents.shape[1] != w.d:
        raise ArrayError(f"parents: expected shape (any, {w.d}), got {(<object> parents).shape}")
    n = parents.shape[0]
    w.child = data_of(child, t, -1, True, "child")
    w.parents = data_of(parents, t, -1, False, "parents")
    w.mates = <Py_ssize_t*> data_of(mates, cnp.NPY_INTP, w.n, False, "mates")
    for i in range(w.n):
        if w.mates[i] < 0 or w.mates[i] >= n:
            raise ArrayError(f"mates: expected rows 0..{n - 1}, got {w.mates[i]} at {i}")
    w.how = variation_of(crossover, rate, gene_rate, eta, mutation, mutation_rate, mutation_scale,
                         key, generation)
    vary(&w, 2 * GROUP, threads)


def mutate(
    cnp.ndarray x not None, cnp.ndarray low not None, cnp.ndarray high not None, int mutation,
    double mutation_rate, double mutation_scale, uint64_t key, uint32_t generation, int threads,
):
    """In place: each gene with probability ``mutation_rate``, as ``breed`` does to children."""
    cdef Work w
    w.child = data_of(x, real_matrix(&w, x, low, high, "x"), -1, True, "x")
    w.parents = NULL
    w.how = variation_of(COPY, 0, 0, 0, mutation, mutation_rate, mutation_scale, key, generation)
    if mutation_rate > 0:
        vary(&w, GROUP, threads)
