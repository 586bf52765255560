"""Second moments of (x, y) in one pass: sum_i s_i z_i z_i', z_i = (x_i, y_i, 1) - shift.

Rows are shifted (by a pilot mean, so that large offsets do not cancel digits) into a block that
stays in the first-level cache, and its Gram matrix is added up in registers, a block at a time in
x's precision, then in double. The rows are cut into a fixed number of runs, so the bits depend on
that number and not on the threads.
"""

cimport numpy as cnp
from cython.parallel cimport prange
from libc.string cimport memset

from fastopt._kernels._args cimport data_of

cnp.import_array()

cdef extern from "linear_gram.h" nogil:
    void fo_gram_f32(double*, const float*, const float*, Py_ssize_t, Py_ssize_t,
                     Py_ssize_t) noexcept
    void fo_gram_f64(double*, const double*, const double*, Py_ssize_t, Py_ssize_t,
                     Py_ssize_t) noexcept

ctypedef fused real:
    float
    double


cdef void run(
    double* out, const real* x, const real* y, const real* s, const real* shift, real* block,
    Py_ssize_t height, Py_ssize_t first, Py_ssize_t last, Py_ssize_t d, Py_ssize_t k,
    Py_ssize_t pad,
) noexcept nogil:
    """Rows first..last-1 into out (pad, pad); block holds 2 height pad elements."""
    cdef real *a = block
    cdef real *b = block + height * pad
    cdef real *left
    cdef Py_ssize_t start, rows, r, j
    memset(out, 0, pad * pad * sizeof(double))
    memset(block, 0, 2 * height * pad * sizeof(real))
    start = first
    while start < last:
        rows = min(height, last - start)
        for r in range(rows):
            for j in range(d):
                b[r * pad + j] = x[(start + r) * d + j] - shift[j]
            for j in range(k):
                b[r * pad + d + j] = y[(start + r) * k + j] - shift[d + j]
            b[r * pad + d + k] = 1
            if s != NULL:
                for j in range(d + k + 1):
                    a[r * pad + j] = s[start + r] * b[r * pad + j]
        left = b if s == NULL else a
        if real is float:
            fo_gram_f32(out, left, b, rows, pad, d + k + 1)
        else:
            fo_gram_f64(out, left, b, rows, pad, d + k + 1)
        start += rows


cdef void runs(
    double* out, const real* x, const real* y, const real* s, const real* shift, real* block,
    Py_ssize_t height, Py_ssize_t n, Py_ssize_t d, Py_ssize_t k, Py_ssize_t pad,
    Py_ssize_t n_runs, int threads,
) noexcept nogil:
    cdef Py_ssize_t c
    if threads == 1:
        for c in range(n_runs):
            run(out + c * pad * pad, x, y, s, shift, block + c * 2 * height * pad, height,
                n * c // n_runs, n * (c + 1) // n_runs, d, k, pad)
    else:
        for c in prange(n_runs, num_threads=threads, schedule="dynamic", chunksize=1):
            run(out + c * pad * pad, x, y, s, shift, block + c * 2 * height * pad, height,
                n * c // n_runs, n * (c + 1) // n_runs, d, k, pad)


def gram(
    cnp.ndarray out not None, cnp.ndarray block not None, cnp.ndarray x not None,
    cnp.ndarray y not None, weights, cnp.ndarray shift not None, int threads,
):
    """Moments into out (n_runs, pad, pad) float64, one matrix a run of rows, upper part only.

    x (n, d), y (n, k), weights (n,) or None and shift (d + k,) share a dtype, float32 or float64;
    pad is d + k + 1 rounded up to whole 64 bytes; block (n_runs, 2, rows at a time, pad) of that dtype is
    scratch. The last column holds the sums.
    """
    cdef int typenum = cnp.PyArray_TYPE(x)
    if typenum != cnp.NPY_DOUBLE:
        typenum = cnp.NPY_FLOAT
    cdef Py_ssize_t lanes = 16 if typenum == cnp.NPY_FLOAT else 8
    cdef const void* px = data_of(x, typenum, -1, False, "x")
    if x.ndim != 2 or y.ndim != 2 or out.ndim != 3 or block.ndim != 4:
        raise ValueError("x, y, out, block: expected 2, 2, 3 and 4 dimensions")
    cdef Py_ssize_t n = x.shape[0], d = x.shape[1], k = y.shape[1], n_runs = out.shape[0]
    cdef Py_ssize_t pad = (d + k + 1 + lanes - 1) // lanes * lanes
    cdef Py_ssize_t height = block.shape[2]
    if n_runs < 1 or height < 1:
        raise ValueError("out, block: expected at least one run and one row")
    cdef const void* py = data_of(y, typenum, n * k, False, "y")
    cdef const void* ps = NULL
    if weights is not None:
        ps = data_of(<cnp.ndarray?> weights, typenum, n, False, "weights")
    cdef const void* ph = data_of(shift, typenum, d + k, False, "shift")
    cdef double* po = <double*> data_of(out, cnp.NPY_DOUBLE, n_runs * pad * pad, True, "out")
    cdef void* pb = data_of(block, typenum, n_runs * 2 * height * pad, True, "block")
    with nogil:
        if typenum == cnp.NPY_FLOAT:
            runs(po, <const float*> px, <const float*> py, <const float*> ps, <const float*> ph,
                 <float*> pb, height, n, d, k, pad, n_runs, threads)
        else:
            runs(po, <const double*> px, <const double*> py, <const double*> ps,
                 <const double*> ph, <double*> pb, height, n, d, k, pad, n_runs, threads)
