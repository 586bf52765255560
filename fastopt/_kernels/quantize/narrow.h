/* Narrow floating point: one branch-free routine each way for every format with fewer than 32 bits.
   A format is sign, exponent and `man` mantissa bits; codes above max_code are not finite. */
#ifndef FO_NARROW
#define FO_NARROW
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

typedef struct {
    uint32_t shift;      /* 23 - man */
    uint32_t sign;       /* position of the sign bit */
    uint32_t rebias;     /* (127 - bias) << man */
    uint32_t min_normal; /* float32 bits of the smallest normal value; 0: same range as float32 */
    uint32_t max_code;   /* code of the largest finite value */
    uint32_t over;       /* code for what is above it: the same, or the next one */
    uint32_t nan;        /* code of NaN */
    float magic;         /* its last place is the subnormal step */
    float step;          /* the subnormal step */
    float inverse;       /* 1 / step */
} fo_narrow_spec;

static inline uint32_t fo_bits(float x) { uint32_t u; memcpy(&u, &x, 4); return u; }
static inline float fo_float(uint32_t u) { float x; memcpy(&x, &u, 4); return x; }

/* A code that is too large becomes `over`, max_code or the one above it; NaN keeps its sign. */
static inline uint32_t fo_close_code(uint32_t c, uint32_t u, const fo_narrow_spec s)
{
    c = (int32_t)c < (int32_t)s.over ? c : s.over;
    c = (u & 0x7fffffffu) > 0x7f800000u ? s.nan : c;
    return c | (u >> (31 - s.sign) & 1u << s.sign);
}

/* Round half to even. Below the smallest normal value the addition of `magic` rounds in hardware. */
static inline uint32_t fo_narrow(float x, const fo_narrow_spec s)
{
    uint32_t u = fo_bits(x), a = u & 0x7fffffffu;
    uint32_t half = (1u << (s.shift - 1)) - 1 - (s.rebias << s.shift);
    uint32_t normal = (a + half + (a >> s.shift & 1)) >> s.shift;
    uint32_t small = fo_bits(fo_float(a) + s.magic) - fo_bits(s.magic);
    return fo_close_code(a < s.min_normal ? small : normal, u, s);
}

/* Round up with the probability of the fraction; w holds 16 random bits on top and half a step, the
   bit below them. The subnormal fraction is seen in steps of 2**-17. */
static inline uint32_t fo_narrow_random(float x, uint32_t w, const fo_narrow_spec s)
{
    uint32_t u = fo_bits(x), a = u & 0x7fffffffu;
    uint32_t normal = (a - (s.rebias << s.shift) + (w >> (32 - s.shift))) >> s.shift;
    float q = fo_float(a) * s.inverse * 131072.0f;
    uint32_t small = ((uint32_t)(int32_t)(q < 1073741824.0f ? q : 1073741824.0f) + (w >> 15)) >> 17;
    return fo_close_code(a < s.min_normal ? small : normal, u, s);
}

/* Codes of n numbers (a multiple of 16), of `item` bytes; over `scale`, unless it is NULL, where
   they have one byte. */
static inline void fo_narrow_block(void *restrict out, const float *v, const float *scale,
                                   ptrdiff_t n, int item, const fo_narrow_spec s)
{
    uint8_t *o = (uint8_t *)out;
    uint16_t *w = (uint16_t *)out;
#if defined(__AVX512F__)
    /* As fo_narrow; gcc would pack the codes and the signs apart, and shift by two instructions. */
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff), one = _mm512_set1_epi32(1);
    const __m512i shift = _mm512_set1_epi32((int)s.shift), over = _mm512_set1_epi32((int)s.over);
    const __m512i half = _mm512_set1_epi32((int)((1u << (s.shift - 1)) - 1 - (s.rebias << s.shift)));
    const __m512i down = _mm512_set1_epi32((int)(31 - s.sign)), bit = _mm512_set1_epi32(1 << s.sign);
    const __m512i least = _mm512_set1_epi32((int)s.min_normal), nan = _mm512_set1_epi32((int)s.nan);
    const __m512i inf = _mm512_set1_epi32(0x7f800000);
    const __m512 magic = _mm512_set1_ps(s.magic);
    for (ptrdiff_t k = 0; k < n; k += 16) {
        __m512 x = _mm512_loadu_ps(v + k);
        if (scale)
            x = _mm512_div_ps(x, _mm512_loadu_ps(scale + k));
        __m512i u = _mm512_castps_si512(x), a = _mm512_and_si512(u, magnitude);
        __m512i even = _mm512_and_si512(_mm512_srlv_epi32(a, shift), one);
        __m512i sum = _mm512_add_epi32(_mm512_add_epi32(a, half), even);
        __m512i c = _mm512_sub_epi32(
            _mm512_castps_si512(_mm512_add_ps(_mm512_castsi512_ps(a), magic)),
            _mm512_castps_si512(magic));
        c = _mm512_mask_srlv_epi32(c, _mm512_cmpge_epi32_mask(a, least), sum, shift);
        c = _mm512_min_epi32(c, over);
        c = _mm512_mask_mov_epi32(c, _mm512_cmpgt_epi32_mask(a, inf), nan);
        c = _mm512_ternarylogic_epi32(c, _mm512_srlv_epi32(u, down), bit, 0xf8); /* c | u & bit */
        if (item == 1)
            _mm_storeu_si128((__m128i *)(o + k), _mm512_cvtepi32_epi8(c));
        else
            _mm256_storeu_si256((__m256i *)(w + k), _mm512_cvtepi32_epi16(c));
    }
#else
    if (scale)
        for (ptrdiff_t k = 0; k < n; k++)
            o[k] = (uint8_t)fo_narrow(v[k] / scale[k], s);
    else if (item == 1)
        for (ptrdiff_t k = 0; k < n; k++)
            o[k] = (uint8_t)fo_narrow(v[k], s);
    else
        for (ptrdiff_t k = 0; k < n; k++)
            w[k] = (uint16_t)fo_narrow(v[k], s);
#endif
}

/* Exact. */
static inline float fo_widen(uint32_t code, const fo_narrow_spec s)
{
    uint32_t a = code & ((1u << s.sign) - 1), sign = (code >> s.sign) << 31;
    uint32_t normal = (a + s.rebias) << s.shift;
    uint32_t small = fo_bits((float)(int32_t)a * s.step);
    uint32_t r = normal < s.min_normal ? small : normal;
    uint32_t odd = s.over > s.max_code && a == s.over && s.over != s.nan ? 0x7f800000u : 0x7fc00000u;
    r = a > s.max_code ? odd : r;
    return fo_float(r | sign);
}

/* float64 to float32 rounded to odd: a second rounding to fewer bits then gives what one would. */
static inline float fo_odd(double x)
{
    float f = (float)x;
    uint32_t u = fo_bits(f);
    double wide = (double)f, d = x < 0 ? -x : x, w = wide < 0 ? -wide : wide;
    u -= w > d ? 1 : 0;
    u |= w != d && d == d ? 1 : 0;
    return fo_float(u);
}
#endif
