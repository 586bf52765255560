"""Linear models on compressed sparse rows (CSR): the same steps as linear.pyx, to rounding.

A batch of plain SGD touches only the columns of its rows (lazy.pxd). Every other rule, and
averaging beside L1, adds the batch's gradient up in a dense vector and takes the dense step.
Workers are local SGD as there, except that lazy ones are not averaged but added up (``mix``).
Columns may come in any order and more than once in a row. Indices are read as 32 bits, of 64-bit
ones the low half; who calls has checked them.
"""

from fastopt._kernels.shared cimport numpy as cnp
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from fastopt._kernels.shared.arguments cimport data_of
from fastopt._kernels.shared.pool cimport run
from fastopt._kernels.linear.csr cimport Rows, Sums, Tile, collect, dot, slopes, spread
from fastopt._kernels.linear.lazy cimport mix, walk_lazily
from fastopt._kernels.linear.loss cimport CHUNK, ONE_VS_REST, SOFTMAX
from fastopt._kernels.linear.step cimport (
    MAX_WORKERS, N_SLABS, SGD, Rule, check_order, due, meet, real, seconds, step,
)

cnp.import_array()

cdef enum:
    ROWS = 256  # of a product that a thread takes at a time

cdef struct Epoch:
    const Rows* rows
    const int64_t* order
    Py_ssize_t entries, size
    const double* lr
    const Rule* rule
    bint single, lazy
    void* slab  # (n_workers, N_SLABS, length)
    int64_t* steps
    char* scratch  # room bytes per worker
    Py_ssize_t length, room
    Py_ssize_t sync, first, last  # batches first..last - 1, after which the workers meet
    const void* stiff  # curvatures, or NULL
    void* before  # (length,), the parameters as the workers last met
    Sums* total  # one per worker


cdef void walk(
    const Epoch* e, Py_ssize_t first, Py_ssize_t last, real* slab, int64_t* steps, char* scratch,
    Sums* total,
) noexcept nogil:
    """Dense steps: a worker's batches first..last-1; scratch is a gradient, then one tile."""
    cdef const Rows* f = e.rows
    cdef real *g = <real*> scratch
    cdef Py_ssize_t b, start, count, n
    cdef Tile tile
    if e.lazy:
        walk_lazily(f, e.order, e.entries, e.size, e.lr, first, last, slab, e.length, e.rule,
                    steps, scratch, total)
        return
    for b in range(first, last):
        memset(g, 0, e.length * sizeof(real))
        start, n = b * e.size, 0
        count = min(e.size, e.entries - start)
        tile.entry = tile.inner = 0
        while tile.entry < count:
            collect(f, e.order + start, count, e.entries - start, &tile, sizeof(real))
            slopes(f, &tile, slab, 1, g + e.length, total)
            spread(f, &tile, g + e.length, 1, g, 1)
            n += tile.rows
        step(slab, e.length, g, f.k * f.pad, f.k, e.lr[b], min(e.lr[b], f.cap), n, e.rule, steps)


cdef void segment(void* context, Py_ssize_t p, int thread) noexcept nogil:
    """Worker p's batches until the workers meet."""
    cdef Epoch* e = <Epoch*> context
    cdef Py_ssize_t first = min(e.last, e.first + p * e.sync), at = p * N_SLABS * e.length
    cdef Py_ssize_t last = min(e.last, first + e.sync)
    cdef char* scratch = e.scratch + p * e.room
    if e.single:
        walk(e, first, last, <float*> e.slab + at, e.steps + 2 * p, scratch, e.total + p)
    else:
        walk(e, first, last, <double*> e.slab + at, e.steps + 2 * p, scratch, e.total + p)


cdef void gather(
    const Epoch* e, real* slab, Py_ssize_t n_workers, const real* stiff, real* before
) noexcept nogil:
    """The workers meet."""
    cdef double rates = 0
    cdef Py_ssize_t b
    if stiff == NULL:
        meet(slab, n_workers, e.length, e.first, e.sync, e.last, e.rule)
        return
    for b in range(e.first, e.last):
        rates += e.lr[b] / n_workers
    mix(slab, n_workers, e.length, stiff, e.rows.k * e.rows.pad, rates, before)


cdef int run_epoch(Epoch* e, Py_ssize_t n_workers, int threads) except -1 nogil:
    cdef Py_ssize_t n_batches = (e.entries + e.size - 1) // e.size
    cdef double polled = seconds()
    if e.stiff != NULL:
        memcpy(e.before, e.slab, e.length * (sizeof(float) if e.single else sizeof(double)))
    e.first = 0
    while e.first < n_batches:
        e.last = min(n_batches, e.first + n_workers * e.sync)
        run(segment, e, n_workers, threads)
        if n_workers > 1 and e.single:
            gather(e, <float*> e.slab, n_workers, <const float*> e.stiff, <float*> e.before)
        elif n_workers > 1:
            gather(e, <double*> e.slab, n_workers, <const double*> e.stiff, <double*> e.before)
        e.first = e.last
        if due(&polled):
            with gil:
                PyErr_CheckSignals()
    return 0


cdef void full(
    const Rows* f, Py_ssize_t first, Py_ssize_t last, const real* w, double* grad,
    Py_ssize_t length, real* e, Sums* total,
) noexcept nogil:
    cdef Tile tile
    cdef int i
    memset(grad, 0, length * sizeof(double))
    while first < last:
        tile.rows = <int> min(CHUNK, last - first)
        for i in range(tile.rows):
            tile.id[i] = first + i
        slopes(f, &tile, w, 1, e, total)
        spread(f, &tile, e, 1, grad, 1)
        first += tile.rows


cdef struct Full:
    const Rows* rows
    bint single
    const void* weight
    double* grad  # (n_chunks, length)
    char* scratch
    Py_ssize_t n_chunks, length, room
    Sums* total


cdef void chunk(void* context, Py_ssize_t c, int thread) noexcept nogil:
    """Part c of the rows."""
    cdef Full* w = <Full*> context
    cdef Py_ssize_t n = w.rows.n, first = n * c // w.n_chunks, last = n * (c + 1) // w.n_chunks
    cdef double* grad = w.grad + c * w.length
    cdef char* scratch = w.scratch + c * w.room
    if w.single:
        full(w.rows, first, last, <const float*> w.weight, grad, w.length, <float*> scratch,
             w.total + c)
    else:
        full(w.rows, first, last, <const double*> w.weight, grad, w.length, <double*> scratch,
             w.total + c)


cdef struct Product:
    const Rows* rows
    bint single
    const void* weight
    void* out


cdef void some_products(void* context, Py_ssize_t p, int thread) noexcept nogil:
    """ROWS rows of X times w'."""
    cdef Product* w = <Product*> context
    cdef const Rows* f = w.rows
    cdef Py_ssize_t i, c
    for i in range(p * ROWS, min(f.n, (p + 1) * ROWS)):
        for c in range(f.k):
            if w.single:
                (<float*> w.out)[i * f.k + c] = dot(f, i, <const float*> w.weight + c * f.d)
            else:
                (<double*> w.out)[i * f.k + c] = dot(f, i, <const double*> w.weight + c * f.d)


cdef void square(const Rows* f, const real* s, double* out) noexcept nogil:
    cdef const real* x = <const real*> f.x
    cdef Py_ssize_t i
    cdef int64_t q
    cdef double weight = 1
    for i in range(f.n):
        if s != NULL:
            weight = s[i]
        for q in range(f.start[i], f.start[i + 1]):
            out[f.column[q << f.two]] += weight * x[q] * x[q]


cdef int describe(
    Rows* f, cnp.ndarray x, cnp.ndarray column, cnp.ndarray start, Py_ssize_t d, Py_ssize_t k,
) except -1:
    """Note the matrix' pointers. The columns are the caller's to check, its ends are not."""
    cdef int typenum = cnp.PyArray_TYPE(x)
    if typenum != cnp.NPY_DOUBLE:
        typenum = cnp.NPY_FLOAT
    f.two = cnp.PyArray_TYPE(column) == cnp.NPY_INT64
    cdef Py_ssize_t nnz = cnp.PyArray_SIZE(x), lanes = 8 if typenum == cnp.NPY_DOUBLE else 16
    f.x = data_of(x, typenum, -1, False, "data")
    f.column = <const int32_t*> data_of(
        column, cnp.NPY_INT64 if f.two else cnp.NPY_INT32, nnz, False, "indices")
    f.start = <const int64_t*> data_of(start, cnp.NPY_INT64, -1, False, "indptr")
    f.n, f.d, f.k = cnp.PyArray_SIZE(start) - 1, d, k
    f.pad = (d + lanes - 1) // lanes * lanes
    if f.n < 1 or d < 1 or k < 1 or f.start[0] != 0 or f.start[f.n] != nnz:
        raise ValueError("indptr: expected n + 1 entries from 0 to the number of values")
    return typenum


cdef int describe_loss(
    Rows* f, int typenum, cnp.ndarray y, weights, int loss, int targets, double epsilon,
    bint intercept,
) except -1:
    f.wide = 1 if targets == ONE_VS_REST or loss == SOFTMAX else f.k
    f.y = data_of(y, typenum, f.n * f.wide, False, "y")
    f.s = NULL
    if weights is not None:
        f.s = data_of(<cnp.ndarray?> weights, typenum, f.n, False, "weights")
    f.loss, f.targets, f.epsilon, f.intercept = loss, targets, epsilon, intercept
    return 0


cdef tuple result(const Sums* sums, Py_ssize_t n):
    cdef double loss = 0, weight = 0, odd = 0
    cdef Py_ssize_t p
    for p in range(n):
        loss += sums[p].loss
        weight += sums[p].weight
        odd += sums[p].odd
    return loss, weight, int(odd != 0)


def sgd_epoch(
    cnp.ndarray slab not None, cnp.ndarray steps not None, cnp.ndarray data not None,
    cnp.ndarray indices not None, cnp.ndarray indptr not None, Py_ssize_t d,
    cnp.ndarray y not None,
    weights, cnp.ndarray order not None, cnp.ndarray lr not None, Py_ssize_t k, Py_ssize_t group,
    Py_ssize_t size, Py_ssize_t sync, int loss, int targets, double epsilon, bint intercept,
    int kind, double l2, double l1, double momentum, double beta2, double eps, bint average,
    bint lazy, stiff, double cap, int threads,
):
    """In place: the batches of one epoch on slab (n_workers, 4, length), as linear.sgd_epoch.

    data (nnz,), indices (nnz,) int32 or int64, indptr (n + 1,) int64: the n rows of d columns.
    lazy: plain SGD, averaging only without L1, touches only the columns that occur. cap: the
    intercepts' step is at most that: their column is in every row, so that steps made for rare
    columns shake them. stiff (k pad,) or None: curvature of each weight, for lazy workers to add
    their moves up by. Returns (sum of the losses as seen before each step, sum of weights, 1 if a
    margin was not finite). A signal's exception leaves whole steps.
    """
    cdef Rows f
    cdef Rule rule = Rule(kind, l2, l1, momentum, beta2, eps, average)
    cdef Sums[MAX_WORKERS] sums_of
    cdef int typenum = describe(&f, data, indices, indptr, d, k)
    describe_loss(&f, typenum, y, weights, loss, targets, epsilon, intercept)
    f.group, f.cap = group, cap
    cdef Py_ssize_t n_workers = slab.shape[0], length = slab.shape[2] if slab.ndim == 3 else 0
    cdef Py_ssize_t entries = cnp.PyArray_SIZE(order), room
    if slab.ndim != 3 or not 1 <= n_workers <= MAX_WORKERS or length < k * f.pad + k:
        raise ValueError("slab: expected shape (n_workers, 4, length)")
    if size < 1 or sync < 1 or group < 1 or (lazy and (kind != SGD or average and l1 > 0)):
        raise ValueError("size, sync, group: expected at least 1; lazy: goes with plain SGD")
    cdef Epoch e
    e.rows, e.rule, e.single, e.lazy = &f, &rule, typenum == cnp.NPY_FLOAT, lazy
    e.entries, e.size, e.sync, e.length, e.total = entries, size, sync, length, sums_of
    e.slab = data_of(slab, typenum, n_workers * N_SLABS * length, True, "slab")
    e.steps = <int64_t*> data_of(steps, cnp.NPY_INT64, 2 * n_workers, True, "steps")
    e.order = <const int64_t*> data_of(order, cnp.NPY_INT64, -1, False, "order")
    e.lr = <const double*> data_of(
        lr, cnp.NPY_DOUBLE, (entries + size - 1) // size, False, "lr")
    check_order(e.order, entries, (f.n + group - 1) // group)
    cdef Py_ssize_t tile = k * CHUNK * sizeof(double)
    if lazy:
        room = ((size * group + CHUNK - 1) // CHUNK + 1) * tile
        room += k * f.pad * sizeof(double) if l1 > 0 else 0
    else:
        room = length * sizeof(double) + tile
    e.stiff = NULL
    if stiff is not None:
        e.stiff = data_of(<cnp.ndarray?> stiff, typenum, k * f.pad, False, "stiff")
    e.room = room = (room + 7) // 8 * 8
    cdef char* scratch = <char*> calloc(n_workers * room + length * sizeof(double), 1)
    if scratch == NULL:
        raise MemoryError
    e.scratch, e.before = scratch, scratch + n_workers * room
    memset(sums_of, 0, sizeof(sums_of))
    try:
        with nogil:
            run_epoch(&e, n_workers, threads)
        return result(sums_of, n_workers)
    finally:
        free(scratch)


def loss_gradient(
    cnp.ndarray grad not None, cnp.ndarray weight not None, cnp.ndarray data not None,
    cnp.ndarray indices not None, cnp.ndarray indptr not None, Py_ssize_t d,
    cnp.ndarray y not None,
    weights, Py_ssize_t k, int loss, int targets, double epsilon, bint intercept, int threads,
):
    """Sum of the losses of all rows and its gradient, into grad (n_chunks, length) float64.

    As linear.loss_gradient: the bits depend on n_chunks and not on the threads.
    """
    cdef Rows f
    cdef Sums[MAX_WORKERS] sums_of
    cdef int typenum = describe(&f, data, indices, indptr, d, k)
    describe_loss(&f, typenum, y, weights, loss, targets, epsilon, intercept)
    cdef Py_ssize_t n_chunks = grad.shape[0], length = cnp.PyArray_SIZE(weight)
    if grad.ndim != 2 or not 1 <= n_chunks <= MAX_WORKERS or length < k * f.pad + k:
        raise ValueError("grad: expected shape (n_chunks, length) with at most 64 chunks")
    cdef Full w
    w.rows, w.single, w.n_chunks, w.length = &f, typenum == cnp.NPY_FLOAT, n_chunks, length
    w.grad = <double*> data_of(grad, cnp.NPY_DOUBLE, n_chunks * length, True, "grad")
    w.weight = data_of(weight, typenum, length, False, "weight")
    w.room, w.total = k * CHUNK * sizeof(double), sums_of
    w.scratch = <char*> calloc(n_chunks, w.room)
    if w.scratch == NULL:
        raise MemoryError
    memset(sums_of, 0, sizeof(sums_of))
    try:
        with nogil:
            run(chunk, &w, n_chunks, threads)
        return result(sums_of, n_chunks)
    finally:
        free(w.scratch)


def squares(
    cnp.ndarray out not None, cnp.ndarray data not None, cnp.ndarray indices not None,
    cnp.ndarray indptr not None, weights,
):
    """In place: out[j] += sum_i s_i x_ij^2, one float64 a column."""
    cdef Rows f
    cdef int typenum = describe(&f, data, indices, indptr, cnp.PyArray_SIZE(out), 1)
    cdef double* to = <double*> data_of(out, cnp.NPY_DOUBLE, -1, True, "out")
    cdef void* s = NULL
    if weights is not None:
        s = data_of(<cnp.ndarray?> weights, typenum, f.n, False, "weights")
    with nogil:
        if typenum == cnp.NPY_FLOAT:
            square(&f, <const float*> s, to)
        else:
            square(&f, <const double*> s, to)


def product(
    cnp.ndarray out not None, cnp.ndarray data not None, cnp.ndarray indices not None,
    cnp.ndarray indptr not None, cnp.ndarray w not None, int threads,
):
    """out (n, k) = X w', w (k, d), both of data's dtype."""
    cdef Rows f
    if w.ndim != 2:
        raise ValueError("w: expected two dimensions")
    cdef int typenum = describe(&f, data, indices, indptr, w.shape[1], w.shape[0])
    cdef Product p
    p.rows, p.single = &f, typenum == cnp.NPY_FLOAT
    p.out = data_of(out, typenum, f.n * f.k, True, "out")
    p.weight = data_of(w, typenum, -1, False, "w")
    with nogil:
        run(some_products, &p, (f.n + ROWS - 1) // ROWS, threads)
