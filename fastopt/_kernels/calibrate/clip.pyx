"""The part of a range that rounds its values with the least weighted squared error.

The first part p of [low, high] with the least
    error(p) = sum_i weight_i (x_i - s (q_i - z))^2,  q_i = clamp(rint(x_i / s) + z, qmin, qmax)
with the scale s and the zero point z of the range p [low, high]. An affine range is then shrunk at
its high end alone and at its low end alone. 1 / s is rounded once and multiplied by: this
searches, it does not quantise, so a tie that rounds the other way does not matter. The weight of a
column is the second moment of its input (the diagonal of the Gram), of a bin its count.
"""

from fastopt._kernels.shared cimport numpy as cnp
from cpython.exc cimport PyErr_CheckSignals
from cython.parallel cimport prange

from fastopt._kernels.calibrate.ranges cimport Rule, clip_range, rule_of
from fastopt._kernels.shared.arguments cimport data_of

cnp.import_array()

cdef enum:
    STEP = 1 << 26  # evaluations between two looks at the signals: about 50 ms


cdef inline const float* at(const float* weight, Py_ssize_t row, Py_ssize_t n) noexcept nogil:
    if weight == NULL:
        return NULL
    return weight + row * n


def best_range(
    cnp.ndarray low not None, cnp.ndarray high not None, cnp.ndarray x not None,
    cnp.ndarray weight, Py_ssize_t rows, Py_ssize_t n, Py_ssize_t weight_rows,
    cnp.ndarray wide not None, cnp.ndarray near not None, bint symmetric, float steps, float zero,
    float qmin, float qmax, int threads,
):
    """low, high (rows,) float64: the full ranges, overwritten with the best; x (rows, n) float32;
    weight is None (ones) or (weight_rows, n) float32, row r using weight row r % weight_rows;
    wide, near float64: the parts tried of both ends, of one."""
    cdef Py_ssize_t r, first, last, step, shared = 1
    cdef double* lo = <double*> data_of(low, cnp.NPY_FLOAT64, rows, True, "low")
    cdef double* hi = <double*> data_of(high, cnp.NPY_FLOAT64, rows, True, "high")
    cdef const float* v = <const float*> data_of(x, cnp.NPY_FLOAT32, rows * n, False, "x")
    cdef const float* w = NULL
    cdef Rule rule = rule_of(wide, near, symmetric, steps, zero, qmin, qmax)
    if weight is not None:
        shared = weight_rows
        w = <const float*> data_of(weight, cnp.NPY_FLOAT32, shared * n, False, "weight")
    step = max(<Py_ssize_t> 1, STEP // max(<Py_ssize_t> 1, n * (rule.n_wide + 2 * rule.n_near)))
    for first in range(0, rows, step):
        last = min(rows, first + step)
        with nogil:
            if threads == 1:
                for r in range(first, last):
                    clip_range(lo + r, hi + r, v + r * n, at(w, r % shared, n), n, &rule)
            else:
                for r in prange(
                    first, last, num_threads=threads, schedule="dynamic", chunksize=4
                ):
                    clip_range(lo + r, hi + r, v + r * n, at(w, r % shared, n), n, &rule)
        PyErr_CheckSignals()
