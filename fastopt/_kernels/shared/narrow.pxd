"""Narrow floating point: one branch-free routine each way for every format of fewer than 32 bits.

A format is sign, exponent and ``man`` mantissa bits; codes above max_code are not finite.
"""

from libc.math cimport ldexp
from libc.stdint cimport int32_t, uint32_t
from libc.string cimport memcpy

cdef struct Spec:
    uint32_t shift  # 23 - man
    uint32_t sign  # position of the sign bit
    uint32_t rebias  # (127 - bias) << man
    uint32_t min_normal  # float32 bits of the smallest normal value; 0: same range as float32
    uint32_t max_code  # code of the largest finite value
    uint32_t over  # code for what is above it: the same, or the next one
    uint32_t nan  # code of NaN
    uint32_t infinity  # code of infinity; no code: there is none
    float magic  # its last place is the subnormal step
    float step  # the subnormal step
    float inverse  # 1 / step


cdef inline Spec spec_of(
    int bits, int man, int bias, uint32_t max_code, uint32_t over, uint32_t nan
) noexcept:
    cdef Spec s
    s.shift = 23 - man
    s.sign = bits - 1
    s.rebias = <uint32_t> (127 - bias) << man
    s.min_normal = 0 if bias == 127 else <uint32_t> (128 - bias) << 23
    s.max_code = max_code
    s.over = over
    s.nan = nan
    s.infinity = over if over > max_code and over != nan else 0xffffffffu
    s.step = <float> (0.0 if bias == 127 else ldexp(1.0, 1 - bias - man))
    s.magic = <float> (0.0 if bias == 127 else ldexp(1.0, 24 - bias - man))
    s.inverse = <float> (0.0 if bias == 127 else ldexp(1.0, bias + man - 1))
    return s


cdef inline uint32_t bits_of(float x) noexcept nogil:
    cdef uint32_t u
    memcpy(&u, &x, 4)
    return u


cdef inline float float_of(uint32_t u) noexcept nogil:
    cdef float x
    memcpy(&x, &u, 4)
    return x


cdef inline uint32_t close_code(uint32_t c, uint32_t u, Spec s) noexcept nogil:
    """A code that is too large becomes ``over``, max_code or the one above it; NaN keeps its
    sign."""
    c = c if <int32_t> c < <int32_t> s.over else s.over
    c = s.nan if (u & 0x7fffffffu) > 0x7f800000u else c
    return c | (u >> (31 - s.sign) & <uint32_t> 1 << s.sign)


cdef inline uint32_t narrow_even(float x, Spec s) noexcept nogil:
    """Half to even. Below the smallest normal value the addition of ``magic`` rounds in
    hardware."""
    cdef uint32_t u = bits_of(x), a = u & 0x7fffffffu
    cdef uint32_t half = (<uint32_t> 1 << (s.shift - 1)) - 1 - (s.rebias << s.shift)
    cdef uint32_t normal = (a + half + (a >> s.shift & 1)) >> s.shift
    cdef uint32_t small = bits_of(float_of(a) + s.magic) - bits_of(s.magic)
    return close_code(small if a < s.min_normal else normal, u, s)


cdef inline uint32_t narrow_random(float x, uint32_t w, Spec s) noexcept nogil:
    """Up with the probability of the fraction; w holds 16 random bits on top and half a step, the
    bit below them. The subnormal fraction is seen in steps of 2**-17."""
    cdef uint32_t u = bits_of(x), a = u & 0x7fffffffu
    cdef uint32_t normal = (a - (s.rebias << s.shift) + (w >> (32 - s.shift))) >> s.shift
    cdef float q = float_of(a) * s.inverse * <float> 131072.0
    cdef uint32_t small
    q = q if q < <float> 1073741824.0 else <float> 1073741824.0
    small = (<uint32_t> (<int32_t> q) + (w >> 15)) >> 17
    return close_code(small if a < s.min_normal else normal, u, s)


cdef inline float widen_one(uint32_t code, Spec s) noexcept nogil:
    """Exact."""
    cdef uint32_t a = code & ((<uint32_t> 1 << s.sign) - 1), sign = (code >> s.sign) << 31
    cdef uint32_t normal = (a + s.rebias) << s.shift
    cdef uint32_t small = bits_of(<float> (<int32_t> a) * s.step)
    cdef uint32_t r = normal if normal >= s.min_normal else small
    cdef uint32_t odd = 0x7f800000u if a == s.infinity else 0x7fc00000u
    r = odd if a > s.max_code else r
    return float_of(r | sign)


cdef inline float to_odd(double x) noexcept nogil:
    """float64 to float32 rounded to odd: a second rounding to fewer bits then gives what one
    would."""
    cdef float f = <float> x
    cdef uint32_t u = bits_of(f)
    cdef double wide = f, d = -x if x < 0 else x, w
    w = -wide if wide < 0 else wide
    u -= 1 if w > d else 0
    u |= 1 if (w != d) & (d == d) else 0
    return float_of(u)
