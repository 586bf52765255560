/* Tiles of a Gram matrix: 4 rows by two vectors of 64 bytes kept in registers over a block of rows.

   Lanes are independent and rows are added one after the other, so every level gives the same
   bits; no fused multiply-add. */
#ifndef FO_LINEAR_GRAM
#define FO_LINEAR_GRAM
#include <stddef.h>

#if defined(__AVX512F__)
#define FO_GRAM_BYTES 64
#elif defined(__AVX2__)
#define FO_GRAM_BYTES 32
#else
#define FO_GRAM_BYTES 16
#endif

#define FO_GRAM(REAL, NAME)                                                                       \
    typedef REAL NAME##_vec __attribute__((vector_size(FO_GRAM_BYTES), aligned(sizeof(REAL)),     \
                                           may_alias));                                           \
    /* out (pad, pad) += upper tiles of sum_r a[r] b[r]', r < rows; a, b (rows, pad), used <= pad. */ \
    static void NAME(double *out, const REAL *a, const REAL *b, ptrdiff_t rows, ptrdiff_t pad,  \
                     ptrdiff_t used) {                                                          \
        enum { WIDE = FO_GRAM_BYTES / sizeof(REAL), VECS = 2 };                                   \
        for (ptrdiff_t i = 0; i < used; i += 4)                                                   \
            for (ptrdiff_t j = i / (VECS * WIDE) * (VECS * WIDE); j < pad; j += VECS * WIDE) {    \
                NAME##_vec s[4][VECS] = {{{0}}};                                                  \
                const int two = j + WIDE < pad;                                                   \
                for (ptrdiff_t r = 0; r < rows; r++) {                                            \
                    const REAL *p = a + r * pad + i, *q = b + r * pad + j;                        \
                    NAME##_vec v = *(const NAME##_vec *)q;                                        \
                    NAME##_vec w = two ? *(const NAME##_vec *)(q + WIDE) : v;                     \
                    for (int l = 0; l < 4; l++) {                                                 \
                        s[l][0] += p[l] * v;                                                      \
                        s[l][1] += p[l] * w;                                                      \
                    }                                                                             \
                }                                                                                 \
                for (int l = 0; l < 4; l++)                                                       \
                    for (int c = 0; c < WIDE; c++) {                                              \
                        out[(i + l) * pad + j + c] += s[l][0][c];                                 \
                        if (two) out[(i + l) * pad + j + WIDE + c] += s[l][1][c];                 \
                    }                                                                             \
            }                                                                                     \
    }

FO_GRAM(float, fo_gram_f32)
FO_GRAM(double, fo_gram_f64)
#endif
