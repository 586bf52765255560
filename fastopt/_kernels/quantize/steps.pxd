"""The steps from numbers to codes, each over BLOCK elements that stay in the L1 cache."""

from libc.math cimport floor, floorf, rint, rintf, trunc, truncf
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef extern from *:
    int irint "__builtin_irintf" (float x) noexcept nogil

ctypedef fused real:
    float
    double

cdef enum:
    BLOCK = 256
    HALF = 128  # each word of a block of noise serves two elements

cdef enum:
    EVEN = 0
    AWAY = 1
    DOWN = 2
    ZERO = 3
    RANDOM = 4

cdef struct Rule:
    int mode
    int join
    bint times
    bint wrap
    bint check  # tell whether there is a NaN
    double low
    double high
    uint64_t key

cdef inline real nearest(real v) noexcept nogil:
    if real is float:
        return rintf(v)
    else:
        return rint(v)


cdef inline real down(real v) noexcept nogil:
    if real is float:
        return floorf(v)
    else:
        return floor(v)


cdef inline real toward_zero(real v) noexcept nogil:
    if real is float:
        return truncf(v)
    else:
        return trunc(v)


cdef inline void quotients(
    real* v, const void* x, bint wide, const real* scale, const real* inverse, const real* zero,
    Rule rule,
) noexcept nogil:
    """v = x / scale, or x * inverse, with the zero point added where it comes before rounding."""
    cdef const float* f = <const float*> x
    cdef const double* d = <const double*> x
    cdef Py_ssize_t k
    if real is double:
        if wide:
            for k in range(BLOCK):
                v[k] = d[k]
        else:
            for k in range(BLOCK):
                v[k] = f[k]
        if rule.times:
            for k in range(BLOCK):
                v[k] *= inverse[k]
        else:
            for k in range(BLOCK):
                v[k] /= scale[k]
    else:
        if rule.join == 2:
            for k in range(BLOCK):
                v[k] = <float> (<double> f[k] * <double> inverse[k] + <double> zero[k])
            return
        if rule.times:
            for k in range(BLOCK):
                v[k] = f[k] * inverse[k]
        else:
            for k in range(BLOCK):
                v[k] = f[k] / scale[k]
    if rule.join:
        for k in range(BLOCK):
            v[k] += zero[k]


cdef inline void rounded(real* v, uint32_t* word, Rule rule) noexcept nogil:
    """BLOCK quotients rounded in place; ``word`` has HALF random words, which are used up."""
    cdef Py_ssize_t k, _h
    cdef real t, up, share
    cdef double wide
    if rule.mode == EVEN:
        for k in range(BLOCK):
            v[k] = nearest(v[k])
    elif rule.mode == AWAY:  # v + 0.5 would round 0.49999997 up, the fraction does not
        for k in range(BLOCK):
            t = toward_zero(v[k])
            share = v[k] - t
            up = <real> 1 if share > 0 else <real> -1
            v[k] = t + (up if share * up >= 0.5 else <real> 0)
    elif rule.mode == DOWN:
        for k in range(BLOCK):
            v[k] = down(v[k])
    elif rule.mode == ZERO:
        for k in range(BLOCK):
            v[k] = toward_zero(v[k])
    else:
        for _h in range(2):
            for k in range(HALF):
                wide = rint(<double> v[k] * 65536.0) + <double> <int32_t> (word[k] & 0xFFFF)
                v[k] = <real> floor(wide * (1.0 / 65536.0))
                word[k] >>= 16
            v += HALF


cdef inline int any_nan(const void* x, bint wide) noexcept nogil:
    cdef Py_ssize_t k
    cdef int odd = 0
    if wide:
        for k in range(BLOCK):
            odd |= (<const double*> x)[k] != (<const double*> x)[k]
    else:
        for k in range(BLOCK):
            odd |= (<const float*> x)[k] != (<const float*> x)[k]
    return odd


cdef inline int32_t steps(float q, float lo, float hi) noexcept nogil:
    """q in steps of 2**-16, rounded."""
    q = q * 65536
    q = q if q > lo else lo
    q = q if q < hi else hi
    return irint(q)


cdef inline float one_code(float q, float zero, float lo, float hi) noexcept nogil:
    q = rintf(q) + zero
    q = q if q > lo else lo
    return q if q < hi else hi


cdef inline void at_once(
    char* out, const float* x, const float* scale, const float* inverse, const float* zero,
    int item, bint times, Rule rule,
) noexcept nogil:
    """The usual case in one loop: codes of one or two bytes, half to even, saturated."""
    cdef int8_t* o = <int8_t*> out
    cdef int16_t* w = <int16_t*> out
    cdef float lo = <float> rule.low, hi = <float> rule.high
    cdef Py_ssize_t k
    if times:
        if item == 1:
            for k in range(BLOCK):
                o[k] = <int8_t> <int32_t> one_code(x[k] * inverse[k], zero[k], lo, hi)
        else:
            for k in range(BLOCK):
                w[k] = <int16_t> <int32_t> one_code(x[k] * inverse[k], zero[k], lo, hi)
    elif item == 1:
        for k in range(BLOCK):
            o[k] = <int8_t> <int32_t> one_code(x[k] / scale[k], zero[k], lo, hi)
    else:
        for k in range(BLOCK):
            w[k] = <int16_t> <int32_t> one_code(x[k] / scale[k], zero[k], lo, hi)


cdef inline void at_random(
    char* out, const float* v, const uint32_t* word, int item, Rule rule
) noexcept nogil:
    """As ``rounded`` at random and then ``stored``, in 32-bit integers; zero points are 0 and
    codes signed, or of one byte."""
    cdef int8_t* o = <int8_t*> out
    cdef int16_t* w = <int16_t*> out
    cdef float lo = <float> rule.low * 65536, hi = <float> rule.high * 65536
    cdef Py_ssize_t k
    if item == 1:
        for k in range(HALF):
            o[k] = <int8_t> ((steps(v[k], lo, hi) + <int32_t> (word[k] & 0xFFFF)) >> 16)
        for k in range(HALF):
            o[HALF + k] = <int8_t> ((steps(v[HALF + k], lo, hi) + <int32_t> (word[k] >> 16)) >> 16)
    else:
        for k in range(HALF):
            w[k] = <int16_t> ((steps(v[k], lo, hi) + <int32_t> (word[k] & 0xFFFF)) >> 16)
        for k in range(HALF):
            w[HALF + k] = <int16_t> (
                (steps(v[HALF + k], lo, hi) + <int32_t> (word[k] >> 16)) >> 16
            )


cdef inline void limited(real* v, const real* zero, uint8_t* mask, Rule rule) noexcept nogil:
    """Zero point added where it comes after rounding, then in range."""
    cdef Py_ssize_t k
    cdef double w, span = rule.high - rule.low + 1
    cdef real lo = <real> rule.low, hi = <real> rule.high
    if not rule.join:
        for k in range(BLOCK):
            v[k] += zero[k]
    if mask != NULL:
        for k in range(BLOCK):
            mask[k] = (v[k] >= lo) & (v[k] <= hi)
    if rule.wrap:
        for k in range(BLOCK):
            w = v[k]
            w = w - span * floor((w - rule.low) / span)
            w = w if w >= rule.low else 0.0  # NaN, and infinities, which made NaN above
            v[k] = <real> (w if w <= rule.high else 0.0)
    elif rule.join:
        for k in range(BLOCK):
            v[k] = v[k] if v[k] < hi else hi
            v[k] = v[k] if v[k] > lo else lo
    else:
        for k in range(BLOCK):
            v[k] = v[k] if v[k] > lo else lo
            v[k] = v[k] if v[k] < hi else hi


cdef inline void stored(
    char* out, const real* v, const real* scale, const real* zero, int item, bint wide
) noexcept nogil:
    """Codes, or values again."""
    cdef Py_ssize_t k
    if item == 1:
        for k in range(BLOCK):
            (<int8_t*> out)[k] = <int8_t> <int32_t> v[k]
    elif item == 2:
        for k in range(BLOCK):
            (<int16_t*> out)[k] = <int16_t> <int32_t> v[k]
    elif item == 4:
        for k in range(BLOCK):
            (<int32_t*> out)[k] = <int32_t> <int64_t> v[k]
    elif wide:
        for k in range(BLOCK):
            (<double*> out)[k] = (v[k] - zero[k]) * scale[k]
    else:
        for k in range(BLOCK):
            (<float*> out)[k] = <float> ((v[k] - zero[k]) * scale[k])


cdef inline void packed_block(uint8_t* out, const uint8_t* codes, Py_ssize_t n) noexcept nogil:
    """HALF bytes from n <= BLOCK codes, neighbours in one byte, 0 after the last."""
    cdef uint8_t[BLOCK] q
    cdef Py_ssize_t k
    memcpy(&q[0], codes, BLOCK)
    for k in range(n, BLOCK):
        q[k] = 0
    for k in range(HALF):
        out[k] = (q[2 * k] & 15) | (q[2 * k + 1] << 4)
