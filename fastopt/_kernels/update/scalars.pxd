"""A group's options -> the scalars of one step, in double.

Options ``o``: lr, sign of the gradient, coupled decay, decoupled decay, then the rule's own.
Scalars ``h``: gradient scale, coupled decay, 1 - lr * decoupled decay, then the rule's own.
"""

from libc.math cimport pow, sqrt

from fastopt._kernels.update.types cimport *


cdef inline void prepare(Row* r, const double* o, double scale, double* h) noexcept nogil:
    cdef double t = <double> r.step, lr = o[0]
    cdef double c1, c2, mu, ahead, rho, rho_inf
    h[0] = scale * o[1]
    h[1] = o[2]
    h[2] = 1.0 - lr * o[3]
    if r.rule == SGD_PLAIN or r.rule == SGD_MOMENTUM:
        # own options: momentum, dampening, nesterov; the first step takes the whole gradient
        h[3] = lr
        h[4] = 0.0 if r.step == 1 else o[4]
        h[5] = 1.0 if r.step == 1 else 1.0 - o[5]
        h[6] = o[4]
        h[7] = o[6]
    elif r.rule == LION:  # beta1, beta2
        h[3] = lr
        h[4] = o[4]
        h[5] = 1.0 - o[4]
        h[6] = o[5]
        h[7] = 1.0 - o[5]
    elif r.rule == ADAMAX:  # beta1, beta2, eps
        h[3] = 1.0 - o[4]
        h[4] = o[5]
        h[5] = o[6]
        h[6] = -(lr / (1.0 - pow(o[4], t)))
    elif (
        r.rule == RMSPROP or r.rule == RMSPROP_MOMENTUM or r.rule == RMSPROP_CENTERED
        or r.rule == RMSPROP_CENTERED_MOMENTUM
    ):  # alpha, eps, momentum
        h[3] = o[4]
        h[4] = 1.0 - o[4]
        h[5] = o[5]
        h[6] = o[6]
        h[7] = -lr
    elif r.rule == ADAGRAD:  # lr_decay, eps
        h[3] = -(lr / (1.0 + (t - 1.0) * o[4]))
        h[4] = o[5]
    elif r.rule == ADADELTA:  # rho, eps
        h[3] = o[4]
        h[4] = 1.0 - o[4]
        h[5] = o[5]
        h[6] = -lr
    elif r.rule == ADAFACTOR:  # beta2_decay, eps1 (negative: the dtype's), eps2, d
        h[3] = pow(t, o[4])
        h[4] = o[5]
        h[5] = o[6]
        h[6] = min(lr, 1.0 / sqrt(t))
        h[7] = o[7]
    else:  # the Adam family: beta1, beta2, eps, and momentum_decay for NAdam
        c1 = 1.0 - pow(o[4], t)
        c2 = 1.0 - pow(o[5], t)
        h[3] = 1.0 - o[4]
        h[4] = o[5]
        h[5] = 1.0 - o[5]
        h[6] = 1.0 / sqrt(c2)
        h[7] = o[6]
        h[8] = -(lr / c1)
        if r.rule == NADAM:  # Dozat 2016, with the schedule of mu as in torch
            mu = o[4] * (1.0 - 0.5 * pow(0.96, t * o[7]))
            ahead = o[4] * (1.0 - 0.5 * pow(0.96, (t + 1.0) * o[7]))
            r.product *= mu
            h[8] = -lr * ahead / (1.0 - r.product * ahead)
            h[9] = -lr * (1.0 - mu) / (1.0 - r.product)
        elif r.rule == RADAM:  # Liu et al. 2020, algorithm 2
            rho_inf = 2.0 / (1.0 - o[5]) - 1.0
            rho = rho_inf - 2.0 * t * pow(o[5], t) / c2
            h[9] = 1.0 if rho > 5.0 else 0.0
            if rho > 5.0:
                h[6] = 1.0
                h[8] *= sqrt(c2) * sqrt(
                    (rho - 4.0) * (rho - 2.0) * rho_inf / ((rho_inf - 4.0) * (rho_inf - 2.0) * rho)
                )
        elif r.rule == LAMB:
            h[8] = 1.0 / c1
            h[9] = lr
            h[10] = o[3]
