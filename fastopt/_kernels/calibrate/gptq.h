/* The register tile of GPTQ's feedback; see gptq.pyx. How many sums the registers hold depends on
 * the level, so the loops over them must be unrolled: eight named sums in Cython are 20 to 30 % slower
 * with SSE (AVX2 and AVX-512: 0 to 8 %). Rows are the lanes and every sum runs over the columns
 * in order, so tiles of any width give the same bits. */
#ifndef FO_GPTQ_H
#define FO_GPTQ_H
#include <stddef.h>
#include "shared/vector.h"

#define FO_COLS 8 /* columns of a panel */
#if FO_BYTES == 64
#define FO_ROWS 32 /* rows of a tile */
#define FO_STEP 8  /* columns whose sums stay in registers */
#elif FO_BYTES == 32
#define FO_ROWS 16
#define FO_STEP 4
#else
#define FO_ROWS 16
#define FO_STEP 2
#endif
#define FO_PER_ROW (4 * FO_ROWS / FO_BYTES)

/* t[c][l] += sum over i in [first, last) of panel[i][c] * e[i][l] */
static inline void fo_feedback(float *t, const float *e, const float *panel, ptrdiff_t first,
                               ptrdiff_t last)
{
    const fo_floats *row = (const fo_floats *)e;
    for (int c0 = 0; c0 < FO_COLS; c0 += FO_STEP) {
        fo_floats acc[FO_STEP][FO_PER_ROW], *into = (fo_floats *)(t + c0 * FO_ROWS);
#pragma GCC unroll 8
        for (int c = 0; c < FO_STEP; c++)
#pragma GCC unroll 16
            for (int l = 0; l < FO_PER_ROW; l++) acc[c][l] = into[c * FO_PER_ROW + l];
        for (ptrdiff_t i = first; i < last; i++) {
            const float *a = panel + i * FO_COLS + c0;
            fo_floats r[FO_PER_ROW];
#pragma GCC unroll 16
            for (int l = 0; l < FO_PER_ROW; l++) r[l] = row[i * FO_PER_ROW + l];
#pragma GCC unroll 8
            for (int c = 0; c < FO_STEP; c++)
#pragma GCC unroll 16
                for (int l = 0; l < FO_PER_ROW; l++) acc[c][l] += a[c] * r[l];
        }
#pragma GCC unroll 8
        for (int c = 0; c < FO_STEP; c++)
#pragma GCC unroll 16
            for (int l = 0; l < FO_PER_ROW; l++) into[c * FO_PER_ROW + l] = acc[c][l];
    }
}
#endif
