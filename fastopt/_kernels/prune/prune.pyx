"""Magnitude pruning: exact k-th magnitude, zeroing what lies below it, and N of M.

All ranking is done on the bits of |x| (magnitude.pxd): integers in the order of the magnitudes,
NaN above infinity. ``limit`` arguments are such bits. The selection is bracket and compact: one
pass counts what lies below a bracket and copies out the few elements inside (Floyd and Rivest,
"Expected time bounds for selection", 1975); the histogram narrows by radix where a sampled bracket
misses or ties are many.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from fastopt._kernels.prune.magnitude cimport (
    TILE, above, bits_t, compress, find, tally, zero_run
)
from fastopt._kernels.prune.n_of_m cimport LANES, keep_adjacent, keep_apart
from fastopt._kernels.shared cimport numpy as cnp
from fastopt._kernels.shared.arguments cimport data_of
from fastopt._kernels.shared.pool cimport run_polled
from fastopt._kernels.shared.stream cimport stream, stream_fence, tile_end

cnp.import_array()

cdef enum:
    CHUNK = 65536  # elements a thread takes at a time: 256 KiB of float32, inside L2
    COUNTED = 1 << 20  # the same where each chunk adds a table of 2048 counts to the whole
    STREAMED = 1024  # elements of a tile that goes past the caches

cdef extern from *:
    """
    #define fo_add(sum, n) __atomic_fetch_add(sum, n, __ATOMIC_RELAXED)
    static inline void fo_raise(int64_t* most, int64_t to)
    {
        int64_t seen = __atomic_load_n(most, __ATOMIC_RELAXED);
        while (seen < to
               && !__atomic_compare_exchange_n(most, &seen, to, 1, __ATOMIC_RELAXED,
                                               __ATOMIC_RELAXED))
            ;
    }
    """
    int64_t add_to "fo_add" (int64_t* sum, int64_t n) noexcept nogil  # the sum before
    void raise_to "fo_raise" (int64_t* most, int64_t to) noexcept nogil  # = max(most, to)

cdef struct Work:  # one call, of whichever kind
    bint single  # float32
    void* out
    uint8_t* keep
    const void* x
    Py_ssize_t n, room, split, inner
    int64_t low, high  # bits: a bracket; or the limit, and the limit after ``split``
    int64_t found, below, most
    int64_t* counts
    int shift, width, m, kept
    bint streamed

cdef uint64_t[256] order  # of the bits of a byte: their positions, one per byte


cdef void prepare() noexcept:
    cdef int mask, bit, at
    for mask in range(256):
        order[mask] = at = 0
        for bit in range(8):
            if mask >> bit & 1:
                order[mask] |= <uint64_t> bit << 8 * at
                at += 1


prepare()


cdef int source_of(Work* w, cnp.ndarray x, Py_ssize_t size) except -1:
    """Fill in x, float32 or float64, of ``size`` elements (any if negative)."""
    cdef int kind = cnp.NPY_FLOAT64 if cnp.PyArray_TYPE(x) == cnp.NPY_FLOAT64 else cnp.NPY_FLOAT32
    memset(w, 0, sizeof(Work))
    w.x = data_of(x, kind, size, False, "x")
    w.single = kind == cnp.NPY_FLOAT32
    w.n = cnp.PyArray_SIZE(x)
    return kind


cdef int over_chunks(
    void (*chunk)(void* context, Py_ssize_t index, int worker) noexcept nogil, Work* w,
    Py_ssize_t n, Py_ssize_t size, int threads,
) except -1:
    with nogil:
        run_polled(chunk, w, (n + size - 1) // size, threads)
    return 0


# ------------------------------------------------------------------------------- compact
cdef void compact_span(
    Work* w, bits_t* out, const bits_t* x, Py_ssize_t start, Py_ssize_t stop
) noexcept nogil:
    cdef bits_t[TILE + 16] inside
    cdef Py_ssize_t n, count, below = 0
    cdef int64_t at
    while start < stop:
        n = min(<Py_ssize_t> TILE, stop - start)
        count = compress(
            &inside[0], x + start, n, <bits_t> w.low, <bits_t> w.high, &order[0], &below
        )
        at = add_to(&w.found, count)
        if at + count <= w.room:
            memcpy(out + at, &inside[0], count * sizeof(bits_t))
        start += n
    add_to(&w.below, below)


cdef void compact_chunk(void* context, Py_ssize_t k, int worker) noexcept nogil:
    cdef Work* w = <Work*> context
    cdef Py_ssize_t start = k * CHUNK, stop = min(w.n, start + CHUNK)
    if w.single:
        compact_span(w, <int32_t*> w.out, <const int32_t*> w.x, start, stop)
    else:
        compact_span(w, <int64_t*> w.out, <const int64_t*> w.x, start, stop)


def compact(
    cnp.ndarray candidates not None, cnp.ndarray x not None, int64_t lo, int64_t hi, int threads
):
    """candidates[:inside] <- the |x| bits in [lo, hi], in any order; returns (below, inside).

    ``inside`` is -1 when candidates (uint32 for float32, uint64 for float64) is too small.
    """
    cdef Work w
    cdef int kind = source_of(&w, x, -1)
    w.out = data_of(
        candidates, cnp.NPY_UINT32 if kind == cnp.NPY_FLOAT32 else cnp.NPY_UINT64, -1, True,
        "candidates",
    )
    w.room = cnp.PyArray_SIZE(candidates)
    w.low, w.high = lo, hi
    over_chunks(compact_chunk, &w, w.n, CHUNK, threads)
    return w.below, w.found if w.found <= w.room else -1


# ------------------------------------------------------------------------------- count, find
cdef void above_chunk(void* context, Py_ssize_t k, int worker) noexcept nogil:
    cdef Work* w = <Work*> context
    cdef Py_ssize_t start = k * CHUNK, n = min(<Py_ssize_t> CHUNK, w.n - start)
    if w.single:
        add_to(&w.found, above(<const int32_t*> w.x + start, n, <int32_t> w.low))
    else:
        add_to(&w.found, above(<const int64_t*> w.x + start, n, w.low))


def count_above(cnp.ndarray x not None, int64_t limit, int threads):
    """How many |x| have bits > limit (with the bits of infinity: how many are NaN)."""
    cdef Work w
    source_of(&w, x, -1)
    w.low = limit
    over_chunks(above_chunk, &w, w.n, CHUNK, threads)
    return w.found


def find_equal(cnp.ndarray x not None, int64_t value, int64_t nth):
    """(index of the nth (from 0) element whose |x| bits equal value, or -1; what is left of
    nth)."""
    cdef Work w
    cdef Py_ssize_t at
    source_of(&w, x, -1)
    with nogil:
        if w.single:
            at = find(<const int32_t*> w.x, w.n, <int32_t> value, &nth)
        else:
            at = find(<const int64_t*> w.x, w.n, value, &nth)
    return at, nth


cdef void tally_chunk(void* context, Py_ssize_t k, int worker) noexcept nogil:
    cdef Work* w = <Work*> context
    cdef Py_ssize_t start = k * COUNTED, n = min(<Py_ssize_t> COUNTED, w.n - start)
    cdef uint32_t[4 * 2048] table
    cdef int j
    memset(&table[0], 0, sizeof(table))
    if w.single:
        tally(&table[0], <const int32_t*> w.x + start, n, w.shift, w.width, <int32_t> w.low)
    else:
        tally(&table[0], <const int64_t*> w.x + start, n, w.shift, w.width, w.low)
    for j in range(2048):
        add_to(
            w.counts + j,
            <int64_t> table[j] + table[2048 + j] + table[4096 + j] + table[6144 + j],
        )


def histogram(
    cnp.ndarray counts not None, cnp.ndarray x not None, int shift, int width, int64_t prefix,
    int threads,
):
    """counts[(|x| bits >> shift) % 2^width] += 1 where the bits above that window are prefix."""
    cdef Work w
    source_of(&w, x, -1)
    if width < 1 or width > 11 or shift < 0 or shift + width > (31 if w.single else 63):
        from fastopt.errors import OptionError
        raise OptionError(f"width: expected 1..11 bits below the sign, got {width} at {shift}")
    w.counts = <int64_t*> data_of(counts, cnp.NPY_INT64, 2048, True, "counts")
    w.shift, w.width, w.low = shift, width, prefix
    over_chunks(tally_chunk, &w, w.n, COUNTED, threads)


# ------------------------------------------------------------------------------- zero
cdef void zero_span(
    Work* w, bits_t* out, const bits_t* x, Py_ssize_t start, Py_ssize_t stop, bits_t limit
) noexcept nogil:
    """Elements [start, stop) under one limit; streamed, tile by tile past the caches."""
    cdef bits_t[STREAMED] tile
    cdef Py_ssize_t end
    cdef uint8_t* keep = w.keep
    if not w.streamed and start < stop:
        zero_run(
            out + start, keep if keep == NULL else keep + start, x + start, stop - start, limit
        )
        return
    while start < stop:
        end = tile_end(out, start, stop, sizeof(bits_t), STREAMED)
        zero_run(&tile[0], keep if keep == NULL else keep + start, x + start, end - start, limit)
        stream(out + start, &tile[0], (end - start) * sizeof(bits_t))
        start = end


cdef void zero_both(
    Work* w, bits_t* out, const bits_t* x, Py_ssize_t start, Py_ssize_t stop
) noexcept nogil:
    """Elements [start, stop), on both sides of the split."""
    zero_span(w, out, x, start, min(stop, w.split), <bits_t> w.low)
    zero_span(w, out, x, max(start, w.split), stop, <bits_t> w.high)
    if w.streamed:
        stream_fence()


cdef void zero_chunk(void* context, Py_ssize_t k, int worker) noexcept nogil:
    cdef Work* w = <Work*> context
    cdef Py_ssize_t start = k * CHUNK, stop = min(w.n, start + CHUNK)
    if w.single:
        zero_both(w, <int32_t*> w.out, <const int32_t*> w.x, start, stop)
    else:
        zero_both(w, <int64_t*> w.out, <const int64_t*> w.x, start, stop)


cdef int result_of(
    Work* w, cnp.ndarray out, cnp.ndarray keep, bint streamed
) except -1:
    """Fill in where the result goes: like x, and a bool per element (or None)."""
    w.out = data_of(out, cnp.NPY_FLOAT32 if w.single else cnp.NPY_FLOAT64, w.n, True, "out")
    if keep is not None:
        w.keep = <uint8_t*> data_of(keep, cnp.NPY_BOOL, w.n, True, "keep")
    w.streamed = streamed and w.out != w.x
    return 0


def zero_below(
    cnp.ndarray out not None, cnp.ndarray keep, cnp.ndarray x not None, int64_t limit,
    Py_ssize_t split, int64_t limit_after, bint streamed, int threads,
):
    """out[i] = +0 where |x[i]| bits < limit (i < split) or < limit_after (i >= split), else x[i].

    ``out`` may be ``x``. ``keep`` is None or bool, and gets True where x[i] stays. ``streamed``
    writes past the caches.
    """
    cdef Work w
    source_of(&w, x, -1)
    result_of(&w, out, keep, streamed)
    w.split, w.low, w.high = min(max(split, 0), w.n), limit, limit_after
    over_chunks(zero_chunk, &w, w.n, CHUNK, threads)


# ------------------------------------------------------------------------------- N of M
cdef bits_t rank_span(
    Work* w, bits_t* out, const bits_t* x, Py_ssize_t start, Py_ssize_t stop
) noexcept nogil:
    """Groups [start, stop) (of ``inner`` each); the largest magnitude that goes."""
    cdef bits_t[STREAMED] tile
    cdef bits_t most = 0
    cdef Py_ssize_t at, groups, size = w.m * w.inner, step = 1
    cdef uint8_t* keep = w.keep
    if w.inner == 1:
        step = STREAMED // w.m // LANES * LANES
    while start < stop:
        at = start * size
        groups = min(step, stop - start)
        if w.keep != NULL:
            keep = w.keep + at
        if w.inner > 1:
            most = max(most, keep_apart(out + at, keep, x + at, w.inner, w.m, w.kept))
        elif not w.streamed:
            most = max(most, keep_adjacent(out + at, keep, x + at, groups, w.m, w.kept))
        else:
            most = max(most, keep_adjacent(&tile[0], keep, x + at, groups, w.m, w.kept))
            stream(out + at, &tile[0], groups * size * sizeof(bits_t))
        start += groups
    return most


cdef inline Py_ssize_t groups_of(Work* w) noexcept nogil:
    """Groups a thread takes at a time."""
    return max(<Py_ssize_t> 1, CHUNK // (w.m * w.inner))


cdef void rank_chunk(void* context, Py_ssize_t k, int worker) noexcept nogil:
    cdef Work* w = <Work*> context
    cdef Py_ssize_t step = groups_of(w)
    cdef Py_ssize_t start = k * step, stop = min(w.n // (w.m * w.inner), start + step)
    if w.single:
        raise_to(&w.most, rank_span(w, <int32_t*> w.out, <const int32_t*> w.x, start, stop))
    else:
        raise_to(&w.most, rank_span(w, <int64_t*> w.out, <const int64_t*> w.x, start, stop))
    if w.streamed:
        stream_fence()


def keep_n_of_m(
    cnp.ndarray out not None, cnp.ndarray keep, cnp.ndarray x not None, Py_ssize_t inner, int n,
    int m, bint streamed, int threads,
):
    """out = x with only the n largest |x| of each group of m; the bits of the largest that goes
    (0: none; above those of infinity: a NaN).

    Element i of lane l of group g is x[(g * m + i) * inner + l]. ``out`` may be ``x``; ``keep``
    is None or bool. Of equal magnitudes the later ones stay. m is 1..32.
    """
    cdef Work w
    cdef Py_ssize_t size = cnp.PyArray_SIZE(x)
    source_of(&w, x, size)
    if m < 1 or m > 32 or inner < 1 or size % (m * inner):
        from fastopt.errors import ArrayError
        raise ArrayError(f"x: expected groups of {m} (1..32) x {inner} elements, got {size}")
    result_of(&w, out, keep, streamed)
    w.inner, w.m, w.kept = inner, m, n
    over_chunks(rank_chunk, &w, size // (m * inner), groups_of(&w), threads)
    return w.most
