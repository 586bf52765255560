"""Philox4x32 (philox.h): a draw is a function of (key, counter) only; no state, no lock, the same
for every thread count, level and worker. Key = the seed's 64 bits; counter = (index, stream,
step). Ten rounds, or seven, which pass BigCrush, too (Salmon et al. 2011, table 2).
"""

from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    TILE = 64  # words of a tile: word k of block index + l stands at 16 k + l
    GROUP = 16  # blocks of a tile

cdef extern from "shared/philox.h" nogil:
    ctypedef struct u32x4 "fo_u32x4":
        uint32_t w[4]
    u32x4 fo_philox(
        uint64_t key, uint64_t index, uint32_t stream, uint32_t step, int rounds
    ) noexcept
    void philox_tile "fo_philox_tile" (
        uint32_t* out, uint64_t key, uint64_t index, uint32_t stream, uint32_t step, int rounds
    ) noexcept


cdef inline u32x4 philox(
    uint64_t key, uint64_t index, uint32_t stream, uint32_t step
) noexcept nogil:
    return fo_philox(key, index, stream, step, 10)
