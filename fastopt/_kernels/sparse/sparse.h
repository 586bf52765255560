/* A group of R rows of a sparse matrix times a dense one; see sparse.pyx. */
#ifndef FO_SPARSE_H
#define FO_SPARSE_H
#include <stddef.h>
#include <stdint.h>

/* One register (a wider vector gcc 12 takes apart through memory: 5 times slower with AVX2); loads
   need no alignment. */
#if defined(__AVX512F__)
#define FO_BYTES 64
#elif defined(__AVX2__)
#define FO_BYTES 32
#else
#define FO_BYTES 16
#endif
typedef float fo_vf __attribute__((vector_size(FO_BYTES), aligned(4), may_alias));
typedef double fo_vd __attribute__((vector_size(FO_BYTES), aligned(8), may_alias));

#define FO_STEP1(V, L, K)                                                                               \
    const V x##K = *(const V *)(at + K * (L));                                                      \
    a##K += v * x##K;
/* n columns of rows of `stride`. Every output element adds its products in the order of the stored entries, whatever the tile. */
#define FO_SPARSE(NAME1, NAME4, T, V, L)                                                          \
    static inline void NAME1(T *__restrict y, const T *__restrict value,                          \
                             const int32_t *__restrict index, ptrdiff_t count,                    \
                             const T *__restrict x, ptrdiff_t n, ptrdiff_t stride) {                                \
        ptrdiff_t c = 0;                                                                          \
        for (; c + 4 * L <= n; c += 4 * L) {                                                      \
            V a0 = {0}, a1 = {0}, a2 = {0}, a3 = {0};                                             \
            for (ptrdiff_t p = 0; p < count; p++) {                                               \
                const T *at = x + index[p] * stride + c;                                               \
                const T v = value[p];                                                             \
                FO_STEP1(V, L, 0) FO_STEP1(V, L, 1)                                               \
                FO_STEP1(V, L, 2) FO_STEP1(V, L, 3)                                               \
            }                                                                                     \
            *(V *)(y + c) = a0, *(V *)(y + c + L) = a1;                                           \
            *(V *)(y + c + 2 * L) = a2, *(V *)(y + c + 3 * L) = a3;                               \
        }                                                                                         \
        for (; c + (L) <= n; c += (L)) {                                                              \
            V a0 = {0};                                                                           \
            for (ptrdiff_t p = 0; p < count; p++) {                                               \
                const T *at = x + index[p] * stride + c;                                               \
                const T v = value[p];                                                             \
                FO_STEP1(V, L, 0)                                                                       \
            }                                                                                     \
            *(V *)(y + c) = a0;                                                                   \
        }                                                                                         \
        for (; c < n; c++) {                                                                      \
            T a = 0;                                                                              \
            for (ptrdiff_t p = 0; p < count; p++) a += value[p] * x[index[p] * stride + c];            \
            y[c] = a;                                                                             \
        }                                                                                         \
    }                                                                                             \
    static inline void NAME4(T *__restrict y, const T *__restrict value,                          \
                             const int32_t *__restrict index, ptrdiff_t count,                    \
                             const T *__restrict x, ptrdiff_t n, ptrdiff_t stride) {                                \
        T *y1 = y + stride, *y2 = y + 2 * stride, *y3 = y + 3 * stride;                           \
        ptrdiff_t c = 0;                                                                          \
        for (; c + FO_WIDE * L <= n; c += FO_WIDE * L) {                                          \
            V a0 = {0}, a1 = {0}, a2 = {0}, a3 = {0};                                             \
            V b0 = {0}, b1 = {0}, b2 = {0}, b3 = {0};                                             \
            for (ptrdiff_t p = 0; p < count; p++) {                                               \
                const T *at = x + index[p] * stride + c, *v = value + 4 * p;                           \
                const V x0 = *(const V *)at;                                                      \
                a0 += v[0] * x0, a1 += v[1] * x0, a2 += v[2] * x0, a3 += v[3] * x0;               \
                if (FO_WIDE == 2) {                                                               \
                    const V x1 = *(const V *)(at + L);                                            \
                    b0 += v[0] * x1, b1 += v[1] * x1, b2 += v[2] * x1, b3 += v[3] * x1;           \
                }                                                                                 \
            }                                                                                     \
            *(V *)(y + c) = a0, *(V *)(y1 + c) = a1, *(V *)(y2 + c) = a2, *(V *)(y3 + c) = a3;    \
            if (FO_WIDE == 2) {                                                                   \
                *(V *)(y + c + L) = b0, *(V *)(y1 + c + L) = b1;                                  \
                *(V *)(y2 + c + L) = b2, *(V *)(y3 + c + L) = b3;                                 \
            }                                                                                     \
        }                                                                                         \
        for (; c < n; c++) {                                                                      \
            T a0 = 0, a1 = 0, a2 = 0, a3 = 0;                                                     \
            for (ptrdiff_t p = 0; p < count; p++) {                                               \
                const T v = x[index[p] * stride + c];                                                  \
                a0 += value[4 * p] * v, a1 += value[4 * p + 1] * v;                               \
                a2 += value[4 * p + 2] * v, a3 += value[4 * p + 3] * v;                           \
            }                                                                                     \
            y[c] = a0, y1[c] = a1, y2[c] = a2, y3[c] = a3;                                        \
        }                                                                                         \
    }
#define FO_WIDE 2 /* vectors of each of four rows: eight accumulators */
FO_SPARSE(fo_sparse1_f, fo_sparse4_f, float, fo_vf, FO_BYTES / 4)
FO_SPARSE(fo_sparse1_d, fo_sparse4_d, double, fo_vd, FO_BYTES / 8)

#endif
