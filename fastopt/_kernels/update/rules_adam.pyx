"""Adam and its kin: AMSGrad, NAdam, RAdam, Adamax, LAMB. entry.pxd says what an entry has.

Sources: Adam, Kingma and Ba 2015; AdamW, Loshchilov and Hutter 2019; AMSGrad, Reddi et al. 2018;
NAdam, Dozat 2016; RAdam, Liu et al. 2020; LAMB, You et al. 2020; in the form and order of
torch.optim's loops where it has them.
"""

from cpython.pycapsule cimport PyCapsule_New
from libc.math cimport fabs, pow, sqrt

from fastopt._kernels.update.entry cimport *
from fastopt._kernels.update.lines cimport each
from fastopt._kernels.update.moments cimport lamb_direction, moments


# -- Adam and, with decoupled decay, AdamW --------------------------------------------------------

cdef inline void adam_scalars(Scalars64* s, const Options* o, double t) noexcept nogil:
    s.take1 = 1.0 - o.beta1
    s.beta2, s.take2 = o.beta2, 1.0 - o.beta2
    s.correction = 1.0 - pow(o.beta1, t)
    s.root_scale = 1.0 / sqrt(1.0 - pow(o.beta2, t))
    s.eps = o.eps
    s.step = -(o.lr / s.correction)


cdef inline void adam(
    real* w, real x, real* m, real* v, real* c, const scalars* s
) noexcept nogil:
    moments(m, v, x, s)
    w[0] = s.left * w[0] + (s.step * m[0]) / (root(v[0]) * s.root_scale + s.eps)


cdef inline void adam_step(real* p, const Stretch* a, const scalars* s) noexcept nogil:
    each(<void*> adam[real, scalars], SIGNED, POSITIVE, ABSENT, p, a, s)


cdef inline Rule adam_rule() noexcept:
    return Rule(
        b"adam", b"exp_avg +exp_avg_sq", b"beta1 beta2 eps", NO_NORMS,
        adam_scalars, adam_step[float, Scalars32], adam_step[double, Scalars64],
    )


# -- AMSGrad --------------------------------------------------------------------------------------

cdef inline void amsgrad(
    real* w, real x, real* m, real* v, real* top, const scalars* s
) noexcept nogil:
    moments(m, v, x, s)
    top[0] = larger(v[0], top[0])
    w[0] = s.left * w[0] + (s.step * m[0]) / (root(top[0]) * s.root_scale + s.eps)


cdef inline void amsgrad_step(real* p, const Stretch* a, const scalars* s) noexcept nogil:
    each(<void*> amsgrad[real, scalars], SIGNED, POSITIVE, POSITIVE, p, a, s)


cdef inline Rule amsgrad_rule() noexcept:
    return Rule(
        b"adam_amsgrad", b"exp_avg +exp_avg_sq +max_exp_avg_sq", b"beta1 beta2 eps", NO_NORMS,
        adam_scalars, amsgrad_step[float, Scalars32], amsgrad_step[double, Scalars64],
    )


# -- NAdam ----------------------------------------------------------------------------------------

cdef inline void nadam_scalars(Scalars64* s, const Options* o, double t) noexcept nogil:
    """Dozat 2016, with the schedule of mu as in torch; ``product`` is that of the mu so far."""
    cdef double mu = o.beta1 * (1.0 - 0.5 * pow(0.96, t * o.momentum_decay))
    cdef double ahead = o.beta1 * (1.0 - 0.5 * pow(0.96, (t + 1.0) * o.momentum_decay))
    adam_scalars(s, o, t)
    s.product = s.product * mu
    s.step = -o.lr * ahead / (1.0 - s.product * ahead)
    s.grad_step = -o.lr * (1.0 - mu) / (1.0 - s.product)


cdef inline void nadam(
    real* w, real x, real* m, real* v, real* c, const scalars* s
) noexcept nogil:
    moments(m, v, x, s)
    w[0] = s.left * w[0] + (s.grad_step * x + s.step * m[0]) / (root(v[0]) * s.root_scale + s.eps)


cdef inline void nadam_step(real* p, const Stretch* a, const scalars* s) noexcept nogil:
    each(<void*> nadam[real, scalars], SIGNED, POSITIVE, ABSENT, p, a, s)


cdef inline Rule nadam_rule() noexcept:
    return Rule(
        b"nadam", b"exp_avg +exp_avg_sq", b"beta1 beta2 eps momentum_decay", NO_NORMS,
        nadam_scalars, nadam_step[float, Scalars32], nadam_step[double, Scalars64],
    )


# -- RAdam; its first steps gather the second moment but do not use it ----------------------------

cdef inline void radam_scalars(Scalars64* s, const Options* o, double t) noexcept nogil:
    """Liu et al. 2020, algorithm 2."""
    cdef double correction2 = 1.0 - pow(o.beta2, t)
    cdef double rho_inf = 2.0 / (1.0 - o.beta2) - 1.0
    cdef double rho = rho_inf - 2.0 * t * pow(o.beta2, t) / correction2
    adam_scalars(s, o, t)
    s.root_scale = 1.0
    s.rectified = rho > 5.0
    if s.rectified:
        s.step *= sqrt(correction2) * sqrt(
            (rho - 4.0) * (rho - 2.0) * rho_inf / ((rho_inf - 4.0) * (rho_inf - 2.0) * rho)
        )


cdef inline void radam(
    real* w, real x, real* m, real* v, real* c, const scalars* s
) noexcept nogil:
    cdef real size
    moments(m, v, x, s)
    size = root(v[0]) + s.eps
    w[0] = s.left * w[0] + (s.step * m[0]) / (size if s.rectified else 1)


cdef inline void radam_step(real* p, const Stretch* a, const scalars* s) noexcept nogil:
    each(<void*> radam[real, scalars], SIGNED, POSITIVE, ABSENT, p, a, s)


cdef inline Rule radam_rule() noexcept:
    return Rule(
        b"radam", b"exp_avg +exp_avg_sq", b"beta1 beta2 eps", NO_NORMS,
        radam_scalars, radam_step[float, Scalars32], radam_step[double, Scalars64],
    )


# -- Adamax ---------------------------------------------------------------------------------------

cdef inline void adamax(
    real* w, real x, real* m, real* u, real* c, const scalars* s
) noexcept nogil:
    cdef real size = <real> fabs(x)
    m[0] = m[0] + s.take1 * (x - m[0])
    u[0] = larger(size + s.eps, s.beta2 * u[0])
    w[0] = w[0] + (s.step * m[0]) / u[0]


cdef inline void adamax_step(real* p, const Stretch* a, const scalars* s) noexcept nogil:
    each(<void*> adamax[real, scalars], SIGNED, POSITIVE, ABSENT, p, a, s)


cdef inline Rule adamax_rule() noexcept:
    return Rule(
        b"adamax", b"exp_avg +exp_inf", b"beta1 beta2 eps", NO_NORMS,
        adam_scalars, adamax_step[float, Scalars32], adamax_step[double, Scalars64],
    )


# -- LAMB: Adam's direction with decay, scaled by the norms of weights and direction --------------

cdef inline void lamb_scalars(Scalars64* s, const Options* o, double t) noexcept nogil:
    adam_scalars(s, o, t)
    s.correction = 1.0 / s.correction
    s.lr, s.decay = o.lr, o.decoupled


cdef inline void lamb(
    real* w, real x, real* m, real* v, real* c, const scalars* s
) noexcept nogil:
    moments(m, v, x, s)
    w[0] = w[0] - s.trust * lamb_direction(w[0], m[0], v[0], s)


cdef inline void lamb_step(real* p, const Stretch* a, const scalars* s) noexcept nogil:
    each(<void*> lamb[real, scalars], SIGNED, POSITIVE, ABSENT, p, a, s)


cdef inline Rule lamb_rule() noexcept:
    return Rule(
        b"lamb", b"exp_avg +exp_avg_sq", b"beta1 beta2 eps", LAMB_NORMS,
        lamb_scalars, lamb_step[float, Scalars32], lamb_step[double, Scalars64],
    )


cdef Rule[7] ENTRIES  # the last one is empty
ENTRIES[0] = adam_rule()
ENTRIES[1] = amsgrad_rule()
ENTRIES[2] = nadam_rule()
ENTRIES[3] = radam_rule()
ENTRIES[4] = adamax_rule()
ENTRIES[5] = lamb_rule()
RULES = PyCapsule_New(ENTRIES, RULES_OF_A_MODULE, NULL)
