/* Blocks of the range and histogram kernels, once per element type. Plain loops over fixed lane
 * arrays: gcc turns them into full vectors and every level computes the same values. */
#ifndef FO_HISTOGRAM_H
#define FO_HISTOGRAM_H
#include <math.h>
#include <stdint.h>
#include <stddef.h>
#include <string.h>

#define FO_LANES 32
#define FO_TABLES 4 /* runs of equal values then wait on one store in four, not on every store */

static inline uint32_t fo_bits_f32(float v) { uint32_t b; memcpy(&b, &v, 4); return b; }
static inline uint64_t fo_bits_f64(double v) { uint64_t b; memcpy(&b, &v, 8); return b; }

#define FO_DEFINE(T, S, U, WIDTH, BITS)                                                    \
                                                                                                   \
/* low, high and the largest bits of |x| of n values next to each other, merged into the caller's: \
 * bits past those of the largest number mean that NaN or infinity was seen. */                                             \
static inline void fo_extent_run_##S(const T *__restrict x, ptrdiff_t n, T *low, T *high,         \
                                     U *top) {                                                     \
    T lo[FO_LANES], hi[FO_LANES];                                                                  \
    U mx[FO_LANES];                                                                                \
    for (int l = 0; l < FO_LANES; l++) { lo[l] = *low; hi[l] = *high; mx[l] = *top; }              \
    ptrdiff_t i = 0;                                                                               \
    for (; i + FO_LANES <= n; i += FO_LANES)                                                       \
        for (int l = 0; l < FO_LANES; l++) {                                                       \
            T v = x[i + l];                                                                        \
            U b = BITS(v) & ((U)-1 >> 1);                                                          \
            lo[l] = v < lo[l] ? v : lo[l];                                                         \
            hi[l] = v > hi[l] ? v : hi[l];                                                         \
            mx[l] = b > mx[l] ? b : mx[l];                                                         \
        }                                                                                          \
    for (int l = 0; i < n; i++, l++) {                                                             \
        T v = x[i];                                                                                \
        U b = BITS(v) & ((U)-1 >> 1);                                                              \
        lo[l] = v < lo[l] ? v : lo[l];                                                             \
        hi[l] = v > hi[l] ? v : hi[l];                                                             \
        mx[l] = b > mx[l] ? b : mx[l];                                                             \
    }                                                                                              \
    for (int l = 0; l < FO_LANES; l++) {                                                           \
        *low = lo[l] < *low ? lo[l] : *low;                                                        \
        *high = hi[l] > *high ? hi[l] : *high;                                                     \
        *top = mx[l] > *top ? mx[l] : *top;                                                        \
    }                                                                                              \
}                                                                                                  \
                                                                                                   \
/* The same for columns [c, c + m) of a row-major (rows, cols) matrix, one result a column. */     \
static inline void fo_extent_columns_##S(const T *__restrict x, ptrdiff_t rows, ptrdiff_t cols,   \
                                         ptrdiff_t m, T *__restrict low, T *__restrict high,       \
                                         U *__restrict top) {                                      \
    for (ptrdiff_t r = 0; r < rows; r++)                                                           \
        for (ptrdiff_t c = 0; c < m; c++) {                                                        \
            T v = x[r * cols + c];                                                                 \
            U b = BITS(v) & ((U)-1 >> 1);                                                          \
            low[c] = v < low[c] ? v : low[c];                                                      \
            high[c] = v > high[c] ? v : high[c];                                                   \
            top[c] = b > top[c] ? b : top[c];                                                      \
        }                                                                                          \
}                                                                                                  \
                                                                                                   \
/* Bin of v * inv: truncate towards zero, one less for a set sign bit (so that halving the         \
 * resolution is exactly a shift), clamped in float first: no index leaves the table. */           \
static inline int32_t fo_bin_##S(T v, T inv, T edge) {                                             \
    T t = v * inv;                                                                                 \
    t = t > -edge ? t : -edge;                                                                     \
    t = t < edge ? t : edge;                                                                       \
    return (int32_t)t - (int32_t)(BITS(v) >> (WIDTH - 1));                                         \
}                                                                                                  \
                                                                                                   \
static inline void fo_bins_##S(int32_t *__restrict out, const T *__restrict x, int m, T inv,      \
                               T edge) {                                                           \
    for (int i = 0; i < m; i++) out[i] = fo_bin_##S(x[i], inv, edge);                              \
}                                                                                                  \
                                                                                                   \
/* Counts of n values next to each other into FO_TABLES tables of `bins` entries, zero in the      \
 * middle of each. */                                                                              \
static inline void fo_count_run_##S(uint32_t *table, const T *__restrict x, ptrdiff_t n,          \
                                    ptrdiff_t bins, T inv) {                                       \
    int32_t index[256];                                                                            \
    T edge = (T)(bins / 2) - (T)0.5;                                                               \
    uint32_t *middle = table + bins / 2;                                                           \
    for (ptrdiff_t i = 0; i < n; i += 256) {                                                       \
        int m = n - i < 256 ? (int)(n - i) : 256, k = 0;                                           \
        fo_bins_##S(index, x + i, m, inv, edge);                                                   \
        for (; k + FO_TABLES <= m; k += FO_TABLES) {                                               \
            middle[index[k]]++;                                                                    \
            middle[index[k + 1] + bins]++;                                                         \
            middle[index[k + 2] + 2 * bins]++;                                                     \
            middle[index[k + 3] + 3 * bins]++;                                                     \
        }                                                                                          \
        for (; k < m; k++) middle[index[k]]++;                                                     \
    }                                                                                              \
}                                                                                                  \
                                                                                                   \
/* The same for m <= 16 columns of a row-major matrix, straight into the totals. */                \
static inline void fo_count_columns_##S(int64_t *counts, const T *__restrict x, ptrdiff_t rows,   \
                                        ptrdiff_t cols, int m, ptrdiff_t bins,                     \
                                        const T *__restrict inv) {                                 \
    int32_t index[16];                                                                             \
    T edge = (T)(bins / 2) - (T)0.5;                                                               \
    for (ptrdiff_t r = 0; r < rows; r++) {                                                         \
        const T *row = x + r * cols;                                                               \
        if (m == 16)                                                                               \
            for (int c = 0; c < 16; c++) index[c] = fo_bin_##S(row[c], inv[c], edge);              \
        else                                                                                       \
            for (int c = 0; c < m; c++) index[c] = fo_bin_##S(row[c], inv[c], edge);               \
        for (int c = 0; c < m; c++) counts[c * bins + bins / 2 + index[c]]++;                      \
    }                                                                                              \
}

FO_DEFINE(float, f32, uint32_t, 32, fo_bits_f32)
FO_DEFINE(double, f64, uint64_t, 64, fo_bits_f64)
#endif
