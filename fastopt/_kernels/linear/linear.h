/* Mini-batches of linear models, for float and double: lanes.h and rows.h (products of
   rows), loss.h (losses), batch.h (both over the rows of a batch). Nothing depends on
   the width of the machine's vectors, so every level gives the same bits. */
#ifndef FO_LINEAR
#define FO_LINEAR
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#define FO_CHUNK 64 /* rows taken at once */

/* The high 64 bits of a b. */
static inline uint64_t fo_high_product(uint64_t a, uint64_t b) {
#ifdef __SIZEOF_INT128__
    return (uint64_t)(((unsigned __int128)a * b) >> 64);
#else
    uint64_t al = (uint32_t)a, ah = a >> 32, bl = (uint32_t)b, bh = b >> 32;
    uint64_t m = ah * bl + ((al * bl) >> 32), t = al * bh + (uint32_t)m;
    return ah * bh + (m >> 32) + (t >> 32);
#endif
}

/* codes[i] = whether a label's bytes are those of few[1], for the sixteens first..last-1 of n >= 16
   labels (the last begins at n - 16); true if one's bytes are those of neither. */
static inline int fo_label(uint8_t *restrict codes, const void *labels, const void *few, int size,
                    ptrdiff_t n, ptrdiff_t first, ptrdiff_t last) {
    int other = 0;
#define EACH(T)                                                                     \
    for (ptrdiff_t b = first; b < last; b++) {                                      \
        const ptrdiff_t i = 16 * b < n - 16 ? 16 * b : n - 16;                      \
        const T *a = (const T *)labels + i, *two = few;                             \
        T odd = 0, zero = two[0], one = two[1];                                     \
        for (int l = 0; l < 16; l++) odd |= a[l] == one ? 0 : a[l] ^ zero;     \
        for (int l = 0; l < 16; l++) codes[i + l] = a[l] == one;                    \
        other |= odd != 0;                                                          \
    }
    if (size == 8) {
        EACH(uint64_t)
    } else if (size == 4) {
        EACH(uint32_t)
    } else {
        EACH(uint8_t)
    }
#undef EACH
    return other;
}

enum { FO_SQUARED, FO_HUBER, FO_EPSILON, FO_SQUARED_EPSILON, FO_LOG, FO_HINGE, FO_SQUARED_HINGE,
       FO_MODIFIED_HUBER, FO_PERCEPTRON, FO_SOFTMAX };
enum { FO_DIRECT, FO_ONE_VS_REST, FO_TWO };

/* What a pass over rows needs to know; the pointers are float or double, as the function's name. */
typedef struct {
    const void *x;          /* (n, d) */
    const void *y;          /* (n,) class numbers, or (n, wide) targets */
    const void *s;          /* (n,) sample weights, or NULL */
    ptrdiff_t n, d, k;      /* rows, columns, outputs */
    ptrdiff_t pad;          /* d rounded up to whole lanes: the stride of w and g */
    ptrdiff_t wide;         /* targets a row: 1, or k */
    ptrdiff_t group;        /* consecutive rows that one entry of the order stands for */
    int loss, targets, intercept;
    int coded;              /* y is uint8, else as x */
    double epsilon;
} fo_rows;

#define REAL float
#define LANES 16
#define UINT uint32_t
#define NAME(x) x##_f32
#include "lanes.h"
#include "loss.h"
#ifndef FO_LOSS_ALONE
#include "rows.h"
#include "batch.h"
#endif
#undef REAL
#undef LANES
#undef UINT
#undef NAME

#define FO_DOUBLE
#define REAL double
#define LANES 8
#define UINT uint64_t
#define NAME(x) x##_f64
#include "lanes.h"
#include "loss.h"
#ifndef FO_LOSS_ALONE
#include "rows.h"
#include "batch.h"
#endif
#undef REAL
#undef LANES
#undef UINT
#undef NAME
#undef FO_DOUBLE
#endif
