"""Gaussian process with a Matern-5/2 kernel: marginal likelihood, factors, expected improvement.

k(r) = (1 + sqrt5 r + 5/3 r^2) exp(-sqrt5 r), r^2 = sum_f w_f^2 (x_f - y_f)^2, w = 1 / length scale
(Rasmussen & Williams 2006, eq. 4.17). No BLAS: every sum is in a fixed order, so the bits depend
on the arguments alone. Matrices are updated row by row (axpy), which the compiler turns into
vectors without reordering a sum.
"""

from libc.math cimport erfc, exp, log, log1p, sqrt

from fastopt._kernels.shared.approximate cimport exp2_d
from fastopt._kernels.shared cimport numpy as cnp
from fastopt._kernels.shared.arguments cimport data_of
from fastopt._kernels.shared.pool cimport run

from fastopt.errors import ArrayError

cnp.import_array()

cdef enum:
    LANES = 16  # points that are looked at together
    MOST = 1024  # rows of a model: a block of kernel values stays in the cache

cdef extern from "search/quadratic.h":
    void quadratic "fo_quadratic" (
        double* rest, const double* inverse, const double* k, Py_ssize_t n, Py_ssize_t lanes
    ) noexcept nogil

cdef double ROOT5 = 2.2360679774997896964
cdef double LOG2E = 1.4426950408889634074
cdef double ROOT_HALF = 0.70710678118654752440
cdef double LOG_ROOT_2PI = 0.91893853320467274178
cdef double SERIES_BELOW = -6.0  # log EI by its asymptotic series: the two terms cancel there
cdef double SMALLEST = 1e-12  # variance as a share of the prior's

cdef struct Model:
    const double* x  # (p, n): one row per feature, already divided by its length scale
    const double* inverse  # (n, n): L^-1, lower
    const double* alpha  # (n,): K^-1 t
    Py_ssize_t n, p, m
    double variance, best
    const double* points  # (m, p)
    const double* weights  # (p,)
    double* out


cdef inline void covariances(
    double* k, double* slope, const double* x, Py_ssize_t n, Py_ssize_t p, Py_ssize_t i
) noexcept nogil:
    """k[j] = k(x_i, x_j) for j <= i, and where asked the factor of w^2 dx^2 in its derivative by
    log w, less its sign: 5/3 (1 + sqrt5 r) exp(-sqrt5 r)."""
    cdef Py_ssize_t f, j
    cdef double gap, r, decay
    for j in range(i + 1):
        k[j] = 0.0
    for f in range(p):
        for j in range(i + 1):
            gap = x[f * n + i] - x[f * n + j]
            k[j] += gap * gap
    if slope == NULL:
        for j in range(i + 1):
            r = ROOT5 * sqrt(k[j])
            k[j] = (1.0 + r + r * r * (1.0 / 3.0)) * exp2_d(-LOG2E * r)
    else:
        for j in range(i + 1):
            r = ROOT5 * sqrt(k[j])
            decay = exp2_d(-LOG2E * r)
            k[j] = (1.0 + r + r * r * (1.0 / 3.0)) * decay
            slope[j] = (5.0 / 3.0) * (1.0 + r) * decay


cdef bint factor(double* upper, const double* k, Py_ssize_t n) noexcept nogil:
    """upper' upper = K, from the lower half of ``k``; False where K is not positive definite."""
    cdef Py_ssize_t i, j, row
    cdef double pivot, share
    for i in range(n):
        for j in range(i, n):
            upper[i * n + j] = k[j * n + i]
    for row in range(n):
        pivot = upper[row * n + row]
        if not pivot > 0.0:
            return False
        pivot = 1.0 / sqrt(pivot)
        for j in range(row, n):
            upper[row * n + j] *= pivot
        for i in range(row + 1, n):
            share = upper[row * n + i]
            for j in range(i, n):
                upper[i * n + j] -= share * upper[row * n + j]
    return True


cdef void invert(double* inverse, const double* upper, Py_ssize_t n) noexcept nogil:
    """inverse (lower) = (upper')^-1."""
    cdef Py_ssize_t i, j, row
    cdef double share
    for i in range(n):
        for j in range(n):
            inverse[i * n + j] = 0.0
        inverse[i * n + i] = 1.0
        for row in range(i):
            share = upper[row * n + i]
            for j in range(row + 1):
                inverse[i * n + j] -= share * inverse[row * n + j]
        share = 1.0 / upper[i * n + i]
        for j in range(i + 1):
            inverse[i * n + j] *= share


cdef void square(double* out, const double* inverse, Py_ssize_t n) noexcept nogil:
    """Lower half of inverse' inverse = K^-1."""
    cdef Py_ssize_t i, j, row
    cdef double share
    for i in range(n):
        for j in range(i + 1):
            out[i * n + j] = 0.0
    for row in range(n):
        for i in range(row + 1):
            share = inverse[row * n + i]
            for j in range(i + 1):
                out[i * n + j] += share * inverse[row * n + j]


cdef void solve(
    double* alpha, const double* inverse, const double* t, Py_ssize_t n
) noexcept nogil:
    """alpha = inverse' (inverse t)."""
    cdef Py_ssize_t i, j
    cdef double total
    for j in range(n):
        alpha[j] = 0.0
    for i in range(n):
        total = 0.0
        for j in range(i + 1):
            total += inverse[i * n + j] * t[j]
        for j in range(i + 1):
            alpha[j] += total * inverse[i * n + j]


cdef double slopes(
    double* sums, const double* inverse, const double* slope, const double* rows,
    const double* alpha, double times, double* factors, Py_ssize_t n, Py_ssize_t p
) noexcept nogil:
    """sums[f n] = derivative of the likelihood's negative logarithm by the log length scale of
    feature f; returns that by the noise (Rasmussen & Williams 2006, eq. 5.9)."""
    cdef double trace = 0.0, gap, total
    cdef Py_ssize_t i, j, f
    for i in range(p * n):
        sums[i] = 0.0
    for i in range(n):
        trace += inverse[i * n + i] - times * alpha[i] * alpha[i]
        for j in range(i):  # each pair counts twice, which cancels the half of eq. 5.9
            factors[j] = slope[i * n + j] * (
                inverse[i * n + j] - times * alpha[i] * alpha[j]
            )
        for f in range(p):
            for j in range(i):
                gap = rows[f * n + i] - rows[f * n + j]
                sums[f * n + j] += factors[j] * (gap * gap)
    for f in range(p):
        total = 0.0
        for j in range(n):
            total += sums[f * n + j]
        sums[f * n] = total
    return 0.5 * trace


cdef inline double log_improvement(double z) noexcept nogil:
    """log(phi(z) + z Phi(z)), by its series where the two cancel."""
    cdef double square = z * z
    if z < SERIES_BELOW:
        return (
            -0.5 * square - LOG_ROOT_2PI - 2.0 * log(-z)
            + log1p(-3.0 / square + 15.0 / (square * square))
        )
    return log(exp(-0.5 * square - LOG_ROOT_2PI) + 0.5 * z * erfc(-z * ROOT_HALF))


cdef void gain_chunk(void* context, Py_ssize_t index, int worker) noexcept nogil:
    """log EI of LANES points; a block that is cut off looks at its last point again."""
    cdef Model m = (<const Model*> context)[0]
    cdef Py_ssize_t first = index * LANES, count = min(<Py_ssize_t> LANES, m.m - first)
    cdef Py_ssize_t i, f, n = m.n
    cdef double[MOST * LANES] k
    cdef double[LANES] mean
    cdef double[LANES] rest
    cdef double[LANES] at
    cdef double r, gap, deviation
    cdef int c
    for i in range(n * LANES):
        k[i] = 0.0
    for f in range(m.p):
        for c in range(LANES):
            at[c] = m.points[(first + min(<Py_ssize_t> c, count - 1)) * m.p + f] * m.weights[f]
        for i in range(n):
            for c in range(LANES):
                gap = m.x[f * n + i] - at[c]
                k[i * LANES + c] += gap * gap
    for i in range(n * LANES):
        r = ROOT5 * sqrt(k[i])
        k[i] = (1.0 + r + r * r * (1.0 / 3.0)) * exp2_d(-LOG2E * r)
    for c in range(LANES):
        mean[c] = 0.0
        rest[c] = 1.0
    for i in range(n):
        for c in range(LANES):
            mean[c] += m.alpha[i] * k[i * LANES + c]
    quadratic(rest, m.inverse, k, n, LANES)
    for c in range(<int> count):
        deviation = sqrt(m.variance * (rest[c] if rest[c] > SMALLEST else SMALLEST))
        m.out[first + c] = log_improvement((m.best - mean[c]) / deviation) + log(deviation)


cdef void scaled(
    double* out, const double* x, const double* weights, Py_ssize_t n, Py_ssize_t p
) noexcept nogil:
    """out (p, n) = the columns of x (n, p) times their weights."""
    cdef Py_ssize_t i, f
    for f in range(p):
        for i in range(n):
            out[f * n + i] = x[i * p + f] * weights[f]


# --- doors

cdef double* work_of(cnp.ndarray work, Py_ssize_t size) except NULL:
    return <double*> data_of(work, cnp.NPY_FLOAT64, size, True, "work")


def likelihood(
    cnp.ndarray gradient not None, cnp.ndarray x not None, cnp.ndarray t not None,
    cnp.ndarray weights not None, cnp.ndarray scale_of not None, double noise,
    cnp.ndarray work not None,
):
    """n/2 log(t' K^-1 t / n) + log|K| / 2, K = k(x, x) + noise I; infinity where K has no factor.

    x (n, p), t (n,), weights (p,) float64; scale_of (p,) intp says to which of the d log length
    scales each feature belongs; gradient (d + 1,) by them and by log noise. work (4 n n + (2 p +
    3) n) is scratch memory.
    """
    cdef Py_ssize_t n = cnp.PyArray_SIZE(t), p = cnp.PyArray_SIZE(weights), i, f
    cdef Py_ssize_t d = cnp.PyArray_SIZE(gradient) - 1
    cdef const double* points = <double*> data_of(x, cnp.NPY_FLOAT64, n * p, False, "x")
    cdef const double* target = <double*> data_of(t, cnp.NPY_FLOAT64, n, False, "t")
    cdef const double* w = <double*> data_of(weights, cnp.NPY_FLOAT64, p, False, "weights")
    cdef const Py_ssize_t* scales = <Py_ssize_t*> data_of(
        scale_of, cnp.NPY_INTP, p, False, "scale_of"
    )
    cdef double* slope_of = <double*> data_of(
        gradient, cnp.NPY_FLOAT64, d + 1, True, "gradient"
    )
    cdef double* k = work_of(work, 4 * n * n + (2 * p + 3) * n)
    cdef double* slope = k + n * n
    cdef double* upper = slope + n * n
    cdef double* inverse = upper + n * n
    cdef double* rows = inverse + n * n
    cdef double* sums = rows + p * n
    cdef double* alpha = sums + p * n
    cdef double* factors = alpha + n
    cdef double fit = 0.0, logs = 0.0
    cdef bint good
    for f in range(p):
        if not 0 <= scales[f] < d:
            raise ArrayError(f"scale_of: expected numbers below {d}, got {scales[f]}")
    with nogil:
        scaled(rows, points, w, n, p)
        for i in range(n):
            covariances(k + i * n, slope + i * n, rows, n, p, i)
            k[i * n + i] += noise
        good = factor(upper, k, n)
        if good:
            invert(inverse, upper, n)
            square(k, inverse, n)
            solve(alpha, inverse, target, n)
            for i in range(n):
                fit += target[i] * alpha[i]
                logs += log(upper[i * n + i])
            fit = fit if fit > 1e-300 else 1e-300
            slope_of[d] = noise * slopes(sums, k, slope, rows, alpha, n / fit, factors, n, p)
            for i in range(d):
                slope_of[i] = 0.0
            for f in range(p):
                slope_of[scales[f]] += sums[f * n]
    return 0.5 * n * log(fit / n) + logs if good else float("inf")


def fit(
    cnp.ndarray inverse not None, cnp.ndarray alpha not None, cnp.ndarray rows not None,
    cnp.ndarray x not None, cnp.ndarray t not None, cnp.ndarray weights not None, double noise,
    cnp.ndarray work not None,
):
    """inverse (n, n) = L^-1 where L L' = k(x, x) + noise I, alpha (n,) = K^-1 t, rows (p, n) =
    (weights x)'; returns whether K has a factor. work (2 n n) is scratch memory."""
    cdef Py_ssize_t n = cnp.PyArray_SIZE(t), p = cnp.PyArray_SIZE(weights), i
    cdef const double* points = <double*> data_of(x, cnp.NPY_FLOAT64, n * p, False, "x")
    cdef const double* target = <double*> data_of(t, cnp.NPY_FLOAT64, n, False, "t")
    cdef const double* w = <double*> data_of(weights, cnp.NPY_FLOAT64, p, False, "weights")
    cdef double* lower = <double*> data_of(inverse, cnp.NPY_FLOAT64, n * n, True, "inverse")
    cdef double* a = <double*> data_of(alpha, cnp.NPY_FLOAT64, n, True, "alpha")
    cdef double* r = <double*> data_of(rows, cnp.NPY_FLOAT64, p * n, True, "rows")
    cdef double* k = work_of(work, 2 * n * n)
    cdef bint good
    with nogil:
        scaled(r, points, w, n, p)
        for i in range(n):
            covariances(k + i * n, NULL, r, n, p, i)
            k[i * n + i] += noise
        good = factor(k + n * n, k, n)
        if good:
            invert(lower, k + n * n, n)
            solve(a, lower, target, n)
    return good


def gain(
    cnp.ndarray out not None, cnp.ndarray points not None, cnp.ndarray rows not None,
    cnp.ndarray weights not None, cnp.ndarray inverse not None, cnp.ndarray alpha not None,
    double variance, double best, int threads,
):
    """out (m,) = log of the expected improvement over ``best`` at points (m, p), by what ``fit``
    found."""
    cdef Model m
    m.m, m.n, m.p = cnp.PyArray_SIZE(out), cnp.PyArray_SIZE(alpha), cnp.PyArray_SIZE(weights)
    if m.n > MOST:
        raise ArrayError(f"alpha: expected at most {MOST} rows, got {m.n}")
    m.out = <double*> data_of(out, cnp.NPY_FLOAT64, m.m, True, "out")
    m.points = <double*> data_of(points, cnp.NPY_FLOAT64, m.m * m.p, False, "points")
    m.x = <double*> data_of(rows, cnp.NPY_FLOAT64, m.n * m.p, False, "rows")
    m.weights = <double*> data_of(weights, cnp.NPY_FLOAT64, m.p, False, "weights")
    m.inverse = <double*> data_of(inverse, cnp.NPY_FLOAT64, m.n * m.n, False, "inverse")
    m.alpha = <double*> data_of(alpha, cnp.NPY_FLOAT64, m.n, False, "alpha")
    m.variance, m.best = variance, best
    with nogil:
        run(gain_chunk, &m, (m.m + LANES - 1) // LANES, threads)
