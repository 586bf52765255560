"""A formula along an array: lines of 16 elements that the compiler turns into vectors.

``each`` is the one loop of all optimiser rules. It loads a line of weights, gradients and state,
hands every element to the formula and stores what it has made of them. The formula is a constant
function pointer and every function here is inlined (CYTHON_INLINE, setup.py), so each rule becomes
a loop of its own; restrict pointers spare it checks for overlap.
"""

from fastopt._kernels.update.narrow_lines cimport code_lines, word_lines
from fastopt._kernels.update.stretch cimport *


cdef inline void same_lines(
    void* formula, int sign0, int sign1, int sign2, bint decays, reals p, reals g, reals a,
    reals b, reals c, Py_ssize_t n, bint far, const scalars* of_step, real zero,
) noexcept nogil:
    """n elements, whole lines, with state in the parameter's own precision."""
    cdef scalars s = of_step[0]  # local, so that no store can change it
    cdef real w, x, s0 = zero, s1 = zero, s2 = zero
    cdef Py_ssize_t i = 0, j
    while i < n:
        if far:
            prefetch(<const char*> (g + i) + AHEAD)
            prefetch_write(<const char*> (p + i) + AHEAD)
            if sign0:
                prefetch_write(<const char*> (a + i) + AHEAD)
            if sign1:
                prefetch_write(<const char*> (b + i) + AHEAD)
            if sign2:
                prefetch_write(<const char*> (c + i) + AHEAD)
        for j in range(LINE):
            w = p[i + j]
            x = s.scale * g[i + j]
            if decays:
                x = x + s.coupled * w
            if sign0:
                s0 = a[i + j]
            if sign1:
                s1 = b[i + j]
            if sign2:
                s2 = c[i + j]
            if scalars is Scalars32 and real is float:
                (<Formula32> formula)(&w, x, &s0, &s1, &s2, &s)
            elif scalars is Scalars64 and real is double:
                (<Formula64> formula)(&w, x, &s0, &s1, &s2, &s)
            p[i + j] = w
            if sign0:
                a[i + j] = s0
            if sign1:
                b[i + j] = s1
            if sign2:
                c[i + j] = s2
        i += LINE


cdef inline void each(
    void* formula, int sign0, int sign1, int sign2, real* p, const Stretch* a, const scalars* s
) noexcept nogil:
    """The formula along a stretch of whole lines (8-bit state: whole units)."""
    if scalars is Scalars32 and real is float:
        if s.coupled != 0:
            each32(formula, sign0, sign1, sign2, True, <f32> p, a, s)
        else:
            each32(formula, sign0, sign1, sign2, False, <f32> p, a, s)
    elif scalars is Scalars64 and real is double:
        if s.coupled != 0:
            each64(formula, sign0, sign1, sign2, True, <f64> p, a, s)
        else:
            each64(formula, sign0, sign1, sign2, False, <f64> p, a, s)


cdef inline void each32(
    void* formula, int sign0, int sign1, int sign2, bint decays, f32 p, const Stretch* a,
    const Scalars32* s,
) noexcept nogil:
    if a.storage == BFLOAT:
        word_lines(formula, sign0, sign1, sign2, decays, p, <f32> a.g, a, s)
    elif a.storage == CODES:
        code_lines(formula, sign0, sign1, sign2, decays, p, <f32> a.g, a, s)
    else:
        same_lines(
            formula, sign0, sign1, sign2, decays, p, <f32> a.g, <f32> a.state[0],
            <f32> a.state[1], <f32> a.state[2], a.n, a.far, s, <float> 0,
        )


cdef inline void each64(
    void* formula, int sign0, int sign1, int sign2, bint decays, f64 p, const Stretch* a,
    const Scalars64* s,
) noexcept nogil:
    same_lines(
        formula, sign0, sign1, sign2, decays, p, <f64> a.g, <f64> a.state[0],
        <f64> a.state[1], <f64> a.state[2], a.n, a.far, s, <double> 0,
    )
