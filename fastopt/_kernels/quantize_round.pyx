"""Quantise with a chosen rounding and overflow rule, in float64, for every layout.

code = overflow(round(x / scale) + zero_point): rounding half to even, half away from zero, down,
toward zero, or stochastic (up with the probability of the fraction, from Philox words of the
element's index); overflow saturates, or wraps modulo the codes' range (two's complement for
low = -high - 1). NaN gives ``low``, or 0 where it wraps; infinities saturate, or give 0.
"""

cimport numpy as cnp
from cpython.exc cimport PyErr_CheckSignals
from cython cimport floating
from cython.parallel cimport prange
from libc.math cimport fabs, floor, rint, trunc
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint32_t, uint64_t

from fastopt._kernels._args cimport data_of
from fastopt._kernels._layout cimport Layout, Place, place_of, scales_of, take
from fastopt._kernels._noise cimport noise

cnp.import_array()

cdef enum:
    BLOCK = 64  # elements of the innermost loop and of one block of noise
    CHUNK = 32768  # elements a thread takes at a time; a multiple of BLOCK
    STEP = 1 << 24  # elements between two looks for Ctrl-C

cdef enum:
    EVEN = 0
    AWAY = 1
    DOWN = 2
    ZERO = 3
    RANDOM = 4

cdef struct Rule:
    int mode
    bint wrap
    double low
    double high
    uint64_t key


cdef inline double away(double v) noexcept nogil:
    """Half away from zero: v + 0.5 would round 0.49999999999999994 up, the fraction does not."""
    cdef double t = trunc(v)
    cdef double up = 1.0 if v > 0 else -1.0
    return t + (up if fabs(v - t) >= 0.5 else 0.0)


cdef void round_block(double* v, Rule rule, Py_ssize_t index) noexcept nogil:
    """BLOCK quotients rounded in place; ``index`` is a multiple of BLOCK."""
    cdef uint32_t[BLOCK] word
    cdef Py_ssize_t k
    cdef double t
    if rule.mode == EVEN:
        for k in range(BLOCK):
            v[k] = rint(v[k])
    elif rule.mode == AWAY:
        for k in range(BLOCK):
            v[k] = away(v[k])
    elif rule.mode == DOWN:
        for k in range(BLOCK):
            v[k] = floor(v[k])
    elif rule.mode == ZERO:
        for k in range(BLOCK):
            v[k] = trunc(v[k])
    else:
        noise(&word[0], rule.key, <uint64_t> (index // BLOCK))
        for k in range(BLOCK):
            t = floor(v[k])
            v[k] = t + (1.0 if <double> word[k] * (1.0 / 4294967296.0) < v[k] - t else 0.0)


cdef void limit_block(int64_t* out, const double* v, const double* zero, Rule rule) noexcept nogil:
    """Zero point added, then saturated or wrapped."""
    cdef Py_ssize_t k
    cdef double w, span = rule.high - rule.low + 1
    if rule.wrap:
        for k in range(BLOCK):
            w = v[k] + zero[k]
            w = w - span * floor((w - rule.low) / span)
            w = w if w >= rule.low else 0.0  # NaN, and infinities, which made NaN above
            w = w if w <= rule.high else 0.0
            out[k] = <int64_t> w
    else:
        for k in range(BLOCK):
            w = v[k] + zero[k]
            w = w if w > rule.low else rule.low
            w = w if w < rule.high else rule.high
            out[k] = <int64_t> w


cdef void round_chunk(
    void* out, int item, const floating* x, const floating* scale, const int64_t* zero,
    Py_ssize_t start, Py_ssize_t stop, Layout lay, Rule rule,
) noexcept nogil:
    """Elements [start, stop); start is a multiple of BLOCK."""
    cdef double[BLOCK] v
    cdef double[BLOCK] base
    cdef int64_t[BLOCK] made
    cdef Place p = place_of(start, lay)
    cdef Py_ssize_t n, s, j, k, end
    for k in range(BLOCK):
        v[k] = 0
        base[k] = 0
    while start < stop:
        end = min(stop, start + BLOCK)
        j = 0
        while start + j < end:
            n = take(&p, lay, end - start - j, &s)
            if lay.rows:
                for k in range(n):
                    v[j + k] = <double> x[start + j + k] / <double> scale[s + k]
                    base[j + k] = <double> zero[s + k]
            else:
                for k in range(n):
                    v[j + k] = <double> x[start + j + k] / <double> scale[s]
                    base[j + k] = <double> zero[s]
            j += n
        round_block(&v[0], rule, start)
        limit_block(&made[0], &v[0], &base[0], rule)
        if item == 1:
            for k in range(end - start):
                (<int8_t*> out)[start + k] = <int8_t> made[k]
        elif item == 2:
            for k in range(end - start):
                (<int16_t*> out)[start + k] = <int16_t> made[k]
        else:
            for k in range(end - start):
                (<int32_t*> out)[start + k] = <int32_t> made[k]
        start = end


cdef int round_all(
    void* out, int item, const floating* x, const floating* scale, const int64_t* zero,
    Py_ssize_t n, Layout lay, Rule rule, int threads,
) except -1:
    cdef Py_ssize_t begin = 0, end, k
    while begin < n:
        end = min(n, begin + STEP)
        with nogil:
            if threads == 1:
                round_chunk(out, item, x, scale, zero, begin, end, lay, rule)
            else:
                for k in prange(
                    (end - begin + CHUNK - 1) // CHUNK, num_threads=threads, schedule="dynamic"
                ):
                    round_chunk(
                        out, item, x, scale, zero, begin + k * CHUNK,
                        min(end, begin + (k + 1) * CHUNK), lay, rule,
                    )
        begin = end
        PyErr_CheckSignals()
    return 0


def encode_rounded(
    cnp.ndarray out not None, cnp.ndarray x not None, cnp.ndarray scale not None,
    cnp.ndarray zero_point not None, bint rows, Py_ssize_t depth, Py_ssize_t width,
    Py_ssize_t group, double low, double high, int mode, bint wrap, uint64_t key, int threads,
):
    """out = codes of x under the layout; zero_point is int64, out any integer of 1 to 4 bytes."""
    cdef Layout lay = Layout(rows, depth, width, group)
    cdef Rule rule = Rule(mode, wrap, low, high, key)
    cdef Py_ssize_t n = cnp.PyArray_SIZE(x)
    cdef Py_ssize_t parts = scales_of(n, lay) if n else cnp.PyArray_SIZE(scale)
    cdef int kind = cnp.PyArray_TYPE(x)
    cdef int made = cnp.PyArray_TYPE(out)
    cdef void* a
    cdef void* s
    cdef void* z
    cdef void* o
    if kind != cnp.NPY_FLOAT64:
        kind = cnp.NPY_FLOAT32
    if made not in CODES:
        made = cnp.NPY_INT8  # refused just below, with the wanted dtype named
    a = data_of(x, kind, n, False, "x")
    s = data_of(scale, kind, parts, False, "scale")
    z = data_of(zero_point, cnp.NPY_INT64, parts, False, "zero_point")
    o = data_of(out, made, n, True, "out")
    cdef int item = CODES[made]
    if kind == cnp.NPY_FLOAT64:
        round_all[double](
            o, item, <double*> a, <double*> s, <int64_t*> z, n, lay, rule, threads
        )
    else:
        round_all[float](o, item, <float*> a, <float*> s, <int64_t*> z, n, lay, rule, threads)


CODES = {
    cnp.NPY_INT8: 1, cnp.NPY_UINT8: 1, cnp.NPY_INT16: 2, cnp.NPY_UINT16: 2, cnp.NPY_INT32: 4,
    cnp.NPY_UINT32: 4,
}
