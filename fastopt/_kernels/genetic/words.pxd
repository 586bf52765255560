"""What the genetic kernels share: words, streams, one call's numbers, exchange of genes."""

from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

cdef extern from "genetic/genetic.h" nogil:
    void fo_tile(uint32_t* out, uint64_t key, uint32_t first, uint32_t second,
                 uint32_t stream, uint32_t step) noexcept
    float fo_log2f(float x) noexcept
    float fo_exp2f(float x) noexcept
    double fo_log2(double x) noexcept
    double fo_exp2(double x) noexcept
    double fo_cos(double x) noexcept

ctypedef fused gene:
    float
    double
    uint8_t

cdef enum:
    COPY = 0
    UNIFORM = 1
    ONE_POINT = 2
    TWO_POINT = 3
    SBX = 4
    GAUSSIAN = 1
    POLYNOMIAL = 2
    TILE = 64           # genes for which one pass holds its words
    GROUP = 16          # pairs, slots or rows whose own words come from one tile
    EARLY = 2           # mutations of a row whose words are drawn for 16 rows at once
    SITES = 64          # mutations computed together
    POLL = 1 << 23      # genes between two looks at Ctrl-C, about 30 ms
    S_SELECT = 1
    S_PAIR = 2
    S_CROSS = 3
    S_MASK = 4
    S_SKIP = 5
    S_DENSE = 6
    S_FILL = 7
    S_FLIP = 8


cdef struct Plan:       # one call's numbers, the same for every row
    uint64_t key
    uint32_t step
    int crossover
    int mutation
    double rate         # of pairs that cross
    int32_t gene_limit  # a gene takes part if its word's top 31 bits are <= this
    float power         # eta + 1 of SBX
    float root          # 1 / power
    double mutation_rate
    double mutation_scale
    int32_t mutation_limit
    double skip         # 1 / log2(1 - mutation_rate)


cdef inline int32_t limit_of(double rate) noexcept nogil:
    return <int32_t> (<double> (rate * 2147483648.0) - 1.0)


cdef inline Py_ssize_t scaled(uint32_t word, Py_ssize_t n) noexcept nogil:
    """Uniform in 0..n-1 for n <= 2^32 (bias below n / 2^32)."""
    return <Py_ssize_t> ((<uint64_t> word * <uint64_t> n) >> 32)


cdef inline double unit_32(uint32_t word) noexcept nogil:
    """Uniform inside (0, 1), symmetric about 1/2."""
    return (<double> word + 0.5) * (1.0 / 4294967296.0)


cdef inline void exchange_uniform(
    gene* ca, gene* cb, const gene* pa, const gene* pb, Py_ssize_t d, Py_ssize_t pair,
    const Plan* plan,
) noexcept nogil:
    cdef uint32_t words[TILE]
    cdef Py_ssize_t tile, start, j, m
    cdef gene a, b
    cdef int32_t limit = plan.gene_limit
    for tile in range((d + TILE - 1) // TILE):
        start = tile * TILE
        m = min(TILE, d - start)
        fo_tile(words, plan.key, <uint32_t> (start // 4), <uint32_t> pair, S_CROSS, plan.step)
        for j in range(m):
            a = pa[start + j]
            b = pb[start + j]
            ca[start + j] = b if <int32_t> (words[j] >> 1) <= limit else a
            cb[start + j] = a if <int32_t> (words[j] >> 1) <= limit else b


cdef inline void exchange_segment(
    gene* ca, gene* cb, const gene* pa, const gene* pb, Py_ssize_t d,
    Py_ssize_t first, Py_ssize_t last,
) noexcept nogil:
    cdef Py_ssize_t j
    for j in range(first):
        ca[j] = pa[j]
        cb[j] = pb[j]
    for j in range(first, last):
        ca[j] = pb[j]
        cb[j] = pa[j]
    for j in range(last, d):
        ca[j] = pa[j]
        cb[j] = pb[j]


cdef inline void cuts(
    Py_ssize_t* first, Py_ssize_t* last, const uint32_t* words, Py_ssize_t d, const Plan* plan
) noexcept nogil:
    """The segment that is exchanged: from one cut strictly inside, or between two cuts."""
    cdef Py_ssize_t a, b
    if plan.crossover == ONE_POINT:
        first[0] = 1 + scaled(words[GROUP], d - 1) if d > 1 else d
        last[0] = d
        return
    a = scaled(words[GROUP], d + 1)
    b = scaled(words[2 * GROUP], d)
    b += b >= a
    first[0] = min(a, b)
    last[0] = max(a, b)


cdef inline Plan plan_of(
    int crossover, double rate, double gene_rate, double eta, int mutation, double mutation_rate,
    double mutation_scale, uint64_t key, uint32_t generation,
) noexcept nogil:
    cdef Plan plan
    plan.key = key
    plan.step = generation
    plan.crossover = crossover
    plan.mutation = mutation
    plan.rate = rate
    plan.gene_limit = limit_of(gene_rate)
    plan.power = <float> (eta + 1.0)
    plan.root = <float> 1.0 / plan.power
    plan.mutation_rate = mutation_rate
    plan.mutation_scale = mutation_scale
    plan.mutation_limit = limit_of(mutation_rate)
    if mutation_rate < 1e-9:  # 1 - rate loses its digits, and is 1 below 1e-16: log2's first term
        plan.skip = -1.0 / (mutation_rate * 1.4426950408889634) if mutation_rate > 0 else 0.0
    else:
        plan.skip = 1.0 / fo_log2(1.0 - mutation_rate) if mutation_rate < 1 else 0.0
    return plan
