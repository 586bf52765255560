"""The matrix work of CMA-ES: samples, one update of mean, paths and C, and its eigenvectors.

Equation numbers are those of Hansen, "The CMA evolution strategy: a tutorial" (arXiv 1604.00772).
C is (d, d), or (d,) with an empty basis where only its diagonal is kept. No BLAS and no LAPACK:
every sum is in a fixed order, so the bits depend on the arguments alone.
"""

from libc.math cimport cos, log1p, sin, sqrt
from libc.string cimport memcpy

from fastopt._kernels.search.eigen cimport add_row, diagonalised, dot, tridiagonal
from fastopt._kernels.shared cimport numpy as cnp
from fastopt._kernels.shared.arguments cimport data_of

cnp.import_array()

cdef double TWO_PI = 6.283185307179586477
cdef double TINY = 1e-300


cdef void turned(double* out, const double* basis, const double* x, Py_ssize_t d) noexcept nogil:
    """out = basis' x."""
    cdef Py_ssize_t j
    for j in range(d):
        out[j] = 0.0
    for j in range(d):
        add_row(out, x[j], basis + j * d, d)


# --- doors

cdef inline double* matrix(cnp.ndarray a, Py_ssize_t size, bint writable, str name) except? NULL:
    return <double*> data_of(a, cnp.NPY_FLOAT64, size, writable, name)


def sample(
    cnp.ndarray x not None, cnp.ndarray u not None, cnp.ndarray scale not None,
    cnp.ndarray axes not None, cnp.ndarray basis not None, cnp.ndarray work not None,
):
    """x (k, d) = scale B (axes z), z normal by Box and Muller of uniforms u (k, 2 ceil(d / 2)).

    Equations 38 to 40; the first half of u's columns are radii, the second angles. work (d,).
    """
    cdef Py_ssize_t d = cnp.PyArray_SIZE(scale), half = (d + 1) // 2, k, i, j
    cdef bint full = cnp.PyArray_SIZE(basis) > 0
    cdef double* out
    cdef const double* b = matrix(basis, d * d if full else 0, False, "basis")
    cdef const double* s = matrix(scale, d, False, "scale")
    cdef const double* a = matrix(axes, d, False, "axes")
    cdef const double* draw
    cdef double* row = matrix(work, d, True, "work")
    cdef double* z
    cdef double radius, angle
    k = cnp.PyArray_SIZE(x) // d
    out = matrix(x, k * d, True, "x")
    draw = matrix(u, k * 2 * half, False, "u")
    with nogil:
        for i in range(k):
            z = out + i * d
            for j in range(half):
                radius = sqrt(-2.0 * log1p(-draw[i * 2 * half + j]))
                angle = TWO_PI * draw[i * 2 * half + half + j]
                z[j] = radius * cos(angle) * a[j]
                if half + j < d:
                    z[half + j] = radius * sin(angle) * a[half + j]
            if full:
                for j in range(d):
                    row[j] = dot(b + j * d, z, d)
                memcpy(z, row, <size_t> d * sizeof(double))
            for j in range(d):
                z[j] *= s[j]


cdef struct Update:
    double* c
    double* mean
    double* path_sigma
    double* path_c
    double* steps  # (n, d), in the order of their values
    const double* weights
    const double* scale
    const double* axes
    const double* basis  # NULL where C is diagonal
    double* move
    double* white
    Py_ssize_t n, d, mu
    double mu_eff, c_sigma, c_c, c_1, c_mu, chi, fresh


cdef void whitened(Update* w, double* out, const double* x) noexcept nogil:
    """out = D^-1 B' x: its length is the Mahalanobis length of x."""
    cdef Py_ssize_t j
    if w.basis == NULL:
        memcpy(out, x, <size_t> w.d * sizeof(double))
    else:
        turned(out, w.basis, x, w.d)
    for j in range(w.d):
        out[j] /= w.axes[j]


cdef void learn_shape(Update* w, double h) noexcept nogil:
    """C by the path and the n steps (eq. 47); the worse steps count by their length (eq. 46)."""
    cdef double keep = 1.0 + w.c_1 * (1.0 - h) * w.c_c * (2.0 - w.c_c) - w.c_1
    cdef double weight, total = 0.0
    cdef double* step
    cdef Py_ssize_t i, j, k, d = w.d
    for i in range(w.n):
        total += w.weights[i]
    keep -= w.c_mu * total
    if w.basis == NULL:
        for j in range(d):
            w.c[j] = keep * w.c[j] + w.c_1 * w.path_c[j] * w.path_c[j]
    else:
        for j in range(d):
            for k in range(j + 1):
                w.c[j * d + k] = (
                    keep * w.c[j * d + k] + w.c_1 * w.path_c[j] * w.path_c[k]
                )
    for i in range(w.n):
        weight, step = w.c_mu * w.weights[i], w.steps + i * d
        if weight < 0:
            whitened(w, w.white, step)
            weight *= d / max(dot(w.white, w.white, d), TINY)
        if w.basis == NULL:
            for j in range(d):
                w.c[j] += weight * step[j] * step[j]
        else:
            for j in range(d):
                add_row(w.c + j * d, weight * step[j], step, j + 1)
    if w.basis != NULL:
        for j in range(d):
            for k in range(j):
                w.c[k * d + j] = w.c[j * d + k]


cdef double learn(Update* w) noexcept nogil:
    cdef double length, h, share
    cdef Py_ssize_t i, j, d = w.d
    for j in range(d):
        w.move[j] = 0.0
    for i in range(w.mu):
        add_row(w.move, w.weights[i], w.steps + i * d, d)  # 41
    for j in range(d):
        w.mean[j] += w.scale[j] * w.move[j]  # 42
    whitened(w, w.white, w.move)
    share = sqrt(w.c_sigma * (2.0 - w.c_sigma) * w.mu_eff)
    for j in range(d):  # 43
        w.path_sigma[j] *= 1.0 - w.c_sigma
        if w.basis == NULL:
            w.path_sigma[j] += share * w.white[j]
        else:
            w.path_sigma[j] += share * dot(w.basis + j * d, w.white, d)
    length = sqrt(dot(w.path_sigma, w.path_sigma, d))
    h = 1.0 if length / sqrt(w.fresh) < (1.4 + 2.0 / (d + 1)) * w.chi else 0.0
    share = h * sqrt(w.c_c * (2.0 - w.c_c) * w.mu_eff)
    for j in range(d):  # 45
        w.path_c[j] = (1.0 - w.c_c) * w.path_c[j] + share * w.move[j]
    learn_shape(w, h)
    return length


def update(
    cnp.ndarray c not None, cnp.ndarray mean not None, cnp.ndarray path_sigma not None,
    cnp.ndarray path_c not None, cnp.ndarray steps not None, cnp.ndarray weights not None,
    cnp.ndarray scale not None, cnp.ndarray axes not None, cnp.ndarray basis not None,
    cnp.ndarray work not None, Py_ssize_t mu, double mu_eff, double c_sigma, double c_c,
    double c_1, double c_mu, double chi, double fresh,
):
    """In place: mean, both paths and C by steps (n, d) = (sample - mean) / scale, the best first.

    Returns the length of path_sigma. ``fresh`` = 1 - (1 - c_sigma)^(2 generation); work (2 d,).
    """
    cdef Update w
    cdef double length
    cdef bint full = cnp.PyArray_SIZE(basis) > 0
    w.d, w.n = cnp.PyArray_SIZE(mean), cnp.PyArray_SIZE(weights)
    w.mu = min(mu, w.n)
    w.mu_eff, w.c_sigma, w.c_c, w.c_1, w.c_mu = mu_eff, c_sigma, c_c, c_1, c_mu
    w.chi, w.fresh = chi, fresh
    w.c = matrix(c, w.d * w.d if full else w.d, True, "c")
    w.mean = matrix(mean, w.d, True, "mean")
    w.path_sigma = matrix(path_sigma, w.d, True, "path_sigma")
    w.path_c = matrix(path_c, w.d, True, "path_c")
    w.steps = matrix(steps, w.n * w.d, False, "steps")
    w.weights = matrix(weights, w.n, False, "weights")
    w.scale = matrix(scale, w.d, False, "scale")
    w.axes = matrix(axes, w.d, False, "axes")
    w.basis = matrix(basis, w.d * w.d, False, "basis") if full else NULL
    w.move = matrix(work, 2 * w.d, True, "work")
    w.white = w.move + w.d
    with nogil:
        length = learn(&w)
    return length


def decompose(
    cnp.ndarray basis not None, cnp.ndarray axes not None, cnp.ndarray c not None,
    cnp.ndarray work not None,
):
    """C = basis diag(axes^2) basis', the eigenvectors as columns; whether QL ended, else nothing
    is written. work (2 d d + 3 d,)."""
    cdef Py_ssize_t d = cnp.PyArray_SIZE(axes), i, j
    cdef double* b = matrix(basis, d * d, True, "basis")
    cdef double* a = matrix(axes, d, True, "axes")
    cdef const double* source = matrix(c, d * d, False, "c")
    cdef double* copy = matrix(work, 2 * d * d + 3 * d, True, "work")
    cdef double* q = copy + d * d
    cdef double* diagonal = q + d * d
    cdef double* side = diagonal + d
    cdef bint good
    with nogil:
        memcpy(copy, source, <size_t> (d * d) * sizeof(double))
        tridiagonal(copy, q, diagonal, side, side + d, d)
        for i in range(d):
            for j in range(d):
                copy[i * d + j] = q[j * d + i]
        good = diagonalised(copy, diagonal, side, d)
        if good:
            for i in range(d):
                a[i] = sqrt(diagonal[i] if diagonal[i] > TINY else TINY)
                for j in range(d):
                    b[j * d + i] = copy[i * d + j]
    return good
