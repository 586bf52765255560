"""Crossover of one pair of parents a, b: an operator is one function, named once in ``cross``.

* uniform, one-point, two-point: genes are exchanged;
* SBX (Deb & Agrawal, Complex Systems 9, 1995): children t and 1 - t of the way from a to b with
  t = (1 - beta) / 2. beta has density ~ beta^eta below 1 and ~ beta^-(eta + 2) above, cut where
  the child nearer a bound reaches it: with q = bmax^-(eta + 1), u uniform and v = q + (2 - q) u,
  beta = v^(-1 / (eta + 1)) if v < 1, else (2 - v)^(1 / (eta + 1)).
"""

from libc.stdint cimport int32_t, uint8_t, uint32_t
from libc.string cimport memcpy

from fastopt._kernels.shared.approximate cimport exp2_f, exp2_within, log2_f
from fastopt._kernels.genetic.words cimport (
    COPY, CROSS, MASK, ONE_POINT, SBX, UNIFORM, Variation, scaled, tile, tile_7, unit_32
)
from fastopt._kernels.shared.philox cimport GROUP, TILE
from fastopt._kernels.shared.stream cimport prefetch

cdef enum:
    LINE = 16  # genes of a fixed loop: of a row's rest alone gcc makes scalars and slow copies
    AHEAD = 4 * TILE  # genes between a read and its prefetch

ctypedef fused gene:
    float
    double
    uint8_t

ctypedef fused real:
    float
    double


cdef inline void exchange_uniform(
    gene* ca, gene* cb, const gene* pa, const gene* pb, Py_ssize_t d, uint32_t pair,
    const Variation* how,
) noexcept nogil:
    """Each gene with probability gene_rate."""
    cdef uint32_t[TILE] words
    cdef gene[TILE] first
    cdef gene[TILE] second
    cdef Py_ssize_t start = 0, j, m
    cdef gene a, b
    cdef int32_t limit = how.gene_limit
    while start < d:
        m = min(<Py_ssize_t> TILE, d - start)
        tile(words, how.key, <uint32_t> (start // 4), pair, CROSS, how.generation)
        if m == TILE:
            for j in range(TILE):
                a = pa[start + j]
                b = pb[start + j]
                first[j] = b if <int32_t> (words[j] >> 1) <= limit else a
                second[j] = a if <int32_t> (words[j] >> 1) <= limit else b
        else:
            for j in range(m):
                a = pa[start + j]
                b = pb[start + j]
                first[j] = b if <int32_t> (words[j] >> 1) <= limit else a
                second[j] = a if <int32_t> (words[j] >> 1) <= limit else b
        memcpy(ca + start, &first[0], m * sizeof(gene))
        memcpy(cb + start, &second[0], m * sizeof(gene))
        start += m


cdef inline void exchange_segment(
    gene* ca, gene* cb, const gene* pa, const gene* pb, Py_ssize_t d, Py_ssize_t first,
    Py_ssize_t last,
) noexcept nogil:
    """The genes [first, last)."""
    memcpy(ca, pa, d * sizeof(gene))
    memcpy(cb, pb, d * sizeof(gene))
    if first < last:
        memcpy(ca + first, pb + first, (last - first) * sizeof(gene))
        memcpy(cb + first, pa + first, (last - first) * sizeof(gene))


cdef inline void cuts(
    Py_ssize_t* first, Py_ssize_t* last, int kind, Py_ssize_t d, const uint32_t* words
) noexcept nogil:
    """The genes [first, last) that a pair of d > 0 genes exchanges: from one cut strictly inside
    to the end, or between two different cuts."""
    cdef Py_ssize_t a, b
    if kind == ONE_POINT:
        first[0], last[0] = 1 + scaled(words[GROUP], d - 1) if d > 1 else d, d
    else:
        a, b = scaled(words[GROUP], d + 1), scaled(words[2 * GROUP], d)
        b += b >= a
        first[0], last[0] = min(a, b), max(a, b)


cdef inline void spread_of(
    float* step, const float* room, const float* span, const uint32_t* words,
    const uint32_t* masks, Py_ssize_t n, const Variation* how,
) noexcept nogil:
    """step[j] = (1 - beta) / 2 of n genes (a multiple of 16), 0 for those that take no part. In
    stages over the tile: one gene's chain of operations would wait for itself (2.4 ns per gene,
    in one loop 4.9)."""
    cdef float[TILE] q
    cdef float[TILE] base
    cdef float[TILE] log
    cdef float widest, u, v, e, power = how.power, least = how.least
    cdef float root = <float> 1.0 / how.power
    cdef int32_t limit = how.gene_limit
    cdef int shift = how.spare
    cdef Py_ssize_t j
    cdef int left = how.whole
    if left:  # by squaring
        for j in range(n):
            u = span[j] + <float> 2.0 * room[j]
            u = span[j] / u if u > span[j] else <float> 1.0  # a parent outside, a == b
            base[j] = u if u > least else least
            q[j] = <float> 1.0
        while left:
            if left & 1:
                for j in range(n):
                    q[j] *= base[j]
            left >>= 1
            if left:
                for j in range(n):
                    base[j] *= base[j]
    else:
        for j in range(n):
            widest = <float> 1.0 + <float> 2.0 * room[j] / span[j]
            widest = widest if widest < <float> 1e18 else <float> 1e18  # also NaN, a == b
            log[j] = log2_f(widest if widest > <float> 1.0 else <float> 1.0)
        for j in range(n):
            q[j] = exp2_f(-power * log[j])
    for j in range(n):
        u = (<float> (<int32_t> (words[j] >> 9)) + <float> 0.5) * <float> (1.0 / 8388608.0)
        v = q[j] + (<float> 2.0 - q[j]) * u
        e = root * log2_f(v if v < <float> 1.0 else (<float> 2.0 - q[j]) * (<float> 1.0 - u))
        log[j] = -e if v < <float> 1.0 else e
    for j in range(n):
        e = exp2_within(log[j])  # |log| < 26, as u >= 2^-24
        e = -e if words[j] & 1 else e  # which child lies on which side
        e = <float> 0.5 - <float> 0.5 * e
        step[j] = e if <int32_t> (masks[j] << shift >> 1) <= limit else <float> 0.0


cdef inline void measure(
    float* room, float* span, const real* a, const real* b, const real* low, const real* high
) noexcept nogil:
    """A line of the pair's distances from the nearer bound, and from each other."""
    cdef real x, y, under, over
    cdef Py_ssize_t j
    for j in range(LINE):
        x = a[j] if a[j] < b[j] else b[j]
        y = b[j] if a[j] < b[j] else a[j]
        under = x - low[j]
        over = high[j] - y
        room[j] = <float> (under if under < over else over)
        span[j] = <float> (y - x)


cdef inline void blend(
    real* first, real* second, const real* pa, const real* pb, const real* low, const real* high,
    const float* step
) noexcept nogil:
    """A line of a + t (b - a) and b - t (b - a), inside the bounds; with step 0 the parents."""
    cdef real a, b, x, y, t
    cdef Py_ssize_t j
    for j in range(LINE):
        a = pa[j]
        b = pb[j]
        t = <real> step[j] * (b - a)
        x = a + t
        y = b - t
        x = low[j] if x < low[j] else x
        x = high[j] if x > high[j] else x
        y = low[j] if y < low[j] else y
        y = high[j] if y > high[j] else y
        first[j] = a if step[j] == 0 else x
        second[j] = b if step[j] == 0 else y


cdef inline void cross_sbx(
    real* ca, real* cb, const real* pa, const real* pb, const real* low, const real* high,
    Py_ssize_t d, uint32_t pair, const Variation* how,
) noexcept nogil:
    cdef uint32_t[TILE] words
    cdef uint32_t[TILE] masks
    cdef float[TILE] room
    cdef float[TILE] span
    cdef float[TILE] step
    cdef real[LINE] first
    cdef real[LINE] second
    cdef real[4 * LINE] rest  # fewer genes than a line: both parents and their bounds
    cdef Py_ssize_t start = 0, i, j, n
    for j in range(TILE):  # the last line's unused lanes compute, too
        room[j] = span[j] = rest[j] = 0
    while start < d:
        n = min(<Py_ssize_t> TILE, d - start)
        if start + AHEAD < d:  # memory works while we compute
            for j in range(<Py_ssize_t> (TILE * sizeof(real) // 64)):
                prefetch(<const char*> (pa + start + AHEAD) + 64 * j)
                prefetch(<const char*> (pb + start + AHEAD) + 64 * j)
                prefetch(<const char*> (ca + start + AHEAD) + 64 * j)
                prefetch(<const char*> (cb + start + AHEAD) + 64 * j)
        tile_7(words, how.key, <uint32_t> (start // 4), pair, CROSS, how.generation)
        if not how.spare:
            tile_7(masks, how.key, <uint32_t> (start // 4), pair, MASK, how.generation)
        if n < LINE:
            for j in range(n):
                rest[j] = pa[start + j]
                rest[LINE + j] = pb[start + j]
                rest[2 * LINE + j] = low[start + j]
                rest[3 * LINE + j] = high[start + j]
            measure(room, span, &rest[0], &rest[LINE], &rest[2 * LINE], &rest[3 * LINE])
        j = 0 if n >= LINE else n  # a while, not a for under an else: 5 % of the time
        while j < n:
            i = min(j, n - LINE) + start
            measure(&room[i - start], &span[i - start], pa + i, pb + i, low + i, high + i)
            j += LINE
        spread_of(
            step, room, span, words, &words[0] if how.spare else &masks[0],
            (n + LINE - 1) // LINE * LINE, how,
        )
        if n < LINE:
            blend(first, second, &rest[0], &rest[LINE], &rest[2 * LINE], &rest[3 * LINE], step)
            memcpy(ca + start, &first[0], n * sizeof(real))
            memcpy(cb + start, &second[0], n * sizeof(real))
        j = 0 if n >= LINE else n
        while j < n:  # the last line may go over genes of the one before, with the same result
            i = min(j, n - LINE) + start
            blend(first, second, pa + i, pb + i, low + i, high + i, &step[i - start])
            memcpy(ca + i, &first[0], LINE * sizeof(real))
            memcpy(cb + i, &second[0], LINE * sizeof(real))
            j += LINE
        start += n


cdef inline void cross(
    gene* ca, gene* cb, const gene* pa, const gene* pb, const gene* low, const gene* high,
    Py_ssize_t d, Py_ssize_t pair, const uint32_t* words, const Variation* how,
) noexcept nogil:
    """Both children of pair number ``pair``, whose own words are words[0], [16], [32], [48]."""
    cdef int kind = how.crossover
    cdef Py_ssize_t first = 0, last = 0
    if d == 0 or unit_32(words[0]) >= how.rate:
        kind = COPY
    if kind == UNIFORM:
        exchange_uniform(ca, cb, pa, pb, d, <uint32_t> pair, how)
    elif kind == SBX:
        if gene is not uint8_t:
            cross_sbx(ca, cb, pa, pb, low, high, d, <uint32_t> pair, how)
    else:
        if kind != COPY:
            cuts(&first, &last, kind, d, words)
        exchange_segment(ca, cb, pa, pb, d, first, last)
