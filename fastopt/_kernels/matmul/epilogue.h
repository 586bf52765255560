/* What becomes of a row of int32 sums: zero points, then int32, requantised 8 bits, or floats.
 * Plain loops that gcc vectorises; each element's operations are in one fixed order. */
#ifndef FO_EPILOGUE_INT8
#define FO_EPILOGUE_INT8
#include <stdint.h>
#include <stddef.h>
#include <math.h>
#include "dot.h"

/* sum (a - za)(b - zb) = c - za * colsum - zb * (rowsum - k * za); ra = rowsum - k * za.
 * Modulo 2^32, so exact wherever the result fits. */
static inline int32_t fo_corrected(int32_t c, int32_t za, int32_t ra, int32_t colsum, int32_t zb) {
    return (int32_t)((uint32_t)c - (uint32_t)za * (uint32_t)colsum - (uint32_t)zb * (uint32_t)ra);
}

FO_INLINE void fo_columns_i32(ptrdiff_t cols, const int32_t *__restrict c, int32_t za, int32_t ra,
                              const int32_t *__restrict colsum, const int32_t *__restrict zb,
                              int32_t *__restrict out) {
    for (ptrdiff_t n = 0; n < cols; n++) out[n] = fo_corrected(c[n], za, ra, colsum[n], zb[n]);
}

static inline void fo_finish_i32(ptrdiff_t cols, const int32_t *__restrict c, int32_t za,
                                 int32_t ra, const int32_t *__restrict colsum,
                                 const int32_t *__restrict zb, int32_t *__restrict out) {
    if (cols == FO_NR) fo_columns_i32(FO_NR, c, za, ra, colsum, zb, out); /* without a tail */
    else fo_columns_i32(cols, c, za, ra, colsum, zb, out);
}

/* round half to even of c * scale in float64, then + zero point, saturated to [low, high]. */
static inline void fo_finish_q8(ptrdiff_t cols, const int32_t *__restrict c, int32_t za,
                                int32_t ra, const int32_t *__restrict colsum,
                                const int32_t *__restrict zb, const double *__restrict scale,
                                double zy, double low, double high, uint8_t *__restrict out) {
    for (ptrdiff_t n = 0; n < cols; n++) {
        double y = rint((double)fo_corrected(c[n], za, ra, colsum[n], zb[n]) * scale[n]) + zy;
        y = y > low ? y : low; /* a NaN becomes low */
        y = y < high ? y : high;
        out[n] = (uint8_t)(int32_t)y;
    }
}

/* What a group of k of a column panel carries before its codes, width columns wide: the scales,
 * then column sums and zero points as int16 pairs, or as two rows of int32 where the sums may need
 * it: |colsum| <= 8 * group or 128 * group. */
static inline ptrdiff_t fo_head(int bits, ptrdiff_t group) {
    return (bits == 4 ? 8 : 128) * group < 32768 ? 8 : 12;
}

static inline void fo_pack_head(int width, int cols, int pairs, const float *scale,
                                const int32_t *zb, const int32_t *colsum, uint8_t *out) {
    float *s = (float *)out;
    int32_t *one = (int32_t *)(s + width), *two = one + width;
    for (int n = 0; n < width; n++) {
        const int32_t sum = n < cols ? colsum[n] : 0, zero = n < cols ? zb[n] : 0;
        s[n] = n < cols ? scale[n] : 0.0f;
        one[n] = pairs ? (int32_t)((sum & 0xffff) | (uint32_t)zero << 16) : sum;
        if (!pairs) two[n] = zero;
    }
}

/* One row at the end of a group; joint: the row's two numbers are int16 in ra, as the columns'. */
FO_INLINE void fo_group_row(const int width, const int32_t *__restrict c, const float *scale,
                            const int32_t *one, int pairs, int joint, int32_t za, int32_t ra,
                            float *__restrict acc) {
    if (joint) {
        za = -(int16_t)ra;
        ra = -(ra >> 16);
    }
    if (pairs)
        for (int n = 0; n < width; n++)
            acc[n] += (float)fo_corrected(c[n], za, ra, (int16_t)one[n], one[n] >> 16) * scale[n];
    else
        for (int n = 0; n < width; n++)
            acc[n] += (float)fo_corrected(c[n], za, ra, one[n], one[n + width]) * scale[n];
}

/* The end of a group for mr rows: acc += (float)(exact sum of the group) * its scale. */
static inline void fo_group(int mr, int width, const int32_t *c, const uint8_t *head, int pairs,
                            int joint, const int32_t *za, const int32_t *ra, ptrdiff_t groups,
                            float *acc) {
    const float *scale = (const float *)head;
    const int32_t *one = (const int32_t *)(scale + width);
    if (width == FO_NR && !pairs) /* one scale per channel */
        for (int r = 0; r < mr; r++, c += FO_NR, acc += FO_NR)
            fo_group_row(FO_NR, c, scale, one, 0, 0, za[r], ra[r * groups], acc);
    else
        for (int r = 0; r < mr; r++, c += FO_NR, acc += FO_NR)
            fo_group_row(width, c, scale, one, pairs, joint, za[r], ra[r * groups], acc);
}

/* A row's end of each group as two int16. */
static inline void fo_join(ptrdiff_t groups, int32_t za, int32_t *ra) {
    for (ptrdiff_t g = 0; g < groups; g++)
        ra[g] = (int32_t)((uint32_t)(-za & 0xffff) | (uint32_t)-ra[g] << 16);
}

/* Rows of the result that a tile is about to write: their lines come while it multiplies. */
static inline void fo_expect(int mr, const uint8_t *out, ptrdiff_t stride, ptrdiff_t bytes) {
    for (int r = 0; r < mr; r++, out += stride)
        for (ptrdiff_t i = 0; i < bytes; i += 64) __builtin_prefetch(out + i, 1, 2);
}

/* erf(t) as a ratio of two polynomials in t^2 (own minimax fit on |t| <= 3.925, beyond which it is
 * 1 in float32); absolute error below 5e-7. */
static inline float fo_gelu(float x) {
    float t = x * 0.70710678f;
    t = t > -3.925f ? t : -3.925f;
    t = t < 3.925f ? t : 3.925f;
    const float u = t * t;
    const float p = ((((2.04596336e-06f * u + 0.000284836016f) * u + 0.0037724704f) * u +
                      0.05276905f) * u + 0.190592676f) * u + 1.12837911f;
    const float q = ((((3.80467136e-05f * u + 0.00116382737f) * u + 0.0149830496f) * u +
                      0.114182182f) * u + 0.502241075f) * u + 1.0f;
    return 0.5f * x * (1.0f + t * p / q);
}

FO_INLINE void fo_columns_f32(ptrdiff_t cols, const float *__restrict acc, float scale,
                              const float *__restrict bias, int activation,
                              float *__restrict out) {
    for (ptrdiff_t n = 0; n < cols; n++) {
        const float y = acc[n] * scale + bias[n];
        out[n] = activation == 0 ? y : activation == 1 ? (y > 0.0f ? y : 0.0f) : fo_gelu(y);
    }
}

/* y = act(acc * scale of the row + bias). */
static inline void fo_finish_f32(ptrdiff_t cols, const float *__restrict acc, float scale,
                                 const float *__restrict bias, int activation,
                                 float *__restrict out) {
    if (activation == 0 && cols == FO_NR) fo_columns_f32(FO_NR, acc, scale, bias, 0, out);
    else if (activation == 0) fo_columns_f32(cols, acc, scale, bias, 0, out);
    else if (activation == 1) fo_columns_f32(cols, acc, scale, bias, 1, out);
    else fo_columns_f32(cols, acc, scale, bias, 2, out);
}
#endif
