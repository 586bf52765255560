/* Squares of a matrix's rows: their sum along the row, and added to a sum for each column.

   64 or 128 bytes of lanes, added up in a fixed order: every level gives the same bits. */
#ifndef FO_UPDATE_FACTORED
#define FO_UPDATE_FACTORED
#include <stddef.h>

#if defined(__AVX512F__)
#define FO_SQUARES_BYTES 64
#elif defined(__AVX2__)
#define FO_SQUARES_BYTES 32
#else
#define FO_SQUARES_BYTES 16
#endif

/* columns[j] += q_j, q_j = (scale g[j])^2; returns the sum of the q_j in double. */
#define FO_SQUARES(REAL, NAME)                                                                    \
    typedef REAL NAME##_vec __attribute__((vector_size(FO_SQUARES_BYTES), aligned(sizeof(REAL)),  \
                                           may_alias));                                           \
    static double NAME(REAL *columns, const REAL *g, ptrdiff_t n, REAL scale) {                   \
        enum { WIDE = FO_SQUARES_BYTES / sizeof(REAL), VECS = 128 / FO_SQUARES_BYTES };           \
        enum { LANES = WIDE * VECS };                                                             \
        NAME##_vec sums[VECS] = {{0}};                                                            \
        REAL lanes[LANES];                                                                        \
        double total = 0;                                                                         \
        ptrdiff_t j = 0;                                                                          \
        for (; j + LANES <= n; j += LANES)                                                        \
            for (int k = 0; k < VECS; k++) {                                                      \
                NAME##_vec *c = (NAME##_vec *)(columns + j + k * WIDE);                           \
                NAME##_vec q = *(const NAME##_vec *)(g + j + k * WIDE) * scale;                   \
                q *= q;                                                                           \
                *c += q;                                                                          \
                sums[k] += q;                                                                     \
            }                                                                                     \
        for (int k = 0; k < VECS; k++)                                                            \
            *(NAME##_vec *)(lanes + k * WIDE) = sums[k];                                          \
        if (j > 0)                                                                                \
            for (int k = 0; k < LANES; k++)                                                       \
                total += lanes[k];                                                                \
        for (; j < n; j++) {                                                                      \
            REAL q = scale * g[j];                                                                \
            q *= q;                                                                               \
            columns[j] += q;                                                                      \
            total += q;                                                                           \
        }                                                                                         \
        return total;                                                                             \
    }
FO_SQUARES(float, fo_squares_float)
FO_SQUARES(double, fo_squares_double)
#endif
