/* Weighted squared error of rounding a run of values to each of several grids. The lanes are the
 * candidates, so nothing is summed across lanes: every level and width gives the same bits. Sums
 * run in float and are added to a double every 256 values. */
#ifndef FO_CLIP_H
#define FO_CLIP_H
#include <stddef.h>
#include "lanes.h"

#define FO_CLIP_TOGETHER (2 * FO_WIDTH) /* two chains of additions hide their latency */
#define FO_CLIP_FLUSH 256

/* m <= FO_CLIP_TOGETHER candidates of one row */
static inline void fo_clip_few(double *error, const float *x, const float *weight, ptrdiff_t n,
                               const float *scale, const float *zero, int m, float qmin,
                               float qmax) {
    float s[FO_CLIP_TOGETHER], inv[FO_CLIP_TOGETHER], lo[FO_CLIP_TOGETHER], hi[FO_CLIP_TOGETHER];
    float part[FO_CLIP_TOGETHER];
    double total[FO_CLIP_TOGETHER] = {0};
    for (int l = 0; l < FO_CLIP_TOGETHER; l++) {
        int k = l < m ? l : m - 1;
        s[l] = scale[k];
        inv[l] = 1.0f / scale[k];
        lo[l] = qmin - zero[k];
        hi[l] = qmax - zero[k];
    }
    const fo_v s0 = fo_load(s), s1 = fo_load(s + FO_WIDTH);
    const fo_v i0 = fo_load(inv), i1 = fo_load(inv + FO_WIDTH);
    const fo_v l0 = fo_load(lo), l1 = fo_load(lo + FO_WIDTH);
    const fo_v h0 = fo_load(hi), h1 = fo_load(hi + FO_WIDTH);
    for (ptrdiff_t start = 0; start < n; start += FO_CLIP_FLUSH) {
        ptrdiff_t stop = n - start < FO_CLIP_FLUSH ? n : start + FO_CLIP_FLUSH;
        fo_v a0 = fo_all(0.0f), a1 = fo_all(0.0f);
        for (ptrdiff_t i = start; i < stop; i++) {
            fo_v v = fo_all(x[i]), w = fo_all(weight ? weight[i] : 1.0f);
            fo_v d0 = fo_max(fo_rint(fo_mul(v, i0)), l0), d1 = fo_max(fo_rint(fo_mul(v, i1)), l1);
            d0 = fo_sub(v, fo_mul(s0, fo_min(d0, h0)));
            d1 = fo_sub(v, fo_mul(s1, fo_min(d1, h1)));
            a0 = fo_add(a0, fo_mul(w, fo_mul(d0, d0)));
            a1 = fo_add(a1, fo_mul(w, fo_mul(d1, d1)));
        }
        fo_store(part, a0);
        fo_store(part + FO_WIDTH, a1);
        for (int l = 0; l < FO_CLIP_TOGETHER; l++) total[l] += part[l];
    }
    for (int l = 0; l < m; l++) error[l] = total[l];
}

static inline void fo_clip_errors(double *error, const float *x, const float *weight, ptrdiff_t n,
                                  const float *scale, const float *zero, ptrdiff_t candidates,
                                  float qmin, float qmax) {
    for (ptrdiff_t k = 0; k < candidates; k += FO_CLIP_TOGETHER) {
        ptrdiff_t m = candidates - k < FO_CLIP_TOGETHER ? candidates - k : FO_CLIP_TOGETHER;
        fo_clip_few(error + k, x, weight, n, scale + k, zero + k, (int)m, qmin, qmax);
    }
}
#endif
