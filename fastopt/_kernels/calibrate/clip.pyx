"""The part of a range that rounds its values with the least weighted squared error.

The first part p of [low, high] with the least
    error(p) = sum_i weight_i (x_i - s (q_i - z))^2,  q_i = clamp(rint(x_i / s) + z, qmin, qmax)
with the scale s and the zero point z of the range p [low, high]. An affine range is then shrunk at
its high end alone and at its low end alone. 1 / s is rounded once and multiplied by: this
searches, it does not quantise, so a tie that rounds the other way does not matter. The weight of a
column is the second moment of its input (the diagonal of the Gram), of a bin its count.
"""

from fastopt._kernels.shared cimport numpy as cnp

from fastopt._kernels.calibrate.ranges cimport Rule, clip_range, rule_of
from fastopt._kernels.shared.arguments cimport data_of
from fastopt._kernels.shared.pool cimport run_polled

cnp.import_array()

cdef enum:
    ROWS = 4  # a thread takes at a time

cdef struct Work:
    double* low
    double* high
    const float* x
    const float* weight  # of shared rows, or NULL
    Py_ssize_t rows, n, shared
    const Rule* rule


cdef void some_rows(void* context, Py_ssize_t k, int worker) noexcept nogil:
    cdef Work* w = <Work*> context
    cdef Py_ssize_t r
    cdef const float* weight = NULL
    for r in range(k * ROWS, min(w.rows, (k + 1) * ROWS)):
        if w.weight != NULL:
            weight = w.weight + r % w.shared * w.n
        clip_range(w.low + r, w.high + r, w.x + r * w.n, weight, w.n, w.rule)


def best_range(
    cnp.ndarray low not None, cnp.ndarray high not None, cnp.ndarray x not None,
    cnp.ndarray weight, Py_ssize_t rows, Py_ssize_t n, Py_ssize_t weight_rows,
    cnp.ndarray wide not None, cnp.ndarray near not None, bint symmetric, float steps, float zero,
    float qmin, float qmax, int threads,
):
    """low, high (rows,) float64: the full ranges, overwritten with the best; x (rows, n) float32;
    weight is None (ones) or (weight_rows, n) float32, row r using weight row r % weight_rows;
    wide, near float64: the parts tried of both ends, of one."""
    cdef Rule rule = rule_of(wide, near, symmetric, steps, zero, qmin, qmax)
    cdef Work w
    w.low = <double*> data_of(low, cnp.NPY_FLOAT64, rows, True, "low")
    w.high = <double*> data_of(high, cnp.NPY_FLOAT64, rows, True, "high")
    w.x = <const float*> data_of(x, cnp.NPY_FLOAT32, rows * n, False, "x")
    w.weight = NULL
    if weight is not None:
        w.weight = <const float*> data_of(
            weight, cnp.NPY_FLOAT32, weight_rows * n, False, "weight"
        )
    w.rows, w.n, w.shared, w.rule = rows, n, weight_rows, &rule
    with nogil:
        run_polled(some_rows, &w, (rows + ROWS - 1) // ROWS, threads)
