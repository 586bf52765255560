/* Vectors of floats and of their bit patterns, as wide as the level has them: gcc's and clang's
   own vector types, whose operators work on every machine, and by name what has no operator.
   Every function gives the same bits for every width. */
#ifndef FO_UPDATE_LANES
#define FO_UPDATE_LANES
#include <math.h>
#include <stddef.h>
#include "bits.h"

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif
#if defined(__AVX512F__)
#define FO_W 16
#elif defined(__AVX2__)
#define FO_W 8
#else
#define FO_W 4
#endif
#define FO_LANE static inline __attribute__((always_inline))
#define FO_EACH_LANE for (int k = 0; k < FO_W; k++)

typedef float fo_f __attribute__((vector_size(4 * FO_W)));
typedef uint32_t fo_u __attribute__((vector_size(4 * FO_W)));

FO_LANE fo_f fo_load(const float *p) { fo_f x; memcpy(&x, p, sizeof x); return x; }
FO_LANE void fo_store(float *p, fo_f x) { memcpy(p, &x, sizeof x); }
FO_LANE fo_u fo_all(uint32_t x) { fo_u r = {0}; return r + x; }

/* Bits of a where the mask has ones, of b elsewhere. */
FO_LANE fo_u fo_select(uint32_t mask, fo_u a, fo_u b) {
#if FO_W == 16
    return (fo_u)_mm512_ternarylogic_epi32(_mm512_set1_epi32((int)mask), (__m512i)a, (__m512i)b,
                                           0xCA);
#else
    return (a & mask) | (b & ~mask);
#endif
}

#if FO_W == 16
FO_LANE fo_f fo_root(fo_f x) { return (fo_f)_mm512_sqrt_ps((__m512)x); }
FO_LANE fo_u fo_larger(fo_u a, fo_u b) { return (fo_u)_mm512_max_epu32((__m512i)a, (__m512i)b); }
FO_LANE fo_f fo_of_signed(const int8_t *p) {
    return (fo_f)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
FO_LANE fo_f fo_of_unsigned(const uint8_t *p) {
    return (fo_f)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
FO_LANE fo_u fo_of_words(const uint16_t *p) {
    return (fo_u)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
}
FO_LANE void fo_to_bytes(void *p, fo_u x) { /* the low byte of each */
    _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8((__m512i)x));
}
FO_LANE void fo_to_words(uint16_t *p, fo_u x) {
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16((__m512i)x));
}
#elif FO_W == 8
FO_LANE fo_f fo_root(fo_f x) { return (fo_f)_mm256_sqrt_ps((__m256)x); }
FO_LANE fo_u fo_larger(fo_u a, fo_u b) { return (fo_u)_mm256_max_epu32((__m256i)a, (__m256i)b); }
FO_LANE fo_f fo_of_signed(const int8_t *p) {
    return (fo_f)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
FO_LANE fo_f fo_of_unsigned(const uint8_t *p) {
    return (fo_f)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
FO_LANE fo_u fo_of_words(const uint16_t *p) {
    return (fo_u)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
}
FO_LANE void fo_to_bytes(void *p, fo_u x) {
    __m256i b = _mm256_shuffle_epi8((__m256i)x, _mm256_set1_epi32(0x0c080400));
    _mm_storel_epi64((__m128i *)p, _mm_unpacklo_epi32(_mm256_castsi256_si128(b),
                                                      _mm256_extracti128_si256(b, 1)));
}
FO_LANE void fo_to_words(uint16_t *p, fo_u x) { /* of numbers below 2^16 */
    _mm_storeu_si128((__m128i *)p, _mm_packus_epi32(_mm256_castsi256_si128((__m256i)x),
                                                    _mm256_extracti128_si256((__m256i)x, 1)));
}
#else
FO_LANE fo_f fo_root(fo_f x) { FO_EACH_LANE x[k] = sqrtf(x[k]); return x; }
FO_LANE fo_u fo_larger(fo_u a, fo_u b) { fo_u m = (fo_u)(a > b); return (a & m) | (b & ~m); }
FO_LANE fo_f fo_of_signed(const int8_t *p) { fo_f x; FO_EACH_LANE x[k] = p[k]; return x; }
FO_LANE fo_f fo_of_unsigned(const uint8_t *p) { fo_f x; FO_EACH_LANE x[k] = p[k]; return x; }
FO_LANE fo_u fo_of_words(const uint16_t *p) { fo_u x; FO_EACH_LANE x[k] = p[k]; return x; }
FO_LANE void fo_to_bytes(void *p, fo_u x) { FO_EACH_LANE ((uint8_t *)p)[k] = (uint8_t)x[k]; }
FO_LANE void fo_to_words(uint16_t *p, fo_u x) { FO_EACH_LANE p[k] = (uint16_t)x[k]; }
#endif

/* max(t, least) where y > 0 */
FO_LANE fo_u fo_at_least(fo_u t, fo_f y, uint32_t least) {
#if FO_W == 16
    __mmask16 above = _mm512_cmp_ps_mask((__m512)y, _mm512_setzero_ps(), _CMP_GT_OQ);
    return (fo_u)_mm512_mask_max_epu32((__m512i)t, above, (__m512i)t,
                                       _mm512_set1_epi32((int)least));
#else
    return fo_larger(t, (fo_u)(y > 0.0f) & least);
#endif
}

/* The upper 16 bits of x after an addition to its bits, which leaves NaN alone. */
FO_LANE fo_u fo_rounded(fo_f x, fo_u add) {
#if FO_W == 16
    __mmask16 number = _mm512_cmp_ps_mask((__m512)x, (__m512)x, _CMP_EQ_OQ);
    return (fo_u)_mm512_mask_add_epi32((__m512i)x, number, (__m512i)x, (__m512i)add) >> 16;
#else
    return ((fo_u)x + ((fo_u)(x == x) & add)) >> 16;
#endif
}
#endif
