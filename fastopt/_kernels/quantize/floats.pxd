"""Narrow floating point, a block at a time: codes of numbers, and numbers of codes."""

from libc.math cimport ldexp
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memset

from fastopt._kernels.shared.stream cimport prefetch
from fastopt._kernels.quantize.steps cimport BLOCK, HALF

cdef enum:
    AHEAD = 1024  # elements between a read and its prefetch

cdef extern from "quantize/narrow.h":
    ctypedef struct Spec "fo_narrow_spec":
        uint32_t shift
        uint32_t sign
        uint32_t rebias
        uint32_t min_normal
        uint32_t max_code
        uint32_t over
        uint32_t nan
        float magic
        float step
        float inverse
    void narrow_block "fo_narrow_block" (
        void* out, const float* v, const float* scale, Py_ssize_t n, int item, Spec s
    ) noexcept nogil
    uint32_t narrow_random "fo_narrow_random" (float x, uint32_t w, Spec s) noexcept nogil
    float widen_one "fo_widen" (uint32_t code, Spec s) noexcept nogil
    float to_odd "fo_odd" (double x) noexcept nogil


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
    s.step = <float> (0.0 if bias == 127 else ldexp(1.0, 1 - bias - man))
    s.magic = <float> (0.0 if bias == 127 else ldexp(1.0, 24 - bias - man))
    s.inverse = <float> (0.0 if bias == 127 else ldexp(1.0, bias + man - 1))
    return s


cdef inline void narrowed(
    char* out, const float* v, const float* scale, const uint32_t* word, int item, Spec s
) noexcept nogil:
    """Codes of BLOCK numbers v, of one or two bytes; over ``scale`` unless it is NULL (one byte),
    or at random unless ``word`` is NULL: each of HALF words serves two."""
    cdef uint8_t* o = <uint8_t*> out
    cdef uint16_t* w = <uint16_t*> out
    cdef uint32_t[BLOCK] spare
    cdef Py_ssize_t k
    if word != NULL:  # the 16 bits on top of a word, and half a step below them
        for k in range(HALF):
            spare[k] = (word[k] << 16) | 0x8000
        for k in range(HALF):
            spare[HALF + k] = (word[k] >> 16 << 16) | 0x8000
        if item == 1:
            for k in range(BLOCK):
                o[k] = <uint8_t> narrow_random(v[k], spare[k], s)
        else:
            for k in range(BLOCK):
                w[k] = <uint16_t> narrow_random(v[k], spare[k], s)
    else:
        narrow_block(out, v, scale, BLOCK, item, s)


cdef inline void widened(float* out, const char* codes, int item, Spec s) noexcept nogil:
    """BLOCK numbers of codes; exact."""
    cdef const uint8_t* q = <const uint8_t*> codes
    cdef const uint16_t* w = <const uint16_t*> codes
    cdef Py_ssize_t k
    if item == 1:
        for k in range(BLOCK):
            out[k] = widen_one(q[k], s)
    else:
        for k in range(BLOCK):
            out[k] = widen_one(w[k], s)


cdef inline void widen_run(
    float* out, const char* codes, Py_ssize_t n, int item, Spec s
) noexcept nogil:
    """n numbers of codes."""
    cdef char[2 * BLOCK] pad
    cdef float[BLOCK] made
    cdef Py_ssize_t j = 0, k
    while j + BLOCK <= n:
        for k in range(BLOCK * item // 64):
            prefetch(codes + (j + AHEAD) * item + 64 * k)
        widened(out + j, codes + j * item, item, s)
        j += BLOCK
    if j < n:
        memset(&pad[0], 0, sizeof(pad))
        memcpy(&pad[0], codes + j * item, (n - j) * item)
        widened(&made[0], &pad[0], item, s)
        memcpy(out + j, &made[0], (n - j) * sizeof(float))
