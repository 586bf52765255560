/* Bit patterns of narrow numbers, element by element; plain C that every level vectorises alike. */
#ifndef FO_UPDATE_BITS
#define FO_UPDATE_BITS
#include <stddef.h>
#include <stdint.h>
#include <string.h>

static inline uint32_t fo_bits(float x) { uint32_t u; memcpy(&u, &x, 4); return u; }
static inline float fo_float(uint32_t u) { float x; memcpy(&x, &u, 4); return x; }

static inline float fo_from_bfloat(uint16_t b) { return fo_float((uint32_t)b << 16); }

/* float16: shifting the exponent field into place leaves it 112 too small; 2^112 mends that and
   is exact, also for subnormals. Infinity and NaN get the exponent of all ones. */
static inline float fo_from_half(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, rest = (uint32_t)(h & 0x7fffu) << 13;
    uint32_t u = fo_bits(fo_float(rest) * 0x1p112f);
    u = rest >= 0x0f800000u ? rest | 0x7f800000u : u;
    return fo_float(sign | u);
}

/* An array of float16 (or bfloat16) as floats; a call each tile, so one copy of the code will do. */
static __attribute__((noinline)) void fo_widen(float *restrict out, const uint16_t *restrict x,
                                               ptrdiff_t n, int half) {
    if (half)
        for (ptrdiff_t i = 0; i < n; i++)
            out[i] = fo_from_half(x[i]);
    else
        for (ptrdiff_t i = 0; i < n; i++)
            out[i] = fo_from_bfloat(x[i]);
}

/* Nearest even; NaN stays NaN. */
static inline uint16_t fo_to_bfloat(float x) {
    uint32_t u = fo_bits(x), r = u + 0x7fffu + ((u >> 16) & 1u);
    return (uint16_t)(((u & 0x7fffffffu) > 0x7f800000u ? u | 0x400000u : r) >> 16);
}

/* Up with the probability of the dropped part: unbiased; `noise` holds 16 random bits. */
static inline uint16_t fo_to_bfloat_noisy(float x, uint32_t noise) {
    uint32_t u = fo_bits(x), r = u + noise;
    return (uint16_t)(((u & 0x7fffffffu) > 0x7f800000u ? u | 0x400000u : r) >> 16);
}

/* Nearest even; beyond 65504 infinity. Below 2^-14 the addition of 0.5 does the rounding. */
static inline uint16_t fo_to_half(float x) {
    uint32_t u = fo_bits(x), sign = (u >> 16) & 0x8000u, a = u & 0x7fffffffu;
    uint32_t normal = (a + 0xc8000fffu + ((a >> 13) & 1u)) >> 13;
    uint32_t small = fo_bits(fo_float(a) + 0.5f) - 0x3f000000u;
    uint32_t special = a > 0x7f800000u ? 0x7e00u : 0x7c00u;
    uint32_t h = a < 0x38800000u ? small : normal;
    h = a >= 0x47800000u ? special : h;
    return (uint16_t)(sign | h);
}

/* Noise of narrow state: bytes.h says how. Odd, modulo 2^11 and 2^16 close to the golden
   ratio's share of them. */
#define FO_GOLDEN 40177u

/* 64 well-mixed bits of a counter (splitmix64, Steele et al. 2014). */
static inline uint64_t fo_mixed(uint64_t x) {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

/* Where the noise of a block begins at step `turn`, for each of three states its own. */
static inline uint32_t fo_phase(uint64_t key, uint64_t turn, uint64_t block, int state,
                                int has_sign) {
    if (!has_sign)
        return (uint32_t)(fo_mixed(fo_mixed(key + turn) + block) >> (21 * state));
    return (uint32_t)(fo_mixed(key + block) >> (21 * state)) + (uint32_t)turn * FO_GOLDEN;
}
#endif
