"""Sparse times dense: y = W x, W in compressed rows (CSR) or in groups of 4 rows that share their
columns (4x1 blocks).

Group g of the rows owns the entries start[g] .. start[g + 1]; entry p has the column index[p] and
1 or 4 values, one per row. No fused multiply-add, so every level gives the same bits.
"""

from fastopt._kernels.shared cimport numpy as cnp
from libc.stdint cimport int32_t, int64_t

from fastopt._kernels.shared.arguments cimport data_of
from fastopt._kernels.shared.pool cimport run
from fastopt._kernels.shared.vector cimport BYTES, doubles, floats, vector, zero

cnp.import_array()

cdef enum:
    GROUPS = 16  # a thread takes at a time
    PANEL = 64  # columns of x

ctypedef fused real:
    float
    double


cdef inline void one_row(
    real* y, const real* value, const int32_t* index, Py_ssize_t count, const real* x,
    Py_ssize_t n, Py_ssize_t stride, vector* kind,
) noexcept nogil:
    """n columns of a row. ``kind`` is NULL: it says which vector goes with ``real``."""
    cdef Py_ssize_t c = 0, p, lanes = BYTES // sizeof(real)
    cdef vector a0, a1, a2, a3
    cdef const vector* at
    cdef vector* to
    cdef real a
    if (real is float and vector is floats) or (real is double and vector is doubles):
        while c + 4 * lanes <= n:
            zero(&a0)
            zero(&a1)
            zero(&a2)
            zero(&a3)
            for p in range(count):
                at = <const vector*> (x + index[p] * stride + c)
                a0 += value[p] * at[0]
                a1 += value[p] * at[1]
                a2 += value[p] * at[2]
                a3 += value[p] * at[3]
            to = <vector*> (y + c)
            to[0] = a0
            to[1] = a1
            to[2] = a2
            to[3] = a3
            c += 4 * lanes
        while c + lanes <= n:
            zero(&a0)
            for p in range(count):
                a0 += value[p] * (<const vector*> (x + index[p] * stride + c))[0]
            (<vector*> (y + c))[0] = a0
            c += lanes
        for c in range(c, n):
            a = 0
            for p in range(count):
                a += value[p] * x[index[p] * stride + c]
            y[c] = a


cdef inline void four_rows(
    real* y, const real* value, const int32_t* index, Py_ssize_t count, const real* x,
    Py_ssize_t n, Py_ssize_t stride, vector* kind,
) noexcept nogil:
    """n columns of four rows that share their columns: two vectors of each, eight sums."""
    cdef Py_ssize_t c = 0, p, lanes = BYTES // sizeof(real)
    cdef real* y1 = y + stride
    cdef real* y2 = y + 2 * stride
    cdef real* y3 = y + 3 * stride
    cdef const real* v
    cdef vector a0, a1, a2, a3, b0, b1, b2, b3, x0, x1
    cdef real s0, s1, s2, s3, u
    if (real is float and vector is floats) or (real is double and vector is doubles):
        while c + 2 * lanes <= n:
            zero(&a0)
            zero(&a1)
            zero(&a2)
            zero(&a3)
            zero(&b0)
            zero(&b1)
            zero(&b2)
            zero(&b3)
            for p in range(count):
                v = value + 4 * p
                x0 = (<const vector*> (x + index[p] * stride + c))[0]
                x1 = (<const vector*> (x + index[p] * stride + c))[1]
                a0 += v[0] * x0
                a1 += v[1] * x0
                a2 += v[2] * x0
                a3 += v[3] * x0
                b0 += v[0] * x1
                b1 += v[1] * x1
                b2 += v[2] * x1
                b3 += v[3] * x1
            (<vector*> (y + c))[0] = a0
            (<vector*> (y + c))[1] = b0
            (<vector*> (y1 + c))[0] = a1
            (<vector*> (y1 + c))[1] = b1
            (<vector*> (y2 + c))[0] = a2
            (<vector*> (y2 + c))[1] = b2
            (<vector*> (y3 + c))[0] = a3
            (<vector*> (y3 + c))[1] = b3
            c += 2 * lanes
        for c in range(c, n):
            s0 = s1 = s2 = s3 = 0
            for p in range(count):
                u = x[index[p] * stride + c]
                s0 += value[4 * p] * u
                s1 += value[4 * p + 1] * u
                s2 += value[4 * p + 2] * u
                s3 += value[4 * p + 3] * u
            y[c] = s0
            y1[c] = s1
            y2[c] = s2
            y3[c] = s3


cdef void group(
    real* y, const real* value, const int32_t* index, Py_ssize_t count, const real* x,
    Py_ssize_t n, Py_ssize_t stride, int rows,
) noexcept nogil:
    """Every element adds its products in the order of the stored entries, whatever the tile."""
    if real is float:
        if rows == 1:
            one_row(y, value, index, count, x, n, stride, <floats*> NULL)
        else:
            four_rows(y, value, index, count, x, n, stride, <floats*> NULL)
    else:
        if rows == 1:
            one_row(y, value, index, count, x, n, stride, <doubles*> NULL)
        else:
            four_rows(y, value, index, count, x, n, stride, <doubles*> NULL)


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
                group(<float*> w.y + to, <const float*> w.value + at * w.rows, w.index + at,
                      count, <const float*> w.x + c, n, w.n, w.rows)
            else:
                group(<double*> w.y + to, <const double*> w.value + at * w.rows, w.index + at,
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
