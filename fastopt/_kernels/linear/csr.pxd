"""Rows of a compressed sparse matrix (CSR), up to CHUNK at a time: margins, slopes,
gradients."""

from libc.stdint cimport int32_t, int64_t

from fastopt._kernels.linear.loss cimport CHUNK, ONE_VS_REST, SOFTMAX, slope, softmax
from fastopt._kernels.linear.step cimport real
from fastopt._kernels.shared.stream cimport prefetch

cdef enum:
    AHEAD = 16384  # bytes of rows that are asked for before they are due
    MOST = 4096  # bytes of values, or of columns, that are asked for at a time

ctypedef fused index:  # of a column
    int32_t
    int64_t

ctypedef fused sums:  # what a gradient is added up in
    float
    double

cdef struct Rows:
    const void* x
    const int32_t* column
    const int64_t* start
    const void* y
    const void* s
    Py_ssize_t n, d, k, pad, wide, group
    int two, loss, targets, intercept  # two: the step between 32-bit halves of indices, as a shift
    double epsilon, cap  # the intercepts' largest step

cdef struct Sums:
    double loss
    double weight
    double odd  # 0 while every margin is finite, else NaN

cdef struct Tile:  # up to CHUNK rows of a batch
    int64_t[CHUNK] id
    Py_ssize_t entry, inner  # where the next tile begins
    int rows


cdef inline void ask(
    const void* x, const int32_t* j, int two, Py_ssize_t a, Py_ssize_t b, int size
) noexcept nogil:
    """Entries [a, b) of the matrix, asked for; size is that of a value."""
    cdef const char* p = <const char*> x + a * size
    cdef const char* q = <const char*> (j + (a << two))
    cdef Py_ssize_t i
    for i in range(0, min((b - a) * size, <Py_ssize_t> MOST), 64):
        prefetch(p + i)
    for i in range(0, min((b - a) << (two + 2), <Py_ssize_t> MOST), 64):
        prefetch(q + i)


cdef inline void ask_at(
    const int32_t* j, int two, Py_ssize_t n, const void* w, int size
) noexcept nogil:
    """The elements of a vector that a row's columns name, asked for."""
    cdef Py_ssize_t i
    for i in range(min(n, <Py_ssize_t> 512)):
        prefetch(<const char*> w + <Py_ssize_t> j[i << two] * size)


cdef inline real dot_of(
    const real* x, const index* j, Py_ssize_t n, const real* w
) noexcept nogil:
    """In eight running sums, a fixed order. Scalar loads: a gather instruction is no faster on
    any machine tried, and much slower on some."""
    cdef real t0 = 0, t1 = 0, t2 = 0, t3 = 0, t4 = 0, t5 = 0, t6 = 0, t7 = 0, rest = 0
    cdef Py_ssize_t i
    while n >= 8:
        t0 += x[0] * w[j[0]]
        t1 += x[1] * w[j[1]]
        t2 += x[2] * w[j[2]]
        t3 += x[3] * w[j[3]]
        t4 += x[4] * w[j[4]]
        t5 += x[5] * w[j[5]]
        t6 += x[6] * w[j[6]]
        t7 += x[7] * w[j[7]]
        x += 8
        j += 8
        n -= 8
    for i in range(n):
        rest += x[i] * w[j[i]]
    return (((t0 + t4) + (t2 + t6)) + ((t1 + t5) + (t3 + t7))) + rest


cdef inline real dot(const Rows* f, int64_t i, const real* w) noexcept nogil:
    cdef int64_t a = f.start[i], n = f.start[i + 1] - a
    if f.two:
        return dot_of(<const real*> f.x + a, <const int64_t*> f.column + a, n, w)
    return dot_of(<const real*> f.x + a, f.column + a, n, w)


cdef inline void add_of(
    const real* x, const index* j, Py_ssize_t n, real e, sums* g
) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        g[j[i]] += <sums> e * x[i]


cdef inline void add(const Rows* f, int64_t i, real e, sums* g) noexcept nogil:
    """g += e x_i, column by column: a column may come twice."""
    cdef int64_t a = f.start[i], n = f.start[i + 1] - a
    if f.two:
        add_of(<const real*> f.x + a, <const int64_t*> f.column + a, n, e, g)
    else:
        add_of(<const real*> f.x + a, f.column + a, n, e, g)


cdef inline void collect(
    const Rows* f, const int64_t* order, Py_ssize_t entries, Py_ssize_t known, Tile* tile,
    int size,
) noexcept nogil:
    """The next rows of the batch's entries into the tile; rows that come later are asked for."""
    cdef Py_ssize_t first, last, later, per = f.group * (f.start[f.n] // f.n + 1) * size
    cdef Py_ssize_t ahead = 1 + AHEAD // (per + 1)
    tile.rows = 0
    while tile.entry < entries and tile.rows < CHUNK:
        first = order[tile.entry] * f.group
        last = min(f.n, first + f.group)
        if tile.inner == 0 and tile.entry + ahead < known and f.group < CHUNK:
            later = order[tile.entry + ahead] * f.group
            ask(f.x, f.column, f.two, f.start[later], f.start[min(f.n, later + f.group)], size)
        while first + tile.inner < last and tile.rows < CHUNK:
            tile.id[tile.rows] = first + tile.inner
            tile.inner += 1
            tile.rows += 1
        if first + tile.inner == last:
            tile.entry += 1
            tile.inner = 0


cdef inline void slopes(
    const Rows* f, const Tile* tile, const real* w, double scale, real* e, Sums* total
) noexcept nogil:
    """e (k, CHUNK) = s dloss/dz of the tile's rows at parameters ``scale`` w."""
    cdef real[CHUNK] t
    cdef real[CHUNK] s
    cdef real[CHUNK] v
    cdef const real* y = <const real*> f.y
    cdef int rows = tile.rows, n = (tile.rows + 15) // 16 * 16, i
    cdef Py_ssize_t c, wide = f.wide, stride = n if f.loss == SOFTMAX else CHUNK
    cdef real b, part = <real> scale, odd = 0
    for i in range(n):
        s[i] = 1 if i < rows else 0
    if f.s == NULL:
        total.weight += rows
    else:
        for i in range(rows):
            s[i] = (<const real*> f.s)[tile.id[i]]
            total.weight += s[i]
    for c in range(f.k):
        b = w[f.k * f.pad + c]
        for i in range(rows):
            e[c * stride + i] = dot(f, tile.id[i], w + c * f.pad) * part + b
            odd += e[c * stride + i] - e[c * stride + i]
        for i in range(rows, n):
            e[c * stride + i] = 0
    total.odd += odd
    for c in range(1 if f.loss == SOFTMAX else f.k):
        for i in range(rows):
            t[i] = y[tile.id[i] * wide]
        for i in range(rows, n):
            t[i] = 0
        if f.targets == ONE_VS_REST and f.loss != SOFTMAX:
            for i in range(n):
                t[i] = 1 if t[i] == <real> c else -1
        elif wide > 1:
            y += 1
        if f.loss == SOFTMAX:
            softmax(f.k, n, e, t, s, v)
        else:
            slope(f.loss, f.epsilon, n, e + c * stride, t, s, v)
        for i in range(rows):
            total.loss += v[i]
    if f.loss == SOFTMAX and n < CHUNK:  # to the stride that spread() expects
        for c in range(f.k - 1, 0, -1):
            for i in range(n - 1, -1, -1):
                e[c * CHUNK + i] = e[c * n + i]


cdef inline void spread(
    const Rows* f, const Tile* tile, const real* e, double scale, sums* g, double bias_scale
) noexcept nogil:
    """g += sum of scale e[i] x_i over the tile, bias_scale for the intercepts."""
    cdef real part = <real> scale
    cdef double b
    cdef Py_ssize_t c
    cdef int i
    for c in range(f.k):
        for i in range(tile.rows):
            if e[c * CHUNK + i] != 0:
                add(f, tile.id[i], part * e[c * CHUNK + i], g + c * f.pad)
        if f.intercept:
            b = 0
            for i in range(tile.rows):
                b += e[c * CHUNK + i]
            g[f.k * f.pad + c] += <sums> (bias_scale * b)
