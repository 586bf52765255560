"""The weighted squared error that each candidate scale would leave.

    error[r, k] = sum_i weight[r, i] * (x[r, i] - s * (q - z))^2
    s = scale[r, k],  z = zero[r, k],  q = clamp(rint(x[r, i] / s) + z, qmin, qmax)

1 / s is rounded once and multiplied by: this searches, it does not quantise, so a tie that falls
the other way is of no account. The weight of a column is the second moment of what it meets (the
diagonal of the Gram), of a histogram's bin its count.
"""

from fastopt._kernels cimport _numpy as cnp
from cpython.exc cimport PyErr_CheckSignals
from cython.parallel cimport prange

from fastopt._kernels._args cimport data_of

cnp.import_array()

cdef extern from "clip.h":
    void fo_clip_errors(double* error, float* x, float* weight, Py_ssize_t n, float* scale,
                        float* zero, Py_ssize_t candidates, float qmin, float qmax) noexcept nogil

DEF STEP = 1 << 26  # evaluations between two looks at the signals: about 50 ms


cdef inline float* at(float* weight, Py_ssize_t row, Py_ssize_t n) noexcept nogil:
    return NULL if weight == NULL else weight + row * n


def candidate_errors(
    cnp.ndarray error not None, cnp.ndarray x not None, cnp.ndarray weight,
    cnp.ndarray scale not None, cnp.ndarray zero not None, Py_ssize_t rows, Py_ssize_t n,
    Py_ssize_t weight_rows, float qmin, float qmax, int threads,
):
    """error (rows, K) float64 from x (rows, n) float32; weight is None (ones) or (weight_rows, n)
    with row r using weight row r % weight_rows; scale and zero are (rows, K) float32."""
    cdef Py_ssize_t r, first, last, step, k = cnp.PyArray_SIZE(error) // max(rows, <Py_ssize_t> 1)
    cdef double* e = <double*> data_of(error, cnp.NPY_FLOAT64, rows * k, True, "error")
    cdef float* v = <float*> data_of(x, cnp.NPY_FLOAT32, rows * n, False, "x")
    cdef float* s = <float*> data_of(scale, cnp.NPY_FLOAT32, rows * k, False, "scale")
    cdef float* z = <float*> data_of(zero, cnp.NPY_FLOAT32, rows * k, False, "zero")
    cdef float* w = NULL
    cdef Py_ssize_t shared = 1
    if weight is not None:
        shared = weight_rows
        w = <float*> data_of(weight, cnp.NPY_FLOAT32, shared * n, False, "weight")
    if rows == 0 or k == 0:
        return
    step = max(<Py_ssize_t> 1, STEP // max(<Py_ssize_t> 1, n * k))
    for first in range(0, rows, step):
        last = min(rows, first + step)
        with nogil:
            if threads == 1:
                for r in range(first, last):
                    fo_clip_errors(e + r * k, v + r * n, at(w, r % shared, n), n, s + r * k,
                                   z + r * k, k, qmin, qmax)
            else:
                for r in prange(first, last, num_threads=threads, schedule="dynamic",
                                chunksize=4):
                    fo_clip_errors(e + r * k, v + r * n, at(w, r % shared, n), n, s + r * k,
                                   z + r * k, k, qmin, qmax)
        PyErr_CheckSignals()
