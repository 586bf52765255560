"""A generation on bit strings held one per byte (uint8, 0 or 1): exchange and bit flip.

The words and their meaning are those of ``genetic.pyx``: uniform, one-point and two-point
exchange of a pair's genes; each bit of a child flipped with probability ``mutation_rate``, by
geometric skips, so that a child costs about d mutation_rate draws.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from fastopt._kernels.genetic.crossover cimport cross
from fastopt._kernels.genetic.mutation cimport flip_row
from fastopt._kernels.genetic.words cimport PAIR, SBX, Variation, limit_of, skip_of, tile
from fastopt._kernels.shared cimport numpy as cnp
from fastopt._kernels.shared.arguments cimport data_of
from fastopt._kernels.shared.philox cimport GROUP, TILE
from fastopt._kernels.shared.pool cimport run_polled

from fastopt.errors import ArrayError

cnp.import_array()

cdef enum:
    CHUNK = 1 << 16  # bits a thread takes at a time

cdef struct Work:  # one call
    Variation how
    uint8_t* child  # or what is flipped in place
    const uint8_t* parents  # NULL: no crossover
    const Py_ssize_t* mates
    Py_ssize_t n, d
    Py_ssize_t groups, step  # of GROUP pairs, or GROUP rows; that a thread takes at a time


cdef void vary_chunk(void* context, Py_ssize_t k, int worker) noexcept nogil:
    cdef Work* w = <Work*> context
    cdef uint32_t[TILE] words
    cdef Py_ssize_t group, lane, pair, row, first, rows, d = w.d
    for group in range(k * w.step, min(w.groups, (k + 1) * w.step)):
        first, rows = group * GROUP, min(<Py_ssize_t> GROUP, w.n - group * GROUP)
        if w.parents != NULL:
            tile(words, w.how.key, <uint32_t> first, 0, PAIR, w.how.generation)
            rows = 2 * min(<Py_ssize_t> GROUP, w.n // 2 - first)
            for lane in range(rows // 2):
                pair = first + lane
                cross(
                    w.child + 2 * pair * d, w.child + (2 * pair + 1) * d,
                    w.parents + w.mates[2 * pair] * d, w.parents + w.mates[2 * pair + 1] * d,
                    <const uint8_t*> NULL, <const uint8_t*> NULL, d, pair, &words[lane], &w.how,
                )
            first = 2 * first
        if w.how.mutation_rate > 0:
            for row in range(first, first + rows):
                flip_row(w.child + row * d, d, row, &w.how)


cdef int vary(Work* w, Py_ssize_t rows, int threads) except -1:
    """In groups of so many rows; a thread takes about CHUNK bits at a time."""
    w.groups = (w.n + rows - 1) // rows
    w.step = max(<Py_ssize_t> 1, CHUNK // (rows * max(w.d, <Py_ssize_t> 1)))
    with nogil:
        run_polled(vary_chunk, w, (w.groups + w.step - 1) // w.step, threads)
    return 0


# --- doors

def breed_bits(
    cnp.ndarray child not None, cnp.ndarray parents not None, cnp.ndarray mates not None,
    int crossover, double rate, double gene_rate, double mutation_rate, uint64_t key,
    uint32_t generation, int threads,
):
    """Children 2 p and 2 p + 1 from parents mates[2 p] and mates[2 p + 1]; matrices of uint8."""
    cdef Work w
    cdef Py_ssize_t i, n
    memset(&w, 0, sizeof(w))
    if child.ndim != 2 or child.shape[0] % 2:
        raise ArrayError(f"child: expected an even number of rows, got {(<object> child).shape}")
    w.n, w.d = child.shape[0], child.shape[1]
    if parents.ndim != 2 or parents.shape[1] != w.d:
        raise ArrayError(f"parents: expected shape (any, {w.d}), got {(<object> parents).shape}")
    if crossover == SBX:
        raise ArrayError("parents: bits have no SBX")
    n = parents.shape[0]
    w.child = <uint8_t*> data_of(child, cnp.NPY_UINT8, -1, True, "child")
    w.parents = <uint8_t*> data_of(parents, cnp.NPY_UINT8, -1, False, "parents")
    w.mates = <Py_ssize_t*> data_of(mates, cnp.NPY_INTP, w.n, False, "mates")
    for i in range(w.n):
        if w.mates[i] < 0 or w.mates[i] >= n:
            raise ArrayError(f"mates: expected rows 0..{n - 1}, got {w.mates[i]} at {i}")
    w.how.key, w.how.generation, w.how.crossover = key, generation, crossover
    w.how.rate, w.how.gene_limit = rate, limit_of(gene_rate)
    w.how.mutation_rate, w.how.skip = mutation_rate, skip_of(mutation_rate)
    vary(&w, 2 * GROUP, threads)


def flip(cnp.ndarray x not None, double mutation_rate, uint64_t key, uint32_t generation,
         int threads):
    """In place: each bit of the uint8 matrix flipped with probability ``mutation_rate``."""
    cdef Work w
    memset(&w, 0, sizeof(w))
    if x.ndim != 2:
        raise ArrayError(f"x: expected a matrix, got {x.ndim} dimensions")
    w.child = <uint8_t*> data_of(x, cnp.NPY_UINT8, -1, True, "x")
    w.n, w.d = x.shape[0], x.shape[1]
    w.how.key, w.how.generation = key, generation
    w.how.mutation_rate, w.how.skip = mutation_rate, skip_of(mutation_rate)
    if mutation_rate > 0:
        vary(&w, GROUP, threads)
