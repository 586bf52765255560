/* The body of linear.h for one REAL. */

#define VEC NAME(fo_vec)
#define UVEC NAME(fo_uvec)
#define HALF NAME(fo_half)
#define WIDE (FO_BYTES / (int)sizeof(REAL)) /* elements of one machine vector */

typedef REAL VEC __attribute__((vector_size(FO_BYTES)));
typedef REAL UVEC __attribute__((vector_size(FO_BYTES), aligned(sizeof(REAL)), may_alias));
typedef REAL HALF __attribute__((vector_size(16)));

/* The last m < LANES elements of a row, zeros behind them; nothing past the row is read. */
FO_INLINE void NAME(fo_tail)(const REAL *p, int m, VEC out[FO_PARTS]) {
#if FO_BYTES == 64 && !defined(FO_DOUBLE)
    out[0] = (VEC)_mm512_maskz_loadu_ps((__mmask16)((1u << m) - 1), p);
#elif FO_BYTES == 64
    out[0] = (VEC)_mm512_maskz_loadu_pd((__mmask8)((1u << m) - 1), p);
#elif FO_BYTES == 32 && !defined(FO_DOUBLE)
    static const int32_t mask[32] = {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1};
    out[0] = (VEC)_mm256_maskload_ps(p, _mm256_loadu_si256((const __m256i *)(mask + 16 - m)));
    out[1] = (VEC)_mm256_maskload_ps(p + 8, _mm256_loadu_si256((const __m256i *)(mask + 24 - m)));
#elif FO_BYTES == 32
    static const int64_t mask[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
    out[0] = (VEC)_mm256_maskload_pd(p, _mm256_loadu_si256((const __m256i *)(mask + 8 - m)));
    out[1] = (VEC)_mm256_maskload_pd(p + 4, _mm256_loadu_si256((const __m256i *)(mask + 12 - m)));
#else
    REAL lanes[LANES] = {0};
    for (int i = 0; i < m; i++) lanes[i] = p[i];
    memcpy(out, lanes, sizeof lanes);
#endif
}

/* LANES running sums -> 16 bytes of them: lane i + lane i + LANES/2, and once more. */
FO_INLINE HALF NAME(fo_fold)(const VEC *a) {
#if FO_BYTES == 64 && !defined(FO_DOUBLE)
    __m256 h = _mm256_add_ps(_mm512_castps512_ps256((__m512)a[0]),
                             _mm512_extractf32x8_ps((__m512)a[0], 1));
    return (HALF)_mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
#elif FO_BYTES == 64
    __m256d h = _mm256_add_pd(_mm512_castpd512_pd256((__m512d)a[0]),
                              _mm512_extractf64x4_pd((__m512d)a[0], 1));
    return (HALF)_mm_add_pd(_mm256_castpd256_pd128(h), _mm256_extractf128_pd(h, 1));
#elif FO_BYTES == 32 && !defined(FO_DOUBLE)
    __m256 h = (__m256)(a[0] + a[1]);
    return (HALF)_mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
#elif FO_BYTES == 32
    __m256d h = (__m256d)(a[0] + a[1]);
    return (HALF)_mm_add_pd(_mm256_castpd256_pd128(h), _mm256_extractf128_pd(h, 1));
#else
    return (a[0] + a[2]) + (a[1] + a[3]);
#endif
}

/* Dot products of R rows with w (zeros behind its n elements), folded to 16 bytes each. */
FO_INLINE void NAME(fo_dots)(const REAL *const *x, const REAL *w, ptrdiff_t n, const int R,
                             HALF *out) {
    VEC acc[8][FO_PARTS], tail[FO_PARTS];
    ptrdiff_t j = 0;
    for (int r = 0; r < R; r++)
        for (int p = 0; p < FO_PARTS; p++) acc[r][p] = (VEC){0};
    for (; j + LANES <= n; j += LANES)
        for (int p = 0; p < FO_PARTS; p++) {
            VEC wv = *(const UVEC *)(w + j + p * WIDE);
            for (int r = 0; r < R; r++) acc[r][p] += *(const UVEC *)(x[r] + j + p * WIDE) * wv;
        }
    if (j < n)
        for (int r = 0; r < R; r++) {
            NAME(fo_tail)(x[r] + j, (int)(n - j), tail);
            for (int p = 0; p < FO_PARTS; p++)
                acc[r][p] += tail[p] * *(const UVEC *)(w + j + p * WIDE);
        }
    for (int r = 0; r < R; r++) out[r] = NAME(fo_fold)(acc[r]);
}

/* z[r] = x[r] . w + b for rows <= 8 rows; the rest of the 8 gets b. */
FO_INLINE void NAME(fo_margins)(const REAL *const *x, int rows, const REAL *w, ptrdiff_t n, REAL b,
                                REAL *z) {
    HALF q[8];
    if (rows == 8) {
        for (int r = 0; r < 8; r += FO_ROWS) NAME(fo_dots)(x + r, w, n, FO_ROWS, q + r);
    } else {
        for (int r = 0; r < 8; r++) q[r] = (HALF){0};
        for (int r = 0; r < rows; r++) NAME(fo_dots)(x + r, w, n, 1, q + r);
    }
#ifdef FO_DOUBLE
    for (int r = 0; r < 8; r++) z[r] = (q[r][0] + q[r][1]) + b;
#elif defined(__SSE3__)
    for (int r = 0; r < 8; r += 4) {
        __m128 t = _mm_hadd_ps(_mm_hadd_ps((__m128)q[r], (__m128)q[r + 1]),
                               _mm_hadd_ps((__m128)q[r + 2], (__m128)q[r + 3]));
        _mm_storeu_ps(z + r, _mm_add_ps(t, _mm_set1_ps(b)));
    }
#else
    for (int r = 0; r < 8; r++) z[r] = ((q[r][0] + q[r][1]) + (q[r][2] + q[r][3])) + b;
#endif
}

/* g += sum of e[r] x[r] over rows <= 8 rows, eight added as one tree; g has whole lanes. */
FO_INLINE void NAME(fo_axpys)(const REAL *const *x, int rows, const REAL *e, ptrdiff_t n, REAL *g) {
    VEC t[8][FO_PARTS];
    ptrdiff_t j = 0, whole = n - n % LANES;
    if (rows < 8) {
        for (int r = 0; r < rows; r++) {
            for (j = 0; j < whole; j += WIDE)
                *(UVEC *)(g + j) += e[r] * *(const UVEC *)(x[r] + j);
            if (j == n) continue;
            NAME(fo_tail)(x[r] + j, (int)(n - j), t[0]);
            for (int p = 0; p < FO_PARTS; p++) *(UVEC *)(g + j + p * WIDE) += e[r] * t[0][p];
        }
        return;
    }
    for (; j < whole; j += WIDE) {
#define X(r) (e[r] * *(const UVEC *)(x[r] + j))
        *(UVEC *)(g + j) += ((X(0) + X(1)) + (X(2) + X(3))) + ((X(4) + X(5)) + (X(6) + X(7)));
#undef X
    }
    if (j == n) return;
    for (int r = 0; r < 8; r++) {
        NAME(fo_tail)(x[r] + j, (int)(n - j), t[r]);
        for (int p = 0; p < FO_PARTS; p++) t[r][p] *= e[r];
    }
    for (int p = 0; p < FO_PARTS; p++)
        *(UVEC *)(g + j + p * WIDE) += ((t[0][p] + t[1][p]) + (t[2][p] + t[3][p])) +
                                       ((t[4][p] + t[5][p]) + (t[6][p] + t[7][p]));
}

/* Sum of n elements, n a multiple of 8: eight running sums, then one tree. */
FO_INLINE REAL NAME(fo_sum)(const REAL *a, int n) {
    REAL t[8] = {0};
    for (int i = 0; i < n; i += 8)
        for (int l = 0; l < 8; l++) t[l] += a[i + l];
    return ((t[0] + t[1]) + (t[2] + t[3])) + ((t[4] + t[5]) + (t[6] + t[7]));
}

/* a[i] = exp(a[i]) for a[i] <= 0: 2^n times the Taylor sum on |r| <= ln(2)/2. Far below it stops
   near the smallest normal number; a NaN gives that as well (the margins' own check sees it). */
static void NAME(fo_exp)(REAL *__restrict a, int n) {
#ifdef FO_DOUBLE
    const REAL low = -708.0, magic = 6755399441055744.0, ln2_high = 0x1.62e42fefa0000p-1,
               ln2_low = 0x1.cf79abc9e3b3ap-40;
    const int bits = 52;
#else
    const REAL low = -87.0f, magic = 12582912.0f, ln2_high = 0x1.62e400p-1f,
               ln2_low = 0x1.7f7d1cp-20f;
    const int bits = 23;
#endif
    for (int i = 0; i < n; i++) {
        REAL v = a[i] > low ? a[i] : low;
        REAL shifted = v * (REAL)1.4426950408889634 + magic; /* the low bits hold round(v / ln 2) */
        REAL m = shifted - magic, r = (v - m * ln2_high) - m * ln2_low, sum;
        UINT power, u;
#ifdef FO_DOUBLE
        sum = (REAL)(1 / 6227020800.0);
        sum = sum * r + (REAL)(1 / 479001600.0);
        sum = sum * r + (REAL)(1 / 39916800.0);
        sum = sum * r + (REAL)(1 / 3628800.0);
        sum = sum * r + (REAL)(1 / 362880.0);
        sum = sum * r + (REAL)(1 / 40320.0);
        sum = sum * r + (REAL)(1 / 5040.0);
#else
        sum = (REAL)(1 / 5040.0);
#endif
        sum = sum * r + (REAL)(1 / 720.0);
        sum = sum * r + (REAL)(1 / 120.0);
        sum = sum * r + (REAL)(1 / 24.0);
        sum = sum * r + (REAL)(1 / 6.0);
        sum = sum * r + (REAL)0.5;
        sum = sum * r + 1;
        sum = sum * r + 1;
        memcpy(&power, &shifted, sizeof power);
        memcpy(&u, &sum, sizeof u);
        u += power << bits;
        memcpy(&a[i], &u, sizeof u);
    }
}

/* log(1 + u) for 0 <= u <= 1: 2 atanh(s), s = u / (2 + u) <= 1/3, by its series. */
FO_INLINE REAL NAME(fo_log1p)(REAL u) {
    REAL s = u / (2 + u), q = s * s, sum = (REAL)(2 / 13.0);
#ifdef FO_DOUBLE
    sum = 2 / 31.0;
    sum = sum * q + 2 / 29.0;
    sum = sum * q + 2 / 27.0;
    sum = sum * q + 2 / 25.0;
    sum = sum * q + 2 / 23.0;
    sum = sum * q + 2 / 21.0;
    sum = sum * q + 2 / 19.0;
    sum = sum * q + 2 / 17.0;
    sum = sum * q + 2 / 15.0;
    sum = sum * q + 2 / 13.0;
#endif
    sum = sum * q + (REAL)(2 / 11.0);
    sum = sum * q + (REAL)(2 / 9.0);
    sum = sum * q + (REAL)(2 / 7.0);
    sum = sum * q + (REAL)(2 / 5.0);
    sum = sum * q + (REAL)(2 / 3.0);
    sum = sum * q + 2;
    return s * sum;
}

/* Loss of n rows, n a multiple of 8 up to FO_CHUNK: e is z (the margins) on entry and
   s dloss/dz on return; t the targets, s the weights (0 for absent rows). Returns the sum of
   s loss. */
static REAL NAME(fo_loss)(int loss, REAL eps, int n, REAL *__restrict e, const REAL *__restrict t,
                          const REAL *__restrict s) {
    REAL v[FO_CHUNK], a[FO_CHUNK];
    int i;
    switch (loss) {
    case FO_SQUARED: /* (z - t)^2 / 2 */
        for (i = 0; i < n; i++) {
            REAL r = e[i] - t[i];
            e[i] = s[i] * r;
            v[i] = (REAL)0.5 * (s[i] * r) * r;
        }
        break;
    case FO_HUBER: /* r^2 / 2 up to eps, then eps |r| - eps^2 / 2 */
        for (i = 0; i < n; i++) {
            REAL r = e[i] - t[i], c = r > eps ? eps : r < -eps ? -eps : r;
            e[i] = s[i] * c;
            v[i] = s[i] * c * (r - (REAL)0.5 * c);
        }
        break;
    case FO_EPSILON: /* max(0, |r| - eps) */
        for (i = 0; i < n; i++) {
            REAL r = e[i] - t[i], c = r > eps ? r - eps : r < -eps ? r + eps : 0;
            e[i] = c > 0 ? s[i] : c < 0 ? -s[i] : 0;
            v[i] = s[i] * (c > 0 ? c : -c);
        }
        break;
    case FO_SQUARED_EPSILON: /* max(0, |r| - eps)^2 */
        for (i = 0; i < n; i++) {
            REAL r = e[i] - t[i], c = r > eps ? r - eps : r < -eps ? r + eps : 0;
            e[i] = 2 * s[i] * c;
            v[i] = s[i] * c * c;
        }
        break;
    case FO_LOG: /* log(1 + exp(-t z)) */
        for (i = 0; i < n; i++) a[i] = e[i] < 0 ? e[i] : -e[i];
        NAME(fo_exp)(a, n);
        for (i = 0; i < n; i++) {
            REAL m = e[i] * t[i], p = 1 / (1 + a[i]);
            v[i] = s[i] * ((m < 0 ? -m : 0) + NAME(fo_log1p)(a[i]));
            e[i] = -t[i] * s[i] * (m < 0 ? p : a[i] * p);
        }
        break;
    case FO_HINGE: /* max(0, 1 - t z) */
        for (i = 0; i < n; i++) {
            REAL m = 1 - e[i] * t[i];
            e[i] = m > 0 ? -t[i] * s[i] : 0;
            v[i] = m > 0 ? s[i] * m : 0;
        }
        break;
    case FO_SQUARED_HINGE: /* max(0, 1 - t z)^2 */
        for (i = 0; i < n; i++) {
            REAL m = 1 - e[i] * t[i], c = m > 0 ? m : 0;
            e[i] = -2 * t[i] * s[i] * c;
            v[i] = s[i] * c * c;
        }
        break;
    case FO_MODIFIED_HUBER: /* max(0, 1 - t z)^2 down to t z = -1, then -4 t z */
        for (i = 0; i < n; i++) {
            REAL m = e[i] * t[i], c = m < 1 ? 1 - m : 0;
            e[i] = m >= -1 ? -2 * t[i] * s[i] * c : -4 * t[i] * s[i];
            v[i] = m >= -1 ? s[i] * c * c : -4 * s[i] * m;
        }
        break;
    default: /* perceptron: max(0, -t z) */
        for (i = 0; i < n; i++) {
            REAL m = e[i] * t[i];
            e[i] = m <= 0 ? -t[i] * s[i] : 0;
            v[i] = m <= 0 ? -s[i] * m : 0;
        }
    }
    return NAME(fo_sum)(v, n);
}

/* Cross-entropy of n rows over k outputs, as fo_loss; z is (k, n), t the class numbers. */
static REAL NAME(fo_softmax)(ptrdiff_t k, int n, REAL *__restrict z, const REAL *__restrict t,
                             const REAL *__restrict s) {
    REAL top[FO_CHUNK], sum[FO_CHUNK], hit[FO_CHUNK], v[FO_CHUNK];
    int i;
    for (i = 0; i < n; i++) top[i] = z[i], sum[i] = 0, hit[i] = 0;
    for (ptrdiff_t c = 1; c < k; c++)
        for (i = 0; i < n; i++) top[i] = z[n * c + i] > top[i] ? z[n * c + i] : top[i];
    for (ptrdiff_t c = 0; c < k; c++) {
        for (i = 0; i < n; i++) {
            REAL m = z[n * c + i] - top[i];
            hit[i] = t[i] == (REAL)c ? m : hit[i];
            z[n * c + i] = m;
        }
        NAME(fo_exp)(z + n * c, n);
        for (i = 0; i < n; i++) sum[i] += z[n * c + i];
    }
    /* log(sum) = log2 part by frexp + log1p keeps libm, whose bits differ, out of it */
    for (i = 0; i < n; i++) {
        int power;
        REAL part = (REAL)(2 * frexp((double)sum[i], &power)); /* 1 <= part < 2 */
        v[i] = s[i] * ((REAL)((power - 1) * 0.6931471805599453) + NAME(fo_log1p)(part - 1) - hit[i]);
        sum[i] = s[i] / sum[i];
    }
    for (ptrdiff_t c = 0; c < k; c++)
        for (i = 0; i < n; i++)
            z[n * c + i] = z[n * c + i] * sum[i] - (t[i] == (REAL)c ? s[i] : 0);
    return NAME(fo_sum)(v, n);
}

/* What one pass adds up besides the gradient. */
typedef struct {
    double loss, weight;
    REAL odd[8]; /* 0 while every margin is finite, else NaN */
} NAME(fo_sums);

/* Up to FO_CHUNK rows: their loss into sums, their gradient into g. w and g are k rows of pad
   elements, then the k intercepts; z is scratch of k times the rows, rounded up to 8. x, s and id
   are read up to `rows`; s and t are filled up to whole eights here. */
static void NAME(fo_chunk)(const fo_rows *f, const int64_t *id, const REAL *const *x, REAL *s,
                           int rows, const REAL *w, REAL *g, REAL *z, NAME(fo_sums) *sums) {
    const REAL *y = f->y;
    const ptrdiff_t k = f->k, pad = f->pad;
    const int n = (rows + 7) & ~7;
    REAL t[FO_CHUNK], loss = 0;
    for (int i = rows; i < n; i++) s[i] = 0, t[i] = 0;
    for (ptrdiff_t c = 0; c < k; c++) {
        REAL *zc = z + n * c;
        for (int i = 0; i < n; i += 8)
            NAME(fo_margins)(x + i, rows - i < 8 ? rows - i : 8, w + c * pad, f->d, w[k * pad + c],
                             zc + i);
        for (int i = 0; i < n; i += 8)
            for (int l = 0; l < 8; l++) sums->odd[l] += zc[i + l] - zc[i + l];
    }
    if (f->loss == FO_SOFTMAX || k == 1)
        for (int i = 0; i < rows; i++) t[i] = y[id[i]];
    if (f->loss == FO_SOFTMAX) {
        loss = NAME(fo_softmax)(k, n, z, t, s);
    } else if (k == 1) {
        loss = NAME(fo_loss)(f->loss, (REAL)f->epsilon, n, z, t, s);
    } else {
        for (ptrdiff_t c = 0; c < k; c++) {
            if (f->targets == FO_DIRECT)
                for (int i = 0; i < rows; i++) t[i] = y[id[i] * k + c];
            else
                for (int i = 0; i < rows; i++) t[i] = y[id[i]] == (REAL)c ? 1 : -1;
            loss += NAME(fo_loss)(f->loss, (REAL)f->epsilon, n, z + n * c, t, s);
        }
    }
    for (ptrdiff_t c = 0; c < k; c++) {
        const REAL *e = z + n * c;
        for (int i = 0; i < n; i += 8)
            NAME(fo_axpys)(x + i, rows - i < 8 ? rows - i : 8, e + i, f->d, g + c * pad);
        if (f->intercept) g[k * pad + c] += NAME(fo_sum)(e, n);
    }
    sums->loss += loss;
    sums->weight += NAME(fo_sum)(s, n);
}

/* A batch: the rows of `entries` entries of the order (`known` of them may be looked at ahead).
   Adds to g and sums; z holds room elements. Returns the number of rows. */
static ptrdiff_t NAME(fo_batch)(const fo_rows *f, const int64_t *order, ptrdiff_t entries,
                                ptrdiff_t known, const REAL *w, REAL *g, REAL *z, ptrdiff_t room,
                                NAME(fo_sums) *sums) {
    const REAL *x[FO_CHUNK], *base = f->x, *weights = f->s;
    REAL s[FO_CHUNK];
    int64_t id[FO_CHUNK];
    const ptrdiff_t row_bytes = f->d * (ptrdiff_t)sizeof(REAL), bytes = f->group * row_bytes;
    /* Chunks of about half the first-level cache; the next rows are asked for FO_AHEAD early. */
    ptrdiff_t cap = 16384 / (row_bytes + 1), total = 0, ahead = 1 + FO_AHEAD / (bytes + 1);
    int rows = 0;
    if (cap > room / f->k) cap = room / f->k;
    cap = cap > FO_CHUNK ? FO_CHUNK : cap < 8 ? 8 : cap & ~(ptrdiff_t)7;
    for (ptrdiff_t q = 0; q < entries; q++) {
        int64_t first = order[q] * f->group;
        ptrdiff_t length = f->n - first < f->group ? f->n - first : f->group;
        if (q + ahead < known) {
            const char *p = (const char *)base + order[q + ahead] * bytes;
            for (ptrdiff_t i = 0; i < bytes && i < 4096; i += 64) __builtin_prefetch(p + i, 0, 3);
        }
        total += length;
        for (ptrdiff_t i = 0; i < length; i++) {
            id[rows] = first + i;
            x[rows] = base + (first + i) * f->d;
            s[rows] = weights ? weights[first + i] : 1;
            if (++rows == cap) {
                NAME(fo_chunk)(f, id, x, s, rows, w, g, z, sums);
                rows = 0;
            }
        }
    }
    if (rows) NAME(fo_chunk)(f, id, x, s, rows, w, g, z, sums);
    return total;
}

#undef VEC
#undef UVEC
#undef HALF
#undef WIDE
