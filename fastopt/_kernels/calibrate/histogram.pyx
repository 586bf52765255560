"""Histograms of a stream of values, whole or per channel.

An array is read as [outer, channels, inner]; a whole tensor is [1, 1, n].

    counts[c, half + trunc(x * inv[c]) - (x < 0)] += 1,   half = bins / 2

``inv`` is a power of two, so the product is exact; bins are (-(k+1)w, -kw] below zero and
[kw, (k+1)w) above, so a histogram of width 2w is exactly the one of width w with neighbours
added. Counts are integers: the same for every thread count and level.
"""

from fastopt._kernels.shared cimport numpy as cnp
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from fastopt._kernels.shared.arguments cimport data_of
from fastopt._kernels.shared.pool cimport mark, marked, run
from fastopt._kernels.shared.stream cimport prefetch

cnp.import_array()

ctypedef fused real:
    float
    double

cdef enum:
    PIECE = 1 << 27  # elements between two looks at the signals
    CHUNK = 1 << 16  # elements a thread takes at a time
    TABLES = 4  # runs of equal values then wait on one store in four, not on every store
    STRIP = 32  # columns counted together
    BLOCK = 256  # bins worked out before they are counted
    AHEAD = 8  # rows between a read of a strip and its prefetch


cdef inline int32_t negative(real v) noexcept nogil:
    """The sign bit."""
    cdef uint32_t single
    cdef uint64_t bits
    if real is float:
        memcpy(&single, &v, 4)
        return <int32_t> (single >> 31)
    else:
        memcpy(&bits, &v, 8)
        return <int32_t> (bits >> 63)


cdef inline int32_t bin_of(real v, real inv, real edge) noexcept nogil:
    """Bin of v * inv: truncated towards zero, one less for a set sign bit (so that halving the
    resolution is exactly a shift), clamped in float first: no index leaves the table."""
    cdef real t = v * inv
    t = t if t > -edge else -edge
    t = t if t < edge else edge
    return <int32_t> t - negative(v)


cdef void count_run(uint32_t* table, const real* x, Py_ssize_t n, Py_ssize_t bins,
                    double inv) noexcept nogil:
    """Count n values next to each other into TABLES tables of ``bins`` entries."""
    cdef int32_t[BLOCK] index
    cdef real scale = <real> inv, edge = <real> (bins // 2) - <real> 0.5
    cdef uint32_t* middle = table + bins // 2
    cdef Py_ssize_t i = 0, m, k
    while i < n:
        m = min(n - i, <Py_ssize_t> BLOCK)
        for k in range(m):
            index[k] = bin_of(x[i + k], scale, edge)
        k = 0
        while k + TABLES <= m:
            middle[index[k]] += 1
            middle[index[k + 1] + bins] += 1
            middle[index[k + 2] + 2 * bins] += 1
            middle[index[k + 3] + 3 * bins] += 1
            k += TABLES
        while k < m:
            middle[index[k]] += 1
            k += 1
        i += BLOCK


cdef void count_columns(
    int64_t* counts, const real* x, Py_ssize_t rows, Py_ssize_t cols, int m, Py_ssize_t bins,
    const real* inv,
) noexcept nogil:
    """The same for m <= STRIP columns of a row-major matrix, straight into the totals."""
    cdef int32_t[STRIP] index
    cdef real edge = <real> (bins // 2) - <real> 0.5
    cdef const real* row
    cdef Py_ssize_t r, c
    for r in range(rows):
        row = x + r * cols
        c = 0
        while c < m:
            prefetch(row + AHEAD * cols + c)
            c += 64 // sizeof(real)
        if m == STRIP:
            for c in range(STRIP):
                index[c] = bin_of(row[c], inv[c], edge)
        else:
            for c in range(m):
                index[c] = bin_of(row[c], inv[c], edge)
        for c in range(m):
            counts[c * bins + bins // 2 + index[c]] += 1


cdef void flush(
    int64_t* counts, uint32_t* table, Py_ssize_t bins, Py_ssize_t tables
) noexcept nogil:
    cdef Py_ssize_t t, b
    for t in range(tables):
        for b in range(bins):
            counts[b] += table[t * bins + b]
            table[t * bins + b] = 0


cdef struct Work:
    bint single
    int64_t* counts
    const void* x
    const double* inv
    Py_ssize_t n, bins  # of one tensor
    uint32_t* table  # a set of tables per worker
    Py_ssize_t outer, channels, inner, width
    int failed  # no room for a strip's tables


cdef void count_chunk(void* context, Py_ssize_t k, int worker) noexcept nogil:
    cdef Work* w = <Work*> context
    cdef Py_ssize_t start = k * CHUNK, n = min(<Py_ssize_t> CHUNK, w.n - start)
    cdef uint32_t* table = w.table + worker * TABLES * w.bins
    if w.single:
        count_run(table, <float*> w.x + start, n, w.bins, w.inv[0])
    else:
        count_run(table, <double*> w.x + start, n, w.bins, w.inv[0])


cdef int count_whole(Work* w, int threads) noexcept nogil:
    """One tensor of at most PIECE values."""
    w.table = <uint32_t*> calloc(threads * TABLES * w.bins, sizeof(uint32_t))
    if w.table == NULL:
        return -1
    run(count_chunk, w, (w.n + CHUNK - 1) // CHUNK, threads)
    flush(w.counts, w.table, w.bins, threads * TABLES)
    free(w.table)
    return 0


cdef int count_strip(
    int64_t* counts, real* x, const double* inv, Py_ssize_t outer, Py_ssize_t channels,
    Py_ssize_t inner, Py_ssize_t first, Py_ssize_t last, Py_ssize_t bins,
) noexcept nogil:
    """Channels [first, last), at most STRIP of them, by one thread."""
    cdef Py_ssize_t c, o, since
    cdef real scale[STRIP]
    cdef uint32_t* table
    for c in range(first, last):
        scale[c - first] = <real> inv[c]
    if inner == 1:
        count_columns(counts + first * bins, x + first, outer, channels, <int> (last - first),
                      bins, scale)
        return 0
    if outer * inner < TABLES * bins:  # less than the tables: straight into the totals
        for c in range(first, last):
            for o in range(outer):
                count_columns(counts + c * bins, x + (o * channels + c) * inner, inner, 1, 1,
                              bins, scale + c - first)
        return 0
    table = <uint32_t*> calloc(TABLES * bins, sizeof(uint32_t))
    if table == NULL:
        return -1
    for c in range(first, last):
        since = 0
        for o in range(outer):
            count_run(table, x + (o * channels + c) * inner, inner, bins, inv[c])
            since += inner
            if since >= PIECE:
                flush(counts + c * bins, table, bins, TABLES)
                since = 0
        flush(counts + c * bins, table, bins, TABLES)
    free(table)
    return 0


cdef void count_channels(void* context, Py_ssize_t k, int worker) noexcept nogil:
    """Strip k of the channels."""
    cdef Work* w = <Work*> context
    cdef Py_ssize_t first = k * w.width, last = min(w.channels, first + w.width)
    cdef int failed
    if w.single:
        failed = count_strip(w.counts, <float*> w.x, w.inv, w.outer, w.channels, w.inner, first,
                             last, w.bins)
    else:
        failed = count_strip(w.counts, <double*> w.x, w.inv, w.outer, w.channels, w.inner, first,
                             last, w.bins)
    if failed:
        mark(&w.failed)


def count(cnp.ndarray counts not None, cnp.ndarray x not None, cnp.ndarray inv not None,
          Py_ssize_t outer, Py_ssize_t channels, Py_ssize_t inner, int threads):
    """In place: add the histogram of x (finite) to counts, (channels, bins) int64, bins even.

    A value beyond the table is counted in its last bin on that side.
    """
    cdef int kind = cnp.PyArray_TYPE(x)
    cdef Py_ssize_t bins = cnp.PyArray_SIZE(counts) // max(channels, <Py_ssize_t> 1)
    cdef Py_ssize_t size = outer * channels * inner, start
    cdef Work w
    cdef int failed
    if kind != cnp.NPY_FLOAT64:
        kind = cnp.NPY_FLOAT32
    w.single, w.bins, w.failed = kind == cnp.NPY_FLOAT32, bins, 0
    w.counts = <int64_t*> data_of(counts, cnp.NPY_INT64, channels * bins, True, "counts")
    w.inv = <double*> data_of(inv, cnp.NPY_FLOAT64, channels, False, "inv")
    cdef const char* data = <const char*> data_of(x, kind, size, False, "x")
    w.x = data
    if size == 0 or bins < 2:
        return
    if channels == 1:
        for start in range(0, size, PIECE):
            w.x = data + start * (4 if w.single else 8)
            w.n = min(<Py_ssize_t> PIECE, size - start)
            with nogil:
                failed = count_whole(&w, threads)
            if failed:
                raise MemoryError
            PyErr_CheckSignals()
        return
    w.outer, w.channels, w.inner = outer, channels, inner
    w.width = min(<Py_ssize_t> STRIP, (channels + threads - 1) // threads)
    with nogil:
        run(count_channels, &w, (channels + w.width - 1) // w.width, threads)
    if marked(&w.failed):
        raise MemoryError
