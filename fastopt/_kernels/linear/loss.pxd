"""The losses and their slopes: plain loops over sixteens of rows that the compiler turns into
vectors, without a call to libm, whose bits differ.

exp and log are Taylor sums by + - * / and bit moves only, so every level gives the same bits.
"""

from libc.math cimport fabs, frexp
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from fastopt._kernels.linear.step cimport real
from fastopt._kernels.shared.restrict cimport f32, f64, reals

cdef extern from "<math.h>" nogil:
    float fabsf(float) noexcept

cdef enum:
    CHUNK = 64  # rows taken at once

cdef enum Loss:
    SQUARED
    HUBER
    EPSILON
    SQUARED_EPSILON
    LOG
    HINGE
    SQUARED_HINGE
    MODIFIED_HUBER
    PERCEPTRON
    SOFTMAX

cdef enum Targets:
    DIRECT
    ONE_VS_REST  # class c against the rest in output c
    TWO  # class 1 against the others


cdef inline real positive(real x) noexcept nogil:
    return fabsf(x) if real is float else fabs(x)


cdef inline real clamped(real v) noexcept nogil:
    """What ``exp_of`` may be asked for; a NaN becomes the lowest (margins have a check of their
    own)."""
    if real is float:
        return v if v > <float> -87.0 else <float> -87.0
    else:
        return v if v > -708.0 else -708.0


cdef inline real exp_of(real v) noexcept nogil:
    """exp(v) for clamped v <= 0: 2^n times the Taylor sum on |r| <= ln(2) / 2."""
    cdef real shifted, m, r, total, one = 1  # a literal would make the sum a double
    cdef uint32_t n32, t32
    cdef uint64_t n64, t64
    if real is float:
        shifted = v * <float> 1.4426950408889634 + <float> 12582912.0  # low bits: round(v / ln 2)
        m = shifted - <float> 12582912.0
        r = (v - m * <float> 0.693145751953125) - m * <float> 1.428606765330187e-06
        total = <float> (1 / 5040.0)
    else:
        shifted = v * 1.4426950408889634 + 6755399441055744.0
        m = shifted - 6755399441055744.0
        r = (v - m * 0.6931471805582987) - m * 1.6465949582897082e-12
        total = 1 / 6227020800.0
        total = total * r + 1 / 479001600.0
        total = total * r + 1 / 39916800.0
        total = total * r + 1 / 3628800.0
        total = total * r + 1 / 362880.0
        total = total * r + 1 / 40320.0
        total = total * r + 1 / 5040.0
    total = total * r + <real> (1 / 720.0)
    total = total * r + <real> (1 / 120.0)
    total = total * r + <real> (1 / 24.0)
    total = total * r + <real> (1 / 6.0)
    total = total * r + <real> 0.5
    total = total * r + one
    total = total * r + one
    if real is float:
        memcpy(&n32, &shifted, 4)
        memcpy(&t32, &total, 4)
        t32 += n32 << 23
        memcpy(&total, &t32, 4)
    else:
        memcpy(&n64, &shifted, 8)
        memcpy(&t64, &total, 8)
        t64 += n64 << 52
        memcpy(&total, &t64, 8)
    return total


cdef inline real atanh2(real s) noexcept nogil:
    """2 atanh(s) by its series, 0 <= s <= 1/3: log(1 + u) for s = u / (2 + u)."""
    cdef real q = s * s, two = 2, total = <real> (2 / 13.0)
    if real is double:
        total = 2 / 31.0
        total = total * q + 2 / 29.0
        total = total * q + 2 / 27.0
        total = total * q + 2 / 25.0
        total = total * q + 2 / 23.0
        total = total * q + 2 / 21.0
        total = total * q + 2 / 19.0
        total = total * q + 2 / 17.0
        total = total * q + 2 / 15.0
        total = total * q + 2 / 13.0
    total = total * q + <real> (2 / 11.0)
    total = total * q + <real> (2 / 9.0)
    total = total * q + <real> (2 / 7.0)
    total = total * q + <real> (2 / 5.0)
    total = total * q + <real> (2 / 3.0)
    total = total * q + two
    return s * total


cdef inline void each_slope(
    int loss, real eps, int n, reals e, reals t, reals s, reals v
) noexcept nogil:
    cdef real r, c, m, a, zero = 0, one = 1, two = 2, four = 4
    cdef int i
    n = n & ~15
    if loss == SQUARED:  # (z - t)^2 / 2
        for i in range(n):
            r = e[i] - t[i]
            e[i] = s[i] * r
            v[i] = <real> 0.5 * (s[i] * r) * r
    elif loss == HUBER:  # r^2 / 2 up to eps, then eps |r| - eps^2 / 2
        for i in range(n):
            r = e[i] - t[i]
            c = eps if r > eps else -eps if r < -eps else r
            e[i] = s[i] * c
            v[i] = s[i] * c * (r - <real> 0.5 * c)
    elif loss == EPSILON:  # max(0, |r| - eps)
        for i in range(n):
            r = e[i] - t[i]
            c = r - eps if r > eps else r + eps if r < -eps else zero
            e[i] = s[i] if c > 0 else -s[i] if c < 0 else zero
            v[i] = s[i] * (c if c > 0 else -c)
    elif loss == SQUARED_EPSILON:  # max(0, |r| - eps)^2
        for i in range(n):
            r = e[i] - t[i]
            c = r - eps if r > eps else r + eps if r < -eps else zero
            e[i] = two * s[i] * c
            v[i] = s[i] * c * c
    elif loss == LOG:  # log(1 + exp(-t z)), t = -1 or 1; one division serves slope and logarithm
        for i in range(n):  # apart, lest the loop below gets branches
            v[i] = clamped(-positive(<real> (e[i] * t[i])))
        for i in range(n):
            m = e[i] * t[i]
            a = exp_of(<real> v[i])
            r = one / ((one + a) * (two + a))
            v[i] = s[i] * (<real> 0.5 * (positive(m) - m) + atanh2(<real> (a * ((one + a) * r))))
            e[i] = -t[i] * s[i] * ((two + a) * r) * (one if m < 0 else a)
    elif loss == HINGE:  # max(0, 1 - t z)
        for i in range(n):
            m = one - e[i] * t[i]
            e[i] = -t[i] * s[i] if m > 0 else zero
            v[i] = s[i] * m if m > 0 else zero
    elif loss == SQUARED_HINGE:  # max(0, 1 - t z)^2
        for i in range(n):
            m = one - e[i] * t[i]
            c = m if m > 0 else zero
            e[i] = -two * t[i] * s[i] * c
            v[i] = s[i] * c * c
    elif loss == MODIFIED_HUBER:  # max(0, 1 - t z)^2 down to t z = -1, then -4 t z
        for i in range(n):
            m = e[i] * t[i]
            c = one - m if m < one else zero
            e[i] = -two * t[i] * s[i] * c if m >= -one else -four * t[i] * s[i]
            v[i] = s[i] * c * c if m >= -one else -four * s[i] * m
    else:  # perceptron: max(0, -t z)
        for i in range(n):
            m = e[i] * t[i]
            e[i] = -t[i] * s[i] if m <= 0 else zero
            v[i] = -s[i] * m if m <= 0 else zero


cdef inline void each_softmax(
    Py_ssize_t k, int n, reals z, reals t, reals s, reals v, real one
) noexcept nogil:
    cdef real[CHUNK] top
    cdef real[CHUNK] total
    cdef real[CHUNK] hit
    cdef real m, part, number, zero = 0, two = 2
    cdef Py_ssize_t c
    cdef int i, power
    cdef reals row
    n = n & ~15
    for i in range(n):
        top[i], total[i], hit[i] = z[i], zero, zero
    for c in range(1, k):
        row = z + n * c
        for i in range(n):
            top[i] = row[i] if row[i] > top[i] else top[i]
    for c in range(k):
        row, number = z + n * c, <real> c
        for i in range(n):
            m = row[i] - top[i]
            hit[i] = m if t[i] == number else hit[i]
            row[i] = clamped(m)
        for i in range(n):
            m = exp_of(<real> row[i])
            row[i] = m
            total[i] += m
    for i in range(n):  # log(total) = its power of two, and the logarithm of the rest
        part = <real> (2 * frexp(<double> total[i], &power)) - one  # 0 <= part < 1
        m = atanh2(<real> (part / (two + part)))
        v[i] = s[i] * (<real> ((power - 1) * 0.6931471805599453) + m - hit[i])
        total[i] = s[i] / total[i]
    for c in range(k):
        row, number = z + n * c, <real> c
        for i in range(n):
            row[i] = row[i] * total[i] - (s[i] if t[i] == number else zero)


cdef inline void slope(
    int loss, double eps, int n, real* e, const real* t, const real* s, real* v
) noexcept nogil:
    """n rows, a multiple of 16 up to CHUNK: e is z (the margins) on entry and s dloss/dz on
    return; t the targets, s the weights (0 for absent rows); v becomes s loss."""
    if real is float:
        each_slope(loss, <float> eps, n, <f32> e, <f32> t, <f32> s, <f32> v)
    else:
        each_slope(loss, eps, n, <f64> e, <f64> t, <f64> s, <f64> v)


cdef inline void softmax(
    Py_ssize_t k, int n, real* z, const real* t, const real* s, real* v
) noexcept nogil:
    """Cross-entropy of n rows over k outputs, as ``slope``; z is (k, n), t the class numbers."""
    if real is float:
        each_softmax(k, n, <f32> z, <f32> t, <f32> s, <f32> v, <float> 1)
    else:
        each_softmax(k, n, <f64> z, <f64> t, <f64> s, <f64> v, <double> 1)
