"""SGD, SGD with momentum and Lion. entry.pxd says what an entry has.

Sources: Polyak 1964, Sutskever et al. 2013; Lion, Chen et al. 2023; in the form and order of
torch.optim's loops where it has them.
"""

from cpython.pycapsule cimport PyCapsule_New

from fastopt._kernels.update.entry cimport *
from fastopt._kernels.update.lines cimport each


# -- SGD ------------------------------------------------------------------------------------------

cdef inline void sgd_scalars(Scalars64* s, const Options* o, double t) noexcept nogil:
    s.lr = o.lr


cdef inline void sgd(real* w, real x, real* a, real* b, real* c, const scalars* s) noexcept nogil:
    w[0] = w[0] - s.lr * x


cdef inline void sgd_step(real* p, const Stretch* a, const scalars* s) noexcept nogil:
    each(<void*> sgd[real, scalars], ABSENT, ABSENT, ABSENT, p, a, s)


cdef inline Rule sgd_rule() noexcept:
    return Rule(
        b"sgd", b"", b"momentum dampening nesterov", NO_NORMS,
        sgd_scalars, sgd_step[float, Scalars32], sgd_step[double, Scalars64],
    )


# -- SGD with momentum ----------------------------------------------------------------------------

cdef inline void momentum_scalars(Scalars64* s, const Options* o, double t) noexcept nogil:
    s.lr = o.lr
    s.momentum = 0.0 if t == 1 else o.momentum  # the first step takes the whole gradient
    s.take = 1.0 if t == 1 else 1.0 - o.dampening
    s.ahead = o.momentum
    s.nesterov = o.nesterov != 0


cdef inline void momentum(
    real* w, real x, real* buffer, real* b, real* c, const scalars* s
) noexcept nogil:
    cdef real move
    buffer[0] = s.momentum * buffer[0] + s.take * x
    move = x + s.ahead * buffer[0] if s.nesterov else buffer[0]
    w[0] = w[0] - s.lr * move


cdef inline void momentum_step(real* p, const Stretch* a, const scalars* s) noexcept nogil:
    each(<void*> momentum[real, scalars], SIGNED, ABSENT, ABSENT, p, a, s)


cdef inline Rule momentum_rule() noexcept:
    return Rule(
        b"sgd_momentum", b"momentum_buffer", b"momentum dampening nesterov", NO_NORMS,
        momentum_scalars, momentum_step[float, Scalars32], momentum_step[double, Scalars64],
    )


# -- Lion; its decay is never coupled -------------------------------------------------------------

cdef inline void lion_scalars(Scalars64* s, const Options* o, double t) noexcept nogil:
    s.lr = o.lr
    s.beta1, s.take1 = o.beta1, 1.0 - o.beta1
    s.beta2, s.take2 = o.beta2, 1.0 - o.beta2


cdef inline void lion(
    real* w, real x, real* m, real* b, real* c, const scalars* s
) noexcept nogil:
    cdef real u = s.beta1 * m[0] + s.take1 * x
    cdef real move = s.lr if u > 0 else u  # zeros and NaN stay
    move = -s.lr if u < 0 else move
    m[0] = s.beta2 * m[0] + s.take2 * x
    w[0] = s.left * w[0] - move


cdef inline void lion_step(real* p, const Stretch* a, const scalars* s) noexcept nogil:
    each(<void*> lion[real, scalars], SIGNED, ABSENT, ABSENT, p, a, s)


cdef inline Rule lion_rule() noexcept:
    return Rule(
        b"lion", b"exp_avg", b"beta1 beta2", NO_NORMS,
        lion_scalars, lion_step[float, Scalars32], lion_step[double, Scalars64],
    )


cdef Rule[4] ENTRIES  # the last one is empty
ENTRIES[0] = sgd_rule()
ENTRIES[1] = momentum_rule()
ENTRIES[2] = lion_rule()
RULES = PyCapsule_New(ENTRIES, RULES_OF_A_MODULE, NULL)
