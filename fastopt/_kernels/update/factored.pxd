"""Adafactor's second moment of a matrix (of each one of a stack), kept as row and column means.

    R <- R + w (mean_j g_ij^2 - R),  C <- C + w (mean_i g_ij^2 - C),  v_ij = R_i C_j / max(mean R, eps1)

A pass over the gradient cuts it into tiles and sums the squares of each along both ways; then,
matrix by matrix, the tiles' sums are added in order, R and C move, and the factors of
1 / sqrt(v_ij) = left_i right_j are computed, so that the steps over elements have no root or
division. Shazeer and Stern, ICML 2018, algorithm 4, as in torch.optim.Adafactor.
"""

from cython.parallel cimport prange
from libc.stdint cimport uint16_t
from libc.string cimport memset

from fastopt._kernels.update.rules cimport adafactor, adafactor_norms, eps1_of, real, root
from fastopt._kernels.update.tiles cimport after, widen
from fastopt._kernels.update.types cimport *

cdef extern from "update/sums.h" nogil:
    void coming "fo_coming" (const void* p, Py_ssize_t bytes)
    double float_squares "fo_floats_rows" (float* columns, const float* g, Py_ssize_t n, float s)
    double double_squares "fo_wides_rows" (
        double* columns, const double* g, Py_ssize_t n, double s
    )

cdef enum:
    TALL = 64  # rows of a tile
    BROAD = 2048  # columns of a tile: its sums stay in L1
    RUN = 8  # rows whose squares are added in the gradient's precision before they go to double


cdef inline void tile_sums(
    const Factors* f, const Row* r, const real* base, const double* h, Py_ssize_t tile
) noexcept nogil:
    """Row and column sums of tile number ``tile`` of this stack; ``base`` is the gradient's."""
    cdef real columns[BROAD]
    cdef real wide[BROAD]
    cdef Py_ssize_t strip = tile % f.strips, block = tile // f.strips % f.blocks
    cdef Py_ssize_t matrix = tile // (f.strips * f.blocks)
    cdef Py_ssize_t i, j, lo = strip * BROAD, n = min(BROAD, f.cols - lo)
    cdef Py_ssize_t top = block * TALL, m = min(TALL, f.rows - top)
    cdef double* rows = f.row_sums + (matrix * f.strips + strip) * f.rows + top
    cdef double* cols = f.col_sums + (matrix * f.blocks + block) * f.cols + lo
    cdef Py_ssize_t at = (matrix * f.rows + top) * f.cols + lo
    cdef const real* g
    memset(cols, 0, n * sizeof(double))
    for i in range(m):
        if i % RUN == 0:
            memset(columns, 0, n * sizeof(real))
        g = base + at + i * f.cols
        if real is float:
            if r.grad_kind != SAME:
                widen(wide, <const uint16_t*> r.g + at + i * f.cols, n, r.grad_kind)
                g = wide
            rows[i] = float_squares(columns, g, n, <float> h[0])
        else:
            rows[i] = double_squares(columns, g, n, h[0])
        if i % RUN == RUN - 1 or i == m - 1:
            for j in range(n):
                cols[j] = cols[j] + columns[j]


cdef inline double moved(
    real* means, double* sums, Py_ssize_t parts, Py_ssize_t n, Py_ssize_t count, double w
) noexcept nogil:
    """n running means of squares after this step, from ``parts`` times n sums over ``count``
    elements in all; returns their sum."""
    cdef double total = 0.0
    cdef Py_ssize_t i, k
    for i in range(1, parts):
        for k in range(n):
            sums[k] = sums[k] + sums[i * n + k]
    for k in range(n):
        means[k] = <real> (means[k] + w * (sums[k] / count - means[k]))
        total = total + means[k]
    return total


cdef inline void factors_of(
    const Factors* f, const Row* r, const real* p, const double* h, Py_ssize_t matrix
) noexcept nogil:
    """R, C and the factors of one matrix of the stack; ``p`` only says the precision."""
    cdef real* row_var = <real*> r.s[0] + matrix * f.rows
    cdef real* col_var = <real*> r.s[1] + matrix * f.cols
    cdef real* left = <real*> f.left + matrix * f.rows
    cdef real* right = <real*> f.right + matrix * f.cols
    cdef double* rows = f.row_sums + matrix * f.strips * f.rows
    cdef double* cols = f.col_sums + matrix * f.blocks * f.cols
    cdef double mean = moved(row_var, rows, f.strips, f.rows, f.cols, h[3]) / f.rows
    cdef double low = eps1_of(r, h)
    cdef Py_ssize_t k
    if mean < low:
        mean = low
    for k in range(f.rows):
        left[k] = root(<real> mean / row_var[k])
    moved(col_var, cols, f.blocks, f.cols, f.rows, h[3])
    for k in range(f.cols):
        right[k] = 1 / root(col_var[k])


cdef inline void inverse_roots(
    real* out, const Factors* f, Py_ssize_t at, Py_ssize_t n, double most
) noexcept nogil:
    """min(1 / sqrt(v), most) of elements at..at+n of a stack; NaN stays."""
    cdef Py_ssize_t row = at // f.cols, col = at - row * f.cols, matrix = row // f.rows
    cdef Py_ssize_t left_over = (matrix + 1) * f.rows - row, m, k, done = 0
    cdef real top = <real> most, x, a
    cdef const real* right = <const real*> f.right + matrix * f.cols
    while done < n:
        m = min(f.cols - col, n - done)
        a = (<const real*> f.left)[row]
        for k in range(m):
            x = a * right[col + k]
            out[done + k] = top if x > top else x
        done += m
        row += 1
        col = 0
        left_over -= 1
        if left_over == 0:  # the next matrix of the stack
            left_over = f.rows
            right += f.cols


cdef inline void adafactor_pass(
    Row* r, real* p, Py_ssize_t at, Py_ssize_t n, const double* h, double* sums,
    double ema_share, bint zero_grads,
) noexcept nogil:
    """Elements at..at+n, unit by unit: the norms into ``sums`` or, where that is NULL, the step."""
    cdef real inverse[UNIT]
    cdef float grad[UNIT]
    cdef real* known = NULL if r.factors == NULL else inverse
    cdef const real* g
    cdef double least = eps1_of(r, h)
    cdef Py_ssize_t end = at + n, m
    while at < end:
        m = min(UNIT, end - at)
        g = <const real*> r.g + at
        coming(p + at, m * sizeof(real))
        coming(g, m * sizeof(real))
        if real is float:
            if r.grad_kind != SAME:
                widen(grad, <const uint16_t*> r.g + at, m, r.grad_kind)
                g = grad
        if known != NULL:
            inverse_roots(known, r.factors, at, m, 1.0 / least)
        if sums != NULL:
            adafactor_norms(
                <const real*> p + at, g, <const real*> r.s[0] + at, <const real*> known, m, h, least,
                sums + 2 * (r.unit + at // UNIT),
            )
        else:
            adafactor(p + at, g, <real*> r.s[0] + at, <const real*> known, m, h, least)
            after(r, p + at, at, m, ema_share, zero_grads)
        at += m


cdef inline Py_ssize_t factored_row(
    const Factors* f, Py_ssize_t n_rows, Py_ssize_t k, bint tiles
) noexcept nogil:
    """The row that holds tile (or matrix) number k of the plan: the last that begins at it or
    before."""
    cdef Py_ssize_t low = 0, above = n_rows, middle
    while above - low > 1:
        middle = (low + above) // 2
        if (f[middle].tile if tiles else f[middle].matrix) <= k:
            low = middle
        else:
            above = middle
    return low


cdef inline void factor_one(
    const Factors* all_factors, Row* rows, Py_ssize_t n_rows, const double* slots, Py_ssize_t k,
    bint tiles,
) noexcept nogil:
    cdef Py_ssize_t i = factored_row(all_factors, n_rows, k, tiles)
    cdef const Factors* f = all_factors + i
    cdef Row* r = rows + i
    cdef const double* h = slots + r.slot * SCALARS
    if r.g == NULL:
        return
    if tiles and r.wide == 8:
        tile_sums(f, r, <const double*> r.g, h, k - f.tile)
    elif tiles:
        tile_sums(f, r, <const float*> r.g, h, k - f.tile)
    elif r.wide == 8:
        factors_of(f, r, <const double*> r.p, h, k - f.matrix)
    else:
        factors_of(f, r, <const float*> r.p, h, k - f.matrix)


cdef inline void factor_all(
    const Factors* factors, Row* rows, Py_ssize_t n_rows, const double* slots, Py_ssize_t first,
    Py_ssize_t last, int threads,
) noexcept nogil:
    """The factors of every matrix of the rows first..last of the plan."""
    cdef Py_ssize_t k, lo, hi, size = rows[last - 1].unit - rows[first].unit + 1
    cdef bint tiles
    for tiles in range(1, -1, -1):
        lo = factors[first].tile if tiles else factors[first].matrix
        hi = factors[last].tile if tiles else factors[last].matrix
        if threads == 1 or hi - lo < 2:
            for k in range(lo, hi):
                factor_one(factors, rows, n_rows, slots, k, tiles)
        else:
            for k in prange(
                lo, hi, num_threads=threads, schedule="dynamic",
                chunksize=1 + CHUNK * (hi - lo) // size,
            ):
                factor_one(factors, rows, n_rows, slots, k, tiles)
