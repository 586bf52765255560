/* Optimiser state in 8 bits: blocks of at most 256 values share a float32 scale, their largest
   size. Moments with a sign are stored as sign * sqrt(|m| / s) in 127 steps, second moments as
   (v / s)^(1/4) in 255 steps, so that relative precision is kept over four and ten decades; no
   table. Rounding is stochastic on 12 bits of noise, offset by half a step of it, so that a value
   that was decoded is encoded to its own code for any noise. A NaN or infinity makes the whole
   block NaN. */
#ifndef FO_UPDATE_BYTES
#define FO_UPDATE_BYTES
#include <math.h>
#include <stddef.h>
#include "update_bits.h"

#define FO_NOISE_STEP (1.0f / 4096.0f)
#define FO_LEAST_SCALE 1e-36f /* its inverse is finite; smaller blocks become zero */

/* Largest size in the block; the bit patterns of sizes are ordered, with NaN on top. */
static inline float fo_block_scale(const float *restrict x, ptrdiff_t n) {
    uint32_t top = 0;
    for (ptrdiff_t i = 0; i < n; i++) {
        uint32_t u = fo_bits(x[i]) & 0x7fffffffu;
        top = u > top ? u : top;
    }
    return top >= 0x7f800000u ? fo_float(0x7fc00000u)
                              : (fo_float(top) < FO_LEAST_SCALE ? 0.0f : fo_float(top));
}

static __attribute__((noinline)) void fo_decode_signed(float *restrict out, const int8_t *restrict codes,
                                    float scale, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < n; i++) {
        float q = (float)codes[i] * (1.0f / 127.0f);
        out[i] = scale * (q * fabsf(q));
    }
}

static __attribute__((noinline)) void fo_decode_unsigned(float *restrict out, const uint8_t *restrict codes,
                                      float scale, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < n; i++) {
        float q = (float)codes[i] * (1.0f / 255.0f);
        q = q * q;
        out[i] = scale * (q * q);
    }
}

/* `shift` picks 12 of the 32 bits of noise, so that two states share one draw. */
static inline float fo_encode_signed(int8_t *restrict codes, const float *restrict x, ptrdiff_t n,
                                     uint32_t key, uint32_t first, int shift) {
    float scale = fo_block_scale(x, n), inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
    for (ptrdiff_t i = 0; i < n; i++) {
        uint32_t noise = (fo_noise(key, first + (uint32_t)i) >> shift) & 0xfffu;
        float q = sqrtf(fabsf(x[i]) * inverse) * 127.0f
                  + ((float)(int32_t)noise + 0.5f) * FO_NOISE_STEP;
        int32_t c = (int32_t)(q < 127.0f ? q : 127.0f);
        codes[i] = (int8_t)(x[i] < 0.0f ? -c : c);
    }
    return scale;
}

/* A value above zero never becomes zero: the root of a second moment is divided by. */
static inline float fo_encode_unsigned(uint8_t *restrict codes, const float *restrict x,
                                       ptrdiff_t n, uint32_t key, uint32_t first, int shift) {
    float scale = fo_block_scale(x, n), inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
    for (ptrdiff_t i = 0; i < n; i++) {
        uint32_t noise = (fo_noise(key, first + (uint32_t)i) >> shift) & 0xfffu;
        float least = x[i] > 0.0f && scale > 0.0f ? 1.0f : 0.0f;
        float q = sqrtf(sqrtf(fabsf(x[i]) * inverse)) * 255.0f
                  + ((float)(int32_t)noise + 0.5f) * FO_NOISE_STEP;
        q = q < 255.0f ? q : 255.0f;
        codes[i] = (uint8_t)(int32_t)(q > least ? q : least);
    }
    return scale;
}
#endif
