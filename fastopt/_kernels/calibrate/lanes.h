/* One vector of floats, as wide as the level has it; a single float where there is none. Used
 * where sums must stay in registers and gcc would put an array of them into memory. */
#ifndef FO_LANES_H
#define FO_LANES_H
#include <math.h>

#if defined(__AVX512F__)
#include <immintrin.h>
typedef __m512 fo_v;
#define FO_WIDTH 16
#define fo_load _mm512_loadu_ps
#define fo_store _mm512_storeu_ps
#define fo_all _mm512_set1_ps
#define fo_add _mm512_add_ps
#define fo_sub _mm512_sub_ps
#define fo_mul _mm512_mul_ps
#define fo_max _mm512_max_ps /* a > b ? a : b, so NaN in a gives b */
#define fo_min _mm512_min_ps
#define fo_rint(a) _mm512_roundscale_ps(a, 8)
#elif defined(__AVX2__)
#include <immintrin.h>
typedef __m256 fo_v;
#define FO_WIDTH 8
#define fo_load _mm256_loadu_ps
#define fo_store _mm256_storeu_ps
#define fo_all _mm256_set1_ps
#define fo_add _mm256_add_ps
#define fo_sub _mm256_sub_ps
#define fo_mul _mm256_mul_ps
#define fo_max _mm256_max_ps
#define fo_min _mm256_min_ps
#define fo_rint(a) _mm256_round_ps(a, 8)
#elif defined(__SSE4_1__)
#include <smmintrin.h>
typedef __m128 fo_v;
#define FO_WIDTH 4
#define fo_load _mm_loadu_ps
#define fo_store _mm_storeu_ps
#define fo_all _mm_set1_ps
#define fo_add _mm_add_ps
#define fo_sub _mm_sub_ps
#define fo_mul _mm_mul_ps
#define fo_max _mm_max_ps
#define fo_min _mm_min_ps
#define fo_rint(a) _mm_round_ps(a, 8)
#else
typedef float fo_v;
#define FO_WIDTH 1
static inline fo_v fo_load(const float *p) { return *p; }
static inline void fo_store(float *p, fo_v a) { *p = a; }
static inline fo_v fo_all(float a) { return a; }
static inline fo_v fo_add(fo_v a, fo_v b) { return a + b; }
static inline fo_v fo_sub(fo_v a, fo_v b) { return a - b; }
static inline fo_v fo_mul(fo_v a, fo_v b) { return a * b; }
static inline fo_v fo_max(fo_v a, fo_v b) { return a > b ? a : b; }
static inline fo_v fo_min(fo_v a, fo_v b) { return a < b ? a : b; }
static inline fo_v fo_rint(fo_v a) { return rintf(a); }
#endif
#endif
