/* Scores of rows of codes against many queries: exact sums of products of 8 bits, or minus the
 * number of bits that differ.
 *
 * Rows are first prepared in L1, one way for each kind of code, so that one pair of loops serves
 * all of them: elements of FO_ELEM bytes as fo_dot8 (uint8 x int8) or fo_dot16 wants them, or for
 * bits a nibble a byte. A tile is FO_TR rows x FO_NQ queries with the queries in the lanes (panel:
 * [word][FO_NQ] of 4 bytes), the word of a row broadcast, so nothing is added across lanes and a
 * load of a row serves all queries. A line is one row and one query along the lanes. */
#ifndef FO_TOPK_H
#define FO_TOPK_H
#include "dot.h"

enum { FO_SIGNED, FO_UNSIGNED, FO_NIBBLES, FO_BITS }; /* codes: int8, uint8, 4 bits, 1 bit */

#if defined(__AVX512VNNI__)
#define FO_TR 8
#define FO_ELEM 1
#define fo_dot fo_dot8
#define fo_xor(a, b) _mm512_xor_si512(a, b)
#define fo_add8(a, b) _mm512_add_epi8(a, b)
#define fo_look(table, i) _mm512_shuffle_epi8(table, i)
#define fo_sum(x) _mm512_reduce_add_epi32(x)
#else
#define FO_TR 4
#define FO_ELEM 2
#define fo_dot fo_dot16
static inline int32_t fo_sum(fo_vec x) {
    int32_t lane[FO_LANES], sum = 0;
    fo_store(lane, x);
    for (int i = 0; i < FO_LANES; i++) sum += lane[i];
    return sum;
}
#if defined(__AVX2__)
#define fo_xor(a, b) _mm256_xor_si256(a, b)
#define fo_add8(a, b) _mm256_add_epi8(a, b)
#define fo_look(table, i) _mm256_shuffle_epi8(table, i)
#elif defined(__SSE4_1__)
#define fo_xor(a, b) _mm_xor_si128(a, b)
#define fo_add8(a, b) _mm_add_epi8(a, b)
#define fo_look(table, i) _mm_shuffle_epi8(table, i)
#else
static inline fo_vec fo_xor(fo_vec a, fo_vec b) {
    for (int i = 0; i < 16; i++) a.b[i] ^= b.b[i];
    return a;
}
static inline fo_vec fo_add8(fo_vec a, fo_vec b) {
    for (int i = 0; i < 16; i++) a.b[i] = (int8_t)(a.b[i] + b.b[i]);
    return a;
}
static inline fo_vec fo_look(fo_vec table, fo_vec i) {
    for (int k = 0; k < 16; k++) i.b[k] = table.b[i.b[k] & 15];
    return i;
}
#endif
#endif
enum { FO_TILE_ROWS = FO_TR, FO_QV = 2, FO_NQ = 2 * FO_LANES, FO_LINE = FO_VB };

#if FO_ELEM == 1
typedef uint8_t fo_elem;
#else
typedef int16_t fo_elem;
#endif

/* Rows of `bytes` bytes, ready for the loops; what lies between a row's end and the stride is left
 * alone (the caller has zeros there). Of int8, uint8 is code + 128, which the start of a sum takes
 * back. */
static __attribute__((noinline)) void fo_prepare(int kind, uint8_t *__restrict out,
                                                 ptrdiff_t stride, const uint8_t *__restrict from,
                                                 ptrdiff_t bytes, ptrdiff_t rows) {
    const uint8_t flip = kind == FO_SIGNED ? 0x80 : 0;
    const int less = FO_ELEM == 2 ? flip : 0;
    for (ptrdiff_t r = 0; r < rows; r++, out += stride, from += bytes) {
        fo_elem *to = (fo_elem *)out;
        if (kind == FO_BITS || (kind == FO_NIBBLES && FO_ELEM == 1))
            for (ptrdiff_t i = 0; i < bytes; i++) {
                out[2 * i] = from[i] & 15;
                out[2 * i + 1] = from[i] >> 4;
            }
        else if (kind == FO_NIBBLES)
            for (ptrdiff_t i = 0; i < bytes; i++) {
                to[2 * i] = from[i] & 15;
                to[2 * i + 1] = from[i] >> 4;
            }
        else
            for (ptrdiff_t i = 0; i < bytes; i++) to[i] = (fo_elem)((from[i] ^ flip) - less);
    }
}

/* A query as the other operand; returns the start of its sums. */
static inline int32_t fo_prepare_query(int kind, uint8_t *__restrict out,
                                       const uint8_t *__restrict from, ptrdiff_t bytes) {
    int32_t sum = 0;
    fo_prepare(kind == FO_BITS ? FO_BITS : FO_ELEM == 1 ? FO_UNSIGNED : FO_SIGNED, out, 0, from,
               bytes, 1);
    if (kind == FO_SIGNED && FO_ELEM == 1)
        for (ptrdiff_t i = 0; i < bytes; i++) sum -= 128 * (int8_t)from[i];
    return sum;
}

FO_INLINE fo_vec fo_bits_table(void) {
    static const int8_t count[16] = {0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4};
    int8_t table[FO_VB];
    for (int i = 0; i < FO_VB; i += 16) memcpy(table + i, count, 16);
    return fo_load(table);
}

/* sums[FO_TR][FO_NQ] = scores; 1 if one of them is above its query's `worst`. next: codes to bring
 * into L1 meanwhile, `ahead` bytes per word. */
FO_INLINE int fo_tile_of(const int bits, ptrdiff_t words, const uint8_t *__restrict row,
                         ptrdiff_t stride, const uint8_t *__restrict panel,
                         const int32_t *__restrict start, const int32_t *__restrict worst,
                         int32_t *__restrict sums, const uint8_t *next, int ahead) {
    const fo_vec table = fo_bits_table(), less = fo_set32(-1);
    int any = 0;
#pragma GCC unroll 1
    for (int r = 0; r < FO_TR; r++) memcpy(sums + r * FO_NQ, start, FO_NQ * sizeof *sums);
    for (ptrdiff_t w = 0, end; w < words; w = end) {
        fo_vec acc[FO_TR][FO_QV], q[FO_QV];
        end = bits && words - w > 60 ? w + 60 : words; /* 60 counts of 4 fit a byte */
#pragma GCC unroll 8
        for (int r = 0; r < FO_TR; r++)
#pragma GCC unroll 2
            for (int v = 0; v < FO_QV; v++)
                acc[r][v] = bits ? fo_zero() : fo_load(sums + r * FO_NQ + v * FO_LANES);
        for (ptrdiff_t s = w; s < end; s++) {
            __builtin_prefetch(next + s * ahead);
#pragma GCC unroll 2
            for (int v = 0; v < FO_QV; v++) q[v] = fo_load(panel + (s * FO_QV + v) * FO_VB);
#pragma GCC unroll 8
            for (int r = 0; r < FO_TR; r++) {
                const fo_vec x = fo_set32(fo_quad(row + r * stride + 4 * s));
#pragma GCC unroll 2
                for (int v = 0; v < FO_QV; v++) {
                    acc[r][v] = bits ? fo_add8(acc[r][v], fo_look(table, fo_xor(x, q[v])))
                                     : fo_dot(acc[r][v], x, q[v]);
                    FO_PIN(acc[r][v]);
                }
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < FO_TR; r++)
#pragma GCC unroll 2
            for (int v = 0; v < FO_QV; v++) {
                int32_t *at = sums + r * FO_NQ + v * FO_LANES;
                fo_store(at, bits ? fo_dot8(fo_load(at), acc[r][v], less) : acc[r][v]);
            }
    }
#pragma GCC unroll 1
    for (int r = 0; r < FO_TR; r++)
        for (int c = 0; c < FO_NQ; c++) any |= sums[r * FO_NQ + c] > worst[c];
    return any;
}

static __attribute__((noinline)) int fo_tile_dot(ptrdiff_t words, const uint8_t *row, ptrdiff_t stride, const uint8_t *panel,
                       const int32_t *start, const int32_t *worst, int32_t *sums,
                       const uint8_t *next, int ahead) {
    return fo_tile_of(0, words, row, stride, panel, start, worst, sums, next, ahead);
}
static __attribute__((noinline)) int fo_tile_bits(ptrdiff_t words, const uint8_t *row, ptrdiff_t stride,
                        const uint8_t *panel, const int32_t *start, const int32_t *worst,
                        int32_t *sums, const uint8_t *next, int ahead) {
    return fo_tile_of(1, words, row, stride, panel, start, worst, sums, next, ahead);
}

/* Score of one row and one query side by side: prepared and `bytes` long, a multiple of FO_VB. */
static inline int32_t fo_line(ptrdiff_t bytes, const uint8_t *row, const uint8_t *query) {
    fo_vec sum = fo_zero();
    for (ptrdiff_t i = 0; i < bytes; i += FO_VB)
        sum = fo_dot(sum, fo_load(row + i), fo_load(query + i));
    return fo_sum(sum);
}

/* Minus the bits in which two rows of bytes differ. */
static inline int32_t fo_line_bits(ptrdiff_t bytes, const uint8_t *a, const uint8_t *b) {
    int32_t sum = 0;
    ptrdiff_t i = 0;
    for (; i + 8 <= bytes; i += 8) {
        uint64_t u, v;
        memcpy(&u, a + i, 8);
        memcpy(&v, b + i, 8);
        sum -= __builtin_popcountll(u ^ v);
    }
    for (; i < bytes; i++) sum -= __builtin_popcount((unsigned)(a[i] ^ b[i]));
    return sum;
}

static inline void fo_touch(const uint8_t *next, ptrdiff_t bytes) {
    for (ptrdiff_t i = 0; i < bytes; i += 64) __builtin_prefetch(next + i);
}
#endif
