"""Random words for stochastic rounding: a function of (key, element index), in blocks of 64."""

from libc.stdint cimport uint32_t, uint64_t


cdef extern from "noise.h":
    void noise "fo_noise" (uint32_t* out, uint64_t key, uint64_t block) noexcept nogil
