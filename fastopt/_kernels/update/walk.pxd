"""One pass over the units of all arrays, shared out to the threads; the norms that need one."""

from libc.math cimport sqrt

from fastopt._kernels.shared.pool cimport run as run_chunks
from fastopt._kernels.update.adafactor cimport adafactor_pass, factor_all
from fastopt._kernels.update.arrays cimport *
from fastopt._kernels.update.entry cimport ADAFACTOR_NORMS, LAMB_NORMS, NO_NORMS
from fastopt._kernels.update.steps cimport foresee, gradient, lamb_norms, steps
from fastopt._kernels.update.sums cimport sum_of_squares

cdef enum:
    MOST_UNITS = 64  # that a thread takes at a time: 16 Ki elements, about 10 us of Adam
    LEAST_UNITS = 16
    CACHED = 2048  # units, 512 Ki elements: small arrays are still cached at their second pass

cdef enum Pass:
    GRAD_NORM  # sums of squares of the gradients
    STEP_NORMS  # sums of squares of p and of the raw update
    FORESEE  # whether the step would leave anything that is not finite
    STEP

cdef struct Walk:
    Work* work
    Py_ssize_t first, last, size  # units, and how many a chunk has
    int what


cdef inline void grad_norms(
    const Array* r, const real* p, Py_ssize_t at, Py_ssize_t n, double* sums
) noexcept nogil:
    """Sum of squares of the gradient of each unit of at..at+n; ``p`` only says the precision."""
    cdef real room[UNIT]
    cdef Py_ssize_t end = at + n, m
    while at < end:
        m = min(UNIT, end - at)
        sums[2 * (r.unit + at // UNIT)] = sum_of_squares(gradient(r, room, at, m), m)
        at += m


cdef inline void element_pass(
    Work* w, Array* r, real* p, Py_ssize_t at, Py_ssize_t n, const scalars* s, int what
) noexcept nogil:
    cdef scalars own
    if what == STEP_NORMS:
        if r.rule.norms == LAMB_NORMS:
            lamb_norms(r, p, at, n, s, w.sums)
    elif what == FORESEE:
        foresee(r, p, at, n, s, w.sums)
    else:
        if r.rule.norms == LAMB_NORMS:
            own = s[0]
            own.trust = <real> r.trust
            s = &own
        steps(r, p, at, n, s, w)


cdef inline void visit(
    Work* w, Array* r, real* p, Py_ssize_t at, Py_ssize_t n, int what
) noexcept nogil:
    if what == GRAD_NORM:
        grad_norms(r, p, at, n, w.sums)
    elif r.rule.norms == ADAFACTOR_NORMS:
        if what != FORESEE:
            adafactor_pass(r, p, at, n, r.scalars, w, what == STEP_NORMS)
    elif real is float:
        element_pass(w, r, p, at, n, r.scalars32, what)
    else:
        element_pass(w, r, p, at, n, r.scalars, what)


cdef inline void walk(Work* w, Py_ssize_t lo, Py_ssize_t hi, int what) noexcept nogil:
    """The units lo..hi, which may begin and end inside an array."""
    cdef Py_ssize_t i = 0, above = w.n_arrays, middle, start, stop
    cdef Array* r
    while above - i > 1:  # the last array that begins at or before lo
        middle = (i + above) // 2
        if w.arrays[middle].unit <= lo:
            i = middle
        else:
            above = middle
    while lo < hi:
        r = &w.arrays[i]
        start = (lo - r.unit) * UNIT
        stop = min((hi - r.unit) * UNIT, r.n)
        if r.g != NULL and stop > start:
            if r.item == 8:
                visit(w, r, <double*> r.p, start, stop - start, what)
            else:
                visit(w, r, <float*> r.p, start, stop - start, what)
        lo = r.unit + (r.n + UNIT - 1) // UNIT
        i += 1


cdef inline void walk_chunk(void* context, Py_ssize_t k, int worker) noexcept nogil:
    cdef Walk* a = <Walk*> context
    walk(a.work, a.first + k * a.size, min(a.last, a.first + (k + 1) * a.size), a.what)


cdef inline void go(
    Work* w, Py_ssize_t first, Py_ssize_t last, int what, int threads
) noexcept nogil:
    """The units first..last."""
    cdef Walk a
    a.work, a.first, a.last, a.what = w, first, last, what
    a.size = last - first
    if threads > 1:
        a.size = max(LEAST_UNITS, min(MOST_UNITS, a.size // (16 * threads)))
    if last > first:
        run_chunks(walk_chunk, &a, (last - first + a.size - 1) // a.size, threads)


cdef inline double total_of(const Work* w, const Array* r, int which) noexcept nogil:
    """An array's sums over its units, in order."""
    cdef double total = 0.0
    cdef Py_ssize_t u
    for u in range(r.unit, r.unit + (r.n + UNIT - 1) // UNIT):
        total = total + w.sums[2 * u + which]
    return total


cdef inline void trust_norms(const Work* w, Array* r) noexcept nogil:
    """What the norms of p and u make of the step: LAMB's lr |p| / |u|, lr where either is zero
    (You et al. 2020, algorithm 2); Adafactor's max(eps2, rms p) rho / max(1, rms u / d) (Shazeer
    and Stern 2018, algorithm 4)."""
    cdef double p = sqrt(total_of(w, r, 0)), u = sqrt(total_of(w, r, 1)), n = sqrt(<double> r.n)
    cdef const Scalars64* s = r.scalars
    if r.rule.norms == LAMB_NORMS:
        r.trust = s.lr * (1.0 if p == 0 or u == 0 else p / u)
    else:  # a norm that is not a number loses, as in torch
        p, u = p / n, u / (n * s.d)
        r.trust = (p if p > s.eps2 else s.eps2) * s.lr / (u if u > 1.0 else 1.0)


cdef inline double grad_norm(Work* w, int threads) noexcept nogil:
    """The Euclidean norm of all gradients together."""
    cdef Py_ssize_t i
    cdef double total = 0.0
    go(w, 0, w.units, GRAD_NORM, threads)
    for i in range(w.n_arrays):
        if w.arrays[i].g != NULL:
            total = total + total_of(w, &w.arrays[i], 0)
    return sqrt(total)


cdef inline bint overflows(Work* w, double norm, int threads) noexcept nogil:
    """Whether the step would leave a weight or a state that is not finite. Adafactor's means of
    squares are at most the square of the norm."""
    cdef Py_ssize_t i
    go(w, 0, w.units, FORESEE, threads)
    for i in range(w.n_arrays):
        if w.arrays[i].g == NULL:
            continue
        if w.arrays[i].rule.norms == ADAFACTOR_NORMS:
            if w.arrays[i].item == 4 and norm * norm > 3.4e38:
                return True
        elif total_of(w, &w.arrays[i], 0) > 0:
            return True
    return False


cdef inline void step_all(Work* w, bint scaled, int threads) noexcept nogil:
    """``scaled``: the rules need norms first; arrays of about a cache together make the passes."""
    cdef Py_ssize_t i, first = 0, last, lo, hi
    if not scaled:
        go(w, 0, w.units, STEP, threads)
        return
    while first < w.n_arrays:
        lo, last = w.arrays[first].unit, first + 1
        while last < w.n_arrays and w.arrays[last].unit < lo + CACHED:
            last = last + 1
        hi = w.arrays[last].unit if last < w.n_arrays else w.units
        if w.matrices != NULL:
            factor_all(w, first, last, threads)
        go(w, lo, hi, STEP_NORMS, threads)
        for i in range(first, last):
            if w.arrays[i].g != NULL and w.arrays[i].rule.norms != NO_NORMS:
                trust_norms(w, &w.arrays[i])
        go(w, lo, hi, STEP, threads)
        first = last
