/* The inner product of the feedback: 8 columns x 16 rows at a time. Every sum runs over i in
 * order, so tiles of any width give the same bits. */
#ifndef FO_GPTQ_H
#define FO_GPTQ_H
#include <math.h>
#include <stdint.h>
#include <stddef.h>
#include "lanes.h"

#define FO_ROWS 16  /* rows of a tile: the vector lanes */
#define FO_COLS 8   /* columns of a panel */
#define FO_PER_ROW (FO_ROWS / FO_WIDTH)
#if FO_WIDTH == 16
#define FO_STEP 8 /* columns whose sums stay in registers: eight of them, two chains of four */
#elif FO_WIDTH == 8
#define FO_STEP 4
#elif FO_WIDTH == 4
#define FO_STEP 2
#else
#define FO_STEP 1
#endif

/* t[c][l] += sum over i in [first, last) of panel[i][c] * e[i][l] */
static inline void fo_feedback(float *t, const float *e, const float *panel, ptrdiff_t first,
                               ptrdiff_t last) {
    for (int c0 = 0; c0 < FO_COLS; c0 += FO_STEP) {
        fo_v acc[FO_STEP][FO_PER_ROW];
        float *into = t + c0 * FO_ROWS;
#pragma GCC unroll 8
        for (int c = 0; c < FO_STEP; c++)
#pragma GCC unroll 16
            for (int l = 0; l < FO_PER_ROW; l++)
                acc[c][l] = fo_load(into + c * FO_ROWS + l * FO_WIDTH);
        for (ptrdiff_t i = first; i < last; i++) {
            const float *row = e + i * FO_ROWS, *a = panel + i * FO_COLS + c0;
            fo_v r[FO_PER_ROW];
#pragma GCC unroll 16
            for (int l = 0; l < FO_PER_ROW; l++) r[l] = fo_load(row + l * FO_WIDTH);
#pragma GCC unroll 8
            for (int c = 0; c < FO_STEP; c++) {
                fo_v b = fo_all(a[c]);
#pragma GCC unroll 16
                for (int l = 0; l < FO_PER_ROW; l++)
                    acc[c][l] = fo_add(acc[c][l], fo_mul(b, r[l]));
            }
        }
#pragma GCC unroll 8
        for (int c = 0; c < FO_STEP; c++)
#pragma GCC unroll 16
            for (int l = 0; l < FO_PER_ROW; l++)
                fo_store(into + c * FO_ROWS + l * FO_WIDTH, acc[c][l]);
    }
}

/* One column of a tile: code = clamp(rint(t / s) + z), e = w - s * (code - z). */
static inline void fo_round_column(int32_t *__restrict code, float *__restrict e,
                                   const float *__restrict t, const float *__restrict w,
                                   const float *__restrict scale, const float *__restrict zero,
                                   float qmin, float qmax) {
    for (int l = 0; l < FO_ROWS; l++) {
        float q = rintf(t[l] / scale[l]) + zero[l];
        q = q > qmin ? q : qmin;
        q = q < qmax ? q : qmax;
        code[l] = (int32_t)q;
        e[l] = w[l] - scale[l] * (q - zero[l]);
    }
}

/* Columns [k0, k1) of one tile of 16 rows; t holds their targets as of column k0. */
static inline void fo_round_tile(int32_t *code, float *e, float *t, const float *w,
                                 const float *panels, const float *scale, const float *zero,
                                 const int64_t *group, ptrdiff_t n, ptrdiff_t k0, ptrdiff_t k1,
                                 float qmin, float qmax) {
    for (ptrdiff_t p = k0 / FO_COLS; p * FO_COLS < k1; p++) {
        const float *panel = panels + p * n * FO_COLS;
        ptrdiff_t start = p * FO_COLS > k0 ? p * FO_COLS : k0;
        ptrdiff_t stop = (p + 1) * FO_COLS < k1 ? (p + 1) * FO_COLS : k1;
        float block[FO_COLS * FO_ROWS] = {0};
        for (ptrdiff_t k = start; k < stop; k++)
            for (int l = 0; l < FO_ROWS; l++)
                block[(k - p * FO_COLS) * FO_ROWS + l] = t[k * FO_ROWS + l];
        fo_feedback(block, e, panel, k0, start);
        for (ptrdiff_t k = start; k < stop; k++) {
            float *now = block + (k - p * FO_COLS) * FO_ROWS;
            for (ptrdiff_t i = start; i < k; i++)
                for (int l = 0; l < FO_ROWS; l++)
                    now[l] += panel[i * FO_COLS + k - p * FO_COLS] * e[i * FO_ROWS + l];
            fo_round_column(code + k * FO_ROWS, e + k * FO_ROWS, now, w + k * FO_ROWS,
                            scale + group[k] * FO_ROWS, zero + group[k] * FO_ROWS, qmin, qmax);
            for (int l = 0; l < FO_ROWS; l++) t[k * FO_ROWS + l] = now[l];
        }
    }
}

/* Targets of columns [k0, k1) of one tile from the errors of all columns before k0. */
static inline void fo_target_tile(float *t, const float *e, const float *w, const float *panels,
                                  ptrdiff_t n, ptrdiff_t k0, ptrdiff_t k1) {
    for (ptrdiff_t p = k0 / FO_COLS; p * FO_COLS < k1; p++) {
        ptrdiff_t start = p * FO_COLS > k0 ? p * FO_COLS : k0;
        ptrdiff_t stop = (p + 1) * FO_COLS < k1 ? (p + 1) * FO_COLS : k1;
        float block[FO_COLS * FO_ROWS] = {0};
        for (ptrdiff_t k = start; k < stop; k++)
            for (int l = 0; l < FO_ROWS; l++)
                block[(k - p * FO_COLS) * FO_ROWS + l] = w[k * FO_ROWS + l];
        fo_feedback(block, e, panels + p * n * FO_COLS, 0, k0);
        for (ptrdiff_t k = start; k < stop; k++)
            for (int l = 0; l < FO_ROWS; l++)
                t[k * FO_ROWS + l] = block[(k - p * FO_COLS) * FO_ROWS + l];
    }
}
#endif
