"""Mini-batch descent as linear.pyx and linear_sparse.pyx do it: a worker's slab, the rules of a
step, the workers' meeting; inlined where they are needed."""

from libc.math cimport pow, sqrt
from libc.stdint cimport int64_t

cdef extern from "<math.h>" nogil:
    float sqrtf(float) noexcept

cdef extern from "<time.h>" nogil:
    enum:
        CLOCK_MONOTONIC
    cdef struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec* now) noexcept

cdef enum:  # rows of a worker's slab
    WEIGHT
    FIRST
    SECOND
    AVERAGE
    N_SLABS

cdef enum:
    MAX_WORKERS = 64

cdef enum:
    SGD
    MOMENTUM
    NESTEROV
    ADAM

ctypedef fused real:
    float
    double

cdef struct Rule:
    int kind
    double l2
    double l1
    double momentum  # Adam's beta1 as well
    double beta2
    double eps
    int average


cdef inline double seconds() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <double> now.tv_sec + 1e-9 * <double> now.tv_nsec


cdef inline bint due(double* last) noexcept nogil:
    """Whether it is time to look at the signals: 50 ms since ``last``, which then is now."""
    cdef double now = seconds()
    if now - last[0] <= 0.05:
        return False
    last[0] = now
    return True


cdef inline real root_of(real x) noexcept nogil:
    return sqrtf(x) if real is float else sqrt(x)


cdef inline real soft(real v, real threshold) noexcept nogil:
    return v - threshold if v > threshold else v + threshold if v < -threshold else <real> 0


cdef inline void update(
    real* w, real* m, real* v, const real* g, Py_ssize_t n, double lr, double scale, double l2,
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
            w[j] -= rate * m[j] / (root * root_of(v[j]) + eps)
    if l1 > 0:
        for j in range(n):
            w[j] = soft(w[j], threshold)


cdef inline void step(
    real* slab, Py_ssize_t length, const real* g, Py_ssize_t coef, Py_ssize_t k, double lr,
    double intercept_lr, Py_ssize_t n, const Rule* rule, int64_t* steps,
) noexcept nogil:
    """One step of a worker by g, the sum of n rows' gradients; no penalty on the k intercepts."""
    cdef real *w = slab
    cdef real *m = slab + FIRST * length
    cdef real *v = slab + SECOND * length
    cdef real *mean = slab + AVERAGE * length
    cdef double share = 1.0 / n
    cdef real part
    cdef Py_ssize_t j
    steps[0] += 1
    update(w, m, v, g, coef, lr, share, rule.l2, rule.l1, rule, steps[0])
    update(w + coef, m + coef, v + coef, g + coef, k, intercept_lr, share, 0, 0, rule, steps[0])
    if rule.average:
        steps[1] += 1
        part = <real> (1.0 / steps[1])
        for j in range(length):
            mean[j] += (w[j] - mean[j]) * part


cdef inline void meet(
    real* slab, Py_ssize_t n_workers, Py_ssize_t length, Py_ssize_t first, Py_ssize_t sync,
    Py_ssize_t last, const Rule* rule,
) noexcept nogil:
    """Average the weights and the rule's moments over the workers, each by the batches of
    first..last that it just did."""
    cdef Py_ssize_t which, p, j, done
    cdef double total = last - first
    cdef real *mean
    cdef real *other
    cdef real share
    for which in range(1 + (rule.kind != SGD) + (rule.kind == ADAM)):
        mean = slab + which * length
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


cdef inline int check_order(
    const int64_t* order, Py_ssize_t entries, Py_ssize_t n_groups
) except -1:
    """Every entry must name a group of rows: one pass over the order keeps reads inside x."""
    cdef Py_ssize_t i
    cdef int64_t low = 0, high = 0
    for i in range(entries):
        low = min(low, order[i])
        high = max(high, order[i])
    if low < 0 or (entries and high >= n_groups):
        raise IndexError(f"order: expected entries in 0..{n_groups - 1}, got {low}..{high}")
    return 0
