"""Optimiser state between its narrow form and float32: what a step does line by line, as doors.

bfloat16 is kept as uint16 bits; 8-bit codes are described in codes.h.
"""

from libc.stdint cimport uint64_t
from libc.string cimport memset

from fastopt._kernels.shared cimport numpy as cnp
from fastopt._kernels.shared.arguments cimport data_of
from fastopt._kernels.update.narrow cimport load_state, store_state
from fastopt._kernels.update.stretch cimport *

cnp.import_array()


cdef Stretch state_of(cnp.ndarray codes, scales, Py_ssize_t n, bint writable) except *:
    cdef Stretch a
    cdef int kind = cnp.PyArray_TYPE(codes)
    memset(&a, 0, sizeof(a))
    a.n = n
    a.state[0] = data_of(codes, kind, n, writable, "codes")
    a.storage = BFLOAT
    if kind != cnp.NPY_UINT16:
        a.storage = CODES
        a.scales[0] = <float*> data_of(
            scales, cnp.NPY_FLOAT32, (n + UNIT - 1) // UNIT, writable, "scales"
        )
    return a


def decode_state(cnp.ndarray out not None, cnp.ndarray codes not None, scales):
    """State as float32: uint16 codes are bfloat16 bits, int8 and uint8 codes have scales."""
    cdef Py_ssize_t n = cnp.PyArray_SIZE(out)
    cdef float* x = <float*> data_of(out, cnp.NPY_FLOAT32, -1, True, "out")
    cdef Stretch a = state_of(codes, scales, n, False)
    load_state(x, &a, 0, SIGNED if cnp.PyArray_TYPE(codes) == cnp.NPY_INT8 else POSITIVE, n)


def encode_state(cnp.ndarray codes not None, scales, cnp.ndarray x not None, uint64_t key,
                 uint64_t turn=0):
    """float32 to state codes; ``key`` seeds the noise of the stochastic rounding, whose
    steps ``turn`` counts."""
    cdef Py_ssize_t n = cnp.PyArray_SIZE(x)
    cdef float* v = <float*> data_of(x, cnp.NPY_FLOAT32, -1, False, "x")
    cdef Stretch a = state_of(codes, scales, n, True)
    a.key, a.turn = key, turn
    store_state(v, &a, 0, SIGNED if cnp.PyArray_TYPE(codes) == cnp.NPY_INT8 else POSITIVE, n)
