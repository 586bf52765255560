"""Histograms of a stream of values, whole or per channel.

An array is read as [outer, channels, inner]; a whole tensor is [1, 1, n].

    counts[c, half + trunc(x * inv[c]) - (x < 0)] += 1,   half = bins / 2

``inv`` is a power of two, so the product is exact; bins are (-(k+1)w, -kw] below zero and
[kw, (k+1)w) above, so a histogram of width 2w is exactly the one of width w with neighbours
added. Counts are integers: the same for every thread count and level.
"""

from fastopt._kernels.shared cimport numpy as cnp
from cpython.exc cimport PyErr_CheckSignals
from cython.parallel cimport prange
from libc.stdint cimport int64_t, uint32_t
from libc.stdlib cimport calloc, free

from fastopt._kernels.shared.arguments cimport data_of

cnp.import_array()

cdef extern from "calibrate/histogram.h":
    enum: FO_STRIP, FO_TABLES
    void fo_count_run_f32(uint32_t* table, const float* x, Py_ssize_t n, Py_ssize_t bins,
                          float inv) noexcept nogil
    void fo_count_run_f64(uint32_t* table, const double* x, Py_ssize_t n, Py_ssize_t bins,
                          double inv) noexcept nogil
    void fo_count_columns_f32(int64_t* counts, const float* x, Py_ssize_t rows, Py_ssize_t cols,
                              int m, Py_ssize_t bins, const float* inv) noexcept nogil
    void fo_count_columns_f64(int64_t* counts, const double* x, Py_ssize_t rows, Py_ssize_t cols,
                              int m, Py_ssize_t bins, const double* inv) noexcept nogil

ctypedef fused real:
    float
    double

DEF PIECE = 1 << 27  # elements between two looks at the signals


cdef void count_run(uint32_t* table, real* x, Py_ssize_t n, Py_ssize_t bins,
                    double inv) noexcept nogil:
    if real is float:
        fo_count_run_f32(table, x, n, bins, <float> inv)
    else:
        fo_count_run_f64(table, x, n, bins, inv)


cdef void flush(int64_t* counts, uint32_t* table, Py_ssize_t bins, Py_ssize_t tables) noexcept nogil:
    cdef Py_ssize_t t, b
    for t in range(tables):
        for b in range(bins):
            counts[b] += table[t * bins + b]
            table[t * bins + b] = 0


cdef int count_whole(int64_t* counts, real* x, Py_ssize_t n, Py_ssize_t bins, double inv,
                     int threads) noexcept nogil:
    """One tensor of n <= PIECE values: a set of tables for each of ``threads`` equal parts."""
    cdef Py_ssize_t t, step = (n + threads - 1) // threads
    cdef uint32_t* table = <uint32_t*> calloc(threads * FO_TABLES * bins, sizeof(uint32_t))
    if table == NULL:
        return -1
    if threads == 1:
        count_run(table, x, n, bins, inv)
    else:
        for t in prange(threads, num_threads=threads, schedule="static", chunksize=1):
            count_run(table + t * FO_TABLES * bins, x + min(n, t * step),
                      max(<Py_ssize_t> 0, min(step, n - t * step)), bins, inv)
    flush(counts, table, bins, threads * FO_TABLES)
    free(table)
    return 0


cdef int count_strip(int64_t* counts, real* x, double* inv, Py_ssize_t outer, Py_ssize_t channels,
                     Py_ssize_t inner, Py_ssize_t first, Py_ssize_t last,
                     Py_ssize_t bins) noexcept nogil:
    """Channels [first, last), at most FO_STRIP of them, by one thread."""
    cdef Py_ssize_t c, o, since
    cdef real scale[FO_STRIP]
    cdef uint32_t* table
    for c in range(first, last):
        scale[c - first] = <real> inv[c]
    if inner == 1:
        if real is float:
            fo_count_columns_f32(counts + first * bins, x + first, outer, channels,
                                 <int> (last - first), bins, scale)
        else:
            fo_count_columns_f64(counts + first * bins, x + first, outer, channels,
                                 <int> (last - first), bins, scale)
        return 0
    if outer * inner < FO_TABLES * bins:  # less than the tables: straight into the totals
        for c in range(first, last):
            for o in range(outer):
                if real is float:
                    fo_count_columns_f32(counts + c * bins, x + (o * channels + c) * inner, inner,
                                         1, 1, bins, scale + c - first)
                else:
                    fo_count_columns_f64(counts + c * bins, x + (o * channels + c) * inner, inner,
                                         1, 1, bins, scale + c - first)
        return 0
    table = <uint32_t*> calloc(FO_TABLES * bins, sizeof(uint32_t))
    if table == NULL:
        return -1
    for c in range(first, last):
        since = 0
        for o in range(outer):
            count_run(table, x + (o * channels + c) * inner, inner, bins, inv[c])
            since += inner
            if since >= PIECE:
                flush(counts + c * bins, table, bins, FO_TABLES)
                since = 0
        flush(counts + c * bins, table, bins, FO_TABLES)
    free(table)
    return 0


cdef int count_strips(int64_t* counts, real* x, double* inv, Py_ssize_t outer,
                      Py_ssize_t channels, Py_ssize_t inner, Py_ssize_t bins,
                      int threads) noexcept nogil:
    cdef Py_ssize_t s, width = min(<Py_ssize_t> FO_STRIP, (channels + threads - 1) // threads)
    cdef Py_ssize_t strips = (channels + width - 1) // width
    cdef int failed = 0
    if threads == 1:
        for s in range(strips):
            failed += count_strip(counts, x, inv, outer, channels, inner, s * width,
                                  min(channels, (s + 1) * width), bins)
    else:
        for s in prange(strips, num_threads=threads, schedule="dynamic"):
            failed += count_strip(counts, x, inv, outer, channels, inner, s * width,
                                  min(channels, (s + 1) * width), bins)
    return failed


def count(cnp.ndarray counts not None, cnp.ndarray x not None, cnp.ndarray inv not None,
          Py_ssize_t outer, Py_ssize_t channels, Py_ssize_t inner, int threads):
    """In place: add the histogram of x (finite) to counts, (channels, bins) int64, bins even.

    A value beyond the table is counted in its last bin on that side.
    """
    cdef int kind = cnp.PyArray_TYPE(x)
    cdef Py_ssize_t bins = cnp.PyArray_SIZE(counts) // max(channels, <Py_ssize_t> 1)
    cdef Py_ssize_t size = outer * channels * inner, start, step
    cdef int64_t* into = <int64_t*> data_of(counts, cnp.NPY_INT64, channels * bins, True, "counts")
    cdef double* scale = <double*> data_of(inv, cnp.NPY_FLOAT64, channels, False, "inv")
    cdef void* data
    cdef int failed = 0
    if kind != cnp.NPY_FLOAT64:
        kind = cnp.NPY_FLOAT32
    data = data_of(x, kind, size, False, "x")
    if size == 0 or bins < 2:
        return
    if channels == 1:
        for start in range(0, size, PIECE):
            step = min(<Py_ssize_t> PIECE, size - start)
            with nogil:
                if kind == cnp.NPY_FLOAT32:
                    failed = count_whole(into, <float*> data + start, step, bins, scale[0],
                                         threads)
                else:
                    failed = count_whole(into, <double*> data + start, step, bins, scale[0],
                                         threads)
            if failed:
                raise MemoryError
            PyErr_CheckSignals()
        return
    with nogil:
        if kind == cnp.NPY_FLOAT32:
            failed = count_strips(into, <float*> data, scale, outer, channels, inner, bins,
                                  threads)
        else:
            failed = count_strips(into, <double*> data, scale, outer, channels, inner, bins,
                                  threads)
    if failed:
        raise MemoryError
