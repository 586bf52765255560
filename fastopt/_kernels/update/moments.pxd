"""What Adam's rules and LAMB's norms share: the two moments, and LAMB's direction."""

from fastopt._kernels.update.entry cimport *


cdef inline void moments(real* m, real* v, real x, const scalars* s) noexcept nogil:
    """The square is taken last: (1 - beta2) x^2 is finite for x up to 5.8e20."""
    m[0] = m[0] + s.take1 * (x - m[0])
    v[0] = s.beta2 * v[0] + (s.take2 * x) * x


cdef inline real lamb_direction(real w, real m, real v, const scalars* s) noexcept nogil:
    return (m * s.correction) / (root(v) * s.root_scale + s.eps) + s.decay * w
