"""One pass over the units of all arrays, shared out to the threads; the norms that need one."""

from cython.parallel cimport prange
from libc.math cimport sqrt
from libc.stdint cimport uint16_t

from fastopt._kernels.update_rules cimport sum_of_squares
from fastopt._kernels.update_tiles cimport lamb_first, lamb_second, stretch, widen
from fastopt._kernels.update_types cimport *

cdef enum Pass:
    NORM  # sums of squares of the gradients
    LAMB_MOMENTS  # LAMB's first pass; the other rules wait
    STEP

cdef struct Work:
    Row* rows
    double* slots
    double* sums  # two for each unit
    Py_ssize_t n_rows, units
    double ema_share
    bint zero_grads


cdef inline void unit_norms(Row* r, Py_ssize_t at, Py_ssize_t n, double* sums) noexcept nogil:
    """Sum of squares of the gradient of each unit of at..at+n."""
    cdef float wide[UNIT]
    cdef Py_ssize_t end = at + n, m
    while at < end:
        m = min(UNIT, end - at)
        if r.grad_kind != SAME:
            widen(wide, <const uint16_t*> r.g + at, m, r.grad_kind)
            sums[2 * (r.unit + at // UNIT)] = sum_of_squares(<const float*> wide, m)
        elif r.wide == 8:
            sums[2 * (r.unit + at // UNIT)] = sum_of_squares(<const double*> r.g + at, m)
        else:
            sums[2 * (r.unit + at // UNIT)] = sum_of_squares(<const float*> r.g + at, m)
        at += m


cdef inline void piece(Work* w, Row* r, Py_ssize_t at, Py_ssize_t n, int what) noexcept nogil:
    cdef const double* h = w.slots + r.slot * SCALARS
    cdef int n_states = r.n_states
    if what == NORM:
        unit_norms(r, at, n, w.sums)
    elif what == LAMB_MOMENTS:
        if r.rule == LAMB and r.wide == 8:
            lamb_first(r, <const double*> r.p, at, n, h, w.sums)
        elif r.rule == LAMB:
            lamb_first(r, <const float*> r.p, at, n, h, w.sums)
    elif r.rule == LAMB and r.wide == 8:
        lamb_second(r, <double*> r.p, at, n, h, w.ema_share, w.zero_grads)
    elif r.rule == LAMB:
        lamb_second(r, <float*> r.p, at, n, h, w.ema_share, w.zero_grads)
    elif r.wide == 8:
        stretch(r, <double*> r.p, n_states, at, n, h, w.ema_share, w.zero_grads)
    else:
        stretch(r, <float*> r.p, n_states, at, n, h, w.ema_share, w.zero_grads)


cdef inline void walk(Work* w, Py_ssize_t lo, Py_ssize_t hi, int what) noexcept nogil:
    """The units lo..hi, which may begin and end inside an array."""
    cdef Py_ssize_t i = 0, above = w.n_rows, middle, start, stop
    cdef Row* r
    while above - i > 1:  # the last row that begins at or before lo
        middle = (i + above) // 2
        if w.rows[middle].unit <= lo:
            i = middle
        else:
            above = middle
    while lo < hi:
        r = &w.rows[i]
        start = (lo - r.unit) * UNIT
        stop = min((hi - r.unit) * UNIT, r.n)
        if r.g != NULL and stop > start:
            piece(w, r, start, stop - start, what)
        lo = r.unit + (r.n + UNIT - 1) // UNIT
        i += 1


cdef inline void run(Work* w, int what, int threads) noexcept nogil:
    cdef Py_ssize_t k, units = w.units
    if threads == 1:
        walk(w, 0, units, what)
    else:
        for k in prange(
            (units + CHUNK - 1) // CHUNK, num_threads=threads, schedule="dynamic", chunksize=1
        ):
            walk(w, k * CHUNK, min(units, (k + 1) * CHUNK), what)


cdef inline double total_of(Work* w, Row* r, int which) noexcept nogil:
    """A row's sums over its units, in order."""
    cdef double total = 0.0
    cdef Py_ssize_t u
    for u in range(r.unit, r.unit + (r.n + UNIT - 1) // UNIT):
        total = total + w.sums[2 * u + which]
    return total


cdef inline void trust_ratios(Work* w) noexcept nogil:
    """LAMB: |p| / |u| of each array, 1 where either is zero (You et al. 2020, algorithm 2)."""
    cdef Py_ssize_t i
    cdef double p, u
    for i in range(w.n_rows):
        if w.rows[i].rule == LAMB and w.rows[i].g != NULL:
            p, u = sqrt(total_of(w, &w.rows[i], 0)), sqrt(total_of(w, &w.rows[i], 1))
            w.rows[i].trust = 1.0 if p == 0 or u == 0 else p / u


cdef inline double norm_of(Work* w, int threads) noexcept nogil:
    """The Euclidean norm of all gradients together."""
    cdef Py_ssize_t i
    cdef double total = 0.0
    run(w, NORM, threads)
    for i in range(w.n_rows):
        if w.rows[i].g != NULL:
            total = total + total_of(w, &w.rows[i], 0)
    return sqrt(total)


cdef inline void step_all(Work* w, bint lamb, int threads) noexcept nogil:
    if lamb:
        run(w, LAMB_MOMENTS, threads)
        trust_ratios(w)
    run(w, STEP, threads)
