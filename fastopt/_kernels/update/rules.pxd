"""The update rules for float and double: the element-wise ones (rules.h) by ``apply``, and
what the rules that go by norms do besides.

``p`` parameter, ``g`` gradient, the rest state; ``h`` the step's scalars (scalars.pxd):
h[0] multiplies every gradient (sign, loss scale, clip), h[1] is the coupled decay, h[2] what the
decoupled decay leaves of p.
"""

from libc.math cimport sqrt, sqrtf

from fastopt._kernels.update.types cimport *

cdef extern from "update/sums.h" nogil:
    double float_total "fo_floats_short" (const float* x, Py_ssize_t n)
    double double_total "fo_wides_total" (const double* x, Py_ssize_t n)

cdef extern from "update/loops.h" nogil:
    void float_apply "fo_single_apply" (
        int rule, float* p, const float* g, float* a, float* b, float* c, Py_ssize_t n,
        const double* h,
    )
    void double_apply "fo_double_apply" (
        int rule, double* p, const double* g, double* a, double* b, double* c, Py_ssize_t n,
        const double* h,
    )

ctypedef fused real:
    float
    double


cdef inline real root(real x) noexcept nogil:
    if real is float:
        return sqrtf(x)
    else:
        return sqrt(x)


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
    if real is float:
        float_apply(rule, p, g, a, b, c, n, h)
    else:
        double_apply(rule, p, g, a, b, c, n, h)
