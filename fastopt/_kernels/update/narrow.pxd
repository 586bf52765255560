"""Narrow numbers at the edges of a step: 16-bit gradients, 16-bit copies of the weights, and state
outside the loop of the rules. What is inside it stands in narrow_lines.pxd."""

from libc.math cimport NAN
from libc.stdint cimport uint16_t, uint32_t
from libc.string cimport memcpy, memset

from fastopt._kernels.update.codes cimport *
from fastopt._kernels.update.stretch cimport *


cdef inline uint32_t bits_of(float x) noexcept nogil:
    cdef uint32_t u
    memcpy(&u, &x, sizeof(u))
    return u


cdef inline float float_of(uint32_t u) noexcept nogil:
    cdef float x
    memcpy(&x, &u, sizeof(x))
    return x


cdef inline float from_half(uint16_t h) noexcept nogil:
    """Shifting the exponent field into place leaves it 112 too small; 2^112 mends that and is
    exact, also for subnormals. Infinity and NaN get the exponent of all ones."""
    cdef uint32_t sign = <uint32_t> (h & 0x8000u) << 16, rest = <uint32_t> (h & 0x7fffu) << 13
    cdef uint32_t u = bits_of(float_of(rest) * <float> 2.0**112)
    u = rest | 0x7f800000u if rest >= 0x0f800000u else u
    return float_of(sign | u)


cdef inline uint16_t to_half(float x) noexcept nogil:
    """To nearest even; beyond 65504 infinity. Below 2^-14 adding 0.5 does the rounding."""
    cdef uint32_t u = bits_of(x), sign = (u >> 16) & 0x8000u, a = u & 0x7fffffffu
    cdef uint32_t normal = (a + 0xc8000fffu + ((a >> 13) & 1u)) >> 13
    cdef uint32_t small = bits_of(float_of(a) + <float> 0.5) - 0x3f000000u
    cdef uint32_t special = 0x7e00u if a > 0x7f800000u else 0x7c00u
    cdef uint32_t h = small if a < 0x38800000u else normal
    h = special if a >= 0x47800000u else h
    return <uint16_t> (sign | h)


cdef inline uint16_t to_bfloat(float x) noexcept nogil:
    """To nearest even; NaN stays NaN."""
    cdef uint32_t u = bits_of(x), r = u + 0x7fffu + ((u >> 16) & 1u)
    return <uint16_t> ((u | 0x400000u if (u & 0x7fffffffu) > 0x7f800000u else r) >> 16)


cdef inline void widen(f32 out, const uint16_t* x, Py_ssize_t n, int storage) noexcept nogil:
    cdef Py_ssize_t i
    if storage == HALF:
        for i in range(n):
            out[i] = from_half(x[i])
    else:
        for i in range(n):
            out[i] = float_of(<uint32_t> x[i] << 16)


cdef inline void narrow(uint16_t* out, f32 x, Py_ssize_t n, int storage) noexcept nogil:
    cdef Py_ssize_t i
    if storage == HALF:
        for i in range(n):
            out[i] = to_half(x[i])
    else:
        for i in range(n):
            out[i] = to_bfloat(x[i])


cdef inline void load_line(
    float* line, const char* codes, int storage, float unit, int sign
) noexcept nogil:
    if storage == BFLOAT:
        decode_words(line, codes)
    else:
        decode_codes(line, codes, unit, sign == SIGNED)


cdef inline void load_state(
    float* out, const Stretch* a, int k, int sign, Py_ssize_t n
) noexcept nogil:
    """State array k of the stretch, n elements, as floats."""
    cdef int size = 2 if a.storage == BFLOAT else 1
    cdef const char* codes = <const char*> a.state[k]
    cdef float line[LINE]
    cdef char padded[2 * LINE]
    cdef float unit = 0
    cdef Py_ssize_t i = 0, m
    while i < n:
        m = min(LINE, n - i)
        if a.storage == CODES and i % UNIT == 0:
            unit = unit_of(a.scales[k][i // UNIT])
        if m == LINE:
            load_line(out + i, codes + i * size, a.storage, unit, sign)
        else:
            memset(padded, 0, sizeof(padded))
            memcpy(padded, codes + i * size, m * size)
            load_line(line, padded, a.storage, unit, sign)
            memcpy(out + i, line, m * sizeof(float))
        i += m


cdef inline void store_state(
    const float* x, const Stretch* a, int k, int sign, Py_ssize_t n
) noexcept nogil:
    """n floats into state array k of the stretch, which begins a unit."""
    cdef int size = 2 if a.storage == BFLOAT else 1
    cdef char* codes = <char*> a.state[k]
    cdef float line[LINE]
    cdef char coded[2 * LINE]
    cdef float inverse = 0
    cdef uint32_t phase = 0
    cdef Tops tops
    cdef Py_ssize_t i = 0, j, m, unit
    while i < n:
        unit = (a.first + i) // UNIT
        if i % UNIT == 0:
            phase = phase_of(
                a.key, a.turn, unit, k, sign == SIGNED and a.storage == CODES
            )
            inverse = 0
            if a.storage == CODES:
                clear_tops(&tops)
                j = i
                while j < min(i + UNIT, n):
                    m = min(LINE, n - j)
                    memset(line, 0, sizeof(line))
                    memcpy(line, x + j, m * sizeof(float))
                    raise_tops(&tops, line, True)
                    j += m
                a.scales[k][i // UNIT] = scale_of(&tops)
                inverse = inverse_of(a.scales[k][i // UNIT])
        m = min(LINE, n - i)
        memset(line, 0, sizeof(line))
        for j in range(m):
            line[j] = x[i + j] if x[i + j] == x[i + j] else NAN  # a quiet one
        if a.storage == CODES:
            encode_codes(
                coded, line, inverse, shifts_of(phase) + i % UNIT, sign == SIGNED
            )
        elif sign == SIGNED:
            encode_words(coded, line)
        else:
            encode_words_noisy(coded, line, phase + <uint32_t> (i % UNIT) * GOLDEN)
        memcpy(codes + i * size, coded, m * size)
        i += m
