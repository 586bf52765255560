/* What becomes of a row of int32 sums: zero points, then int32, requantised 8 bits, or floats.
 * Plain loops that gcc vectorises; each element's operations are in one fixed order. */
#ifndef FO_EPILOGUE_INT8
#define FO_EPILOGUE_INT8
#include <stdint.h>
#include <stddef.h>
#include <math.h>
#include "dot_int8.h"

/* sum (a - za)(b - zb) = c - za * colsum - zb * (rowsum - k * za); ra = rowsum - k * za.
 * Modulo 2^32, so exact wherever the result fits. */
static inline int32_t fo_corrected(int32_t c, int32_t za, int32_t ra, int32_t colsum, int32_t zb) {
    return (int32_t)((uint32_t)c - (uint32_t)za * (uint32_t)colsum - (uint32_t)zb * (uint32_t)ra);
}

static inline void fo_finish_i32(ptrdiff_t cols, const int32_t *__restrict c, int32_t za,
                                 int32_t ra, const int32_t *__restrict colsum,
                                 const int32_t *__restrict zb, int32_t *__restrict out) {
    for (ptrdiff_t n = 0; n < cols; n++) out[n] = fo_corrected(c[n], za, ra, colsum[n], zb[n]);
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

/* The end of a group of k: acc (+)= (float)(exact sum of the group) * its scale. Where za, ra, every
 * column sum and zero point fit in int16 (pairs[at + n] = colsum[n], zb[n]; else it is NULL), both corrections
 * are one two-term dot product. */
static inline void fo_group(ptrdiff_t cols, const int32_t *__restrict c, int32_t za, int32_t ra,
                            const int32_t *__restrict colsum, const int32_t *__restrict zb,
                            const int32_t *__restrict pairs, ptrdiff_t at,
                            const float *__restrict scale, int first, float *__restrict acc) {
    ptrdiff_t n = 0;
#ifdef fo_float
    if (pairs != NULL && ra > -32768 && ra < 32768) {
        const fo_vec x = fo_set32((int32_t)((uint32_t)(-za & 0xffff) | (uint32_t)-ra << 16));
        for (; n + FO_LANES <= cols; n += FO_LANES) {
            const fo_vec sum = fo_dot16(fo_load(c + n), x, fo_load(pairs + at + n));
            const fo_fvec y = fo_fmul(fo_float(sum), fo_fload(scale + n));
            fo_fstore(acc + n, first ? y : fo_fadd(fo_fload(acc + n), y));
        }
    }
#endif
    for (; n < cols; n++) {
        const float y = (float)fo_corrected(c[n], za, ra, colsum[n], zb[n]) * scale[n];
        acc[n] = first ? y : acc[n] + y;
    }
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

/* y = act(acc * scale of the row + bias). */
static inline void fo_finish_f32(ptrdiff_t cols, const float *__restrict acc, float scale,
                                 const float *__restrict bias, int activation,
                                 float *__restrict out) {
    if (activation == 0)
        for (ptrdiff_t n = 0; n < cols; n++) out[n] = acc[n] * scale + bias[n];
    else if (activation == 1)
        for (ptrdiff_t n = 0; n < cols; n++) {
            const float y = acc[n] * scale + bias[n];
            out[n] = y > 0.0f ? y : 0.0f;
        }
    else
        for (ptrdiff_t n = 0; n < cols; n++) out[n] = fo_gelu(acc[n] * scale + bias[n]);
}
#endif
