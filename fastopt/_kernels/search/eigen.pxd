"""Eigenvectors of a symmetric matrix: Householder reflections, then implicit QL steps (Golub & Van
Loan, Matrix Computations, 4th ed., sections 8.3.1 and 8.3.3). Every sum is in a fixed order."""

from libc.math cimport fabs, sqrt

cdef enum:
    SWEEPS = 60  # QL steps per eigenvalue; two are usual


cdef inline double dot(const double* a, const double* b, Py_ssize_t n) noexcept nogil:
    """In four lanes, which are added in pairs."""
    cdef double s0 = 0.0, s1 = 0.0, s2 = 0.0, s3 = 0.0
    cdef Py_ssize_t i = 0
    while i + 4 <= n:
        s0 += a[i] * b[i]
        s1 += a[i + 1] * b[i + 1]
        s2 += a[i + 2] * b[i + 2]
        s3 += a[i + 3] * b[i + 3]
        i += 4
    while i < n:
        s0 += a[i] * b[i]
        i += 1
    return (s0 + s2) + (s1 + s3)


cdef inline void add_row(double* y, double share, const double* x, Py_ssize_t n) noexcept nogil:
    """y += share x."""
    cdef Py_ssize_t i
    for i in range(n):
        y[i] += share * x[i]


cdef inline void tridiagonal(
    double* a, double* q, double* diagonal, double* side, double* p, Py_ssize_t d
) noexcept nogil:
    """a = q T q' by Householder reflections; T has ``diagonal`` (d,) and ``side`` (d - 1,)."""
    cdef Py_ssize_t k, i, j, n
    cdef double length, beta, half
    cdef double* v
    for k in range(d - 2):
        n = d - k - 1
        v = a + k * d + k + 1  # the row right of the diagonal becomes the reflection's vector
        length = sqrt(dot(v, v, n))
        diagonal[k] = a[k * d + k]
        if length < 1e-300:
            side[k] = 0.0
            a[k * d + k] = 0.0  # beta
            continue
        side[k] = -length if v[0] > 0 else length
        v[0] -= side[k]
        beta = 2.0 / dot(v, v, n)
        a[k * d + k] = beta
        for j in range(n):
            p[j] = 0.0
        for i in range(n):
            add_row(p, beta * v[i], a + (k + 1 + i) * d + k + 1, n)
        half = 0.5 * beta * dot(v, p, n)
        add_row(p, -half, v, n)
        for i in range(n):
            for j in range(n):
                a[(k + 1 + i) * d + k + 1 + j] -= v[i] * p[j] + p[i] * v[j]
    for k in range(max(<Py_ssize_t> 0, d - 2), d):
        diagonal[k] = a[k * d + k]
    if d > 1:
        side[d - 2] = a[(d - 2) * d + d - 1]
    for i in range(d):
        for j in range(d):
            q[i * d + j] = i == j
    for k in range(d - 3, -1, -1):  # q = H_0 H_1 ...: only the lower right block changes
        n = d - k - 1
        v, beta = a + k * d + k + 1, a[k * d + k]
        for j in range(n):
            p[j] = 0.0
        for i in range(n):
            add_row(p, beta * v[i], q + (k + 1 + i) * d + k + 1, n)
        for i in range(n):
            add_row(q + (k + 1 + i) * d + k + 1, -v[i], p, n)


cdef inline bint diagonalised(
    double* rows, double* diagonal, double* side, Py_ssize_t d
) noexcept nogil:
    """Implicit QL steps with Wilkinson's shift, as rotations of pairs of ``rows``, which become
    the eigenvectors; ``diagonal`` becomes the eigenvalues. ``side`` has room for d."""
    cdef Py_ssize_t first, last, i, j, count
    cdef double shift, g, r, s, c, lost, f, b, upper, size = 0.0
    cdef double eps = 2.220446049250313e-16
    cdef double* x
    cdef double* y
    side[d - 1] = 0.0
    for first in range(d):
        size = max(size, fabs(diagonal[first]) + fabs(side[first]))
    size *= 0.5 * eps  # what the reflections have rounded away in any case
    for first in range(d):
        for count in range(SWEEPS + 1):
            last = first
            while last < d - 1 and (
                fabs(side[last]) > eps * (fabs(diagonal[last]) + fabs(diagonal[last + 1])) + size
            ):
                last += 1
            if last == first:
                break
            if count == SWEEPS:
                return False
            g = (diagonal[first + 1] - diagonal[first]) / (2.0 * side[first])
            r = sqrt(g * g + 1.0)
            shift = diagonal[first] - side[first] / (g + (r if g >= 0 else -r))
            g = diagonal[last] - shift
            s, c, lost = 1.0, 1.0, 0.0
            for i in range(last - 1, first - 1, -1):
                f, b = s * side[i], c * side[i]
                r = sqrt(f * f + g * g)
                side[i + 1] = r
                if r == 0.0:  # the matrix splits here
                    diagonal[i + 1] -= lost
                    side[last] = 0.0
                    break
                s, c = f / r, g / r
                g = diagonal[i + 1] - lost
                upper = (diagonal[i] - g) * s + 2.0 * c * b
                lost = s * upper
                diagonal[i + 1] = g + lost
                g = c * upper - b
                x, y = rows + i * d, rows + (i + 1) * d
                for j in range(d):
                    f = y[j]
                    y[j] = s * x[j] + c * f
                    x[j] = c * x[j] - s * f
            else:
                diagonal[first] -= lost
                side[first] = g
                side[last] = 0.0
    return True
