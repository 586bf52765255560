"""The part of a row's range that rounds it with the least weighted squared error; see clip.pyx.

The lanes are the candidates, so nothing is summed across lanes: every level and width gives the
same bits. Sums run in float, in units of the scale, and go to a double every FLUSH values.
"""

from fastopt._kernels.shared cimport numpy as cnp
from libc.float cimport FLT_MAX, FLT_MIN
from libc.math cimport INFINITY, nextafterf, rint, rintf
from libc.stdint cimport int32_t
from libc.string cimport memcpy

from fastopt._kernels.shared.arguments cimport data_of
from fastopt._kernels.shared.vector cimport BYTES, floats, larger, smaller, zero

cdef enum:
    BIG = 3 << 22  # 1.5 * 2^23: a float next to it is a whole number
    FLUSH = 256
    MOST = 32  # candidates together: two vectors of them hide the additions' latency

cdef struct Rule:
    const double* wide  # parts of the range that are tried: of both ends
    const double* near_  # of one end
    Py_ssize_t n_wide
    Py_ssize_t n_near
    bint symmetric
    float steps  # scale = range / steps; of max|x| if symmetric
    float zero  # the zero point if symmetric
    float qmin  # codes in use
    float qmax


cdef inline float unit_of(const float* x, Py_ssize_t n) noexcept nogil:
    """2^-e with max|x| / 2^e in [1, 2), within what float32 can express."""
    cdef const int32_t* bits = <const int32_t*> x
    cdef int32_t top = 0
    cdef float unit
    cdef Py_ssize_t i
    for i in range(n):
        top = max(top, bits[i] & 0x7fffffff)
    top = max(254 - (top >> 23), 1) << 23
    memcpy(&unit, &top, 4)
    return unit


cdef struct Grid:  # of candidates that are tried together
    float[MOST] scale
    float[MOST] inverse
    float[MOST] bottom  # the codes' ends about the zero point
    float[MOST] top


cdef inline void set_grid(
    Grid* g, int tried, const double* ratio, Py_ssize_t count, Py_ssize_t first, float low,
    float high, int ends, const Rule* r,
) noexcept nogil:
    """Of candidates [first, first + tried), the last of all in place of those that are not."""
    cdef float part, a, b, s, z, one = 1
    cdef int k
    for k in range(tried):
        part = <float> ratio[min(first + k, count - 1)]
        a = low * part if ends & 1 else low
        b = high * part if ends & 2 else high
        s = (b if r.symmetric else b - a) / r.steps
        s = s if s > 0 else one
        g.inverse[k] = one / s
        z = rintf(r.qmin - a * g.inverse[k])
        z = z if z > r.qmin else r.qmin
        z = r.zero if r.symmetric else (z if z < r.qmax else r.qmax)
        g.scale[k] = s
        g.bottom[k] = r.qmin - z
        g.top[k] = r.qmax - z


cdef inline floats missed(floats u, floats low, floats high) noexcept nogil:
    """u - its code. u + BIG - BIG rounds to even; clamped in between, where any u is in order."""
    cdef float big = BIG
    return u - (smaller(larger(u + big, low), high) - big)


cdef inline void add_errors(
    double* total, const Grid* g, const float* x, const float* weight, Py_ssize_t n, float unit,
) noexcept nogil:
    """total[k] += the error of candidate k over n values, in units of its scale."""
    cdef float big = BIG
    cdef float[FLUSH] value
    cdef float[MOST] sums
    cdef const floats* inverse = <const floats*> g.inverse
    cdef const floats* bottom = <const floats*> g.bottom
    cdef const floats* top = <const floats*> g.top
    cdef floats i0 = inverse[0], i1 = inverse[1]
    cdef floats l0 = bottom[0] + big, l1 = bottom[1] + big
    cdef floats h0 = top[0] + big, h1 = top[1] + big
    cdef floats a0, a1, u0, u1
    cdef Py_ssize_t start = 0, i, m
    while start < n:
        m = min(<Py_ssize_t> FLUSH, n - start)
        zero(&a0)
        zero(&a1)
        for i in range(m):
            value[i] = x[start + i] * unit
        if weight == NULL:
            for i in range(m):
                u0 = missed(value[i] * i0, l0, h0)
                u1 = missed(value[i] * i1, l1, h1)
                a0 += u0 * u0
                a1 += u1 * u1
        else:
            for i in range(m):
                u0 = missed(value[i] * i0, l0, h0)
                u1 = missed(value[i] * i1, l1, h1)
                a0 += weight[start + i] * (u0 * u0)
                a1 += weight[start + i] * (u1 * u1)
        (<floats*> sums)[0] = a0
        (<floats*> sums)[1] = a1
        for i in range(BYTES // 2):
            total[i] += sums[i]
        start += FLUSH


cdef inline double best_part(
    const float* x, const float* weight, Py_ssize_t n, const double* ratio, Py_ssize_t count,
    float unit, float low, float high, int ends, const Rule* r,
) noexcept nogil:
    """The first candidate with the least error: its part of the range."""
    cdef Grid g
    cdef double[MOST] total
    cdef double best = INFINITY, chosen = 1
    cdef Py_ssize_t first = 0, k
    cdef int tried = BYTES // 2
    while first < count:
        set_grid(&g, tried, ratio, count, first, low, high, ends, r)
        for k in range(tried):
            total[k] = 0
        add_errors(total, &g, x, weight, n, unit)
        for k in range(tried):
            total[k] *= <double> g.scale[k] * <double> g.scale[k]
        for k in range(min(<Py_ssize_t> tried, count - first)):
            if total[k] < best:
                best = total[k]
                chosen = ratio[first + k]
        first += tried
    return chosen


cdef inline void clip_range(
    double* low, double* high, const float* x, const float* weight, Py_ssize_t n, const Rule* r,
) noexcept nogil:
    """low, high: the full range on entry, the best one on return."""
    cdef float unit = unit_of(x, n)
    cdef double lo = low[0], hi = high[0], part
    cdef int ends
    if r.symmetric:
        hi = -lo if -lo > hi else hi
        lo = -hi
    else:
        lo = lo if lo < 0 else 0
        hi = hi if hi > 0 else 0
    for ends in range(3, 0, -1):  # both together, the high end, the low end
        part = best_part(
            x, weight, n, r.wide if ends == 3 else r.near_, r.n_wide if ends == 3 else r.n_near,
            unit, <float> (lo * unit), <float> (hi * unit), ends, r,
        )
        if ends & 1:
            lo *= part
        if ends & 2:
            hi *= part
        if r.symmetric:
            break
    low[0] = lo
    high[0] = hi


cdef inline void scale_of(
    float* scale, float* zero_point, float low, float high, const Rule* r
) noexcept nogil:
    """Scale and zero point of codes for [low, high]: those of quantization.qparams_from_range."""
    cdef double lo = low if low < 0 else 0, hi = high if high > 0 else 0, steps = r.steps
    cdef double s, z, below, most, cap
    if r.symmetric:
        s = (-lo if -lo > hi else hi) / steps
    else:
        s = hi / steps - lo / steps
    below = rint(-lo / (1 if s == 0 else s))
    most = steps - below if steps - below > below else below
    cap = nextafterf(<float> (FLT_MAX / (steps if r.symmetric else most)), 0)
    s = 1 if s == 0 else (FLT_MIN if s < FLT_MIN else (s if s < cap else cap))
    scale[0] = <float> s
    z = rint(r.qmin - lo / scale[0])
    z = z if z > r.qmin else r.qmin
    zero_point[0] = r.zero if r.symmetric else (<float> z if z < r.qmax else r.qmax)


cdef inline Rule rule_of(
    cnp.ndarray wide, cnp.ndarray near, bint symmetric, float steps, float middle, float qmin,
    float qmax,
) except *:
    """The rule that tries these parts (float64) of a range."""
    return Rule(
        <const double*> data_of(wide, cnp.NPY_FLOAT64, -1, False, "wide"),
        <const double*> data_of(near, cnp.NPY_FLOAT64, -1, False, "near"),
        cnp.PyArray_SIZE(wide), cnp.PyArray_SIZE(near), symmetric, steps, middle, qmin, qmax,
    )
