"""Smallest and largest element of each part that shares a scale, in one pass.

A part that holds NaN or infinity gets NaN for both, so the caller needs no pass of its own to
find them: x - x is 0 for a finite x and NaN otherwise. Minimum and maximum do not depend on the
order, so any split over threads gives the same bits.
"""

from fastopt._kernels.shared cimport numpy as cnp
from cython cimport floating
from libc.math cimport INFINITY, NAN
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from fastopt._kernels.shared.arguments cimport data_of
from fastopt._kernels.shared.pool cimport run
from fastopt._kernels.quantize.layout cimport Layout, Place, place_of, scales_of, take
from fastopt._kernels.shared.stream cimport prefetch

cnp.import_array()

cdef enum:
    BLOCK = 32  # lanes of the innermost loop
    ROWS = 8  # rows folded at once
    AHEAD = 1024  # elements between a read and its prefetch
    CHUNK = 32768  # elements per chunk: 10 to 20 us, and 100,000 elements make even parts


cdef inline void halve(floating* lo, floating* hi, floating* un, int n) noexcept nogil:
    """Fold the upper n lanes into the lower n; n is a constant, so this unrolls."""
    cdef int j
    for j in range(n):
        lo[j] = lo[j + n] if lo[j + n] < lo[j] else lo[j]
        hi[j] = hi[j + n] if hi[j + n] > hi[j] else hi[j]
        un[j] += un[j + n]


cdef inline void fold_run(
    const floating* x, Py_ssize_t n, floating* low, floating* high, floating* odd
) noexcept nogil:
    """Fold n elements into one low, high and odd (NaN once something was not finite)."""
    cdef floating[BLOCK] lo
    cdef floating[BLOCK] hi
    cdef floating[BLOCK] un
    cdef Py_ssize_t j, k
    cdef floating v
    if n < BLOCK:
        for j in range(n):
            v = x[j]
            low[0] = v if v < low[0] else low[0]
            high[0] = v if v > high[0] else high[0]
            odd[0] += v - v
        return
    for k in range(BLOCK):
        v = x[k]
        lo[k] = v
        hi[k] = v
        un[k] = v - v
    j = BLOCK
    while j < n:
        if j + BLOCK > n:
            j = n - BLOCK  # the last block overlaps the one before: extremes do not mind
        for k in range(<Py_ssize_t> (BLOCK * sizeof(floating) // 64)):
            prefetch(<const char*> (x + j + AHEAD) + 64 * k)
        for k in range(BLOCK):
            v = x[j + k]
            lo[k] = v if v < lo[k] else lo[k]
            hi[k] = v if v > hi[k] else hi[k]
            un[k] += v - v
        j += BLOCK
    halve(&lo[0], &hi[0], &un[0], 16)
    halve(&lo[0], &hi[0], &un[0], 8)
    halve(&lo[0], &hi[0], &un[0], 4)
    halve(&lo[0], &hi[0], &un[0], 2)
    halve(&lo[0], &hi[0], &un[0], 1)
    low[0] = lo[0] if lo[0] < low[0] else low[0]
    high[0] = hi[0] if hi[0] > high[0] else high[0]
    odd[0] += un[0]


cdef inline void fold_rows(
    const floating* x, Py_ssize_t n, Py_ssize_t rows, Py_ssize_t stride,
    floating* low, floating* high, floating* odd,
) noexcept nogil:
    """Fold ``rows`` rows of n elements, each column into its own low, high and odd."""
    cdef floating[BLOCK] lo
    cdef floating[BLOCK] hi
    cdef floating[BLOCK] un
    cdef const floating* y
    cdef Py_ssize_t j = 0, k, r
    cdef floating v
    while j + BLOCK <= n:
        for k in range(BLOCK):
            lo[k] = low[j + k]
            hi[k] = high[j + k]
            un[k] = odd[j + k]
        for r in range(rows):
            y = x + r * stride + j
            for k in range(<Py_ssize_t> (BLOCK * sizeof(floating) // 64)):
                prefetch(<const char*> (y + rows * stride) + 64 * k)
            for k in range(BLOCK):
                v = y[k]
                lo[k] = v if v < lo[k] else lo[k]
                hi[k] = v if v > hi[k] else hi[k]
                un[k] += v - v
        memcpy(low + j, &lo[0], sizeof(lo))
        memcpy(high + j, &hi[0], sizeof(hi))
        memcpy(odd + j, &un[0], sizeof(un))
        j += BLOCK
    for r in range(rows):
        y = x + r * stride
        for k in range(j, n):
            v = y[k]
            low[k] = v if v < low[k] else low[k]
            high[k] = v if v > high[k] else high[k]
            odd[k] += v - v


cdef void fold_span(
    const floating* x, Py_ssize_t start, Py_ssize_t stop, Layout lay,
    floating* low, floating* high, floating* odd,
) noexcept nogil:
    """Fold the elements [start, stop) into the parts they belong to."""
    cdef Place p = place_of(start, lay)
    cdef Py_ssize_t n, s
    while start < stop:
        if lay.rows and p.column == 0 and stop - start >= lay.width:
            n = min(
                min(ROWS, (stop - start) // lay.width),
                min(lay.group - p.inside % lay.group, lay.depth - p.inside),
            )
            s = (p.outer * p.parts + p.inside // lay.group) * lay.width
            fold_rows(x + start, lay.width, n, lay.width, low + s, high + s, odd + s)
            start += n * lay.width
            p.inside += n
            if p.inside == lay.depth:
                p.inside = 0
                p.outer += 1
            continue
        n = take(&p, lay, stop - start, &s)
        if lay.rows:
            fold_rows(x + start, n, 1, n, low + s, high + s, odd + s)
        else:
            fold_run(x + start, n, low + s, high + s, odd + s)
        start += n


cdef void clear(floating* low, floating* high, floating* odd, Py_ssize_t parts) noexcept nogil:
    cdef Py_ssize_t j
    for j in range(parts):
        low[j] = <floating> INFINITY
        high[j] = -<floating> INFINITY
        odd[j] = 0


cdef struct Work:
    bint single
    const void* x
    void* low  # where spans share no part, else NULL
    void* high
    void* own  # odd (parts,) where they share none, else low, high, odd (3, parts) per worker
    Py_ssize_t n, span, parts
    Layout lay


cdef inline void fold_chunk(
    Work* w, const floating* x, floating* low, floating* high, floating* own, Py_ssize_t k,
    int worker,
) noexcept nogil:
    cdef Py_ssize_t start = k * w.span, stop = min(w.n, start + w.span)
    if low == NULL:
        own += worker * 3 * w.parts
        low, high, own = own, own + w.parts, own + 2 * w.parts
    fold_span(x, start, stop, w.lay, low, high, own)


cdef void some_spans(void* context, Py_ssize_t k, int worker) noexcept nogil:
    """Chunk k of the elements."""
    cdef Work* w = <Work*> context
    if w.single:
        fold_chunk(w, <const float*> w.x, <float*> w.low, <float*> w.high, <float*> w.own, k,
                   worker)
    else:
        fold_chunk(w, <const double*> w.x, <double*> w.low, <double*> w.high, <double*> w.own, k,
                   worker)


cdef int min_max_all(
    floating* low, floating* high, const floating* x, Py_ssize_t n, Py_ssize_t parts, Layout lay,
    int threads,
) except -1:
    """Where chunks may share parts, each worker has parts of its own; these are folded in the
    end."""
    cdef Py_ssize_t block = lay.depth * lay.width if lay.rows else lay.depth
    cdef Py_ssize_t k, j
    cdef floating* own
    cdef floating* a
    cdef bint apart = lay.group != 0 and (not lay.rows or n > block)
    cdef Py_ssize_t unit = block if apart else lay.width if lay.rows else BLOCK
    cdef Py_ssize_t sets = 1 if apart else threads
    cdef Work w
    own = <floating*> malloc(sets * 3 * parts * sizeof(floating))
    if own == NULL:
        raise MemoryError()
    w.single, w.x, w.own, w.n, w.parts, w.lay = sizeof(floating) == 4, x, own, n, parts, lay
    w.span = max(<Py_ssize_t> 1, CHUNK // unit) * unit
    w.low = w.high = NULL
    if apart:
        w.low, w.high = low, high
    with nogil:
        if apart:
            clear(low, high, own, parts)
        for k in range(0 if apart else sets):
            a = own + k * 3 * parts
            clear(a, a + parts, a + 2 * parts, parts)
        run(some_spans, &w, (n + w.span - 1) // w.span, threads)
        if not apart:
            for j in range(parts):
                low[j] = own[j]
                high[j] = own[parts + j]
            for k in range(1, sets):
                a = own + k * 3 * parts
                for j in range(parts):
                    low[j] = a[j] if a[j] < low[j] else low[j]
                    high[j] = a[parts + j] if a[parts + j] > high[j] else high[j]
                    own[2 * parts + j] += a[2 * parts + j]
            for j in range(parts):
                own[j] = own[2 * parts + j]
        for j in range(parts):
            if own[j] != 0:
                low[j] = <floating> NAN
                high[j] = <floating> NAN
    free(own)
    return 0


def min_max(
    cnp.ndarray low not None, cnp.ndarray high not None, cnp.ndarray x not None, bint rows,
    Py_ssize_t depth, Py_ssize_t width, Py_ssize_t group, int threads,
):
    """low, high = extremes of each part of x, both NaN where a part is not all finite."""
    cdef Layout lay = Layout(rows, depth, width, group)
    cdef int kind = cnp.PyArray_TYPE(x)
    if kind != cnp.NPY_FLOAT64:
        kind = cnp.NPY_FLOAT32
    cdef Py_ssize_t n = cnp.PyArray_SIZE(x)
    cdef Py_ssize_t parts = scales_of(n, lay)
    cdef void* a = data_of(x, kind, n, False, "x")
    cdef void* lo = data_of(low, kind, parts, True, "low")
    cdef void* hi = data_of(high, kind, parts, True, "high")
    if n == 0 or parts == 0:
        return
    if kind == cnp.NPY_FLOAT64:
        min_max_all(<double*> lo, <double*> hi, <double*> a, n, parts, lay, threads)
    else:
        min_max_all(<float*> lo, <float*> hi, <float*> a, n, parts, lay, threads)
