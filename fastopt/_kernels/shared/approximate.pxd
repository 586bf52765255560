"""log2, exp2 and cos by + - * / and bit moves only, so every level and machine gives the same
bits, and a loop over an array of them becomes vectors."""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.string cimport memcpy


cdef inline float log2_f(float x) noexcept nogil:
    """Of a positive normal number, relative error < 2e-7: x = m 2^k, m in [0.7, 1.42),
    log2 m = (2 / ln 2) atanh s with s = (m - 1) / (m + 1), |s| < 0.172."""
    cdef int32_t bits, k
    cdef float m, s, z, p
    memcpy(&bits, &x, 4)
    k = (bits - 0x3F350000) >> 23
    bits -= <int32_t> (<uint32_t> k << 23)
    memcpy(&m, &bits, 4)
    s = (m - <float> 1.0) / (m + <float> 1.0)
    z = s * s
    p = (
        (<float> 0.320598894 * z + <float> 0.412198585) * z + <float> 0.577078016
    ) * z + <float> 0.961796694
    return <float> k + s * (p * z + <float> 2.88539008)


cdef inline float exp2_f(float x) noexcept nogil:
    """2^x, clipped to |x| <= 126."""
    x = <float> -126.0 if x < <float> -126.0 else x
    x = <float> 126.0 if x > <float> 126.0 else x
    return exp2_within(x)


cdef inline float exp2_within(float x) noexcept nogil:
    """2^x for |x| <= 126, relative error < 2e-7: Taylor's series of e^(x ln 2) on [-0.5, 0.5]."""
    cdef float nearest, f, p, power
    cdef int32_t bits
    nearest = x + <float> 12582912.0  # 1.5 * 2^23: the sum is rounded to a whole number
    memcpy(&bits, &nearest, 4)
    f = x - (nearest - <float> 12582912.0)
    p = <float> 1.52527338e-5 * f + <float> 1.54035304e-4
    p = p * f + <float> 1.33335581e-3
    p = p * f + <float> 9.61812911e-3
    p = p * f + <float> 5.55041087e-2
    p = p * f + <float> 2.40226507e-1
    p = p * f + <float> 6.93147181e-1
    p = p * f + <float> 1.0
    bits = <int32_t> (<uint32_t> (bits - 0x4B400000 + 127) << 23)
    memcpy(&power, &bits, 4)
    return p * power


cdef inline double log2_d(double x) noexcept nogil:
    """Relative error < 1e-14; an argument below the smallest normal number counts as it."""
    cdef int64_t bits, k
    cdef double m, s, z, p = 1.0 / 19.0
    x = x if x > 2.2250738585072014e-308 else 2.2250738585072014e-308
    memcpy(&bits, &x, 8)
    k = (bits - <int64_t> 0x3FE6A00000000000) >> 52
    bits -= <int64_t> (<uint64_t> k << 52)
    memcpy(&m, &bits, 8)
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    p = p * z + 1.0 / 17.0
    p = p * z + 1.0 / 15.0
    p = p * z + 1.0 / 13.0
    p = p * z + 1.0 / 11.0
    p = p * z + 1.0 / 9.0
    p = p * z + 1.0 / 7.0
    p = p * z + 1.0 / 5.0
    p = p * z + 1.0 / 3.0
    p = p * z + 1.0
    return <double> (<int32_t> k) + s * p * 2.885390081777926814719849362  # 2 / ln 2


cdef inline double exp2_d(double x) noexcept nogil:
    """2^x, clipped to normal numbers, relative error < 1e-14."""
    cdef double nearest, f, power, p = 1.0 / 479001600.0
    cdef int64_t bits
    x = x if x > -1022.0 else -1022.0  # also NaN: the bits below are never out of range
    x = 1023.0 if x > 1023.0 else x
    nearest = x + 6755399441055744.0  # 1.5 * 2^52
    memcpy(&bits, &nearest, 8)
    f = (x - (nearest - 6755399441055744.0)) * 0.693147180559945309417232121458
    p = p * f + 1.0 / 39916800.0
    p = p * f + 1.0 / 3628800.0
    p = p * f + 1.0 / 362880.0
    p = p * f + 1.0 / 40320.0
    p = p * f + 1.0 / 5040.0
    p = p * f + 1.0 / 720.0
    p = p * f + 1.0 / 120.0
    p = p * f + 1.0 / 24.0
    p = p * f + 1.0 / 6.0
    p = p * f + 0.5
    p = p * f + 1.0
    p = p * f + 1.0
    bits = <int64_t> (<uint64_t> (bits - <int64_t> 0x4338000000000000 + 1023) << 52)
    memcpy(&power, &bits, 8)
    return p * power


cdef inline double cos_d(double x) noexcept nogil:
    """On [0, pi / 2], absolute error < 1e-12: Taylor's series to x^18."""
    cdef double z = x * x, p = -1.0 / 6402373705728000.0
    p = p * z + 1.0 / 20922789888000.0
    p = p * z - 1.0 / 87178291200.0
    p = p * z + 1.0 / 479001600.0
    p = p * z - 1.0 / 3628800.0
    p = p * z + 1.0 / 40320.0
    p = p * z - 1.0 / 720.0
    p = p * z + 1.0 / 24.0
    p = p * z - 0.5
    return p * z + 1.0
