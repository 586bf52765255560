/* Rounding with feedback, a tile of rows at a time; see gptq.pyx. The rows are the lanes and every
 * sum runs over the columns in order, so tiles of any width give the same bits. */
#ifndef FO_GPTQ_H
#define FO_GPTQ_H
#include "clip.h"

#define FO_COLS 8 /* columns of a panel */
#if FO_WIDTH == 16
#define FO_ROWS 32 /* rows of a tile */
#define FO_STEP 8  /* columns whose sums stay in registers */
#elif FO_WIDTH == 8
#define FO_ROWS 16
#define FO_STEP 4
#elif FO_WIDTH == 4
#define FO_ROWS 16
#define FO_STEP 2
#else
#define FO_ROWS 16
#define FO_STEP 1
#endif
#define FO_PER_ROW (FO_ROWS / FO_WIDTH)

/* t[c][l] += sum over i in [first, last) of panel[i][c] * e[i][l] */
static inline void fo_feedback(float *t, const float *e, const float *panel, ptrdiff_t first,
                               ptrdiff_t last)
{
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

/* Columns [k0, k1), of one panel: t = w + the feedback of the errors of columns [first, last). */
static inline void fo_targets(float *t, const float *w, const float *e, const float *panel,
                              ptrdiff_t first, ptrdiff_t last, ptrdiff_t k0, ptrdiff_t k1)
{
    float block[FO_COLS * FO_ROWS] = {0}, *part = block + k0 % FO_COLS * FO_ROWS;
    memcpy(part, w + k0 * FO_ROWS, (k1 - k0) * FO_ROWS * sizeof(float));
    fo_feedback(block, e, panel, first, last);
    memcpy(t + k0 * FO_ROWS, part, (k1 - k0) * FO_ROWS * sizeof(float));
}

/* Columns [k0, k1) of a tile from their targets, which e holds on entry and the errors on return;
 * code is row-major, column k at order[k], and has `rows` rows. */
static inline void fo_round_columns(int32_t *code, float *e, const float *w, const float *panel,
                                    const float *scale, const float *zero, const int64_t *order,
                                    ptrdiff_t rows, ptrdiff_t n, ptrdiff_t size, ptrdiff_t k0,
                                    ptrdiff_t k1, float qmin, float qmax)
{
    float block[FO_COLS * FO_ROWS], q[FO_ROWS];
    memcpy(block, e + k0 * FO_ROWS, (k1 - k0) * FO_ROWS * sizeof(float));
    for (ptrdiff_t k = k0; k < k1; k++) {
        float *restrict t = block + (k - k0) * FO_ROWS, *restrict error = e + k * FO_ROWS;
        const float *s = scale + order[k] / size * FO_ROWS, *z = zero + order[k] / size * FO_ROWS;
        for (ptrdiff_t i = k0; i < k; i++)
            for (int l = 0; l < FO_ROWS; l++)
                t[l] += panel[i * FO_COLS + k % FO_COLS] * e[i * FO_ROWS + l];
        for (int l = 0; l < FO_ROWS; l++) {
            float c = rintf(t[l] / s[l]) + z[l];
            c = c > qmin ? c : qmin;
            q[l] = c = c < qmax ? c : qmax;
            error[l] = w[k * FO_ROWS + l] - s[l] * (c - z[l]);
        }
        for (ptrdiff_t l = 0; l < rows; l++) code[l * n + order[k]] = (int32_t)q[l];
    }
}

/* Scale and zero point of a run of n weights or targets. */
static inline void fo_choose(float *scale, float *zero, const float *x, const float *cost,
                             ptrdiff_t n, const fo_clip_rule *rule)
{
    double low = 0, high = 0;
    for (ptrdiff_t k = 0; k < n; k++) {
        low = x[k] < low ? x[k] : low;
        high = x[k] > high ? x[k] : high;
    }
    fo_clip_range(&low, &high, x, cost, n, rule);
    fo_clip_scale(scale, zero, (float)low, (float)high, rule);
}

/* Room that a tile needs, in floats. */
static inline ptrdiff_t fo_gptq_room(ptrdiff_t n, ptrdiff_t groups)
{
    return 2 * (n + groups) * FO_ROWS + n;
}

/* A tile: `rows` rows of code, scale, zero and w. Scales come from the weights if `early`, else
 * from the targets when their group's turn comes. */
static inline void fo_gptq_tile(int32_t *code, float *scale, float *zero, const float *w,
                                const float *panels, const int64_t *order, const float *cost,
                                ptrdiff_t rows, ptrdiff_t n, ptrdiff_t size, int early,
                                float *room, const fo_clip_rule *rule)
{
    const ptrdiff_t groups = (n + size - 1) / size, step = early ? n : size;
    float *weight = room, *e = weight + n * FO_ROWS, *s = e + n * FO_ROWS;
    float *z = s + groups * FO_ROWS, *row = z + groups * FO_ROWS;
    for (ptrdiff_t k = 0; k < n; k++)
        for (ptrdiff_t l = 0; l < FO_ROWS; l++)
            weight[k * FO_ROWS + l] = l < rows ? w[l * n + order[k]] : 0;
    for (ptrdiff_t g = 0; g < groups; g++)
        for (ptrdiff_t l = 0; l < FO_ROWS; l++) {
            ptrdiff_t at = g * FO_ROWS + l, k = g * size;
            s[at] = 1, z[at] = 0;
            if (early && l < rows)
                fo_choose(s + at, z + at, w + l * n + k, cost + k, n - k < size ? n - k : size, rule);
        }
    for (ptrdiff_t k0 = 0, k1; k0 < n; k0 = k1) {
        k1 = n - k0 < step ? n : k0 + step;
        for (int turn = 0; turn < 2; turn++) {
            for (ptrdiff_t a = k0, b; a < k1; a = b) { /* as far as a panel goes */
                const float *panel = panels + a / FO_COLS * n * FO_COLS;
                b = (a / FO_COLS + 1) * FO_COLS < k1 ? (a / FO_COLS + 1) * FO_COLS : k1;
                if (turn == 0) {
                    fo_targets(e, weight, e, panel, 0, k0, a, b);
                } else {
                    fo_targets(e, e, e, panel, k0, a, a, b);
                    fo_round_columns(code, e, weight, panel, s, z, order, rows, n, size, a, b,
                                     rule->qmin, rule->qmax);
                }
            }
            for (ptrdiff_t l = 0, at = k0 / size * FO_ROWS; !early && turn == 0 && l < rows; l++) {
                for (ptrdiff_t k = k0; k < k1; k++) row[k - k0] = e[k * FO_ROWS + l];
                fo_choose(s + at + l, z + at + l, row, cost + k0, k1 - k0, rule);
            }
        }
    }
    for (ptrdiff_t g = 0; g < groups; g++)
        for (ptrdiff_t l = 0; l < rows; l++) {
            scale[l * groups + g] = s[g * FO_ROWS + l];
            zero[l * groups + g] = z[g * FO_ROWS + l];
        }
}
#endif
