"""Tournament selection and uniform draws, each a function of (key, row, generation) only.

Tournament (Goldberg & Deb, FOGA 1991): of ``size`` rows drawn with replacement the one of lowest
fitness wins; the first drawn wins a tie and NaN loses to every number. Row i (0 best) of n rows
without ties wins with probability ((n - i)^size - (n - i - 1)^size) / n^size.
Words are Philox4x32-10 (``genetic.h``); row draws are 53-bit uniforms in [0, 1).
"""

from fastopt._kernels.shared cimport numpy as cnp
from libc.stdint cimport int32_t, uint32_t, uint64_t

from fastopt._kernels.shared.arguments cimport data_of
from fastopt._kernels.shared.pool cimport run
from fastopt._kernels.genetic.words cimport GROUP, S_FILL, S_SELECT, TILE, fo_tile, scaled

from fastopt.errors import ArrayError, OptionError

cnp.import_array()


cdef void select_group(
    Py_ssize_t* winners, const double* fitness, Py_ssize_t m, Py_ssize_t n, Py_ssize_t size,
    Py_ssize_t group, uint64_t key, uint32_t step,
) noexcept nogil:
    cdef uint32_t words[TILE]
    cdef Py_ssize_t lane, k, c, draw = 0, base = group * GROUP
    for draw in range(0, size, 4):
        fo_tile(words, key, <uint32_t> base, <uint32_t> (draw // 4), S_SELECT, step)
        for lane in range(min(GROUP, m - base)):
            for k in range(min(4, size - draw)):
                c = scaled(words[k * GROUP + lane], n)
                if draw + k == 0 or fitness[c] < fitness[winners[base + lane]] or (
                    fitness[winners[base + lane]] != fitness[winners[base + lane]]
                    and fitness[c] == fitness[c]
                ):
                    winners[base + lane] = c


cdef void fill_row(double* x, Py_ssize_t d, Py_ssize_t row, uint64_t key, uint32_t step) noexcept nogil:
    cdef uint32_t words[TILE]
    cdef Py_ssize_t tile, start, j, m
    for tile in range((d + TILE // 2 - 1) // (TILE // 2)):
        start = tile * (TILE // 2)
        m = min(TILE // 2, d - start)
        fo_tile(words, key, <uint32_t> (start // 2), <uint32_t> row, S_FILL, step)
        for j in range(m):
            x[start + j] = (
                <double> (<int32_t> (words[j] >> 6)) * 134217728.0
                + <double> (<int32_t> (words[TILE // 2 + j] >> 5))
            ) * (1.0 / 9007199254740992.0)


# --- doors

cdef struct Draws:
    Py_ssize_t* winners
    const double* fitness
    double* x
    Py_ssize_t m, n, size, first  # tournaments or columns; rows; of a tournament; first row
    uint64_t key
    uint32_t step


cdef void select_some(void* context, Py_ssize_t group, int worker) noexcept nogil:
    cdef Draws* w = <Draws*> context
    select_group(w.winners, w.fitness, w.m, w.n, w.size, group, w.key, w.step)


cdef void fill_some(void* context, Py_ssize_t group, int worker) noexcept nogil:
    cdef Draws* w = <Draws*> context
    cdef Py_ssize_t i
    for i in range(group * GROUP, min(w.n, (group + 1) * GROUP)):
        fill_row(w.x + i * w.m, w.m, w.first + i, w.key, w.step)


def tournament(
    cnp.ndarray winners not None, cnp.ndarray fitness not None, Py_ssize_t size, uint64_t key,
    uint32_t generation, int threads,
):
    """winners[i] = the row that wins tournament i; ``fitness`` (n,) float64, lower is better."""
    cdef Py_ssize_t m = cnp.PyArray_SIZE(winners), n = cnp.PyArray_SIZE(fitness)
    cdef Py_ssize_t* w = <Py_ssize_t*> data_of(winners, cnp.NPY_INTP, m, True, "winners")
    cdef double* f = <double*> data_of(fitness, cnp.NPY_FLOAT64, n, False, "fitness")
    if size < 1:
        raise OptionError(f"size: expected at least 1, got {size}")
    if m > 0 and not 0 < n <= 4294967296:
        raise ArrayError(f"fitness: expected 1..2**32 rows, got {n}")
    cdef Py_ssize_t groups = (m + GROUP - 1) // GROUP
    cdef Draws d = Draws(w, f, NULL, m, n, size, 0, key, generation)
    with nogil:
        run(select_some, &d, groups, threads)


def uniform(cnp.ndarray x not None, Py_ssize_t first_row, uint64_t key, uint32_t generation,
            int threads):
    """x (n, d) float64 = uniforms in [0, 1); row i is a function of (key, first_row + i)."""
    if x.ndim != 2:
        raise ArrayError(f"x: expected a matrix, got {x.ndim} dimensions")
    cdef double* data = <double*> data_of(x, cnp.NPY_FLOAT64, -1, True, "x")
    cdef Draws w = Draws(
        NULL, NULL, data, x.shape[1], x.shape[0], 0, first_row, key, generation
    )
    with nogil:
        run(fill_some, &w, (w.n + GROUP - 1) // GROUP, threads)
