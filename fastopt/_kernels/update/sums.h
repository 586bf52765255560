/* Sums of squares. Lanes are independent and added up as a tree in double: every level gives the
   same bits. */
#ifndef FO_UPDATE_SUMS
#define FO_UPDATE_SUMS
#include <stddef.h>
#include <string.h>

#if defined(__AVX2__) /* 512 bits gain nothing: conversions and cached loads bind */
#define FO_SUMS_BYTES 32
#else
#define FO_SUMS_BYTES 16
#endif

#define FO_TREE(x, count)                                                                         \
    for (int half = (count) / 2; half > 0; half /= 2)                                             \
        for (int k = 0; k < half; k++)                                                            \
            x[k] += x[k + half];

/* NAME_total: the sum of x[i]^2, squared and added in double over 16 lanes.
   NAME_rows: columns[j] += q_j, q_j = (scale g[j])^2; returns the sum of the q_j. */
#define FO_SUMS(REAL, NAME)                                                                       \
    typedef REAL NAME##_part                                                                      \
        __attribute__((vector_size(FO_SUMS_BYTES / sizeof(double) * sizeof(REAL)),                \
                       aligned(sizeof(REAL)), may_alias));                                        \
    typedef REAL NAME##_vec __attribute__((vector_size(FO_SUMS_BYTES), aligned(sizeof(REAL)),     \
                                           may_alias));                                           \
    static __attribute__((noinline)) double NAME##_total(const REAL *x, ptrdiff_t n) {            \
        enum { WIDE = FO_SUMS_BYTES / sizeof(double), VECS = 16 / WIDE };                         \
        fo_doubles sums[VECS] = {{0}};                                                            \
        double lanes[16];                                                                         \
        ptrdiff_t i = 0;                                                                          \
        for (; i + 16 <= n; i += 16)                                                              \
            for (int k = 0; k < VECS; k++) {                                                      \
                fo_doubles q = __builtin_convertvector(                                           \
                    *(const NAME##_part *)(x + i + k * WIDE), fo_doubles);                        \
                sums[k] += q * q;                                                                 \
            }                                                                                     \
        for (int k = 0; k < VECS; k++)                                                            \
            *(fo_doubles *)(lanes + k * WIDE) = sums[k];                                          \
        for (int k = 0; i < n; i++, k++)                                                          \
            lanes[k] += (double)x[i] * x[i];                                                      \
        FO_TREE(lanes, 16)                                                                        \
        return lanes[0];                                                                          \
    }                                                                                             \
    static double NAME##_rows(REAL *columns, const REAL *g, ptrdiff_t n, REAL scale) {            \
        enum { WIDE = FO_SUMS_BYTES / sizeof(REAL), VECS = 128 / FO_SUMS_BYTES };                 \
        enum { LANES = WIDE * VECS };                                                             \
        NAME##_vec sums[VECS] = {{0}};                                                            \
        REAL lanes[LANES];                                                                        \
        double wide[LANES], total = 0;                                                            \
        ptrdiff_t j = 0;                                                                          \
        for (; j + LANES <= n; j += LANES)                                                        \
            for (int k = 0; k < VECS; k++) {                                                      \
                NAME##_vec *c = (NAME##_vec *)(columns + j + k * WIDE);                           \
                NAME##_vec q = *(const NAME##_vec *)(g + j + k * WIDE) * scale;                   \
                q *= q;                                                                           \
                *c += q;                                                                          \
                sums[k] += q;                                                                     \
            }                                                                                     \
        if (j > 0) {                                                                              \
            for (int k = 0; k < VECS; k++)                                                        \
                *(NAME##_vec *)(lanes + k * WIDE) = sums[k];                                      \
            for (int k = 0; k < LANES; k++)                                                       \
                wide[k] = lanes[k];                                                               \
            FO_TREE(wide, LANES)                                                                  \
            total = wide[0];                                                                      \
        }                                                                                         \
        for (; j < n; j++) {                                                                      \
            REAL q = scale * g[j];                                                                \
            q *= q;                                                                               \
            columns[j] += q;                                                                      \
            total += q;                                                                           \
        }                                                                                         \
        return total;                                                                             \
    }
/* Ask for what comes 2 KB on: between passes over a unit in L1 no stream is running. */
static inline void fo_coming(const void *p, ptrdiff_t bytes) {
    for (ptrdiff_t i = 0; i < bytes; i += 64)
        __builtin_prefetch((const char *)p + 2048 + i);
}
typedef double fo_doubles
    __attribute__((vector_size(FO_SUMS_BYTES), aligned(sizeof(double)), may_alias));
FO_SUMS(float, fo_floats)
FO_SUMS(double, fo_wides)

/* fo_floats_total of at most a unit (256) in 32 lanes of float: what a lane loses in adding 8
   squares is next to nothing. Where squares leave float's range, once more in double. */
static __attribute__((noinline)) double fo_floats_short(const float *x, ptrdiff_t n) {
    enum { WIDE = FO_SUMS_BYTES / sizeof(float), VECS = 32 / WIDE };
    fo_floats_vec sums[VECS] = {{0}};
    float lanes[32];
    double wide[32];
    if (n % 32)
        return fo_floats_total(x, n);
    for (ptrdiff_t i = 0; i < n; i += 32)
        for (int k = 0; k < VECS; k++) {
            fo_floats_vec q = *(const fo_floats_vec *)(x + i + k * WIDE);
            sums[k] += q * q;
        }
    memcpy(lanes, sums, sizeof lanes);
    for (int k = 0; k < 32; k++)
        wide[k] = lanes[k];
    FO_TREE(wide, 32)
    return wide[0] > 1e-24 && wide[0] < 1e38 ? wide[0] : fo_floats_total(x, n);
}
#endif
