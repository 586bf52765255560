/* The rules' loops over arrays, in vectors of gcc's and clang's own types: every level and width
   gives the same bits. The compiler's own vectorising of the plain loops has no prefetching (10 %
   at the wall of the memory) and is five times as much code, for tails and for arrays that might
   overlap. */
#ifndef FO_UPDATE_LOOPS
#define FO_UPDATE_LOOPS
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum {
    SGD_PLAIN, SGD_MOMENTUM, LION, ADAM, ADAM_AMSGRAD, NADAM, RADAM, ADAMAX, RMSPROP,
    RMSPROP_MOMENTUM, RMSPROP_CENTERED, RMSPROP_CENTERED_MOMENTUM, ADAGRAD, ADADELTA,
    LAMB, ADAFACTOR /* from LAMB on each array's step is scaled by norms: a pass before it */
};
static const int8_t fo_states[] = {0, 1, 1, 2, 3, 2, 2, 2, 1, 2, 2, 3, 1, 2, 2};
enum { FO_TRUST = 11, FO_FAR = 12, FO_SCALARS = 13 };

#if defined(__AVX2__) /* 512 bits gain nothing: divisions and roots take twice as long */
#define FO_BYTES 32
#else
#define FO_BYTES 16
#endif
#define FO_AHEAD_BYTES 2048 /* pages of 4 KiB end the processor's own prefetching */

static inline __attribute__((always_inline)) void fo_will_write(const void *p) {
#if defined(__AVX2__) /* asks for the line as its owner; a processor without it does nothing */
    __asm__ volatile("prefetchw %0" : : "m"(*(const char *)p));
#else
    __builtin_prefetch(p, 1);
#endif
}

/* A flag in a register: a test of it is cheaper than the comparison it came from, each time. */
static inline __attribute__((always_inline)) int fo_flag(int x) {
    __asm__("" : "+r"(x));
    return x;
}

#define FO_LOAD(q) (*(const FO_V *)((q) + i))
#define FO_STORE(q, x) (*(FO_V *)((q) + i) = (x))
#define FO_ALL(x) ((FO_V){0} + (FO_REAL)(x))
#define FO_PICK(mask, x, y) ((FO_V)(((mask) & (FO_I)(x)) | (~(mask) & (FO_I)(y))))
#define FO_SIZE(x) ((FO_V)((FO_I)(x) & ~(FO_I)(-(FO_V){0})))
/* max(x, y), NaN where either is, as torch.maximum */
#define FO_LARGER(x, y) FO_PICK(((x) > (y)) | ((x) != (x)), x, y)
#define FO_ONE(COUNT, DECAYS, ...)                                                                \
    {                                                                                             \
        FO_V w = FO_LOAD(p), x = h[0] * FO_LOAD(g), s0 = w, s1 = w, s2 = w;                       \
        if (DECAYS) x = x + h[1] * w;                                                             \
        if (COUNT > 0) s0 = FO_LOAD(a);                                                           \
        if (COUNT > 1) s1 = FO_LOAD(b);                                                           \
        if (COUNT > 2) s2 = FO_LOAD(c);                                                           \
        __VA_ARGS__                                                                               \
        if (COUNT > 0) FO_STORE(a, s0);                                                           \
        if (COUNT > 1) FO_STORE(b, s1);                                                           \
        if (COUNT > 2) FO_STORE(c, s2);                                                           \
        FO_STORE(p, w);                                                                           \
        i += (ptrdiff_t)(FO_BYTES / sizeof(FO_REAL));                                             \
    }
/* Turns of two vectors, a line of the cache; on SSE of one. */
#define FO_TURNS(COUNT, DECAYS, ...)                                                              \
    for (ptrdiff_t i = 0; i < n;) {                                                               \
        if (i < until && (FO_BYTES >= 32 || i * (ptrdiff_t)sizeof(FO_REAL) % 64 == 0)) {          \
            const ptrdiff_t to = i + FO_AHEAD_BYTES / (ptrdiff_t)sizeof(FO_REAL);                 \
            __builtin_prefetch(g + to);                                                           \
            fo_will_write(p + to);                                                                \
            if (COUNT > 0) fo_will_write(a + to);                                                 \
            if (COUNT > 1) fo_will_write(b + to);                                                 \
            if (COUNT > 2) fo_will_write(c + to);                                                 \
        }                                                                                         \
        FO_ONE(COUNT, DECAYS, __VA_ARGS__)                                                        \
        if (FO_BYTES < 32) continue;                                                              \
        if (i >= n) break;                                                                        \
        FO_ONE(COUNT, DECAYS, __VA_ARGS__)                                                        \
    }
#define FO_EACH(COUNT, ...)                                                                       \
    FO_TURNS(COUNT, decays, __VA_ARGS__)                                                          \
    break;
/* A rule so short that it asks about the decay once, not at each vector. */
#define FO_QUICK(COUNT, ...)                                                                      \
    {                                                                                             \
        if (decays)                                                                               \
            FO_TURNS(COUNT, 1, __VA_ARGS__)                                                       \
        else                                                                                      \
            FO_TURNS(COUNT, 0, __VA_ARGS__)                                                       \
        break;                                                                                    \
    }

/* FO_NAME(root); FO_NAME(sign); FO_NAME(apply): a rule over n elements, what is no whole vector by
   way of one. */
#define FO_TYPES(REAL, INT, NAME, ROOT, KIND)                                                     \
    typedef REAL NAME##_v                                                                         \
        __attribute__((vector_size(FO_BYTES), aligned(sizeof(REAL)), may_alias));                 \
    typedef INT NAME##_i __attribute__((vector_size(FO_BYTES)));                                  \
    static inline __attribute__((always_inline)) NAME##_v NAME##_root(NAME##_v x) {               \
        FO_ROOTS(ROOT, KIND)                                                                      \
    }                                                                                             \
    static inline __attribute__((always_inline)) NAME##_v NAME##_sign(NAME##_v x, REAL size) {    \
        NAME##_i bit = (NAME##_i)(-(NAME##_v){0}) & (NAME##_i)x;                                  \
        NAME##_v all = (NAME##_v)(bit ^ (NAME##_i)((NAME##_v){0} + size));                        \
        FO_SIGNS(NAME##_i, KIND)                                                                  \
    }
#if defined(__AVX2__)
#define FO_ROOTS(ROOT, KIND) return _mm256_sqrt_##KIND(x);
#elif defined(__x86_64__)
#define FO_ROOTS(ROOT, KIND) return _mm_sqrt_##KIND(x);
#else
#define FO_ROOTS(ROOT, KIND)                                                                      \
    for (int k = 0; k < (int)(sizeof x / sizeof x[0]); k++) x[k] = ROOT(x[k]);                    \
    return x;
#endif
/* `size` with the sign of x where x has one; zeros and NaN stay. */
#if defined(__AVX512VL__)
#define FO_SIGNS(I, KIND)                                                                         \
    return _mm256_mask_mov_##KIND(                                                                \
        all, _mm256_cmp_##KIND##_mask(x, _mm256_setzero_##KIND(), _CMP_EQ_UQ), x);
#elif defined(__AVX2__)
#define FO_SIGNS(I, KIND)                                                                         \
    return _mm256_blendv_##KIND(                                                                  \
        all, x, _mm256_cmp_##KIND(x, _mm256_setzero_##KIND(), _CMP_EQ_UQ));
#else
#define FO_SIGNS(I, KIND)                                                                         \
    I stays = (x == 0) | (x != x);                                                                \
    __typeof__(x) y = (__typeof__(x))((stays & (I)x) | (~stays & (I)all));                        \
    return y;
#endif
#define FO_APPLY(REAL, NAME)                                                                      \
    static void NAME##_apply(int rule, REAL *p, const REAL *g, REAL *a, REAL *b, REAL *c,         \
                             ptrdiff_t n, const double *h) {                                      \
        enum { WIDE = FO_BYTES / sizeof(REAL) };                                                  \
        ptrdiff_t rest = n % WIDE;                                                                \
        NAME##_loop(rule, p, g, a, b, c, n - rest, h);                                            \
        if (rest == 0)                                                                            \
            return;                                                                               \
        REAL *all[4] = {p, a, b, c}, own[5][WIDE] = {{0}};                                        \
        memcpy(own[4], g + n - rest, (size_t)rest * sizeof(REAL));                                \
        for (int k = 0; k <= fo_states[rule]; k++)                                                \
            memcpy(own[k], all[k] + n - rest, (size_t)rest * sizeof(REAL));                       \
        NAME##_loop(rule, own[0], own[4], own[1], own[2], own[3], WIDE, h);                       \
        for (int k = 0; k <= fo_states[rule]; k++)                                                \
            memcpy(all[k] + n - rest, own[k], (size_t)rest * sizeof(REAL));                       \
    }
FO_TYPES(float, int32_t, fo_single, sqrtf, ps)
FO_TYPES(double, int64_t, fo_double, sqrt, pd)

#define FO_REAL float
#define FO_V fo_single_v
#define FO_I fo_single_i
#define FO_NAME(x) fo_single_##x
#include "rules.h"
#undef FO_REAL
#undef FO_V
#undef FO_I
#undef FO_NAME
#define FO_REAL double
#define FO_V fo_double_v
#define FO_I fo_double_i
#define FO_NAME(x) fo_double_##x
#include "rules.h"
FO_APPLY(float, fo_single)
FO_APPLY(double, fo_double)
#endif
