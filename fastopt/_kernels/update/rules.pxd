"""The optimiser rules, one entry each: the scalars of a step, the formula, and what names them.

To add a rule, write its entry here and list it in ``list_rules`` at the end. An entry has

- ``<rule>_scalars``: the options of a group -> the scalars of step t, in double;
- ``<rule>``: the formula of one element. ``w`` is the weight, ``x`` the gradient (scaled, with its
  coupled decay), ``a``, ``b``, ``c`` the state arrays in their order;
- ``<rule>_step``: the formula along an array, with the sign of each of its state arrays;
- ``<rule>_rule``: its name; the names of its state arrays, as torch.optim has them, with + in
  front of those that are never negative; the names of its own options, in the order of
  ``set_options``; whether norms scale its step.

Sources: SGD with momentum, Polyak 1964, Sutskever et al. 2013; Adam, Kingma and Ba 2015; AdamW,
Loshchilov and Hutter 2019; AMSGrad, Reddi et al. 2018; NAdam, Dozat 2016; RAdam, Liu et al. 2020;
Lion, Chen et al. 2023; LAMB, You et al. 2020; RMSprop, Hinton 2012; Adagrad, Duchi et al. 2011;
Adadelta, Zeiler 2012; all in the form and order of torch.optim's loops where it has them.
"""

from libc.math cimport fabs, pow, sqrt

from fastopt._kernels.update.lines cimport *
from fastopt._kernels.update.entry cimport *

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


# -- Adam and, with decoupled decay, AdamW --------------------------------------------------------

cdef inline void adam_scalars(Scalars64* s, const Options* o, double t) noexcept nogil:
    s.take1 = 1.0 - o.beta1
    s.beta2, s.take2 = o.beta2, 1.0 - o.beta2
    s.correction = 1.0 - pow(o.beta1, t)
    s.root_scale = 1.0 / sqrt(1.0 - pow(o.beta2, t))
    s.eps = o.eps
    s.step = -(o.lr / s.correction)


cdef inline void moments(real* m, real* v, real x, const scalars* s) noexcept nogil:
    """The square is taken last: (1 - beta2) x^2 is finite for x up to 5.8e20."""
    m[0] = m[0] + s.take1 * (x - m[0])
    v[0] = s.beta2 * v[0] + (s.take2 * x) * x


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


# -- LAMB: Adam's direction with decay, scaled by the norms of weights and direction --------------

cdef inline void lamb_scalars(Scalars64* s, const Options* o, double t) noexcept nogil:
    adam_scalars(s, o, t)
    s.correction = 1.0 / s.correction
    s.lr, s.decay = o.lr, o.decoupled


cdef inline real lamb_direction(real w, real m, real v, const scalars* s) noexcept nogil:
    return (m * s.correction) / (root(v) * s.root_scale + s.eps) + s.decay * w


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


# -- Adafactor; its passes stand in adafactor.pxd -------------------------------------------------

cdef inline void adafactor_scalars(Scalars64* s, const Options* o, double t) noexcept nogil:
    """eps1 negative: the machine epsilon of the parameter's dtype."""
    s.take2 = pow(t, o.beta2_decay)
    s.eps1, s.eps2, s.d = o.eps1, o.eps2, o.d
    s.lr = min(o.lr, 1.0 / sqrt(t))


cdef inline Rule adafactor_rule() noexcept:
    return Rule(
        b"adafactor", b"+variance", b"beta2_decay eps1 eps2 d", ADAFACTOR_NORMS,
        adafactor_scalars, NULL, NULL,
    )


cdef enum:
    N_RULES = 16

cdef inline void list_rules(Rule* rules) noexcept:
    """Every entry, in any order."""
    rules[0], rules[1], rules[2] = sgd_rule(), momentum_rule(), lion_rule()
    rules[3], rules[4], rules[5] = adam_rule(), amsgrad_rule(), nadam_rule()
    rules[6], rules[7], rules[8] = radam_rule(), adamax_rule(), lamb_rule()
    rules[9], rules[10] = rmsprop_rule(), rmsprop_momentum_rule()
    rules[11], rules[12] = rmsprop_centered_rule(), rmsprop_centered_momentum_rule()
    rules[13], rules[14], rules[15] = adagrad_rule(), adadelta_rule(), adafactor_rule()
