"""The optimiser rules, one entry each: the scalars of a step, the formula, and what names them.

To add a rule, write its entry here and list it in ``rules`` at the end. An entry has

- ``<rule>_scalars``: the options of a group -> the scalars of step t, in double;
- ``<rule>``: the formula of one element. ``w`` is the weight, ``x`` the gradient (scaled, with its
  coupled decay), ``a``, ``b``, ``c`` the state arrays in their order;
- ``<rule>_step``: the formula along an array, with the sign of each of its state arrays;
- ``<rule>_rule``: its name; the names of its state arrays, as torch.optim has them, with + in front
  of those that are never negative; the names of its own options, in the order of ``set_options``.

Sources: SGD with momentum, Polyak 1964, Sutskever et al. 2013; Adam, Kingma and Ba 2015; AdamW,
Loshchilov and Hutter 2019; AMSGrad, Reddi et al. 2018; NAdam, Dozat 2016; RAdam, Liu et al. 2020;
Lion, Chen et al. 2023; LAMB, You et al. 2020; RMSprop, Hinton 2012; Adagrad, Duchi et al. 2011;
Adadelta, Zeiler 2012; all in the form and order of torch.optim's loops where it has them.
"""

from libc.math cimport fabs, pow, sqrt, sqrtf

from fastopt._kernels.update.lines cimport *

cdef struct Options:  # of a group; the first four are every rule's
    double lr, sign, coupled, decoupled
    double momentum, dampening, nesterov
    double beta1, beta2, eps, momentum_decay
    double alpha, lr_decay, rho
    double beta2_decay, eps1, eps2, d

ctypedef void (*Prepare)(Scalars* s, const Options* o, double t) noexcept nogil
ctypedef void (*Step32)(float* p, const Stretch* a, const Scalars* s) noexcept nogil
ctypedef void (*Step64)(double* p, const Stretch* a, const Scalars* s) noexcept nogil

cdef enum Norms:  # whether each array's step is scaled by norms: a pass before it
    NO_NORMS
    LAMB_NORMS
    ADAFACTOR_NORMS

cdef struct Rule:
    const char* name
    const char* states
    const char* options
    Prepare prepare
    Step32 step32
    Step64 step64
    Norms norms


cdef inline real root(real x) noexcept nogil:
    if real is float:
        return sqrtf(x)
    else:
        return sqrt(x)


cdef inline real larger(real x, real y) noexcept nogil:
    """NaN where either is, as torch.maximum."""
    cdef real most = x if x > y else y
    return x if x != x else most


# -- SGD ------------------------------------------------------------------------------------------

cdef inline void sgd_scalars(Scalars* s, const Options* o, double t) noexcept nogil:
    s.lr = o.lr


cdef inline void sgd(real* w, real x, real* a, real* b, real* c, const Scalars* s) noexcept nogil:
    cdef real lr = <real> s.lr
    w[0] = w[0] - lr * x


cdef inline void sgd_step(real* p, const Stretch* a, const Scalars* s) noexcept nogil:
    each(<void*> sgd[real], ABSENT, ABSENT, ABSENT, p, a, s)


cdef inline Rule sgd_rule() noexcept:
    return Rule(
        b"sgd", b"", b"momentum dampening nesterov",
        sgd_scalars, sgd_step[float], sgd_step[double], NO_NORMS,
    )


# -- SGD with momentum ----------------------------------------------------------------------------

cdef inline void momentum_scalars(Scalars* s, const Options* o, double t) noexcept nogil:
    s.lr = o.lr
    s.momentum = 0.0 if t == 1 else o.momentum  # the first step takes the whole gradient
    s.take = 1.0 if t == 1 else 1.0 - o.dampening
    s.ahead = o.momentum
    s.nesterov = o.nesterov != 0


cdef inline void momentum(
    real* w, real x, real* buffer, real* b, real* c, const Scalars* s
) noexcept nogil:
    cdef real lr = <real> s.lr, kept = <real> s.momentum, take = <real> s.take
    cdef real ahead = <real> s.ahead, move
    buffer[0] = kept * buffer[0] + take * x
    move = x + ahead * buffer[0] if s.nesterov else buffer[0]
    w[0] = w[0] - lr * move


cdef inline void momentum_step(real* p, const Stretch* a, const Scalars* s) noexcept nogil:
    each(<void*> momentum[real], SIGNED, ABSENT, ABSENT, p, a, s)


cdef inline Rule momentum_rule() noexcept:
    return Rule(
        b"sgd_momentum", b"momentum_buffer", b"momentum dampening nesterov",
        momentum_scalars, momentum_step[float], momentum_step[double], NO_NORMS,
    )


# -- Lion; its decay is never coupled -------------------------------------------------------------

cdef inline void lion_scalars(Scalars* s, const Options* o, double t) noexcept nogil:
    s.lr = o.lr
    s.beta1, s.take1 = o.beta1, 1.0 - o.beta1
    s.beta2, s.take2 = o.beta2, 1.0 - o.beta2


cdef inline void lion(
    real* w, real x, real* m, real* b, real* c, const Scalars* s
) noexcept nogil:
    cdef real lr = <real> s.lr, left = <real> s.left
    cdef real beta1 = <real> s.beta1, take1 = <real> s.take1
    cdef real beta2 = <real> s.beta2, take2 = <real> s.take2
    cdef real u = beta1 * m[0] + take1 * x
    cdef real size = lr if u > 0 else -lr
    m[0] = beta2 * m[0] + take2 * x
    w[0] = left * w[0] - (u if u == 0 or u != u else size)  # zeros and NaN stay


cdef inline void lion_step(real* p, const Stretch* a, const Scalars* s) noexcept nogil:
    each(<void*> lion[real], SIGNED, ABSENT, ABSENT, p, a, s)


cdef inline Rule lion_rule() noexcept:
    return Rule(
        b"lion", b"exp_avg", b"beta1 beta2",
        lion_scalars, lion_step[float], lion_step[double], NO_NORMS,
    )


# -- Adam and, with decoupled decay, AdamW --------------------------------------------------------

cdef inline void adam_scalars(Scalars* s, const Options* o, double t) noexcept nogil:
    s.take1 = 1.0 - o.beta1
    s.beta2, s.take2 = o.beta2, 1.0 - o.beta2
    s.correction = 1.0 - pow(o.beta1, t)
    s.root_scale = 1.0 / sqrt(1.0 - pow(o.beta2, t))
    s.eps = o.eps
    s.step = -(o.lr / s.correction)


cdef inline void moments(real* m, real* v, real x, const Scalars* s) noexcept nogil:
    """The square is taken last: (1 - beta2) x^2 is finite for x up to 5.8e20."""
    cdef real take1 = <real> s.take1, beta2 = <real> s.beta2, take2 = <real> s.take2
    m[0] = m[0] + take1 * (x - m[0])
    v[0] = beta2 * v[0] + (take2 * x) * x


cdef inline void adam(
    real* w, real x, real* m, real* v, real* c, const Scalars* s
) noexcept nogil:
    cdef real left = <real> s.left, step = <real> s.step
    cdef real root_scale = <real> s.root_scale, eps = <real> s.eps
    moments(m, v, x, s)
    w[0] = left * w[0] + (step * m[0]) / (root(v[0]) * root_scale + eps)


cdef inline void adam_step(real* p, const Stretch* a, const Scalars* s) noexcept nogil:
    each(<void*> adam[real], SIGNED, POSITIVE, ABSENT, p, a, s)


cdef inline Rule adam_rule() noexcept:
    return Rule(
        b"adam", b"exp_avg +exp_avg_sq", b"beta1 beta2 eps",
        adam_scalars, adam_step[float], adam_step[double], NO_NORMS,
    )


# -- AMSGrad --------------------------------------------------------------------------------------

cdef inline void amsgrad(
    real* w, real x, real* m, real* v, real* top, const Scalars* s
) noexcept nogil:
    cdef real left = <real> s.left, step = <real> s.step
    cdef real root_scale = <real> s.root_scale, eps = <real> s.eps
    moments(m, v, x, s)
    top[0] = larger(v[0], top[0])
    w[0] = left * w[0] + (step * m[0]) / (root(top[0]) * root_scale + eps)


cdef inline void amsgrad_step(real* p, const Stretch* a, const Scalars* s) noexcept nogil:
    each(<void*> amsgrad[real], SIGNED, POSITIVE, POSITIVE, p, a, s)


cdef inline Rule amsgrad_rule() noexcept:
    return Rule(
        b"adam_amsgrad", b"exp_avg +exp_avg_sq +max_exp_avg_sq", b"beta1 beta2 eps",
        adam_scalars, amsgrad_step[float], amsgrad_step[double], NO_NORMS,
    )


# -- NAdam ----------------------------------------------------------------------------------------

cdef inline void nadam_scalars(Scalars* s, const Options* o, double t) noexcept nogil:
    """Dozat 2016, with the schedule of mu as in torch; ``product`` is that of the mu so far."""
    cdef double mu = o.beta1 * (1.0 - 0.5 * pow(0.96, t * o.momentum_decay))
    cdef double ahead = o.beta1 * (1.0 - 0.5 * pow(0.96, (t + 1.0) * o.momentum_decay))
    adam_scalars(s, o, t)
    s.product = s.product * mu
    s.step = -o.lr * ahead / (1.0 - s.product * ahead)
    s.grad_step = -o.lr * (1.0 - mu) / (1.0 - s.product)


cdef inline void nadam(
    real* w, real x, real* m, real* v, real* c, const Scalars* s
) noexcept nogil:
    cdef real left = <real> s.left, step = <real> s.step, grad_step = <real> s.grad_step
    cdef real root_scale = <real> s.root_scale, eps = <real> s.eps
    moments(m, v, x, s)
    w[0] = left * w[0] + (grad_step * x + step * m[0]) / (root(v[0]) * root_scale + eps)


cdef inline void nadam_step(real* p, const Stretch* a, const Scalars* s) noexcept nogil:
    each(<void*> nadam[real], SIGNED, POSITIVE, ABSENT, p, a, s)


cdef inline Rule nadam_rule() noexcept:
    return Rule(
        b"nadam", b"exp_avg +exp_avg_sq", b"beta1 beta2 eps momentum_decay",
        nadam_scalars, nadam_step[float], nadam_step[double], NO_NORMS,
    )


# -- RAdam; its first steps gather the second moment but do not use it ----------------------------

cdef inline void radam_scalars(Scalars* s, const Options* o, double t) noexcept nogil:
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
    real* w, real x, real* m, real* v, real* c, const Scalars* s
) noexcept nogil:
    cdef real left = <real> s.left, step = <real> s.step, eps = <real> s.eps, size
    moments(m, v, x, s)
    size = root(v[0]) + eps
    w[0] = left * w[0] + (step * m[0]) / (size if s.rectified else 1)


cdef inline void radam_step(real* p, const Stretch* a, const Scalars* s) noexcept nogil:
    each(<void*> radam[real], SIGNED, POSITIVE, ABSENT, p, a, s)


cdef inline Rule radam_rule() noexcept:
    return Rule(
        b"radam", b"exp_avg +exp_avg_sq", b"beta1 beta2 eps",
        radam_scalars, radam_step[float], radam_step[double], NO_NORMS,
    )


# -- Adamax ---------------------------------------------------------------------------------------

cdef inline void adamax(
    real* w, real x, real* m, real* u, real* c, const Scalars* s
) noexcept nogil:
    cdef real take1 = <real> s.take1, beta2 = <real> s.beta2, eps = <real> s.eps
    cdef real step = <real> s.step, size = <real> fabs(x)
    m[0] = m[0] + take1 * (x - m[0])
    u[0] = larger(size + eps, beta2 * u[0])
    w[0] = w[0] + (step * m[0]) / u[0]


cdef inline void adamax_step(real* p, const Stretch* a, const Scalars* s) noexcept nogil:
    each(<void*> adamax[real], SIGNED, POSITIVE, ABSENT, p, a, s)


cdef inline Rule adamax_rule() noexcept:
    return Rule(
        b"adamax", b"exp_avg +exp_inf", b"beta1 beta2 eps",
        adam_scalars, adamax_step[float], adamax_step[double], NO_NORMS,
    )


# -- RMSprop, with and without centring and momentum ----------------------------------------------

cdef inline void rmsprop_scalars(Scalars* s, const Options* o, double t) noexcept nogil:
    s.beta2, s.take2 = o.alpha, 1.0 - o.alpha
    s.eps, s.momentum, s.step = o.eps, o.momentum, -o.lr


cdef inline void squares(real* v, real x, const Scalars* s) noexcept nogil:
    """The square is taken last, as for Adam."""
    cdef real beta2 = <real> s.beta2, take2 = <real> s.take2
    v[0] = beta2 * v[0] + (take2 * x) * x


cdef inline void rmsprop(
    real* w, real x, real* v, real* b, real* c, const Scalars* s
) noexcept nogil:
    cdef real eps = <real> s.eps, step = <real> s.step
    squares(v, x, s)
    w[0] = w[0] + (step * x) / (root(v[0]) + eps)


cdef inline void rmsprop_momentum(
    real* w, real x, real* v, real* buffer, real* c, const Scalars* s
) noexcept nogil:
    cdef real eps = <real> s.eps, step = <real> s.step, kept = <real> s.momentum
    squares(v, x, s)
    buffer[0] = kept * buffer[0] + x / (root(v[0]) + eps)
    w[0] = w[0] + step * buffer[0]


cdef inline void rmsprop_centered(
    real* w, real x, real* v, real* mean, real* c, const Scalars* s
) noexcept nogil:
    cdef real eps = <real> s.eps, step = <real> s.step, take2 = <real> s.take2
    squares(v, x, s)
    mean[0] = mean[0] + take2 * (x - mean[0])
    w[0] = w[0] + (step * x) / (root(v[0] - mean[0] * mean[0]) + eps)


cdef inline void rmsprop_centered_momentum(
    real* w, real x, real* v, real* mean, real* buffer, const Scalars* s
) noexcept nogil:
    cdef real eps = <real> s.eps, step = <real> s.step, take2 = <real> s.take2
    cdef real kept = <real> s.momentum
    squares(v, x, s)
    mean[0] = mean[0] + take2 * (x - mean[0])
    buffer[0] = kept * buffer[0] + x / (root(v[0] - mean[0] * mean[0]) + eps)
    w[0] = w[0] + step * buffer[0]


cdef inline void rmsprop_step(real* p, const Stretch* a, const Scalars* s) noexcept nogil:
    each(<void*> rmsprop[real], POSITIVE, ABSENT, ABSENT, p, a, s)


cdef inline void rmsprop_momentum_step(real* p, const Stretch* a, const Scalars* s) noexcept nogil:
    each(<void*> rmsprop_momentum[real], POSITIVE, SIGNED, ABSENT, p, a, s)


cdef inline void rmsprop_centered_step(real* p, const Stretch* a, const Scalars* s) noexcept nogil:
    each(<void*> rmsprop_centered[real], POSITIVE, SIGNED, ABSENT, p, a, s)


cdef inline void rmsprop_centered_momentum_step(real* p, const Stretch* a, const Scalars* s) noexcept nogil:
    each(<void*> rmsprop_centered_momentum[real], POSITIVE, SIGNED, SIGNED, p, a, s)


cdef inline Rule rmsprop_rule() noexcept:
    return Rule(
        b"rmsprop", b"+square_avg", b"alpha eps momentum",
        rmsprop_scalars, rmsprop_step[float], rmsprop_step[double], NO_NORMS,
    )


cdef inline Rule rmsprop_momentum_rule() noexcept:
    return Rule(
        b"rmsprop_momentum", b"+square_avg momentum_buffer", b"alpha eps momentum",
        rmsprop_scalars, rmsprop_momentum_step[float], rmsprop_momentum_step[double], NO_NORMS,
    )


cdef inline Rule rmsprop_centered_rule() noexcept:
    return Rule(
        b"rmsprop_centered", b"+square_avg grad_avg", b"alpha eps momentum",
        rmsprop_scalars, rmsprop_centered_step[float], rmsprop_centered_step[double], NO_NORMS,
    )


cdef inline Rule rmsprop_centered_momentum_rule() noexcept:
    return Rule(
        b"rmsprop_centered_momentum", b"+square_avg grad_avg momentum_buffer", b"alpha eps momentum",
        rmsprop_scalars, rmsprop_centered_momentum_step[float],
        rmsprop_centered_momentum_step[double], NO_NORMS,
    )


# -- Adagrad --------------------------------------------------------------------------------------

cdef inline void adagrad_scalars(Scalars* s, const Options* o, double t) noexcept nogil:
    s.step = -(o.lr / (1.0 + (t - 1.0) * o.lr_decay))
    s.eps = o.eps


cdef inline void adagrad(
    real* w, real x, real* total, real* b, real* c, const Scalars* s
) noexcept nogil:
    cdef real eps = <real> s.eps, step = <real> s.step
    total[0] = total[0] + x * x
    w[0] = w[0] + (step * x) / (root(total[0]) + eps)


cdef inline void adagrad_step(real* p, const Stretch* a, const Scalars* s) noexcept nogil:
    each(<void*> adagrad[real], POSITIVE, ABSENT, ABSENT, p, a, s)


cdef inline Rule adagrad_rule() noexcept:
    return Rule(
        b"adagrad", b"+sum", b"lr_decay eps",
        adagrad_scalars, adagrad_step[float], adagrad_step[double], NO_NORMS,
    )


# -- Adadelta -------------------------------------------------------------------------------------

cdef inline void adadelta_scalars(Scalars* s, const Options* o, double t) noexcept nogil:
    s.beta2, s.take2 = o.rho, 1.0 - o.rho
    s.eps, s.step = o.eps, -o.lr


cdef inline void adadelta(
    real* w, real x, real* v, real* moved, real* c, const Scalars* s
) noexcept nogil:
    cdef real beta2 = <real> s.beta2, take2 = <real> s.take2
    cdef real eps = <real> s.eps, step = <real> s.step, move
    squares(v, x, s)
    move = root(moved[0] + eps) / root(v[0] + eps) * x
    moved[0] = beta2 * moved[0] + take2 * (move * move)
    w[0] = w[0] + step * move


cdef inline void adadelta_step(real* p, const Stretch* a, const Scalars* s) noexcept nogil:
    each(<void*> adadelta[real], POSITIVE, POSITIVE, ABSENT, p, a, s)


cdef inline Rule adadelta_rule() noexcept:
    return Rule(
        b"adadelta", b"+square_avg +acc_delta", b"rho eps",
        adadelta_scalars, adadelta_step[float], adadelta_step[double], NO_NORMS,
    )


# -- LAMB: Adam's direction with decay, scaled by the norms of weights and direction --------------

cdef inline void lamb_scalars(Scalars* s, const Options* o, double t) noexcept nogil:
    adam_scalars(s, o, t)
    s.correction = 1.0 / s.correction
    s.lr, s.decay = o.lr, o.decoupled


cdef inline real lamb_direction(real w, real m, real v, const Scalars* s) noexcept nogil:
    cdef real correction = <real> s.correction, root_scale = <real> s.root_scale
    cdef real eps = <real> s.eps, decay = <real> s.decay
    return (m * correction) / (root(v) * root_scale + eps) + decay * w


cdef inline void lamb(
    real* w, real x, real* m, real* v, real* c, const Scalars* s
) noexcept nogil:
    cdef real step = <real> (s.lr * s.trust)
    moments(m, v, x, s)
    w[0] = w[0] - step * lamb_direction(w[0], m[0], v[0], s)


cdef inline void lamb_step(real* p, const Stretch* a, const Scalars* s) noexcept nogil:
    each(<void*> lamb[real], SIGNED, POSITIVE, ABSENT, p, a, s)


cdef inline Rule lamb_rule() noexcept:
    return Rule(
        b"lamb", b"exp_avg +exp_avg_sq", b"beta1 beta2 eps",
        lamb_scalars, lamb_step[float], lamb_step[double], LAMB_NORMS,
    )


# -- Adafactor; its passes stand in adafactor.pxd -------------------------------------------------

cdef inline void adafactor_scalars(Scalars* s, const Options* o, double t) noexcept nogil:
    """eps1 negative: the machine epsilon of the parameter's dtype."""
    s.take2 = pow(t, o.beta2_decay)
    s.eps1, s.eps2, s.d = o.eps1, o.eps2, o.d
    s.lr = min(o.lr, 1.0 / sqrt(t))


cdef inline Rule adafactor_rule() noexcept:
    return Rule(
        b"adafactor", b"+variance", b"beta2_decay eps1 eps2 d",
        adafactor_scalars, NULL, NULL, ADAFACTOR_NORMS,
    )


cdef inline void scalars_of(
    Scalars* s, const Rule* rule, const Options* o, double scale, double t
) noexcept nogil:
    """Those of every rule, then its own; ``scale`` multiplies the gradients."""
    s.scale = scale * o.sign
    s.coupled = o.coupled
    s.left = 1.0 - o.lr * o.decoupled
    s.trust = 1.0
    rule.prepare(s, o, t)


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
