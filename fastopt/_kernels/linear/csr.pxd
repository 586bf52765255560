"""Rows of a compressed sparse matrix (CSR), up to FO_CHUNK at a time: margins, slopes,
gradients."""

from libc.stdint cimport int32_t, int64_t

from fastopt._kernels.linear.step cimport real

cdef extern from "linear/sparse.h" nogil:
    enum: FO_CHUNK, FO_ONE_VS_REST, FO_SOFTMAX
    void fo_loss_f32(int, float, int, float*, const float*, const float*, float*) noexcept
    void fo_loss_f64(int, double, int, double*, const double*, const double*, double*) noexcept
    void fo_softmax_f32(Py_ssize_t, int, float*, const float*, const float*, float*) noexcept
    void fo_softmax_f64(Py_ssize_t, int, double*, const double*, const double*, double*) noexcept
    float fo_dot_f32(const float*, const int32_t*, int, Py_ssize_t, const float*) noexcept
    double fo_dot_f64(const double*, const int32_t*, int, Py_ssize_t, const double*) noexcept
    void fo_add_f32(const float*, const int32_t*, int, Py_ssize_t, float, float*) noexcept
    void fo_add_f64(const double*, const int32_t*, int, Py_ssize_t, double, double*) noexcept
    void fo_add_wide(const float*, const int32_t*, int, Py_ssize_t, float, double*) noexcept
    void fo_ask(const void*, const int32_t*, int, Py_ssize_t, Py_ssize_t, int) noexcept
    void fo_ask_at(const int32_t*, int, Py_ssize_t, const void*, int) noexcept

cdef enum:
    AHEAD = 16384  # bytes of rows that are asked for before they are due

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

cdef struct Tile:  # up to FO_CHUNK rows of a batch
    int64_t[64] id
    Py_ssize_t entry, inner  # where the next tile begins
    int rows


cdef inline real dot(const Rows* f, int64_t i, const real* w) noexcept nogil:
    cdef int64_t a = f.start[i]
    if real is float:
        return fo_dot_f32(<const float*> f.x + a, f.column + (a << f.two), f.two,
                          f.start[i + 1] - a, w)
    else:
        return fo_dot_f64(<const double*> f.x + a, f.column + (a << f.two), f.two,
                          f.start[i + 1] - a, w)


cdef inline void add(const Rows* f, int64_t i, real e, sums* g) noexcept nogil:
    """g += e x_i."""
    cdef int64_t a = f.start[i]
    if real is float and sums is float:
        fo_add_f32(
            <const float*> f.x + a, f.column + (a << f.two), f.two, f.start[i + 1] - a, e, g
        )
    elif real is float:
        fo_add_wide(<const float*> f.x + a, f.column + (a << f.two), f.two, f.start[i + 1] - a, e,
                    g)
    elif sums is double:
        fo_add_f64(<const double*> f.x + a, f.column + (a << f.two), f.two, f.start[i + 1] - a, e,
                   g)


cdef inline void collect(
    const Rows* f, const int64_t* order, Py_ssize_t entries, Py_ssize_t known, Tile* tile,
    int size,
) noexcept nogil:
    """The next rows of the batch's entries into the tile; rows that come later are asked for."""
    cdef Py_ssize_t first, last, later, per = f.group * (f.start[f.n] // f.n + 1) * size
    cdef Py_ssize_t ahead = 1 + AHEAD // (per + 1)
    tile.rows = 0
    while tile.entry < entries and tile.rows < FO_CHUNK:
        first = order[tile.entry] * f.group
        last = min(f.n, first + f.group)
        if tile.inner == 0 and tile.entry + ahead < known and f.group < FO_CHUNK:
            later = order[tile.entry + ahead] * f.group
            fo_ask(f.x, f.column, f.two, f.start[later], f.start[min(f.n, later + f.group)], size)
        while first + tile.inner < last and tile.rows < FO_CHUNK:
            tile.id[tile.rows] = first + tile.inner
            tile.inner += 1
            tile.rows += 1
        if first + tile.inner == last:
            tile.entry += 1
            tile.inner = 0


cdef inline void slopes(
    const Rows* f, const Tile* tile, const real* w, double scale, real* e, Sums* total
) noexcept nogil:
    """e (k, FO_CHUNK) = s dloss/dz of the tile's rows at parameters ``scale`` w."""
    cdef real[64] t
    cdef real[64] s
    cdef real[64] v
    cdef const real* y = <const real*> f.y
    cdef int rows = tile.rows, n = (tile.rows + 15) // 16 * 16, i
    cdef Py_ssize_t c, stride = n if f.loss == FO_SOFTMAX else FO_CHUNK
    cdef real b, part = <real> scale, odd = 0
    for i in range(n):
        s[i] = 0 if i >= rows else 1 if f.s == NULL else (<const real*> f.s)[tile.id[i]]
        total.weight += s[i]
    for c in range(f.k):
        b = w[f.k * f.pad + c]
        for i in range(rows):
            e[c * stride + i] = dot(f, tile.id[i], w + c * f.pad) * part + b
            odd += e[c * stride + i] - e[c * stride + i]
        for i in range(rows, n):
            e[c * stride + i] = 0
    total.odd += odd
    for c in range(1 if f.loss == FO_SOFTMAX else f.k):
        for i in range(n):
            t[i] = 0 if i >= rows else y[tile.id[i] * f.wide + (c if f.wide > 1 else 0)]
            if f.targets == FO_ONE_VS_REST and f.loss != FO_SOFTMAX:
                t[i] = 1 if t[i] == <real> c else -1
        if f.loss == FO_SOFTMAX:
            if real is float:
                fo_softmax_f32(f.k, n, e, t, s, v)
            else:
                fo_softmax_f64(f.k, n, e, t, s, v)
        elif real is float:
            fo_loss_f32(f.loss, <float> f.epsilon, n, e + c * stride, t, s, v)
        else:
            fo_loss_f64(f.loss, f.epsilon, n, e + c * stride, t, s, v)
        for i in range(rows):
            total.loss += v[i]
    if f.loss == FO_SOFTMAX and n < FO_CHUNK:  # to the stride that spread() expects
        for c in range(f.k - 1, 0, -1):
            for i in range(n - 1, -1, -1):
                e[c * FO_CHUNK + i] = e[c * n + i]


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
            if e[c * FO_CHUNK + i] != 0:
                add(f, tile.id[i], part * e[c * FO_CHUNK + i], g + c * f.pad)
        if f.intercept:
            b = 0
            for i in range(tile.rows):
                b += e[c * FO_CHUNK + i]
            g[f.k * f.pad + c] += <sums> (bias_scale * b)
