/* A row of float activations to integer codes with a scale of its own (per token).
 *   8 or 7 bits: top = 255 or 127, range [min(0, lo), max(0, hi)], scale = range / top, zero point
 *            z = round(-lo / scale), code = clip(round(x * (1 / scale)) + z, 0, top)
 *   16 bits: scale = max|x| / 32767, code = clip(round(x * (1 / scale)), -32767, 32767)
 * The scale is computed in float64 and rounded once; rounding of codes is half to even. */
#ifndef FO_ACTIVATIONS_INT8
#define FO_ACTIVATIONS_INT8
#include <float.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>

/* Smallest and largest of x and 0; returns 0 if x holds NaN or infinity. */
static inline int fo_row_range(ptrdiff_t k, const float *__restrict x, float *low, float *high) {
    float lo[16] = {0}, hi[16] = {0}, bad[16] = {0};
    ptrdiff_t i = 0;
    for (; i + 16 <= k; i += 16)
        for (int l = 0; l < 16; l++) {
            const float v = x[i + l];
            lo[l] = v < lo[l] ? v : lo[l];
            hi[l] = v > hi[l] ? v : hi[l];
            bad[l] += v * 0.0f; /* NaN from NaN or infinity */
        }
    for (; i < k; i++) {
        lo[0] = x[i] < lo[0] ? x[i] : lo[0];
        hi[0] = x[i] > hi[0] ? x[i] : hi[0];
        bad[0] += x[i] * 0.0f;
    }
    for (int l = 1; l < 16; l++) {
        lo[0] = lo[l] < lo[0] ? lo[l] : lo[0];
        hi[0] = hi[l] > hi[0] ? hi[l] : hi[0];
        bad[0] += bad[l];
    }
    *low = lo[0];
    *high = hi[0];
    return bad[0] == 0.0f;
}

static inline float fo_step(double range, double steps) {
    const float scale = (float)(range / steps);
    return range == 0.0 ? 1.0f : scale < FLT_MIN ? FLT_MIN : scale;
}

static inline void fo_codes_u8(ptrdiff_t k, const float *__restrict x, float inverse, float zero,
                               float top, uint8_t *__restrict out) {
    for (ptrdiff_t i = 0; i < k; i++) {
        float v = rintf(x[i] * inverse) + zero;
        v = v > 0.0f ? v : 0.0f;
        v = v < top ? v : top;
        out[i] = (uint8_t)(int32_t)v;
    }
}

static inline void fo_codes_s16(ptrdiff_t k, const float *__restrict x, float inverse,
                                int16_t *__restrict out) {
    for (ptrdiff_t i = 0; i < k; i++) {
        float v = rintf(x[i] * inverse);
        v = v > -32767.0f ? v : -32767.0f;
        v = v < 32767.0f ? v : 32767.0f;
        out[i] = (int16_t)(int32_t)v;
    }
}

/* One row; returns 0 if it is not finite (nothing is written then). */
static inline int fo_quantize_row(ptrdiff_t k, const float *x, int bits, void *codes,
                                  float *scale, int32_t *zero) {
    float lo, hi;
    if (!fo_row_range(k, x, &lo, &hi)) return 0;
    if (bits == 16) {
        *scale = fo_step(hi > -lo ? (double)hi : -(double)lo, 32767.0);
        *zero = 0;
        fo_codes_s16(k, x, (float)(1.0 / (double)*scale), (int16_t *)codes);
    } else {
        const float top = bits == 7 ? 127.0f : 255.0f;
        *scale = fo_step((double)hi - (double)lo, top);
        const float inverse = (float)(1.0 / (double)*scale);
        float z = rintf(-lo * inverse);
        z = z < top ? z : top;
        *zero = (int32_t)z;
        fo_codes_u8(k, x, inverse, z, top, (uint8_t *)codes);
    }
    return 1;
}

/* out[g] = sum of the codes of group g - za * its length. */
static inline void fo_sums_u8(ptrdiff_t k, ptrdiff_t group, const uint8_t *__restrict x, int32_t za,
                              int32_t *__restrict out) {
    for (ptrdiff_t k0 = 0; k0 == 0 || k0 < k; k0 += group, out++) {
        const ptrdiff_t k1 = k0 + group < k ? k0 + group : k;
        uint32_t sum = 0;
        for (ptrdiff_t i = k0; i < k1; i++) sum += x[i];
        *out = (int32_t)(sum - (uint32_t)(k1 - k0) * (uint32_t)za);
    }
}

static inline void fo_sums_s16(ptrdiff_t k, ptrdiff_t group, const int16_t *__restrict x,
                               int32_t *__restrict out) {
    for (ptrdiff_t k0 = 0; k0 == 0 || k0 < k; k0 += group, out++) {
        const ptrdiff_t k1 = k0 + group < k ? k0 + group : k;
        int32_t sum = 0;
        for (ptrdiff_t i = k0; i < k1; i++) sum += x[i];
        *out = sum;
    }
}
#endif
