"""A vector register of floats or of doubles: + - * / element by element, with each other and with
a number. Cython takes it for one float or one double, so a vector is only loaded or set to zero.
"""

from libc.string cimport memset

cdef extern from "shared/vector.h" nogil:
    enum:
        BYTES "FO_BYTES"  # of a register
    ctypedef float floats "fo_floats"
    ctypedef double doubles "fo_doubles"
    floats larger "fo_larger" (floats a, floats b) noexcept  # a > b ? a : b
    floats smaller "fo_smaller" (floats a, floats b) noexcept

ctypedef fused vector:
    floats
    doubles


cdef inline void zero(vector* a) noexcept nogil:
    memset(a, 0, BYTES)
