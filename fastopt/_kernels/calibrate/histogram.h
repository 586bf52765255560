/* Blocks of the histogram kernel, once per element type. Plain loops over fixed lane arrays: gcc
 * turns them into full vectors and every level computes the same values. */
#ifndef FO_HISTOGRAM_H
#define FO_HISTOGRAM_H
#include <stdint.h>
#include <stddef.h>
#include <string.h>

#define FO_TABLES 4 /* runs of equal values then wait on one store in four, not on every store */
enum { FO_STRIP = 32 }; /* columns counted together */
#define FO_AHEAD 8 /* rows between a read of a strip and its prefetch */

static inline uint32_t fo_bits_f32(float v) { uint32_t b; memcpy(&b, &v, 4); return b; }
static inline uint64_t fo_bits_f64(double v) { uint64_t b; memcpy(&b, &v, 8); return b; }

#define FO_DEFINE(T, S, U, WIDTH, BITS)                                                    \
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
/* The same for m <= FO_STRIP columns of a row-major matrix, straight into the totals. */           \
static inline void fo_count_columns_##S(int64_t *counts, const T *__restrict x, ptrdiff_t rows,   \
                                        ptrdiff_t cols, int m, ptrdiff_t bins,                     \
                                        const T *__restrict inv) {                                 \
    int32_t index[FO_STRIP];                                                                       \
    T edge = (T)(bins / 2) - (T)0.5;                                                               \
    for (ptrdiff_t r = 0; r < rows; r++) {                                                         \
        const T *row = x + r * cols;                                                               \
        for (int i = 0; i < m; i += (int)(64 / sizeof(T)))                                         \
            __builtin_prefetch(row + FO_AHEAD * cols + i);                                         \
        if (m == FO_STRIP)                                                                         \
            for (int c = 0; c < FO_STRIP; c++) index[c] = fo_bin_##S(row[c], inv[c], edge);        \
        else                                                                                       \
            for (int c = 0; c < m; c++) index[c] = fo_bin_##S(row[c], inv[c], edge);               \
        for (int c = 0; c < m; c++) counts[c * bins + bins / 2 + index[c]]++;                      \
    }                                                                                              \
}

FO_DEFINE(float, f32, uint32_t, 32, fo_bits_f32)
FO_DEFINE(double, f64, uint64_t, 64, fo_bits_f64)
#endif
