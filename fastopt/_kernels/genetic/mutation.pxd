"""Mutation of rows, gene by gene with probability ``mutation_rate``: by geometric gaps where that
is small, else by a word per gene. An operator is one function over genes that are computed
together (in stages, so that none waits for its own chain), named once in ``renew``.

* polynomial (Deb & Agrawal, technical report, IIT Kanpur, 1999), bounded;
* gaussian, sigma in units of high - low, reflected once at a bound, then clipped.
"""

from libc.math cimport sqrt
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

from fastopt._kernels.shared.approximate cimport cos_d, exp2_d, log2_d
from fastopt._kernels.genetic.crossover cimport real
from fastopt._kernels.genetic.words cimport (
    DENSE, FLIP, POLYNOMIAL, SKIP, Variation, next_hit, tile, unit_32
)
from fastopt._kernels.shared.philox cimport TILE, philox, u32x4

cdef enum:
    EARLY = 2  # mutations of a row whose words are drawn for 16 rows at once
    SITES = 64  # mutations computed together

ctypedef fused bits:
    uint8_t
    uint64_t

cdef struct Genes:  # that wait to be computed together, and what they become
    Py_ssize_t count
    Py_ssize_t[SITES] at
    Py_ssize_t[SITES] column
    uint32_t[SITES] word
    uint32_t[SITES] turn
    double[SITES] x
    double[SITES] low
    double[SITES] high


cdef inline void flip_row(
    bits* x, Py_ssize_t d, Py_ssize_t row, const Variation* how
) noexcept nogil:
    """Each of d bits, one per byte or 64 per word, flipped with probability mutation_rate."""
    cdef u32x4 draw
    cdef Py_ssize_t j = -1
    cdef uint64_t count = 0
    while True:  # gaps between flipped bits are geometric; one block holds four of them
        if count % 4 == 0:
            draw = philox(how.key, <uint64_t> row | (count // 4) << 32, SKIP, how.generation)
        if not next_hit(&j, log2_d(unit_32(draw.w[count % 4])) * how.skip, d):
            return
        if bits is uint8_t:
            x[j] ^= 1
        else:
            x[j // 64] ^= <uint64_t> 1 << (j % 64)
        count += 1


cdef inline void polynomial(Genes* g, Py_ssize_t n, double eta) noexcept nogil:
    cdef double[SITES] v
    cdef double u, near, power = eta + 1.0
    cdef Py_ssize_t k
    for k in range(n):
        u = unit_32(g.word[k])
        v[k] = (g.high[k] - g.x[k] if u < 0.5 else g.x[k] - g.low[k]) / (g.high[k] - g.low[k])
        v[k] = log2_d(v[k])
    for k in range(n):
        v[k] = exp2_d(power * v[k])
    for k in range(n):
        u = unit_32(g.word[k])
        near = 2.0 * (u if u < 0.5 else 1.0 - u)
        v[k] = log2_d(near + (1.0 - near) * v[k])
    for k in range(n):
        u = (1.0 - exp2_d(v[k] / power)) * (g.high[k] - g.low[k])
        g.x[k] = g.x[k] - u if unit_32(g.word[k]) < 0.5 else g.x[k] + u


cdef inline void gaussian(Genes* g, Py_ssize_t n, double sigma) noexcept nogil:
    """Box and Muller: the radius from one word, sign and quarter turn from another."""
    cdef double[SITES] radius
    cdef double x, z
    cdef Py_ssize_t k
    for k in range(n):
        radius[k] = sqrt(-1.3862943611198906 * log2_d(unit_32(g.word[k])))
    for k in range(n):
        z = radius[k] * cos_d(
            (<double> (<int32_t> (g.turn[k] >> 1)) + 0.5) * (1.5707963267948966 / 2147483648.0)
        )
        x = g.x[k] + sigma * (g.high[k] - g.low[k]) * (-z if g.turn[k] & 1 else z)
        x = g.low[k] + (g.low[k] - x) if x < g.low[k] else x
        g.x[k] = g.high[k] - (x - g.high[k]) if x > g.high[k] else x


cdef inline void renew(Genes* g, Py_ssize_t n, const Variation* how) noexcept nogil:
    """Genes 0..n-1 (a multiple of 8 for whole vectors)."""
    if how.mutation == POLYNOMIAL:
        polynomial(g, n, how.eta)
    else:
        gaussian(g, n, how.sigma)


cdef inline real within(double x, real before, real low, real high) noexcept nogil:
    """``x`` clipped to [low, high]; the value before where the interval is empty."""
    cdef real y = <real> x
    y = low if y < low else y
    y = high if y > high else y
    return y if high > low else before


cdef inline void mutate_dense(
    real* x, const real* low, const real* high, Py_ssize_t d, uint32_t row, const Variation* how
) noexcept nogil:
    cdef uint32_t[TILE] words
    cdef uint32_t[TILE] masks
    cdef Genes genes
    cdef Py_ssize_t start = 0, j, n
    while start < d:
        n = min(<Py_ssize_t> TILE // 2, d - start)
        tile(words, how.key, <uint32_t> (start // 2), row, DENSE, how.generation)
        tile(masks, how.key, <uint32_t> (start // 2), row, FLIP, how.generation)
        for j in range(TILE // 2):
            genes.word[j] = words[j]
            genes.turn[j] = words[TILE // 2 + j]
            genes.x[j] = genes.low[j] = 0
            genes.high[j] = 1
        for j in range(n):
            genes.x[j] = x[start + j]
            genes.low[j] = low[start + j]
            genes.high[j] = high[start + j]
        renew(&genes, (n + 7) // 8 * 8, how)
        for j in range(n):
            if <int32_t> (masks[j] >> 1) <= how.mutation_limit:
                x[start + j] = within(
                    genes.x[j], x[start + j], low[start + j], high[start + j]
                )
        start += n


cdef inline void mutate_waiting(
    real* x, const real* low, const real* high, Genes* g, const Variation* how
) noexcept nogil:
    cdef Py_ssize_t k, whole = (g.count + 7) // 8 * 8
    for k in range(g.count):
        g.x[k] = x[g.at[k]]
        g.low[k] = low[g.column[k]]
        g.high[k] = high[g.column[k]]
    for k in range(g.count, whole):
        g.x[k] = g.low[k] = 0
        g.high[k] = 1
        g.word[k] = g.turn[k] = 0
    renew(g, whole, how)
    for k in range(g.count):
        x[g.at[k]] = within(g.x[k], x[g.at[k]], low[g.column[k]], high[g.column[k]])
    g.count = 0


cdef inline void mutate_rows(
    real* x, const real* low, const real* high, Py_ssize_t first, Py_ssize_t rows, Py_ssize_t d,
    const Variation* how,
) noexcept nogil:
    """Rows first..first + rows - 1 of x, at most 32. The words of each row's first EARLY
    mutations come from tiles over 16 rows, later ones from single blocks: the same words."""
    cdef uint32_t[2 * EARLY * TILE] draws
    cdef double[2 * EARLY * 16] gaps
    cdef Genes genes
    cdef u32x4 draw
    cdef Py_ssize_t lane, i, j, n
    cdef uint64_t hit
    cdef double gap
    if not how.mutation_rate > 0:
        return
    if how.mutation_rate > 0.125:  # every gene gets its own words
        for lane in range(first, first + rows):
            mutate_dense(x + lane * d, low, high, d, <uint32_t> lane, how)
        return
    for i in range((rows + 15) // 16 * EARLY):
        tile(
            &draws[i * TILE], how.key, <uint32_t> (first + i // EARLY * 16),
            <uint32_t> (i % EARLY),
            SKIP, how.generation,
        )
        for lane in range(16):
            gaps[i * 16 + lane] = log2_d(unit_32(draws[i * TILE + lane])) * how.skip
    genes.count = 0
    for lane in range(rows):
        j = -1
        hit = 0
        while True:
            if hit < EARLY:
                i = lane // 16 * EARLY + <Py_ssize_t> hit
                gap = gaps[i * 16 + lane % 16]
                draw.w[1] = draws[i * TILE + 16 + lane % 16]
                draw.w[2] = draws[i * TILE + 32 + lane % 16]
            else:
                draw = philox(how.key, <uint64_t> (first + lane) | hit << 32, SKIP, how.generation)
                gap = log2_d(unit_32(draw.w[0])) * how.skip
            if not next_hit(&j, gap, d):
                break
            n = genes.count
            genes.at[n] = (first + lane) * d + j
            genes.column[n] = j
            genes.word[n] = draw.w[1]
            genes.turn[n] = draw.w[2]
            genes.count = n + 1
            if genes.count == SITES:
                mutate_waiting(x, low, high, &genes, how)
            hit += 1
    mutate_waiting(x, low, high, &genes, how)
