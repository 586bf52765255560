"""Rounding with feedback: each column takes in the errors of the columns before it.

    target:  t[k] = w[k] + sum_{i < k0} a[i, k] * e[i],        k in [k0, k1)
    round:   t[k] += sum_{k0 <= i < k} a[i, k] * e[i],   code[k] = clamp(rint(t[k] / s) + z),
             e[k] = w[k] - s * (code[k] - z)

With H = R R^T, R upper triangular and a[i, k] = R[i, k] / R[k, k], this is GPTQ (Frantar et al.,
2022, arXiv:2210.17323) in the form of LDLQ (Chee et al., 2023, arXiv:2307.13304, theorem 6): the
same codes without inverting H. Rows of the weight are independent; they are the vector lanes.

Layout: w, e, t and code are (tiles, n, 16), a tile is 16 rows; scale and zero are
(tiles, groups, 16); panels is a in (ceil(n / 8), n, 8) with zeros from the diagonal down.
"""

from fastopt._kernels cimport _numpy as cnp
from cpython.exc cimport PyErr_CheckSignals
from cython.parallel cimport prange
from libc.stdint cimport int32_t, int64_t

from fastopt._kernels._args cimport data_of

cnp.import_array()

cdef extern from "gptq.h":
    enum: FO_ROWS
    enum: FO_COLS
    void fo_round_tile(int32_t* code, float* e, float* t, float* w, float* panels, float* scale,
                       float* zero, int64_t* group, Py_ssize_t n, Py_ssize_t k0, Py_ssize_t k1,
                       float qmin, float qmax) noexcept nogil
    void fo_target_tile(float* t, float* e, float* w, float* panels, Py_ssize_t n, Py_ssize_t k0,
                        Py_ssize_t k1) noexcept nogil

cdef double SLICE = 1e9  # multiply-adds between two looks at the signals: about 50 ms

ROWS = FO_ROWS
COLS = FO_COLS


cdef Py_ssize_t tiles_a_slice(Py_ssize_t n, Py_ssize_t columns) noexcept nogil:
    cdef double work = <double> (n + 1) * (columns + 1) * FO_ROWS
    return <Py_ssize_t> max(1.0, SLICE / work)


def target(cnp.ndarray t not None, cnp.ndarray e not None, cnp.ndarray w not None,
           cnp.ndarray panels not None, Py_ssize_t tiles, Py_ssize_t n, Py_ssize_t k0,
           Py_ssize_t k1, int threads):
    """Columns [k0, k1) of t from w and the errors of columns [0, k0)."""
    cdef Py_ssize_t size = tiles * n * FO_ROWS, width = n * FO_ROWS, i, first, last, step
    cdef float* into = <float*> data_of(t, cnp.NPY_FLOAT32, size, True, "t")
    cdef float* err = <float*> data_of(e, cnp.NPY_FLOAT32, size, False, "e")
    cdef float* weight = <float*> data_of(w, cnp.NPY_FLOAT32, size, False, "w")
    cdef float* a = <float*> data_of(
        panels, cnp.NPY_FLOAT32, (n + FO_COLS - 1) // FO_COLS * n * FO_COLS, False, "panels")
    if not 0 <= k0 <= k1 <= n:
        raise IndexError("k0, k1")
    step = tiles_a_slice(k0, k1 - k0)
    for first in range(0, tiles, step):
        last = min(tiles, first + step)
        with nogil:
            if threads == 1:
                for i in range(first, last):
                    fo_target_tile(into + i * width, err + i * width, weight + i * width, a, n,
                                   k0, k1)
            else:
                for i in prange(first, last, num_threads=threads, schedule="dynamic"):
                    fo_target_tile(into + i * width, err + i * width, weight + i * width, a, n,
                                   k0, k1)
        PyErr_CheckSignals()


def round_columns(cnp.ndarray code not None, cnp.ndarray e not None, cnp.ndarray t not None,
                  cnp.ndarray w not None, cnp.ndarray panels not None,
                  cnp.ndarray scale not None, cnp.ndarray zero not None,
                  cnp.ndarray group not None, Py_ssize_t tiles, Py_ssize_t n, Py_ssize_t k0,
                  Py_ssize_t k1, float qmin, float qmax, int threads):
    """Columns [k0, k1) of code (int32), e and t; column k uses scale row group[k]."""
    cdef Py_ssize_t size = tiles * n * FO_ROWS, width = n * FO_ROWS, i, first, last, step
    cdef Py_ssize_t groups = cnp.PyArray_SIZE(scale) // max(tiles * FO_ROWS, <Py_ssize_t> 1)
    cdef Py_ssize_t part = groups * FO_ROWS
    cdef int32_t* into = <int32_t*> data_of(code, cnp.NPY_INT32, size, True, "code")
    cdef float* err = <float*> data_of(e, cnp.NPY_FLOAT32, size, True, "e")
    cdef float* now = <float*> data_of(t, cnp.NPY_FLOAT32, size, True, "t")
    cdef float* weight = <float*> data_of(w, cnp.NPY_FLOAT32, size, False, "w")
    cdef float* a = <float*> data_of(
        panels, cnp.NPY_FLOAT32, (n + FO_COLS - 1) // FO_COLS * n * FO_COLS, False, "panels")
    cdef float* s = <float*> data_of(scale, cnp.NPY_FLOAT32, tiles * part, False, "scale")
    cdef float* z = <float*> data_of(zero, cnp.NPY_FLOAT32, tiles * part, False, "zero")
    cdef int64_t* which = <int64_t*> data_of(group, cnp.NPY_INT64, n, False, "group")
    if not 0 <= k0 <= k1 <= n:
        raise IndexError("k0, k1")
    if tiles == 0:
        return
    for i in range(k0, k1):
        if not 0 <= which[i] < groups:
            raise IndexError("group")
    step = tiles_a_slice(k1 - k0, k1 - k0)
    for first in range(0, tiles, step):
        last = min(tiles, first + step)
        with nogil:
            if threads == 1:
                for i in range(first, last):
                    fo_round_tile(into + i * width, err + i * width, now + i * width,
                                  weight + i * width, a, s + i * part, z + i * part, which, n, k0,
                                  k1, qmin, qmax)
            else:
                for i in prange(first, last, num_threads=threads, schedule="dynamic"):
                    fo_round_tile(into + i * width, err + i * width, now + i * width,
                                  weight + i * width, a, s + i * part, z + i * part, which, n, k0,
                                  k1, qmin, qmax)
        PyErr_CheckSignals()
