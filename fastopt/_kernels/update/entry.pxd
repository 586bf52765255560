"""What the entry of a rule consists of, and what several of them use.

Rules are in ``rules_<family>.pyx``, a module each, so that one of them is compiled at a time; the
entries are listed at its end, and the module in ``FAMILIES`` (update.pyx). An entry has

- ``<rule>_scalars``: the options of a group -> the scalars of step t, in double;
- ``<rule>``: the formula of one element. ``w`` is the weight, ``x`` the gradient (scaled, with its
  coupled decay), ``a``, ``b``, ``c`` the state arrays in their order;
- ``<rule>_step``: the formula along an array, with the sign of each of its state arrays;
- ``<rule>_rule``: its name; the names of its state arrays, as torch.optim has them, with + in
  front of those that are never negative; the names of its own options, in the order of
  ``set_options``; whether norms scale its step.
"""

from libc.math cimport sqrt, sqrtf

from fastopt._kernels.update.stretch cimport *

cdef struct Options:  # of a group; the first four are every rule's
    double lr, sign, coupled, decoupled
    double momentum, dampening, nesterov
    double beta1, beta2, eps, momentum_decay
    double alpha, lr_decay, rho
    double beta2_decay, eps1, eps2, d

ctypedef void (*Prepare)(Scalars64* s, const Options* o, double t) noexcept nogil
ctypedef void (*Step32)(float* p, const Stretch* a, const Scalars32* s) noexcept nogil
ctypedef void (*Step64)(double* p, const Stretch* a, const Scalars64* s) noexcept nogil

cdef enum Norms:  # whether each array's step is scaled by norms: a pass before it
    NO_NORMS
    LAMB_NORMS
    ADAFACTOR_NORMS

cdef struct Rule:
    const char* name
    const char* states
    const char* options
    Norms norms
    Prepare prepare
    Step32 step32
    Step64 step64

cdef extern from *:
    """
    #define FO_RULES "fastopt rules"
    """
    const char* RULES_OF_A_MODULE "FO_RULES"  # the name of the capsule with its entries


cdef inline real root(real x) noexcept nogil:
    if real is float:
        return sqrtf(x)
    else:
        return sqrt(x)


cdef inline real larger(real x, real y) noexcept nogil:
    """NaN where either is, as torch.maximum."""
    cdef real most = x if x > y else y
    return x if x != x else most


cdef inline void scalars_of(
    Scalars64* s, const Rule* rule, const Options* o, double scale, double t
) noexcept nogil:
    """Those of every rule, then its own; ``scale`` multiplies the gradients."""
    s.scale = scale * o.sign
    s.coupled = o.coupled
    s.left = 1.0 - o.lr * o.decoupled
    s.trust = 1.0
    rule.prepare(s, o, t)


cdef inline void round_scalars(Scalars32* to, const Scalars64* s) noexcept nogil:
    to.scale, to.coupled, to.left = <float> s.scale, <float> s.coupled, <float> s.left
    to.lr, to.step, to.grad_step = <float> s.lr, <float> s.step, <float> s.grad_step
    to.beta1, to.take1 = <float> s.beta1, <float> s.take1
    to.beta2, to.take2 = <float> s.beta2, <float> s.take2
    to.momentum, to.take, to.ahead = <float> s.momentum, <float> s.take, <float> s.ahead
    to.eps, to.root_scale = <float> s.eps, <float> s.root_scale
    to.eps1, to.eps2, to.d = <float> s.eps1, <float> s.eps2, <float> s.d
    to.decay, to.correction, to.trust = <float> s.decay, <float> s.correction, <float> s.trust
    to.nesterov, to.rectified = s.nesterov, s.rectified
