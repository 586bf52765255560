/* The part of a row's range that rounds it with the least weighted squared error; see clip.pyx.
 * The lanes are the candidates, so nothing is summed across lanes: every level and width gives the
 * same bits. Sums run in float, in units of the scale, and go to a double every 256 values. */
#ifndef FO_CLIP_H
#define FO_CLIP_H
#include <float.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include "lanes.h"

#define FO_TRIED (2 * FO_WIDTH) /* candidates together: two chains hide the additions' latency */
#define FO_FLUSH 256

typedef struct {
    const double *wide, *near_; /* parts of the range that are tried: of both ends, of one */
    ptrdiff_t n_wide, n_near;
    int symmetric;
    float steps;      /* scale = range / steps; of max|x| if symmetric */
    float zero;       /* the zero point if symmetric */
    float qmin, qmax; /* codes in use */
} fo_clip_rule;

/* 2^-e with max|x| / 2^e in [1, 2), within what float32 can express. */
static inline float fo_clip_unit(const float *x, ptrdiff_t n)
{
    int32_t top = 0;
    float unit;
    for (ptrdiff_t i = 0; i < n; i++) {
        int32_t bits;
        memcpy(&bits, x + i, 4);
        bits &= 0x7fffffff;
        top = bits > top ? bits : top;
    }
    top = 254 - (top >> 23);
    top = (top < 1 ? 1 : top) << 23;
    memcpy(&unit, &top, 4);
    return unit;
}

/* Scale, 1 / scale and the codes' ends (about the zero point) of candidates [k, k + FO_TRIED). */
static inline void fo_clip_grid(float *scale, float *inverse, float *bottom, float *top,
                                const double *ratio, ptrdiff_t count, ptrdiff_t k, float low,
                                float high, int ends, const fo_clip_rule *r)
{
    for (int l = 0; l < FO_TRIED; l++) {
        ptrdiff_t at = k + l < count ? k + l : count - 1;
        float part = (float)ratio[at], a = ends & 1 ? low * part : low;
        float b = ends & 2 ? high * part : high, s, z;
        s = (r->symmetric ? b : b - a) / r->steps;
        s = s > 0 ? s : 1;
        inverse[l] = 1 / s;
        z = rintf(r->qmin - a * inverse[l]);
        z = z > r->qmin ? z : r->qmin;
        z = r->symmetric ? r->zero : z < r->qmax ? z : r->qmax;
        scale[l] = s;
        bottom[l] = r->qmin - z;
        top[l] = r->qmax - z;
    }
}

/* The first candidate with the least error: its part of the range. */
static __attribute__((noinline)) double fo_clip_part(const float *x, const float *weight, ptrdiff_t n,
                                  const double *ratio, ptrdiff_t count, float unit, float low,
                                  float high, int ends, const fo_clip_rule *r)
{
    float s[FO_TRIED], inv[FO_TRIED], bottom[FO_TRIED], top[FO_TRIED], sum[FO_TRIED];
    float value[FO_FLUSH];
    double best = INFINITY, chosen = 1;
    /* v + 1.5 * 2^23 - 1.5 * 2^23 rounds to even; clamped in between, where any v is in order */
    const fo_v big = fo_all(12582912.0f);
    for (ptrdiff_t k = 0; k < count; k += FO_TRIED) {
        double total[FO_TRIED] = {0};
        fo_clip_grid(s, inv, bottom, top, ratio, count, k, low, high, ends, r);
        const fo_v i0 = fo_load(inv), i1 = fo_load(inv + FO_WIDTH);
        const fo_v l0 = fo_add(fo_load(bottom), big), l1 = fo_add(fo_load(bottom + FO_WIDTH), big);
        const fo_v h0 = fo_add(fo_load(top), big), h1 = fo_add(fo_load(top + FO_WIDTH), big);
        for (ptrdiff_t start = 0; start < n; start += FO_FLUSH) {
            ptrdiff_t m = n - start < FO_FLUSH ? n - start : FO_FLUSH;
            fo_v a0 = fo_all(0.0f), a1 = fo_all(0.0f);
            for (ptrdiff_t i = 0; i < m; i++) value[i] = x[start + i] * unit;
            for (ptrdiff_t i = 0; i < m; i++) {
                fo_v v = fo_all(value[i]), w = fo_all(weight ? weight[start + i] : 1.0f);
                fo_v u0 = fo_mul(v, i0), u1 = fo_mul(v, i1);
                fo_v q0 = fo_min(fo_max(fo_add(u0, big), l0), h0);
                fo_v q1 = fo_min(fo_max(fo_add(u1, big), l1), h1);
                u0 = fo_sub(u0, fo_sub(q0, big));
                u1 = fo_sub(u1, fo_sub(q1, big));
                a0 = fo_add(a0, fo_mul(w, fo_mul(u0, u0)));
                a1 = fo_add(a1, fo_mul(w, fo_mul(u1, u1)));
            }
            fo_store(sum, a0);
            fo_store(sum + FO_WIDTH, a1);
            for (int l = 0; l < FO_TRIED; l++) total[l] += sum[l];
        }
        for (int l = 0; l < FO_TRIED; l++) total[l] *= (double)s[l] * s[l];
        for (int l = 0; l < FO_TRIED && k + l < count; l++)
            if (total[l] < best) best = total[l], chosen = ratio[k + l];
    }
    return chosen;
}

/* low, high: the full range on entry, the best one on return. */
static __attribute__((noinline)) void fo_clip_range(double *low, double *high, const float *x, const float *weight,
                                 ptrdiff_t n, const fo_clip_rule *r)
{
    const float unit = fo_clip_unit(x, n);
    double lo = *low, hi = *high;
    if (r->symmetric) {
        hi = -lo > hi ? -lo : hi;
        lo = -hi;
    } else {
        lo = lo < 0 ? lo : 0;
        hi = hi > 0 ? hi : 0;
    }
    for (int ends = 3; ends > 0; ends--) { /* both together, the high end, the low end */
        const double part = fo_clip_part(
            x, weight, n, ends == 3 ? r->wide : r->near_, ends == 3 ? r->n_wide : r->n_near, unit,
            (float)(lo * unit), (float)(hi * unit), ends, r);
        if (ends & 1) lo *= part;
        if (ends & 2) hi *= part;
        if (r->symmetric) break;
    }
    *low = lo;
    *high = hi;
}

/* Scale and zero point of codes for [low, high]: those of quantization.qparams_from_range. */
static inline void fo_clip_scale(float *scale, float *zero, float low, float high,
                                 const fo_clip_rule *r)
{
    const double lo = low < 0 ? low : 0, hi = high > 0 ? high : 0, steps = r->steps;
    double s = r->symmetric ? (-lo > hi ? -lo : hi) / steps : hi / steps - lo / steps, z;
    double below = rint(-lo / (s == 0 ? 1 : s)), most = steps - below > below ? steps - below : below;
    double cap = nextafterf((float)((double)FLT_MAX / (r->symmetric ? steps : most)), 0);
    s = s == 0 ? 1 : s < FLT_MIN ? FLT_MIN : s < cap ? s : cap;
    *scale = (float)s;
    z = rint(r->qmin - lo / *scale);
    z = z > r->qmin ? z : r->qmin;
    *zero = r->symmetric ? r->zero : z < r->qmax ? (float)z : r->qmax;
}
#endif
