/* ggml's blocks of 32 values: a head (a float16 scale, or an exponent), then 32 bytes or nibbles,
   element j low and j + 16 high. Rules of rounding: quantization.gguf. */
#ifndef FO_GGML
#define FO_GGML
#include <float.h>
#include "codebook.h"

enum { FO_Q8_0, FO_Q4_0, FO_MXFP4 };           /* kinds */
enum { FO_ENCODE, FO_JOIN, FO_SPLIT };         /* values to blocks, codes to blocks, and back */

static inline uint32_t fo_word(float x) { uint32_t u; memcpy(&u, &x, 4); return u; }
static inline float fo_real(uint32_t u) { float x; memcpy(&x, &u, 4); return x; }

/* Half to even, of a finite number; below 2^-14 the addition rounds. */
static inline uint32_t fo_half(float x)
{
    uint32_t u = fo_word(x), a = u & 0x7fffffff;
    uint32_t normal = (a - (112u << 23) + 0xfff + (a >> 13 & 1)) >> 13;
    normal = normal < 0x7c00 ? normal : 0x7c00;
    a = a < 0x38800000 ? fo_word(fo_real(a) + 0.5f) - fo_word(0.5f) : normal;
    return a | (u >> 16 & 0x8000);
}

static inline float fo_of_half(uint32_t h)
{
    uint32_t a = h & 0x7fff, u = (a << 13) + ((a < 0x7c00 ? 112u : 224u) << 23);
    u = a < 0x400 ? fo_word((float)(int32_t)a * 0x1p-24f) : u;
    return fo_real(u | (h & 0x8000) << 16);
}

/* -O3 would unroll the loops over a block whole before it looks for vectors: three times as slow. */

/* The value of largest magnitude, the first of equals. */
static inline float fo_largest(const float *x)
{
    int32_t above = INT32_MIN;
    uint32_t below = 0;
#pragma GCC unroll 1
    for (int k = 0; k < 32; k++) { /* as integers floats below zero are the largest, or negative */
        uint32_t u = fo_word(x[k]);
        above = (int32_t)u > above ? (int32_t)u : above;
        below = u > below ? u : below;
    }
    uint32_t plus = above > 0 ? (uint32_t)above : 0, minus = (int32_t)below < 0 ? below : 0;
    minus &= 0x7fffffff;
    if (plus == minus) {
        for (int k = 0; k < 32; k++)
            if ((fo_word(x[k]) & 0x7fffffff) == plus) return x[k];
    }
    return fo_real(plus > minus ? plus : minus | 0x80000000); /* no branch: signs are random */
}

/* The bodies of up to FO_TOGETHER blocks and their heads (half the divisions' latency would be
   waited for in each block alone); false, with nothing written, where x is not finite. */
#define FO_TOGETHER 16
#define FO_AHEAD 1024 /* elements from a read to its prefetch */
static inline int fo_ggml_encode(uint8_t *block, const float *x, ptrdiff_t n, int kind, int width)
{
    float d[FO_TOGETHER], unit[FO_TOGETHER];
    uint32_t head[FO_TOGETHER], most = 0;
    for (ptrdiff_t i = 0; i < FO_TOGETHER; i++) d[i] = 0;
    for (ptrdiff_t i = 0; i < n; i++) {
        __builtin_prefetch(x + 32 * i + FO_AHEAD);
        d[i] = kind == FO_Q4_0 ? fo_largest(x + 32 * i) : fo_real(fo_absmax(x + 32 * i, 32));
    }
    for (ptrdiff_t i = 0; i < FO_TOGETHER; i++) {
        const uint32_t top = fo_word(d[i]) & 0x7fffffff;
        most = top > most ? top : most;
        if (kind == FO_MXFP4) { /* 4 to 8 times a power of two is the largest */
            int32_t e = (int32_t)(top >> 23) - 2;
            head[i] = e = e < 0 ? 0 : e;
            unit[i] = fo_real((uint32_t)(254 - e) << 23);
        } else {
            d[i] = d[i] / (kind == FO_Q8_0 ? 127.0f : -8.0f);
            float inverse = 1.0f / d[i]; /* a step too small to divide by has codes of zero */
            unit[i] = fabsf(inverse) <= FLT_MAX ? inverse : 0;
            head[i] = fo_half(d[i]);
        }
    }
    if (most >= 0x7f800000) return 0;
    for (ptrdiff_t i = 0; i < n; i++, block += width, x += 32) {
        uint8_t *body = block + (kind == FO_MXFP4 ? 1 : 2), q[32];
        int32_t c[32];
        const float u = unit[i];
        __builtin_prefetch(x + FO_AHEAD + 16);
        block[0] = (uint8_t)head[i];
        if (kind == FO_Q8_0) {
#pragma GCC unroll 1
            for (int k = 0; k < 32; k++) { /* ties away from zero: 0.49999997 more, cut off */
                float v = x[k] * u;
                c[k] = (int32_t)(v + fo_real((fo_word(v) & 0x80000000) | 0x3effffff));
            }
        } else if (kind == FO_Q4_0) {
#pragma GCC unroll 1
            for (int k = 0; k < 32; k++) {
                c[k] = (int32_t)(x[k] * u + 8.5f);
                c[k] = c[k] < 15 ? c[k] : 15;
            }
        } else {
#pragma GCC unroll 1
            for (int k = 0; k < 32; k++) {
                float v = fabsf(x[k]) * u; /* on a tie the smaller one; no negative zero */
                c[k] = (v > 0.25f) + (v > 0.75f) + (v > 1.25f) + (v > 1.75f) + (v > 2.5f) +
                       (v > 3.5f) + (v > 5.0f);
                c[k] |= c[k] ? fo_word(x[k]) >> 28 & 8 : 0;
            }
        }
#pragma GCC unroll 1
        for (int k = 0; k < 32; k++) q[k] = (uint8_t)c[k];
        if (kind != FO_MXFP4) block[1] = (uint8_t)(head[i] >> 8);
        if (kind == FO_Q8_0)
            memcpy(body, q, 32);
        else {
#pragma GCC unroll 1
            for (int k = 0; k < 16; k++) body[k] = q[k] | q[k + 16] << 4;
        }
    }
    return 1;
}

/* The codes of one block, 32 bytes or 16 of two nibbles, the first low, and its scale, put in or
   taken out; false where a block has no float32 scale. */
static inline int fo_ggml_codes(uint8_t *block, uint8_t *codes, float *scale, int kind, int way)
{
    uint8_t q[32], *body = block + (kind == FO_MXFP4 ? 1 : 2), any = 0;
    const uint8_t flip = kind == FO_Q4_0 ? 0x88 : 0; /* from two's complement to an offset of 8 */
    if (way == FO_JOIN) {
        const uint32_t head = kind == FO_MXFP4 ? fo_word(*scale) >> 23 : fo_half(*scale);
        block[0] = (uint8_t)head;
        if (kind != FO_MXFP4) block[1] = (uint8_t)(head >> 8);
        if (kind == FO_Q8_0) {
            memcpy(body, codes, 32);
            return 1;
        }
        for (int k = 0; k < 16; k++) {
            q[2 * k] = (codes[k] ^ flip) & 15;
            q[2 * k + 1] = (codes[k] ^ flip) >> 4;
        }
        for (int k = 0; k < 16; k++) body[k] = q[k] | q[k + 16] << 4;
        return 1;
    }
    *scale = kind == FO_MXFP4 ? fo_real((uint32_t)(block[0] ? block[0] : 127) << 23)
                              : fo_of_half(block[0] | block[1] << 8);
    if (kind == FO_Q8_0) {
        memcpy(codes, body, 32);
        return 1;
    }
    for (int k = 0; k < 16; k++) {
        q[k] = body[k] & 15;
        q[k + 16] = body[k] >> 4;
        any |= body[k] & 0x77;
    }
    for (int k = 0; k < 16; k++) codes[k] = (q[2 * k] | q[2 * k + 1] << 4) ^ flip;
    return kind != FO_MXFP4 || (block[0] != 255 && (block[0] || !any));
}

/* Blocks [first, last). */
static inline int fo_ggml_kind(uint8_t *block, void *value, float *scale, ptrdiff_t first,
                               ptrdiff_t last, int way, int kind, int width)
{
    int good = 1;
    if (way == FO_ENCODE)
        for (ptrdiff_t i = first; i < last; i += FO_TOGETHER)
            good &= fo_ggml_encode(block + i * width, (const float *)value + i * 32,
                                   last - i < FO_TOGETHER ? last - i : FO_TOGETHER, kind, width);
    else
        for (ptrdiff_t i = first; i < last; i++)
            good &= fo_ggml_codes(block + i * width, (uint8_t *)value + i * (kind ? 16 : 32),
                                  scale + i, kind, way);
    return good;
}

static __attribute__((noinline)) int fo_ggml_span(uint8_t *block, void *value, float *scale, ptrdiff_t first,
                               ptrdiff_t last, int kind, int way)
{
    if (kind == FO_Q8_0) return fo_ggml_kind(block, value, scale, first, last, way, FO_Q8_0, 34);
    if (kind == FO_Q4_0) return fo_ggml_kind(block, value, scale, first, last, way, FO_Q4_0, 18);
    return fo_ggml_kind(block, value, scale, first, last, way, FO_MXFP4, 17);
}
#endif
