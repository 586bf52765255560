"""Second moments of (x, y) in one pass: sum_i s_i z_i z_i', z_i = (x_i, y_i, 1) - shift.

Rows are shifted (by a pilot mean, so that large offsets do not cancel digits) and transposed into
a block that stays in cache; its products are added up in registers, a block at a time in x's
precision, then in double (gram.h). The rows are cut into a fixed number of runs, so the
bits depend on that number and not on the threads.
"""

from fastopt._kernels.shared cimport numpy as cnp
from libc.stdlib cimport free, malloc

from fastopt._kernels.shared.arguments cimport data_of
from fastopt._kernels.shared.pool cimport run

cnp.import_array()

cdef extern from "linear/gram.h" nogil:
    Py_ssize_t fo_blocks_f32(Py_ssize_t) noexcept
    Py_ssize_t fo_blocks_f64(Py_ssize_t) noexcept
    void fo_run_f32(
        double*, const float*, const float*, const float*, const float*, float*, Py_ssize_t,
        Py_ssize_t, Py_ssize_t, Py_ssize_t, Py_ssize_t) noexcept
    void fo_run_f64(
        double*, const double*, const double*, const double*, const double*, double*, Py_ssize_t,
        Py_ssize_t, Py_ssize_t, Py_ssize_t, Py_ssize_t) noexcept


cdef struct Work:
    bint single
    const void* x
    const void* y
    const void* s
    const void* shift
    double* out
    char* blocks
    Py_ssize_t room, n, d, k, pad, n_runs


cdef void one_run(void* context, Py_ssize_t c, int worker) noexcept nogil:
    """Run c of the rows."""
    cdef const Work* w = <const Work*> context
    cdef double* out = w.out + c * w.pad * w.pad
    cdef void* block = w.blocks + c * w.room
    cdef Py_ssize_t first = w.n * c // w.n_runs, last = w.n * (c + 1) // w.n_runs
    if w.single:
        fo_run_f32(out, <const float*> w.x, <const float*> w.y, <const float*> w.s,
                   <const float*> w.shift, <float*> block, first, last, w.d, w.k, w.pad)
    else:
        fo_run_f64(out, <const double*> w.x, <const double*> w.y, <const double*> w.s,
                   <const double*> w.shift, <double*> block, first, last, w.d, w.k, w.pad)


def gram(
    cnp.ndarray out not None, cnp.ndarray x not None, cnp.ndarray y not None, weights,
    cnp.ndarray shift not None, int threads,
):
    """Moments into out (n_runs, pad, pad) float64, one matrix a run of rows, upper part only.

    x (n, d), y (n, k), weights (n,) or None and shift (d + k,) share a dtype, float32 or float64;
    pad is d + k + 1 rounded up to a multiple of 4. Column d + k holds the sums.
    """
    cdef Work w
    cdef int typenum = cnp.PyArray_TYPE(x)
    if typenum != cnp.NPY_DOUBLE:
        typenum = cnp.NPY_FLOAT
    w.single = typenum == cnp.NPY_FLOAT
    w.x = data_of(x, typenum, -1, False, "x")
    if x.ndim != 2 or y.ndim != 2 or out.ndim != 3 or out.shape[0] < 1:
        raise ValueError("x, y, out: expected 2, 2 and 3 dimensions, and at least one run")
    w.n, w.d, w.k, w.n_runs = x.shape[0], x.shape[1], y.shape[1], out.shape[0]
    w.pad = (w.d + w.k + 4) // 4 * 4
    w.y = data_of(y, typenum, w.n * w.k, False, "y")
    w.s = NULL
    if weights is not None:
        w.s = data_of(<cnp.ndarray?> weights, typenum, w.n, False, "weights")
    w.shift = data_of(shift, typenum, w.d + w.k, False, "shift")
    w.out = <double*> data_of(out, cnp.NPY_DOUBLE, w.n_runs * w.pad * w.pad, True, "out")
    w.room = (fo_blocks_f32(w.pad) if w.single else fo_blocks_f64(w.pad)) + 256
    cdef char* memory = <char*> malloc((w.n_runs + 1) * w.room)
    if memory == NULL:
        raise MemoryError
    w.blocks = memory + (-<Py_ssize_t> memory & 63)
    with nogil:
        run(one_run, &w, w.n_runs, threads)
        free(memory)
