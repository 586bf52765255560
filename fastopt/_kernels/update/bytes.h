/* Optimiser state in 8 bits: blocks of at most 256 values share a float32 scale, their largest
   size. Codes are companded so that relative precision is kept over four decades (moments with a
   sign) and nine (second moments): code / 128 = sign * R2(m), code / 256 = R4(v) of the value as a
   share of 64/63 scales, where R2 and R4 halve and quarter the bit pattern of a float. That is the
   square root (the fourth root) drawn as straight lines between powers of two; unlike a root its
   inverse is exact and either way is one shift. The lines' ends are codes themselves (down to the
   lowest four), so that what is unbiased in the code is unbiased in the value: a second moment
   without gradients falls by beta2 a step, which rounding along a curve would slow down.

   Rounding is stochastic. The noise of a block's element i is (phase + i G) mod 2^11: a lattice
   (G / 2^11 is the golden ratio) shifted by a random phase of the block (Cranley and Patterson
   1976), so that each element's noise is uniform and the rounding unbiased, and the elements of a
   block do not all go the same way. Second moments take a new random phase each step: they fall
   for hundreds of steps, and what comes must not follow from what has been. Moments with a sign
   go on along the lattice, by G a step: gradients shake them enough, and of the roundings that
   they gather half the variance cancels. A value that was decoded is encoded to its own code by
   any noise. A NaN or infinity makes the whole block NaN. */
#ifndef FO_UPDATE_BYTES
#define FO_UPDATE_BYTES
#include "lanes.h"

#define FO_BLOCK 256
#define FO_LEAST_SCALE 1e-36f /* its inverse is finite; smaller blocks become zero */
#define FO_NOISE 0x7ffu
/* 4096 and 6144: a float of this size has 11 bits below the point, and the code's above them */
#define FO_UNSIGNED 0x45800000u
#define FO_SIGNED 0x45c00000u

FO_LANE fo_u fo_lattice(uint32_t phase) {
    fo_u r;
    FO_EACH_LANE r[k] = (uint32_t)k * FO_GOLDEN;
    return r + phase;
}

/* The largest value is drawn at FO_TOP, its code (127 or 255) just below those of 2: there
   R2(2) = 2^-63 and R4(2) = 2^-95 as bit patterns. `unit` is the scale over FO_TOP. */
#define FO_TOP (2.0f * 63.0f / 64.0f)
FO_LANE fo_f fo_decoded_signed(const int8_t *codes, float unit) {
    fo_u u = (fo_u)(fo_of_signed(codes) * (0x1p-63f / 128.0f));
    return (fo_f)fo_select(0x80000000u, u, u << 1) * unit;
}
FO_LANE fo_f fo_decoded_unsigned(const uint8_t *codes, float unit) {
    fo_u u = (fo_u)(fo_of_unsigned(codes) * (0x1p-95f / 256.0f));
    return (fo_f)(u << 2) * unit;
}
FO_LANE void fo_encode_signed(int8_t *codes, fo_f x, float inverse, fo_u noise) {
    fo_u u = (fo_u)(x * inverse);
    fo_f root = (fo_f)fo_select(0xc0000000u, u, u >> 1);
    fo_f t = root * (128.0f * 0x1p63f) + (fo_f)fo_select(FO_NOISE, noise, fo_all(FO_SIGNED));
    fo_to_bytes(codes, (fo_u)t >> 11);
}
/* A value above zero never becomes zero: the root of a second moment is divided by. */
FO_LANE void fo_encode_unsigned(uint8_t *codes, fo_f x, float inverse, fo_u noise) {
    fo_f y = x * inverse, root = (fo_f)((fo_u)y >> 2);
    fo_f t = root * (256.0f * 0x1p95f) + (fo_f)fo_select(FO_NOISE, noise, fo_all(FO_UNSIGNED));
    fo_to_bytes(codes, fo_at_least((fo_u)t, y, FO_UNSIGNED + FO_NOISE + 1) >> 11);
}

/* The scale of a block whose sizes' bit patterns, ordered with NaN on top, are at most those. */
FO_LANE float fo_block_scale(fo_u tops) {
    uint32_t top = 0;
    FO_EACH_LANE top = tops[k] > top ? tops[k] : top;
    return top >= 0x7f800000u ? fo_float(0x7fc00000u)
                              : (fo_float(top) < FO_LEAST_SCALE ? 0.0f : fo_float(top));
}
FO_LANE float fo_inverse(float scale) { return scale > 0.0f ? FO_TOP / scale : 0.0f; }
FO_LANE float fo_unit(float scale) { return scale * (1.0f / FO_TOP); }

/* One block of n <= 256 values, in vectors as far as they go and padded with zeros. */
static __attribute__((noinline)) void fo_decode(float *out, const void *codes, float scale,
                                                ptrdiff_t n, int has_sign) {
    float unit = fo_unit(scale);
    if (n % FO_W) {
        uint8_t padded[FO_BLOCK] = {0};
        float whole[FO_BLOCK];
        memcpy(padded, codes, (size_t)n);
        fo_decode(whole, padded, scale, FO_BLOCK, has_sign);
        memcpy(out, whole, (size_t)n * 4);
        return;
    }
    for (ptrdiff_t i = 0; i < n; i += FO_W)
        fo_store(out + i, has_sign ? fo_decoded_signed((const int8_t *)codes + i, unit)
                                   : fo_decoded_unsigned((const uint8_t *)codes + i, unit));
}

static __attribute__((noinline)) float fo_encode(void *codes, const float *x, ptrdiff_t n,
                                                 uint32_t phase, int has_sign) {
    fo_u tops = fo_all(0), noise = fo_lattice(phase);
    if (n % FO_W) {
        uint8_t padded[FO_BLOCK];
        float whole[FO_BLOCK] = {0};
        memcpy(whole, x, (size_t)n * 4);
        float scale = fo_encode(padded, whole, FO_BLOCK, phase, has_sign);
        memcpy(codes, padded, (size_t)n);
        return scale;
    }
    for (ptrdiff_t i = 0; i < n; i += FO_W)
        tops = fo_larger(tops, (fo_u)fo_load(x + i) & 0x7fffffffu);
    float scale = fo_block_scale(tops), inverse = fo_inverse(scale);
    for (ptrdiff_t i = 0; i < n; i += FO_W, noise += FO_W * FO_GOLDEN) {
        if (has_sign)
            fo_encode_signed((int8_t *)codes + i, fo_load(x + i), inverse, noise);
        else
            fo_encode_unsigned((uint8_t *)codes + i, fo_load(x + i), inverse, noise);
    }
    return scale;
}

/* A stretch of state, from the beginning of block `first` on. */
static inline void fo_load_bytes(float *x, const void *codes, const float *scales, ptrdiff_t n,
                                 int has_sign) {
    for (ptrdiff_t b = 0; b < n; b += FO_BLOCK)
        fo_decode(x + b, (const char *)codes + b, scales[b / FO_BLOCK],
                  n - b < FO_BLOCK ? n - b : FO_BLOCK, has_sign);
}
static inline void fo_store_bytes(void *codes, float *scales, const float *x, ptrdiff_t n,
                                  int has_sign, uint64_t key, uint64_t turn, uint64_t first,
                                  int state) {
    for (ptrdiff_t b = 0; b < n; b += FO_BLOCK)
        scales[b / FO_BLOCK] = fo_encode((char *)codes + b, x + b,
                                         n - b < FO_BLOCK ? n - b : FO_BLOCK,
                                         fo_phase(key, turn, first + (uint64_t)b / FO_BLOCK,
                                                  state, has_sign),
                                         has_sign);
}
/* bfloat16 by the same noise, of 16 bits: a second moment moves by less than half a step of
   bfloat16, and rounded to nearest it stalls. */
static __attribute__((noinline)) void fo_store_words(uint16_t *words, const float *x, ptrdiff_t n,
                                                     uint64_t key, uint64_t turn, uint64_t first,
                                                     int state) {
    for (ptrdiff_t b = 0; b < n; b += FO_BLOCK) {
        uint32_t phase = fo_phase(key, turn, first + (uint64_t)b / FO_BLOCK, state, 0);
        ptrdiff_t end = n - b < FO_BLOCK ? n - b : FO_BLOCK;
        for (ptrdiff_t i = 0; i < end; i++)
            words[b + i] = fo_to_bfloat_noisy(
                x[b + i], (phase + (uint32_t)i * FO_GOLDEN) & 0xffffu);
    }
}
#endif
