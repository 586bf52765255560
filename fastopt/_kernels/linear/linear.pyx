"""Linear models on dense rows: mini-batch epochs and full-batch gradients in one pass over X.

Objective   f(W, b) = 1/n sum_i s_i loss(y_i, W x_i + b) + l2/2 |W|^2 + l1 |W|_1
A batch B   g = 1/|B| sum_{i in B} s_i dloss/dz x_i + l2 W, then one step of the rule; L1 by its
            proximal map, soft thresholding with lr l1.
Rows are taken sixteen at a time, dot products and gradient while they lie in the first-level cache
(batch.pxd). Threads are local SGD: a fixed number of workers, each with its own copy of the
parameters, walk their own batches and are averaged every `sync` batches, so the result depends on
the order and the number of workers, never on the threads (Stich, "Local SGD converges fast and
communicates little", ICLR 2019).
"""

from fastopt._kernels.shared cimport numpy as cnp
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from fastopt._kernels.shared.arguments cimport data_of
from fastopt._kernels.shared.pool cimport mark, marked, run
from fastopt._kernels.shared.restrict cimport u8
from fastopt._kernels.linear.batch cimport Rows, Sums, batch, result, room_of
from fastopt._kernels.linear.loss cimport CHUNK, DIRECT, SOFTMAX
from fastopt._kernels.linear.order cimport number_labels, permute
from fastopt._kernels.linear.step cimport (
    MAX_WORKERS, N_SLABS, Rule, check_order, due, meet, real, seconds, step,
)

cnp.import_array()

cdef enum:
    BLOCKS = 4096  # of 16 labels that a thread takes at a time

cdef float[2 * CHUNK] ones_32
cdef double[2 * CHUNK] ones_64
cdef Py_ssize_t place
for place in range(CHUNK):
    ones_32[place] = ones_64[place] = 1


cdef struct Epoch:
    const Rows* rows
    const int64_t* order
    Py_ssize_t entries, size
    const double* lr
    const Rule* rule
    bint single
    void* slab  # (n_workers, N_SLABS, length)
    int64_t* steps
    char* scratch  # room bytes per worker, beginning with the gradient
    Py_ssize_t length, room
    Py_ssize_t sync, first, last  # batches first..last - 1, after which the workers meet


cdef void walk(
    const Epoch* e, Py_ssize_t first, Py_ssize_t last, real* slab, int64_t* steps, char* scratch,
) noexcept nogil:
    """A worker's batches first..last-1, one after the other."""
    cdef const Rows* rows = e.rows
    cdef real *g = <real*> scratch
    cdef Py_ssize_t b, start, n
    for b in range(first, last):
        memset(g, 0, e.length * sizeof(real))
        start = b * e.size
        n = batch(rows, e.order + start, min(e.size, e.entries - start), e.entries - start, slab,
                  g, scratch + e.length * sizeof(real))
        step(slab, e.length, g, rows.k * rows.pad, rows.k, e.lr[b], e.lr[b], n, e.rule, steps)


cdef void segment(void* context, Py_ssize_t p, int thread) noexcept nogil:
    """Worker p's batches until the workers meet."""
    cdef Epoch* e = <Epoch*> context
    cdef Py_ssize_t first = min(e.last, e.first + p * e.sync), at = p * N_SLABS * e.length
    cdef Py_ssize_t last = min(e.last, first + e.sync)
    if e.single:
        walk(e, first, last, <float*> e.slab + at, e.steps + 2 * p, e.scratch + p * e.room)
    else:
        walk(e, first, last, <double*> e.slab + at, e.steps + 2 * p, e.scratch + p * e.room)


cdef int run_epoch(Epoch* e, Py_ssize_t n_workers, int threads) except -1 nogil:
    cdef Py_ssize_t n_batches = (e.entries + e.size - 1) // e.size
    cdef double polled = seconds()
    e.first = 0
    while e.first < n_batches:
        e.last = min(n_batches, e.first + n_workers * e.sync)
        run(segment, e, n_workers, threads)
        if n_workers > 1 and e.single:
            meet(<float*> e.slab, n_workers, e.length, e.first, e.sync, e.last, e.rule)
        elif n_workers > 1:
            meet(<double*> e.slab, n_workers, e.length, e.first, e.sync, e.last, e.rule)
        e.first = e.last
        if due(&polled):
            with gil:
                PyErr_CheckSignals()
    return 0


def sgd_epoch(
    cnp.ndarray slab not None, cnp.ndarray steps not None, cnp.ndarray x not None,
    cnp.ndarray y not None, weights, cnp.ndarray order not None, cnp.ndarray lr not None,
    Py_ssize_t k, Py_ssize_t group, Py_ssize_t size, Py_ssize_t sync, int loss, int targets,
    double epsilon, bint intercept, int kind, double l2, double l1, double momentum, double beta2,
    double eps, bint average, int threads,
):
    """In place: the batches of one epoch on slab (n_workers, 4, length), float32 or float64.

    A worker's rows: parameters, first moment, second moment, average; each is k rows of pad
    coefficients (zeros behind d), k intercepts, zeros up to whole 64 bytes.
    order (entries,) int64 names groups of ``group`` rows; a batch is ``size`` entries; lr
    (n_batches,) float64. steps (n_workers, 2) int64 counts steps and averaged iterates.
    y holds targets of x's dtype, or class numbers of x's dtype or uint8: with targets 1, class c
    stands against the rest in output c; with 2, class 1 against the others.
    Returns (sum of the losses as seen before each step, sum of weights, 1 if a margin or a target
    was not finite). A signal's exception leaves whole steps.
    """
    cdef Rows rows
    cdef Rule rule = Rule(kind, l2, l1, momentum, beta2, eps, average)
    cdef int typenum = cnp.PyArray_TYPE(x)
    describe(&rows, x, y, weights, k, group, loss, targets, epsilon, intercept)
    cdef Py_ssize_t n_workers = slab.shape[0], length = slab.shape[2] if slab.ndim == 3 else 0
    cdef Py_ssize_t entries = cnp.PyArray_SIZE(order), room
    if slab.ndim != 3 or not 1 <= n_workers <= MAX_WORKERS or length < k * rows.pad + k:
        raise ValueError("slab: expected shape (n_workers, 4, length)")
    if size < 1 or sync < 1:
        raise ValueError("size, sync: expected at least 1")
    cdef Epoch e
    e.rows, e.rule, e.single = &rows, &rule, typenum == cnp.NPY_FLOAT
    e.entries, e.size, e.sync, e.length = entries, size, sync, length
    e.slab = data_of(slab, typenum, n_workers * N_SLABS * length, True, "slab")
    e.steps = <int64_t*> data_of(steps, cnp.NPY_INT64, 2 * n_workers, True, "steps")
    e.order = <const int64_t*> data_of(order, cnp.NPY_INT64, -1, False, "order")
    e.lr = <const double*> data_of(
        lr, cnp.NPY_DOUBLE, (entries + size - 1) // size, False, "lr")
    check_order(e.order, entries, (rows.n + group - 1) // group)
    cdef char* scratch = scratch_of(&rows, typenum, length, n_workers, &room)
    e.scratch, e.room = aligned(scratch), room
    try:
        with nogil:
            run_epoch(&e, n_workers, threads)
        return results(typenum, aligned(scratch), n_workers, room, length)
    finally:
        free(scratch)


cdef struct Full:
    const Rows* rows
    bint single
    const void* weight
    double* out  # (n_chunks, length)
    char* scratch
    Py_ssize_t n_chunks, length, room


cdef void gradient(
    const Rows* rows, Py_ssize_t first, Py_ssize_t last, const real* w, double* grad,
    Py_ssize_t length, char* scratch,
) noexcept nogil:
    """Groups first..last-1: each group's gradient in ``real``, their sum in double."""
    cdef real* g = <real*> scratch
    cdef int64_t q
    cdef Py_ssize_t j
    memset(grad, 0, length * sizeof(double))
    for q in range(first, last):
        memset(g, 0, length * sizeof(real))
        batch(rows, &q, 1, 1, w, g, scratch + length * sizeof(real))
        for j in range(length):
            grad[j] += g[j]


cdef void chunk(void* context, Py_ssize_t c, int thread) noexcept nogil:
    """Part c of the rows."""
    cdef Full* f = <Full*> context
    cdef Py_ssize_t n_groups = (f.rows.n + f.rows.group - 1) // f.rows.group
    cdef Py_ssize_t first = n_groups * c // f.n_chunks, last = n_groups * (c + 1) // f.n_chunks
    cdef double* out = f.out + c * f.length
    cdef char* scratch = f.scratch + c * f.room
    if f.single:
        gradient(f.rows, first, last, <const float*> f.weight, out, f.length, scratch)
    else:
        gradient(f.rows, first, last, <const double*> f.weight, out, f.length, scratch)


def loss_gradient(
    cnp.ndarray grad not None, cnp.ndarray weight not None, cnp.ndarray x not None,
    cnp.ndarray y not None, weights, Py_ssize_t k, int loss, int targets, double epsilon,
    bint intercept, int threads,
):
    """Sum of the losses of all rows and its gradient, into grad (n_chunks, length) float64.

    The rows are cut into n_chunks = grad.shape[0] <= 64 runs whose sums stand in grad's rows on
    return, so the bits depend on n_chunks and not on the threads. weight (length,) as a row of
    sgd_epoch's slab, of x's dtype. No penalty is added.
    y as for sgd_epoch. Returns (loss, sum of weights, 1 if a margin or target was not finite).
    """
    cdef Rows rows
    cdef int typenum = cnp.PyArray_TYPE(x)
    describe(&rows, x, y, weights, k, 256, loss, targets, epsilon, intercept)
    cdef Py_ssize_t n_chunks = grad.shape[0], length = cnp.PyArray_SIZE(weight), room
    if grad.ndim != 2 or not 1 <= n_chunks <= MAX_WORKERS or length < k * rows.pad + k:
        raise ValueError("grad: expected shape (n_chunks, length) with at most 64 chunks")
    cdef Full f
    f.rows, f.single, f.n_chunks, f.length = &rows, typenum == cnp.NPY_FLOAT, n_chunks, length
    f.out = <double*> data_of(grad, cnp.NPY_DOUBLE, n_chunks * length, True, "grad")
    f.weight = data_of(weight, typenum, length, False, "weight")
    cdef char* scratch = scratch_of(&rows, typenum, length, n_chunks, &room)
    f.scratch, f.room = aligned(scratch), room
    try:
        with nogil:
            run(chunk, &f, n_chunks, threads)
        return results(typenum, aligned(scratch), n_chunks, room, length)
    finally:
        free(scratch)


cdef struct Labels:
    uint8_t* codes
    const void* labels
    const void* few
    Py_ssize_t n
    int size
    int other  # there is a third label


cdef void label(void* context, Py_ssize_t k, int thread) noexcept nogil:
    """BLOCKS blocks of 16 labels."""
    cdef Labels* w = <Labels*> context
    cdef Py_ssize_t first = k * BLOCKS, last = min((w.n + 15) // 16, first + BLOCKS)
    cdef bint other
    if w.size == 8:
        other = number_labels(
            <u8> w.codes, <const uint64_t*> w.labels, <const uint64_t*> w.few, w.n, first, last)
    elif w.size == 4:
        other = number_labels(
            <u8> w.codes, <const uint32_t*> w.labels, <const uint32_t*> w.few, w.n, first, last)
    else:
        other = number_labels(
            <u8> w.codes, <const uint8_t*> w.labels, <const uint8_t*> w.few, w.n, first, last)
    if other:
        mark(&w.other)


def number_two(
    cnp.ndarray codes not None, cnp.ndarray labels not None, cnp.ndarray few not None, int threads
):
    """codes (n,) uint8 = 1 where a label's bytes are those of few[1], else 0.

    labels (n,), at least 16, and few (2,) share a dtype of 1, 4 or 8 bytes. Returns whether every
    label is one of the two.
    """
    cdef int typenum = cnp.PyArray_TYPE(labels), size = cnp.PyArray_ITEMSIZE(labels)
    cdef Py_ssize_t n = cnp.PyArray_SIZE(labels), blocks = (n + 15) // 16
    if n < 16 or (size != 1 and size != 4 and size != 8):
        raise ValueError("labels: expected at least 16 entries of 1, 4 or 8 bytes")
    cdef Labels w = Labels(
        <uint8_t*> data_of(codes, cnp.NPY_UINT8, n, True, "codes"),
        data_of(labels, typenum, n, False, "labels"), data_of(few, typenum, 2, False, "few"),
        n, size, 0,
    )
    with nogil:
        run(label, &w, (blocks + BLOCKS - 1) // BLOCKS, threads)
    return not marked(&w.other)


def shuffle(cnp.ndarray order not None, uint64_t key, uint32_t epoch_number):
    """In place: order (n,) int64 permuted by Fisher and Yates; a function of (key, epoch)."""
    cdef int64_t* a = <int64_t*> data_of(order, cnp.NPY_INT64, -1, True, "order")
    cdef Py_ssize_t n = cnp.PyArray_SIZE(order)
    with nogil:
        permute(a, n, key, epoch_number)


cdef int describe(
    Rows* rows, cnp.ndarray x, cnp.ndarray y, weights, Py_ssize_t k, Py_ssize_t group,
    int loss, int targets, double epsilon, bint intercept,
) except -1:
    """Check x, y and weights and note their pointers."""
    cdef int typenum = cnp.PyArray_TYPE(x)
    if typenum != cnp.NPY_DOUBLE:
        typenum = cnp.NPY_FLOAT
    cdef Py_ssize_t lanes = 16 if typenum == cnp.NPY_FLOAT else 8
    rows.x = data_of(x, typenum, -1, False, "x")
    if x.ndim != 2 or k < 1 or group < 1:
        raise ValueError("x, k, group: expected two dimensions, k and group of at least 1")
    rows.n, rows.d, rows.k, rows.group = x.shape[0], x.shape[1], k, group
    rows.pad = (rows.d + lanes - 1) // lanes * lanes
    cdef bint direct = targets == DIRECT and loss != SOFTMAX
    rows.wide = k if direct else 1
    rows.coded = not direct and cnp.PyArray_TYPE(y) == cnp.NPY_UINT8
    rows.y = data_of(y, cnp.NPY_UINT8 if rows.coded else typenum, rows.n * rows.wide, False, "y")
    rows.s, rows.ones = NULL, <void*> ones_32 if lanes == 16 else <void*> ones_64
    if weights is not None:
        rows.s = data_of(<cnp.ndarray?> weights, typenum, rows.n, False, "weights")
    rows.loss, rows.targets, rows.epsilon, rows.intercept = loss, targets, epsilon, intercept
    return 0


cdef char* scratch_of(
    const Rows* rows, int typenum, Py_ssize_t length, Py_ssize_t n_workers, Py_ssize_t* room
) except NULL:
    """Zeroed scratch: for each worker a gradient, then what ``batch`` asks for; lines unshared."""
    cdef int size = 4 if typenum == cnp.NPY_FLOAT else 8
    room[0] = length * size + room_of(rows, size)
    room[0] = (room[0] + 127) // 128 * 128
    cdef char* scratch = <char*> calloc(n_workers + 1, room[0])
    if scratch == NULL:
        raise MemoryError
    return scratch


cdef inline char* aligned(char* scratch) noexcept nogil:
    return scratch + (-<Py_ssize_t> scratch & 63)


cdef tuple results(
    int typenum, const char* scratch, Py_ssize_t n_workers, Py_ssize_t room, Py_ssize_t length
):
    """(sum of losses, sum of weights, 1 if a value was not finite) over the workers."""
    cdef double[3] total = [0, 0, 0]
    cdef Py_ssize_t p, size = 4 if typenum == cnp.NPY_FLOAT else 8
    for p in range(n_workers):
        result(<const Sums*> (scratch + p * room + size * length), total)
    return total[0], total[1], int(total[2] != 0)
