/* Second moments of a block of rows that lies transposed in cache: a column behind the other, so that
   lanes run over rows and every product of two columns is a plain dot product.

   Includes itself for float and double. The products of FO_ROWS pairs of columns run at a time, each
   in the lanes of lanes.h. */
#ifndef REAL
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define REAL float
#define LANES 16
#define NAME(x) x##_f32
#include "gram.h"
#undef REAL
#undef LANES
#undef NAME

#define FO_DOUBLE
#define REAL double
#define LANES 8
#define NAME(x) x##_f64
#include "gram.h"
#undef REAL
#undef LANES
#undef NAME
#undef FO_DOUBLE

#else
#include "lanes.h"

#define FO_ACROSS (FO_ROWS == 16 ? 4 : 2)    /* a tile is FO_DOWN by FO_ACROSS columns */
#define FO_DOWN (FO_ROWS / FO_ACROSS)
#define FO_HEIGHT (1024 / (int)sizeof(REAL)) /* rows of a block */
#ifndef FO_SHUFFLE
#if FO_BYTES == 64
#define FO_SHUFFLE(name) _mm512_##name
#define FO_SINGLES __m512
#define FO_DOUBLES __m512d
#elif FO_BYTES == 32
#define FO_SHUFFLE(name) _mm256_##name
#define FO_SINGLES __m256
#define FO_DOUBLES __m256d
#else
#define FO_SHUFFLE(name) _mm_##name
#define FO_SINGLES __m128
#define FO_DOUBLES __m128d
#endif
#endif

/* A vector in a register: gcc would load it anew for each product. */
FO_INLINE VEC NAME(fo_held)(const REAL *x) {
    VEC v = *(const VEC *)x;
#if defined(__AVX512F__)
    __asm__("" : "+v"(v));
#elif defined(__SSE2__)
    __asm__("" : "+x"(v));
#endif
    return v;
}

/* z = the dot products of FO_DOWN columns at a with FO_ACROSS columns at b, n rows; a machine vector
   of each column at a time, so that they and the sums fit the registers. */
FO_INLINE void NAME(fo_tile)(const REAL *a, const REAL *b, ptrdiff_t n, const char *ahead, REAL *z) {
    VEC sum[FO_ROWS * FO_PARTS];
#pragma GCC unroll 16
    for (int i = 0; i < FO_ROWS * FO_PARTS; i++) sum[i] = (VEC){0};
    for (ptrdiff_t r = 0; r < n; r += LANES, ahead += 64) {
        __builtin_prefetch(ahead, 0, 2); /* the first-level cache is full of columns */
#pragma GCC unroll 4
        for (int p = 0; p < FO_PARTS; p++) {
            VEC y[FO_ACROSS];
#pragma GCC unroll 4
            for (int m = 0; m < FO_ACROSS; m++)
                y[m] = NAME(fo_held)(b + m * FO_HEIGHT + r + p * WIDE);
#pragma GCC unroll 4
            for (int l = 0; l < FO_DOWN; l++) {
                const VEC x = NAME(fo_held)(a + l * FO_HEIGHT + r + p * WIDE);
#pragma GCC unroll 4
                for (int m = 0; m < FO_ACROSS; m++) sum[(l * FO_ACROSS + m) * FO_PARTS + p] += x * y[m];
            }
        }
    }
    NAME(fo_folds)(sum, z);
}

/* out (pad, pad) += the upper triangle of a' b, a and b (pad, FO_HEIGHT) with n rows and `used`
   columns in use, n whole lanes; the `bytes` at ahead, which come next, are asked for meanwhile. */
static void NAME(fo_moments)(double *out, const REAL *a, const REAL *b, ptrdiff_t n, ptrdiff_t pad,
                             ptrdiff_t used, const char *ahead, ptrdiff_t bytes) {
    REAL z[FO_ROWS];
    ptrdiff_t asked = 0;
    for (ptrdiff_t i = 0; i < used; i += FO_DOWN)
        for (ptrdiff_t j = i / FO_ACROSS * FO_ACROSS; j < used; j += FO_ACROSS) {
            NAME(fo_tile)(a + i * FO_HEIGHT, b + j * FO_HEIGHT, n, ahead + asked, z);
            asked = asked + 2048 < bytes ? asked + 1024 : asked;
            for (int l = 0; l < FO_DOWN; l++)
                for (int m = 0; m < FO_ACROSS; m++) out[(i + l) * pad + j + m] += z[l * FO_ACROSS + m];
        }
}

#ifdef __SSE3__
/* The 16 bytes at x, x + apart, x + 2 apart ... as one machine vector. */
FO_INLINE VEC NAME(fo_pick)(const REAL *x, ptrdiff_t apart) {
#define LOAD(i) _mm_loadu_ps((const float *)(x + i * apart))
#if FO_BYTES == 64
    __m512 v = _mm512_insertf32x4(_mm512_castps128_ps512(LOAD(0)), LOAD(1), 1);
    return (VEC)_mm512_insertf32x4(_mm512_insertf32x4(v, LOAD(2), 2), LOAD(3), 3);
#elif FO_BYTES == 32
    return (VEC)_mm256_insertf128_ps(_mm256_castps128_ps256(LOAD(0)), LOAD(1), 1);
#else
    return (VEC)LOAD(0);
#endif
#undef LOAD
}
#endif

/* b (columns, FO_HEIGHT) = the rows of x (rows, d) less shift, transposed: in every 16 bytes of a
   machine vector, where the machine has the shuffles. */
static void NAME(fo_turn)(REAL *b, const REAL *x, const REAL *shift, ptrdiff_t rows, ptrdiff_t d) {
    ptrdiff_t whole = 0, turned = 0;
#ifdef __SSE3__
    enum { SIDE = 16 / sizeof(REAL) };
    whole = d & ~(ptrdiff_t)(SIDE - 1), turned = rows & ~(ptrdiff_t)(WIDE - 1);
    for (ptrdiff_t r = 0; r < turned; r += WIDE) {
        const REAL *p = x + r * d;
        REAL *to = b + r;
        for (ptrdiff_t c = 0; c < whole; c += SIDE, p += SIDE, to += SIDE * FO_HEIGHT) {
            const VEC move = NAME(fo_pick)(shift + c, 0);
#define ROW(i) (NAME(fo_pick)(p + i * d, SIDE * d) - move)
#define PAIR(half, u, v) FO_SHUFFLE(unpack##half##_pd)((FO_DOUBLES)(u), (FO_DOUBLES)(v))
#define PUT(i, half, u, v) *(VEC *)(to + i * FO_HEIGHT) = (VEC)PAIR(half, u, v)
#ifdef FO_DOUBLE
            const VEC u = ROW(0), v = ROW(1);
            PUT(0, lo, u, v);
            PUT(1, hi, u, v);
#else
            const FO_SINGLES u0 = (FO_SINGLES)ROW(0), u1 = (FO_SINGLES)ROW(1);
            const FO_SINGLES u2 = (FO_SINGLES)ROW(2), u3 = (FO_SINGLES)ROW(3);
            const FO_SINGLES v0 = FO_SHUFFLE(unpacklo_ps)(u0, u1), v1 = FO_SHUFFLE(unpackhi_ps)(u0, u1);
            const FO_SINGLES v2 = FO_SHUFFLE(unpacklo_ps)(u2, u3), v3 = FO_SHUFFLE(unpackhi_ps)(u2, u3);
            PUT(0, lo, v0, v2);
            PUT(1, hi, v0, v2);
            PUT(2, lo, v1, v3);
            PUT(3, hi, v1, v3);
#endif
#undef ROW
#undef PAIR
#undef PUT
        }
    }
#endif
    for (ptrdiff_t r = 0; d == 1 && r < rows; r++) b[r] = x[r] - *shift;
    for (ptrdiff_t c = d == 1; c < d; c++)
        for (ptrdiff_t r = c < whole ? turned : 0; r < rows; r++)
            b[c * FO_HEIGHT + r] = x[r * d + c] - shift[c];
}

/* Bytes of the two blocks that fo_run needs, from a line's beginning. */
static ptrdiff_t NAME(fo_blocks)(ptrdiff_t pad) {
    return 2 * pad * FO_HEIGHT * (ptrdiff_t)sizeof(REAL);
}

/* out (pad, pad) = moments of z_i = (x_i, y_i, 1) - shift over the rows first..last-1. */
static void NAME(fo_run)(double *out, const REAL *x, const REAL *y, const REAL *s,
                         const REAL *shift, REAL *block, ptrdiff_t first, ptrdiff_t last,
                         ptrdiff_t d, ptrdiff_t k, ptrdiff_t pad) {
    REAL *a = block, *b = block + pad * FO_HEIGHT;
    memset(out, 0, (size_t)(pad * pad) * sizeof(double));
    memset(block, 0, (size_t)NAME(fo_blocks)(pad));
    for (ptrdiff_t start = first, rows; start < last; start += rows) {
        rows = last - start < FO_HEIGHT ? last - start : FO_HEIGHT;
        const ptrdiff_t n = (rows + LANES - 1) / LANES * LANES;
        const ptrdiff_t more = last - start - rows < rows ? last - start - rows : rows;
        NAME(fo_turn)(b, x + start * d, shift, rows, d);
        NAME(fo_turn)(b + d * FO_HEIGHT, y + start * k, shift + d, rows, k);
        for (ptrdiff_t r = 0; r < rows; r++) b[(d + k) * FO_HEIGHT + r] = 1;
        for (ptrdiff_t c = 0; c <= d + k; c++) {
            for (ptrdiff_t r = rows; r < n; r++) b[c * FO_HEIGHT + r] = 0;
            if (!s) continue;
            for (ptrdiff_t r = 0; r < rows; r++)
                a[c * FO_HEIGHT + r] = s[start + r] * b[c * FO_HEIGHT + r];
            for (ptrdiff_t r = rows; r < n; r++) a[c * FO_HEIGHT + r] = 0;
        }
        NAME(fo_moments)(out, s ? a : b, b, n, pad, d + k + 1, (const char *)(x + (start + rows) * d),
                         more * d * (ptrdiff_t)sizeof(REAL));
    }
}

#endif
