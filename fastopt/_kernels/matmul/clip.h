/* Exact products of uint8 by int8 with an instruction that saturates (AVX2's vpmaddubsw).
 *
 * It adds two neighbouring products in 16 bits, which is exact where the positive weights of the
 * pair sum to at most 128 and the negative ones to at least -128 (255 * 128 < 2^15). So the second
 * weight of a pair beyond that is clipped, and what was taken off, the excess of 2-3 % of a real
 * layer's weights, is multiplied on its own and is where a tile's sums start.
 *
 * The excess of a column lies in quads: four rows of B (uint16) and four values (int8), none of them
 * beyond 64, so that a pair of these is exact too. Four rows of A's codes, transposed in blocks of
 * FO_BLOCK rows, make the other operand of a dot product with the rows of A as lanes. */
#ifndef FO_CLIP
#define FO_CLIP
#include "dot.h"

enum { FO_BLOCK = 32 }; /* rows of A */

/* What is to be taken off the second weight of a pair. */
static inline int fo_excess(int first, int second) {
    const int high = first > 0 ? 128 - first : 127, low = first < 0 ? -128 - first : -128;
    return second > high ? second - high : second < low ? second - low : 0;
}

#if defined(__AVX2__) && !defined(__AVX512VNNI__)
enum { FO_CLIPS = 1 };

/* bytes, a multiple of 32, with the excess taken off. */
static inline void fo_clip(ptrdiff_t bytes, const uint8_t *__restrict b, uint8_t *__restrict out) {
    const __m256i zero = fo_zero();
    for (ptrdiff_t i = 0; i < bytes; i += 32) {
        const __m256i w = fo_load(b + i);
        const __m256i first = _mm256_slli_epi16(w, 8); /* in the place of the second */
        const __m256i positive = _mm256_max_epi8(first, zero);
        const __m256i high = _mm256_sub_epi8(_mm256_set1_epi8(127),
                                             _mm256_subs_epu8(positive, _mm256_set1_epi8(1)));
        const __m256i low = _mm256_sub_epi8(_mm256_set1_epi8(-128), _mm256_min_epi8(first, zero));
        fo_store(out + i, _mm256_max_epi8(_mm256_min_epi8(w, high), low));
    }
}

/* Four neighbouring codes of FO_BLOCK rows, from[r] for row r, to out [4][FO_BLOCK]. */
static inline void fo_transpose(const uint8_t *const *from, uint8_t *out) {
    const __m128i order = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    for (int r = 0; r < FO_BLOCK; r += 4) {
        const __m128i x = _mm_shuffle_epi8(
            _mm_setr_epi32(fo_quad(from[r]), fo_quad(from[r + 1]), fo_quad(from[r + 2]),
                           fo_quad(from[r + 3])), order);
        int32_t rows[4];
        _mm_storeu_si128((__m128i *)rows, x);
        for (int i = 0; i < 4; i++) memcpy(out + i * FO_BLOCK + r, rows + i, 4);
    }
}

/* Eight vectors as columns of eight rows, stride apart. */
static inline void fo_turn(const __m256i *v, int32_t *out, const ptrdiff_t *row) {
    __m256i t[8], u[8];
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_epi32(v[i], v[i + 1]);
        t[i + 1] = _mm256_unpackhi_epi32(v[i], v[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int h = 0; h < 2; h++) {
            u[i + 2 * h] = _mm256_unpacklo_epi64(t[i + h], t[i + 2 + h]);
            u[i + 2 * h + 1] = _mm256_unpackhi_epi64(t[i + h], t[i + 2 + h]);
        }
    for (int i = 0; i < 4; i++) {
        fo_store(out + row[i], _mm256_permute2x128_si256(u[i], u[i + 4], 0x20));
        fo_store(out + row[i + 4], _mm256_permute2x128_si256(u[i], u[i + 4], 0x31));
    }
}

/* The products of the excess of a panel's columns with a block of A, to c [FO_BLOCK][FO_NR].
 * start: the columns' first quads; at: the block's codes, [k][FO_BLOCK]. */
static inline void fo_correct(int cols, const int32_t *start, const uint16_t *index,
                              const int8_t *value, const uint8_t *at, int32_t *c) {
    __m256i sum[FO_BLOCK / 8][8];
    for (int n0 = 0; n0 < FO_NR; n0 += 8) {
        for (int n = 0; n < 8; n++) {
            __m256i s0 = fo_zero(), s1 = s0, s2 = s0, s3 = s0;
            const int column = n0 + n < cols ? n0 + n : cols;
            const int32_t end = start[column < cols ? column + 1 : cols];
            for (int32_t q = start[column]; q < end; q++) {
                const uint16_t *k = index + 4 * q;
                const __m256i a = fo_load(at + FO_BLOCK * (ptrdiff_t)k[0]);
                const __m256i b = fo_load(at + FO_BLOCK * (ptrdiff_t)k[1]);
                const __m256i d = fo_load(at + FO_BLOCK * (ptrdiff_t)k[2]);
                const __m256i e = fo_load(at + FO_BLOCK * (ptrdiff_t)k[3]);
                const __m256i w = fo_set32(fo_quad(value + 4 * q));
                const __m256i low = _mm256_unpacklo_epi8(a, b), high = _mm256_unpackhi_epi8(a, b);
                const __m256i low2 = _mm256_unpacklo_epi8(d, e);
                const __m256i high2 = _mm256_unpackhi_epi8(d, e);
                s0 = fo_dot8(s0, _mm256_unpacklo_epi16(low, low2), w);
                s1 = fo_dot8(s1, _mm256_unpackhi_epi16(low, low2), w);
                s2 = fo_dot8(s2, _mm256_unpacklo_epi16(high, high2), w);
                s3 = fo_dot8(s3, _mm256_unpackhi_epi16(high, high2), w);
            }
            sum[0][n] = s0; /* rows 0-3 and 16-19 */
            sum[1][n] = s1;
            sum[2][n] = s2;
            sum[3][n] = s3;
        }
        for (int i = 0; i < 4; i++) {
            ptrdiff_t row[8];
            for (int r = 0; r < 8; r++) row[r] = (4 * i + r % 4 + 16 * (r / 4)) * FO_NR;
            fo_turn(sum[i], c + n0, row);
        }
    }
}
#else
enum { FO_CLIPS = 0 };
#define fo_clip(bytes, b, out) (void)0
#define fo_transpose(from, out) (void)0
#define fo_correct(cols, start, index, value, at, c) (void)0
#endif
#endif
