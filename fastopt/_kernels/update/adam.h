/* Adam on narrow state without a stop in between: codes -> moments -> step -> codes, in vectors.
   Reads and writes 16 bytes a float32 weight with 8-bit state and 20 with bfloat16, where full
   state needs 28; benchmarks/bench_update.py has a stream of the same bytes beside it. */
#ifndef FO_UPDATE_ADAM
#define FO_UPDATE_ADAM
#include "bytes.h"

#define FO_AHEAD 512 /* elements: a page of 4 KiB ends the processor's own prefetching */

typedef struct {
    float scale, decay, left, keep_m, take_m, keep_v, take_v, rc2, eps, step;
} fo_adam;

/* From the rule's scalars (rules.pxd, adam). Without coupled decay the gradient's scale
   goes into the moments' factors; the second moment takes the square of take_v g. */
static inline fo_adam fo_adam_of(const double *h) {
    double scale = h[1] != 0 ? 1.0 : h[0];
    fo_adam a = {(float)h[0], (float)h[1], (float)h[2],
                 (float)(1.0 - h[3]), (float)(h[3] * scale), (float)h[4],
                 (float)(sqrt(h[5]) * scale), (float)h[6], (float)h[7], (float)h[8]};
    return a;
}

FO_LANE void fo_ahead(const float *p, const float *g, ptrdiff_t i) {
    if (i % 16 == 0) {
        __builtin_prefetch(p + i + FO_AHEAD, 1);
        __builtin_prefetch(g + i + FO_AHEAD);
    }
}

/* m and v come in decayed. */
FO_LANE void fo_adam_lane(float *p, const float *g, fo_f *m, fo_f *v, const fo_adam *h) {
    fo_f w = fo_load(p), gi = fo_load(g);
    if (h->decay != 0)
        gi = h->scale * gi + h->decay * w;
    *m += h->take_m * gi;
    gi *= h->take_v;
    *v += gi * gi;
    fo_store(p, h->left * w + (h->step * *m) / (fo_root(*v) * h->rc2 + h->eps));
}

typedef struct { /* a block between its two passes */
    float m[FO_BLOCK], v[FO_BLOCK];
} fo_moments;

FO_LANE void fo_bytes_step(fo_moments *t, ptrdiff_t i, float *p, const float *g, const int8_t *cm,
                           const uint8_t *cv, float sm, float sv, const fo_adam *h, fo_u *tops) {
    fo_ahead(p, g, i);
    if (i % 64 == 0) {
        __builtin_prefetch(cm + i + FO_AHEAD, 1);
        __builtin_prefetch(cv + i + FO_AHEAD, 1);
    }
    fo_f m = fo_decoded_signed(cm + i, sm), v = fo_decoded_unsigned(cv + i, sv);
    fo_adam_lane(p + i, g + i, &m, &v, h);
    fo_store(t->m + i, m);
    fo_store(t->v + i, v);
    tops[0] = fo_larger(tops[0], (fo_u)m & 0x7fffffffu);
    tops[1] = fo_larger(tops[1], (fo_u)v);
}

FO_LANE void fo_bytes_encode(const fo_moments *t, ptrdiff_t i, int8_t *cm, uint8_t *cv,
                             float inverse_m, float inverse_v, fo_u *noise) {
    fo_encode_signed(cm + i, fo_load(t->m + i), inverse_m, noise[0]);
    fo_encode_unsigned(cv + i, fo_load(t->v + i), inverse_v, noise[1]);
    noise[0] += FO_W * FO_GOLDEN;
    noise[1] += FO_W * FO_GOLDEN;
}

/* n elements from the beginning of block `first` on. A block's codes need its largest moment, so
   each is encoded while the next one takes its step: their instructions fill each other's gaps. */
static __attribute__((noinline)) void fo_adam_bytes(
    float *p, const float *g, int8_t *cm, uint8_t *cv, float *sm, float *sv, ptrdiff_t n,
    const double *scalars, uint64_t key, uint64_t turn, uint64_t first) {
    fo_moments both[2];
    const fo_adam h = fo_adam_of(scalars);
    ptrdiff_t blocks = n / FO_BLOCK, rest = n % FO_BLOCK;
    fo_u tops[2], noise[2];
    for (ptrdiff_t b = 0; b <= blocks && blocks > 0; b++) {
        fo_moments *t = &both[b & 1], *last = &both[~b & 1];
        float s = 0.0f, r = 0.0f, inverse_m = 0.0f, inverse_v = 0.0f;
        if (b > 0) {
            sm[b - 1] = fo_block_scale(tops[0]);
            sv[b - 1] = fo_block_scale(tops[1]);
            inverse_m = fo_inverse(sm[b - 1]);
            inverse_v = fo_inverse(sv[b - 1]);
            noise[0] = fo_lattice(fo_phase(key, turn, first + (uint64_t)b - 1, 0, 1));
            noise[1] = fo_lattice(fo_phase(key, turn, first + (uint64_t)b - 1, 1, 0));
        }
        if (b < blocks) {
            s = fo_unit(sm[b]) * h.keep_m;
            r = fo_unit(sv[b]) * h.keep_v;
            tops[0] = tops[1] = fo_all(0);
        }
        if (b == 0)
            for (ptrdiff_t i = 0; i < FO_BLOCK; i += FO_W)
                fo_bytes_step(t, i, p, g, cm, cv, s, r, &h, tops);
        else if (b < blocks)
            for (ptrdiff_t i = 0; i < FO_BLOCK; i += FO_W) {
                fo_bytes_step(t, i, p, g, cm, cv, s, r, &h, tops);
                fo_bytes_encode(last, i, cm - FO_BLOCK, cv - FO_BLOCK, inverse_m, inverse_v,
                                noise);
            }
        else
            for (ptrdiff_t i = 0; i < FO_BLOCK; i += FO_W)
                fo_bytes_encode(last, i, cm - FO_BLOCK, cv - FO_BLOCK, inverse_m, inverse_v,
                                noise);
        if (b < blocks)
            p += FO_BLOCK, g += FO_BLOCK, cm += FO_BLOCK, cv += FO_BLOCK;
    }
    if (rest > 0) { /* the last block of an array, padded with zeros, which need no step */
        float w[FO_BLOCK] = {0}, grad[FO_BLOCK] = {0};
        uint8_t code_m[FO_BLOCK] = {0}, code_v[FO_BLOCK] = {0};
        memcpy(w, p, (size_t)rest * 4);
        memcpy(grad, g, (size_t)rest * 4);
        memcpy(code_m, cm, (size_t)rest);
        memcpy(code_v, cv, (size_t)rest);
        fo_adam_bytes(w, grad, (int8_t *)code_m, code_v, sm + blocks, sv + blocks, FO_BLOCK,
                      scalars, key, turn, first + (uint64_t)blocks);
        memcpy(p, w, (size_t)rest * 4);
        memcpy(cm, code_m, (size_t)rest);
        memcpy(cv, code_v, (size_t)rest);
    }
}

/* The same on bfloat16: m to nearest, v by noise (bytes.h says how). */
static __attribute__((noinline)) void fo_adam_words(
    float *p, const float *g, uint16_t *wm, uint16_t *wv, ptrdiff_t n, const double *scalars,
    uint64_t key, uint64_t turn, uint64_t first) {
    const fo_adam h = fo_adam_of(scalars);
    ptrdiff_t rest = n % FO_W, whole = n - rest;
    fo_u noise = fo_all(0);
    for (ptrdiff_t i = 0; i < whole; i += FO_W, noise += FO_W * FO_GOLDEN) {
        if (i % FO_BLOCK == 0)
            noise = fo_lattice(fo_phase(key, turn, first + (uint64_t)i / FO_BLOCK, 1, 0));
        fo_ahead(p, g, i);
        if (i % 32 == 0) {
            __builtin_prefetch(wm + i + FO_AHEAD, 1);
            __builtin_prefetch(wv + i + FO_AHEAD, 1);
        }
        fo_f m = (fo_f)(fo_of_words(wm + i) << 16) * h.keep_m;
        fo_f v = (fo_f)(fo_of_words(wv + i) << 16) * h.keep_v;
        fo_adam_lane(p + i, g + i, &m, &v, &h);
        fo_to_words(wm + i, fo_rounded(m, ((fo_u)m >> 16 & 1) + 0x7fffu));
        fo_to_words(wv + i, fo_rounded(v, noise & 0xffffu));
    }
    if (rest > 0) { /* less than a vector: its block up to here, again as a whole, elsewhere */
        ptrdiff_t from = whole - whole % FO_BLOCK, m = n - from;
        float w[FO_BLOCK] = {0}, grad[FO_BLOCK] = {0};
        uint16_t word_m[FO_BLOCK] = {0}, word_v[FO_BLOCK] = {0};
        memcpy(w + m - rest, p + whole, (size_t)rest * 4);
        memcpy(grad + m - rest, g + whole, (size_t)rest * 4);
        memcpy(word_m + m - rest, wm + whole, (size_t)rest * 2);
        memcpy(word_v + m - rest, wv + whole, (size_t)rest * 2);
        fo_adam_words(w, grad, word_m, word_v, FO_BLOCK, scalars, key, turn,
                      first + (uint64_t)(from / FO_BLOCK));
        memcpy(p + whole, w + m - rest, (size_t)rest * 4);
        memcpy(wm + whole, word_m + m - rest, (size_t)rest * 2);
        memcpy(wv + whole, word_v + m - rest, (size_t)rest * 2);
    }
}
#endif
