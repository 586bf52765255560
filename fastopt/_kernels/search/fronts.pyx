"""Non-dominated sorting: the front of each row of objectives.

Rows are put in lexicographic order (a radix sort), then each goes to the first front that does not
dominate it, found by bisection (Zhang et al., ENS-BS, IEEE TEC 19 (2015)). Of the fronts of two
objectives the lowest second value decides; those of three keep a staircase of their second and
third values; those of more are compared row by row, the latest first. Equal rows share a front.
"""

from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memmove, memset

from fastopt._kernels.shared cimport numpy as cnp
from fastopt._kernels.shared.arguments cimport data_of

from fastopt.errors import ArrayError

cnp.import_array()

cdef enum:
    BITS = 11  # of a key that one pass sorts by
    BUCKETS = 1 << BITS
    DIGITS = 6
    FIRST = 8  # steps that a new staircase has room for

cdef struct Stair:  # of one front: second values rise, third values fall
    double* step  # pairs
    Py_ssize_t n, room

cdef struct Sort:
    const double* y  # (n, m)
    Py_ssize_t n, m
    int32_t* order  # rows in lexicographic order
    int32_t* other
    uint64_t* key
    int32_t* rank


cdef inline uint64_t key_of(double x) noexcept nogil:
    """A number whose order is that of doubles; -0.0 counts as 0.0."""
    cdef uint64_t bits
    x = x + 0.0
    memcpy(&bits, &x, 8)
    return bits ^ (<uint64_t> (<int64_t> bits >> 63) | <uint64_t> 1 << 63)


cdef void sort_rows(Sort* s) noexcept nogil:
    """Least significant digit first: last column to first, a stable pass per digit."""
    cdef Py_ssize_t i, column, at
    cdef int32_t[BUCKETS] start
    cdef int32_t total, count
    cdef int digit, shift, bucket
    for i in range(s.n):
        s.order[i] = <int32_t> i
    for column in range(s.m - 1, -1, -1):
        for i in range(s.n):
            s.key[i] = key_of(s.y[i * s.m + column])
        for digit in range(DIGITS):
            shift = digit * BITS
            memset(start, 0, sizeof(start))
            for i in range(s.n):
                start[(s.key[i] >> shift) & (BUCKETS - 1)] += 1
            if start[(s.key[0] >> shift) & (BUCKETS - 1)] == s.n:
                continue  # the same digit everywhere
            total = 0
            for bucket in range(BUCKETS):
                count = start[bucket]
                start[bucket] = total
                total += count
            for i in range(s.n):
                bucket = <int> ((s.key[s.order[i]] >> shift) & (BUCKETS - 1))
                at = start[bucket]
                start[bucket] += 1
                s.other[at] = s.order[i]
            s.order, s.other = s.other, s.order


cdef inline bint equal(const double* a, const double* b, Py_ssize_t m) noexcept nogil:
    cdef Py_ssize_t j
    for j in range(m):
        if a[j] != b[j]:
            return False
    return True


cdef inline bint below(const double* a, const double* b, Py_ssize_t m) noexcept nogil:
    """Whether a is nowhere larger than b."""
    cdef Py_ssize_t j
    for j in range(m):
        if a[j] > b[j]:
            return False
    return True


cdef inline Py_ssize_t steps_up_to(const Stair* stair, double x) noexcept nogil:
    """How many steps have a second value of at most x."""
    cdef Py_ssize_t low = 0, n = stair.n, half
    while n > 0:
        half = (n + 1) // 2
        low += half * (stair.step[2 * (low + half - 1)] <= x)
        n -= half
    return low


cdef bint add_step(Stair* stair, double x, double y) noexcept nogil:
    """Insert a step that no other is below of, and drop those above it; False without memory."""
    cdef Py_ssize_t at = steps_up_to(stair, x), end, room
    cdef double* larger
    if at > 0 and stair.step[2 * at - 2] == x:
        at -= 1  # its third value is larger, or the step would be below
    end = at
    while end < stair.n and stair.step[2 * end + 1] >= y:
        end += 1
    if stair.n + 1 - (end - at) > stair.room:
        room = 2 * stair.room if stair.room else FIRST
        larger = <double*> malloc(<size_t> room * 16)
        if larger == NULL:
            return False
        if stair.n:
            memcpy(larger, stair.step, <size_t> stair.n * 16)
        free(stair.step)
        stair.step, stair.room = larger, room
    memmove(
        stair.step + 2 * (at + 1), stair.step + 2 * end, <size_t> (stair.n - end) * 16
    )
    stair.step[2 * at], stair.step[2 * at + 1] = x, y
    stair.n += 1 - (end - at)
    return True


cdef bint rank_two(Sort* s, double* lowest) noexcept nogil:
    """``lowest`` (n,): of each front the lowest second value; they rise from front to front."""
    cdef Py_ssize_t i, low, high, middle, count = 0
    cdef double second
    cdef const double* row
    for i in range(s.n):
        row = s.y + s.order[i] * 2
        if i and equal(row, s.y + s.order[i - 1] * 2, 2):
            s.rank[s.order[i]] = s.rank[s.order[i - 1]]
            continue
        second = row[1]
        low, high = 0, count
        while low < high:
            middle = (low + high) // 2
            if lowest[middle] <= second:
                low = middle + 1
            else:
                high = middle
        count += low == count
        lowest[low] = second
        s.rank[s.order[i]] = <int32_t> low
    return True


cdef bint rank_three(Sort* s, Stair* stairs) noexcept nogil:
    """``stairs`` (n,), of which the first fronts are used; False without memory."""
    cdef Py_ssize_t i, low, high, middle, at, count = 0
    cdef const double* row
    for i in range(s.n):
        row = s.y + s.order[i] * 3
        if i and equal(row, s.y + s.order[i - 1] * 3, 3):
            s.rank[s.order[i]] = s.rank[s.order[i - 1]]
            continue
        low, high = 0, count
        while low < high:
            middle = (low + high) // 2
            at = steps_up_to(&stairs[middle], row[1])
            if at and stairs[middle].step[2 * at - 1] <= row[2]:
                low = middle + 1
            else:
                high = middle
        count += low == count
        if not add_step(&stairs[low], row[1], row[2]):
            return False
        s.rank[s.order[i]] = <int32_t> low
    return True


cdef bint rank_many(Sort* s, int32_t* last, int32_t* before) noexcept nogil:
    """``last``: of each front the latest row, ``before``: of each row the one before; -1 ends."""
    cdef Py_ssize_t i, low, high, middle, count = 0, m = s.m
    cdef const double* row
    cdef int32_t member
    for i in range(s.n):
        row = s.y + s.order[i] * m
        if i and equal(row, s.y + s.order[i - 1] * m, m):
            s.rank[s.order[i]] = s.rank[s.order[i - 1]]
            continue
        low, high = 0, count
        while low < high:
            middle = (low + high) // 2
            member = last[middle]
            while member >= 0 and not below(s.y + member * m, row, m):
                member = before[member]
            if member >= 0:
                low = middle + 1
            else:
                high = middle
        before[s.order[i]] = last[low] if low < count else -1
        count += low == count
        last[low] = s.order[i]
        s.rank[s.order[i]] = <int32_t> low
    return True


# --- doors

def fronts(cnp.ndarray rank not None, cnp.ndarray y not None):
    """rank[i] = front of row i of y (n, m) float64 without NaN; rank (n,) int32."""
    cdef Sort s
    cdef Py_ssize_t i
    cdef char* memory
    cdef bint good = False
    if cnp.PyArray_NDIM(y) != 2 or cnp.PyArray_DIM(y, 0) >= 1 << 31:
        raise ArrayError("y: expected a matrix of fewer than 2**31 rows")
    s.n, s.m = cnp.PyArray_DIM(y, 0), cnp.PyArray_DIM(y, 1)
    s.y = <double*> data_of(y, cnp.NPY_FLOAT64, -1, False, "y")
    s.rank = <int32_t*> data_of(rank, cnp.NPY_INT32, s.n, True, "rank")
    if s.n == 0:
        return
    # keys, then stairs or lowest values, of 24 bytes; two orders
    memory = <char*> malloc(<size_t> s.n * (8 + sizeof(Stair) + 8))
    if memory == NULL:
        raise MemoryError
    s.key = <uint64_t*> memory
    s.order = <int32_t*> (memory + s.n * (8 + sizeof(Stair)))
    s.other = s.order + s.n
    memory += s.n * 8
    with nogil:
        sort_rows(&s)
        if s.m == 2:
            good = rank_two(&s, <double*> memory)
        elif s.m == 3:
            memset(memory, 0, <size_t> s.n * sizeof(Stair))
            good = rank_three(&s, <Stair*> memory)
            for i in range(s.n):
                free((<Stair*> memory)[i].step)
        else:
            good = rank_many(&s, <int32_t*> memory, <int32_t*> memory + s.n)
        free(memory - s.n * 8)
    if not good:
        raise MemoryError
