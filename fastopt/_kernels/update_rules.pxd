"""The element-wise update rules: one inner loop each, over raw pointers, for float and double.

``p`` parameter, ``g`` gradient, the rest state; ``h`` the step's scalars in the order that
``prepare`` in update.pyx writes them. ``h[0]`` multiplies every gradient (sign, loss scale, clip).
"""

from libc.math cimport sqrt, sqrtf

ctypedef fused real:
    float
    double


cdef inline real root(real x) noexcept nogil:
    if real is float:
        return sqrtf(x)
    else:
        return sqrt(x)


# h: scale, lr, weight_decay, keep (momentum; 0 on the first step), take (1 - dampening; 1 on the
# first step), momentum, nesterov
cdef inline void sgd_plain(real* p, const real* g, Py_ssize_t n, const double* h) noexcept nogil:
    cdef real scale = <real> h[0], lr = <real> h[1], wd = <real> h[2]
    cdef bint decays = h[2] != 0
    cdef real gi
    cdef Py_ssize_t i
    for i in range(n):
        gi = scale * g[i]
        if decays:
            gi = gi + wd * p[i]
        p[i] = p[i] - lr * gi


cdef inline void sgd_momentum(
    real* p, const real* g, real* buf, Py_ssize_t n, const double* h
) noexcept nogil:
    cdef real scale = <real> h[0], lr = <real> h[1], wd = <real> h[2]
    cdef real keep = <real> h[3], take = <real> h[4], ahead = <real> h[5]
    cdef bint decays = h[2] != 0, nesterov = h[6] != 0
    cdef real gi, b
    cdef Py_ssize_t i
    for i in range(n):
        gi = scale * g[i]
        if decays:
            gi = gi + wd * p[i]
        b = keep * buf[i] + take * gi
        buf[i] = b
        if nesterov:
            b = gi + ahead * b
        p[i] = p[i] - lr * b


# h: scale, 1 - beta1, beta2, 1 - beta2, 1 / sqrt(bias_correction2), eps, -lr / bias_correction1,
# 1 - lr * decoupled decay, coupled decay
cdef inline void adam(
    real* p, const real* g, real* m, real* v, Py_ssize_t n, const double* h
) noexcept nogil:
    cdef real scale = <real> h[0], w1 = <real> h[1], b2 = <real> h[2], w2 = <real> h[3]
    cdef real rc2 = <real> h[4], eps = <real> h[5], step = <real> h[6], keep = <real> h[7]
    cdef real wd = <real> h[8]
    cdef bint decays = h[8] != 0
    cdef real gi, mi, vi
    cdef Py_ssize_t i
    for i in range(n):
        gi = scale * g[i]
        if decays:
            gi = gi + wd * p[i]
        mi = m[i] + w1 * (gi - m[i])
        vi = b2 * v[i] + w2 * (gi * gi)
        m[i] = mi
        v[i] = vi
        p[i] = keep * p[i] + (step * mi) / (root(vi) * rc2 + eps)


cdef inline void adam_amsgrad(
    real* p, const real* g, real* m, real* v, real* top, Py_ssize_t n, const double* h
) noexcept nogil:
    cdef real scale = <real> h[0], w1 = <real> h[1], b2 = <real> h[2], w2 = <real> h[3]
    cdef real rc2 = <real> h[4], eps = <real> h[5], step = <real> h[6], keep = <real> h[7]
    cdef real wd = <real> h[8]
    cdef bint decays = h[8] != 0
    cdef real gi, mi, vi, ti
    cdef Py_ssize_t i
    for i in range(n):
        gi = scale * g[i]
        if decays:
            gi = gi + wd * p[i]
        mi = m[i] + w1 * (gi - m[i])
        vi = b2 * v[i] + w2 * (gi * gi)
        m[i] = mi
        v[i] = vi
        ti = top[i]
        ti = vi if vi > ti or vi != vi else ti  # NaN stays NaN, as in torch.maximum
        top[i] = ti
        p[i] = keep * p[i] + (step * mi) / (root(ti) * rc2 + eps)
