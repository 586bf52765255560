"""Linear models on compressed sparse rows (CSR): the same steps as linear.pyx, to rounding.

A batch of plain SGD touches only the columns of its rows (lazy.pxd). Every other rule, and
averaging beside L1, adds the batch's gradient up in a dense vector and takes the dense step.
Workers are local SGD as there, except that lazy ones are not averaged but added up (``mix``).
Columns may come in any order and more than once in a row. Indices are read as 32 bits, of 64-bit
ones the low half; who calls has checked them.
"""

from fastopt._kernels.shared cimport numpy as cnp
from cpython.exc cimport PyErr_CheckSignals
from cython.parallel cimport prange
from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from fastopt._kernels.shared.arguments cimport data_of
from fastopt._kernels.linear.csr cimport (
    FO_CHUNK, FO_ONE_VS_REST, FO_SOFTMAX, Rows, Sums, Tile, collect, dot, slopes, spread,
)
from fastopt._kernels.linear.lazy cimport mix, walk_lazily
from fastopt._kernels.linear.step cimport (
    MAX_WORKERS, N_SLABS, SGD, Rule, check_order, due, meet, real, seconds, step,
)

cnp.import_array()

cdef void walk(
    const Rows* f, const int64_t* order, Py_ssize_t entries, Py_ssize_t size, const double* lr,
    Py_ssize_t first, Py_ssize_t last, real* slab, Py_ssize_t length, const Rule* rule,
    int64_t* steps, char* scratch, Sums* total,
) noexcept nogil:
    """Dense steps: a worker's batches first..last-1; scratch is a gradient, then one tile."""
    cdef real *g = <real*> scratch
    cdef Py_ssize_t b, start, count, n
    cdef Tile tile
    for b in range(first, last):
        memset(g, 0, length * sizeof(real))
        start, n = b * size, 0
        count = min(size, entries - start)
        tile.entry = tile.inner = 0
        while tile.entry < count:
            collect(f, order + start, count, entries - start, &tile, sizeof(real))
            slopes(f, &tile, slab, 1, g + length, total)
            spread(f, &tile, g + length, 1, g, 1)
            n += tile.rows
        step(slab, length, g, f.k * f.pad, f.k, lr[b], min(lr[b], f.cap), n, rule, steps)


cdef inline void segment(
    const Rows* f, const int64_t* order, Py_ssize_t entries, Py_ssize_t size, const double* lr,
    Py_ssize_t first, Py_ssize_t last, real* slab, Py_ssize_t length, const Rule* rule,
    int64_t* steps, char* scratch, bint lazy, Sums* total,
) noexcept nogil:
    if lazy:
        walk_lazily(f, order, entries, size, lr, first, last, slab, length, rule, steps, scratch,
                    total)
    else:
        walk(f, order, entries, size, lr, first, last, slab, length, rule, steps, scratch, total)


cdef int epoch(
    const Rows* f, const int64_t* order, Py_ssize_t entries, Py_ssize_t size, const double* lr,
    real* slab, Py_ssize_t length, Py_ssize_t n_workers, Py_ssize_t sync, const Rule* rule,
    int64_t* steps, char* scratch, Py_ssize_t room, bint lazy, const real* stiff, real* before,
    Sums* total, int threads,
) except -1 nogil:
    cdef Py_ssize_t n_batches = (entries + size - 1) // size, first = 0, last, p, b
    cdef double polled = seconds(), rates
    for p in range(length if stiff != NULL else 0):
        before[p] = slab[p]
    while first < n_batches:
        last = min(n_batches, first + n_workers * sync)
        if threads == 1 or n_workers == 1:
            for p in range(n_workers):
                segment(f, order, entries, size, lr, min(last, first + p * sync),
                        min(last, first + p * sync + sync), slab + p * N_SLABS * length, length,
                        rule, steps + 2 * p, scratch + p * room, lazy, total + p)
        else:
            for p in prange(n_workers, num_threads=threads, schedule="static", chunksize=1):
                segment(f, order, entries, size, lr, min(last, first + p * sync),
                        min(last, first + p * sync + sync), slab + p * N_SLABS * length, length,
                        rule, steps + 2 * p, scratch + p * room, lazy, total + p)
        if n_workers > 1 and stiff != NULL:
            rates = 0
            for b in range(first, last):
                rates += lr[b] / n_workers
            mix(slab, n_workers, length, stiff, f.k * f.pad, rates, before)
        elif n_workers > 1:
            meet(slab, n_workers, length, first, sync, last, rule)
        first = last
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
        tile.rows = <int> min(FO_CHUNK, last - first)
        for i in range(tile.rows):
            tile.id[i] = first + i
        slopes(f, &tile, w, 1, e, total)
        spread(f, &tile, e, 1, grad, 1)
        first += tile.rows


cdef void fulls(
    const Rows* f, Py_ssize_t n_chunks, const real* w, double* grad, Py_ssize_t length,
    char* scratch, Py_ssize_t room, Sums* total, int threads,
) noexcept nogil:
    cdef Py_ssize_t c
    if threads == 1:
        for c in range(n_chunks):
            full(f, f.n * c // n_chunks, f.n * (c + 1) // n_chunks, w, grad + c * length,
                 length, <real*> (scratch + c * room), total + c)
    else:
        for c in prange(n_chunks, num_threads=threads, schedule="dynamic", chunksize=1):
            full(f, f.n * c // n_chunks, f.n * (c + 1) // n_chunks, w, grad + c * length,
                 length, <real*> (scratch + c * room), total + c)


cdef void products(const Rows* f, const real* w, real* out, int threads) noexcept nogil:
    cdef Py_ssize_t i, c
    if threads == 1:
        for i in range(f.n):
            for c in range(f.k):
                out[i * f.k + c] = dot(f, i, w + c * f.d)
    else:
        for i in prange(f.n, num_threads=threads, schedule="static"):
            for c in range(f.k):
                out[i * f.k + c] = dot(f, i, w + c * f.d)


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
    f.wide = 1 if targets == FO_ONE_VS_REST or loss == FO_SOFTMAX else f.k
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
    cnp.ndarray indices not None, cnp.ndarray indptr not None, Py_ssize_t d, cnp.ndarray y not None,
    weights, cnp.ndarray order not None, cnp.ndarray lr not None, Py_ssize_t k, Py_ssize_t group,
    Py_ssize_t size, Py_ssize_t sync, int loss, int targets, double epsilon, bint intercept,
    int kind, double l2, double l1, double momentum, double beta2, double eps, bint average,
    bint lazy, stiff, double cap, int threads,
):
    """In place: the batches of one epoch on slab (n_workers, 4, length), as linear.sgd_epoch.

    data (nnz,), indices (nnz,) int32 or int64, indptr (n + 1,) int64: the n rows of d columns.
    lazy: plain SGD, averaging only without L1, touches only the columns that occur. cap: the intercepts' step
    is at most that: their column is in every row, so that steps made for rare columns shake them.
    stiff (k pad,) or None: curvature of each weight, for lazy workers to add their moves up by.
    Returns (sum of the losses as seen before each step, sum of weights, 1 if a margin was not
    finite). A signal's exception leaves whole steps.
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
    cdef void* state = data_of(slab, typenum, n_workers * N_SLABS * length, True, "slab")
    cdef int64_t* count = <int64_t*> data_of(steps, cnp.NPY_INT64, 2 * n_workers, True, "steps")
    cdef const int64_t* path = <const int64_t*> data_of(order, cnp.NPY_INT64, -1, False, "order")
    cdef const double* rate = <const double*> data_of(
        lr, cnp.NPY_DOUBLE, (entries + size - 1) // size, False, "lr")
    check_order(path, entries, (f.n + group - 1) // group)
    cdef Py_ssize_t tile = k * FO_CHUNK * sizeof(double)
    if lazy:
        room = ((size * group + FO_CHUNK - 1) // FO_CHUNK + 1) * tile
        room += k * f.pad * sizeof(double) if l1 > 0 else 0
    else:
        room = length * sizeof(double) + tile
    cdef void* h = NULL
    if stiff is not None:
        h = data_of(<cnp.ndarray?> stiff, typenum, k * f.pad, False, "stiff")
    room = (room + 7) // 8 * 8
    cdef char* scratch = <char*> calloc(n_workers * room + length * sizeof(double), 1)
    cdef void* before = scratch + n_workers * room
    if scratch == NULL:
        raise MemoryError
    memset(sums_of, 0, sizeof(sums_of))
    try:
        with nogil:
            if typenum == cnp.NPY_FLOAT:
                epoch(&f, path, entries, size, rate, <float*> state, length, n_workers, sync,
                      &rule, count, scratch, room, lazy, <const float*> h, <float*> before, sums_of,
                      threads)
            else:
                epoch(&f, path, entries, size, rate, <double*> state, length, n_workers, sync,
                      &rule, count, scratch, room, lazy, <const double*> h, <double*> before, sums_of,
                      threads)
        return result(sums_of, n_workers)
    finally:
        free(scratch)


def loss_gradient(
    cnp.ndarray grad not None, cnp.ndarray weight not None, cnp.ndarray data not None,
    cnp.ndarray indices not None, cnp.ndarray indptr not None, Py_ssize_t d, cnp.ndarray y not None,
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
    cdef Py_ssize_t room = k * FO_CHUNK * sizeof(double)
    if grad.ndim != 2 or not 1 <= n_chunks <= MAX_WORKERS or length < k * f.pad + k:
        raise ValueError("grad: expected shape (n_chunks, length) with at most 64 chunks")
    cdef double* out = <double*> data_of(grad, cnp.NPY_DOUBLE, n_chunks * length, True, "grad")
    cdef void* w = data_of(weight, typenum, length, False, "weight")
    cdef char* scratch = <char*> calloc(n_chunks, room)
    if scratch == NULL:
        raise MemoryError
    memset(sums_of, 0, sizeof(sums_of))
    try:
        with nogil:
            if typenum == cnp.NPY_FLOAT:
                fulls(&f, n_chunks, <float*> w, out, length, scratch, room, sums_of, threads)
            else:
                fulls(&f, n_chunks, <double*> w, out, length, scratch, room, sums_of, threads)
        return result(sums_of, n_chunks)
    finally:
        free(scratch)


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
    cdef void* to = data_of(out, typenum, f.n * f.k, True, "out")
    cdef void* coef = data_of(w, typenum, -1, False, "w")
    with nogil:
        if typenum == cnp.NPY_FLOAT:
            products(&f, <float*> coef, <float*> to, threads)
        else:
            products(&f, <double*> coef, <double*> to, threads)
