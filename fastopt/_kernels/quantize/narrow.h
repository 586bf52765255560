/* AVX-512: codes of narrow floats with their signs in one pass. gcc packs codes and signs apart from
   the plain loop and shifts by two instructions (float8, 10M: 2.8 ms here, 3.1 plain). The plain
   form, which takes what this leaves, is narrow_even in shared/narrow.pxd. */
#ifndef FO_NARROW
#define FO_NARROW
#include <stddef.h>
#include <stdint.h>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

/* Codes of n numbers (a multiple of 16), of `item` bytes, over `scale` unless it is NULL; returns how
   many were made. */
static inline ptrdiff_t fo_narrow_even(void *restrict out, const float *v, const float *scale,
                                       ptrdiff_t n, int item, uint32_t shift, uint32_t sign,
                                       uint32_t rebias, uint32_t min_normal, uint32_t over,
                                       uint32_t nan, float magic)
{
#if defined(__AVX512F__)
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff), one = _mm512_set1_epi32(1);
    const __m512i by = _mm512_set1_epi32((int)shift), most = _mm512_set1_epi32((int)over);
    const __m512i half = _mm512_set1_epi32((int)((1u << (shift - 1)) - 1 - (rebias << shift)));
    const __m512i down = _mm512_set1_epi32((int)(31 - sign)), bit = _mm512_set1_epi32(1 << sign);
    const __m512i least = _mm512_set1_epi32((int)min_normal), odd = _mm512_set1_epi32((int)nan);
    const __m512i inf = _mm512_set1_epi32(0x7f800000);
    const __m512 add = _mm512_set1_ps(magic);
    for (ptrdiff_t k = 0; k < n; k += 16) {
        __m512 x = _mm512_loadu_ps(v + k);
        if (scale)
            x = _mm512_div_ps(x, _mm512_loadu_ps(scale + k));
        __m512i u = _mm512_castps_si512(x), a = _mm512_and_si512(u, magnitude);
        __m512i even = _mm512_and_si512(_mm512_srlv_epi32(a, by), one);
        __m512i sum = _mm512_add_epi32(_mm512_add_epi32(a, half), even);
        __m512i c = _mm512_sub_epi32(
            _mm512_castps_si512(_mm512_add_ps(_mm512_castsi512_ps(a), add)),
            _mm512_castps_si512(add));
        c = _mm512_mask_srlv_epi32(c, _mm512_cmpge_epi32_mask(a, least), sum, by);
        c = _mm512_min_epi32(c, most);
        c = _mm512_mask_mov_epi32(c, _mm512_cmpgt_epi32_mask(a, inf), odd);
        c = _mm512_ternarylogic_epi32(c, _mm512_srlv_epi32(u, down), bit, 0xf8); /* c | u & bit */
        if (item == 1)
            _mm_storeu_si128((__m128i *)((uint8_t *)out + k), _mm512_cvtepi32_epi8(c));
        else
            _mm256_storeu_si256((__m256i *)((uint16_t *)out + k), _mm512_cvtepi32_epi16(c));
    }
    return n;
#else
    return 0;
#endif
}
#endif
