/* The lanes in which linear models add up, for one REAL: LANES elements are 64 bytes, whatever the
   width of the machine's vectors. Sums run in every lane for itself; then lane l and l + LANES/2 are
   added, once more by halves down to 16 bytes, and those as neighbours. Every level does these same
   additions and none fuses them with a product, so every level gives the same bits. */

#ifndef FO_ROWS
#if defined(__SSE3__)
#include <immintrin.h>
#endif

/* FO_ROWS rows of FO_PARTS machine vectors: the running sums that fit the registers. */
#define FO_FOUR(X, a, b, c, d) X(a) X(b) X(c) X(d)
#if defined(__AVX512F__) && defined(__AVX512DQ__)
#define FO_BYTES 64
#define FO_ROWS 16
#define FO_EACH_PART(X) X(0)
#define FO_EACH_SUM(X) FO_FOUR(X, 0, 1, 2, 3) FO_FOUR(X, 4, 5, 6, 7) FO_FOUR(X, 8, 9, 10, 11) \
                       FO_FOUR(X, 12, 13, 14, 15)
#elif defined(__AVX2__)
#define FO_BYTES 32
#define FO_ROWS 4
#define FO_EACH_PART(X) X(0) X(1)
#define FO_EACH_SUM(X) FO_FOUR(X, 0, 1, 2, 3) FO_FOUR(X, 4, 5, 6, 7)
#else
#define FO_BYTES 16
#define FO_ROWS 2
#define FO_EACH_PART(X) FO_FOUR(X, 0, 1, 2, 3)
#define FO_EACH_SUM(X) FO_FOUR(X, 0, 1, 2, 3) FO_FOUR(X, 4, 5, 6, 7)
#endif
#define FO_PARTS (64 / FO_BYTES)
#define FO_INLINE static inline __attribute__((always_inline))
#define FO_APART static __attribute__((noinline)) /* its loops get the registers for themselves */
#endif

#define VEC NAME(fo_vec)
#define UVEC NAME(fo_uvec)
#define HALF NAME(fo_half)
#define UHALF NAME(fo_uhalf)
#define WIDE (FO_BYTES / (int)sizeof(REAL)) /* elements of one machine vector */

typedef REAL VEC __attribute__((vector_size(FO_BYTES)));
typedef REAL UVEC __attribute__((vector_size(FO_BYTES), aligned(sizeof(REAL)), may_alias));
typedef REAL HALF __attribute__((vector_size(16)));
typedef REAL UHALF __attribute__((vector_size(16), aligned(sizeof(REAL)), may_alias));

/* Machine vector p of the last m < LANES elements of a row, zeros behind them; nothing past the row
   is read. */
FO_INLINE VEC NAME(fo_tail)(const REAL *x, int m, const int p) {
#if FO_BYTES == 64 && !defined(FO_DOUBLE)
    return (VEC)_mm512_maskz_loadu_ps((__mmask16)((1u << m) - 1), x);
#elif FO_BYTES == 64
    return (VEC)_mm512_maskz_loadu_pd((__mmask8)((1u << m) - 1), x);
#elif FO_BYTES == 32 && !defined(FO_DOUBLE)
    static const int32_t mask[32] = {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1};
    return (VEC)_mm256_maskload_ps(x + 8 * p,
                                   _mm256_loadu_si256((const __m256i *)(mask + 16 + 8 * p - m)));
#elif FO_BYTES == 32
    static const int64_t mask[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
    return (VEC)_mm256_maskload_pd(x + 4 * p,
                                   _mm256_loadu_si256((const __m256i *)(mask + 8 + 4 * p - m)));
#else
    VEC lanes = {0};
    for (int i = WIDE * p; i < m && i < WIDE * (p + 1); i++) lanes[i - WIDE * p] = x[i];
    return lanes;
#endif
}

/* The last m elements of a row where they fit in 16 bytes: a load that may reach into the next line
   costs as much as one that does, whatever its mask. */
FO_INLINE HALF NAME(fo_few)(const REAL *x, int m) {
#if FO_BYTES == 64 && !defined(FO_DOUBLE)
    return (HALF)_mm_maskz_loadu_ps((__mmask8)((1u << m) - 1), x);
#elif FO_BYTES == 64
    return (HALF)_mm_maskz_loadu_pd((__mmask8)((1u << m) - 1), x);
#elif FO_BYTES == 32 && !defined(FO_DOUBLE)
    static const int32_t mask[8] = {-1, -1, -1, -1};
    return (HALF)_mm_maskload_ps(x, _mm_loadu_si128((const __m128i *)(mask + 4 - m)));
#elif FO_BYTES == 32
    static const int64_t mask[4] = {-1, -1};
    return (HALF)_mm_maskload_pd(x, _mm_loadu_si128((const __m128i *)(mask + 2 - m)));
#else
    HALF lanes = {0};
    for (int i = 0; i < m; i++) lanes[i] = x[i];
    return lanes;
#endif
}

/* A machine vector that begins with those 16 bytes, zeros behind them. */
FO_INLINE VEC NAME(fo_widened)(HALF a) {
#if FO_BYTES == 64 && !defined(FO_DOUBLE)
    return (VEC)_mm512_zextps128_ps512((__m128)a);
#elif FO_BYTES == 64
    return (VEC)_mm512_zextpd128_pd512((__m128d)a);
#elif FO_BYTES == 32 && !defined(FO_DOUBLE)
    return (VEC)_mm256_zextps128_ps256((__m128)a);
#elif FO_BYTES == 32
    return (VEC)_mm256_zextpd128_pd256((__m128d)a);
#else
    return a;
#endif
}

/* LANES running sums -> 16 bytes of them: lane l + lane l + LANES/2, and once more. */
FO_INLINE HALF NAME(fo_half_of)(const VEC *a) {
#if FO_BYTES == 64 && !defined(FO_DOUBLE)
    __m256 h = _mm256_add_ps(_mm512_castps512_ps256((__m512)a[0]),
                             _mm512_extractf32x8_ps((__m512)a[0], 1));
    return (HALF)_mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
#elif FO_BYTES == 64
    __m256d h = _mm256_add_pd(_mm512_castpd512_pd256((__m512d)a[0]),
                              _mm512_extractf64x4_pd((__m512d)a[0], 1));
    return (HALF)_mm_add_pd(_mm256_castpd256_pd128(h), _mm256_extractf128_pd(h, 1));
#elif FO_BYTES == 32 && !defined(FO_DOUBLE)
    __m256 h = (__m256)(a[0] + a[1]);
    return (HALF)_mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
#elif FO_BYTES == 32
    __m256d h = (__m256d)(a[0] + a[1]);
    return (HALF)_mm_add_pd(_mm256_castpd256_pd128(h), _mm256_extractf128_pd(h, 1));
#else
    return (a[0] + a[2]) + (a[1] + a[3]);
#endif
}

/* The sum of LANES running sums. */
FO_INLINE REAL NAME(fo_fold)(const VEC *a) {
    HALF q = NAME(fo_half_of)(a);
#ifdef FO_DOUBLE
    return q[0] + q[1];
#else
    return (q[0] + q[1]) + (q[2] + q[3]);
#endif
}

/* z[r] = fo_fold of the running sums a of row r, for FO_ROWS rows. */
FO_INLINE void NAME(fo_folds)(const VEC *a, REAL *z) {
#if FO_BYTES == 64 && !defined(FO_DOUBLE)
    /* Each step adds two vectors' halves into one: half of the shuffles that row by row needs. */
    const __m512i swap4 = _mm512_setr_epi32(4, 5, 6, 7, 16, 17, 18, 19, 12, 13, 14, 15, 24, 25, 26, 27);
    const __m512i swap1 = _mm512_setr_epi32(1, 16, 3, 18, 5, 20, 7, 22, 9, 24, 11, 26, 13, 28, 15, 30);
    __m512 v[16];
#define STEP(a, b, mask, moved) _mm512_add_ps(_mm512_mask_blend_ps(mask, a, b), moved)
    for (int r = 0; r < 8; r++)
        v[r] = STEP((__m512)a[r], (__m512)a[r + 8], 0xff00,
                    _mm512_shuffle_f32x4((__m512)a[r], (__m512)a[r + 8], 0x4e));
    for (int r = 0; r < 4; r++)
        v[r] = STEP(v[r], v[r + 4], 0xf0f0, _mm512_permutex2var_ps(v[r], swap4, v[r + 4]));
    for (int r = 0; r < 4; r += 2)
        v[r] = STEP(v[r], v[r + 1], 0xaaaa, _mm512_permutex2var_ps(v[r], swap1, v[r + 1]));
    _mm512_storeu_ps(z, STEP(v[0], v[2], 0xcccc, _mm512_shuffle_ps(v[0], v[2], 0x4e)));
#undef STEP
#elif FO_BYTES == 64
    const __m512i swap2 = _mm512_setr_epi64(2, 3, 8, 9, 6, 7, 12, 13);
#define STEP(a, b, mask, moved) _mm512_add_pd(_mm512_mask_blend_pd(mask, a, b), moved)
    for (int o = 0; o < 16; o += 8) {
        __m512d v[8];
        for (int r = 0; r < 4; r++)
            v[r] = STEP((__m512d)a[o + r], (__m512d)a[o + r + 4], 0xf0,
                        _mm512_shuffle_f64x2((__m512d)a[o + r], (__m512d)a[o + r + 4], 0x4e));
        for (int r = 0; r < 2; r++)
            v[r] = STEP(v[r], v[r + 2], 0xcc, _mm512_permutex2var_pd(v[r], swap2, v[r + 2]));
        _mm512_storeu_pd(z + o, STEP(v[0], v[1], 0xaa, _mm512_shuffle_pd(v[0], v[1], 0x55)));
    }
#undef STEP
#elif FO_BYTES == 32 && !defined(FO_DOUBLE)
    HALF q[4];
    for (int r = 0; r < 4; r++) q[r] = NAME(fo_half_of)(a + FO_PARTS * r);
    _mm_storeu_ps(z, _mm_hadd_ps(_mm_hadd_ps((__m128)q[0], (__m128)q[1]),
                                 _mm_hadd_ps((__m128)q[2], (__m128)q[3])));
#else
    for (int r = 0; r < FO_ROWS; r++) z[r] = NAME(fo_fold)(a + FO_PARTS * r);
#endif
}
