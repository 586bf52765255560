"""Pointers to what no other pointer of the function reaches: a loop over them needs no checks."""

from libc.stdint cimport uint8_t

cdef extern from *:
    """
    typedef float *__restrict fo_f32;
    typedef double *__restrict fo_f64;
    typedef unsigned char *__restrict fo_u8;
    """
    ctypedef float* f32 "fo_f32"
    ctypedef double* f64 "fo_f64"
    ctypedef uint8_t* u8 "fo_u8"

ctypedef fused reals:  # of the same precision as ``real`` wherever both are used
    f32
    f64
