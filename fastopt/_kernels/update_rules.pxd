"""The element-wise update rules: one inner loop each, over raw pointers, for float and double.

``p`` parameter, ``g`` gradient, the rest state; ``h`` the step's scalars (update_scalars.pxd):
h[0] multiplies every gradient (sign, loss scale, clip), h[1] is the coupled decay, h[2] what the
decoupled decay leaves of p. Branches on scalars are hoisted out of the loops by the compiler.
"""

from libc.math cimport fabs, fabsf, sqrt, sqrtf

from fastopt._kernels.update_types cimport *

cdef extern from "update_sums.h" nogil:
    double float_total "fo_floats_short" (const float* x, Py_ssize_t n)
    double double_total "fo_wides_total" (const double* x, Py_ssize_t n)

ctypedef fused real:
    float
    double


cdef inline real root(real x) noexcept nogil:
    if real is float:
        return sqrtf(x)
    else:
        return sqrt(x)


cdef inline real size(real x) noexcept nogil:
    if real is float:
        return fabsf(x)
    else:
        return fabs(x)


cdef inline real larger(real x, real top) noexcept nogil:
    """max(x, top); NaN where either is, as torch.maximum."""
    cdef real most = x if x > top else top
    return most if x == x else x


cdef inline void sgd_plain(real* p, const real* g, Py_ssize_t n, const double* h) noexcept nogil:
    cdef real scale = <real> h[0], wd = <real> h[1], lr = <real> h[3]
    cdef bint decays = h[1] != 0
    cdef real gi
    cdef Py_ssize_t i
    for i in range(n):
        gi = scale * g[i]
        if decays:
            gi = gi + wd * p[i]
        p[i] = p[i] - lr * gi


cdef inline void sgd_momentum(
    real* p, const real* g, real* buf, Py_ssize_t n, const double* h, bint plain
) noexcept nogil:
    cdef real scale = <real> h[0], wd = <real> h[1], lr = <real> h[3]
    cdef real keep = <real> h[4], take = <real> h[5], ahead = <real> h[6]
    cdef bint decays = not plain and h[1] != 0, nesterov = not plain and h[7] != 0
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


cdef inline void lion(
    real* p, const real* g, real* m, Py_ssize_t n, const double* h
) noexcept nogil:
    cdef real scale = <real> h[0], left = <real> h[2], lr = <real> h[3]
    cdef real b1 = <real> h[4], w1 = <real> h[5], b2 = <real> h[6], w2 = <real> h[7]
    cdef real gi, u
    cdef Py_ssize_t i
    for i in range(n):
        gi = scale * g[i]
        u = b1 * m[i] + w1 * gi
        m[i] = b2 * m[i] + w2 * gi
        u = 1 if u > 0 else (-1 if u < 0 else u)  # zeros and NaN stay
        p[i] = left * p[i] - lr * u


cdef inline void adam(
    real* p, const real* g, real* m, real* v, Py_ssize_t n, const double* h,
    bint decays
) noexcept nogil:
    cdef real scale = <real> h[0], wd = <real> h[1], left = <real> h[2], w1 = <real> h[3]
    cdef real b2 = <real> h[4], w2 = <real> h[5], rc2 = <real> h[6], eps = <real> h[7]
    cdef real step = <real> h[8]
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
        p[i] = left * p[i] + (step * mi) / (root(vi) * rc2 + eps)


cdef inline void adam_amsgrad(
    real* p, const real* g, real* m, real* v, real* top, Py_ssize_t n, const double* h
) noexcept nogil:
    cdef real scale = <real> h[0], wd = <real> h[1], left = <real> h[2], w1 = <real> h[3]
    cdef real b2 = <real> h[4], w2 = <real> h[5], rc2 = <real> h[6], eps = <real> h[7]
    cdef real step = <real> h[8]
    cdef bint decays = h[1] != 0
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
        ti = larger(vi, top[i])
        top[i] = ti
        p[i] = left * p[i] + (step * mi) / (root(ti) * rc2 + eps)


cdef inline void nadam(
    real* p, const real* g, real* m, real* v, Py_ssize_t n, const double* h
) noexcept nogil:
    cdef real scale = <real> h[0], wd = <real> h[1], left = <real> h[2], w1 = <real> h[3]
    cdef real b2 = <real> h[4], w2 = <real> h[5], rc2 = <real> h[6], eps = <real> h[7]
    cdef real of_m = <real> h[8], of_g = <real> h[9]
    cdef bint decays = h[1] != 0
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
        p[i] = left * p[i] + (of_g * gi + of_m * mi) / (root(vi) * rc2 + eps)


cdef inline void radam_unrectified(
    real* p, const real* g, real* m, real* v, Py_ssize_t n, const double* h
) noexcept nogil:
    """RAdam's first steps: the second moment is gathered but not yet used."""
    cdef real scale = <real> h[0], wd = <real> h[1], left = <real> h[2], w1 = <real> h[3]
    cdef real b2 = <real> h[4], w2 = <real> h[5], step = <real> h[8]
    cdef bint decays = h[1] != 0
    cdef real gi, mi
    cdef Py_ssize_t i
    for i in range(n):
        gi = scale * g[i]
        if decays:
            gi = gi + wd * p[i]
        mi = m[i] + w1 * (gi - m[i])
        m[i] = mi
        v[i] = b2 * v[i] + w2 * (gi * gi)
        p[i] = left * p[i] + step * mi


cdef inline void adamax(
    real* p, const real* g, real* m, real* u, Py_ssize_t n, const double* h
) noexcept nogil:
    cdef real scale = <real> h[0], wd = <real> h[1], w1 = <real> h[3], b2 = <real> h[4]
    cdef real eps = <real> h[5], step = <real> h[6]
    cdef bint decays = h[1] != 0
    cdef real gi, mi, ui
    cdef Py_ssize_t i
    for i in range(n):
        gi = scale * g[i]
        if decays:
            gi = gi + wd * p[i]
        mi = m[i] + w1 * (gi - m[i])
        ui = larger(size(gi) + eps, b2 * u[i])
        m[i] = mi
        u[i] = ui
        p[i] = p[i] + (step * mi) / ui


cdef inline void rmsprop(
    real* p, const real* g, real* v, real* mean, real* buf, Py_ssize_t n, const double* h,
    bint centered, bint momentum
) noexcept nogil:
    cdef real scale = <real> h[0], wd = <real> h[1], alpha = <real> h[3], w = <real> h[4]
    cdef real eps = <real> h[5], mu = <real> h[6], step = <real> h[7]
    cdef bint decays = h[1] != 0
    cdef real gi, vi, ci, d
    cdef Py_ssize_t i
    for i in range(n):
        gi = scale * g[i]
        if decays:
            gi = gi + wd * p[i]
        vi = alpha * v[i] + w * (gi * gi)
        v[i] = vi
        if centered:
            ci = mean[i] + w * (gi - mean[i])
            mean[i] = ci
            vi = vi - ci * ci
        d = root(vi) + eps
        if momentum:
            ci = mu * buf[i] + gi / d
            buf[i] = ci
            p[i] = p[i] + step * ci
        else:
            p[i] = p[i] + (step * gi) / d


cdef inline void adagrad(
    real* p, const real* g, real* total, Py_ssize_t n, const double* h
) noexcept nogil:
    cdef real scale = <real> h[0], wd = <real> h[1], step = <real> h[3], eps = <real> h[4]
    cdef bint decays = h[1] != 0
    cdef real gi, ti
    cdef Py_ssize_t i
    for i in range(n):
        gi = scale * g[i]
        if decays:
            gi = gi + wd * p[i]
        ti = total[i] + gi * gi
        total[i] = ti
        p[i] = p[i] + (step * gi) / (root(ti) + eps)


cdef inline void adadelta(
    real* p, const real* g, real* v, real* d, Py_ssize_t n, const double* h
) noexcept nogil:
    cdef real scale = <real> h[0], wd = <real> h[1], rho = <real> h[3], w = <real> h[4]
    cdef real eps = <real> h[5], step = <real> h[6]
    cdef bint decays = h[1] != 0
    cdef real gi, vi, di
    cdef Py_ssize_t i
    for i in range(n):
        gi = scale * g[i]
        if decays:
            gi = gi + wd * p[i]
        vi = rho * v[i] + w * (gi * gi)
        v[i] = vi
        di = root(d[i] + eps) / root(vi + eps) * gi
        d[i] = rho * d[i] + w * (di * di)
        p[i] = p[i] + step * di


cdef inline void lamb_norms(
    const real* p, const real* g, const real* m, const real* v, Py_ssize_t n, const double* h,
    double* sums,
) noexcept nogil:
    """Of at most UNIT elements: sum p^2 and sum u^2 of the raw update u; nothing is written."""
    cdef real scale = <real> h[0], w1 = <real> h[3], b2 = <real> h[4], w2 = <real> h[5]
    cdef real rc2 = <real> h[6], eps = <real> h[7], rc1 = <real> h[8], wd = <real> h[10]
    cdef real gi, mi, vi
    cdef real u[UNIT]
    cdef Py_ssize_t i
    for i in range(n):
        gi = scale * g[i]
        mi = m[i] + w1 * (gi - m[i])
        vi = b2 * v[i] + w2 * (gi * gi)
        u[i] = (mi * rc1) / (root(vi) * rc2 + eps) + wd * p[i]
    sums[0] = sum_of_squares(p, n)
    sums[1] = sum_of_squares(<const real*> u, n)


cdef inline void lamb(
    real* p, const real* g, real* m, real* v, Py_ssize_t n, const double* h
) noexcept nogil:
    cdef real scale = <real> h[0], w1 = <real> h[3], b2 = <real> h[4], w2 = <real> h[5]
    cdef real rc2 = <real> h[6], eps = <real> h[7], rc1 = <real> h[8], wd = <real> h[10]
    cdef real step = <real> (h[9] * h[TRUST]), gi, mi, vi
    cdef Py_ssize_t i
    for i in range(n):
        gi = scale * g[i]
        mi = m[i] + w1 * (gi - m[i])
        vi = b2 * v[i] + w2 * (gi * gi)
        m[i] = mi
        v[i] = vi
        p[i] = p[i] - step * ((mi * rc1) / (root(vi) * rc2 + eps) + wd * p[i])


cdef inline double eps1_of(const Row* r, const double* h) noexcept nogil:
    """Adafactor's eps1, by default the machine epsilon of the parameter."""
    return h[4] if h[4] >= 0 else (2.0**-52 if r.wide == 8 else 2.0**-23)


cdef inline void adafactor_norms(
    const real* p, const real* g, const real* v, const real* inverse, Py_ssize_t n,
    const double* h, double least, double* sums,
) noexcept nogil:
    """Of at most UNIT elements: sum p^2 and sum u^2 of u = g / sqrt(v); a vector's v moves first
    (in registers), a matrix has ``inverse`` = 1 / sqrt(v)."""
    cdef real scale = <real> h[0], w = <real> h[3], low = <real> (least * least)
    cdef real gi, vi
    cdef real u[UNIT]
    cdef Py_ssize_t i
    for i in range(n):
        gi = scale * g[i]
        if inverse != NULL:
            u[i] = inverse[i] * gi
        else:
            vi = v[i] + w * (gi * gi - v[i])
            u[i] = gi / root(low if vi < low else vi)
    sums[0] = sum_of_squares(p, n)
    sums[1] = sum_of_squares(<const real*> u, n)


cdef inline void adafactor(
    real* p, const real* g, real* v, const real* inverse, Py_ssize_t n, const double* h,
    double least,
) noexcept nogil:
    cdef real scale = <real> h[0], w = <real> h[3], low = <real> (least * least)
    cdef real left = <real> h[2], step = <real> h[TRUST], gi, vi
    cdef Py_ssize_t i
    for i in range(n):
        gi = scale * g[i]
        if inverse != NULL:
            gi = inverse[i] * gi
        else:
            vi = v[i] + w * (gi * gi - v[i])
            v[i] = vi
            gi = gi / root(low if vi < low else vi)
        p[i] = left * p[i] - step * gi


cdef inline double sum_of_squares(const real* x, Py_ssize_t n) noexcept nogil:
    if real is float:
        return float_total(x, n)
    else:
        return double_total(x, n)


cdef inline void apply(
    int rule, real* p, const real* g, real* a, real* b, real* c, Py_ssize_t n, const double* h
) noexcept nogil:
    if rule == SGD_PLAIN:
        sgd_plain(p, g, n, h)
    elif rule == SGD_MOMENTUM:
        if h[1] == 0 and h[7] == 0:
            sgd_momentum(p, g, a, n, h, True)
        else:
            sgd_momentum(p, g, a, n, h, False)
    elif rule == LION:
        lion(p, g, a, n, h)
    elif rule == ADAM or (rule == RADAM and h[9] != 0):
        if h[1] == 0:
            adam(p, g, a, b, n, h, False)
        else:
            adam(p, g, a, b, n, h, True)
    elif rule == RADAM:
        radam_unrectified(p, g, a, b, n, h)
    elif rule == ADAM_AMSGRAD:
        adam_amsgrad(p, g, a, b, c, n, h)
    elif rule == NADAM:
        nadam(p, g, a, b, n, h)
    elif rule == ADAMAX:
        adamax(p, g, a, b, n, h)
    elif rule == RMSPROP:
        rmsprop(p, g, a, a, a, n, h, False, False)
    elif rule == RMSPROP_MOMENTUM:
        rmsprop(p, g, a, a, b, n, h, False, True)
    elif rule == RMSPROP_CENTERED:
        rmsprop(p, g, a, b, a, n, h, True, False)
    elif rule == RMSPROP_CENTERED_MOMENTUM:
        rmsprop(p, g, a, b, c, n, h, True, True)
    elif rule == ADAGRAD:
        adagrad(p, g, a, n, h)
    elif rule == ADADELTA:
        adadelta(p, g, a, b, n, h)
    elif rule == LAMB:
        lamb(p, g, a, b, n, h)
