/* One vector register of floats or of doubles as the level has it; loads need no alignment. gcc 12
   keeps an array of sums in memory and takes a wider vector apart through memory (a sparse product
   5 times slower with AVX2), so sums that stay in registers are written with these types. */
#ifndef FO_VECTOR_H
#define FO_VECTOR_H

#if defined(__SSE2__)
#include <immintrin.h>
#endif
#if defined(__AVX512F__)
#define FO_BYTES 64
#elif defined(__AVX2__)
#define FO_BYTES 32
#else
#define FO_BYTES 16
#endif
typedef float fo_floats __attribute__((vector_size(FO_BYTES), aligned(4), may_alias));
typedef double fo_doubles __attribute__((vector_size(FO_BYTES), aligned(8), may_alias));

/* a > b ? a : b and a < b ? a : b: a NaN in a gives b. */
static inline fo_floats fo_larger(fo_floats a, fo_floats b)
{
#if defined(__AVX512F__)
    return (fo_floats)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (fo_floats)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
    return (fo_floats)_mm_max_ps((__m128)a, (__m128)b);
#else
    for (int l = 0; l < 4; l++) a[l] = a[l] > b[l] ? a[l] : b[l];
    return a;
#endif
}

static inline fo_floats fo_smaller(fo_floats a, fo_floats b)
{
#if defined(__AVX512F__)
    return (fo_floats)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (fo_floats)_mm256_min_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
    return (fo_floats)_mm_min_ps((__m128)a, (__m128)b);
#else
    for (int l = 0; l < 4; l++) a[l] = a[l] < b[l] ? a[l] : b[l];
    return a;
#endif
}

#endif
