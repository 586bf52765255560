"""Magnitude pruning: exact k-th magnitude, zeroing what lies below it, and N of M.

All ranking is done on the bits of |x| (``prune.h``): unsigned integers in the order of the
magnitudes, NaN above infinity. ``limit`` arguments are such bits. The selection is bracket and
compact: one pass counts what lies below a bracket and copies out the few elements inside (Floyd
and Rivest, "Expected time bounds for selection", 1975); the histogram narrows by radix where a
sampled bracket misses or ties are many.
"""

from cython.parallel cimport prange
from libc.stdint cimport int64_t, uint32_t, uint64_t, uint8_t
from libc.string cimport memmove, memset

from fastopt._kernels.shared cimport numpy as cnp

from fastopt._kernels.shared.arguments cimport data_of



cnp.import_array()

ctypedef fused bits_t:
    uint32_t
    uint64_t

cdef extern from "prune/prune.h" nogil:
    Py_ssize_t fo_compact32(
        uint32_t*, Py_ssize_t, const uint32_t*, Py_ssize_t, uint32_t, uint32_t, int64_t*
    ) noexcept
    Py_ssize_t fo_compact64(
        uint64_t*, Py_ssize_t, const uint64_t*, Py_ssize_t, uint64_t, uint64_t, int64_t*
    ) noexcept
    void fo_zero32(uint32_t*, uint8_t*, const uint32_t*, Py_ssize_t, uint32_t) noexcept
    void fo_zero64(uint64_t*, uint8_t*, const uint64_t*, Py_ssize_t, uint64_t) noexcept
    int64_t fo_above32(const uint32_t*, Py_ssize_t, uint32_t) noexcept
    int64_t fo_above64(const uint64_t*, Py_ssize_t, uint64_t) noexcept
    Py_ssize_t fo_find32(const uint32_t*, Py_ssize_t, uint32_t, int64_t*) noexcept
    Py_ssize_t fo_find64(const uint64_t*, Py_ssize_t, uint64_t, int64_t*) noexcept
    int64_t fo_nm4_32(uint32_t*, uint8_t*, const uint32_t*, Py_ssize_t, int) noexcept
    int64_t fo_nm4_64(uint64_t*, uint8_t*, const uint64_t*, Py_ssize_t, int) noexcept
    int64_t fo_nm_32(
        uint32_t*, uint8_t*, const uint32_t*, Py_ssize_t, Py_ssize_t, Py_ssize_t, int, int
    ) noexcept
    int64_t fo_nm_64(
        uint64_t*, uint8_t*, const uint64_t*, Py_ssize_t, Py_ssize_t, Py_ssize_t, int, int
    ) noexcept
    void fo_hist32(int64_t*, const uint32_t*, Py_ssize_t, int, int, uint32_t) noexcept
    void fo_hist64(int64_t*, const uint64_t*, Py_ssize_t, int, int, uint64_t) noexcept

# Elements a thread takes at a time when zeroing: 256 KiB of float32, inside L2.
cdef enum:
    CHUNK = 65536


cdef inline Py_ssize_t _part(Py_ssize_t n, int parts, int i) noexcept nogil:
    """Start of part i of n elements, on a multiple of 64."""
    return n if i >= parts else (n // parts * i) & ~<Py_ssize_t> 63


# ------------------------------------------------------------------------------- compact
cdef Py_ssize_t _compact_block(
    bits_t* buf, Py_ssize_t room, const bits_t* x, Py_ssize_t n, bits_t lo, bits_t hi,
    int64_t* below, int64_t* inside, int threads,
) noexcept nogil:
    """Parts into their own regions of buf, then closed up; -1 when a region is full."""
    cdef Py_ssize_t share = room // threads, filled = 0, start, stop
    cdef int i
    if threads == 1:
        if bits_t is uint32_t:
            inside[0] = fo_compact32(buf, room, x, n, lo, hi, below)
        else:
            inside[0] = fo_compact64(buf, room, x, n, lo, hi, below)
    else:
        for i in prange(threads, num_threads=threads, schedule="static", chunksize=1):
            start = _part(n, threads, i)
            stop = _part(n, threads, i + 1)
            if bits_t is uint32_t:
                inside[i] = fo_compact32(
                    buf + i * share, share, x + start, stop - start, lo, hi, below + i
                )
            else:
                inside[i] = fo_compact64(
                    buf + i * share, share, x + start, stop - start, lo, hi, below + i
                )
    for i in range(threads):
        if inside[i] < 0:
            return -1
        if i:
            memmove(buf + filled, buf + i * share, inside[i] * sizeof(bits_t))
        filled += inside[i]
    return filled


def compact(
    cnp.ndarray candidates not None, cnp.ndarray x not None, uint64_t lo, uint64_t hi,
    int threads,
):
    """candidates[:inside] <- the |x| bits in [lo, hi], in order; returns (below, inside).

    ``inside`` is -1 when candidates (uint32 for float32, uint64 for float64) is too small; each
    thread fills its own share of it and asks for 32 elements of slack.
    """
    cdef Py_ssize_t n = cnp.PyArray_SIZE(x), room = cnp.PyArray_SIZE(candidates), inside
    cdef int64_t below[64]
    cdef int64_t counts[64]
    cdef int64_t total = 0
    cdef int i
    cdef void* px
    cdef void* pb
    threads = min(max(threads, 1), 64)
    memset(below, 0, sizeof(below))
    if cnp.PyArray_TYPE(x) == cnp.NPY_FLOAT32:
        px = data_of(x, cnp.NPY_FLOAT32, -1, False, "x")
        pb = data_of(candidates, cnp.NPY_UINT32, -1, True, "candidates")
        with nogil:
            inside = _compact_block(
                <uint32_t*> pb, room, <const uint32_t*> px, n, <uint32_t> lo, <uint32_t> hi,
                below, counts, threads,
            )
    else:
        px = data_of(x, cnp.NPY_FLOAT64, -1, False, "x")
        pb = data_of(candidates, cnp.NPY_UINT64, -1, True, "candidates")
        with nogil:
            inside = _compact_block(
                <uint64_t*> pb, room, <const uint64_t*> px, n, lo, hi, below, counts, threads
            )
    for i in range(threads):
        total += below[i]
    return total, inside


# ------------------------------------------------------------------------------- count, find
def count_above(cnp.ndarray x not None, uint64_t limit, int threads):
    """How many |x| have bits > limit (with the bits of infinity: how many are NaN)."""
    cdef Py_ssize_t n = cnp.PyArray_SIZE(x), start
    cdef int64_t total = 0
    cdef int i
    cdef void* px
    if cnp.PyArray_TYPE(x) == cnp.NPY_FLOAT32:
        px = data_of(x, cnp.NPY_FLOAT32, -1, False, "x")
        with nogil:
            if threads == 1:
                total = fo_above32(<const uint32_t*> px, n, <uint32_t> limit)
            else:
                for i in prange(threads, num_threads=threads, schedule="static", chunksize=1):
                    start = _part(n, threads, i)
                    total += fo_above32(
                        <const uint32_t*> px + start, _part(n, threads, i + 1) - start,
                        <uint32_t> limit,
                    )
    else:
        px = data_of(x, cnp.NPY_FLOAT64, -1, False, "x")
        with nogil:
            total = fo_above64(<const uint64_t*> px, n, limit)
    return total


def find_equal(cnp.ndarray x not None, uint64_t value, int64_t nth):
    """(index of the nth (from 0) element whose |x| bits equal value, or -1; what is left of nth)."""
    cdef Py_ssize_t n = cnp.PyArray_SIZE(x), at
    cdef void* px
    if cnp.PyArray_TYPE(x) == cnp.NPY_FLOAT32:
        px = data_of(x, cnp.NPY_FLOAT32, -1, False, "x")
        with nogil:
            at = fo_find32(<const uint32_t*> px, n, <uint32_t> value, &nth)
    else:
        px = data_of(x, cnp.NPY_FLOAT64, -1, False, "x")
        with nogil:
            at = fo_find64(<const uint64_t*> px, n, value, &nth)
    return at, nth


def histogram(
    cnp.ndarray counts not None, cnp.ndarray x not None, int shift, int width, uint64_t prefix
):
    """counts[(|x| bits >> shift) % 2^width] += 1 where the bits above that window are prefix."""
    cdef int64_t* pc = <int64_t*> data_of(counts, cnp.NPY_INT64, 2048, True, "counts")
    cdef Py_ssize_t n = cnp.PyArray_SIZE(x)
    cdef void* px
    if width < 1 or width > 11 or shift < 0 or shift + width > 63:
        from fastopt.errors import OptionError
        raise OptionError(f"width: expected 1..11 bits below bit 63, got {width} at {shift}")
    if cnp.PyArray_TYPE(x) == cnp.NPY_FLOAT32:
        px = data_of(x, cnp.NPY_FLOAT32, -1, False, "x")
        with nogil:
            fo_hist32(pc, <const uint32_t*> px, n, shift, width, <uint32_t> prefix)
    else:
        px = data_of(x, cnp.NPY_FLOAT64, -1, False, "x")
        with nogil:
            fo_hist64(pc, <const uint64_t*> px, n, shift, width, prefix)


# ------------------------------------------------------------------------------- zero
cdef void _zero_run(
    bits_t* out, uint8_t* keep, const bits_t* x, Py_ssize_t start, Py_ssize_t stop, bits_t limit
) noexcept nogil:
    if stop > start:
        if bits_t is uint32_t:
            fo_zero32(out + start, keep + start if keep else NULL, x + start, stop - start, limit)
        else:
            fo_zero64(out + start, keep + start if keep else NULL, x + start, stop - start, limit)


cdef void _zero_block(
    bits_t* out, uint8_t* keep, const bits_t* x, Py_ssize_t n, bits_t limit, Py_ssize_t split,
    bits_t limit_after, int threads,
) noexcept nogil:
    cdef Py_ssize_t c, a, b
    cdef Py_ssize_t chunks = (n + CHUNK - 1) // CHUNK
    if threads == 1:
        _zero_run(out, keep, x, 0, split, limit)
        _zero_run(out, keep, x, split, n, limit_after)
    else:
        for c in prange(chunks, num_threads=threads, schedule="static"):
            a = c * CHUNK
            b = min(a + CHUNK, n)
            _zero_run(out, keep, x, a, min(b, split), limit)
            _zero_run(out, keep, x, max(a, split), b, limit_after)


def zero_below(
    cnp.ndarray out not None, cnp.ndarray keep, cnp.ndarray x not None, uint64_t limit,
    Py_ssize_t split, uint64_t limit_after, int threads,
):
    """out[i] = +0 where |x[i]| bits < limit (i < split) or < limit_after (i >= split), else x[i].

    ``out`` may be ``x``. ``keep`` is None or bool, and gets True where x[i] stays.
    """
    cdef Py_ssize_t n = cnp.PyArray_SIZE(x)
    cdef uint8_t* pk = NULL
    cdef void* px
    cdef void* po
    split = min(max(split, 0), n)
    if keep is not None:
        pk = <uint8_t*> data_of(keep, cnp.NPY_BOOL, n, True, "keep")
    if cnp.PyArray_TYPE(x) == cnp.NPY_FLOAT32:
        px = data_of(x, cnp.NPY_FLOAT32, n, False, "x")
        po = data_of(out, cnp.NPY_FLOAT32, n, True, "out")
        with nogil:
            _zero_block(
                <uint32_t*> po, pk, <const uint32_t*> px, n, <uint32_t> limit, split,
                <uint32_t> limit_after, threads,
            )
    else:
        px = data_of(x, cnp.NPY_FLOAT64, n, False, "x")
        po = data_of(out, cnp.NPY_FLOAT64, n, True, "out")
        with nogil:
            _zero_block(
                <uint64_t*> po, pk, <const uint64_t*> px, n, limit, split, limit_after, threads
            )


# ------------------------------------------------------------------------------- N of M
cdef int64_t _nm_lanes(
    bits_t* out, uint8_t* keep, const bits_t* x, Py_ssize_t lanes, Py_ssize_t step,
    Py_ssize_t apart, int m, int n,
) noexcept nogil:
    if bits_t is uint32_t:
        return fo_nm_32(out, keep, x, lanes, step, apart, m, n)
    else:
        return fo_nm_64(out, keep, x, lanes, step, apart, m, n)


cdef int64_t _nm_chunk(
    bits_t* out, uint8_t* keep, const bits_t* x, Py_ssize_t a, Py_ssize_t b, Py_ssize_t inner,
    int m, int n,
) noexcept nogil:
    cdef Py_ssize_t g, at = a * m * inner
    cdef int64_t lost = 0
    if inner == 1 and m == 4:
        if bits_t is uint32_t:
            return fo_nm4_32(out + at, keep + at if keep else NULL, x + at, b - a, n)
        else:
            return fo_nm4_64(out + at, keep + at if keep else NULL, x + at, b - a, n)
    if inner == 1:
        return _nm_lanes(out + at, keep + at if keep else NULL, x + at, b - a, 1, m, m, n)
    for g in range(a, b):
        at = g * m * inner
        lost += _nm_lanes(out + at, keep + at if keep else NULL, x + at, inner, inner, 1, m, n)
    return lost


cdef int64_t _nm_block(
    bits_t* out, uint8_t* keep, const bits_t* x, Py_ssize_t groups, Py_ssize_t inner, int m,
    int n, int threads,
) noexcept nogil:
    cdef Py_ssize_t c, step
    cdef int64_t lost = 0
    if inner == 1 and m == 4:
        step = CHUNK // 4
    else:
        step = max(1, CHUNK // (m * inner))
    cdef Py_ssize_t chunks = (groups + step - 1) // step
    if threads == 1:
        for c in range(chunks):
            lost += _nm_chunk(out, keep, x, c * step, min(c * step + step, groups), inner, m, n)
    else:
        for c in prange(chunks, num_threads=threads, schedule="static"):
            lost += _nm_chunk(out, keep, x, c * step, min(c * step + step, groups), inner, m, n)
    return lost


def keep_n_of_m(
    cnp.ndarray out not None, cnp.ndarray keep, cnp.ndarray x not None, Py_ssize_t inner, int n,
    int m, int threads,
):
    """out = x with only the n largest |x| of each group of m; returns how many NaN had to go.

    Element i of lane l of group g is x[(g * m + i) * inner + l]. ``out`` may be ``x``; ``keep``
    is None or bool. Of equal magnitudes the later ones stay. m is 1..32.
    """
    cdef Py_ssize_t size = cnp.PyArray_SIZE(x), groups
    cdef uint8_t* pk = NULL
    cdef void* px
    cdef void* po
    cdef int64_t lost = 0
    if m < 1 or m > 32 or inner < 1 or size % (m * inner):
        from fastopt.errors import ArrayError
        raise ArrayError(f"x: expected groups of {m} (1..32) x {inner} elements, got {size}")
    groups = size // (m * inner)
    if keep is not None:
        pk = <uint8_t*> data_of(keep, cnp.NPY_BOOL, size, True, "keep")
    if cnp.PyArray_TYPE(x) == cnp.NPY_FLOAT32:
        px = data_of(x, cnp.NPY_FLOAT32, size, False, "x")
        po = data_of(out, cnp.NPY_FLOAT32, size, True, "out")
        with nogil:
            lost = _nm_block(
                <uint32_t*> po, pk, <const uint32_t*> px, groups, inner, m, n, threads
            )
    else:
        px = data_of(x, cnp.NPY_FLOAT64, size, False, "x")
        po = data_of(out, cnp.NPY_FLOAT64, size, True, "out")
        with nogil:
            lost = _nm_block(
                <uint64_t*> po, pk, <const uint64_t*> px, groups, inner, m, n, threads
            )
    return lost
