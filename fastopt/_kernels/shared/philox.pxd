"""Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).

A draw is a function of (key, counter) only: no state, no lock, the same for every thread count,
level and worker. Key = the seed's 64 bits; counter = (index low, index high, stream, step).
"""

from libc.stdint cimport uint32_t, uint64_t


cdef extern from *:
    """
    #ifndef FO_PHILOX
    #define FO_PHILOX
    #include <stdint.h>
    typedef struct { uint32_t w[4]; } fo_u32x4;
    static inline fo_u32x4 fo_philox(uint64_t key, uint64_t index, uint32_t stream, uint32_t step) {
        uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
        uint32_t c0 = (uint32_t)index, c1 = (uint32_t)(index >> 32), c2 = stream, c3 = step;
        for (int round = 0; round < 10; round++) {
            uint64_t a = (uint64_t)0xD2511F53u * c0, b = (uint64_t)0xCD9E8D57u * c2;
            c0 = (uint32_t)(b >> 32) ^ c1 ^ k0;
            c1 = (uint32_t)b;
            c2 = (uint32_t)(a >> 32) ^ c3 ^ k1;
            c3 = (uint32_t)a;
            k0 += 0x9E3779B9u;
            k1 += 0xBB67AE85u;
        }
        fo_u32x4 r = {{c0, c1, c2, c3}};
        return r;
    }
    #endif
    """
    ctypedef struct u32x4 "fo_u32x4":
        uint32_t w[4]
    u32x4 philox "fo_philox" (
        uint64_t key, uint64_t index, uint32_t stream, uint32_t step
    ) noexcept nogil
