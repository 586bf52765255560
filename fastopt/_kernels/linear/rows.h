/* Rows times weights, and weighted sums of rows, sixteen rows at a time, for one REAL. A row is read
   in lanes (lanes.h), its last elements first. */

/* Asks for the lines of `bytes` bytes at p and moves p behind them. */
#define FO_ASK(p, bytes)                                                             \
    for (int line = 0; line < (bytes); line += 64) __builtin_prefetch((p) + line, 0, 3); \
    (p) += (bytes);

/* Where row r of those at x is read: four bases, and four distances j that go down together. The
   compiler is kept from seeing what they are, or it makes an address a row of them, in memory. */
#define FO_HIDE(v) __asm__("" : "+r"(v))
#define FO_PLACES(at)                                                                        \
    const REAL *b0 = x, *b4 = x + 4 * d, *b8 = x + 8 * d, *b12 = x + 12 * d;                 \
    ptrdiff_t j0 = (at), j1 = j0 + d, j2 = j1 + d, j3 = j2 + d;                              \
    FO_HIDE(j0); FO_HIDE(j1); FO_HIDE(j2); FO_HIDE(j3)
#define FO_DOWN(by) j0 -= (by), j1 -= (by), j2 -= (by), j3 -= (by)
#define FO_ROW(r) (((r) < 4 ? b0 : (r) < 8 ? b4 : (r) < 12 ? b8 : b12) + \
                   (((r) & 3) == 0 ? j0 : ((r) & 3) == 1 ? j1 : ((r) & 3) == 2 ? j2 : j3))
#define FO_FEW (16 / (int)sizeof(REAL))

/* z[r] = x[r] . w + b of FO_ROWS rows, d elements each, one behind the other; w has zeros behind.
   Running sum i is machine vector i % FO_PARTS of row i / FO_PARTS; each is a variable of its own,
   as the compiler keeps no array in registers. */
FO_INLINE void NAME(fo_dots)(const REAL *x, ptrdiff_t d, const REAL *w, REAL b, REAL *z,
                             const char *ahead) {
    const int rest = (int)(d & (LANES - 1));
    FO_PLACES(d - rest);
#define ZERO(i) VEC a##i = {0};
#define FEW(i) if (i % FO_PARTS == 0) \
        a##i = NAME(fo_widened)(NAME(fo_few)(FO_ROW(i / FO_PARTS), rest) * *(const UHALF *)(w + j0));
#define TAIL(i) a##i = NAME(fo_tail)(FO_ROW(i / FO_PARTS), rest, i % FO_PARTS) * \
                       *(const UVEC *)(w + j0 + i % FO_PARTS * WIDE);
#define MORE(i) a##i += *(const UVEC *)(FO_ROW(i / FO_PARTS) + i % FO_PARTS * WIDE) * \
                        *(const UVEC *)(w + j0 + i % FO_PARTS * WIDE);
#define LIST(i) a##i,
    FO_EACH_SUM(ZERO)
    if (rest > FO_FEW) { FO_EACH_SUM(TAIL) }
    else if (rest) { FO_EACH_SUM(FEW) }
    FO_ASK(ahead, FO_ROWS / 2 * rest * (int)sizeof(REAL))
    while (j0) {
        FO_DOWN(LANES);
        FO_ASK(ahead, FO_ROWS / 2 * 64)
        FO_EACH_SUM(MORE)
    }
    const VEC all[] = {FO_EACH_SUM(LIST)};
    NAME(fo_folds)(all, z);
    for (int r = 0; r < FO_ROWS; r++) z[r] += b;
#undef TAIL
#undef FEW
#undef MORE
}

/* The same for one row. */
FO_INLINE REAL NAME(fo_dot)(const REAL *x, ptrdiff_t d, const REAL *w, REAL b) {
    const int rest = (int)(d & (LANES - 1));
    ptrdiff_t j = d - rest;
#define TAIL(i) a##i = NAME(fo_tail)(x + j, rest, i) * *(const UVEC *)(w + j + i * WIDE);
#define MORE(i) a##i += *(const UVEC *)(x + j + i * WIDE) * *(const UVEC *)(w + j + i * WIDE);
    FO_EACH_PART(ZERO)
    if (rest) { FO_EACH_PART(TAIL) }
    while (j) {
        j -= LANES;
        FO_EACH_PART(MORE)
    }
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
FO_APART void NAME(fo_axpys)(const REAL *restrict x, int n, ptrdiff_t d, const REAL *restrict e,
                             REAL *restrict g, const REAL *ahead) {
    const int rest = (int)(d & (LANES - 1));
    int i = 0;
    for (; i + 16 <= n; i += 16, x += 16 * d, e += 16) {
        FO_PLACES(d - rest);
#define X(r) (e[r] * *(const UVEC *)FO_ROW(r))
#define T(r) (e[r] * NAME(fo_tail)(FO_ROW(r), rest, p))
#define F(r) (e[r] * NAME(fo_few)(FO_ROW(r), rest))
#define SUM(X, q) (((X(q) + X(q + 4)) + X(q + 8)) + X(q + 12))
#define TREE(X) ((SUM(X, 0) + SUM(X, 1)) + (SUM(X, 2) + SUM(X, 3)))
        const char *next = (const char *)(ahead + (n + i) * d / 2);
        FO_ASK(next, 8 * rest * (int)sizeof(REAL))
        if (rest > FO_FEW)
            for (int p = 0; p < FO_PARTS; p++) *(UVEC *)(g + j0 + p * WIDE) += TREE(T);
        else if (rest)
            *(UHALF *)(g + j0) += TREE(F);
        while (j0) {
            FO_DOWN(WIDE);
            FO_ASK(next, 8 * FO_BYTES)
            *(UVEC *)(g + j0) += TREE(X);
        }
#undef X
#undef T
#undef F
#undef SUM
#undef TREE
    }
    for (; i < n; i++, x += d, e++) {
        ptrdiff_t j = d - rest;
        if (rest)
            for (int p = 0; p < FO_PARTS; p++)
                *(UVEC *)(g + j + p * WIDE) += *e * NAME(fo_tail)(x + j, rest, p);
        while (j) {
            j -= WIDE;
            *(UVEC *)(g + j) += *e * *(const UVEC *)(x + j);
        }
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
