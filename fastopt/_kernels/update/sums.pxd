"""Sums of squares over a unit. Lanes are independent and added up as a tree in double, so every
level gives the same bits."""

from fastopt._kernels.update.stretch cimport *

cdef enum:
    LANES = 32


cdef inline double tree(double* lanes, int n) noexcept nogil:
    cdef int k, half = n // 2
    while half > 0:
        for k in range(half):
            lanes[k] = lanes[k] + lanes[k + half]
        half = half // 2
    return lanes[0]


cdef inline double sum_in_double(const real* x, Py_ssize_t n) noexcept nogil:
    """The sum of x[i]^2, squared and added in double over 16 lanes."""
    cdef double lanes[LINE]
    cdef double one, total
    cdef Py_ssize_t i = 0
    cdef int j, k
    if n == UNIT:  # the same additions, lane by lane, so that no lane goes through memory
        for k in range(LINE):
            total = 0
            for j in range(UNIT // LINE):
                one = x[j * LINE + k]
                total = total + one * one
            lanes[k] = total
        return tree(lanes, LINE)
    for k in range(LINE):
        lanes[k] = 0
    while i + LINE <= n:
        for k in range(LINE):
            one = x[i + k]
            lanes[k] = lanes[k] + one * one
        i += LINE
    k = 0
    while i < n:
        one = x[i]
        lanes[k] = lanes[k] + one * one
        i += 1
        k += 1
    return tree(lanes, LINE)


cdef inline double sum_of_squares(const real* x, Py_ssize_t n) noexcept nogil:
    """Of at most UNIT elements. Floats in 32 lanes of float: what a lane loses in adding 8 squares
    is next to nothing. Where squares leave float's range, once more in double."""
    cdef float lanes[LANES]
    cdef float one
    cdef double wide[LANES]
    cdef double total
    cdef Py_ssize_t i = 0
    cdef int j, k
    if real is double:
        return sum_in_double(x, n)
    elif n % LANES:
        return sum_in_double(x, n)
    else:
        if n == UNIT:  # as above
            for k in range(LANES):
                one = 0
                for j in range(UNIT // LANES):
                    one = one + x[j * LANES + k] * x[j * LANES + k]
                lanes[k] = one
        else:
            for k in range(LANES):
                lanes[k] = 0
            while i < n:
                for k in range(LANES):
                    lanes[k] = lanes[k] + x[i + k] * x[i + k]
                i += LANES
        for k in range(LANES):
            wide[k] = lanes[k]
        total = tree(wide, LANES)
        return total if 1e-24 < total < 1e38 else sum_in_double(x, n)


cdef inline double add_squares(reals columns, reals g, Py_ssize_t n, real scale) noexcept nogil:
    """columns[j] += q_j, q_j = (scale g[j])^2; returns the sum of the q_j."""
    cdef real lanes[LANES]
    cdef double wide[LANES]
    cdef double total = 0
    cdef real q
    cdef Py_ssize_t j = 0
    cdef int k, width = 128 // <int> sizeof(real)
    for k in range(LANES):
        lanes[k] = 0
    while j + width <= n:
        for k in range(128 // <int> sizeof(real)):
            q = scale * g[j + k]
            q = q * q
            columns[j + k] = columns[j + k] + q
            lanes[k] = lanes[k] + q
        j += width
    if j > 0:
        for k in range(128 // <int> sizeof(real)):
            wide[k] = lanes[k]
        total = tree(wide, width)
    while j < n:
        q = scale * g[j]
        q = q * q
        columns[j] = columns[j] + q
        total = total + q
        j += 1
    return total
