"""Sparse times dense: y = W x, W in compressed rows (CSR) or in groups of 4 rows that share their
columns (4x1 blocks).

Group g of the rows owns the entries start[g] .. start[g + 1]; entry p has the column index[p] and
1 or 4 values, one per row. No fused multiply-add, so every level gives the same bits.
"""

from fastopt._kernels.shared cimport numpy as cnp
from libc.stdint cimport int32_t, int64_t

from fastopt._kernels.shared.arguments cimport data_of
from fastopt._kernels.shared.pool cimport run

cnp.import_array()

cdef enum:
    GROUPS = 16  # a thread takes at a time
    PANEL = 64  # columns of x

ctypedef fused real:
    float
    double

cdef extern from "sparse/sparse.h" nogil:
    void fo_sparse1_f(
        float*, const float*, const int32_t*, Py_ssize_t, const float*, Py_ssize_t,
        Py_ssize_t
    ) noexcept
    void fo_sparse4_f(
        float*, const float*, const int32_t*, Py_ssize_t, const float*, Py_ssize_t,
        Py_ssize_t
    ) noexcept
    void fo_sparse1_d(
        double*, const double*, const int32_t*, Py_ssize_t, const double*, Py_ssize_t,
        Py_ssize_t
    ) noexcept
    void fo_sparse4_d(
        double*, const double*, const int32_t*, Py_ssize_t, const double*, Py_ssize_t,
        Py_ssize_t
    ) noexcept


cdef void _group(
    real* y, const real* value, const int32_t* index, Py_ssize_t count, const real* x,
    Py_ssize_t n, Py_ssize_t stride, int rows,
) noexcept nogil:
    if real is float:
        if rows == 1:
            fo_sparse1_f(y, value, index, count, x, n, stride)
        else:
            fo_sparse4_f(y, value, index, count, x, n, stride)
    else:
        if rows == 1:
            fo_sparse1_d(y, value, index, count, x, n, stride)
        else:
            fo_sparse4_d(y, value, index, count, x, n, stride)


cdef struct Work:
    bint single
    void* y
    const void* value
    const int32_t* index
    const int64_t* start
    const void* x
    Py_ssize_t groups, n
    int rows


cdef void some_groups(void* context, Py_ssize_t k, int worker) noexcept nogil:
    """GROUPS groups of rows, panel by panel of x, which stays in the L2 cache meanwhile."""
    cdef Work* w = <Work*> context
    cdef Py_ssize_t g, at, count, c = 0, n, to
    while c < w.n:
        n = min(<Py_ssize_t> PANEL, w.n - c)
        for g in range(k * GROUPS, min(w.groups, (k + 1) * GROUPS)):
            at, count, to = w.start[g], w.start[g + 1] - w.start[g], g * w.rows * w.n + c
            if w.single:
                _group(<float*> w.y + to, <const float*> w.value + at * w.rows, w.index + at,
                       count, <const float*> w.x + c, n, w.n, w.rows)
            else:
                _group(<double*> w.y + to, <const double*> w.value + at * w.rows, w.index + at,
                       count, <const double*> w.x + c, n, w.n, w.rows)
        c += n


def product(
    cnp.ndarray y not None, cnp.ndarray value not None, cnp.ndarray index not None,
    cnp.ndarray start not None, cnp.ndarray x not None, Py_ssize_t n, int rows, int threads,
):
    """y (groups * rows, n) = W x (columns, n); rows is 1 or 4. The caller vouches for index."""
    cdef Py_ssize_t groups = cnp.PyArray_SIZE(start) - 1, count = cnp.PyArray_SIZE(index)
    cdef int kind = cnp.PyArray_TYPE(x)
    cdef Work w
    if rows != 1 and rows != 4:
        from fastopt.errors import OptionError
        raise OptionError(f"rows: expected 1 or 4, got {rows}")
    if kind != cnp.NPY_FLOAT64:
        kind = cnp.NPY_FLOAT32
    w.single, w.groups, w.n, w.rows = kind == cnp.NPY_FLOAT32, groups, n, rows
    w.y = data_of(y, kind, groups * rows * n, True, "y")
    w.value = data_of(value, kind, count * rows, False, "value")
    w.x = data_of(x, kind, -1, False, "x")
    w.index = <const int32_t*> data_of(index, cnp.NPY_INT32, -1, False, "index")
    w.start = <const int64_t*> data_of(start, cnp.NPY_INT64, -1, False, "start")
    with nogil:
        run(some_groups, &w, (groups + GROUPS - 1) // GROUPS, threads)
