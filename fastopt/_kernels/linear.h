/* Row blocks of linear models: dot products, losses and gradients of up to 8 rows at a time.

   Included twice below, for float and double. A row is always read in groups of 64 bytes (LANES
   elements) with one running sum a lane, whatever the width of the machine's vectors, and the lanes
   are added in one fixed tree; no fused multiply-add. So every level gives the same bits. */
#ifndef FO_LINEAR
#define FO_LINEAR
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__SSE3__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__) && defined(__AVX512DQ__)
#define FO_BYTES 64
#define FO_ROWS 8 /* rows whose running sums fit the registers */
#elif defined(__AVX2__)
#define FO_BYTES 32
#define FO_ROWS 4
#else
#define FO_BYTES 16
#define FO_ROWS 2
#endif
#define FO_PARTS (64 / FO_BYTES)
#define FO_CHUNK 64    /* rows whose losses are taken at once */
#define FO_AHEAD 4096  /* bytes of rows asked for early: latency times bandwidth, and some */
#define FO_INLINE static inline __attribute__((always_inline))

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
    ptrdiff_t group;        /* consecutive rows that one entry of the order stands for */
    int loss, targets, intercept;
    double epsilon;
} fo_rows;

#define REAL float
#define LANES 16
#define UINT uint32_t
#define NAME(x) x##_f32
#include "linear_real.h"
#undef REAL
#undef LANES
#undef UINT
#undef NAME

#define FO_DOUBLE
#define REAL double
#define LANES 8
#define UINT uint64_t
#define NAME(x) x##_f64
#include "linear_real.h"
#undef REAL
#undef LANES
#undef UINT
#undef NAME
#undef FO_DOUBLE
#endif
