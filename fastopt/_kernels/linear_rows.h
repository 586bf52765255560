/* Rows times weights, and weighted sums of rows, sixteen rows at a time, for one REAL.

   A row is read in groups of 64 bytes (LANES elements), its last elements first, with one running
   sum a lane; then lane l and l + LANES/2 are added, once more by halves down to four (two) lanes,
   and those as neighbours. Every level does these same additions; none fuses them with a product. */

#define VEC NAME(fo_vec)
#define UVEC NAME(fo_uvec)
#define HALF NAME(fo_half)
#define WIDE (FO_BYTES / (int)sizeof(REAL)) /* elements of one machine vector */

typedef REAL VEC __attribute__((vector_size(FO_BYTES)));
typedef REAL UVEC __attribute__((vector_size(FO_BYTES), aligned(sizeof(REAL)), may_alias));
typedef REAL HALF __attribute__((vector_size(16)));

/* Machine vector p of the last m < LANES elements of a row, zeros behind them; nothing past the row
   is read. */
FO_INLINE VEC NAME(fo_tail)(const REAL *x, int m, const int p) {
#if FO_BYTES == 64 && !defined(FO_DOUBLE)
    return (VEC)_mm512_maskz_loadu_ps((__mmask16)((1u << m) - 1), x);
#elif FO_BYTES == 64
    return (VEC)_mm512_maskz_loadu_pd((__mmask8)((1u << m) - 1), x);
#elif FO_BYTES == 32 && !defined(FO_DOUBLE)
    static const int32_t mask[32] = {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1};
    return (VEC)_mm256_maskload_ps(x + 8 * p,
                                   _mm256_loadu_si256((const __m256i *)(mask + 16 + 8 * p - m)));
#elif FO_BYTES == 32
    static const int64_t mask[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
    return (VEC)_mm256_maskload_pd(x + 4 * p,
                                   _mm256_loadu_si256((const __m256i *)(mask + 8 + 4 * p - m)));
#else
    VEC lanes = {0};
    for (int i = WIDE * p; i < m && i < WIDE * (p + 1); i++) lanes[i - WIDE * p] = x[i];
    return lanes;
#endif
}

/* LANES running sums -> 16 bytes of them: lane l + lane l + LANES/2, and once more. */
FO_INLINE HALF NAME(fo_half_of)(const VEC *a) {
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

/* The sum of LANES running sums. */
FO_INLINE REAL NAME(fo_fold)(const VEC *a) {
    HALF q = NAME(fo_half_of)(a);
#ifdef FO_DOUBLE
    return q[0] + q[1];
#else
    return (q[0] + q[1]) + (q[2] + q[3]);
#endif
}

/* z[r] = fo_fold of the running sums a of row r, for FO_ROWS rows. */
FO_INLINE void NAME(fo_folds)(const VEC *a, REAL *z) {
#if FO_BYTES == 64 && !defined(FO_DOUBLE)
    /* Each step adds two vectors' halves into one: half of the shuffles that row by row needs. */
    const __m512i swap4 = _mm512_setr_epi32(4, 5, 6, 7, 16, 17, 18, 19, 12, 13, 14, 15, 24, 25, 26, 27);
    const __m512i swap1 = _mm512_setr_epi32(1, 16, 3, 18, 5, 20, 7, 22, 9, 24, 11, 26, 13, 28, 15, 30);
    __m512 v[16];
#define STEP(a, b, mask, moved) _mm512_add_ps(_mm512_mask_blend_ps(mask, a, b), moved)
    for (int r = 0; r < 8; r++)
        v[r] = STEP((__m512)a[r], (__m512)a[r + 8], 0xff00,
                    _mm512_shuffle_f32x4((__m512)a[r], (__m512)a[r + 8], 0x4e));
    for (int r = 0; r < 4; r++)
        v[r] = STEP(v[r], v[r + 4], 0xf0f0, _mm512_permutex2var_ps(v[r], swap4, v[r + 4]));
    for (int r = 0; r < 4; r += 2)
        v[r] = STEP(v[r], v[r + 1], 0xaaaa, _mm512_permutex2var_ps(v[r], swap1, v[r + 1]));
    _mm512_storeu_ps(z, STEP(v[0], v[2], 0xcccc, _mm512_shuffle_ps(v[0], v[2], 0x4e)));
#undef STEP
#elif FO_BYTES == 64
    const __m512i swap2 = _mm512_setr_epi64(2, 3, 8, 9, 6, 7, 12, 13);
#define STEP(a, b, mask, moved) _mm512_add_pd(_mm512_mask_blend_pd(mask, a, b), moved)
    for (int o = 0; o < 16; o += 8) {
        __m512d v[8];
        for (int r = 0; r < 4; r++)
            v[r] = STEP((__m512d)a[o + r], (__m512d)a[o + r + 4], 0xf0,
                        _mm512_shuffle_f64x2((__m512d)a[o + r], (__m512d)a[o + r + 4], 0x4e));
        for (int r = 0; r < 2; r++)
            v[r] = STEP(v[r], v[r + 2], 0xcc, _mm512_permutex2var_pd(v[r], swap2, v[r + 2]));
        _mm512_storeu_pd(z + o, STEP(v[0], v[1], 0xaa, _mm512_shuffle_pd(v[0], v[1], 0x55)));
    }
#undef STEP
#elif FO_BYTES == 32 && !defined(FO_DOUBLE)
    HALF q[4];
    for (int r = 0; r < 4; r++) q[r] = NAME(fo_half_of)(a + FO_PARTS * r);
    _mm_storeu_ps(z, _mm_hadd_ps(_mm_hadd_ps((__m128)q[0], (__m128)q[1]),
                                 _mm_hadd_ps((__m128)q[2], (__m128)q[3])));
#else
    for (int r = 0; r < FO_ROWS; r++) z[r] = NAME(fo_fold)(a + FO_PARTS * r);
#endif
}

/* Asks for the lines of `bytes` bytes at p and moves p behind them. */
#define FO_ASK(p, bytes)                                                             \
    for (int line = 0; line < (bytes); line += 64) __builtin_prefetch((p) + line, 0, 3); \
    (p) += (bytes);

/* Row r of those at x, by few base addresses that the loops keep in registers. */
#define FO_BASES const REAL *const b0 = x, *const b4 = x + 4 * d, *const b8 = x + 8 * d, \
                            *const b12 = x + 12 * d
#define FO_ROW(r) (((r) < 4 ? b0 : (r) < 8 ? b4 : (r) < 12 ? b8 : b12) + ((r) & 3) * d)

/* z[r] = x[r] . w + b of FO_ROWS rows, d elements each, one behind the other; w has zeros behind.
   Running sum i is machine vector i % FO_PARTS of row i / FO_PARTS; each is a variable of its own,
   as the compiler keeps no array in registers. */
FO_INLINE void NAME(fo_dots)(const REAL *x, ptrdiff_t d, const REAL *w, REAL b, REAL *z,
                             const char *ahead) {
    const ptrdiff_t whole = d & ~(ptrdiff_t)(LANES - 1);
    const int rest = (int)(d - whole);
    FO_BASES;
#define ZERO(i) VEC a##i = {0};
#define TAIL(i) a##i = NAME(fo_tail)(FO_ROW(i / FO_PARTS) + whole, rest, i % FO_PARTS) * \
                       *(const UVEC *)(w + whole + i % FO_PARTS * WIDE);
#define MORE(i) a##i += *(const UVEC *)(FO_ROW(i / FO_PARTS) + j + i % FO_PARTS * WIDE) * \
                        *(const UVEC *)(w + j + i % FO_PARTS * WIDE);
#define LIST(i) a##i,
    FO_EACH_SUM(ZERO)
    if (rest) { FO_EACH_SUM(TAIL) }
    FO_ASK(ahead, FO_ROWS * rest * (int)sizeof(REAL))
    for (ptrdiff_t j = 0; j < whole; j += LANES) {
        FO_ASK(ahead, FO_ROWS * 64)
        FO_EACH_SUM(MORE)
    }
    const VEC all[] = {FO_EACH_SUM(LIST)};
    NAME(fo_folds)(all, z);
    for (int r = 0; r < FO_ROWS; r++) z[r] += b;
#undef TAIL
#undef MORE
}

/* The same for one row. */
FO_INLINE REAL NAME(fo_dot)(const REAL *x, ptrdiff_t d, const REAL *w, REAL b) {
    const ptrdiff_t whole = d & ~(ptrdiff_t)(LANES - 1);
    const int rest = (int)(d - whole);
#define TAIL(i) a##i = NAME(fo_tail)(x + whole, rest, i) * *(const UVEC *)(w + whole + i * WIDE);
#define MORE(i) a##i += *(const UVEC *)(x + j + i * WIDE) * *(const UVEC *)(w + j + i * WIDE);
    FO_EACH_PART(ZERO)
    if (rest) { FO_EACH_PART(TAIL) }
    for (ptrdiff_t j = 0; j < whole; j += LANES) { FO_EACH_PART(MORE) }
    const VEC all[] = {FO_EACH_PART(LIST)};
    return NAME(fo_fold)(all) + b;
#undef ZERO
#undef TAIL
#undef MORE
#undef LIST
}

/* Margins of n rows. As many rows at ahead are asked for meanwhile, line by line: all at once would stall
   the products until the memory has answered. */
FO_APART void NAME(fo_margins)(const REAL *x, int n, ptrdiff_t d, const REAL *w, REAL b, REAL *z,
                               const REAL *ahead) {
    int i = 0;
    for (; i + FO_ROWS <= n; i += FO_ROWS)
        NAME(fo_dots)(x + i * d, d, w, b, z + i, (const char *)(ahead + i * d));
    for (; i < n; i++) z[i] = NAME(fo_dot)(x + i * d, d, w, b);
}

/* g += sum of e[r] x[r] over n rows: by sixteens, as four running sums of rows 4 apart and one
   tree; then singly. g has whole lanes. */
FO_APART void NAME(fo_axpys)(const REAL *x, int n, ptrdiff_t d, const REAL *e, REAL *g) {
    const ptrdiff_t whole = d & ~(ptrdiff_t)(LANES - 1);
    const int rest = (int)(d - whole);
    int i = 0;
    for (; i + 16 <= n; i += 16, x += 16 * d, e += 16) {
        FO_BASES;
#define X(r) (e[r] * *(const UVEC *)(FO_ROW(r) + j))
#define T(r) (e[r] * NAME(fo_tail)(FO_ROW(r) + whole, rest, p))
#define SUM(X, q) (((X(q) + X(q + 4)) + X(q + 8)) + X(q + 12))
#define TREE(X) ((SUM(X, 0) + SUM(X, 1)) + (SUM(X, 2) + SUM(X, 3)))
        for (ptrdiff_t j = 0; j < whole; j += WIDE) *(UVEC *)(g + j) += TREE(X);
        if (rest)
            for (int p = 0; p < FO_PARTS; p++) *(UVEC *)(g + whole + p * WIDE) += TREE(T);
#undef X
#undef T
#undef SUM
#undef TREE
    }
    for (; i < n; i++, x += d, e++) {
        for (ptrdiff_t j = 0; j < whole; j += WIDE) *(UVEC *)(g + j) += *e * *(const UVEC *)(x + j);
        if (rest)
            for (int p = 0; p < FO_PARTS; p++)
                *(UVEC *)(g + whole + p * WIDE) += *e * NAME(fo_tail)(x + whole, rest, p);
    }
}

/* Sum of n elements, n a multiple of 16. */
FO_INLINE REAL NAME(fo_sum)(const REAL *a, int n) {
    VEC s[FO_PARTS];
    for (int p = 0; p < FO_PARTS; p++) s[p] = *(const UVEC *)(a + p * WIDE);
    for (int i = LANES; i < n; i += LANES)
        for (int p = 0; p < FO_PARTS; p++) s[p] += *(const UVEC *)(a + i + p * WIDE);
    return NAME(fo_fold)(s);
}
