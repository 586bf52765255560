"""Random words for stochastic rounding: a function of (key, index), 128 at a time."""

from libc.stdint cimport uint32_t, uint64_t


cdef extern from "quantize/noise.h":
    void noise "fo_noise" (uint32_t* out, uint64_t key, uint64_t block) noexcept nogil
