/* Philox4x32-7 on 32 counters: words 64 * block ... 64 * block + 127; word 64 b + 16 w + j is word w
   of counter 16 b + j. Seven rounds pass BigCrush (Salmon et
   al. 2011, table 2); ten cost a third more. gcc leaves the plain loop scalar (its 32 x 32 -> 64 bit
   products in two interleaved halves), hence the intrinsics; same bits. */
#ifndef FO_NOISE
#define FO_NOISE
#include <stdint.h>

#if defined(__AVX512F__)
#include <immintrin.h>
#define FO_LANES 16
#define FO_VEC __m512i
#define FO_SET(x) _mm512_set1_epi32((int)(x))
#define FO_LOAD(p) _mm512_loadu_si512(p)
#define FO_STORE(p, v) _mm512_storeu_si512(p, v)
#define FO_XOR3(a, b, c) _mm512_ternarylogic_epi32(a, b, c, 0x96)
#define FO_MUL(a, b) _mm512_mul_epu32(a, b)
#define FO_DOWN(a) _mm512_srli_epi64(a, 32)
#define FO_HIGH(even, odd) _mm512_mask_shuffle_epi32(odd, 0x5555, even, _MM_PERM_DDBB)
#define FO_LOW(even, odd) _mm512_mask_shuffle_epi32(even, 0xAAAA, odd, _MM_PERM_CCAA)
#elif defined(__AVX2__)
#include <immintrin.h>
#define FO_LANES 8
#define FO_VEC __m256i
#define FO_SET(x) _mm256_set1_epi32((int)(x))
#define FO_LOAD(p) _mm256_loadu_si256((const __m256i *)(p))
#define FO_STORE(p, v) _mm256_storeu_si256((__m256i *)(p), v)
#define FO_XOR3(a, b, c) _mm256_xor_si256(_mm256_xor_si256(a, b), c)
#define FO_MUL(a, b) _mm256_mul_epu32(a, b)
#define FO_DOWN(a) _mm256_srli_epi64(a, 32)
#define FO_HIGH(even, odd) _mm256_blend_epi32(FO_DOWN(even), odd, 0xAA)
#define FO_LOW(even, odd) _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA)
#elif defined(__SSE4_1__)
#include <immintrin.h>
#define FO_LANES 4
#define FO_VEC __m128i
#define FO_SET(x) _mm_set1_epi32((int)(x))
#define FO_LOAD(p) _mm_loadu_si128((const __m128i *)(p))
#define FO_STORE(p, v) _mm_storeu_si128((__m128i *)(p), v)
#define FO_XOR3(a, b, c) _mm_xor_si128(_mm_xor_si128(a, b), c)
#define FO_MUL(a, b) _mm_mul_epu32(a, b)
#define FO_DOWN(a) _mm_srli_epi64(a, 32)
#define FO_HIGH(even, odd) _mm_blend_epi16(FO_DOWN(even), odd, 0xCC)
#define FO_LOW(even, odd) _mm_blend_epi16(even, _mm_slli_epi64(odd, 32), 0xCC)
#endif

#ifdef FO_LANES
#define FO_ROUND(c0, c1, c2, c3)                                                                \
    {                                                                                            \
        FO_VEC ae = FO_MUL(c0, m0), ao = FO_MUL(FO_DOWN(c0), m0);                                \
        FO_VEC be = FO_MUL(c2, m1), bo = FO_MUL(FO_DOWN(c2), m1);                                \
        c0 = FO_XOR3(FO_HIGH(be, bo), c1, FO_SET(k0));                                   \
        c1 = FO_LOW(be, bo);                                                              \
        c2 = FO_XOR3(FO_HIGH(ae, ao), c3, FO_SET(k1));                                   \
        c3 = FO_LOW(ae, ao);                                                              \
    }
#endif

static void fo_noise(uint32_t *restrict out, uint64_t key, uint64_t block)
{
    uint32_t low[32], high[32];
    for (int j = 0; j < 32; j++) {
        uint64_t index = block * 16 + (uint64_t)j;
        low[j] = (uint32_t)index;
        high[j] = (uint32_t)(index >> 32);
    }
#ifdef FO_LANES
    /* Counters j and j + 16 go through the rounds together: one alone waits for its products. */
    const FO_VEC m0 = FO_SET(0xD2511F53u), m1 = FO_SET(0xCD9E8D57u);
    for (int j = 0; j < 16; j += FO_LANES) {
        uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
        FO_VEC c0 = FO_LOAD(low + j), c1 = FO_LOAD(high + j), c2 = FO_SET(0), c3 = c2;
        FO_VEC d0 = FO_LOAD(low + 16 + j), d1 = FO_LOAD(high + 16 + j), d2 = c2, d3 = c2;
        for (int round = 0; round < 7; round++) {
            FO_ROUND(c0, c1, c2, c3)
            FO_ROUND(d0, d1, d2, d3)
            k0 += 0x9E3779B9u;
            k1 += 0xBB67AE85u;
        }
        FO_STORE(out + j, c0);
        FO_STORE(out + 16 + j, c1);
        FO_STORE(out + 32 + j, c2);
        FO_STORE(out + 48 + j, c3);
        FO_STORE(out + 64 + j, d0);
        FO_STORE(out + 80 + j, d1);
        FO_STORE(out + 96 + j, d2);
        FO_STORE(out + 112 + j, d3);
    }
#else
    for (int j = 0; j < 32; j++) {
        uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
        uint32_t c0 = low[j], c1 = high[j], c2 = 0, c3 = 0;
        for (int round = 0; round < 7; round++) {
            uint64_t a = (uint64_t)0xD2511F53u * c0, b = (uint64_t)0xCD9E8D57u * c2;
            c0 = (uint32_t)(b >> 32) ^ c1 ^ k0;
            c1 = (uint32_t)b;
            c2 = (uint32_t)(a >> 32) ^ c3 ^ k1;
            c3 = (uint32_t)a;
            k0 += 0x9E3779B9u;
            k1 += 0xBB67AE85u;
        }
        uint32_t *to = out + j / 16 * 64 + j % 16;
        to[0] = c0;
        to[16] = c1;
        to[32] = c2;
        to[48] = c3;
    }
#endif
}
#endif
