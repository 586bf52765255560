/* Micro-kernels of the integer matrix product: an mr x (nv * FO_LANES) tile of int32 sums in
 * registers, C[r][n] (+)= sum_k A[r][k] * B[k][n], exact modulo 2^32 (no saturating instruction
 * is used where it could saturate).
 *
 * Packed operands (k counts in quads, k4 = k / 4):
 *   A  [k4][mr][4]  uint8 ("u8 path"), or int16 in the order k0 k2 k1 k3 ("s16 path")
 *   B  [k4][nv * FO_LANES][4] int8 (or two quads in one byte: low nibble first, code = w + 8);
 *      widened for the s16 path to int16 [k4][2][nv * FO_LANES][2]: (k0, k2) then (k1, k3),
 *      which costs three shifts and needs no shuffle.
 *
 * u8 path: AVX-512 VNNI vpdpbusd (64 products an instruction). s16 path: vpmaddwd, or vpdpwssd:
 * sums of two products of 16-bit numbers fit in 32 bits always. On AVX2 the u8 path would be
 * vpmaddubsw, which saturates at +-32767: exact only where 255 * (positive part of a pair) <= 32767
 * and likewise for the negative part.
 */
#ifndef FO_DOT_INT8
#define FO_DOT_INT8
#include <stdint.h>
#include <stddef.h>
#include <string.h>
#if defined(__SSE4_1__)
#include <immintrin.h>
#endif

#if defined(__AVX512VNNI__)
#define FO_MR 8
#define FO_NV 3
#define FO_LANES 16
#define FO_SLICE 36864 /* bytes of B that stay in L1 while all row panels meet them: 768 of k */
typedef __m512i fo_vec;
#define fo_load(p) _mm512_loadu_si512((const void *)(p))
#define fo_store(p, v) _mm512_storeu_si512((void *)(p), v)
#define fo_zero() _mm512_setzero_si512()
#define fo_set32(x) _mm512_set1_epi32(x)
#define fo_dot16(c, a, b) _mm512_dpwssd_epi32(c, a, b)
#define fo_dot8(c, a, b) _mm512_dpbusd_epi32(c, a, b)
#define fo_even16(x) _mm512_srai_epi16(_mm512_slli_epi16(x, 8), 8)
#define fo_odd16(x) _mm512_srai_epi16(x, 8)
typedef __m512 fo_fvec;
#define fo_float(x) _mm512_cvtepi32_ps(x)
#define fo_fload(p) _mm512_loadu_ps(p)
#define fo_fstore(p, v) _mm512_storeu_ps(p, v)
#define fo_fmul(a, b) _mm512_mul_ps(a, b)
#define fo_fadd(a, b) _mm512_add_ps(a, b)
#define fo_low4(x) _mm512_sub_epi8(_mm512_and_si512(x, _mm512_set1_epi8(15)), _mm512_set1_epi8(8))
#define fo_high4(x) fo_low4(_mm512_srli_epi16(x, 4))
#elif defined(__AVX2__)
#define FO_MR 6
#define FO_NV 2
#define FO_LANES 8
#define FO_SLICE 16384
typedef __m256i fo_vec;
#define fo_load(p) _mm256_loadu_si256((const __m256i *)(p))
#define fo_store(p, v) _mm256_storeu_si256((__m256i *)(p), v)
#define fo_zero() _mm256_setzero_si256()
#define fo_set32(x) _mm256_set1_epi32(x)
/* Into the register of the sum: gcc 12 would write another one and move it, 7-12 % of the time. */
static inline fo_vec fo_add32(fo_vec c, fo_vec x) {
    __asm__ volatile("vpaddd %1, %0, %0" : "+x"(c) : "x"(x));
    return c;
}
static inline fo_vec fo_add16(fo_vec c, fo_vec x) {
    __asm__ volatile("vpaddw %1, %0, %0" : "+x"(c) : "x"(x));
    return c;
}
#define fo_dot16(c, a, b) fo_add32(c, _mm256_madd_epi16(a, b))
#define fo_pairs(a, b) _mm256_maddubs_epi16(a, b)
#define fo_dot8(c, a, b) fo_dot16(c, fo_pairs(a, b), _mm256_set1_epi16(1))
#define fo_even16(x) _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8)
#define fo_odd16(x) _mm256_srai_epi16(x, 8)
typedef __m256 fo_fvec;
#define fo_float(x) _mm256_cvtepi32_ps(x)
#define fo_fload(p) _mm256_loadu_ps(p)
#define fo_fstore(p, v) _mm256_storeu_ps(p, v)
#define fo_fmul(a, b) _mm256_mul_ps(a, b)
#define fo_fadd(a, b) _mm256_add_ps(a, b)
#define fo_low4(x) _mm256_sub_epi8(_mm256_and_si256(x, _mm256_set1_epi8(15)), _mm256_set1_epi8(8))
#define fo_high4(x) fo_low4(_mm256_srli_epi16(x, 4))
#elif defined(__SSE4_1__)
#define FO_MR 4
#define FO_NV 2
#define FO_LANES 4
#define FO_SLICE 16384
typedef __m128i fo_vec;
#define fo_load(p) _mm_loadu_si128((const __m128i *)(p))
#define fo_store(p, v) _mm_storeu_si128((__m128i *)(p), v)
#define fo_zero() _mm_setzero_si128()
#define fo_set32(x) _mm_set1_epi32(x)
#define fo_add32(c, x) _mm_add_epi32(c, x)
#define fo_add16(c, x) _mm_add_epi16(c, x)
#define fo_dot16(c, a, b) fo_add32(c, _mm_madd_epi16(a, b))
#define fo_pairs(a, b) _mm_maddubs_epi16(a, b)
#define fo_dot8(c, a, b) fo_dot16(c, fo_pairs(a, b), _mm_set1_epi16(1))
#define fo_even16(x) _mm_srai_epi16(_mm_slli_epi16(x, 8), 8)
#define fo_odd16(x) _mm_srai_epi16(x, 8)
#define fo_low4(x) _mm_sub_epi8(_mm_and_si128(x, _mm_set1_epi8(15)), _mm_set1_epi8(8))
#define fo_high4(x) fo_low4(_mm_srli_epi16(x, 4))
#else /* the plain machine: the same operations on four lanes, which is also the oracle */
#define FO_MR 4
#define FO_NV 2
#define FO_LANES 4
#define FO_SLICE 16384
typedef struct { int8_t b[16]; } fo_vec;
static inline fo_vec fo_load(const void *p) { fo_vec v; memcpy(&v, p, 16); return v; }
static inline void fo_store(void *p, fo_vec v) { memcpy(p, &v, 16); }
static inline fo_vec fo_zero(void) { fo_vec v; memset(&v, 0, 16); return v; }
static inline fo_vec fo_set32(int32_t x) {
    fo_vec v;
    for (int i = 0; i < 4; i++) memcpy(v.b + 4 * i, &x, 4);
    return v;
}
static inline fo_vec fo_dot16(fo_vec c, fo_vec a, fo_vec b) {
    uint32_t s[4];
    int16_t x[8], y[8];
    memcpy(s, &c, 16); memcpy(x, &a, 16); memcpy(y, &b, 16);
    for (int i = 0; i < 8; i++) s[i / 2] += (uint32_t)((int32_t)x[i] * y[i]);
    memcpy(&c, s, 16);
    return c;
}
static inline fo_vec fo_dot8(fo_vec c, fo_vec a, fo_vec b) {
    uint32_t s[4];
    memcpy(s, &c, 16);
    for (int i = 0; i < 16; i++) s[i / 4] += (uint32_t)((int32_t)(uint8_t)a.b[i] * b.b[i]);
    memcpy(&c, s, 16);
    return c;
}
static inline fo_vec fo_half16(fo_vec x, int odd) {
    int16_t h[8];
    for (int i = 0; i < 8; i++) h[i] = x.b[2 * i + odd];
    memcpy(&x, h, 16);
    return x;
}
#define fo_even16(x) fo_half16(x, 0)
#define fo_odd16(x) fo_half16(x, 1)
static inline fo_vec fo_nibble(fo_vec x, int shift) {
    for (int i = 0; i < 16; i++) x.b[i] = (int8_t)((((uint8_t)x.b[i] >> shift) & 15) - 8);
    return x;
}
#define fo_low4(x) fo_nibble(x, 0)
#define fo_high4(x) fo_nibble(x, 4)
#endif

/* gcc 12 moves the products of a whole step ahead of the sums and spills the tile: half the speed.
 * Pinning each sum after its row keeps order and registers. */
#if defined(__AVX2__) && !defined(__AVX512F__)
#define FO_PIN(x) __asm__ volatile("" : "+x"(x))
#elif defined(__AVX512F__)
#define FO_PIN(x) __asm__ volatile("" : "+v"(x))
#else
#define FO_PIN(x) (void)0
#endif
/* 1 where the level multiplies uint8 A as int16, because 8 bits would saturate. */
#if defined(__AVX512VNNI__)
#define FO_WIDE_A8 0
#else
#define FO_WIDE_A8 1
#endif
/* FO_END_IN_TILE: groups end inside the tile (not where size comes before speed). */
#if defined(__AVX2__)
enum { FO_END_IN_TILE = 1 };
#else
enum { FO_END_IN_TILE = 0 };
#endif
#define FO_NR (FO_NV * FO_LANES)
#define FO_VB (4 * FO_LANES) /* bytes of a vector */
#define FO_INLINE static inline __attribute__((always_inline))

/* How B lies in memory: bytes; two codes of 4 bits per byte; int16; bytes that hold 4-bit codes. */
enum { FO_S8 = 0, FO_S4 = 1, FO_S16 = 2, FO_B4 = 3 };

FO_INLINE int32_t fo_quad(const void *p) { int32_t x; memcpy(&x, p, 4); return x; }

/* One quad of k: every row's broadcast against the nv vectors of B. */
FO_INLINE void fo_step8(const int mr, const int nv, fo_vec (*c)[FO_NV], const uint8_t *a,
                        const fo_vec *b) {
#pragma GCC unroll 8
    for (int r = 0; r < mr; r++) {
        const fo_vec x = fo_set32(fo_quad(a + 4 * r));
#pragma GCC unroll 4
        for (int v = 0; v < nv; v++) {
            c[r][v] = fo_dot8(c[r][v], x, b[v]);
            FO_PIN(c[r][v]);
        }
    }
}

/* Half a quad in 16 bits: a points at the pair of row 0, rows are 8 bytes apart. */
FO_INLINE void fo_step16(const int mr, const int nv, fo_vec (*c)[FO_NV], const uint8_t *a,
                         const fo_vec *b) {
#pragma GCC unroll 8
    for (int r = 0; r < mr; r++) {
        const fo_vec x = fo_set32(fo_quad(a + 8 * r));
#pragma GCC unroll 4
        for (int v = 0; v < nv; v++) {
            c[r][v] = fo_dot16(c[r][v], x, b[v]);
            FO_PIN(c[r][v]);
        }
    }
}

/* The end of a group inside the tile, while its sums are in registers: acc += (float)(sums + zero
 * points) * scale. rows holds -za and -(rowsum - k za) as int16 for each row, the column's sum and
 * zero point lie likewise after the scales, so that both corrections are one two-term product. */
typedef struct {
    const float *scale;
    const int32_t *rows;
    ptrdiff_t stride;
    float *acc; /* [mr][FO_NR], started from zero */
} fo_end;

#if defined(__AVX2__)
FO_INLINE void fo_end_row(const fo_end *end, const int r, const int nv, const fo_vec *sums) {
    const fo_vec z = fo_set32(end->rows[r * end->stride]);
    const int32_t *pairs = (const int32_t *)(end->scale + FO_NR);
#pragma GCC unroll 4
    for (int v = 0; v < nv; v++) {
        float *at = end->acc + r * FO_NR + v * FO_LANES;
        const fo_vec sum = fo_dot16(sums[v], z, fo_load(pairs + v * FO_LANES));
        const fo_fvec y = fo_fmul(fo_float(sum), fo_fload(end->scale + v * FO_LANES));
        fo_fstore(at, fo_fadd(fo_fload(at), y));
    }
}
#else
#define fo_end_row(end, r, nv, sums) (void)(end)
#endif

/* What to bring in while a step of the tile multiplies. A few rows wait for B: all of what they
 * will read FO_AHEAD bytes on (which brings 12 GB/s to 19 from memory, 24 to 31 from the last
 * cache). More rows share a slice of B and share out the next slice, a cache line per step, into L2:
 * all of it in one row panel's time is more than the line fill buffers take. */
#define FO_FEW (FO_MR / 2 - 1) /* so few are all the rows that there are */
#define FO_AHEAD 2048
FO_INLINE void fo_fetch(const int mr, const int nv, const int kind, const uint8_t *b,
                        const uint8_t *next) {
    if (mr > FO_FEW || kind == FO_S16) {
        __builtin_prefetch(next, 0, 2);
        return;
    }
#pragma GCC unroll 4
    for (int i = 0; i < nv * FO_VB; i += 64) __builtin_prefetch(b + FO_AHEAD + i, 0, 3);
}

#if defined(fo_pairs)
/* Codes of four bits without 8-bit dot products: eight sums of pairs, at most 8 * 2 * 255 * 8 =
 * 32640, stay in 16 bits, so that only every eighth quad is widened, into c. */
FO_INLINE void fo_tile4(const int mr, const int nv, const int kind, ptrdiff_t steps,
                        const uint8_t *__restrict a, const uint8_t *__restrict b,
                        int32_t *__restrict c, int first, const uint8_t *next,
                        const int ended, const fo_end *end) {
    fo_vec acc[FO_MR][FO_NV], x[FO_NV], y[FO_NV];
    const int quads = kind == FO_S4 ? 2 : 1;
#pragma GCC unroll 8
    for (int r = 0; r < mr; r++)
#pragma GCC unroll 4
        for (int v = 0; v < nv; v++) {
            acc[r][v] = fo_zero();
            if (first) fo_store(c + r * FO_NR + v * FO_LANES, acc[r][v]);
        }
    while (steps > 0) {
        const ptrdiff_t stop = steps > 8 ? steps - 8 : 0;
#pragma GCC unroll 8
        for (int r = 0; r < mr; r++)
#pragma GCC unroll 4
            for (int v = 0; v < nv; v++) acc[r][v] = fo_zero();
        for (; steps > stop; steps -= quads) {
            fo_fetch(mr, nv, kind, b, next);
            next += 64;
#pragma GCC unroll 4
            for (int v = 0; v < nv; v++) y[v] = fo_load(b + v * FO_VB);
#pragma GCC unroll 2
            for (int h = 0; h < quads; h++) {
#pragma GCC unroll 4
                for (int v = 0; v < nv; v++)
                    x[v] = kind == FO_B4 ? y[v] : h == 0 ? fo_low4(y[v]) : fo_high4(y[v]);
#pragma GCC unroll 8
                for (int r = 0; r < mr; r++) {
                    const fo_vec z = fo_set32(fo_quad(a + 4 * r));
#pragma GCC unroll 4
                    for (int v = 0; v < nv; v++) acc[r][v] = fo_add16(acc[r][v], fo_pairs(z, x[v]));
                }
                a += 4 * mr;
            }
            b += nv * FO_VB;
        }
#pragma GCC unroll 8
        for (int r = 0; r < mr; r++)
#pragma GCC unroll 4
            for (int v = 0; v < nv; v++) {
                int32_t *at = c + r * FO_NR + v * FO_LANES;
                acc[r][v] = fo_dot16(fo_load(at), acc[r][v], fo_set32(0x10001));
                if (!ended || steps > 0) fo_store(at, acc[r][v]);
            }
    }
    if (ended)
#pragma GCC unroll 8
        for (int r = 0; r < mr; r++) fo_end_row(end, r, nv, acc[r]);
}
#endif

/* The tile. wide: A is int16. kind: how B lies. steps: quads of k (even for FO_S4).
 * c: int32 [mr][FO_NR], started from zero if first. next: what to bring into L2 meanwhile.
 * ended: the sums are a group's; they go to end, c is scratch. */
FO_INLINE void fo_tile(const int mr, const int nv, const int wide, const int kind,
                       ptrdiff_t steps, const uint8_t *__restrict a, const uint8_t *__restrict b,
                       int32_t *__restrict c, int first, const uint8_t *next,
                       const int ended, const fo_end *end) {
#if defined(fo_pairs)
    if (kind == FO_S4 || kind == FO_B4) {
        fo_tile4(mr, nv, kind, steps, a, b, c, first, next, ended, end);
        return;
    }
#endif
    fo_vec acc[FO_MR][FO_NV], x[FO_NV], y[FO_NV];
    const int row = wide ? 8 : 4;
#pragma GCC unroll 8
    for (int r = 0; r < mr; r++)
#pragma GCC unroll 4
        for (int v = 0; v < nv; v++)
            acc[r][v] = first ? fo_zero() : fo_load(c + r * FO_NR + v * FO_LANES);
    if (kind == FO_S4) steps /= 2;
    for (ptrdiff_t s = 0; s < steps; s++) {
        fo_fetch(mr, nv, kind, b, next + s * 64);
        if (kind == FO_S16) {
#pragma GCC unroll 2
            for (int h = 0; h < 2; h++) {
#pragma GCC unroll 4
                for (int v = 0; v < nv; v++) x[v] = fo_load(b + (h * nv + v) * FO_VB);
                fo_step16(mr, nv, acc, a + 4 * h, x);
            }
            b += 2 * nv * FO_VB;
            a += mr * row;
            continue;
        }
#pragma GCC unroll 4
        for (int v = 0; v < nv; v++) y[v] = fo_load(b + v * FO_VB);
        b += nv * FO_VB;
        for (int h = 0; h < (kind == FO_S4 ? 2 : 1); h++) {
#pragma GCC unroll 4
            for (int v = 0; v < nv; v++)
                x[v] = kind != FO_S4 ? y[v] : h == 0 ? fo_low4(y[v]) : fo_high4(y[v]);
            if (!wide) {
                fo_step8(mr, nv, acc, a, x);
            } else {
                fo_vec z[FO_NV];
#pragma GCC unroll 4
                for (int v = 0; v < nv; v++) z[v] = fo_even16(x[v]);
                fo_step16(mr, nv, acc, a, z);
#pragma GCC unroll 4
                for (int v = 0; v < nv; v++) z[v] = fo_odd16(x[v]);
                fo_step16(mr, nv, acc, a + 4, z);
            }
            a += mr * row;
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < mr; r++) {
        if (ended) {
            fo_end_row(end, r, nv, acc[r]);
            continue;
        }
#pragma GCC unroll 4
        for (int v = 0; v < nv; v++) fo_store(c + r * FO_NR + v * FO_LANES, acc[r][v]);
    }
}

/* The run-time shapes. Tiles that are not full in n occur once a matrix, those that are not full
 * in m on its last rows; each is its own straight-line code so that sums stay in registers. */
#define FO_ROWS(mr_, ...) case mr_: fo_tile(mr_, __VA_ARGS__); break;
#if FO_MR == 8
#define FO_ALL_ROWS(...) \
    FO_ROWS(1, __VA_ARGS__) FO_ROWS(2, __VA_ARGS__) FO_ROWS(3, __VA_ARGS__) \
    FO_ROWS(4, __VA_ARGS__) FO_ROWS(5, __VA_ARGS__) FO_ROWS(6, __VA_ARGS__) \
    FO_ROWS(7, __VA_ARGS__) FO_ROWS(8, __VA_ARGS__)
#elif FO_MR == 6
#define FO_ALL_ROWS(...) \
    FO_ROWS(1, __VA_ARGS__) FO_ROWS(2, __VA_ARGS__) FO_ROWS(3, __VA_ARGS__) \
    FO_ROWS(4, __VA_ARGS__) FO_ROWS(5, __VA_ARGS__) FO_ROWS(6, __VA_ARGS__)
#else
#define FO_ALL_ROWS(...) \
    FO_ROWS(1, __VA_ARGS__) FO_ROWS(2, __VA_ARGS__) FO_ROWS(3, __VA_ARGS__) \
    FO_ROWS(4, __VA_ARGS__)
#endif
#define FO_SHAPES(name, nv, wide, kind) \
    static __attribute__((noinline)) void name##_##nv( \
        int mr, ptrdiff_t steps, const uint8_t *a, const uint8_t *b, int32_t *c, int first, \
        const uint8_t *next) { \
        switch (mr) { FO_ALL_ROWS(nv, wide, kind, steps, a, b, c, first, next, 0, NULL) } \
    }
#if FO_NV == 3
#define FO_ENTRY(name, wide, kind) \
    FO_SHAPES(name, 1, wide, kind) FO_SHAPES(name, 2, wide, kind) FO_SHAPES(name, 3, wide, kind) \
    static inline void name(int mr, int nv, ptrdiff_t steps, const uint8_t *a, const uint8_t *b, \
                            int32_t *c, int first, const uint8_t *next) { \
        if (nv == 3) name##_3(mr, steps, a, b, c, first, next); \
        else if (nv == 2) name##_2(mr, steps, a, b, c, first, next); \
        else name##_1(mr, steps, a, b, c, first, next); \
    }
#else
#define FO_ENTRY(name, wide, kind) \
    FO_SHAPES(name, 1, wide, kind) FO_SHAPES(name, 2, wide, kind) \
    static inline void name(int mr, int nv, ptrdiff_t steps, const uint8_t *a, const uint8_t *b, \
                            int32_t *c, int first, const uint8_t *next) { \
        if (nv == 2) name##_2(mr, steps, a, b, c, first, next); \
        else name##_1(mr, steps, a, b, c, first, next); \
    }
#endif
typedef void (*fo_tile_fn)(int, int, ptrdiff_t, const uint8_t *, const uint8_t *, int32_t *, int,
                           const uint8_t *);
FO_ENTRY(fo_u8s8, 0, FO_S8)
FO_ENTRY(fo_s16, 1, FO_S16)
FO_ENTRY(fo_s16s8, 1, FO_S8)
FO_ENTRY(fo_u8s4, 0, FO_S4)
#if defined(fo_pairs)
FO_ENTRY(fo_u8b4, 0, FO_B4)
#else
#define fo_u8b4 fo_u8s8
#endif

#if defined(__AVX2__)
#define FO_END_ENTRY(name, kind) \
    static __attribute__((noinline)) void name(int mr, ptrdiff_t steps, const uint8_t *a, \
                                               const uint8_t *b, int32_t *c, \
                                               const uint8_t *next, const fo_end *end) { \
        switch (mr) { FO_ALL_ROWS(FO_NV, 0, kind, steps, a, b, c, 1, next, 1, end) } \
    }
FO_END_ENTRY(fo_u8s8_end, FO_S8)
FO_END_ENTRY(fo_u8s4_end, FO_S4)
#if defined(fo_pairs)
FO_END_ENTRY(fo_u8b4_end, FO_B4)
#else
#define fo_u8b4_end fo_u8s8_end
#endif
static inline void fo_group_tile(int mr, int kind, ptrdiff_t steps, const uint8_t *a,
                                 const uint8_t *b, int32_t *c, const uint8_t *next,
                                 const uint8_t *head, const int32_t *rows, ptrdiff_t stride,
                                 float *acc) {
    const fo_end end = {(const float *)head, rows, stride, acc};
    if (kind == FO_S4) fo_u8s4_end(mr, steps, a, b, c, next, &end);
    else if (kind == FO_B4) fo_u8b4_end(mr, steps, a, b, c, next, &end);
    else fo_u8s8_end(mr, steps, a, b, c, next, &end);
}
#else
#define fo_group_tile(...) (void)0
#endif

/* int8 quads to the int16 layout of the s16 path. */
static inline void fo_widen(ptrdiff_t steps, int nv, const uint8_t *__restrict b,
                            uint8_t *__restrict out) {
    for (ptrdiff_t s = 0; s < steps; s++)
        for (int v = 0; v < nv; v++) {
            const fo_vec x = fo_load(b + (s * nv + v) * FO_VB);
            fo_store(out + (2 * s * nv + v) * FO_VB, fo_even16(x));
            fo_store(out + (2 * s * nv + nv + v) * FO_VB, fo_odd16(x));
        }
}
#endif
