"""One step of mini-batch descent on a parameter vector: the rules, inlined where they are needed."""

from libc.math cimport pow, sqrt
from libc.stdint cimport int64_t

cdef extern from "<math.h>" nogil:
    float sqrtf(float) noexcept

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


cdef inline void meet(
    real* slab, Py_ssize_t n_workers, Py_ssize_t n_slabs, Py_ssize_t length,
    Py_ssize_t first, Py_ssize_t sync, Py_ssize_t last, int which,
) noexcept nogil:
    """Average row ``which`` of the slab (n_workers, n_slabs, length) over the workers, each by the
    batches of first..last that it just did."""
    cdef Py_ssize_t p, j, done
    cdef double total = last - first
    cdef real* mean = slab + which * length
    cdef real* other
    cdef real share
    for p in range(n_workers):
        done = min(sync, max(0, last - first - p * sync))
        share = <real> (done / total)
        other = slab + (p * n_slabs + which) * length
        if p == 0:
            for j in range(length):
                mean[j] *= share
        else:
            for j in range(length):
                mean[j] += other[j] * share
    for p in range(1, n_workers):
        other = slab + (p * n_slabs + which) * length
        for j in range(length):
            other[j] = mean[j]
