/* Weighted squared error of rounding a run of values to a grid. 16 float lanes, flushed to double
 * lanes every 512 values, combined in order: the same bits on every level. */
#ifndef FO_CLIP_H
#define FO_CLIP_H
#include <math.h>
#include <stddef.h>

#define FO_CLIP_LANES 16
#define FO_CLIP_FLUSH 512

/* x - scale * (clamp(rint(x * inv) + zero, qmin, qmax) - zero), all limits already less zero */
static inline float fo_residue(float x, float scale, float inv, float low, float high) {
    float q = rintf(x * inv);
    q = q > low ? q : low;
    q = q < high ? q : high;
    return x - scale * q;
}

static inline double fo_clip_error(const float *__restrict x, const float *__restrict weight,
                                   ptrdiff_t n, float scale, float low, float high) {
    double total[FO_CLIP_LANES] = {0};
    float inv = 1.0f / scale;
    for (ptrdiff_t start = 0; start < n; start += FO_CLIP_FLUSH) {
        ptrdiff_t m = n - start < FO_CLIP_FLUSH ? n - start : FO_CLIP_FLUSH, i = 0;
        const float *v = x + start, *w = weight + start;
        float lane[FO_CLIP_LANES] = {0};
        if (weight) {
            for (; i + FO_CLIP_LANES <= m; i += FO_CLIP_LANES)
                for (int l = 0; l < FO_CLIP_LANES; l++) {
                    float d = fo_residue(v[i + l], scale, inv, low, high);
                    lane[l] += w[i + l] * (d * d);
                }
            for (int l = 0; i < m; i++, l++) {
                float d = fo_residue(v[i], scale, inv, low, high);
                lane[l] += w[i] * (d * d);
            }
        } else {
            for (; i + FO_CLIP_LANES <= m; i += FO_CLIP_LANES)
                for (int l = 0; l < FO_CLIP_LANES; l++) {
                    float d = fo_residue(v[i + l], scale, inv, low, high);
                    lane[l] += d * d;
                }
            for (int l = 0; i < m; i++, l++) {
                float d = fo_residue(v[i], scale, inv, low, high);
                lane[l] += d * d;
            }
        }
        for (int l = 0; l < FO_CLIP_LANES; l++) total[l] += lane[l];
    }
    double sum = 0;
    for (int l = 0; l < FO_CLIP_LANES; l++) sum += total[l];
    return sum;
}
#endif
