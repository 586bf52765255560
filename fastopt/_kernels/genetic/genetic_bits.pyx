"""A generation on bit strings held one a byte (uint8, 0 or 1): exchange and bit flip.

The words and their meaning are those of ``genetic.pyx``: uniform, one-point and two-point
exchange of a pair's genes; each bit of a child flipped with probability ``mutation_rate``, by
geometric skips, so that a child costs about d mutation_rate draws.
"""

from fastopt._kernels.shared cimport numpy as cnp
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastopt._kernels.shared.arguments cimport data_of
from fastopt._kernels.shared.pool cimport run_polled
from fastopt._kernels.genetic.words cimport (
    COPY, GROUP, S_PAIR, S_SKIP, TILE, UNIFORM, Plan, cuts, exchange_segment,
    exchange_uniform, fo_log2, fo_tile, plan_of, unit_32,
)
from fastopt._kernels.shared.philox cimport philox, u32x4

from fastopt.errors import ArrayError

cnp.import_array()


cdef void flip_row(uint8_t* x, Py_ssize_t d, Py_ssize_t row, const Plan* plan) noexcept nogil:
    cdef u32x4 draw
    cdef Py_ssize_t j = -1
    cdef double gap
    cdef uint64_t count = 0
    while True:  # gaps between flipped bits are geometric; one block holds four of them
        if count % 4 == 0:
            draw = philox(plan.key, <uint64_t> row | (count // 4) << 32, S_SKIP, plan.step)
        gap = fo_log2(unit_32(draw.w[count % 4])) * plan.skip
        if not gap < <double> (d - j - 1):
            return
        j += 1 + <Py_ssize_t> gap
        x[j] ^= 1
        count += 1


cdef void breed_group(
    uint8_t* child, const uint8_t* parents, const Py_ssize_t* mates, Py_ssize_t pairs,
    Py_ssize_t d, Py_ssize_t group, const Plan* plan,
) noexcept nogil:
    cdef uint32_t words[TILE]
    cdef Py_ssize_t pair, lane, first = 0, last = 0
    cdef uint8_t *ca
    cdef uint8_t *cb
    cdef const uint8_t *pa
    cdef const uint8_t *pb
    fo_tile(words, plan.key, <uint32_t> (group * GROUP), 0, S_PAIR, plan.step)
    for lane in range(min(GROUP, pairs - group * GROUP)):
        pair = group * GROUP + lane
        ca = child + 2 * pair * d
        cb = ca + d
        pa = parents + mates[2 * pair] * d
        pb = parents + mates[2 * pair + 1] * d
        if plan.crossover == COPY or d == 0 or unit_32(words[lane]) >= plan.rate:
            exchange_segment(ca, cb, pa, pb, d, 0, 0)
        elif plan.crossover == UNIFORM:
            exchange_uniform(ca, cb, pa, pb, d, pair, plan)
        else:
            cuts(&first, &last, words + lane, d, plan)
            exchange_segment(ca, cb, pa, pb, d, first, last)
        if plan.mutation_rate > 0:
            flip_row(ca, d, 2 * pair, plan)
            flip_row(cb, d, 2 * pair + 1, plan)


# --- doors

cdef struct Breeding:
    uint8_t* child
    const uint8_t* parents
    const Py_ssize_t* mates
    Py_ssize_t n, d  # pairs, or rows to flip
    const Plan* plan


cdef void breed_some(void* context, Py_ssize_t group, int worker) noexcept nogil:
    cdef Breeding* b = <Breeding*> context
    breed_group(b.child, b.parents, b.mates, b.n, b.d, group, b.plan)


cdef void flip_some(void* context, Py_ssize_t group, int worker) noexcept nogil:
    cdef Breeding* b = <Breeding*> context
    cdef Py_ssize_t i
    for i in range(group * GROUP, min(b.n, (group + 1) * GROUP)):
        flip_row(b.child + i * b.d, b.d, i, b.plan)


def breed_bits(
    cnp.ndarray child not None, cnp.ndarray parents not None, cnp.ndarray mates not None,
    int crossover, double rate, double gene_rate, double mutation_rate, uint64_t key,
    uint32_t generation, int threads,
):
    """Children 2 p and 2 p + 1 from parents mates[2 p] and mates[2 p + 1]; matrices of uint8."""
    if child.ndim != 2 or child.shape[0] % 2:
        raise ArrayError(f"child: expected an even number of rows, got {(<object> child).shape}")
    cdef Py_ssize_t m = child.shape[0], d = child.shape[1], pairs = m // 2, n
    if parents.ndim != 2 or parents.shape[1] != d:
        raise ArrayError(f"parents: expected shape (any, {d}), got {(<object> parents).shape}")
    n = parents.shape[0]
    cdef uint8_t* c = <uint8_t*> data_of(child, cnp.NPY_UINT8, -1, True, "child")
    cdef uint8_t* p = <uint8_t*> data_of(parents, cnp.NPY_UINT8, -1, False, "parents")
    cdef Py_ssize_t* w = <Py_ssize_t*> data_of(mates, cnp.NPY_INTP, m, False, "mates")
    cdef Py_ssize_t i, groups = (pairs + GROUP - 1) // GROUP
    for i in range(m):
        if w[i] < 0 or w[i] >= n:
            raise ArrayError(f"mates: expected rows 0..{n - 1}, got {w[i]} at {i}")
    cdef Plan plan = plan_of(crossover, rate, gene_rate, 0, 0, mutation_rate, 0, key, generation)
    cdef Breeding b = Breeding(c, p, w, pairs, d, &plan)
    with nogil:
        run_polled(breed_some, &b, groups, threads)


def flip(cnp.ndarray x not None, double mutation_rate, uint64_t key, uint32_t generation,
         int threads):
    """In place: each bit of the uint8 matrix flipped with probability ``mutation_rate``."""
    if x.ndim != 2:
        raise ArrayError(f"x: expected a matrix, got {x.ndim} dimensions")
    cdef uint8_t* data = <uint8_t*> data_of(x, cnp.NPY_UINT8, -1, True, "x")
    cdef Py_ssize_t n = x.shape[0], d = x.shape[1]
    cdef Plan plan = plan_of(COPY, 0, 0, 0, 0, mutation_rate, 0, key, generation)
    cdef Breeding b = Breeding(data, NULL, NULL, n, d, &plan)
    if mutation_rate > 0:
        with nogil:
            run_polled(flip_some, &b, (n + GROUP - 1) // GROUP, threads)
