"""Random words for stochastic rounding: a function of (key, element index), in blocks of 64."""

from libc.stdint cimport uint32_t, uint64_t


cdef extern from *:
    """
    #ifndef FO_NOISE
    #define FO_NOISE
    #include <stdint.h>
    /* Philox4x32-10 on 16 counters at once: words of the elements 64 * block ... + 63. */
    static void fo_noise(uint32_t *restrict out, uint64_t key, uint64_t block) {
        uint32_t c0[16], c1[16], c2[16], c3[16], k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
        for (int j = 0; j < 16; j++) {
            uint64_t index = block * 16 + (uint64_t)j;
            c0[j] = (uint32_t)index; c1[j] = (uint32_t)(index >> 32); c2[j] = 0; c3[j] = 0;
        }
        for (int round = 0; round < 10; round++) {
            for (int j = 0; j < 16; j++) {
                uint64_t a = (uint64_t)0xD2511F53u * c0[j], b = (uint64_t)0xCD9E8D57u * c2[j];
                c0[j] = (uint32_t)(b >> 32) ^ c1[j] ^ k0;
                c1[j] = (uint32_t)b;
                c2[j] = (uint32_t)(a >> 32) ^ c3[j] ^ k1;
                c3[j] = (uint32_t)a;
            }
            k0 += 0x9E3779B9u;
            k1 += 0xBB67AE85u;
        }
        for (int j = 0; j < 16; j++) {
            out[j] = c0[j]; out[16 + j] = c1[j]; out[32 + j] = c2[j]; out[48 + j] = c3[j];
        }
    }
    #endif
    """
    void noise "fo_noise" (uint32_t* out, uint64_t key, uint64_t block) noexcept nogil
