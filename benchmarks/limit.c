/* The machine's own limit: loops that only move the bytes a kernel must move. Built by limit.py. */
#include <stdint.h>
#include <stddef.h>
#include <string.h>

#ifdef _OPENMP
#define SPLIT _Pragma("omp parallel for schedule(static) num_threads(threads) if(threads > 1)")
#else
#define SPLIT
#endif
#define BLOCK 16384
#define EACH_BLOCK(body)                                                                     \
    SPLIT for (ptrdiff_t b = 0; b < n; b += BLOCK) {                                          \
        ptrdiff_t end = b + BLOCK < n ? b + BLOCK : n;                                       \
        body                                                                                 \
    }

/* In-place update of k arrays from one read-only array: the access pattern of an optimiser. */
void update1(float *restrict p, const float *restrict g, ptrdiff_t n, int threads) {
    EACH_BLOCK(for (ptrdiff_t i = b; i < end; i++) p[i] += g[i];)
}
void update2(float *restrict p, float *restrict m, const float *restrict g, ptrdiff_t n, int threads) {
    EACH_BLOCK(for (ptrdiff_t i = b; i < end; i++) { m[i] += g[i]; p[i] += m[i]; })
}
void update3(float *restrict p, float *restrict m, float *restrict v, const float *restrict g,
             ptrdiff_t n, int threads) {
    EACH_BLOCK(for (ptrdiff_t i = b; i < end; i++) { m[i] += g[i]; v[i] += g[i]; p[i] += m[i] + v[i]; })
}

/* Read n 4-byte words. */
uint32_t read4(const uint32_t *restrict a, ptrdiff_t n, int threads) {
    uint32_t total = 0;
#ifdef _OPENMP
#pragma omp parallel for schedule(static) num_threads(threads) if(threads > 1) reduction(^ : total)
#endif
    for (ptrdiff_t b = 0; b < n; b += BLOCK) {
        ptrdiff_t end = b + BLOCK < n ? b + BLOCK : n;
        uint32_t s = 0;
        for (ptrdiff_t i = b; i < end; i++) s ^= a[i];
        total ^= s;
    }
    return total;
}

/* Read one word, write another: out bytes x in bytes, plain stores. */
void copy4to1(const uint32_t *restrict a, uint8_t *restrict out, ptrdiff_t n, int threads) {
    EACH_BLOCK(for (ptrdiff_t i = b; i < end; i++) out[i] = (uint8_t)(a[i] >> 24);)
}
void copy4to2(const uint32_t *restrict a, uint16_t *restrict out, ptrdiff_t n, int threads) {
    EACH_BLOCK(for (ptrdiff_t i = b; i < end; i++) out[i] = (uint16_t)(a[i] >> 16);)
}
void copy1to4(const uint8_t *restrict a, uint32_t *restrict out, ptrdiff_t n, int threads) {
    EACH_BLOCK(for (ptrdiff_t i = b; i < end; i++) out[i] = a[i];)
}
void copy2to4(const uint16_t *restrict a, uint32_t *restrict out, ptrdiff_t n, int threads) {
    EACH_BLOCK(for (ptrdiff_t i = b; i < end; i++) out[i] = a[i];)
}
void copy1to1(const uint8_t *restrict a, uint8_t *restrict out, ptrdiff_t n, int threads) {
    EACH_BLOCK(memcpy(out + b, a + b, (size_t)(end - b));)
}

/* update1 with two arrays of bytes beside it: an optimiser with 8-bit state. */
void update1b2(float *restrict p, uint8_t *restrict m, uint8_t *restrict v, const float *restrict g,
               ptrdiff_t n, int threads) {
    EACH_BLOCK(for (ptrdiff_t i = b; i < end; i++) m[i]++;
               for (ptrdiff_t i = b; i < end; i++) v[i]++;
               for (ptrdiff_t i = b; i < end; i++) p[i] += g[i];)
}
