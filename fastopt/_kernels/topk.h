/* Exact 8-bit dot products and Hamming distance of two rows. All sums are integers, so a wider
 * vector gives the same value; vpmaddubsw is not used because it saturates. */
#ifndef FO_TOPK_H
#define FO_TOPK_H
#include <stdint.h>
#include <stddef.h>
#include <string.h>
#if defined(__AVX512BW__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#define FO_DOT(NAME, B, WIDEN256, WIDEN512)                                                        \
static inline int32_t NAME(const int8_t *a, const B *b, ptrdiff_t n) {                             \
    ptrdiff_t i = 0;                                                                               \
    int32_t sum = 0;                                                                               \
    FO_DOT_WIDE(WIDEN256, WIDEN512)                                                                \
    for (; i < n; i++) sum += (int32_t)a[i] * b[i];                                                \
    return sum;                                                                                    \
}

#if defined(__AVX512VNNI__)
/* uint8 x int8 products: signed codes are moved by 128, which the sum of 128 a takes back. */
static inline int32_t fo_dot_vnni(const int8_t *a, const uint8_t *b, ptrdiff_t n, int is_signed) {
    const __m512i move = _mm512_set1_epi8((char)(is_signed ? 0x80 : 0));
    __m512i sum = _mm512_setzero_si512(), back = sum;
    for (ptrdiff_t i = 0; i < n; i += 64) {
        const __mmask64 some = n - i < 64 ? ((__mmask64)1 << (n - i)) - 1 : ~(__mmask64)0;
        const __m512i x = _mm512_maskz_loadu_epi8(some, a + i);
        const __m512i y = _mm512_maskz_loadu_epi8(some, b + i);
        sum = _mm512_dpbusd_epi32(sum, _mm512_xor_si512(y, move), x);
        back = _mm512_dpbusd_epi32(back, move, x);
    }
    return _mm512_reduce_add_epi32(_mm512_sub_epi32(sum, back));
}
#define fo_dot_s8s8(a, b, n) fo_dot_vnni(a, (const uint8_t *)(b), n, 1)
#define fo_dot_s8u8(a, b, n) fo_dot_vnni(a, b, n, 0)
#elif defined(__AVX512BW__)
#define FO_DOT_WIDE(W256, W512)                                                                    \
    __m512i s0 = _mm512_setzero_si512(), s1 = s0;                                                  \
    for (; i + 64 <= n; i += 64) {                                                                 \
        __m512i a0 = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(a + i)));           \
        __m512i a1 = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(a + i + 32)));      \
        __m512i b0 = W512(_mm256_loadu_si256((const __m256i *)(b + i)));                           \
        __m512i b1 = W512(_mm256_loadu_si256((const __m256i *)(b + i + 32)));                      \
        s0 = _mm512_add_epi32(s0, _mm512_madd_epi16(a0, b0));                                      \
        s1 = _mm512_add_epi32(s1, _mm512_madd_epi16(a1, b1));                                      \
    }                                                                                              \
    sum = _mm512_reduce_add_epi32(_mm512_add_epi32(s0, s1));
#elif defined(__AVX2__)
#define FO_DOT_WIDE(W256, W512)                                                                    \
    __m256i s0 = _mm256_setzero_si256(), s1 = s0;                                                  \
    for (; i + 32 <= n; i += 32) {                                                                 \
        __m256i a0 = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(a + i)));              \
        __m256i a1 = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(a + i + 16)));         \
        __m256i b0 = W256(_mm_loadu_si128((const __m128i *)(b + i)));                              \
        __m256i b1 = W256(_mm_loadu_si128((const __m128i *)(b + i + 16)));                         \
        s0 = _mm256_add_epi32(s0, _mm256_madd_epi16(a0, b0));                                      \
        s1 = _mm256_add_epi32(s1, _mm256_madd_epi16(a1, b1));                                      \
    }                                                                                              \
    int32_t lane[8];                                                                               \
    _mm256_storeu_si256((__m256i *)lane, _mm256_add_epi32(s0, s1));                                \
    for (int l = 0; l < 8; l++) sum += lane[l];
#else
#define FO_DOT_WIDE(W256, W512)
#endif

#ifndef __AVX512VNNI__
FO_DOT(fo_dot_s8s8, int8_t, _mm256_cvtepi8_epi16, _mm512_cvtepi8_epi16)
FO_DOT(fo_dot_s8u8, uint8_t, _mm256_cvtepu8_epi16, _mm512_cvtepu8_epi16)
#endif

static inline int32_t fo_hamming(const uint8_t *a, const uint8_t *b, ptrdiff_t n) {
    int32_t sum = 0;
    ptrdiff_t i = 0;
    for (; i + 8 <= n; i += 8) {
        uint64_t u, v;
        memcpy(&u, a + i, 8);
        memcpy(&v, b + i, 8);
        sum += __builtin_popcountll(u ^ v);
    }
    for (; i < n; i++) sum += __builtin_popcount((unsigned)(a[i] ^ b[i]));
    return sum;
}
#endif
