"""Depthwise convolution of planes (channels, height, width, n): every channel filtered alone.

    y[c, i, j] = sum over a, b of w[c, a, b] * x[c, i * sh + a * dh, j * sw + b * dw]

and its gradients: x is what y and w spread over it, w is the sum of products of both. The n rows
of data lie next to each other, and with a step of 1 a whole line does, so every loop is over a run
of neighbours. Taps are added in the order of the kernel, products of a line in 64 lanes and lines
in double, in their order: the same bits for every level and thread count.
"""

from libc.string cimport memset

from fastopt._kernels.shared cimport numpy as cnp
from fastopt._kernels.shared.arguments cimport data_of
from fastopt._kernels.shared.pool cimport run_polled
from fastopt._kernels.shared.restrict cimport f32

cnp.import_array()

cdef enum:
    LANES = 64

cdef struct Planes:
    float* x  # (channels, x_height, x_width, n), with its border
    float* y  # (channels, height, width, n)
    float* w  # (channels, kh, kw)
    Py_ssize_t channels
    Py_ssize_t x_plane  # floats of a plane of x, of y, of a line of x
    Py_ssize_t y_plane
    Py_ssize_t x_line
    Py_ssize_t height
    Py_ssize_t runs  # of neighbours in a line of y: one with a step of 1, else one a place
    Py_ssize_t run  # floats of one
    Py_ssize_t step  # floats of x between two runs, between two lines, and between taps
    Py_ssize_t line_step
    Py_ssize_t tap
    Py_ssize_t line_tap
    Py_ssize_t kh
    Py_ssize_t kw


cdef inline void add_run(f32 target, const float* source, float w, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t k
    for k in range(n):
        target[k] += w * source[k]


cdef inline void add_three(
    f32 target, const float* x0, const float* x1, const float* x2, float w0, float w1, float w2,
    Py_ssize_t n,
) noexcept nogil:
    """Three taps in one walk over the target, added in their order."""
    cdef Py_ssize_t k
    for k in range(n):
        target[k] = ((target[k] + w0 * x0[k]) + w1 * x1[k]) + w2 * x2[k]


cdef inline double product(const float* a, const float* b, Py_ssize_t n) noexcept nogil:
    """Sum of a[k] * b[k] in lanes, which are added in their order."""
    cdef float lane[LANES]
    cdef Py_ssize_t k, i, whole = n - n % LANES
    cdef double total = 0
    for i in range(LANES):
        lane[i] = 0
    for k in range(whole // LANES):
        for i in range(LANES):
            lane[i] += a[k * LANES + i] * b[k * LANES + i]
    for k in range(whole, n):
        lane[k - whole] += a[k] * b[k]
    for i in range(LANES):
        total += lane[i]
    return total


cdef void filter_plane(void* context, Py_ssize_t c, int worker) noexcept nogil:
    """y of one channel."""
    cdef const Planes* p = <const Planes*> context
    cdef Py_ssize_t i, j, a, b
    cdef const float* x
    cdef const float* v
    cdef float* y = p.y + c * p.y_plane
    cdef const float* w = p.w + c * p.kh * p.kw
    for i in range(p.height):
        for j in range(p.runs):
            memset(y, 0, p.run * sizeof(float))
            for a in range(p.kh):
                x = p.x + c * p.x_plane + i * p.line_step + a * p.line_tap + j * p.step
                v = w + a * p.kw
                for b in range(0, p.kw - 2, 3):
                    add_three(
                        y, x + b * p.tap, x + (b + 1) * p.tap, x + (b + 2) * p.tap,
                        v[b], v[b + 1], v[b + 2], p.run,
                    )
                for b in range(p.kw - p.kw % 3, p.kw):
                    add_run(y, x + b * p.tap, v[b], p.run)
            y += p.run


cdef void spread_plane(void* context, Py_ssize_t c, int worker) noexcept nogil:
    """x of one channel, which is 0 before."""
    cdef const Planes* p = <const Planes*> context
    cdef Py_ssize_t i, j, a, b
    cdef float* x
    cdef const float* y = p.y + c * p.y_plane
    cdef const float* w = p.w + c * p.kh * p.kw
    for i in range(p.height):
        for j in range(p.runs):
            for a in range(p.kh):
                x = p.x + c * p.x_plane + i * p.line_step + a * p.line_tap + j * p.step
                for b in range(p.kw):
                    add_run(x + b * p.tap, y, w[a * p.kw + b], p.run)
            y += p.run


cdef void weigh_plane(void* context, Py_ssize_t c, int worker) noexcept nogil:
    """w of one channel."""
    cdef const Planes* p = <const Planes*> context
    cdef Py_ssize_t i, j, a, b
    cdef const float* x
    cdef const float* y
    cdef double total
    for a in range(p.kh):
        for b in range(p.kw):
            y = p.y + c * p.y_plane
            total = 0
            for i in range(p.height):
                for j in range(p.runs):
                    x = p.x + c * p.x_plane + i * p.line_step + a * p.line_tap + j * p.step
                    total += product(x + b * p.tap, y, p.run)
                    y += p.run
            p.w[(c * p.kh + a) * p.kw + b] = <float> total


cdef Planes planes_of(
    cnp.ndarray x, cnp.ndarray y, cnp.ndarray w, str written, int sh, int sw, int dh, int dw
) except *:
    """Pointers and distances; the caller has checked the shapes."""
    cdef Planes p
    cdef Py_ssize_t n = cnp.PyArray_DIM(x, 3), width = cnp.PyArray_DIM(y, 2)
    p.channels = cnp.PyArray_DIM(y, 0)
    p.height = cnp.PyArray_DIM(y, 1)
    p.kh, p.kw = cnp.PyArray_DIM(w, 1), cnp.PyArray_DIM(w, 2)
    p.x_line = cnp.PyArray_DIM(x, 2) * n
    p.x_plane = cnp.PyArray_DIM(x, 1) * p.x_line
    p.y_plane = p.height * width * n
    p.x = <float*> data_of(x, cnp.NPY_FLOAT32, p.channels * p.x_plane, written == "x", "x")
    p.y = <float*> data_of(y, cnp.NPY_FLOAT32, p.channels * p.y_plane, written == "y", "y")
    p.w = <float*> data_of(w, cnp.NPY_FLOAT32, p.channels * p.kh * p.kw, written == "w", "w")
    p.runs = 1 if sw == 1 else width
    p.run = width * n // max(<Py_ssize_t> 1, p.runs)
    p.step, p.line_step = sw * n, sh * p.x_line
    p.tap, p.line_tap = dw * n, dh * p.x_line
    return p


def filter_planes(
    cnp.ndarray y not None, cnp.ndarray x not None, cnp.ndarray w not None,
    int sh, int sw, int dh, int dw, int threads,
):
    """In place: y[c, i, j] = sum over a, b of w[c, a, b] * x[c, i * sh + a * dh, j * sw + b * dw].

    x (channels, x_height, x_width, n), y (channels, height, width, n) and w (channels, kh, kw)
    float32. The caller has checked that every place of x that is read is there.
    """
    cdef Planes p = planes_of(x, y, w, "y", sh, sw, dh, dw)
    with nogil:
        run_polled(filter_plane, &p, p.channels, threads)


def spread_planes(
    cnp.ndarray x not None, cnp.ndarray y not None, cnp.ndarray w not None,
    int sh, int sw, int dh, int dw, int threads,
):
    """In place: x[c, i * sh + a * dh, j * sw + b * dw] += w[c, a, b] * y[c, i, j] for all a, b."""
    cdef Planes p = planes_of(x, y, w, "x", sh, sw, dh, dw)
    with nogil:
        run_polled(spread_plane, &p, p.channels, threads)


def weigh_planes(
    cnp.ndarray w not None, cnp.ndarray x not None, cnp.ndarray y not None,
    int sh, int sw, int dh, int dw, int threads,
):
    """In place: w[c, a, b] = sum over i, j of x[c, i * sh + a * dh, j * sw + b * dw] * y[c, i, j].
    """
    cdef Planes p = planes_of(x, y, w, "w", sh, sw, dh, dw)
    with nogil:
        run_polled(weigh_plane, &p, p.channels, threads)
