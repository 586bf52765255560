/* Codes of four bits that stand for the 16 values of a table. The code of v is the number of bounds
   below it; with `sign` (sign and magnitude) it is that of |v|, and bit 3 is the sign. A block is 32
   values and their 16 bytes, the first of two codes in the low half. */
#ifndef FO_CODEBOOK
#define FO_CODEBOOK
#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

/* The search asks four questions, each twice as fine; the answer i grows by 8, 4, 2, 1. */
typedef struct {
    float bound[16]; /* ascending, the last one infinite; at even i the fourth question */
    float third[16]; /* bound[i + 1] at i = 0, 4, 8, 12: the third question */
    float dense[16]; /* the third questions twice (8), the fourth (8): for tables of 8 lanes */
    float value[16];
    uint32_t sign;   /* 8, or 0 */
} fo_codebook;

static inline void fo_codebook_fill(fo_codebook *t, const float *bound, const float *value, int sign)
{
    memcpy(t->bound, bound, 15 * sizeof(float));
    memcpy(t->value, value, 16 * sizeof(float));
    t->bound[15] = INFINITY;
    for (int i = 0; i < 16; i++)
        t->third[i] = t->bound[i | 1];
    for (int i = 0; i < 8; i++) {
        t->dense[i] = t->bound[4 * (i & 3) + 1];
        t->dense[i + 8] = t->bound[2 * i];
    }
    t->sign = sign ? 8 : 0;
}

/* Bits of max|x|: the order of magnitudes is that of their bits, NaN above all. */
static inline uint32_t fo_absmax(const float *x, ptrdiff_t n)
{
#if defined(__AVX512BW__)
    __m512i most = _mm512_setzero_si512(), magnitude = _mm512_set1_epi32(0x7fffffff);
    ptrdiff_t k = 0;
    for (; k + 16 <= n; k += 16)
        most = _mm512_max_epu32(most, _mm512_and_si512(_mm512_loadu_si512(x + k), magnitude));
    if (k < n) {
        __mmask16 tail = (__mmask16)((1u << (n - k)) - 1);
        __m512i rest = _mm512_maskz_loadu_epi32(tail, x + k);
        most = _mm512_max_epu32(most, _mm512_and_si512(rest, magnitude));
    }
    return _mm512_reduce_max_epu32(most);
#else
    int32_t top = 0;
    for (ptrdiff_t k = 0; k < n; k++) {
        int32_t a;
        memcpy(&a, x + k, 4);
        a &= 0x7fffffff;
        top = a > top ? a : top;
    }
    return (uint32_t)top;
#endif
}

#if defined(__AVX512BW__)
static inline __m512i fo_search(__m512 v, __m512i absolute, const fo_codebook *t)
{
    __m512 w = _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(v), absolute));
    __mmask16 m = _mm512_cmp_ps_mask(w, _mm512_set1_ps(t->bound[7]), _CMP_GT_OQ);
    __m512 b = _mm512_mask_blend_ps(m, _mm512_set1_ps(t->bound[3]), _mm512_set1_ps(t->bound[11]));
    __m512i i = _mm512_maskz_set1_epi32(m, 8);
    m = _mm512_cmp_ps_mask(w, b, _CMP_GT_OQ);
    i = _mm512_mask_add_epi32(i, m, i, _mm512_set1_epi32(4));
    m = _mm512_cmp_ps_mask(w, _mm512_permutexvar_ps(i, _mm512_loadu_ps(t->third)), _CMP_GT_OQ);
    i = _mm512_mask_add_epi32(i, m, i, _mm512_set1_epi32(2));
    m = _mm512_cmp_ps_mask(w, _mm512_permutexvar_ps(i, _mm512_loadu_ps(t->bound)), _CMP_GT_OQ);
    i = _mm512_mask_add_epi32(i, m, i, _mm512_set1_epi32(1));
    __m512i s = _mm512_srli_epi32(_mm512_castps_si512(v), 28);
    i = _mm512_ternarylogic_epi32(i, s, _mm512_set1_epi32((int)t->sign), 0xf8); /* i | s & sign */
    return _mm512_or_si512(i, _mm512_srli_epi64(i, 28)); /* two codes in every other lane */
}

static inline void fo_codebook_encode(uint8_t *out, const float *x, float inverse, const fo_codebook *t)
{
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    __m512i absolute = _mm512_set1_epi32(t->sign ? 0x7fffffff : -1);
    __m512 r = _mm512_set1_ps(inverse);
    __m512i a = fo_search(_mm512_mul_ps(_mm512_loadu_ps(x), r), absolute, t);
    __m512i b = fo_search(_mm512_mul_ps(_mm512_loadu_ps(x + 16), r), absolute, t);
    _mm_storeu_si128((__m128i *)out, _mm512_cvtepi32_epi8(_mm512_permutex2var_epi32(a, even, b)));
}

static inline void fo_codebook_decode(float *out, const uint8_t *p, float scale, const fo_codebook *t)
{
    __m512 s = _mm512_set1_ps(scale), table = _mm512_loadu_ps(t->value);
    __m128i both = _mm_loadu_si128((const __m128i *)p);
    /* a byte becomes two lanes: the low four bits of a lane choose its value */
    __m512i a = _mm512_cvtepu8_epi64(both), b = _mm512_cvtepu8_epi64(_mm_srli_si128(both, 8));
    a = _mm512_or_si512(a, _mm512_slli_epi64(a, 28));
    b = _mm512_or_si512(b, _mm512_slli_epi64(b, 28));
    _mm512_storeu_ps(out, _mm512_mul_ps(_mm512_permutexvar_ps(a, table), s));
    _mm512_storeu_ps(out + 16, _mm512_mul_ps(_mm512_permutexvar_ps(b, table), s));
}
#elif defined(__AVX2__)
static inline __m256i fo_and(__m256 mask, int bits)
{
    return _mm256_and_si256(_mm256_castps_si256(mask), _mm256_set1_epi32(bits));
}

static inline __m256i fo_search(__m256 v, __m256 absolute, const fo_codebook *t)
{
    __m256 w = _mm256_and_ps(v, absolute);
    __m256 m = _mm256_cmp_ps(w, _mm256_set1_ps(t->bound[7]), _CMP_GT_OQ);
    __m256 b = _mm256_blendv_ps(_mm256_set1_ps(t->bound[3]), _mm256_set1_ps(t->bound[11]), m);
    __m256i i = fo_and(m, 8);
    i = _mm256_or_si256(i, fo_and(_mm256_cmp_ps(w, b, _CMP_GT_OQ), 4));
    b = _mm256_permutevar8x32_ps(_mm256_loadu_ps(t->dense), _mm256_srli_epi32(i, 2));
    i = _mm256_or_si256(i, fo_and(_mm256_cmp_ps(w, b, _CMP_GT_OQ), 2));
    b = _mm256_permutevar8x32_ps(_mm256_loadu_ps(t->dense + 8), _mm256_srli_epi32(i, 1));
    i = _mm256_or_si256(i, fo_and(_mm256_cmp_ps(w, b, _CMP_GT_OQ), 1));
    __m256i s = _mm256_srli_epi32(_mm256_castps_si256(v), 28);
    return _mm256_or_si256(i, _mm256_and_si256(s, _mm256_set1_epi32((int)t->sign)));
}

static inline void fo_codebook_encode(uint8_t *out, const float *x, float inverse, const fo_codebook *t)
{
    __m256 r = _mm256_set1_ps(inverse);
    __m256 absolute = _mm256_castsi256_ps(_mm256_set1_epi32(t->sign ? 0x7fffffff : -1));
    __m256i c[4];
    for (int k = 0; k < 4; k++)
        c[k] = fo_search(_mm256_mul_ps(_mm256_loadu_ps(x + 8 * k), r), absolute, t);
    __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    __m256i bytes =
        _mm256_packus_epi16(_mm256_packs_epi32(c[0], c[1]), _mm256_packs_epi32(c[2], c[3]));
    bytes = _mm256_permutevar8x32_epi32(bytes, order);
    __m256i pairs = _mm256_maddubs_epi16(bytes, _mm256_set1_epi16(0x1001));
    __m128i made = _mm_packus_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
    _mm_storeu_si128((__m128i *)out, made);
}

static inline void fo_codebook_decode(float *out, const uint8_t *p, float scale, const fo_codebook *t)
{
    __m256 s = _mm256_set1_ps(scale);
    __m256 low = _mm256_loadu_ps(t->value), high = _mm256_loadu_ps(t->value + 8);
    for (int k = 0; k < 4; k++) {
        int32_t four;
        memcpy(&four, p + 4 * k, 4);
        __m256i lanes = _mm256_cvtepu8_epi64(_mm_cvtsi32_si128(four));
        lanes = _mm256_or_si256(lanes, _mm256_slli_epi64(lanes, 28));
        __m256 upper = _mm256_castsi256_ps(_mm256_slli_epi32(lanes, 28)); /* bit 3 as the sign */
        __m256 a = _mm256_permutevar8x32_ps(low, lanes), b = _mm256_permutevar8x32_ps(high, lanes);
        _mm256_storeu_ps(out + 8 * k, _mm256_mul_ps(_mm256_blendv_ps(a, b, upper), s));
    }
}
#else
static inline void fo_codebook_encode(uint8_t *out, const float *x, float inverse, const fo_codebook *t)
{
    uint32_t code[32];
    for (int k = 0; k < 32; k++) {
        float v = x[k] * inverse, w;
        uint32_t u, i = 0;
        memcpy(&u, &v, 4);
        uint32_t s = u >> 28 & t->sign;
        u &= t->sign ? 0x7fffffffu : 0xffffffffu;
        memcpy(&w, &u, 4);
        for (int j = 0; j < 15; j++)
            i += w > t->bound[j];
        code[k] = i | s;
    }
    for (int k = 0; k < 16; k++)
        out[k] = (uint8_t)(code[2 * k] | code[2 * k + 1] << 4);
}

static inline void fo_codebook_decode(float *out, const uint8_t *p, float scale, const fo_codebook *t)
{
    for (int k = 0; k < 16; k++) {
        out[2 * k] = t->value[p[k] & 15] * scale;
        out[2 * k + 1] = t->value[p[k] >> 4] * scale;
    }
}
#endif
#endif
