/* What becomes of a row of int32 sums: zero points, then int32, requantised 8 bits, or floats.
 * Plain loops that gcc vectorises; each element's operations are in one fixed order. */
#ifndef FO_EPILOGUE_INT8
#define FO_EPILOGUE_INT8
#include <stdint.h>
#include <stddef.h>
#include <math.h>

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
#endif
