"""Optimal Brain Surgeon, one weight at a time, for every output of a layer on its own.

For each row w with the same H = S^-1: the weight of least w_i^2 / H_ii leaves, w -= H_:i w_i /
H_ii and H -= H_:i H_i: / H_ii (Hassibi and Stork, 1993; row by row as in Frantar and Alistarh,
"Optimal Brain Compression", 2022). n^3 / 6 multiply-adds per row, float64.
"""

from fastopt._kernels.shared cimport numpy as cnp
from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from fastopt._kernels.shared.arguments cimport data_of
from fastopt._kernels.shared.pool cimport run_polled
from fastopt._kernels.shared.restrict cimport f64

cnp.import_array()


cdef inline void subtract(f64 row, f64 column, double scale, Py_ssize_t n) noexcept nogil:
    """row -= scale * column"""
    cdef Py_ssize_t j
    for j in range(n):
        row[j] -= scale * column[j]


cdef inline void leave(
    double* h, double* w, double* column, int64_t* index, Py_ssize_t i, Py_ssize_t m, Py_ssize_t n,
) noexcept nogil:
    """Weight i of the m that are left leaves; the last one takes its place, so the rest stays
    dense.

    h is lower triangular, of row length n; column (m,) is work space.
    """
    cdef Py_ssize_t j, r, last = m - 1
    cdef double pivot, weight
    for j in range(i + 1):
        column[j] = h[i * n + j]
    for j in range(i + 1, m):
        column[j] = h[j * n + i]
    pivot, weight = column[i], w[i] / column[i]
    for j in range(i):
        h[i * n + j] = h[last * n + j]
    for j in range(i + 1, last):
        h[j * n + i] = h[last * n + j]
    h[i * n + i] = h[last * n + last]
    column[i], w[i], index[i] = column[last], w[last], index[last]
    for r in range(last):
        w[r] -= weight * column[r]
        subtract(h + r * n, column, column[r] / pivot, r + 1)


cdef void eliminate_row(
    int64_t* order, double* loss, double* h, double* w, double* column, int64_t* index,
    Py_ssize_t n,
) noexcept nogil:
    """order, loss (n,): which weight leaves when, and its cost. h and w are overwritten."""
    cdef Py_ssize_t i, best, m
    for i in range(n):
        index[i] = i
    for m in range(n, 0, -1):
        best = 0
        for i in range(1, m):
            if w[i] * w[i] / h[i * n + i] < w[best] * w[best] / h[best * n + best]:
                best = i
        order[n - m] = index[best]
        loss[n - m] = w[best] * w[best] / h[best * n + best]
        leave(h, w, column, index, best, m, n)


cdef struct Work:
    int64_t* order
    double* loss
    const double* hinv
    const double* weight
    Py_ssize_t n, room
    double* scratch  # n^2 + 3 n doubles per worker


cdef void one_row(void* context, Py_ssize_t r, int worker) noexcept nogil:
    """One row with its own copies of H and w."""
    cdef Work* k = <Work*> context
    cdef Py_ssize_t n = k.n
    cdef double* h = k.scratch + worker * k.room
    cdef double* w = h + n * n
    memcpy(h, k.hinv, n * n * sizeof(double))
    memcpy(w, k.weight + r * n, n * sizeof(double))
    eliminate_row(k.order + r * n, k.loss + r * n, h, w, w + n, <int64_t*> (w + 2 * n), n)


def eliminate(
    cnp.ndarray order not None, cnp.ndarray loss not None, cnp.ndarray hinv not None,
    cnp.ndarray weight not None, int threads,
):
    """order[r, t] = the index that leaves row r of weight at step t, loss[r, t] = its cost.

    order (rows, n) int64; loss, weight (rows, n) float64; hinv (n, n) float64, symmetric,
    positive definite.
    """
    cdef Py_ssize_t size = cnp.PyArray_SIZE(weight), n = cnp.PyArray_DIM(hinv, 0)
    cdef Work k
    k.hinv = <double*> data_of(hinv, cnp.NPY_FLOAT64, n * n, False, "hinv")
    k.weight = <double*> data_of(weight, cnp.NPY_FLOAT64, size, False, "weight")
    k.loss = <double*> data_of(loss, cnp.NPY_FLOAT64, size, True, "loss")
    k.order = <int64_t*> data_of(order, cnp.NPY_INT64, size, True, "order")
    k.n, k.room = n, n * n + 3 * n
    threads = max(threads, 1)
    if size == 0 or size % n:
        return
    k.scratch = <double*> malloc(threads * k.room * sizeof(double))
    if k.scratch == NULL:
        raise MemoryError(f"eliminate: no room for {threads} work spaces of {8 * n * n} bytes")
    try:
        with nogil:
            run_polled(one_row, &k, size // n, threads)
    finally:
        free(k.scratch)
