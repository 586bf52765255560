"""Weight sharing, k-means in one dimension: counts over adaptive bins, the optimal partition of
sorted points by dynamic programming, and exact codes.

The cost of a run is its squared error. Which last run is best moves up with the end of the points
(the cost is concave Monge), so each layer of the table is filled by divide and conquer, O(n log n)
(Wang and Song, "Ckmeans.1d.dp", The R Journal 3, 2011; Gronlund et al., "Fast exact k-means,
k-medians and Bregman divergence clustering in 1D", 2017).
"""

from libc.math cimport INFINITY
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from fastopt._kernels.cluster.bins cimport BLOCK, bin_of, keys_of, real
from fastopt._kernels.shared cimport numpy as cnp
from fastopt._kernels.shared.arguments cimport data_of
from fastopt._kernels.shared.pool cimport run_polled

from fastopt.errors import ArrayError

cnp.import_array()

cdef enum:
    CHUNK = 1 << 15  # elements a thread takes at a time
    ENTRIES = 1 << 16  # of a map
    PIECE = 1 << 24  # elements whose packed counts cannot overflow

ctypedef fused code_t:
    uint8_t
    uint16_t

cdef struct Work:  # a pass over x
    bint single, wide_codes  # float32; codes of two bytes
    const void* x
    Py_ssize_t n, bins
    double unit, centre
    const uint32_t* map
    uint64_t* table  # of each worker: a bin's count << 40, plus the sum of its keys' low halves
    const uint32_t* span  # of a bin: the lowest code << 16, plus how many codes more there are
    const double* middle  # between the codes' values
    void* codes


cdef int work_on(Work* w, cnp.ndarray x, double unit, double centre, cnp.ndarray map) except -1:
    cdef int kind = cnp.NPY_FLOAT64 if cnp.PyArray_TYPE(x) == cnp.NPY_FLOAT64 else cnp.NPY_FLOAT32
    memset(w, 0, sizeof(Work))
    w.x = data_of(x, kind, -1, False, "x")
    w.single = kind == cnp.NPY_FLOAT32
    w.n = cnp.PyArray_SIZE(x)
    w.unit, w.centre = unit, centre
    w.map = <const uint32_t*> data_of(map, cnp.NPY_UINT32, ENTRIES, False, "map")
    return 0


cdef Py_ssize_t reach(const uint32_t* map) noexcept:
    """Bins that the map leads to; -1 where a shift is not one."""
    cdef Py_ssize_t most = 0, t
    for t in range(ENTRIES):
        if map[t] & 31 > 16:
            return -1
        most = max(most, bin_of(<uint32_t> (t << 16 | 0xFFFF), map) + 1)
    return most


# --- counts

cdef void tally_span(
    uint64_t* table, const real* x, Py_ssize_t n, double unit, double centre, const uint32_t* map
) noexcept nogil:
    cdef uint32_t[BLOCK] keys
    cdef Py_ssize_t start = 0, i, m
    while start < n:
        m = min(<Py_ssize_t> BLOCK, n - start)
        keys_of(&keys[0], x + start, m, unit, centre)
        for i in range(m):
            table[bin_of(keys[i], map)] += <uint64_t> 1 << 40 | (keys[i] & 0xFFFF)
        start += m


cdef void tally_chunk(void* context, Py_ssize_t k, int worker) noexcept nogil:
    cdef Work* w = <Work*> context
    cdef Py_ssize_t start = k * CHUNK, n = min(<Py_ssize_t> CHUNK, w.n - start)
    cdef uint64_t* table = w.table + worker * w.bins
    if w.single:
        tally_span(table, <const float*> w.x + start, n, w.unit, w.centre, w.map)
    else:
        tally_span(table, <const double*> w.x + start, n, w.unit, w.centre, w.map)


def tally(
    cnp.ndarray count not None, cnp.ndarray low not None, cnp.ndarray x not None, double unit,
    double centre, cnp.ndarray map not None, int threads,
):
    """In place: count[bin] += elements of x in it, low[bin] += the low halves of their keys."""
    cdef Work w
    cdef Py_ssize_t start, n, b, i
    work_on(&w, x, unit, centre, map)
    w.bins = cnp.PyArray_SIZE(count)
    cdef int64_t* counts = <int64_t*> data_of(count, cnp.NPY_INT64, -1, True, "count")
    cdef int64_t* lows = <int64_t*> data_of(low, cnp.NPY_INT64, w.bins, True, "low")
    if not 0 < reach(w.map) <= w.bins:
        raise ArrayError(f"map: expected bins below {w.bins} and shifts of 0..16")
    threads = max(threads, 1)
    w.table = <uint64_t*> calloc(threads * w.bins, sizeof(uint64_t))
    if w.table == NULL:
        raise MemoryError
    n = w.n
    try:
        for start in range(0, n, PIECE):
            w.n = min(<Py_ssize_t> PIECE, n - start)
            w.x = <const char*> cnp.PyArray_DATA(x) + start * (4 if w.single else 8)
            with nogil:
                run_polled(tally_chunk, &w, (w.n + CHUNK - 1) // CHUNK, threads)
            for i in range(threads):
                for b in range(w.bins):
                    counts[b] += <int64_t> (w.table[i * w.bins + b] >> 40)
                    lows[b] += <int64_t> (w.table[i * w.bins + b] & ((<uint64_t> 1 << 40) - 1))
            memset(w.table, 0, threads * w.bins * sizeof(uint64_t))
    finally:
        free(w.table)


# --- the optimal partition

cdef struct Points:  # prefix sums, n + 1 of them, and two layers of the table
    const double* count
    const double* total
    const double* before
    double* least


cdef inline double cost(const Points* p, Py_ssize_t i, Py_ssize_t j) noexcept nogil:
    """Squared error of the run [i, j), less the sum of its squares."""
    cdef double sum = p.total[j] - p.total[i]
    return -sum * sum / (p.count[j] - p.count[i])


cdef void layer(
    const Points* p, int32_t* chosen, Py_ssize_t low, Py_ssize_t high, Py_ssize_t first,
    Py_ssize_t last,
) noexcept nogil:
    """least[j] and chosen[j] for the ends j of [low, high], whose last run begins in
    [first, last]."""
    cdef Py_ssize_t j, i, at
    cdef double best, now
    while low <= high:
        j = (low + high) // 2
        best = INFINITY
        at = first
        for i in range(first, min(last, j - 1) + 1):
            now = p.before[i] + cost(p, i, j)
            at = i if now < best else at
            best = now if now < best else best
        p.least[j] = best
        chosen[j] = <int32_t> at
        layer(p, chosen, low, j - 1, first, at)
        low, first = j + 1, at


def partition(
    cnp.ndarray starts not None, cnp.ndarray count not None, cnp.ndarray total not None,
    cnp.ndarray chosen not None, cnp.ndarray layers not None,
):
    """starts (k,) = the beginnings of the k runs of least squared error of n >= k sorted points.

    ``count`` and ``total``, (n + 1,) float64: how many weights the points before each have, and
    their sum, both increasing from 0. ``chosen`` (k, n + 1) int32 and ``layers`` (2, n + 1)
    float64 are scratch.
    """
    cdef Py_ssize_t k = cnp.PyArray_SIZE(starts), n = cnp.PyArray_SIZE(count) - 1, j, m
    cdef int64_t* begin = <int64_t*> data_of(starts, cnp.NPY_INT64, -1, True, "starts")
    cdef int32_t* pick = <int32_t*> data_of(chosen, cnp.NPY_INT32, k * (n + 1), True, "chosen")
    cdef double* room = <double*> data_of(layers, cnp.NPY_FLOAT64, 2 * (n + 1), True, "layers")
    cdef Points p
    p.count = <const double*> data_of(count, cnp.NPY_FLOAT64, -1, False, "count")
    p.total = <const double*> data_of(total, cnp.NPY_FLOAT64, n + 1, False, "total")
    if not 0 < k <= n < 2**31 - 1:
        raise ArrayError(f"starts: expected 1..{n} runs, got {k}")
    with nogil:
        p.before, p.least = room, room + n + 1
        p.least[0] = 0
        for j in range(1, n + 1):
            p.least[j] = cost(&p, 0, j)
        for m in range(1, k):
            p.before = p.least
            p.least = room + (n + 1 if m % 2 == 0 else 0)
            layer(&p, pick + m * (n + 1), m + 1, n, m, n - 1)
        j = n
        for m in range(k - 1, 0, -1):
            j = begin[m] = pick[m * (n + 1) + j]
        begin[0] = 0


# --- codes

cdef inline Py_ssize_t code_of(double x, uint32_t span, const double* middle) noexcept nogil:
    """How many middles are below x; its bin's span tells the lowest code and how many more."""
    cdef Py_ssize_t low = span >> 16, high = low + (span & 0xFFFF), at
    while low < high:
        at = (low + high) // 2
        if middle[at] < x:
            low = at + 1
        else:
            high = at
    return low


cdef void assign_span(
    Work* w, code_t* codes, const real* x, Py_ssize_t n
) noexcept nogil:
    cdef uint32_t[BLOCK] keys
    cdef Py_ssize_t start = 0, i, m
    cdef uint32_t span
    while start < n:
        m = min(<Py_ssize_t> BLOCK, n - start)
        keys_of(&keys[0], x + start, m, w.unit, w.centre)
        for i in range(m):
            span = w.span[bin_of(keys[i], w.map)]
            codes[start + i] = <code_t> (span >> 16)
            if span & 0xFFFF:
                codes[start + i] = <code_t> code_of(x[start + i], span, w.middle)
        start += m


cdef void assign_chunk(void* context, Py_ssize_t k, int worker) noexcept nogil:
    cdef Work* w = <Work*> context
    cdef Py_ssize_t at = k * CHUNK, n = min(<Py_ssize_t> CHUNK, w.n - at)
    if w.single and w.wide_codes:
        assign_span(w, <uint16_t*> w.codes + at, <const float*> w.x + at, n)
    elif w.single:
        assign_span(w, <uint8_t*> w.codes + at, <const float*> w.x + at, n)
    elif w.wide_codes:
        assign_span(w, <uint16_t*> w.codes + at, <const double*> w.x + at, n)
    else:
        assign_span(w, <uint8_t*> w.codes + at, <const double*> w.x + at, n)


def assign(
    cnp.ndarray codes not None, cnp.ndarray x not None, double unit, double centre,
    cnp.ndarray map not None, cnp.ndarray span not None, cnp.ndarray middle not None, int threads,
):
    """codes (uint8 or uint16) = how many of ``middle`` (ascending float64) are below x.

    ``span`` (uint32) tells of each bin the lowest code << 16, plus how many more there may be.
    """
    cdef Work w
    cdef Py_ssize_t bins = cnp.PyArray_SIZE(span), k = cnp.PyArray_SIZE(middle), b
    cdef int kind = cnp.NPY_UINT8 if cnp.PyArray_TYPE(codes) == cnp.NPY_UINT8 else cnp.NPY_UINT16
    work_on(&w, x, unit, centre, map)
    w.codes = data_of(codes, kind, w.n, True, "codes")
    w.wide_codes = kind == cnp.NPY_UINT16
    w.span = <const uint32_t*> data_of(span, cnp.NPY_UINT32, -1, False, "span")
    w.middle = <const double*> data_of(middle, cnp.NPY_FLOAT64, -1, False, "middle")
    if not 0 < reach(w.map) <= bins:
        raise ArrayError(f"map: expected bins below {bins} and shifts of 0..16")
    for b in range(bins):
        if <Py_ssize_t> (w.span[b] >> 16) + (w.span[b] & 0xFFFF) > k:
            raise ArrayError(f"span: expected codes up to {k}, got more at {b}")
    if k > (65535 if w.wide_codes else 255):
        raise ArrayError(f"middle: expected fewer for codes of {2 if w.wide_codes else 1} bytes")
    with nogil:
        run_polled(assign_chunk, &w, (w.n + CHUNK - 1) // CHUNK, threads)
