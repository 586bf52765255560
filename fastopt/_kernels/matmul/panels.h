/* Packing for the micro-kernels of dot.h. Signed A and unsigned B are moved by 128 (one xor
 * a byte) so that every product is uint8 x int8; zero points absorb the move. k is padded with
 * zeros to a multiple of 8. */
#ifndef FO_PACK_INT8
#define FO_PACK_INT8
#include "dot.h"

/* Row r of a panel of mr rows: k 8-bit codes, xor flip. */
static inline void fo_pack_row(int mr, int r, ptrdiff_t k, ptrdiff_t kp, int wide, uint8_t flip,
                               const uint8_t *__restrict x, uint8_t *__restrict out) {
    const uint32_t flip4 = flip * 0x01010101u;
    for (ptrdiff_t s = 0; s < kp / 4; s++) {
        uint32_t q = 0;
        if (4 * s + 4 <= k) {
            memcpy(&q, x + 4 * s, 4);
            q ^= flip4;
        } else {
            for (ptrdiff_t i = 4 * s; i < k; i++)
                q |= (uint32_t)(uint8_t)(x[i] ^ flip) << (8 * (i - 4 * s));
        }
        if (wide) {
            const uint32_t pair[2] = {q & 0x00ff00ffu, (q >> 8) & 0x00ff00ffu};
            memcpy(out + (s * mr + r) * 8, pair, 8);
        } else {
            memcpy(out + (s * mr + r) * 4, &q, 4);
        }
    }
}

static inline int32_t fo_row_sum(ptrdiff_t k, uint8_t flip, const uint8_t *__restrict x) {
    uint32_t sum = 0;
    for (ptrdiff_t i = 0; i < k; i++) sum += (uint8_t)(x[i] ^ flip);
    return (int32_t)sum;
}

/* int16 codes in the order k0 k2 k1 k3. */
static inline void fo_pack_row16(int mr, int r, ptrdiff_t k, ptrdiff_t kp,
                                 const int16_t *__restrict x, uint8_t *__restrict out) {
    for (ptrdiff_t s = 0; s < kp / 4; s++) {
        int16_t q[4] = {0, 0, 0, 0};
        for (ptrdiff_t i = 4 * s; i < 4 * s + 4 && i < k; i++) q[i - 4 * s] = x[i];
        const int16_t pair[4] = {q[0], q[2], q[1], q[3]};
        memcpy(out + (s * mr + r) * 8, pair, 8);
    }
}

/* Quads s0 .. s1 of cols columns (of a panel of width columns) of B (K, N), row-major. */
static inline void fo_pack_kn(ptrdiff_t s0, ptrdiff_t s1, int cols, int width, ptrdiff_t k,
                              ptrdiff_t stride, uint8_t flip, const uint8_t *__restrict b,
                              uint8_t *__restrict out) {
    for (ptrdiff_t s = s0; s < s1; s++, out += 4 * width) {
        int n = 0;
#if defined(__SSE4_1__)
        if (4 * s + 4 <= k) {
            const uint8_t *p = b + 4 * s * stride;
            const __m128i f = _mm_set1_epi8((char)flip);
            for (; n + 8 <= cols; n += 8, p += 8) {
                __m128i lo = _mm_unpacklo_epi8(_mm_loadl_epi64((const __m128i *)p),
                                               _mm_loadl_epi64((const __m128i *)(p + stride)));
                __m128i hi = _mm_unpacklo_epi8(_mm_loadl_epi64((const __m128i *)(p + 2 * stride)),
                                               _mm_loadl_epi64((const __m128i *)(p + 3 * stride)));
                lo = _mm_xor_si128(lo, f);
                hi = _mm_xor_si128(hi, f);
                _mm_storeu_si128((__m128i *)(out + 4 * n), _mm_unpacklo_epi16(lo, hi));
                _mm_storeu_si128((__m128i *)(out + 4 * n + 16), _mm_unpackhi_epi16(lo, hi));
            }
        }
#endif
        for (; n < width; n++)
            for (int i = 0; i < 4; i++)
                out[4 * n + i] =
                    n < cols && 4 * s + i < k ? b[(4 * s + i) * stride + n] ^ flip : 0;
    }
}

/* The same of a B that lies (N, K): each column is a contiguous row. */
static inline void fo_pack_nk(ptrdiff_t s0, ptrdiff_t s1, int cols, int width, ptrdiff_t k,
                              ptrdiff_t stride, uint8_t flip, const uint8_t *__restrict b,
                              uint8_t *__restrict out) {
    const uint32_t flip4 = flip * 0x01010101u;
    for (ptrdiff_t t0 = s0; t0 < s1; t0 += 16) { /* a cache line of each row at a time */
        const ptrdiff_t t1 = t0 + 16 < s1 ? t0 + 16 : s1;
        for (int n = 0; n < width; n++)
            for (ptrdiff_t s = t0; s < t1; s++) {
                uint32_t q = 0;
                const uint8_t *p = b + n * stride + 4 * s;
                if (n < cols && 4 * s + 4 <= k) {
                    memcpy(&q, p, 4);
                    q ^= flip4;
                } else if (n < cols) {
                    for (ptrdiff_t i = 0; i < k - 4 * s; i++)
                        q |= (uint32_t)(uint8_t)(p[i] ^ flip) << (8 * i);
                }
                memcpy(out + (s - s0) * 4 * width + 4 * n, &q, 4);
            }
    }
}

/* sums[n] (+)= sum over the quads of a packed panel. */
static inline void fo_column_sums(ptrdiff_t steps, int nv, const uint8_t *b, int32_t *sums,
                                  int first) {
    const fo_vec one = fo_set32(0x01010101);
    for (int v = 0; v < nv; v++) {
        fo_vec acc = first ? fo_zero() : fo_load(sums + v * FO_LANES);
        for (ptrdiff_t s = 0; s < steps; s++)
            acc = fo_dot8(acc, one, fo_load(b + (s * nv + v) * FO_VB));
        fo_store(sums + v * FO_LANES, acc);
    }
}

/* 1 if all codes are in -64..63: then 255 * two of them fit in int16. */
static inline int fo_is_narrow(ptrdiff_t bytes, const uint8_t *b) {
    uint8_t bad = 0;
    for (ptrdiff_t i = 0; i < bytes; i++) bad |= (uint8_t)(b[i] + 64) & 0x80;
    return bad == 0;
}

/* Two quads of codes in -8..7 share a byte: the first low, both + 8. steps (even) counts quads. */
static inline void fo_pack_nibbles(ptrdiff_t steps, int width, const uint8_t *__restrict b,
                                   uint8_t *__restrict out) {
    for (ptrdiff_t s = 0; s < steps; s += 2, b += 8 * width, out += 4 * width)
        for (int i = 0; i < 4 * width; i++)
            out[i] = (uint8_t)(((b[i] + 8) & 15) | ((b[i + 4 * width] + 8) & 15) << 4);
}

static inline void fo_unpack_nibbles(ptrdiff_t steps, int nv, const uint8_t *__restrict b,
                                     uint8_t *__restrict out) {
    for (ptrdiff_t s = 0; s < steps; s += 2, b += nv * FO_VB, out += 2 * nv * FO_VB)
        for (int v = 0; v < nv; v++) {
            const fo_vec x = fo_load(b + v * FO_VB);
            fo_store(out + v * FO_VB, fo_low4(x));
            fo_store(out + (nv + v) * FO_VB, fo_high4(x));
        }
}

/* Back from a panel to rows of (N, K). */
static inline void fo_unpack_nk(ptrdiff_t s0, ptrdiff_t s1, int cols, int width, ptrdiff_t k,
                                ptrdiff_t stride, const uint8_t *__restrict b,
                                uint8_t *__restrict out) {
    for (ptrdiff_t s = s0; s < s1; s++)
        for (int n = 0; n < cols; n++)
            for (int i = 0; i < 4 && 4 * s + i < k; i++)
                out[n * stride + 4 * s + i] = b[(s - s0) * 4 * width + 4 * n + i];
}
#endif
