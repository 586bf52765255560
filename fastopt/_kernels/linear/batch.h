/* A mini-batch for one REAL: margins, losses and gradient while its rows lie in the first cache. */

/* What one pass adds up besides the gradient. */
typedef struct {
    double loss[16], weight[16];
    REAL odd[16]; /* 0 while every margin and target is finite, else NaN */
} NAME(fo_sums);

/* Notes whether n values, a multiple of 16, are finite. */
FO_INLINE void NAME(fo_look)(NAME(fo_sums) *sums, const REAL *a, int n) {
    for (int i = 0; i < n; i += 16)
        for (int l = 0; l < 16; l++) sums->odd[l] += a[i + l] - a[i + l];
}

/* Adds (loss, weight, odd) of the sums at the head of a worker's scratch to total. */
static void NAME(fo_result)(const void *scratch, double *total) {
    const NAME(fo_sums) *sums = scratch;
    for (int l = 0; l < 16; l++) {
        total[0] += sums->loss[l];
        total[1] += sums->weight[l];
        if (sums->odd[l] != 0) total[2] = 1;
    }
}

/* Rows taken at once: about half of the first-level cache. */
FO_INLINE ptrdiff_t NAME(fo_tile)(const fo_rows *f) {
    ptrdiff_t rows = 16384 / (f->d * (ptrdiff_t)sizeof(REAL) + 1) & ~(ptrdiff_t)15;
    return rows < 16 ? 16 : rows > FO_CHUNK ? FO_CHUNK : rows;
}

/* Bytes of scratch a worker needs, zero at first: sums; margins; rows, targets, weights gathered. */
static ptrdiff_t NAME(fo_room)(const fo_rows *f) {
    return (ptrdiff_t)sizeof(NAME(fo_sums)) +
           NAME(fo_tile)(f) * (f->k + f->d + f->wide + 1) * (ptrdiff_t)sizeof(REAL);
}

static const REAL NAME(fo_ones)[FO_CHUNK] = {
#define ONES 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1
    ONES, ONES, ONES, ONES
#undef ONES
};

/* Up to FO_CHUNK rows, one behind the other, with their targets (coded as f->coded tells of f->y) and
   weights (NULL for ones): their loss into sums, their gradient into g. w and g are k rows of pad
   elements, then the k intercepts; z is scratch of k times the rows, rounded up to 16; ahead the
   rows that come next. */
static void NAME(fo_chunk)(const fo_rows *f, const REAL *x, const void *y, int coded, const REAL *s,
                           int rows, const REAL *w, REAL *g, REAL *z, NAME(fo_sums) *sums,
                           const REAL *ahead) {
    const ptrdiff_t k = f->k, pad = f->pad, wide = f->wide;
    const int n = (rows + 15) & ~15, joint = f->loss == FO_SOFTMAX;
    const int plain = f->targets == FO_DIRECT && !joint;
    REAL number[FO_CHUNK], target[FO_CHUNK], share[FO_CHUNK], v[FO_CHUNK];
    if (!s) {
        sums->weight[0] += rows;
        s = NAME(fo_ones);
    } else {
        for (int i = 0; i < rows; i++) sums->weight[i % 16] += s[i];
    }
    if (rows < n) {
        memset(share, 0, sizeof share);
        memcpy(share, s, (size_t)rows * sizeof(REAL));
        s = share;
    }
    for (ptrdiff_t c = 0; c < k; c++) {
        REAL *zc = z + n * c;
        NAME(fo_margins)(x, rows, f->d, w + c * pad, w[k * pad + c], zc, c ? x : ahead);
        for (int i = rows; i < n; i++) zc[i] = 0;
        NAME(fo_look)(sums, zc, n);
    }
    const REAL *t = y;
    for (ptrdiff_t c = 0; c < (joint ? 1 : k); c++) {
        if (coded && !c) {
            uint8_t code[FO_CHUNK] = {0};
            memcpy(code, y, (size_t)rows);
            for (int i = 0; i < n; i += 16)
                for (int l = 0; l < 16; l++) number[i + l] = code[i + l];
            t = number;
        } else if (!coded && (rows < n || wide > 1)) {
            for (int i = 0; i < rows; i++) number[i] = ((const REAL *)y)[i * wide + (wide > 1 ? c : 0)];
            for (int i = rows; i < n; i++) number[i] = 0;
            t = number;
        }
        if (plain) {
            NAME(fo_look)(sums, t, n);
        } else if (!joint) { /* -1 or 1 */
            const REAL one = f->targets == FO_TWO ? 1 : (REAL)c;
            for (int i = 0; i < n; i += WIDE) /* as vectors: the compiler would branch */
                *(UVEC *)(target + i) =
                    -2 * __builtin_convertvector(*(const UVEC *)(t + i) == one, VEC) - 1;
        }
        if (joint)
            NAME(fo_softmax)(k, n, z, t, s, v);
        else
            NAME(fo_loss)(f->loss, (REAL)f->epsilon, n, z + n * c, plain ? t : target, s, v);
        for (int i = 0; i < n; i += 16)
            for (int l = 0; l < 16; l++) sums->loss[l] += v[i + l];
    }
    for (ptrdiff_t c = 0; c < k; c++) {
        NAME(fo_axpys)(x, rows, f->d, z + n * c, g + c * pad, c ? x : ahead);
        if (f->intercept) g[k * pad + c] += NAME(fo_sum)(z + n * c, n);
    }
}

/* A batch: the rows of `entries` entries of the order (`known` of them may be looked at ahead).
   Adds to g and to the sums. Returns the number of rows. */
static ptrdiff_t NAME(fo_batch)(const fo_rows *f, const int64_t *order, ptrdiff_t entries,
                                ptrdiff_t known, const REAL *w, REAL *g, void *scratch) {
    NAME(fo_sums) *sums = scratch;
    const REAL *x = f->x, *s = f->s;
    const char *y = f->y;
    const ptrdiff_t d = f->d, wide = f->wide, tile = NAME(fo_tile)(f), group = f->group;
    const ptrdiff_t each = f->coded ? 1 : wide * (ptrdiff_t)sizeof(REAL); /* bytes of y per row */
    REAL *z = (REAL *)(sums + 1), *tx = z + f->k * tile, *ty = tx + d * tile, *ts = ty + wide * tile;
    ptrdiff_t total = 0, held = 0;
    for (ptrdiff_t q = 0; q < entries; q++) {
        const ptrdiff_t first = order[q] * group;
        const ptrdiff_t length = f->n - first < group ? f->n - first : group;
        total += length;
        if (group > 1 || entries == 1) {
            for (ptrdiff_t i = 0; i < length; i += tile) {
                const ptrdiff_t at = first + i, rows = length - i < tile ? length - i : tile;
                const ptrdiff_t next = i + rows < length ? at + rows
                                       : q + 1 < known   ? order[q + 1] * group
                                                         : at;
                for (ptrdiff_t b = 0; b < rows * each; b += 64)
                    __builtin_prefetch(y + next * each + b, 0, 3);
                for (ptrdiff_t b = 0; s && b < rows * (ptrdiff_t)sizeof(REAL); b += 64)
                    __builtin_prefetch((const char *)(s + next) + b, 0, 3);
                NAME(fo_chunk)(f, x + at * d, y + at * each, f->coded, s ? s + at : NULL, (int)rows,
                               w, g, z, sums, x + next * d);
            }
            continue;
        }
        memcpy(tx + held * d, x + first * d, (size_t)d * sizeof(REAL));
        if (f->coded)
            ty[held] = ((const uint8_t *)y)[first];
        else
            memcpy(ty + held * wide, y + first * each, (size_t)each);
        ts[held] = s ? s[first] : 1;
        if (++held == tile || q + 1 == entries) {
            NAME(fo_chunk)(f, tx, ty, 0, s ? ts : NULL, (int)held, w, g, z, sums, tx);
            held = 0;
        }
    }
    return total;
}
