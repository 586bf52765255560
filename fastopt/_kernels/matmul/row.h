/* One row of A against FO_ABREAST full column panels at once. A row has little to do with each byte
 * of B, so it waits for memory; several streams bring more of it than one (on Ice Lake 11 GB/s
 * with one, 14 with four, 16 with eight; 28-30 from the last cache with any). */
#ifndef FO_ROW_INT8
#define FO_ROW_INT8
#include "dot.h"

#ifndef FO_ABREAST
#define FO_ABREAST 4
#endif

/* b: a slice of the first panel, the others' stride bytes on. c: [FO_ABREAST][FO_NR] sums, from
 * zero; or end, the ends of a group, its panels' heads stride bytes apart, c is scratch. */
FO_INLINE void fo_row(const int wide, const int kind, ptrdiff_t steps,
                      const uint8_t *__restrict a, const uint8_t *__restrict b, ptrdiff_t stride,
                      int32_t *__restrict c, const int ended, const fo_end *end) {
    enum { V = FO_ABREAST * FO_NV };
    fo_vec acc[V];
    const int quads = kind == FO_S4 ? 2 : 1;
#if defined(fo_pairs)
    const int brief = kind == FO_S4; /* eight quads are summed in 16 bits, as in fo_tile4 */
#else
    const int brief = 0;
#endif
#pragma GCC unroll 32
    for (int v = 0; v < V; v++) {
        acc[v] = fo_zero();
        if (brief) fo_store(c + v * FO_LANES, acc[v]);
    }
    do {
        const ptrdiff_t stop = brief && steps > 8 ? steps - 8 : 0;
        for (; steps > stop; steps -= quads) {
            const fo_vec z0 = fo_set32(fo_quad(a)), z1 = fo_set32(fo_quad(a + 4));
#pragma GCC unroll 32
            for (int v = 0; v < V; v++) {
                const uint8_t *from = b + v / FO_NV * stride + v % FO_NV * FO_VB;
                const fo_vec y = fo_load(from);
                if (v % FO_NV * FO_VB % 64 == 0) __builtin_prefetch(from + FO_AHEAD, 0, 3);
                if (brief) {
#if defined(fo_pairs)
                    acc[v] = fo_add16(acc[v], fo_pairs(z0, fo_low4(y)));
                    acc[v] = fo_add16(acc[v], fo_pairs(z1, fo_high4(y)));
#endif
                } else if (wide) {
                    acc[v] = fo_dot16(acc[v], z0, fo_even16(y));
                    acc[v] = fo_dot16(acc[v], z1, fo_odd16(y));
                } else if (kind == FO_S4) {
                    acc[v] = fo_dot8(acc[v], z0, fo_low4(y));
                    acc[v] = fo_dot8(acc[v], z1, fo_high4(y));
                } else {
                    acc[v] = fo_dot8(acc[v], z0, y);
                }
                FO_PIN(acc[v]);
            }
            a += (wide ? 8 : 4) * quads;
            b += FO_NV * FO_VB;
        }
        if (brief)
#pragma GCC unroll 32
            for (int v = 0; v < V; v++) {
                int32_t *at = c + v * FO_LANES;
                fo_store(at, fo_dot16(fo_load(at), acc[v], fo_set32(0x10001)));
                acc[v] = fo_zero();
            }
    } while (steps > 0);
#pragma GCC unroll 32
    for (int v = 0; v < V; v++) {
        if (brief) acc[v] = fo_load(c + v * FO_LANES);
        else if (!ended) fo_store(c + v * FO_LANES, acc[v]);
    }
    if (ended)
#pragma GCC unroll 8
        for (int p = 0; p < FO_ABREAST; p++) {
            const fo_end one = {(const float *)((const uint8_t *)end->scale + p * stride),
                                end->rows, 0, end->acc + p * FO_NR};
            fo_end_row(&one, 0, FO_NV, acc + p * FO_NV);
        }
}

#define FO_ROW_ENTRY(name, wide, kind) \
    static __attribute__((noinline)) void name(ptrdiff_t steps, const uint8_t *a, \
                                               const uint8_t *b, ptrdiff_t stride, int32_t *c) { \
        fo_row(wide, kind, steps, a, b, stride, c, 0, NULL); \
    }
FO_ROW_ENTRY(fo_row_u8s8, 0, FO_S8)
FO_ROW_ENTRY(fo_row_u8s4, 0, FO_S4)
FO_ROW_ENTRY(fo_row_s16s8, 1, FO_S8)
typedef void (*fo_row_fn)(ptrdiff_t, const uint8_t *, const uint8_t *, ptrdiff_t, int32_t *);

#if defined(__AVX2__)
/* A group that ends inside, its heads before the panels' codes. */
static __attribute__((noinline)) void fo_group_row_panels(
    int kind, ptrdiff_t steps, const uint8_t *a, const uint8_t *b, ptrdiff_t stride, int32_t *c,
    const uint8_t *head, const int32_t *rows, float *acc) {
    const fo_end end = {(const float *)head, rows, 0, acc};
    if (kind == FO_S4) fo_row(0, FO_S4, steps, a, b, stride, c, 1, &end);
    else fo_row(0, FO_S8, steps, a, b, stride, c, 1, &end);
}
#else
#define fo_group_row_panels(...) (void)0
#endif
#endif
