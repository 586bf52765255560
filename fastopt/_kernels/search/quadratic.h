/* rest[c] -= |L^-1 k_c|^2 for LANES columns k_c: the one loop whose sums must stay in registers,
 * where gcc would put an array of them into memory. Every column adds up its products in the order
 * of the rows, so the width of the vectors does not change the bits. */
#ifndef FO_QUADRATIC_H
#define FO_QUADRATIC_H
#include <stddef.h>
#include <string.h>

#if defined(__AVX512F__)
#define FO_BYTES 64
#elif defined(__AVX2__)
#define FO_BYTES 32
#else
#define FO_BYTES 16
#endif
typedef double fo_wide __attribute__((vector_size(FO_BYTES)));
#define FO_WIDTH (FO_BYTES / 8)
#define FO_ROWS 4 /* rows that share the loads of k; with two vectors of columns, 8 sums */

static inline fo_wide fo_at(const double *p)
{
    fo_wide v;
    memcpy(&v, p, sizeof v);
    return v;
}

/* k (n, lanes); inverse (n, n) with zeros above the diagonal, so a block of rows may run to its
 * last row's end; lanes is a multiple of 2 FO_WIDTH. */
static inline void fo_quadratic(double *rest, const double *inverse, const double *k, ptrdiff_t n,
                                ptrdiff_t lanes)
{
    for (ptrdiff_t c = 0; c < lanes; c += 2 * FO_WIDTH) {
        fo_wide left0 = fo_at(rest + c), left1 = fo_at(rest + c + FO_WIDTH);
        ptrdiff_t i = 0;
        for (; i + FO_ROWS <= n; i += FO_ROWS) {
            const double *row = inverse + i * n;
            fo_wide s[FO_ROWS][2] = {{{0}}};
            for (ptrdiff_t j = 0; j < i + FO_ROWS; j++) {
                fo_wide a = fo_at(k + j * lanes + c), b = fo_at(k + j * lanes + c + FO_WIDTH);
                for (int r = 0; r < FO_ROWS; r++) {
                    s[r][0] += row[r * n + j] * a;
                    s[r][1] += row[r * n + j] * b;
                }
            }
            for (int r = 0; r < FO_ROWS; r++) {
                left0 -= s[r][0] * s[r][0];
                left1 -= s[r][1] * s[r][1];
            }
        }
        for (; i < n; i++) {
            fo_wide a = {0}, b = {0};
            for (ptrdiff_t j = 0; j <= i; j++) {
                a += inverse[i * n + j] * fo_at(k + j * lanes + c);
                b += inverse[i * n + j] * fo_at(k + j * lanes + c + FO_WIDTH);
            }
            left0 -= a * a;
            left1 -= b * b;
        }
        memcpy(rest + c, &left0, sizeof left0);
        memcpy(rest + c + FO_WIDTH, &left1, sizeof left1);
    }
}
#endif
