/* Lane-parallel Philox4x32-10 and log2/exp2 in plain arithmetic, for genetic.pyx.
 *
 * fo_tile is in intrinsics because gcc 12 spills the plain loop (4.0 ns a word against 0.54 ns with
 * AVX-512, 1.05 with AVX2, 2.3 with SSE); the plain loop below it gives the same words.
 * The approximations use only + - * / and bit moves, so every level and machine gives the same bits.
 */
#ifndef FO_GENETIC_H
#define FO_GENETIC_H
#include <stdint.h>
#include <string.h>
#include <float.h>

#if defined(__AVX512F__)
#include <immintrin.h>
#define FO_WIDTH 16
typedef __m512i fo_vec;
#define FO_DO(name) _mm512_##name
#define FO_XOR(a, b) _mm512_xor_si512(a, b)
#define FO_SET(x) _mm512_set1_epi64((long long)(x))
#define FO_IOTA _mm512_set_epi64(14, 12, 10, 8, 6, 4, 2, 0)
#define FO_BLEND(even, odd) _mm512_mask_mov_epi32(even, 0xAAAA, odd)
#define FO_STORE(p, v) _mm512_storeu_si512((void *)(p), v)
#elif defined(__AVX2__)
#include <immintrin.h>
#define FO_WIDTH 8
typedef __m256i fo_vec;
#define FO_DO(name) _mm256_##name
#define FO_XOR(a, b) _mm256_xor_si256(a, b)
#define FO_SET(x) _mm256_set1_epi64x((long long)(x))
#define FO_IOTA _mm256_set_epi64x(6, 4, 2, 0)
#define FO_BLEND(even, odd) _mm256_blend_epi32(even, odd, 0xAA)
#define FO_STORE(p, v) _mm256_storeu_si256((__m256i *)(p), v)
#elif defined(__SSE4_1__)
#include <smmintrin.h>
#define FO_WIDTH 4
typedef __m128i fo_vec;
#define FO_DO(name) _mm_##name
#define FO_XOR(a, b) _mm_xor_si128(a, b)
#define FO_SET(x) _mm_set1_epi64x((long long)(x))
#define FO_IOTA _mm_set_epi64x(2, 0)
#define FO_BLEND(even, odd) _mm_blend_epi16(even, odd, 0xCC)
#define FO_STORE(p, v) _mm_storeu_si128((__m128i *)(p), v)
#endif

/* out[16 k + l] = word k of block (first + l, second, stream, step): 64 words, 16 blocks. */
static inline void fo_tile(uint32_t *out, uint64_t key, uint32_t first, uint32_t second,
                           uint32_t stream, uint32_t step) {
#ifdef FO_WIDTH
    const fo_vec m0 = FO_SET(0xD2511F53u), m1 = FO_SET(0xCD9E8D57u);
    for (int part = 0; part < 16; part += FO_WIDTH) {
        fo_vec c[2][4]; /* even and odd blocks, one 32-bit word in each 64-bit lane */
        for (int h = 0; h < 2; h++) {
            c[h][0] = FO_DO(add_epi32)(FO_SET((uint64_t)(uint32_t)(first + part + h)), FO_IOTA);
            c[h][1] = FO_SET(second);
            c[h][2] = FO_SET(stream);
            c[h][3] = FO_SET(step);
        }
        uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
        for (int round = 0; round < 10; round++) {
            const fo_vec s0 = FO_SET(k0), s1 = FO_SET(k1);
            for (int h = 0; h < 2; h++) {
                fo_vec a = FO_DO(mul_epu32)(c[h][0], m0), b = FO_DO(mul_epu32)(c[h][2], m1);
                c[h][0] = FO_XOR(FO_XOR(FO_DO(srli_epi64)(b, 32), c[h][1]), s0);
                c[h][2] = FO_XOR(FO_XOR(FO_DO(srli_epi64)(a, 32), c[h][3]), s1);
                c[h][1] = b;
                c[h][3] = a;
            }
            k0 += 0x9E3779B9u;
            k1 += 0xBB67AE85u;
        }
        for (int w = 0; w < 4; w++)
            FO_STORE(out + 16 * w + part,
                     FO_BLEND(c[0][w], FO_DO(slli_epi64)(c[1][w], 32)));
    }
#else
    for (uint32_t l = 0; l < 16; l++) {
        uint32_t c0 = first + l, c1 = second, c2 = stream, c3 = step;
        uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
        for (int round = 0; round < 10; round++) {
            uint64_t a = (uint64_t)0xD2511F53u * c0, b = (uint64_t)0xCD9E8D57u * c2;
            c0 = (uint32_t)(b >> 32) ^ c1 ^ k0;
            c1 = (uint32_t)b;
            c2 = (uint32_t)(a >> 32) ^ c3 ^ k1;
            c3 = (uint32_t)a;
            k0 += 0x9E3779B9u;
            k1 += 0xBB67AE85u;
        }
        out[l] = c0;
        out[16 + l] = c1;
        out[32 + l] = c2;
        out[48 + l] = c3;
    }
#endif
}

/* log2 of a positive normal float, relative error < 2e-7: x = m 2^k, m in [0.7, 1.42],
 * log2 m = (2 / ln 2) atanh s with s = (m - 1) / (m + 1), |s| < 0.172. */
static inline float fo_log2f(float x) {
    int32_t bits, k;
    float m;
    memcpy(&bits, &x, 4);
    k = (bits - 0x3F350000) >> 23;
    bits -= (int32_t)((uint32_t)k << 23);
    memcpy(&m, &bits, 4);
    float s = (m - 1.0f) / (m + 1.0f), z = s * s;
    float p = ((0.320598894f * z + 0.412198585f) * z + 0.577078016f) * z + 0.961796694f;
    return (float)k + s * (p * z + 2.88539008f);
}

/* 2^x for |x| <= 126, relative error < 2e-7: Taylor's series of e^(x ln 2) on [-0.5, 0.5]. */
static inline float fo_exp2f(float x) {
    x = x < -126.0f ? -126.0f : x;
    x = x > 126.0f ? 126.0f : x;
    float r = x + 12582912.0f; /* 1.5 * 2^23: rounds to the nearest integer */
    int32_t bits;
    memcpy(&bits, &r, 4);
    float f = x - (r - 12582912.0f);
    float p = ((((((1.52527338e-5f * f + 1.54035304e-4f) * f + 1.33335581e-3f) * f
                + 9.61812911e-3f) * f + 5.55041087e-2f) * f + 2.40226507e-1f) * f
               + 6.93147181e-1f) * f + 1.0f;
    int32_t scale = (int32_t)((uint32_t)(bits - 0x4B400000 + 127) << 23);
    float two_k;
    memcpy(&two_k, &scale, 4);
    return p * two_k;
}

/* The same in double, relative error < 1e-14. Arguments below the smallest normal count as it. */
static inline double fo_log2(double x) {
    int64_t bits, k;
    double m;
    x = x > DBL_MIN ? x : DBL_MIN;
    memcpy(&bits, &x, 8);
    k = (bits - 0x3FE6A00000000000LL) >> 52;
    bits -= (int64_t)((uint64_t)k << 52);
    memcpy(&m, &bits, 8);
    double s = (m - 1.0) / (m + 1.0), z = s * s, p = 1.0 / 19.0;
    p = p * z + 1.0 / 17.0;
    p = p * z + 1.0 / 15.0;
    p = p * z + 1.0 / 13.0;
    p = p * z + 1.0 / 11.0;
    p = p * z + 1.0 / 9.0;
    p = p * z + 1.0 / 7.0;
    p = p * z + 1.0 / 5.0;
    p = p * z + 1.0 / 3.0;
    p = p * z + 1.0;
    return (double)(int32_t)k + s * p * 2.885390081777926814719849362; /* 2 / ln 2 */
}

static inline double fo_exp2(double x) {
    x = x < -1022.0 ? -1022.0 : x;
    x = x > 1023.0 ? 1023.0 : x;
    double r = x + 6755399441055744.0; /* 1.5 * 2^52 */
    int64_t bits;
    memcpy(&bits, &r, 8);
    double f = (x - (r - 6755399441055744.0)) * 0.693147180559945309417232121458;
    double p = 1.0 / 479001600.0;
    p = p * f + 1.0 / 39916800.0;
    p = p * f + 1.0 / 3628800.0;
    p = p * f + 1.0 / 362880.0;
    p = p * f + 1.0 / 40320.0;
    p = p * f + 1.0 / 5040.0;
    p = p * f + 1.0 / 720.0;
    p = p * f + 1.0 / 120.0;
    p = p * f + 1.0 / 24.0;
    p = p * f + 1.0 / 6.0;
    p = p * f + 0.5;
    p = p * f + 1.0;
    p = p * f + 1.0;
    int64_t scale = (int64_t)((uint64_t)(bits - 0x4338000000000000LL + 1023) << 52);
    double two_k;
    memcpy(&two_k, &scale, 8);
    return p * two_k;
}

/* cos x on [0, pi/2], absolute error < 1e-12 (Taylor to x^18). */
static inline double fo_cos(double x) {
    double z = x * x, p = -1.0 / 6402373705728000.0;
    p = p * z + 1.0 / 20922789888000.0;
    p = p * z - 1.0 / 87178291200.0;
    p = p * z + 1.0 / 479001600.0;
    p = p * z - 1.0 / 3628800.0;
    p = p * z + 1.0 / 40320.0;
    p = p * z - 1.0 / 720.0;
    p = p * z + 1.0 / 24.0;
    p = p * z - 0.5;
    return p * z + 1.0;
}
#endif
