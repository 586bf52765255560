/* One column's elimination, h lower triangular in full storage; see calibrate.pyx. */
#ifndef FO_ELIMINATE_H
#define FO_ELIMINATE_H
#include <stddef.h>
#include <stdint.h>

/* order, loss (n): which weight leaves when and what it costs. h (n x n), w (n) are overwritten;
   column (n) and id (n) are work space. */
static inline void fo_eliminate(int64_t *__restrict order, double *__restrict loss,
                                double *__restrict h, double *__restrict w,
                                double *__restrict column, int64_t *__restrict id, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < n; i++) id[i] = i;
    for (ptrdiff_t m = n; m > 0; m--) {
        ptrdiff_t at = 0;
        double best = w[0] * w[0] / h[0];
        for (ptrdiff_t i = 1; i < m; i++) {
            double cost = w[i] * w[i] / h[i * n + i];
            if (cost < best) best = cost, at = i;
        }
        const ptrdiff_t last = m - 1;
        order[n - m] = id[at];
        loss[n - m] = best;
        for (ptrdiff_t j = 0; j <= at; j++) column[j] = h[at * n + j];
        for (ptrdiff_t j = at + 1; j < m; j++) column[j] = h[j * n + at];
        const double pivot = column[at], weight = w[at] / pivot;
        /* the last one takes the place of the one that leaves, so the rest stays dense */
        for (ptrdiff_t j = 0; j < at; j++) h[at * n + j] = h[last * n + j];
        for (ptrdiff_t j = at + 1; j < last; j++) h[j * n + at] = h[last * n + j];
        h[at * n + at] = h[last * n + last];
        column[at] = column[last];
        w[at] = w[last];
        id[at] = id[last];
        for (ptrdiff_t r = 0; r < last; r++) {
            const double scale = column[r] / pivot;
            double *__restrict row = h + r * n;
            w[r] -= weight * column[r];
            for (ptrdiff_t j = 0; j <= r; j++) row[j] -= scale * column[j];
        }
    }
}

#endif
