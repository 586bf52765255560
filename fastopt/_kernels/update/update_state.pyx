"""Optimiser state between its narrow form and float32: what a step does tile by tile, as doors.

bfloat16 is kept as uint16 bits; 8-bit codes are described in bytes.h.
"""

from fastopt._kernels.shared cimport numpy as cnp
from libc.stdint cimport uint16_t, uint64_t

from fastopt._kernels.shared.arguments cimport data_of
from fastopt._kernels.update.tiles cimport load_bytes, store_bytes, store_words, widen
from fastopt._kernels.update.types cimport *

cnp.import_array()


def decode_state(cnp.ndarray out not None, cnp.ndarray codes not None, scales):
    """State as float32: uint16 codes are bfloat16 bits, int8 and uint8 codes have scales."""
    cdef Py_ssize_t n = cnp.PyArray_SIZE(out)
    cdef float* x = <float*> data_of(out, cnp.NPY_FLOAT32, -1, True, "out")
    cdef int kind = cnp.PyArray_TYPE(codes)
    cdef void* c = data_of(codes, kind, n, False, "codes")
    if kind == cnp.NPY_UINT16:
        widen(x, <uint16_t*> c, n, BFLOAT)
    else:
        s = data_of(scales, cnp.NPY_FLOAT32, (n + UNIT - 1) // UNIT, False, "scales")
        load_bytes(x, c, <float*> s, n, kind == cnp.NPY_INT8)


def encode_state(cnp.ndarray codes not None, scales, cnp.ndarray x not None, uint64_t key,
                 uint64_t turn=0):
    """float32 to state codes; ``key`` seeds the noise of the stochastic rounding, whose
    steps ``turn`` counts."""
    cdef Py_ssize_t n = cnp.PyArray_SIZE(x)
    cdef float* v = <float*> data_of(x, cnp.NPY_FLOAT32, -1, False, "x")
    cdef int kind = cnp.PyArray_TYPE(codes)
    cdef void* c = data_of(codes, kind, n, True, "codes")
    if kind == cnp.NPY_UINT16:
        store_words(<uint16_t*> c, v, n, key, turn, 0, 0)
    else:
        s = data_of(scales, cnp.NPY_FLOAT32, (n + UNIT - 1) // UNIT, True, "scales")
        store_bytes(c, <float*> s, v, n, kind == cnp.NPY_INT8, key, turn, 0, 0)
