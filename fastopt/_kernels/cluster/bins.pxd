"""The bins of cluster.pyx: a number's key, and the bin that it falls into.

y = x * unit - centre, rounded to float32, has a key in its order: its bits, those of negative
numbers reversed. The first 16 bits of a key choose an entry of ``map``: 32 times the first bin of
these keys, plus by how many bits the other 16 are shifted to number the bins from there. So bins
are as fine as the data asks for, wherever it lies.
"""

from libc.stdint cimport int32_t, uint32_t
from libc.string cimport memcpy

ctypedef fused real:
    float
    double


cdef enum:
    BLOCK = 256  # elements whose keys are made together, in vectors


cdef inline uint32_t key_of(double x, double unit, double centre) noexcept nogil:
    cdef float y = <float> (x * unit - centre)
    cdef uint32_t u
    y += <float> 0.0  # no negative zero
    memcpy(&u, &y, 4)
    return u ^ (<uint32_t> (<int32_t> u >> 31) | <uint32_t> 1 << 31)


cdef inline void keys_of(
    uint32_t* keys, const real* x, Py_ssize_t n, double unit, double centre
) noexcept nogil:
    """n <= BLOCK keys."""
    cdef Py_ssize_t i
    if n == BLOCK:
        for i in range(BLOCK):
            keys[i] = key_of(x[i], unit, centre)
    else:
        for i in range(n):
            keys[i] = key_of(x[i], unit, centre)


cdef inline Py_ssize_t bin_of(uint32_t key, const uint32_t* map) noexcept nogil:
    cdef uint32_t entry = map[key >> 16]
    return (entry >> 5) + ((key & 0xFFFF) >> (entry & 31))
