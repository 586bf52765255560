/* Products of one sparse row with a dense vector, for float and double. Scalar loads in eight
   running sums: a gather instruction is no faster on any machine tried, and much slower on some.
   The order of the sums is fixed, so every level gives the same bits. */
#ifndef FO_LINEAR_SPARSE
#define FO_LINEAR_SPARSE
#define FO_LOSS_ALONE
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC push_options
#pragma GCC optimize("O2", "tree-vectorize")
#endif
#include "linear.h"
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC pop_options
#endif

/* Entries [a, b) of the matrix, asked for; size is that of a value. */
static void fo_ask(const void *x, const int32_t *j, int two, ptrdiff_t a, ptrdiff_t b, int size) {
    const char *p = (const char *)x + a * size, *q = (const char *)(j + (a << two));
    ptrdiff_t values = (b - a) * size, columns = (b - a) << (two + 2);
    for (ptrdiff_t i = 0; i < values && i < 4096; i += 64) __builtin_prefetch(p + i, 0, 3);
    for (ptrdiff_t i = 0; i < columns && i < 4096; i += 64) __builtin_prefetch(q + i, 0, 3);
}

/* The elements of a vector that a row's columns name, asked for. */
static void fo_ask_at(const int32_t *j, int two, ptrdiff_t n, const void *w, int size) {
    for (ptrdiff_t i = 0; i < n && i < 512; i++)
        __builtin_prefetch((const char *)w + (ptrdiff_t)j[i << two] * size, 1, 3);
}

#define FO_SPARSE(NAME, REAL)                                                                     \
    FO_INLINE REAL fo_dot_by_##NAME(const REAL *x, const int32_t *j, const int two, ptrdiff_t n,  \
                                    const REAL *w) {                                              \
        REAL t[8] = {0}, rest = 0;                                                                \
        ptrdiff_t i = 0;                                                                          \
        for (; i + 8 <= n; i += 8, x += 8, j += 8 << two) {                                       \
            t[0] += x[0] * w[j[0 << two]];                                                        \
            t[1] += x[1] * w[j[1 << two]];                                                        \
            t[2] += x[2] * w[j[2 << two]];                                                        \
            t[3] += x[3] * w[j[3 << two]];                                                        \
            t[4] += x[4] * w[j[4 << two]];                                                        \
            t[5] += x[5] * w[j[5 << two]];                                                        \
            t[6] += x[6] * w[j[6 << two]];                                                        \
            t[7] += x[7] * w[j[7 << two]];                                                        \
        }                                                                                         \
        for (; i < n; i++, x++, j += 1 << two) rest += x[0] * w[j[0]];                            \
        return (((t[0] + t[4]) + (t[2] + t[6])) + ((t[1] + t[5]) + (t[3] + t[7]))) + rest;        \
    }                                                                                             \
    static REAL fo_dot_##NAME(const REAL *x, const int32_t *j, int two, ptrdiff_t n,              \
                              const REAL *w) {                                                    \
        return two ? fo_dot_by_##NAME(x, j, 1, n, w) : fo_dot_by_##NAME(x, j, 0, n, w);           \
    }

/* Built for size, gcc converts float to double on top of a register's old value: a chain of waits. */
#if defined(__GNUC__) && !defined(__clang__)
#define FO_QUICK __attribute__((optimize("O2")))
#else
#define FO_QUICK
#endif

/* g += e x, column by column: a column may come twice. */
#define FO_ADD(NAME, REAL, SUM)                                                                   \
    FO_QUICK static void NAME(const REAL *x, const int32_t *j, int two, ptrdiff_t n, REAL e,      \
                              SUM *g) {                                                           \
        if (two)                                                                                  \
            for (ptrdiff_t i = 0; i < n; i++) g[j[2 * i]] += (SUM)e * x[i];                       \
        else                                                                                      \
            for (ptrdiff_t i = 0; i < n; i++) g[j[i]] += (SUM)e * x[i];                           \
    }

FO_SPARSE(f32, float)
FO_SPARSE(f64, double)
FO_ADD(fo_add_f32, float, float)
FO_ADD(fo_add_f64, double, double)
FO_ADD(fo_add_wide, float, double)
#endif
