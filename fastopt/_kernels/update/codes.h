/* Optimiser state in 8 or 16 bits <-> lines of 16 floats.

   8 bits: blocks of at most 256 values share a float32 scale, their largest size. Codes are
   companded so that relative precision is kept over four decades (moments with a sign) and nine
   (second moments): code / 128 = sign * R2(m), code / 256 = R4(v) of the value as a share of 64/63
   scales, where R2 and R4 halve and quarter the bit pattern of a float. That is the square root
   (the fourth root) drawn as straight lines between powers of two; unlike a root its inverse is
   exact and either way is one shift. The lines' ends are codes themselves (down to the lowest
   four), so that what is unbiased in the code is unbiased in the value: a second moment without
   gradients falls by beta2 a step, which rounding along a curve would slow down.

   Rounding is stochastic. The noise of a block's element i is (phase + i G) mod 2^11: a lattice
   (G / 2^11 is the golden ratio) shifted by a random phase of the block (Cranley and Patterson
   1976), so that each element's noise is uniform and the rounding unbiased, and the elements of a
   block do not all go the same way. Second moments take a new random phase each step: they fall
   for hundreds of steps, and what comes must not follow from what has been. Moments with a sign
   go on along the lattice, by G a step: gradients shake them enough, and of the roundings that
   they gather half the variance cancels. A value that was decoded is encoded to its own code by
   any noise. A NaN or infinity makes the whole block NaN.

   16 bits: bfloat16, moments with a sign to nearest even, second moments by the same noise mod
   2^16: a second moment moves by less than half a step of bfloat16, and rounded to nearest it
   stalls.

   In C because gcc 12 vectorises loops between numbers of 8 and 32 bits in 16-byte vectors: Adam
   on 8-bit state takes 2.6 ns per element that way, 0.9 this way (AVX2). Vectors are gcc's and
   clang's own types, as wide as the level has them; what they have no operator for stands first,
   with the plain loop for every machine. Every width gives the same bits. */
#ifndef FO_UPDATE_CODES
#define FO_UPDATE_CODES
#include <stddef.h>
#include <stdint.h>
#include <string.h>

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
#define FO_LINE 16
#define FO_INLINE static inline __attribute__((always_inline))

/* Vectors that cross a line of the cache cost twice. */
typedef struct { float at[FO_LINE]; } __attribute__((aligned(64))) fo_line;
typedef struct { float at[256]; } __attribute__((aligned(64))) fo_block;
typedef float fo_f __attribute__((vector_size(4 * FO_W)));
typedef uint32_t fo_u __attribute__((vector_size(4 * FO_W)));
typedef int32_t fo_i __attribute__((vector_size(4 * FO_W)));

FO_INLINE fo_f fo_load(const float *p) { fo_f x; memcpy(&x, p, sizeof x); return x; }
FO_INLINE void fo_store(float *p, fo_f x) { memcpy(p, &x, sizeof x); }
FO_INLINE fo_u fo_all(uint32_t x) { fo_u r = {0}; return r + x; }
FO_INLINE uint32_t fo_bits(float x) { uint32_t u; memcpy(&u, &x, 4); return u; }
FO_INLINE float fo_float(uint32_t u) { float x; memcpy(&x, &u, 4); return x; }

#if FO_W == 16
FO_INLINE fo_u fo_larger(fo_u a, fo_u b) { return (fo_u)_mm512_max_epu32((__m512i)a, (__m512i)b); }
FO_INLINE fo_f fo_of_signed(const int8_t *p) {
    return (fo_f)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
FO_INLINE fo_f fo_of_unsigned(const uint8_t *p) {
    return (fo_f)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
FO_INLINE fo_u fo_of_words(const uint16_t *p) {
    return (fo_u)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
}
FO_INLINE void fo_to_codes(void *p, const fo_u *x) { /* bits 11 to 18 of each of 16 */
    _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8((__m512i)(x[0] >> 11)));
}
FO_INLINE void fo_to_words(void *p, const fo_u *x) { /* 16 numbers below 2^16 */
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16((__m512i)x[0]));
}
FO_INLINE fo_u fo_at_least(fo_u t, fo_f y, uint32_t least) { /* max(t, least) where y > 0 */
    __mmask16 above = _mm512_cmp_ps_mask((__m512)y, _mm512_setzero_ps(), _CMP_GT_OQ);
    return (fo_u)_mm512_mask_max_epu32((__m512i)t, above, (__m512i)t,
                                       _mm512_set1_epi32((int)least));
}
#else
#if FO_W == 8
FO_INLINE fo_u fo_larger(fo_u a, fo_u b) { return (fo_u)_mm256_max_epu32((__m256i)a, (__m256i)b); }
FO_INLINE fo_f fo_of_signed(const int8_t *p) {
    return (fo_f)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
FO_INLINE fo_f fo_of_unsigned(const uint8_t *p) {
    return (fo_f)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
FO_INLINE fo_u fo_of_words(const uint16_t *p) {
    return (fo_u)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
}
FO_INLINE void fo_to_words(void *p, const fo_u *x) {
    __m256i w = _mm256_packus_epi32((__m256i)x[0], (__m256i)x[1]);
    _mm256_storeu_si256((__m256i *)p, _mm256_permute4x64_epi64(w, 0xd8));
}
/* One vector's codes go to the lowest byte, the other's to the highest, and both through one
   shuffle. */
FO_INLINE void fo_to_codes(void *p, const fo_u *x) {
    const __m256i order = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 4, 8, 12, 3, 7, 11, 15, -1, -1, -1, -1, -1, -1, -1, -1));
    __m256i w = _mm256_blend_epi16((__m256i)(x[0] >> 11), (__m256i)(x[1] << 13), 0xaa);
    w = _mm256_shuffle_epi8(w, order);
    _mm_storeu_si128((__m128i *)p, _mm_unpacklo_epi32(_mm256_castsi256_si128(w),
                                                      _mm256_extracti128_si256(w, 1)));
}
FO_INLINE fo_u fo_at_least(fo_u t, fo_f y, uint32_t least) { /* the sign of a NaN is the higher's */
    __m256i floor = _mm256_sign_epi32(_mm256_set1_epi32((int)least), (__m256i)y);
    return (fo_u)_mm256_max_epi32((__m256i)t, floor);
}
#else
FO_INLINE fo_u fo_larger(fo_u a, fo_u b) { fo_u m = (fo_u)(a > b); return (a & m) | (b & ~m); }
FO_INLINE fo_f fo_of_signed(const int8_t *p) { return (fo_f){p[0], p[1], p[2], p[3]}; }
FO_INLINE fo_f fo_of_unsigned(const uint8_t *p) { return (fo_f){p[0], p[1], p[2], p[3]}; }
FO_INLINE fo_u fo_of_words(const uint16_t *p) { return (fo_u){p[0], p[1], p[2], p[3]}; }
FO_INLINE void fo_to_codes(void *p, const fo_u *x) {
    for (int k = 0; k < FO_LINE; k++) ((uint8_t *)p)[k] = (uint8_t)(x[k / FO_W][k % FO_W] >> 11);
}
FO_INLINE void fo_to_words(void *p, const fo_u *x) {
    uint16_t w[FO_LINE];
    for (int k = 0; k < FO_LINE; k++) w[k] = (uint16_t)x[k / FO_W][k % FO_W];
    memcpy(p, w, sizeof w);
}
FO_INLINE fo_u fo_at_least(fo_u t, fo_f y, uint32_t least) {
    return fo_larger(t, (fo_u)(y > 0.0f) & least);
}
#endif
#endif

/* -- noise ------------------------------------------------------------------------------------ */

/* Odd, modulo 2^11 and 2^16 close to the golden ratio's share of them. */
#define FO_GOLDEN 40177u

/* 64 well-mixed bits of a counter (splitmix64, Steele et al. 2014). */
static inline uint64_t fo_mixed(uint64_t x) {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

/* Where the noise of a block begins at step `turn`, for each of three states its own. */
static inline uint32_t fo_phase_of(uint64_t key, uint64_t turn, uint64_t block, int state,
                                   int goes_on) {
    if (!goes_on)
        return (uint32_t)(fo_mixed(fo_mixed(key + turn) + block) >> (21 * state));
    return (uint32_t)(fo_mixed(key + block) >> (21 * state)) + (uint32_t)turn * FO_GOLDEN;
}
FO_INLINE fo_u fo_lattice(uint32_t phase) {
    fo_u r;
    for (int k = 0; k < FO_W; k++)
        r[k] = (uint32_t)k * FO_GOLDEN;
    return r + phase;
}

/* -- 8 bits ----------------------------------------------------------------------------------- */

#define FO_LEAST_SCALE 1e-36f /* its inverse is finite; smaller blocks become zero */
#define FO_NOISE 0x7ffu
/* 6144: a float of this size has 11 bits below the point, and the code's eight above them */
#define FO_SHIFT 0x45c00000u
/* The largest value is drawn at FO_TOP, its code (127 or 255) just below those of 2: there
   R2(2) = 2^-63 and R4(2) = 2^-95 as bit patterns. */
#define FO_TOP (2.0f * 63.0f / 64.0f)

/* The lattice mod 2^11, twice round by a block, as what is added to the drawn value: 6144 and the
   noise below the point. A phase is a place in it. */
#define FO_N1(k) (((uint32_t)(k) * FO_GOLDEN & FO_NOISE) | FO_SHIFT)
#define FO_N4(k) FO_N1(k), FO_N1(k + 1), FO_N1(k + 2), FO_N1(k + 3)
#define FO_N16(k) FO_N4(k), FO_N4(k + 4), FO_N4(k + 8), FO_N4(k + 12)
#define FO_N64(k) FO_N16(k), FO_N16(k + 16), FO_N16(k + 32), FO_N16(k + 48)
#define FO_N256(k) FO_N64(k), FO_N64(k + 64), FO_N64(k + 128), FO_N64(k + 192)
static const uint32_t fo_shifts[2048 + 256] = {
    FO_N256(0), FO_N256(256), FO_N256(512), FO_N256(768), FO_N256(1024),
    FO_N256(1280), FO_N256(1536), FO_N256(1792), FO_N256(2048)};
#define FO_GOLDEN_INVERSE 1041u /* modulo 2^11 */
FO_INLINE const float *fo_shifts_of(uint32_t phase) {
    return (const float *)fo_shifts + (phase * FO_GOLDEN_INVERSE & FO_NOISE);
}

FO_INLINE float fo_inverse_of(float scale) { return scale > 0.0f ? FO_TOP / scale : 0.0f; }
FO_INLINE float fo_unit_of(float scale) { return scale * (1.0f / FO_TOP); }

FO_INLINE void fo_decode_codes(float *line, const void *codes, float unit, int has_sign) {
    for (int i = 0; i < FO_LINE; i += FO_W) {
        fo_u u;
        if (has_sign) {
            u = (fo_u)(fo_of_signed((const int8_t *)codes + i) * (0x1p-63f / 128.0f));
            u += u & 0x7fffffffu; /* below 2 the bit under the sign is clear */
        } else
            u = (fo_u)(fo_of_unsigned((const uint8_t *)codes + i) * (0x1p-95f / 256.0f)) << 2;
        fo_store(line + i, (fo_f)u * unit);
    }
}

/* A value above zero never becomes zero without a sign: the root of a second moment is divided
   by. */
FO_INLINE void fo_encode_codes(void *codes, const float *line, float inverse, const float *shifts,
                               int has_sign) {
    fo_u t[FO_LINE / FO_W];
    for (int i = 0; i < FO_LINE; i += FO_W) {
        fo_f y = fo_load(line + i) * inverse, drawn;
        if (has_sign)
            drawn = (fo_f)((fo_u)((fo_i)y >> 1) & 0xbfffffffu) * (128.0f * 0x1p63f);
        else
            drawn = (fo_f)((fo_u)y >> 2) * (256.0f * 0x1p95f);
        t[i / FO_W] = (fo_u)(drawn + fo_load(shifts + i));
        if (!has_sign)
            t[i / FO_W] = fo_at_least(t[i / FO_W], y, FO_SHIFT + FO_NOISE + 1);
    }
    fo_to_codes(codes, t);
}

/* The largest size of a block, gathered line by line as bit patterns, ordered with NaN on top. */
typedef struct { fo_u lane; } fo_tops;

FO_INLINE void fo_clear_tops(fo_tops *tops) { tops->lane = fo_all(0); }
FO_INLINE void fo_raise_tops(fo_tops *tops, const float *line, int has_sign) {
    for (int i = 0; i < FO_LINE; i += FO_W) {
        fo_u x = (fo_u)fo_load(line + i);
        tops->lane = fo_larger(tops->lane, has_sign ? x & 0x7fffffffu : x);
    }
}
FO_INLINE float fo_scale_of(const fo_tops *tops) {
    uint32_t top = 0;
    for (int k = 0; k < FO_W; k++)
        top = tops->lane[k] > top ? tops->lane[k] : top;
    return top >= 0x7f800000u ? fo_float(0x7fc00000u)
                              : (fo_float(top) < FO_LEAST_SCALE ? 0.0f : fo_float(top));
}

/* -- 16 bits ---------------------------------------------------------------------------------- */

/* The upper 16 bits of x after an addition to its bits, which leaves NaN alone (arithmetic makes
   quiet ones only, whose upper bits say it). */
FO_INLINE fo_u fo_rounded(fo_f x, fo_u add) {
#if FO_W == 16
    __mmask16 number = _mm512_cmp_ps_mask((__m512)x, (__m512)x, _CMP_EQ_OQ);
    return (fo_u)_mm512_mask_add_epi32((__m512i)x, number, (__m512i)x, (__m512i)add) >> 16;
#else
    return ((fo_u)x + ((fo_u)(x == x) & add)) >> 16;
#endif
}

FO_INLINE void fo_decode_words(float *line, const void *words) {
    for (int i = 0; i < FO_LINE; i += FO_W)
        fo_store(line + i, (fo_f)(fo_of_words((const uint16_t *)words + i) << 16));
}
FO_INLINE void fo_encode_words(void *words, const float *line) {
    fo_u t[FO_LINE / FO_W];
    for (int i = 0; i < FO_LINE; i += FO_W) {
        fo_f x = fo_load(line + i);
        t[i / FO_W] = fo_rounded(x, ((fo_u)x >> 16 & 1) + 0x7fffu);
    }
    fo_to_words(words, t);
}
FO_INLINE void fo_encode_words_noisy(void *words, const float *line, uint32_t phase) {
    fo_u noise = fo_lattice(phase), t[FO_LINE / FO_W];
    for (int i = 0; i < FO_LINE; i += FO_W, noise += FO_W * FO_GOLDEN)
        t[i / FO_W] = fo_rounded(fo_load(line + i), noise & 0xffffu);
    fo_to_words(words, t);
}
#endif
