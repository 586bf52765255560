"""Adafactor's second moment of a matrix (of each one of a stack), kept as row and column means.

    R <- R + w (mean_j g_ij^2 - R),  C <- C + w (mean_i g_ij^2 - C),
    v_ij = R_i C_j / max(mean R, eps1)

A pass over the gradient cuts it into tiles and sums the squares of each along both ways; then,
matrix by matrix, the tiles' sums are added in order, R and C move, and the factors of
1 / sqrt(v_ij) = left_i right_j are computed, so that the steps over elements have no root or
division. Shazeer and Stern, ICML 2018, algorithm 4, as in torch.optim.Adafactor.
"""

from cpython.mem cimport PyMem_Calloc
from libc.math cimport pow, sqrt
from libc.string cimport memset

from fastopt._kernels.shared cimport numpy as cnp
from fastopt._kernels.shared.pool cimport run as run_chunks
from fastopt._kernels.update.arrays cimport *
from fastopt._kernels.update.entry cimport ADAFACTOR_NORMS, Options, Rule, root
from fastopt._kernels.update.narrow cimport widen
from fastopt._kernels.update.steps cimport after, gradient
from fastopt._kernels.update.sums cimport add_squares, sum_of_squares

cdef enum:
    TALL = 64  # rows of a tile
    BROAD = 2048  # columns of a tile: its sums stay in L1
    RUN = 8  # rows whose squares are added in the gradient's precision before they go to double
    ELEMENTS = 1 << 14  # that a thread takes at a time, about

cdef struct Factoring:
    Work* work
    Py_ssize_t lo, hi, size  # of them, and how many a chunk has
    bint tiles  # or matrices


cdef inline int bind_matrices(Matrices* f, cnp.ndarray a) except -1:
    """The view of an array as a stack of matrices: their tiles, room for their sums."""
    cdef int d = cnp.PyArray_NDIM(a)
    cdef Py_ssize_t k, rows, cols
    f.count = 1
    for k in range(d - 2):
        f.count *= cnp.PyArray_DIMS(a)[k]
    f.rows, f.cols = cnp.PyArray_DIMS(a)[d - 2], cnp.PyArray_DIMS(a)[d - 1]
    if cnp.PyArray_SIZE(a) == 0:
        return 0
    f.blocks, f.strips = (f.rows + TALL - 1) // TALL, (f.cols + BROAD - 1) // BROAD
    rows, cols = f.count * f.rows, f.count * f.cols
    f.row_sums = <double*> PyMem_Calloc(
        rows * (f.strips + 1) + cols * (f.blocks + 1), sizeof(double)
    )
    if f.row_sums == NULL:
        raise MemoryError
    f.col_sums = f.row_sums + rows * f.strips
    f.left = <char*> (f.col_sums + cols * f.blocks)
    f.right = f.left + rows * sizeof(double)
    return 0


cdef inline double eps1_of(const Array* r, const Scalars64* s) noexcept nogil:
    """Adafactor's eps1, by default the machine epsilon of the parameter."""
    return s.eps1 if s.eps1 >= 0 else (2.0**-52 if r.item == 8 else 2.0**-23)


cdef inline void tile_sums(const Array* r, const real* p, Py_ssize_t tile) noexcept nogil:
    """Row and column sums of tile number ``tile`` of this stack; ``p`` only says the precision."""
    cdef real columns[BROAD]
    cdef real room[BROAD]
    cdef const Matrices* f = r.matrices
    cdef Py_ssize_t strip = tile % f.strips, block = tile // f.strips % f.blocks
    cdef Py_ssize_t matrix = tile // (f.strips * f.blocks)
    cdef Py_ssize_t i, j, lo = strip * BROAD, n = min(BROAD, f.cols - lo)
    cdef Py_ssize_t top = block * TALL, m = min(TALL, f.rows - top)
    cdef double* rows = f.row_sums + (matrix * f.strips + strip) * f.rows + top
    cdef double* cols = f.col_sums + (matrix * f.blocks + block) * f.cols + lo
    cdef Py_ssize_t at = (matrix * f.rows + top) * f.cols + lo
    cdef real scale = <real> r.scalars.scale
    cdef const real* g
    memset(cols, 0, n * sizeof(double))
    for i in range(m):
        if i % RUN == 0:
            memset(columns, 0, n * sizeof(real))
        g = gradient(r, room, at + i * f.cols, n)
        if real is float:
            rows[i] = add_squares(<f32> columns, <f32> g, n, scale)
        else:
            rows[i] = add_squares(<f64> columns, <f64> g, n, scale)
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


cdef inline void factors_of(const Array* r, const real* p, Py_ssize_t matrix) noexcept nogil:
    """R, C and the factors of one matrix of the stack; ``p`` only says the precision."""
    cdef const Matrices* f = r.matrices
    cdef real* row_var = <real*> r.state[0] + matrix * f.rows
    cdef real* col_var = <real*> r.state[1] + matrix * f.cols
    cdef real* left = <real*> f.left + matrix * f.rows
    cdef real* right = <real*> f.right + matrix * f.cols
    cdef double* rows = f.row_sums + matrix * f.strips * f.rows
    cdef double* cols = f.col_sums + matrix * f.blocks * f.cols
    cdef double take = r.scalars.take2
    cdef double mean = moved(row_var, rows, f.strips, f.rows, f.cols, take) / f.rows
    cdef double low = eps1_of(r, r.scalars)
    cdef Py_ssize_t k
    if mean < low:
        mean = low
    for k in range(f.rows):
        left[k] = root(<real> mean / row_var[k])
    moved(col_var, cols, f.blocks, f.cols, f.rows, take)
    for k in range(f.cols):
        right[k] = 1 / root(col_var[k])


cdef inline void inverse_roots(
    real* out, const Matrices* f, Py_ssize_t at, Py_ssize_t n, double most
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


cdef inline void adafactor_norms(
    const real* p, const real* g, const real* v, const real* inverse, Py_ssize_t n,
    const Scalars64* s, double least, double* sums,
) noexcept nogil:
    """Of at most UNIT elements: sum p^2 and sum u^2 of u = g / sqrt(v); a vector's v moves first
    (in registers), a matrix has ``inverse`` = 1 / sqrt(v)."""
    cdef real scale = <real> s.scale, take = <real> s.take2, low = <real> (least * least)
    cdef real gi, vi
    cdef real u[UNIT]
    cdef Py_ssize_t i
    for i in range(n):
        gi = scale * g[i]
        if inverse != NULL:
            u[i] = inverse[i] * gi
        else:
            vi = v[i] + take * (gi * gi - v[i])
            u[i] = gi / root(low if vi < low else vi)
    sums[0] = sum_of_squares(p, n)
    sums[1] = sum_of_squares(<const real*> u, n)


cdef inline void adafactor(
    real* p, const real* g, real* v, const real* inverse, Py_ssize_t n, const Scalars64* s,
    double least, double trust,
) noexcept nogil:
    cdef real scale = <real> s.scale, take = <real> s.take2, low = <real> (least * least)
    cdef real left = <real> s.left, step = <real> trust, gi, vi
    cdef Py_ssize_t i
    for i in range(n):
        gi = scale * g[i]
        if inverse != NULL:
            gi = inverse[i] * gi
        else:
            vi = v[i] + take * (gi * gi - v[i])
            v[i] = vi
            gi = gi / root(low if vi < low else vi)
        p[i] = left * p[i] - step * gi


cdef inline void ask_ahead(const void* p, Py_ssize_t bytes) noexcept nogil:
    """Between passes over a unit in L1 no stream is running."""
    cdef Py_ssize_t i = 0
    while i < bytes:
        prefetch(<const char*> p + AHEAD + i)
        i += 64


cdef inline void adafactor_pass(
    const Array* r, real* p, Py_ssize_t at, Py_ssize_t n, const Scalars64* s, const Work* w,
    bint norms,
) noexcept nogil:
    """Elements at..at+n, unit by unit: the norms into the sums, or the step."""
    cdef real inverse[UNIT]
    cdef real room[UNIT]
    cdef real* known = NULL if r.matrices == NULL else inverse
    cdef const real* g
    cdef double least = eps1_of(r, s)
    cdef Py_ssize_t end = at + n, m
    while at < end:
        m = min(UNIT, end - at)
        ask_ahead(p + at, m * sizeof(real))
        ask_ahead(<const real*> r.g + at, m * sizeof(real))
        g = gradient(r, room, at, m)
        if known != NULL:
            inverse_roots(known, r.matrices, at, m, 1.0 / least)
        if norms:
            adafactor_norms(
                <const real*> p + at, g, <const real*> r.state[0] + at, <const real*> known, m, s,
                least, w.sums + 2 * (r.unit + at // UNIT),
            )
        else:
            adafactor(
                p + at, g, <real*> r.state[0] + at, <const real*> known, m, s, least, r.trust
            )
            after(r, p + at, at, m, w)
        at += m


cdef inline void factor(const Work* w, Py_ssize_t k, bint tiles) noexcept nogil:
    """The sums of tile (or the factors of matrix) number k of the plan."""
    cdef Py_ssize_t low = 0, above = w.n_arrays, middle
    cdef const Matrices* f
    cdef const Array* r
    while above - low > 1:  # the last array that begins at it or before
        middle = (low + above) // 2
        f = w.matrices + middle
        if (f.first_tile if tiles else f.first_matrix) <= k:
            low = middle
        else:
            above = middle
    f, r = w.matrices + low, w.arrays + low
    if r.g == NULL:
        return
    if tiles and r.item == 8:
        tile_sums(r, <const double*> r.p, k - f.first_tile)
    elif tiles:
        tile_sums(r, <const float*> r.p, k - f.first_tile)
    elif r.item == 8:
        factors_of(r, <const double*> r.p, k - f.first_matrix)
    else:
        factors_of(r, <const float*> r.p, k - f.first_matrix)


cdef inline void factor_chunk(void* context, Py_ssize_t index, int worker) noexcept nogil:
    cdef const Factoring* a = <const Factoring*> context
    cdef Py_ssize_t k = a.lo + index * a.size
    while k < min(a.hi, a.lo + (index + 1) * a.size):
        factor(a.work, k, a.tiles)
        k += 1


cdef inline void factor_all(
    Work* w, Py_ssize_t first, Py_ssize_t last, int threads
) noexcept nogil:
    """The factors of every matrix of the arrays first..last of the plan."""
    cdef Factoring a
    cdef Py_ssize_t elements = (w.arrays[last - 1].unit - w.arrays[first].unit + 1) * UNIT
    cdef int tiles
    a.work = w
    for tiles in range(1, -1, -1):
        a.tiles = tiles
        a.lo = w.matrices[first].first_tile if tiles else w.matrices[first].first_matrix
        a.hi = w.matrices[last].first_tile if tiles else w.matrices[last].first_matrix
        a.size = 1 + ELEMENTS * (a.hi - a.lo) // elements
        run_chunks(factor_chunk, &a, (a.hi - a.lo + a.size - 1) // a.size, threads)


cdef inline void adafactor_scalars(Scalars64* s, const Options* o, double t) noexcept nogil:
    """eps1 negative: the machine epsilon of the parameter's dtype."""
    s.take2 = pow(t, o.beta2_decay)
    s.eps1, s.eps2, s.d = o.eps1, o.eps2, o.d
    s.lr = min(o.lr, 1.0 / sqrt(t))


cdef inline Rule adafactor_rule() noexcept:
    return Rule(
        b"adafactor", b"+variance", b"beta2_decay eps1 eps2 d", ADAFACTOR_NORMS,
        adafactor_scalars, NULL, NULL,
    )
