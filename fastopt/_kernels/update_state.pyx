"""Optimiser state between its narrow form and float32: what a step does tile by tile, as doors.

bfloat16 is kept as uint16 bits; 8-bit codes are described in update_bytes.h.
"""

cimport numpy as cnp
from libc.stdint cimport int8_t, uint8_t, uint16_t, uint32_t, uint64_t

from fastopt._kernels._args cimport data_of
from fastopt._kernels.update_tiles cimport (
    decode_signed, decode_unsigned, encode_signed, encode_unsigned, noise_of, to_bfloat_noisy,
    widen,
)
from fastopt._kernels.update_types cimport *

cnp.import_array()


def decode_state(cnp.ndarray out not None, cnp.ndarray codes not None, scales):
    """State as float32: uint16 codes are bfloat16 bits, int8 and uint8 codes have scales."""
    cdef Py_ssize_t b, j, n = cnp.PyArray_SIZE(out)
    cdef float* x = <float*> data_of(out, cnp.NPY_FLOAT32, -1, True, "out")
    cdef int kind = cnp.PyArray_TYPE(codes)
    cdef char* c = <char*> data_of(codes, kind, n, False, "codes")
    cdef float* s = NULL
    if kind == cnp.NPY_UINT16:
        widen(x, <uint16_t*> c, n, BFLOAT)
        return
    s = <float*> data_of(scales, cnp.NPY_FLOAT32, (n + UNIT - 1) // UNIT, False, "scales")
    for j in range((n + UNIT - 1) // UNIT):
        b = j * UNIT
        if kind == cnp.NPY_INT8:
            decode_signed(x + b, <int8_t*> c + b, s[b // UNIT], min(UNIT, n - b))
        else:
            decode_unsigned(x + b, <uint8_t*> c + b, s[b // UNIT], min(UNIT, n - b))


def encode_state(cnp.ndarray codes not None, scales, cnp.ndarray x not None, uint64_t key):
    """float32 to state codes; ``key`` seeds the noise of the stochastic rounding."""
    cdef Py_ssize_t b, j, n = cnp.PyArray_SIZE(x)
    cdef float* v = <float*> data_of(x, cnp.NPY_FLOAT32, -1, False, "x")
    cdef int kind = cnp.PyArray_TYPE(codes)
    cdef char* c = <char*> data_of(codes, kind, n, True, "codes")
    cdef float* s
    cdef uint32_t low = <uint32_t> key
    if kind == cnp.NPY_UINT16:
        for b in range(n):
            (<uint16_t*> c)[b] = to_bfloat_noisy(v[b], noise_of(low, <uint32_t> b) & 0xFFFF)
        return
    s = <float*> data_of(scales, cnp.NPY_FLOAT32, (n + UNIT - 1) // UNIT, True, "scales")
    for j in range((n + UNIT - 1) // UNIT):
        b = j * UNIT
        if kind == cnp.NPY_INT8:
            s[b // UNIT] = encode_signed(
                <int8_t*> c + b, v + b, min(UNIT, n - b), low, <uint32_t> b, 0
            )
        else:
            s[b // UNIT] = encode_unsigned(
                <uint8_t*> c + b, v + b, min(UNIT, n - b), low, <uint32_t> b, 0
            )
