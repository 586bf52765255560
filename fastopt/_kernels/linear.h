/* Mini-batches of linear models, for float and double: linear_rows.h (products of rows),
   linear_loss.h (losses), linear_batch.h (both over the rows of a batch). Nothing depends on the
   width of the machine's vectors, so every level gives the same bits. */
#ifndef FO_LINEAR
#define FO_LINEAR
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__SSE3__)
#include <immintrin.h>
#endif

/* FO_ROWS rows of FO_PARTS machine vectors: the running sums that fit the registers. */
#define FO_FOUR(X, a, b, c, d) X(a) X(b) X(c) X(d)
#if defined(__AVX512F__) && defined(__AVX512DQ__)
#define FO_BYTES 64
#define FO_ROWS 16
#define FO_EACH_PART(X) X(0)
#define FO_EACH_SUM(X) FO_FOUR(X, 0, 1, 2, 3) FO_FOUR(X, 4, 5, 6, 7) FO_FOUR(X, 8, 9, 10, 11) \
                       FO_FOUR(X, 12, 13, 14, 15)
#elif defined(__AVX2__)
#define FO_BYTES 32
#define FO_ROWS 4
#define FO_EACH_PART(X) X(0) X(1)
#define FO_EACH_SUM(X) FO_FOUR(X, 0, 1, 2, 3) FO_FOUR(X, 4, 5, 6, 7)
#else
#define FO_BYTES 16
#define FO_ROWS 2
#define FO_EACH_PART(X) FO_FOUR(X, 0, 1, 2, 3)
#define FO_EACH_SUM(X) FO_FOUR(X, 0, 1, 2, 3) FO_FOUR(X, 4, 5, 6, 7)
#endif
#define FO_PARTS (64 / FO_BYTES)
#define FO_CHUNK 64    /* rows whose losses are taken at once */
#define FO_INLINE static inline __attribute__((always_inline))
#define FO_APART static __attribute__((noinline)) /* its loops get the registers for themselves */

enum { FO_SQUARED, FO_HUBER, FO_EPSILON, FO_SQUARED_EPSILON, FO_LOG, FO_HINGE, FO_SQUARED_HINGE,
       FO_MODIFIED_HUBER, FO_PERCEPTRON, FO_SOFTMAX };
enum { FO_DIRECT, FO_ONE_VS_REST };

/* What a pass over rows needs to know; the pointers are float or double, as the function's name. */
typedef struct {
    const void *x;          /* (n, d) */
    const void *y;          /* (n,) targets or class numbers, or (n, k) targets */
    const void *s;          /* (n,) sample weights, or NULL */
    ptrdiff_t n, d, k;      /* rows, columns, outputs */
    ptrdiff_t pad;          /* d rounded up to whole lanes: the stride of w and g */
    ptrdiff_t wide;         /* targets a row: 1, or k */
    ptrdiff_t group;        /* consecutive rows that one entry of the order stands for */
    int loss, targets, intercept;
    double epsilon;
} fo_rows;

#define REAL float
#define LANES 16
#define UINT uint32_t
#define NAME(x) x##_f32
#include "linear_loss.h"
#ifndef FO_LOSS_ALONE
#include "linear_rows.h"
#include "linear_batch.h"
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
#include "linear_loss.h"
#ifndef FO_LOSS_ALONE
#include "linear_rows.h"
#include "linear_batch.h"
#endif
#undef REAL
#undef LANES
#undef UINT
#undef NAME
#undef FO_DOUBLE
#endif
