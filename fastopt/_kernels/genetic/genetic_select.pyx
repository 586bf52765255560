"""Tournament selection and uniform draws, each a function of (key, row, generation) only.

Tournament (Goldberg & Deb, FOGA 1991): of ``size`` rows drawn with replacement the one of lowest
fitness wins; the first drawn wins a tie and NaN loses to every number. Row i (0 best) of n rows
without ties wins with probability ((n - i)^size - (n - i - 1)^size) / n^size.
Words are Philox4x32-10 (words.pxd); row draws are 53-bit uniforms in [0, 1).
"""

from libc.stdint cimport int32_t, uint32_t, uint64_t

from fastopt._kernels.genetic.words cimport FILL, SELECT, scaled, tile
from fastopt._kernels.shared cimport numpy as cnp
from fastopt._kernels.shared.arguments cimport data_of
from fastopt._kernels.shared.philox cimport GROUP, TILE
from fastopt._kernels.shared.pool cimport run

from fastopt.errors import ArrayError, OptionError

cnp.import_array()

cdef enum:
    GROUPS = 64  # of tournaments that a thread takes at a time

cdef struct Tournaments:
    Py_ssize_t* winners
    const double* fitness
    Py_ssize_t m, n, size
    uint64_t key
    uint32_t generation

cdef struct Draws:
    double* x
    Py_ssize_t n, d, first_row, rows  # that a thread takes at a time
    uint64_t key
    uint32_t generation


cdef void select_group(const Tournaments* t, Py_ssize_t base) noexcept nogil:
    """Tournaments base .. base + GROUP - 1."""
    cdef uint32_t[TILE] words
    cdef Py_ssize_t* winners = t.winners + base
    cdef Py_ssize_t lane, k, c, draw = 0
    while draw < t.size:
        tile(words, t.key, <uint32_t> base, <uint32_t> (draw // 4), SELECT, t.generation)
        for lane in range(min(<Py_ssize_t> GROUP, t.m - base)):
            for k in range(min(<Py_ssize_t> 4, t.size - draw)):
                c = scaled(words[k * GROUP + lane], t.n)
                if draw + k == 0 or t.fitness[c] < t.fitness[winners[lane]] or (
                    t.fitness[winners[lane]] != t.fitness[winners[lane]]
                    and t.fitness[c] == t.fitness[c]
                ):
                    winners[lane] = c
        draw += 4


cdef void select_chunk(void* context, Py_ssize_t k, int worker) noexcept nogil:
    cdef Tournaments* t = <Tournaments*> context
    cdef Py_ssize_t i
    for i in range(k * GROUPS, min((t.m + GROUP - 1) // GROUP, (k + 1) * GROUPS)):
        select_group(t, i * GROUP)


cdef void fill_row(double* x, Draws* w, uint32_t row) noexcept nogil:
    cdef uint32_t[TILE] words
    cdef Py_ssize_t start = 0, j, n
    while start < w.d:
        n = min(<Py_ssize_t> TILE // 2, w.d - start)
        tile(words, w.key, <uint32_t> (start // 2), row, FILL, w.generation)
        for j in range(n):
            x[start + j] = (
                <double> (<int32_t> (words[j] >> 6)) * 134217728.0
                + <double> (<int32_t> (words[TILE // 2 + j] >> 5))
            ) * (1.0 / 9007199254740992.0)
        start += n


cdef void fill_chunk(void* context, Py_ssize_t k, int worker) noexcept nogil:
    cdef Draws* w = <Draws*> context
    cdef Py_ssize_t i
    for i in range(k * w.rows, min(w.n, (k + 1) * w.rows)):
        fill_row(w.x + i * w.d, w, <uint32_t> (w.first_row + i))


# --- doors

def tournament(
    cnp.ndarray winners not None, cnp.ndarray fitness not None, Py_ssize_t size, uint64_t key,
    uint32_t generation, int threads,
):
    """winners[i] = the row that wins tournament i; ``fitness`` (n,) float64, lower is better."""
    cdef Tournaments t
    t.m, t.n, t.size = cnp.PyArray_SIZE(winners), cnp.PyArray_SIZE(fitness), size
    t.key, t.generation = key, generation
    t.winners = <Py_ssize_t*> data_of(winners, cnp.NPY_INTP, t.m, True, "winners")
    t.fitness = <double*> data_of(fitness, cnp.NPY_FLOAT64, t.n, False, "fitness")
    if size < 1:
        raise OptionError(f"size: expected at least 1, got {size}")
    if t.m > 0 and not 0 < t.n <= 4294967296:
        raise ArrayError(f"fitness: expected 1..2**32 rows, got {t.n}")
    with nogil:
        run(select_chunk, &t, (t.m + GROUPS * GROUP - 1) // (GROUPS * GROUP), threads)


def uniform(cnp.ndarray x not None, Py_ssize_t first_row, uint64_t key, uint32_t generation,
            int threads):
    """x (n, d) float64 = uniforms in [0, 1); row i is a function of (key, first_row + i)."""
    cdef Draws w
    if x.ndim != 2:
        raise ArrayError(f"x: expected a matrix, got {x.ndim} dimensions")
    w.x = <double*> data_of(x, cnp.NPY_FLOAT64, -1, True, "x")
    w.n, w.d, w.first_row = x.shape[0], x.shape[1], first_row
    w.key, w.generation = key, generation
    w.rows = max(<Py_ssize_t> 1, 16384 // max(w.d, <Py_ssize_t> 1))
    with nogil:
        run(fill_chunk, &w, (w.n + w.rows - 1) // w.rows, threads)
