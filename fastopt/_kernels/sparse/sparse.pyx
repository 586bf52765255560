"""Sparse times dense: y = W x, W in compressed rows (CSR) or in groups of 4 rows that share their
columns (4x1 blocks).

Group g of the rows owns the entries start[g] .. start[g + 1]; entry p has the column index[p] and
1 or 4 values, one a row. No fused multiply-add, so every level gives the same bits.
"""

from fastopt._kernels.shared cimport numpy as cnp
from cython.parallel cimport prange
from libc.stdint cimport int32_t, int64_t

from fastopt._kernels.shared.arguments cimport data_of

cnp.import_array()

ctypedef fused real:
    float
    double

cdef extern from "sparse/sparse.h" nogil:
    void fo_sparse1_f(
        float*, const float*, const int32_t*, Py_ssize_t, const float*, Py_ssize_t
    ) noexcept
    void fo_sparse4_f(
        float*, const float*, const int32_t*, Py_ssize_t, const float*, Py_ssize_t
    ) noexcept
    void fo_sparse1_d(
        double*, const double*, const int32_t*, Py_ssize_t, const double*, Py_ssize_t
    ) noexcept
    void fo_sparse4_d(
        double*, const double*, const int32_t*, Py_ssize_t, const double*, Py_ssize_t
    ) noexcept


cdef void _group(
    real* y, const real* value, const int32_t* index, Py_ssize_t count, const real* x,
    Py_ssize_t n, int rows,
) noexcept nogil:
    if real is float:
        if rows == 1:
            fo_sparse1_f(y, value, index, count, x, n)
        else:
            fo_sparse4_f(y, value, index, count, x, n)
    else:
        if rows == 1:
            fo_sparse1_d(y, value, index, count, x, n)
        else:
            fo_sparse4_d(y, value, index, count, x, n)


cdef void _product_block(
    real* y, const real* value, const int32_t* index, const int64_t* start, const real* x,
    Py_ssize_t groups, Py_ssize_t n, int rows, int threads,
) noexcept nogil:
    cdef Py_ssize_t g
    if threads == 1:
        for g in range(groups):
            _group(
                y + g * rows * n, value + start[g] * rows, index + start[g],
                start[g + 1] - start[g], x, n, rows,
            )
    else:
        for g in prange(groups, num_threads=threads, schedule="dynamic", chunksize=16):
            _group(
                y + g * rows * n, value + start[g] * rows, index + start[g],
                start[g + 1] - start[g], x, n, rows,
            )


def product(
    cnp.ndarray y not None, cnp.ndarray value not None, cnp.ndarray index not None,
    cnp.ndarray start not None, cnp.ndarray x not None, Py_ssize_t n, int rows, int threads,
):
    """y (groups * rows, n) = W x (columns, n); rows is 1 or 4. The caller vouches for index."""
    cdef Py_ssize_t groups = cnp.PyArray_SIZE(start) - 1, count = cnp.PyArray_SIZE(index)
    cdef int64_t* ps = <int64_t*> data_of(start, cnp.NPY_INT64, -1, False, "start")
    cdef int32_t* pi = <int32_t*> data_of(index, cnp.NPY_INT32, -1, False, "index")
    cdef int kind = cnp.PyArray_TYPE(x)
    cdef void* py
    cdef void* pv
    cdef void* px
    if rows != 1 and rows != 4:
        from fastopt.errors import OptionError
        raise OptionError(f"rows: expected 1 or 4, got {rows}")
    if kind != cnp.NPY_FLOAT64:
        kind = cnp.NPY_FLOAT32
    py = data_of(y, kind, groups * rows * n, True, "y")
    pv = data_of(value, kind, count * rows, False, "value")
    px = data_of(x, kind, -1, False, "x")
    with nogil:
        if kind == cnp.NPY_FLOAT32:
            _product_block(
                <float*> py, <const float*> pv, pi, ps, <const float*> px, groups, n, rows,
                threads,
            )
        else:
            _product_block(
                <double*> py, <const double*> pv, pi, ps, <const double*> px, groups, n, rows,
                threads,
            )
