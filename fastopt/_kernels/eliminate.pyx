"""Optimal Brain Surgeon, one weight at a time, for every output of a layer on its own.

For each row w of ``weight`` with the same H = S^-1: the weight of least w_i^2 / H_ii leaves,
w -= H_:i w_i / H_ii and H -= H_:i H_i: / H_ii (Hassibi and Stork, 1993; row by row as in Frantar
and Alistarh, "Optimal Brain Compression", 2022). n^3 / 6 multiply-adds a row, float64.
"""

from fastopt._kernels cimport _numpy as cnp
from cython.parallel cimport prange
from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from fastopt._kernels._args cimport data_of
from fastopt._kernels._openmp cimport thread_index

cnp.import_array()

cdef extern from "eliminate.h" nogil:
    void fo_eliminate(
        int64_t*, double*, double*, double*, double*, int64_t*, Py_ssize_t
    ) noexcept


cdef void _row(
    int64_t* order, double* loss, const double* hinv, const double* weight, Py_ssize_t n,
    double* work,
) noexcept nogil:
    """One row with its own copies of H and w; work holds n^2 + 3 n doubles."""
    memcpy(work, hinv, n * n * sizeof(double))
    memcpy(work + n * n, weight, n * sizeof(double))
    fo_eliminate(
        order, loss, work, work + n * n, work + n * n + n, <int64_t*> (work + n * n + 2 * n), n
    )


cdef bint _rows_block(
    int64_t* order, double* loss, const double* hinv, const double* weight, Py_ssize_t rows,
    Py_ssize_t n, int threads,
) noexcept nogil:
    """False when the work space cannot be had."""
    cdef Py_ssize_t r, room = n * n + 3 * n
    cdef double* work = <double*> malloc(threads * room * sizeof(double))
    if work == NULL:
        return False
    if threads == 1:
        for r in range(rows):
            _row(order + r * n, loss + r * n, hinv, weight + r * n, n, work)
    else:
        for r in prange(rows, num_threads=threads, schedule="dynamic", chunksize=1):
            _row(
                order + r * n, loss + r * n, hinv, weight + r * n, n,
                work + thread_index() * room,
            )
    free(work)
    return True


def eliminate(
    cnp.ndarray order not None, cnp.ndarray loss not None, cnp.ndarray hinv not None,
    cnp.ndarray weight not None, int threads,
):
    """order[r, t] = the index that leaves row r of weight at step t, loss[r, t] = its cost.

    order (rows, n) int64; loss, weight (rows, n) float64; hinv (n, n) float64, symmetric,
    positive definite.
    """
    cdef Py_ssize_t size = cnp.PyArray_SIZE(weight), n = cnp.PyArray_DIM(hinv, 0)
    cdef double* ph = <double*> data_of(hinv, cnp.NPY_FLOAT64, n * n, False, "hinv")
    cdef double* pw = <double*> data_of(weight, cnp.NPY_FLOAT64, size, False, "weight")
    cdef double* pl = <double*> data_of(loss, cnp.NPY_FLOAT64, size, True, "loss")
    cdef int64_t* po = <int64_t*> data_of(order, cnp.NPY_INT64, size, True, "order")
    cdef bint done = True
    threads = max(threads, 1)
    if size and size % n == 0:
        with nogil:
            done = _rows_block(po, pl, ph, pw, size // n, n, threads)
    if not done:
        raise MemoryError(f"eliminate: no room for {threads} work spaces of {8 * n * n} bytes")
