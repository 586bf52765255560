"""RMSprop, Adagrad and Adadelta. entry.pxd says what an entry has.

Sources: RMSprop, Hinton 2012; Adagrad, Duchi et al. 2011; Adadelta, Zeiler 2012; in the form and
order of torch.optim's loops.
"""

from cpython.pycapsule cimport PyCapsule_New

from fastopt._kernels.update.entry cimport *
from fastopt._kernels.update.lines cimport each


# -- RMSprop, with and without centring and momentum ----------------------------------------------

cdef inline void rmsprop_scalars(Scalars64* s, const Options* o, double t) noexcept nogil:
    s.beta2, s.take2 = o.alpha, 1.0 - o.alpha
    s.eps, s.momentum, s.step = o.eps, o.momentum, -o.lr


cdef inline void squares(real* v, real x, const scalars* s) noexcept nogil:
    """The square is taken last, as for Adam."""
    v[0] = s.beta2 * v[0] + (s.take2 * x) * x


cdef inline void rmsprop(
    real* w, real x, real* v, real* b, real* c, const scalars* s
) noexcept nogil:
    squares(v, x, s)
    w[0] = w[0] + (s.step * x) / (root(v[0]) + s.eps)


cdef inline void rmsprop_momentum(
    real* w, real x, real* v, real* buffer, real* c, const scalars* s
) noexcept nogil:
    squares(v, x, s)
    buffer[0] = s.momentum * buffer[0] + x / (root(v[0]) + s.eps)
    w[0] = w[0] + s.step * buffer[0]


cdef inline void rmsprop_centered(
    real* w, real x, real* v, real* mean, real* c, const scalars* s
) noexcept nogil:
    squares(v, x, s)
    mean[0] = mean[0] + s.take2 * (x - mean[0])
    w[0] = w[0] + (s.step * x) / (root(v[0] - mean[0] * mean[0]) + s.eps)


cdef inline void rmsprop_centered_momentum(
    real* w, real x, real* v, real* mean, real* buffer, const scalars* s
) noexcept nogil:
    squares(v, x, s)
    mean[0] = mean[0] + s.take2 * (x - mean[0])
    buffer[0] = s.momentum * buffer[0] + x / (root(v[0] - mean[0] * mean[0]) + s.eps)
    w[0] = w[0] + s.step * buffer[0]


cdef inline void rmsprop_step(real* p, const Stretch* a, const scalars* s) noexcept nogil:
    each(<void*> rmsprop[real, scalars], POSITIVE, ABSENT, ABSENT, p, a, s)


cdef inline void rmsprop_momentum_step(real* p, const Stretch* a, const scalars* s) noexcept nogil:
    each(<void*> rmsprop_momentum[real, scalars], POSITIVE, SIGNED, ABSENT, p, a, s)


cdef inline void rmsprop_centered_step(real* p, const Stretch* a, const scalars* s) noexcept nogil:
    each(<void*> rmsprop_centered[real, scalars], POSITIVE, SIGNED, ABSENT, p, a, s)


cdef inline void rmsprop_centered_momentum_step(
    real* p, const Stretch* a, const scalars* s
) noexcept nogil:
    each(<void*> rmsprop_centered_momentum[real, scalars], POSITIVE, SIGNED, SIGNED, p, a, s)


cdef inline Rule rmsprop_rule() noexcept:
    return Rule(
        b"rmsprop", b"+square_avg", b"alpha eps momentum", NO_NORMS,
        rmsprop_scalars, rmsprop_step[float, Scalars32], rmsprop_step[double, Scalars64],
    )


cdef inline Rule rmsprop_momentum_rule() noexcept:
    return Rule(
        b"rmsprop_momentum", b"+square_avg momentum_buffer", b"alpha eps momentum", NO_NORMS,
        rmsprop_scalars, rmsprop_momentum_step[float, Scalars32],
        rmsprop_momentum_step[double, Scalars64],
    )


cdef inline Rule rmsprop_centered_rule() noexcept:
    return Rule(
        b"rmsprop_centered", b"+square_avg grad_avg", b"alpha eps momentum", NO_NORMS,
        rmsprop_scalars, rmsprop_centered_step[float, Scalars32],
        rmsprop_centered_step[double, Scalars64],
    )


cdef inline Rule rmsprop_centered_momentum_rule() noexcept:
    return Rule(
        b"rmsprop_centered_momentum", b"+square_avg grad_avg momentum_buffer",
        b"alpha eps momentum", NO_NORMS,
        rmsprop_scalars, rmsprop_centered_momentum_step[float, Scalars32],
        rmsprop_centered_momentum_step[double, Scalars64],
    )


# -- Adagrad --------------------------------------------------------------------------------------

cdef inline void adagrad_scalars(Scalars64* s, const Options* o, double t) noexcept nogil:
    s.step = -(o.lr / (1.0 + (t - 1.0) * o.lr_decay))
    s.eps = o.eps


cdef inline void adagrad(
    real* w, real x, real* total, real* b, real* c, const scalars* s
) noexcept nogil:
    total[0] = total[0] + x * x
    w[0] = w[0] + (s.step * x) / (root(total[0]) + s.eps)


cdef inline void adagrad_step(real* p, const Stretch* a, const scalars* s) noexcept nogil:
    each(<void*> adagrad[real, scalars], POSITIVE, ABSENT, ABSENT, p, a, s)


cdef inline Rule adagrad_rule() noexcept:
    return Rule(
        b"adagrad", b"+sum", b"lr_decay eps", NO_NORMS,
        adagrad_scalars, adagrad_step[float, Scalars32], adagrad_step[double, Scalars64],
    )


# -- Adadelta -------------------------------------------------------------------------------------

cdef inline void adadelta_scalars(Scalars64* s, const Options* o, double t) noexcept nogil:
    s.beta2, s.take2 = o.rho, 1.0 - o.rho
    s.eps, s.step = o.eps, -o.lr


cdef inline void adadelta(
    real* w, real x, real* v, real* moved, real* c, const scalars* s
) noexcept nogil:
    cdef real move
    squares(v, x, s)
    move = root(moved[0] + s.eps) / root(v[0] + s.eps) * x
    moved[0] = s.beta2 * moved[0] + s.take2 * (move * move)
    w[0] = w[0] + s.step * move


cdef inline void adadelta_step(real* p, const Stretch* a, const scalars* s) noexcept nogil:
    each(<void*> adadelta[real, scalars], POSITIVE, POSITIVE, ABSENT, p, a, s)


cdef inline Rule adadelta_rule() noexcept:
    return Rule(
        b"adadelta", b"+square_avg +acc_delta", b"rho eps", NO_NORMS,
        adadelta_scalars, adadelta_step[float, Scalars32], adadelta_step[double, Scalars64],
    )


cdef Rule[7] ENTRIES  # the last one is empty
ENTRIES[0] = rmsprop_rule()
ENTRIES[1] = rmsprop_momentum_rule()
ENTRIES[2] = rmsprop_centered_rule()
ENTRIES[3] = rmsprop_centered_momentum_rule()
ENTRIES[4] = adagrad_rule()
ENTRIES[5] = adadelta_rule()
RULES = PyCapsule_New(ENTRIES, RULES_OF_A_MODULE, NULL)
