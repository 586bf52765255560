"""A generation on a population matrix: tournament, crossover, mutation, uniform draws.

Every random word is Philox4x32-10 of (key, row or pair, stream, generation), so a child does not
depend on threads, chunks, level or how many of its siblings are made. Per pair of parents a, b:

* uniform, one-point, two-point: genes are exchanged;
* SBX (Deb & Agrawal, Complex Systems 9, 1995): children t and 1 - t of the way from a to b with
  t = (1 - beta) / 2. beta has density ~ beta^eta below 1 and ~ beta^-(eta + 2) above, cut where
  the child nearer a bound reaches it: with q = bmax^-(eta + 1), u uniform and v = q + (2 - q) u,
  beta = v^(-1 / (eta + 1)) if v < 1, else (2 - v)^(1 / (eta + 1)).

Per gene of a child, with probability ``mutation_rate`` (by geometric skips when that is small):

* polynomial (Deb & Agrawal, technical report, IIT Kanpur, 1999), bounded;
* gaussian, sigma in units of high - low, reflected once at a bound, then clipped.
"""

cimport cython
from fastopt._kernels.shared cimport numpy as cnp
from libc.math cimport sqrt
from libc.stdint cimport int32_t, uint32_t, uint64_t

from fastopt._kernels.shared.arguments cimport data_of
from fastopt._kernels.shared.pool cimport run_polled
from fastopt._kernels.genetic.words cimport (
    COPY, EARLY, GROUP, POLYNOMIAL, S_CROSS, S_DENSE, S_FLIP, S_MASK, S_PAIR, S_SKIP, SBX, SITES, TILE,
    UNIFORM, Plan, cuts, exchange_segment, exchange_uniform, fo_cos, fo_exp2, fo_exp2f, fo_log2,
    fo_log2f, fo_tile, plan_of, unit_32,
)
from fastopt._kernels.shared.philox cimport philox, u32x4

from fastopt.errors import ArrayError, DTypeError

cnp.import_array()

ctypedef fused real:
    float
    double

cdef double DENSE_FROM = 0.125  # mutation rate above which every gene gets its own words

# --- crossover of one pair, a tile at a time

cdef void cross_sbx(
    real* ca, real* cb, const real* pa, const real* pb, const real* low, const real* high,
    Py_ssize_t d, Py_ssize_t pair, const Plan* plan,
) noexcept nogil:
    cdef uint32_t words[TILE]
    cdef uint32_t masks[TILE]
    cdef float room[TILE]
    cdef float span[TILE]
    cdef float step[TILE]
    cdef Py_ssize_t tile, start, block, lane, j, m
    cdef real a, b, x, y, lo, hi, t
    cdef float widest, q, v, u, e, power = plan.power, root = plan.root
    cdef int32_t limit = plan.gene_limit
    for j in range(TILE):  # the last tile's unused lanes compute, too
        room[j] = span[j] = 0
    for tile in range((d + TILE - 1) // TILE):
        start = tile * TILE
        m = min(TILE, d - start)
        fo_tile(words, plan.key, <uint32_t> (start // 4), <uint32_t> pair, S_CROSS, plan.step)
        fo_tile(masks, plan.key, <uint32_t> (start // 4), <uint32_t> pair, S_MASK, plan.step)
        for j in range(m):
            a = pa[start + j]
            b = pb[start + j]
            x = a if a < b else b
            y = b if a < b else a
            lo = x - low[start + j]
            hi = high[start + j] - y
            room[j] = <float> (lo if lo < hi else hi)
            span[j] = <float> (y - x)
        for block in range(m // 16 + (m % 16 > 0)):  # whole vectors: no scalar tail
            for lane in range(16):
                j = block * 16 + lane
                widest = <float> 1.0 + <float> 2.0 * room[j] / span[j]
                widest = widest if widest < <float> 1e18 else <float> 1e18  # also NaN, a == b
                widest = widest if widest > <float> 1.0 else <float> 1.0    # a parent outside
                q = fo_exp2f(-power * fo_log2f(widest))
                u = (<float> (<int32_t> (words[j] >> 9)) + <float> 0.5) * <float> (1.0 / 8388608.0)
                v = q + (<float> 2.0 - q) * u
                e = root * fo_log2f(v if v < <float> 1.0
                                    else (<float> 2.0 - q) * (<float> 1.0 - u))
                e = fo_exp2f(-e if v < <float> 1.0 else e)
                e = -e if words[j] & 1 else e   # which child lies on which side
                e = <float> 0.5 - <float> 0.5 * e
                step[j] = e if <int32_t> (masks[j] >> 1) <= limit else <float> 0.0
        for j in range(m):
            a = pa[start + j]
            b = pb[start + j]
            lo = low[start + j]
            hi = high[start + j]
            t = <real> step[j] * (b - a)
            x = a + t
            y = b - t
            x = lo if x < lo else x
            x = hi if x > hi else x
            y = lo if y < lo else y
            y = hi if y > hi else y
            ca[start + j] = a if step[j] == 0 else x
            cb[start + j] = b if step[j] == 0 else y


# --- mutation of one row: branch-free elements, so that the dense loops become vector code

cdef inline double polynomial(
    double x, double low, double high, double eta, uint32_t word
) noexcept nogil:
    cdef double width = high - low, u = unit_32(word)
    cdef double side = (high - x if u < 0.5 else x - low) / width
    cdef double near = 2.0 * (u if u < 0.5 else 1.0 - u)
    cdef double v = near + (1.0 - near) * fo_exp2((eta + 1.0) * fo_log2(side))
    cdef double delta = (1.0 - fo_exp2(fo_log2(v) / (eta + 1.0))) * width
    return x - delta if u < 0.5 else x + delta


cdef inline double gaussian(
    double x, double low, double high, double sigma, uint32_t word, uint32_t turn
) noexcept nogil:
    """Box and Muller: the radius from one word, sign and quarter turn from another."""
    cdef double radius = sqrt(-1.3862943611198906 * fo_log2(unit_32(word)))
    cdef double z = radius * fo_cos(
        (<double> (<int32_t> (turn >> 1)) + 0.5) * (1.5707963267948966 / 2147483648.0)
    )
    x += sigma * (high - low) * (-z if turn & 1 else z)
    x = low + (low - x) if x < low else x
    return high - (x - high) if x > high else x


cdef inline real within(double x, real before, real low, real high) noexcept nogil:
    """``x`` clipped to [low, high]; the value before where the interval is empty."""
    cdef real y = <real> x
    y = low if y < low else y
    y = high if y > high else y
    return y if high > low else before


cdef void mutate_dense(
    real* x, const real* low, const real* high, Py_ssize_t d, Py_ssize_t row, const Plan* plan
) noexcept nogil:
    cdef uint32_t words[TILE]
    cdef uint32_t masks[TILE]
    cdef double fresh[TILE]
    cdef double scale = plan.mutation_scale
    cdef int32_t limit = plan.mutation_limit
    cdef Py_ssize_t tile, j, i, m
    for tile in range((d + TILE // 2 - 1) // (TILE // 2)):
        i = tile * (TILE // 2)
        m = min(TILE // 2, d - i)
        fo_tile(words, plan.key, <uint32_t> (i // 2), <uint32_t> row, S_DENSE, plan.step)
        fo_tile(masks, plan.key, <uint32_t> (i // 2), <uint32_t> row, S_FLIP, plan.step)
        if plan.mutation == POLYNOMIAL:
            for j in range(m):
                fresh[j] = polynomial(x[i + j], low[i + j], high[i + j], scale, words[j])
        else:
            for j in range(m):
                fresh[j] = gaussian(
                    x[i + j], low[i + j], high[i + j], scale, words[j], words[TILE // 2 + j]
                )
        for j in range(m):
            if <int32_t> (masks[j] >> 1) <= limit:
                x[i + j] = within(fresh[j], x[i + j], low[i + j], high[i + j])


cdef struct Sites:      # mutations that wait to be computed together, in whole vectors
    Py_ssize_t count
    Py_ssize_t at[SITES]
    Py_ssize_t column[SITES]
    uint32_t word[SITES]
    uint32_t turn[SITES]


cdef void mutate_sites(
    real* x, const real* low, const real* high, Sites* sites, const Plan* plan
) noexcept nogil:
    cdef double old[SITES]
    cdef double lo[SITES]
    cdef double hi[SITES]
    cdef double scale = plan.mutation_scale
    cdef Py_ssize_t k, block, lane, n = sites.count
    for k in range(n):
        old[k] = x[sites.at[k]]
        lo[k] = low[sites.column[k]]
        hi[k] = high[sites.column[k]]
    for k in range(n, (n + 7) // 8 * 8):
        old[k] = lo[k] = 0
        hi[k] = 1
        sites.word[k] = sites.turn[k] = 0
    for block in range((n + 7) // 8):
        if plan.mutation == POLYNOMIAL:
            for lane in range(8):
                k = block * 8 + lane
                old[k] = polynomial(old[k], lo[k], hi[k], scale, sites.word[k])
        else:
            for lane in range(8):
                k = block * 8 + lane
                old[k] = gaussian(old[k], lo[k], hi[k], scale, sites.word[k], sites.turn[k])
    for k in range(n):
        x[sites.at[k]] = within(
            old[k], x[sites.at[k]], low[sites.column[k]], high[sites.column[k]]
        )
    sites.count = 0


cdef void mutate_rows(
    real* x, const real* low, const real* high, Py_ssize_t first, Py_ssize_t rows, Py_ssize_t d,
    const Plan* plan,
) noexcept nogil:
    """Rows first..first + rows - 1 of x, at most 32. The words of each row's first EARLY
    mutations come from tiles over 16 rows, later ones from single blocks: the same words."""
    cdef uint32_t draws[2 * EARLY * TILE]
    cdef double gaps[2 * EARLY * 16]
    cdef Sites sites
    cdef u32x4 draw
    cdef Py_ssize_t row, lane, part, c, i, j, n
    cdef double gap
    if not plan.mutation_rate > 0:
        return
    if plan.mutation_rate > DENSE_FROM:
        for row in range(first, first + rows):
            mutate_dense(x + row * d, low, high, d, row, plan)
        return
    for part in range((rows + 15) // 16):
        for c in range(EARLY):
            i = part * EARLY + c
            fo_tile(draws + i * TILE, plan.key, <uint32_t> (first + 16 * part), <uint32_t> c,
                    S_SKIP, plan.step)
            for lane in range(16):
                gaps[i * 16 + lane] = fo_log2(unit_32(draws[i * TILE + lane])) * plan.skip
    sites.count = 0
    for lane in range(rows):
        j = -1
        c = 0
        while True:  # gaps between mutated genes are geometric
            if c < EARLY:
                i = (lane // 16) * EARLY + c
                gap = gaps[i * 16 + lane % 16]
                draw.w[1] = draws[i * TILE + 16 + lane % 16]
                draw.w[2] = draws[i * TILE + 32 + lane % 16]
            else:
                draw = philox(plan.key, <uint64_t> (first + lane) | <uint64_t> c << 32, S_SKIP,
                              plan.step)
                gap = fo_log2(unit_32(draw.w[0])) * plan.skip
            if not gap < <double> (d - j - 1):
                break
            j += 1 + <Py_ssize_t> gap
            n = sites.count
            sites.at[n] = (first + lane) * d + j
            sites.column[n] = j
            sites.word[n] = draw.w[1]
            sites.turn[n] = draw.w[2]
            sites.count = n + 1
            if sites.count == SITES:
                mutate_sites(x, low, high, &sites, plan)
            c += 1
    mutate_sites(x, low, high, &sites, plan)


# --- blocks: 16 pairs, or 16 rows, or 16 slots

cdef void breed_group(
    real* child, const real* parents, const Py_ssize_t* mates, const real* low, const real* high,
    Py_ssize_t pairs, Py_ssize_t d, Py_ssize_t group, const Plan* plan,
) noexcept nogil:
    cdef uint32_t words[TILE]
    cdef Py_ssize_t pair, lane, first, last
    cdef real *ca
    cdef real *cb
    cdef const real *pa
    cdef const real *pb
    fo_tile(words, plan.key, <uint32_t> (group * GROUP), 0, S_PAIR, plan.step)
    for lane in range(min(GROUP, pairs - group * GROUP)):
        pair = group * GROUP + lane
        ca = child + 2 * pair * d
        cb = ca + d
        pa = parents + mates[2 * pair] * d
        pb = parents + mates[2 * pair + 1] * d
        if plan.crossover == COPY or d == 0 or unit_32(words[lane]) >= plan.rate:
            exchange_segment(ca, cb, pa, pb, d, 0, 0)
        elif plan.crossover == UNIFORM:
            exchange_uniform(ca, cb, pa, pb, d, pair, plan)
        elif plan.crossover == SBX:
            cross_sbx(ca, cb, pa, pb, low, high, d, pair, plan)
        else:
            cuts(&first, &last, words + lane, d, plan)
            exchange_segment(ca, cb, pa, pb, d, first, last)
    mutate_rows(child, low, high, 2 * group * GROUP, 2 * min(GROUP, pairs - group * GROUP), d,
                plan)


cdef inline void breed_any(
    int t, void* c, void* p, const Py_ssize_t* mates, void* low, void* high, Py_ssize_t pairs,
    Py_ssize_t d, Py_ssize_t i, const Plan* plan,
) noexcept nogil:
    if t == cnp.NPY_FLOAT32:
        breed_group(<float*> c, <const float*> p, mates, <const float*> low, <const float*> high,
                    pairs, d, i, plan)
    else:
        breed_group(<double*> c, <const double*> p, mates, <const double*> low,
                    <const double*> high, pairs, d, i, plan)


cdef inline void mutate_any(
    int t, void* x, void* low, void* high, Py_ssize_t n, Py_ssize_t d, Py_ssize_t i,
    const Plan* plan,
) noexcept nogil:
    if t == cnp.NPY_FLOAT32:
        mutate_rows(<float*> x, <const float*> low, <const float*> high, i * GROUP,
                    min(GROUP, n - i * GROUP), d, plan)
    else:
        mutate_rows(<double*> x, <const double*> low, <const double*> high, i * GROUP,
                    min(GROUP, n - i * GROUP), d, plan)


# --- doors

cdef int real_matrix(cnp.ndarray x, cnp.ndarray low, cnp.ndarray high, str name) except -1:
    """The typenum of ``x`` (float32 or float64) after its shape and bounds are checked."""
    cdef int t = cnp.PyArray_TYPE(x)
    if t != cnp.NPY_FLOAT32 and t != cnp.NPY_FLOAT64:
        raise DTypeError(f"{name}: expected dtype float32 or float64, got {x.dtype}")
    if x.ndim != 2:
        raise ArrayError(f"{name}: expected a matrix, got {x.ndim} dimensions")
    data_of(low, t, x.shape[1], False, "low")
    data_of(high, t, x.shape[1], False, "high")
    return t


cdef struct Breeding:
    int kind
    void* child
    void* parents
    Py_ssize_t* mates
    void* low
    void* high
    Py_ssize_t n, d  # pairs, or rows to mutate
    Plan* plan


cdef void breed_some(void* context, Py_ssize_t group, int worker) noexcept nogil:
    cdef Breeding* b = <Breeding*> context
    breed_any(b.kind, b.child, b.parents, b.mates, b.low, b.high, b.n, b.d, group, b.plan)


cdef void mutate_some(void* context, Py_ssize_t group, int worker) noexcept nogil:
    cdef Breeding* b = <Breeding*> context
    mutate_any(b.kind, b.child, b.low, b.high, b.n, b.d, group, b.plan)


def breed(
    cnp.ndarray child not None, cnp.ndarray parents not None, cnp.ndarray mates not None,
    cnp.ndarray low not None, cnp.ndarray high not None, int crossover, double rate,
    double gene_rate, double eta, int mutation, double mutation_rate, double mutation_scale,
    uint64_t key, uint32_t generation, int threads,
):
    """Children 2 p and 2 p + 1 from parents mates[2 p] and mates[2 p + 1], mutated in cache."""
    cdef int t = real_matrix(child, low, high, "child")
    cdef Py_ssize_t m = child.shape[0], d = child.shape[1], pairs = m // 2, n
    if m % 2:
        raise ArrayError(f"child: expected an even number of rows, got {m}")
    if parents.ndim != 2 or parents.shape[1] != d:
        raise ArrayError(f"parents: expected shape (any, {d}), got {(<object> parents).shape}")
    n = parents.shape[0]
    cdef void* c = data_of(child, t, -1, True, "child")
    cdef void* p = data_of(parents, t, -1, False, "parents")
    cdef Py_ssize_t* w = <Py_ssize_t*> data_of(mates, cnp.NPY_INTP, m, False, "mates")
    cdef void* lo = cnp.PyArray_DATA(low)
    cdef void* hi = cnp.PyArray_DATA(high)
    cdef Py_ssize_t i, groups = (pairs + GROUP - 1) // GROUP
    for i in range(m):
        if w[i] < 0 or w[i] >= n:
            raise ArrayError(f"mates: expected rows 0..{n - 1}, got {w[i]} at {i}")
    cdef Plan plan = plan_of(crossover, rate, gene_rate, eta, mutation, mutation_rate,
                             mutation_scale, key, generation)
    cdef Breeding b = Breeding(t, c, p, w, lo, hi, pairs, d, &plan)
    with nogil:
        run_polled(breed_some, &b, groups, threads)


def mutate(
    cnp.ndarray x not None, cnp.ndarray low not None, cnp.ndarray high not None, int mutation,
    double mutation_rate, double mutation_scale, uint64_t key, uint32_t generation, int threads,
):
    """In place: each gene with probability ``mutation_rate``, as ``breed`` does to children."""
    cdef int t = real_matrix(x, low, high, "x")
    cdef void* data = data_of(x, t, -1, True, "x")
    cdef void* lo = cnp.PyArray_DATA(low)
    cdef void* hi = cnp.PyArray_DATA(high)
    cdef Py_ssize_t n = x.shape[0], d = x.shape[1]
    cdef Plan plan = plan_of(COPY, 0, 0, 0, mutation, mutation_rate, mutation_scale, key,
                             generation)
    cdef Breeding b = Breeding(t, data, NULL, NULL, lo, hi, n, d, &plan)
    if mutation_rate > 0:
        with nogil:
            run_polled(mutate_some, &b, (n + GROUP - 1) // GROUP, threads)
