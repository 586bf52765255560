"""Narrow floating point, a block at a time: codes of numbers, and numbers of codes."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memset

from fastopt._kernels.quantize.steps cimport BLOCK, HALF
from fastopt._kernels.shared.narrow cimport Spec, narrow_even, narrow_random, widen_one
from fastopt._kernels.shared.stream cimport prefetch

cdef extern from "quantize/narrow.h" nogil:
    Py_ssize_t fo_narrow_even(
        void* out, const float* v, const float* scale, Py_ssize_t n, int item, uint32_t shift,
        uint32_t sign, uint32_t rebias, uint32_t min_normal, uint32_t over, uint32_t nan,
        float magic
    ) noexcept

cdef enum:
    AHEAD = 1024  # elements between a read and its prefetch


cdef inline void narrowed(
    char* out, const float* v, const float* scale, const uint32_t* word, int item, Spec s
) noexcept nogil:
    """Codes of BLOCK numbers v, of one or two bytes; over ``scale`` unless it is NULL (one byte),
    or at random unless ``word`` is NULL: each of HALF words serves two."""
    cdef uint8_t* o = <uint8_t*> out
    cdef uint16_t* w = <uint16_t*> out
    cdef uint32_t[BLOCK] spare
    cdef Py_ssize_t k
    if word == NULL and fo_narrow_even(
        out, v, scale, BLOCK, item, s.shift, s.sign, s.rebias, s.min_normal, s.over, s.nan, s.magic
    ):
        return
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
    elif scale != NULL:
        for k in range(BLOCK):
            o[k] = <uint8_t> narrow_even(v[k] / scale[k], s)
    elif item == 1:
        for k in range(BLOCK):
            o[k] = <uint8_t> narrow_even(v[k], s)
    else:
        for k in range(BLOCK):
            w[k] = <uint16_t> narrow_even(v[k], s)


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
