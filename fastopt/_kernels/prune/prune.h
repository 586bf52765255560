/* Magnitudes as integers: the bits of |x| order like |x| itself, infinities above all numbers and
   NaN above infinity, so one unsigned compare ranks everything and a NaN is never the smallest. */
#ifndef FO_PRUNE_H
#define FO_PRUNE_H
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define FO_ABS32 0x7fffffffu
#define FO_ABS64 0x7fffffffffffffffull

/* Plain forms, the oracle and the tails. The count and the copy have no branch: about 3 % of the
   elements lie inside the bracket, which no predictor learns. */
#define FO_COMPACT_TAIL(U, ABS)                                                                   \
    for (; i < n; i++) {                                                                          \
        U b = x[i] & ABS;                                                                         \
        if (j >= room) return -1;                                                                 \
        buf[j] = b;                                                                               \
        j += (ptrdiff_t)(b - lo <= hi - lo);                                                      \
        under += b < lo;                                                                          \
    }                                                                                             \
    *below = under;                                                                               \
    return j;

/* buf <- the magnitudes in [lo, hi] in order; *below <- how many are < lo. Returns how many were
   stored, or -1 when `room` elements do not suffice (one vector of slack is asked for). */
static inline ptrdiff_t fo_compact32(uint32_t *__restrict buf, ptrdiff_t room,
                                     const uint32_t *__restrict x, ptrdiff_t n, uint32_t lo,
                                     uint32_t hi, int64_t *below) {
    ptrdiff_t i = 0, j = 0;
    int64_t under = 0;
#if defined(__AVX512F__)
    const __m512i a = _mm512_set1_epi32(FO_ABS32), l = _mm512_set1_epi32((int)lo),
                  w = _mm512_set1_epi32((int)(hi - lo));
    for (; i + 32 <= n; i += 32) {
        __m512i b0 = _mm512_and_si512(_mm512_loadu_si512(x + i), a);
        __m512i b1 = _mm512_and_si512(_mm512_loadu_si512(x + i + 16), a);
        __mmask16 u0 = _mm512_cmplt_epu32_mask(b0, l), u1 = _mm512_cmplt_epu32_mask(b1, l);
        __mmask16 m0 = _mm512_cmple_epu32_mask(_mm512_sub_epi32(b0, l), w);
        __mmask16 m1 = _mm512_cmple_epu32_mask(_mm512_sub_epi32(b1, l), w);
        under += __builtin_popcount((uint32_t)u0 | ((uint32_t)u1 << 16));
        if (j + 32 > room) return -1;
        _mm512_storeu_si512(buf + j, _mm512_maskz_compress_epi32(m0, b0));
        j += __builtin_popcount(m0);
        _mm512_storeu_si512(buf + j, _mm512_maskz_compress_epi32(m1, b1));
        j += __builtin_popcount(m1);
    }
#elif defined(__AVX2__)
    const __m256i a = _mm256_set1_epi32(FO_ABS32), l = _mm256_set1_epi32((int)lo),
                  h = _mm256_set1_epi32((int)hi);
    for (; i + 8 <= n; i += 8) {
        __m256i b = _mm256_and_si256(_mm256_loadu_si256((const __m256i *)(x + i)), a);
        __m256i u = _mm256_cmpgt_epi32(l, b), o = _mm256_or_si256(u, _mm256_cmpgt_epi32(b, h));
        uint32_t in = (uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(o)) ^ 0xffu;
        under += __builtin_popcount((uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(u)));
        if (j + 8 > room) return -1;
        for (; in; in &= in - 1) buf[j++] = x[i + __builtin_ctz(in)] & FO_ABS32;
    }
#endif
    FO_COMPACT_TAIL(uint32_t, FO_ABS32)
}

static inline ptrdiff_t fo_compact64(uint64_t *__restrict buf, ptrdiff_t room,
                                     const uint64_t *__restrict x, ptrdiff_t n, uint64_t lo,
                                     uint64_t hi, int64_t *below) {
    ptrdiff_t i = 0, j = 0;
    int64_t under = 0;
#if defined(__AVX512F__)
    const __m512i a = _mm512_set1_epi64((long long)FO_ABS64), l = _mm512_set1_epi64((long long)lo),
                  w = _mm512_set1_epi64((long long)(hi - lo));
    for (; i + 8 <= n; i += 8) {
        __m512i b = _mm512_and_si512(_mm512_loadu_si512(x + i), a);
        __mmask8 in = _mm512_cmple_epu64_mask(_mm512_sub_epi64(b, l), w);
        under += __builtin_popcount(_mm512_cmplt_epu64_mask(b, l));
        if (j + 8 > room) return -1;
        _mm512_storeu_si512(buf + j, _mm512_maskz_compress_epi64(in, b));
        j += __builtin_popcount(in);
    }
#endif
    FO_COMPACT_TAIL(uint64_t, FO_ABS64)
}

/* out = |x| < limit ? +0 : x (bits kept); the vector forms come from the compiler. out may be x.
   keep, a byte an element, and bits, an element a bit from the lowest, are written where given. */
#define FO_ZERO(NAME, U, S, ABS)                                                                  \
    static inline void NAME(U *out, uint8_t *__restrict keep, const U *x, ptrdiff_t n, U limit) { \
        if (keep)                                                                                 \
            for (ptrdiff_t i = 0; i < n; i++) keep[i] = (S)(x[i] & ABS) >= (S)limit;              \
        _Pragma("GCC ivdep") for (ptrdiff_t i = 0; i < n; i++) {                                                       \
            U v = x[i];                                                                           \
            out[i] = (S)(v & ABS) >= (S)limit ? v : 0;                                            \
        }                                                                                         \
    }
FO_ZERO(fo_zero32_plain, uint32_t, int32_t, FO_ABS32)
FO_ZERO(fo_zero64, uint64_t, int64_t, FO_ABS64)

static inline void fo_zero32(uint32_t *out, uint8_t *__restrict keep, const uint32_t *x,
                             ptrdiff_t n, uint32_t limit) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    const __m512i a = _mm512_set1_epi32(FO_ABS32), l = _mm512_set1_epi32((int)limit);
    ptrdiff_t i = 0;
    for (; i + 16 <= n; i += 16) {
        __m512i v = _mm512_loadu_si512(x + i);
        __mmask16 m = _mm512_cmpge_epu32_mask(_mm512_and_si512(v, a), l);
        _mm512_storeu_si512(out + i, _mm512_maskz_mov_epi32(m, v));
        if (keep) _mm_storeu_si128((__m128i *)(keep + i), _mm_maskz_set1_epi8(m, 1));
    }
    fo_zero32_plain(out + i, keep ? keep + i : keep, x + i, n - i, limit);
#else
    /* one cache line's worth of blocks at a time, so the mask's second read hits L1 */
    for (ptrdiff_t i = 0; i < n; i += 2048) {
        ptrdiff_t m = n - i < 2048 ? n - i : 2048;
        fo_zero32_plain(out + i, keep ? keep + i : keep, x + i, m, limit);
    }
#endif
}

/* How many magnitudes are > limit. */
#define FO_ABOVE(NAME, U, S, ABS)                                                                 \
    static inline int64_t NAME(const U *x, ptrdiff_t n, U limit) {                                \
        int64_t total = 0;                                                                        \
        for (ptrdiff_t i = 0; i < n; i += 4096) {                                                 \
            ptrdiff_t m = n - i < 4096 ? n - i : 4096;                                            \
            U count = 0;                                                                          \
            for (ptrdiff_t j = 0; j < m; j++) count += (S)(x[i + j] & ABS) > (S)limit;            \
            total += (int64_t)count;                                                              \
        }                                                                                         \
        return total;                                                                             \
    }
FO_ABOVE(fo_above32, uint32_t, int32_t, FO_ABS32)
FO_ABOVE(fo_above64, uint64_t, int64_t, FO_ABS64)

/* Index of the nth (from 0) magnitude equal to value, or -1; *nth loses those passed on the way. */
#define FO_FIND(NAME, U, ABS)                                                                     \
    static inline ptrdiff_t NAME(const U *x, ptrdiff_t n, U value, int64_t *nth) {                \
        for (ptrdiff_t i = 0; i < n; i += 1024) {                                                 \
            ptrdiff_t m = n - i < 1024 ? n - i : 1024;                                            \
            U count = 0;                                                                          \
            for (ptrdiff_t j = 0; j < m; j++) count += (x[i + j] & ABS) == value;                 \
            if ((int64_t)count > *nth)                                                            \
                for (ptrdiff_t j = 0; j < m; j++)                                                 \
                    if ((x[i + j] & ABS) == value && (*nth)-- == 0) return i + j;                 \
            *nth -= (int64_t)count;                                                               \
        }                                                                                         \
        return -1;                                                                                \
    }
FO_FIND(fo_find32, uint32_t, FO_ABS32)
FO_FIND(fo_find64, uint64_t, FO_ABS64)

/* counts[(|x| >> shift) & (2^width - 1)]++ for the magnitudes whose bits above the window are
   prefix; width <= 11. Four tables, so that equal neighbours do not wait for each other's store. */
#define FO_HIST(NAME, U, ABS)                                                                     \
    static inline void NAME(int64_t *counts, const U *x, ptrdiff_t n, int shift, int width,       \
                            U prefix) {                                                           \
        uint32_t t[4][2048];                                                                      \
        const U window = ((U)1 << width) - 1;                                                     \
        for (ptrdiff_t i = 0; i < n; i += (ptrdiff_t)1 << 30) {                                   \
            ptrdiff_t m = n - i < ((ptrdiff_t)1 << 30) ? n - i : (ptrdiff_t)1 << 30;              \
            memset(t, 0, sizeof t);                                                               \
            for (ptrdiff_t j = 0; j < m; j++) {                                                   \
                U b = (x[i + j] & ABS) >> shift;                                                  \
                t[j & 3][b & window] += (b >> width) == prefix;                                   \
            }                                                                                     \
            for (int j = 0; j < 2048; j++)                                                        \
                counts[j] += (int64_t)t[0][j] + t[1][j] + t[2][j] + t[3][j];                      \
        }                                                                                         \
    }
FO_HIST(fo_hist32, uint32_t, FO_ABS32)
FO_HIST(fo_hist64, uint64_t, FO_ABS64)

/* N of M: in each group of m along an axis the n largest magnitudes stay. i beats j when |i| > |j|, or
   when they are equal and i comes later; no sort, the rank of an element is the count of those that
   beat it. outer x (groups * m) x inner elements; returns how many NaN had to go. */
#define FO_NM4(NAME, U, S, ABS, INF)                                                              \
    static inline int64_t NAME(U *out, uint8_t *__restrict keep, const U *x, ptrdiff_t groups,    \
                               int n) {                                                           \
        int64_t lost = 0;                                                                         \
        for (ptrdiff_t start = 0; start < groups; start += 512) {                                 \
            ptrdiff_t stop = groups < start + 512 ? groups : start + 512;                         \
            U gone = 0;                                                                           \
            _Pragma("GCC ivdep") for (ptrdiff_t g = start; g < stop; g++) {                       \
                U v0 = x[4 * g], v1 = x[4 * g + 1], v2 = x[4 * g + 2], v3 = x[4 * g + 3];         \
                S b0 = (S)(v0 & ABS), b1 = (S)(v1 & ABS), b2 = (S)(v2 & ABS), b3 = (S)(v3 & ABS); \
                S c01 = b1 >= b0, c02 = b2 >= b0, c03 = b3 >= b0;                                 \
                S c12 = b2 >= b1, c13 = b3 >= b1, c23 = b3 >= b2;                                 \
                S k0 = c01 + c02 + c03 < (S)n, k1 = 1 - c01 + c12 + c13 < (S)n;                   \
                S k2 = 2 - c02 - c12 + c23 < (S)n, k3 = 3 - c03 - c13 - c23 < (S)n;               \
                gone += (U)((!k0 & (b0 > (S)INF)) + (!k1 & (b1 > (S)INF)) +                       \
                            (!k2 & (b2 > (S)INF)) + (!k3 & (b3 > (S)INF)));                       \
                out[4 * g] = k0 ? v0 : 0;                                                         \
                out[4 * g + 1] = k1 ? v1 : 0;                                                     \
                out[4 * g + 2] = k2 ? v2 : 0;                                                     \
                out[4 * g + 3] = k3 ? v3 : 0;                                                     \
                if (keep) {                                                                       \
                    keep[4 * g] = (uint8_t)k0;                                                    \
                    keep[4 * g + 1] = (uint8_t)k1;                                                \
                    keep[4 * g + 2] = (uint8_t)k2;                                                \
                    keep[4 * g + 3] = (uint8_t)k3;                                                \
                }                                                                                 \
            }                                                                                     \
            lost += (int64_t)gone;                                                                \
        }                                                                                         \
        return lost;                                                                              \
    }
FO_NM4(fo_nm4_32_plain, uint32_t, int32_t, FO_ABS32, 0x7f800000)
FO_NM4(fo_nm4_64, uint64_t, int64_t, FO_ABS64, 0x7ff0000000000000)

/* The same with the three rivals of each lane brought to it by in-lane rotations. */
static inline __attribute__((always_inline)) int64_t fo_nm4_32_of(uint32_t *out,
                                                                  uint8_t *__restrict keep,
                                                                  const uint32_t *x,
                                                                  ptrdiff_t groups, const int n) {
    ptrdiff_t i = 0;
    int64_t lost = 0;
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    const __m512i a = _mm512_set1_epi32(FO_ABS32), inf = _mm512_set1_epi32(0x7f800000);
    const __m512i t1 = _mm512_set4_epi32(0, 1, 1, 1), t2 = _mm512_set4_epi32(0, 0, 1, 1),
                  t3 = _mm512_set4_epi32(0, 0, 0, 1);
    for (; i + 16 <= 4 * groups; i += 16) {
        const __m512i v = _mm512_loadu_si512(x + i), b = _mm512_and_si512(v, a);
        const __mmask16 m1 = _mm512_cmpgt_epu32_mask(
            _mm512_add_epi32(_mm512_shuffle_epi32(b, (_MM_PERM_ENUM)0x39), t1), b);
        const __mmask16 m2 = _mm512_cmpgt_epu32_mask(
            _mm512_add_epi32(_mm512_shuffle_epi32(b, (_MM_PERM_ENUM)0x4E), t2), b);
        const __mmask16 m3 = _mm512_cmpgt_epu32_mask(
            _mm512_add_epi32(_mm512_shuffle_epi32(b, (_MM_PERM_ENUM)0x93), t3), b);
        __mmask16 gone = n == 1   ? m1 | m2 | m3
                         : n == 2 ? (m1 & (m2 | m3)) | (m2 & m3)
                         : n == 3 ? m1 & m2 & m3
                                  : (__mmask16)(n == 0 ? -1 : 0);
        lost += __builtin_popcount(gone & _mm512_cmpgt_epu32_mask(b, inf));
        _mm512_storeu_si512(out + i, _mm512_maskz_mov_epi32((__mmask16)~gone, v));
        if (keep)
            _mm_storeu_si128((__m128i *)(keep + i), _mm_maskz_set1_epi8((__mmask16)~gone, 1));
    }
#elif defined(__AVX2__)
    const __m256i a = _mm256_set1_epi32(FO_ABS32), inf = _mm256_set1_epi32(0x7f800000);
    const __m256i t1 = _mm256_setr_epi32(1, 1, 1, 0, 1, 1, 1, 0),
                  t2 = _mm256_setr_epi32(1, 1, 0, 0, 1, 1, 0, 0),
                  t3 = _mm256_setr_epi32(1, 0, 0, 0, 1, 0, 0, 0), limit = _mm256_set1_epi32(-n);
    for (; i + 8 <= 4 * groups; i += 8) {
        const __m256i v = _mm256_loadu_si256((const __m256i *)(x + i)), b = _mm256_and_si256(v, a);
        const __m256i m1 =
            _mm256_cmpgt_epi32(_mm256_shuffle_epi32(b, 0x39), _mm256_sub_epi32(b, t1));
        const __m256i m2 =
            _mm256_cmpgt_epi32(_mm256_shuffle_epi32(b, 0x4E), _mm256_sub_epi32(b, t2));
        const __m256i m3 =
            _mm256_cmpgt_epi32(_mm256_shuffle_epi32(b, 0x93), _mm256_sub_epi32(b, t3));
        const __m256i stay =
            _mm256_cmpgt_epi32(_mm256_add_epi32(_mm256_add_epi32(m1, m2), m3), limit);
        const int nan = _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(b, inf)));
        const int bits = _mm256_movemask_ps(_mm256_castsi256_ps(stay));
        lost += __builtin_popcount((unsigned)(nan & ~bits));
        _mm256_storeu_si256((__m256i *)(out + i), _mm256_and_si256(v, stay));
        if (keep) {
            const uint64_t bytes = _pdep_u64((uint64_t)bits, 0x0101010101010101ull);
            memcpy(keep + i, &bytes, 8);
        }
    }
#endif
    return lost + fo_nm4_32_plain(out + i, keep ? keep + i : keep, x + i, groups - i / 4, n);
}

static inline int64_t fo_nm4_32(uint32_t *out, uint8_t *keep, const uint32_t *x, ptrdiff_t groups,
                                int n) {
    switch (n) {
    case 0: return fo_nm4_32_of(out, keep, x, groups, 0);
    case 1: return fo_nm4_32_of(out, keep, x, groups, 1);
    case 2: return fo_nm4_32_of(out, keep, x, groups, 2);
    case 3: return fo_nm4_32_of(out, keep, x, groups, 3);
    default: return fo_nm4_32_of(out, keep, x, groups, 4);
    }
}

/* Any m, and any stride: element i of lane l is x[i * step + l * apart]. The lanes are independent,
   so the compiler ranks them side by side. */
#define FO_NM(NAME, U, S, ABS, INF)                                                               \
    static inline int64_t NAME(U *out, uint8_t *__restrict keep, const U *x, ptrdiff_t lanes,     \
                               ptrdiff_t step, ptrdiff_t apart, int m, int n) {                   \
        int64_t lost = 0;                                                                         \
        U v[32][64];                                                                              \
        for (ptrdiff_t l = 0; l < lanes; l += 64) {                                               \
            const ptrdiff_t w = lanes - l < 64 ? lanes - l : 64;                                  \
            for (int i = 0; i < m; i++)                                                           \
                for (ptrdiff_t c = 0; c < w; c++) v[i][c] = x[i * step + (l + c) * apart];        \
            for (int i = 0; i < m; i++) {                                                         \
                U rank[64] = {0}, gone = 0;                                                       \
                for (int j = 0; j < m; j++) {                                                     \
                    const U tie = j > i; /* b >= a is b > a - 1, and a - 1 cannot wrap as S */    \
                    for (ptrdiff_t c = 0; c < w; c++)                                             \
                        rank[c] += (S)(v[j][c] & ABS) > (S)((v[i][c] & ABS) - tie);               \
                }                                                                                 \
                for (ptrdiff_t c = 0; c < w; c++) {                                               \
                    const ptrdiff_t at = i * step + (l + c) * apart;                              \
                    const U stay = (S)rank[c] < (S)n;                                             \
                    gone += !stay & ((S)(v[i][c] & ABS) > (S)INF);                                \
                    out[at] = stay ? v[i][c] : 0;                                                 \
                    if (keep) keep[at] = (uint8_t)stay;                                           \
                }                                                                                 \
                lost += (int64_t)gone;                                                            \
            }                                                                                     \
        }                                                                                         \
        return lost;                                                                              \
    }
FO_NM(fo_nm_32, uint32_t, int32_t, FO_ABS32, 0x7f800000)
FO_NM(fo_nm_64, uint64_t, int64_t, FO_ABS64, 0x7ff0000000000000)

#endif
