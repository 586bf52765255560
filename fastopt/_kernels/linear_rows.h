/* Rows times weights, and weighted sums of rows, sixteen rows at a time, for one REAL. A row is read
   in lanes (linear_lanes.h), its last elements first. */

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
    FO_ASK(ahead, FO_ROWS / 2 * rest * (int)sizeof(REAL))
    for (ptrdiff_t j = 0; j < whole; j += LANES) {
        FO_ASK(ahead, FO_ROWS / 2 * 64)
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

/* Margins of n rows. Half of as many rows at ahead is asked for meanwhile, line by line: all at once would
   stall the products until the memory has answered. */
FO_APART void NAME(fo_margins)(const REAL *x, int n, ptrdiff_t d, const REAL *w, REAL b, REAL *z,
                               const REAL *ahead) {
    int i = 0;
    for (; i + FO_ROWS <= n; i += FO_ROWS)
        NAME(fo_dots)(x + i * d, d, w, b, z + i, (const char *)(ahead + i * d / 2));
    for (; i < n; i++) z[i] = NAME(fo_dot)(x + i * d, d, w, b);
}

/* g += sum of e[r] x[r] over n rows: by sixteens, as four running sums of rows 4 apart and one
   tree; then singly. g has whole lanes. Asks for the other half of the n rows at ahead. */
FO_APART void NAME(fo_axpys)(const REAL *x, int n, ptrdiff_t d, const REAL *e, REAL *g,
                             const REAL *ahead) {
    const ptrdiff_t whole = d & ~(ptrdiff_t)(LANES - 1);
    const int rest = (int)(d - whole);
    int i = 0;
    for (; i + 16 <= n; i += 16, x += 16 * d, e += 16) {
        FO_BASES;
#define X(r) (e[r] * *(const UVEC *)(FO_ROW(r) + j))
#define T(r) (e[r] * NAME(fo_tail)(FO_ROW(r) + whole, rest, p))
#define SUM(X, q) (((X(q) + X(q + 4)) + X(q + 8)) + X(q + 12))
#define TREE(X) ((SUM(X, 0) + SUM(X, 1)) + (SUM(X, 2) + SUM(X, 3)))
        const char *next = (const char *)(ahead + (n + i) * d / 2);
        FO_ASK(next, 8 * rest * (int)sizeof(REAL))
        for (ptrdiff_t j = 0; j < whole; j += WIDE) {
            FO_ASK(next, 8 * FO_BYTES)
            *(UVEC *)(g + j) += TREE(X);
        }
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
