"""Linear models on dense rows: mini-batch epochs and full-batch gradients in one pass over X.

Objective   f(W, b) = 1/n sum_i s_i loss(y_i, W x_i + b) + l2/2 |W|^2 + l1 |W|_1
A batch B   g = 1/|B| sum_{i in B} s_i dloss/dz x_i + l2 W, then one step of the rule; L1 by its
            proximal map, soft thresholding with lr l1.
Rows are taken eight at a time, dot products and gradient while they lie in the first-level cache
(linear.h). Threads are local SGD: a fixed number of workers, each with its own copy of the
parameters, walk their own batches and are averaged every `sync` batches, so the result depends on
the order and the number of workers, never on the threads (Stich, "Local SGD converges fast and
communicates little", ICLR 2019).
"""

cimport cython
cimport numpy as cnp
from cpython.exc cimport PyErr_CheckSignals
from cython.parallel cimport prange
from libc.math cimport pow, sqrt
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset

from fastopt._kernels._args cimport data_of
from fastopt._kernels._random cimport philox, u32x4

cnp.import_array()

cdef extern from "linear.h" nogil:
    ctypedef struct fo_rows:
        const void* x
        const void* y
        const void* s
        Py_ssize_t n, d, k, pad, group
        int loss, targets, intercept
        double epsilon
    ctypedef struct sums_f32 "fo_sums_f32":
        double loss, weight
        float odd[8]
    ctypedef struct sums_f64 "fo_sums_f64":
        double loss, weight
        double odd[8]
    Py_ssize_t fo_batch_f32(const fo_rows*, const int64_t*, Py_ssize_t, Py_ssize_t, const float*,
                            float*, float*, Py_ssize_t, sums_f32*) noexcept
    Py_ssize_t fo_batch_f64(const fo_rows*, const int64_t*, Py_ssize_t, Py_ssize_t, const double*,
                            double*, double*, Py_ssize_t, sums_f64*) noexcept

cdef extern from *:
    """
    #include <time.h>
    static inline double fo_seconds(void) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
    }
    """
    double seconds "fo_seconds" () noexcept nogil

cdef enum:
    SGD
    MOMENTUM
    NESTEROV
    ADAM

cdef enum:  # rows of a worker's slab
    WEIGHT
    FIRST
    SECOND
    AVERAGE
    GRAD
    MARGINS
    N_SLABS

cdef double POLL_S = 0.05  # seconds between two looks at pending signals

ctypedef fused real:
    float
    double

cdef struct Sums:
    double loss
    double weight
    int bad

cdef struct Rule:
    int kind
    double l2
    double l1
    double momentum  # Adam's beta1 as well
    double beta2
    double eps
    int average


cdef inline Py_ssize_t batch(
    const fo_rows* rows, const int64_t* order, Py_ssize_t entries, Py_ssize_t known,
    real* w, real* g, real* z, Py_ssize_t room, Sums* total,
) noexcept nogil:
    cdef sums_f32 a
    cdef sums_f64 b
    cdef Py_ssize_t n, i
    if real is float:
        memset(&a, 0, sizeof(a))
        n = fo_batch_f32(rows, order, entries, known, w, g, z, room, &a)
        total.loss += a.loss
        total.weight += a.weight
        for i in range(8):
            total.bad |= a.odd[i] != 0
    else:
        memset(&b, 0, sizeof(b))
        n = fo_batch_f64(rows, order, entries, known, w, g, z, room, &b)
        total.loss += b.loss
        total.weight += b.weight
        for i in range(8):
            total.bad |= b.odd[i] != 0
    return n


cdef inline real soft(real v, real threshold) noexcept nogil:
    return v - threshold if v > threshold else v + threshold if v < -threshold else <real> 0


cdef void update(
    real* w, real* m, real* v, real* g, Py_ssize_t n, double lr, double scale, double l2,
    double l1, const Rule* rule, int64_t step,
) noexcept nogil:
    """One step of the rule on n elements; ``scale`` turns the batch's sum into its mean."""
    cdef real c = <real> scale, decay = <real> l2, rate = <real> lr, threshold = <real> (lr * l1)
    cdef real beta = <real> rule.momentum, rest = <real> (1 - rule.momentum)
    cdef real beta2 = <real> rule.beta2, rest2 = <real> (1 - rule.beta2), eps = <real> rule.eps
    cdef real grad, root
    cdef Py_ssize_t j
    if rule.kind == SGD:
        for j in range(n):
            w[j] -= rate * (g[j] * c + decay * w[j])
    elif rule.kind == MOMENTUM:
        for j in range(n):
            m[j] = beta * m[j] + (g[j] * c + decay * w[j])
            w[j] -= rate * m[j]
    elif rule.kind == NESTEROV:
        for j in range(n):
            grad = g[j] * c + decay * w[j]
            m[j] = beta * m[j] + grad
            w[j] -= rate * (grad + beta * m[j])
    else:  # Adam (Kingma & Ba, ICLR 2015, algorithm 1), bias corrections in double
        rate = <real> (lr / (1 - pow(rule.momentum, <double> step)))
        root = <real> (1 / sqrt(1 - pow(rule.beta2, <double> step)))
        for j in range(n):
            grad = g[j] * c + decay * w[j]
            m[j] = beta * m[j] + rest * grad
            v[j] = beta2 * v[j] + rest2 * grad * grad
            w[j] -= rate * m[j] / (root * cython_sqrt(v[j]) + eps)
    if l1 > 0:
        for j in range(n):
            w[j] = soft(w[j], threshold)


cdef inline real cython_sqrt(real x) noexcept nogil:
    if real is float:
        return sqrtf(x)
    else:
        return sqrt(x)


cdef extern from "<math.h>" nogil:
    float sqrtf(float) noexcept


cdef void walk(
    const fo_rows* rows, const int64_t* order, Py_ssize_t entries, Py_ssize_t size,
    const double* lr, Py_ssize_t first, Py_ssize_t last, real* slab, Py_ssize_t length,
    const Rule* rule, int64_t* steps, Sums* total,
) noexcept nogil:
    """A worker's batches first..last-1, one after the other."""
    cdef real *w = slab
    cdef real *g = slab + GRAD * length
    cdef real *mean = slab + AVERAGE * length
    cdef Py_ssize_t coef = rows.k * rows.pad, b, start, count, n, j
    cdef real share
    for b in range(first, last):
        memset(g, 0, length * sizeof(real))
        start = b * size
        count = min(size, entries - start)
        n = batch(rows, order + start, count, entries - start, w, g,
                  slab + MARGINS * length, length, total)
        steps[0] += 1
        update(w, slab + FIRST * length, slab + SECOND * length, g, coef, lr[b], 1.0 / n,
               rule.l2, rule.l1, rule, steps[0])
        update(w + coef, slab + FIRST * length + coef, slab + SECOND * length + coef, g + coef,
               rows.k, lr[b], 1.0 / n, 0, 0, rule, steps[0])
        if rule.average:
            steps[1] += 1
            share = <real> (1.0 / steps[1])
            for j in range(length):
                mean[j] += (w[j] - mean[j]) * share


cdef void meet(
    real* slab, Py_ssize_t n_workers, Py_ssize_t length, Py_ssize_t first, Py_ssize_t sync,
    Py_ssize_t last, int which,
) noexcept nogil:
    """Average one row of the slab over the workers, each by the batches it just did."""
    cdef Py_ssize_t p, j, done
    cdef double total = last - first, part
    cdef real* mean = slab + which * length
    cdef real* other
    cdef real share
    for p in range(n_workers):
        done = min(sync, max(0, last - first - p * sync))
        share = <real> (done / total)
        other = slab + (p * N_SLABS + which) * length
        if p == 0:
            for j in range(length):
                mean[j] *= share
        else:
            for j in range(length):
                mean[j] += other[j] * share
    for p in range(1, n_workers):
        other = slab + (p * N_SLABS + which) * length
        for j in range(length):
            other[j] = mean[j]


cdef int epoch(
    const fo_rows* rows, const int64_t* order, Py_ssize_t entries, Py_ssize_t size,
    const double* lr, real* slab, Py_ssize_t length, Py_ssize_t n_workers, Py_ssize_t sync,
    const Rule* rule, int64_t* steps, Sums* sums, int threads,
) except -1 nogil:
    cdef Py_ssize_t n_batches = (entries + size - 1) // size, first = 0, last, p, lo, hi
    cdef double polled = seconds(), now
    while first < n_batches:
        last = min(n_batches, first + n_workers * sync)
        if threads == 1 or n_workers == 1:
            for p in range(n_workers):
                lo = min(last, first + p * sync)
                hi = min(last, lo + sync)
                walk(rows, order, entries, size, lr, lo, hi, slab + p * N_SLABS * length, length,
                     rule, steps + 2 * p, sums + p)
        else:
            for p in prange(n_workers, num_threads=threads, schedule="dynamic", chunksize=1):
                walk(rows, order, entries, size, lr, min(last, first + p * sync),
                     min(last, min(last, first + p * sync) + sync),
                     slab + p * N_SLABS * length, length, rule, steps + 2 * p, sums + p)
        if n_workers > 1:
            meet(slab, n_workers, length, first, sync, last, WEIGHT)
            if rule.kind != SGD:
                meet(slab, n_workers, length, first, sync, last, FIRST)
            if rule.kind == ADAM:
                meet(slab, n_workers, length, first, sync, last, SECOND)
        first = last
        now = seconds()
        if now - polled > POLL_S:
            polled = now
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
    """In place: the batches of one epoch on slab (n_workers, 6, length), float32 or float64.

    A worker's rows: parameters, first moment, second moment, average, two of scratch; each is k
    rows of pad coefficients (zeros behind d), k intercepts, zeros up to whole 64 bytes.
    order (entries,) int64 names groups of ``group`` rows; a batch is ``size`` entries; lr
    (n_batches,) float64. steps (n_workers, 2) int64 counts steps and averaged iterates.
    Returns (sum of the losses as seen before each step, sum of weights, 1 if a margin was not
    finite). A signal's exception leaves whole steps.
    """
    cdef fo_rows rows
    cdef Rule rule = Rule(kind, l2, l1, momentum, beta2, eps, average)
    cdef Sums sums[MAX_WORKERS]
    cdef Sums total = Sums(0, 0, 0)
    cdef int typenum = cnp.PyArray_TYPE(x)
    describe(&rows, x, y, weights, k, group, loss, targets, epsilon, intercept)
    cdef Py_ssize_t n_workers = slab.shape[0], length = slab.shape[2] if slab.ndim == 3 else 0
    cdef Py_ssize_t entries = cnp.PyArray_SIZE(order), p
    if slab.ndim != 3 or not 1 <= n_workers <= MAX_WORKERS or length < k * rows.pad + k:
        raise ValueError("slab: expected shape (n_workers, 6, length)")
    if size < 1 or sync < 1:
        raise ValueError("size, sync: expected at least 1")
    cdef void* state = data_of(slab, typenum, n_workers * N_SLABS * length, True, "slab")
    cdef int64_t* count = <int64_t*> data_of(steps, cnp.NPY_INT64, 2 * n_workers, True, "steps")
    cdef const int64_t* path = <const int64_t*> data_of(order, cnp.NPY_INT64, -1, False, "order")
    cdef const double* rate = <const double*> data_of(
        lr, cnp.NPY_DOUBLE, (entries + size - 1) // size, False, "lr")
    check_order(path, entries, (rows.n + group - 1) // group)
    for p in range(n_workers):
        sums[p] = Sums(0, 0, 0)
    with nogil:
        if typenum == cnp.NPY_FLOAT:
            epoch(&rows, path, entries, size, rate, <float*> state, length, n_workers, sync,
                  &rule, count, sums, threads)
        else:
            epoch(&rows, path, entries, size, rate, <double*> state, length, n_workers, sync,
                  &rule, count, sums, threads)
    for p in range(n_workers):
        total.loss += sums[p].loss
        total.weight += sums[p].weight
        total.bad |= sums[p].bad
    return total.loss, total.weight, total.bad


cdef void chunk(
    const fo_rows* rows, Py_ssize_t first, Py_ssize_t last, real* w, real* g, real* z,
    double* grad, Py_ssize_t length, Sums* total,
) noexcept nogil:
    """Groups first..last-1: each group's gradient in ``real``, their sum in double."""
    cdef int64_t q
    cdef Py_ssize_t j
    memset(grad, 0, length * sizeof(double))
    for q in range(first, last):
        memset(g, 0, length * sizeof(real))
        batch(rows, &q, 1, 1, w, g, z, length, total)
        for j in range(length):
            grad[j] += g[j]


cdef void chunks(
    const fo_rows* rows, Py_ssize_t n_groups, Py_ssize_t n_chunks, real* w, real* scratch,
    double* grad, Py_ssize_t length, Sums* sums, int threads,
) noexcept nogil:
    cdef Py_ssize_t c
    if threads == 1:
        for c in range(n_chunks):
            chunk(rows, n_groups * c // n_chunks, n_groups * (c + 1) // n_chunks, w,
                  scratch + 2 * c * length, scratch + (2 * c + 1) * length, grad + c * length,
                  length, sums + c)
    else:
        for c in prange(n_chunks, num_threads=threads, schedule="dynamic", chunksize=1):
            chunk(rows, n_groups * c // n_chunks, n_groups * (c + 1) // n_chunks, w,
                  scratch + 2 * c * length, scratch + (2 * c + 1) * length, grad + c * length,
                  length, sums + c)


def loss_gradient(
    cnp.ndarray grad not None, cnp.ndarray scratch not None, cnp.ndarray weight not None,
    cnp.ndarray x not None, cnp.ndarray y not None, weights, Py_ssize_t k, int loss, int targets,
    double epsilon, bint intercept, int threads,
):
    """Sum of the losses of all rows and its gradient, into grad (n_chunks, length) float64.

    The rows are cut into n_chunks = grad.shape[0] <= 64 runs whose sums stand in grad's rows on
    return, so the bits depend on n_chunks and not on the threads. weight (length,) as a row of
    sgd_epoch's slab; scratch (n_chunks, 2, length), both of x's dtype. No penalty is added.
    Returns (loss, sum of weights, 1 if a margin was not finite).
    """
    cdef fo_rows rows
    cdef Sums sums[MAX_WORKERS]
    cdef Sums total = Sums(0, 0, 0)
    cdef int typenum = cnp.PyArray_TYPE(x)
    describe(&rows, x, y, weights, k, 256, loss, targets, epsilon, intercept)
    cdef Py_ssize_t n_chunks = grad.shape[0], length = cnp.PyArray_SIZE(weight), c
    if grad.ndim != 2 or not 1 <= n_chunks <= MAX_WORKERS or length < k * rows.pad + k:
        raise ValueError("grad: expected shape (n_chunks, length) with at most 64 chunks")
    cdef double* out = <double*> data_of(grad, cnp.NPY_DOUBLE, n_chunks * length, True, "grad")
    cdef void* work = data_of(scratch, typenum, 2 * n_chunks * length, True, "scratch")
    cdef void* w = data_of(weight, typenum, length, False, "weight")
    for c in range(n_chunks):
        sums[c] = Sums(0, 0, 0)
    with nogil:
        if typenum == cnp.NPY_FLOAT:
            chunks(&rows, (rows.n + 255) // 256, n_chunks, <float*> w, <float*> work, out, length,
                   sums, threads)
        else:
            chunks(&rows, (rows.n + 255) // 256, n_chunks, <double*> w, <double*> work, out,
                   length, sums, threads)
    for c in range(n_chunks):
        total.loss += sums[c].loss
        total.weight += sums[c].weight
        total.bad |= sums[c].bad
    return total.loss, total.weight, total.bad


def shuffle(cnp.ndarray order not None, uint64_t key, uint32_t epoch_number):
    """In place: order (n,) int64 permuted by Fisher and Yates; a function of (key, epoch)."""
    cdef int64_t* a = <int64_t*> data_of(order, cnp.NPY_INT64, -1, True, "order")
    cdef Py_ssize_t n = cnp.PyArray_SIZE(order), i
    cdef u32x4 draw
    cdef uint64_t bits
    cdef int64_t kept
    cdef uint64_t j
    draw.w[0] = draw.w[1] = draw.w[2] = draw.w[3] = 0
    with nogil:
        for i in range(n - 1, 0, -1):
            if i & 1 or i == n - 1:
                draw = philox(key, <uint64_t> (i >> 1), epoch_number, 0x5348)
            bits = (<uint64_t> draw.w[2 * (i & 1)] << 32) | draw.w[2 * (i & 1) + 1]
            j = high_product(bits, <uint64_t> (i + 1))
            kept = a[i]
            a[i] = a[j]
            a[j] = kept


cdef extern from *:
    """
    static inline uint64_t fo_high_product(uint64_t a, uint64_t b) {
    #ifdef __SIZEOF_INT128__
        return (uint64_t)(((unsigned __int128)a * b) >> 64);
    #else
        uint64_t al = (uint32_t)a, ah = a >> 32, bl = (uint32_t)b, bh = b >> 32;
        uint64_t m = ah * bl + ((al * bl) >> 32), t = al * bh + (uint32_t)m;
        return ah * bh + (m >> 32) + (t >> 32);
    #endif
    }
    """
    uint64_t high_product "fo_high_product" (uint64_t, uint64_t) noexcept nogil


cdef enum:
    MAX_WORKERS = 64


cdef int describe(
    fo_rows* rows, cnp.ndarray x, cnp.ndarray y, weights, Py_ssize_t k, Py_ssize_t group,
    int loss, int targets, double epsilon, bint intercept,
) except -1:
    """Check x, y and weights and note their pointers."""
    cdef int typenum = cnp.PyArray_TYPE(x)
    if typenum != cnp.NPY_DOUBLE:
        typenum = cnp.NPY_FLOAT
    cdef Py_ssize_t lanes = 16 if typenum == cnp.NPY_FLOAT else 8
    rows.x = data_of(x, typenum, -1, False, "x")
    if x.ndim != 2 or k < 1 or group < 1 or (group > 1 and group % 8):
        raise ValueError("x, k, group: expected two dimensions, k >= 1, group 1 or 8, 16, ...")
    rows.n, rows.d, rows.k, rows.group = x.shape[0], x.shape[1], k, group
    rows.pad = (rows.d + lanes - 1) // lanes * lanes
    rows.y = data_of(y, typenum, rows.n * (k if targets == 0 and loss != 9 else 1), False, "y")
    rows.s = NULL
    if weights is not None:
        rows.s = data_of(<cnp.ndarray?> weights, typenum, rows.n, False, "weights")
    rows.loss, rows.targets, rows.epsilon, rows.intercept = loss, targets, epsilon, intercept
    return 0


cdef int check_order(const int64_t* order, Py_ssize_t entries, Py_ssize_t n_groups) except -1:
    """Every entry must name a group of rows: one pass over the order keeps reads inside x."""
    cdef Py_ssize_t i
    cdef int64_t low = 0, high = 0
    for i in range(entries):
        low = min(low, order[i])
        high = max(high, order[i])
    if low < 0 or (entries and high >= n_groups):
        raise IndexError(f"order: expected entries in 0..{n_groups - 1}, got {low}..{high}")
    return 0
