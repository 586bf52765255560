"""What the genetic kernels share: the streams of random words and one call's numbers.

Every word is Philox4x32-10 (in SBX, which needs the most: Philox4x32-7) of (key, row or pair,
stream, generation), so a child does not depend on threads, chunks, level or how many siblings are
made.
"""

from libc.stdint cimport int32_t, uint32_t, uint64_t

from fastopt._kernels.shared.approximate cimport log2_d
from fastopt._kernels.shared.philox cimport philox_tile

cdef enum Stream:
    SELECT = 1
    PAIR = 2
    CROSS = 3
    MASK = 4
    SKIP = 5
    DENSE = 6
    FILL = 7
    FLIP = 8

cdef enum Crossover:
    COPY = 0
    UNIFORM = 1
    ONE_POINT = 2
    TWO_POINT = 3
    SBX = 4

cdef enum Mutation:
    GAUSSIAN = 1
    POLYNOMIAL = 2

cdef struct Variation:  # one call's numbers, the same for every row
    uint64_t key
    uint32_t generation
    int crossover
    double rate  # of pairs that cross
    int32_t gene_limit  # a gene takes part if its word's top 31 bits are <= this
    int spare  # of SBX: 23 where eight bits decide that, which its words have to spare, else 0
    float power  # eta + 1 of SBX
    int whole  # the same where it is a whole number, else 0
    float least  # of what is raised to that power: the result stays a normal number
    int mutation
    double mutation_rate
    int32_t mutation_limit
    double skip  # 1 / log2(1 - mutation_rate)
    double eta  # of the polynomial mutation
    double sigma  # of the Gaussian one, in units of high - low


cdef inline void tile(
    uint32_t* words, uint64_t key, uint32_t index, uint32_t row, Stream stream, uint32_t generation
) noexcept nogil:
    """64 words: word k of the blocks (index + l, row) at 16 k + l."""
    philox_tile(words, key, <uint64_t> row << 32 | index, stream, generation, 10)


cdef inline void tile_7(
    uint32_t* words, uint64_t key, uint32_t index, uint32_t row, Stream stream, uint32_t generation
) noexcept nogil:
    """The same of seven rounds, which pass BigCrush, too (philox.pxd): a generation of SBX takes
    8 % less time."""
    philox_tile(words, key, <uint64_t> row << 32 | index, stream, generation, 7)


cdef inline Py_ssize_t scaled(uint32_t word, Py_ssize_t n) noexcept nogil:
    """Uniform in 0..n-1 for n <= 2^32 (bias below n / 2^32)."""
    return <Py_ssize_t> ((<uint64_t> word * <uint64_t> n) >> 32)


cdef inline double unit_32(uint32_t word) noexcept nogil:
    """Uniform inside (0, 1), symmetric about 1/2."""
    return (<double> word + 0.5) * (1.0 / 4294967296.0)


cdef inline int32_t limit_of(double rate) noexcept nogil:
    rate = rate if rate > 0 else 0  # also NaN
    rate = rate if rate < 1 else 1
    return <int32_t> (<double> (rate * 2147483648.0) - 1.0)


cdef inline double skip_of(double rate) noexcept nogil:
    """What log2 of a uniform is multiplied by for the gap between two hits: 1 / log2(1 - rate)."""
    if not 0 < rate < 1:
        return 0.0
    if rate < 1e-9:  # 1 - rate loses its digits, and is 1 below 1e-16: log2's first term
        return -1.0 / (rate * 1.4426950408889634)
    return 1.0 / log2_d(1.0 - rate)


cdef inline bint next_hit(Py_ssize_t* j, double gap, Py_ssize_t d) noexcept nogil:
    """Move j on by a gap; False where that leads past the row. The gap, which a small rate makes
    as large as one likes, becomes an integer only inside the row."""
    if not 0 <= gap < <double> (d - j[0] - 1):
        return False
    j[0] += 1 + <Py_ssize_t> gap
    return True
