/* The element-wise update rules, once for each precision (loops.h includes this twice).
   w are the weights, x the gradient, scaled and with its coupled decay, s0 to s2 the state; h the
   step's scalars (scalars.pxd): h[2] is what the decoupled decay leaves of w. FO_EACH loads
   the arrays, as many states as it is told, and stores what a formula has made of them. */
#define FO_MOMENTS                                                                                \
    s0 = s0 + h[3] * (x - s0);                                                                    \
    s1 = h[4] * s1 + h[5] * (x * x);
#define FO_VARIANCE                                                                               \
    FO_V d = s0 = h[3] * s0 + h[4] * (x * x);
#define FO_CENTERED                                                                               \
    s1 = s1 + h[4] * (x - s1);                                                                    \
    d = s0 - s1 * s1;

static __attribute__((noinline)) void FO_NAME(loop)(int rule, FO_REAL *p, const FO_REAL *g,
                                                    FO_REAL *a, FO_REAL *b, FO_REAL *c,
                                                    ptrdiff_t n, const double *scalars) {
    FO_REAL h[FO_SCALARS];
    for (int k = 0; k < FO_SCALARS; k++)
        h[k] = (FO_REAL)scalars[k];
    const FO_REAL step = (FO_REAL)(scalars[9] * scalars[FO_TRUST]); /* LAMB's */
    const int decays = fo_flag(h[1] != 0);
    const ptrdiff_t until = scalars[FO_FAR] != 0 ? n : 0; /* elements before it ask ahead */
    if (rule == RADAM) /* its first steps gather the second moment but do not use it */
        rule = scalars[9] != 0 ? ADAM : RADAM;
    switch (rule) {
    case SGD_PLAIN:
        FO_QUICK(0, w = w - h[3] * x;)
    case SGD_MOMENTUM:
        if (h[7] != 0) /* Nesterov's */
            FO_QUICK(1,
                     s0 = h[4] * s0 + h[5] * x;
                     w = w - h[3] * (x + h[6] * s0);)
        FO_QUICK(1,
                 s0 = h[4] * s0 + h[5] * x;
                 w = w - h[3] * s0;)
    case LION: /* its decay is never coupled */
        FO_TURNS(1, 0,
                 FO_V u = h[4] * s0 + h[5] * x;
                 s0 = h[6] * s0 + h[7] * x;
                 w = h[2] * w - FO_NAME(sign)(u, h[3]);)
        break;
    case ADAM:
        FO_EACH(2, FO_MOMENTS
                w = h[2] * w + (h[8] * s0) / (FO_NAME(root)(s1) * h[6] + h[7]);)
    case ADAM_AMSGRAD:
        FO_EACH(3, FO_MOMENTS
                s2 = FO_LARGER(s1, s2);
                w = h[2] * w + (h[8] * s0) / (FO_NAME(root)(s2) * h[6] + h[7]);)
    case NADAM:
        FO_EACH(2, FO_MOMENTS
                w = h[2] * w + (h[9] * x + h[8] * s0) / (FO_NAME(root)(s1) * h[6] + h[7]);)
    case RADAM:
        FO_EACH(2, FO_MOMENTS
                w = h[2] * w + h[8] * s0;)
    case LAMB:
        FO_EACH(2, FO_MOMENTS
                w = w - step * ((s0 * h[8]) / (FO_NAME(root)(s1) * h[6] + h[7]) + h[10] * w);)
    case ADAMAX:
        FO_EACH(2,
                s0 = s0 + h[3] * (x - s0);
                FO_V u = FO_SIZE(x) + h[5];
                s1 = h[4] * s1;
                s1 = FO_LARGER(u, s1);
                w = w + (h[6] * s0) / s1;)
    case RMSPROP:
        FO_EACH(1, FO_VARIANCE
                w = w + (h[7] * x) / (FO_NAME(root)(d) + h[5]);)
    case RMSPROP_MOMENTUM:
        FO_EACH(2, FO_VARIANCE
                s1 = h[6] * s1 + x / (FO_NAME(root)(d) + h[5]);
                w = w + h[7] * s1;)
    case RMSPROP_CENTERED:
        FO_EACH(2, FO_VARIANCE FO_CENTERED
                w = w + (h[7] * x) / (FO_NAME(root)(d) + h[5]);)
    case RMSPROP_CENTERED_MOMENTUM:
        FO_EACH(3, FO_VARIANCE FO_CENTERED
                s2 = h[6] * s2 + x / (FO_NAME(root)(d) + h[5]);
                w = w + h[7] * s2;)
    case ADAGRAD:
        FO_EACH(1,
                s0 = s0 + x * x;
                w = w + (h[3] * x) / (FO_NAME(root)(s0) + h[4]);)
    case ADADELTA:
        FO_EACH(2, FO_VARIANCE
                d = FO_NAME(root)(s1 + h[5]) / FO_NAME(root)(d + h[5]) * x;
                s1 = h[3] * s1 + h[4] * (d * d);
                w = w + h[6] * d;)
    }
}
#undef FO_MOMENTS
#undef FO_VARIANCE
#undef FO_CENTERED
