"""One pass over the units of all arrays, shared out to the threads; the norms that need one."""

from cython.parallel cimport prange
from libc.math cimport sqrt
from libc.stdint cimport uint16_t
from libc.string cimport memcpy

from fastopt._kernels.update.factored cimport adafactor_pass, factor_all
from fastopt._kernels.update.rules cimport sum_of_squares
from fastopt._kernels.update.tiles cimport lamb_first, stretch, widen
from fastopt._kernels.update.types cimport *

cdef enum:
    CACHED = 2048  # units, 512 Ki elements: small arrays are still cached at their second pass

cdef enum Pass:
    NORM  # sums of squares of the gradients
    SCALES  # sums of squares of p and of the raw update
    STEP

cdef struct Work:
    Row* rows
    Factors* factors  # one more than rows, where a rule needs them
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
    cdef double own[SCALARS]
    cdef int n_states = r.n_states
    if what == NORM:
        unit_norms(r, at, n, w.sums)
        return
    if r.rule >= LAMB and what == STEP:
        memcpy(own, h, sizeof(own))
        own[TRUST] = r.trust
        h = own
    if r.rule == ADAFACTOR and r.wide == 8:
        adafactor_pass(
            r, <double*> r.p, at, n, h, w.sums if what == SCALES else NULL, w.ema_share,
            w.zero_grads,
        )
    elif r.rule == ADAFACTOR:
        adafactor_pass(
            r, <float*> r.p, at, n, h, w.sums if what == SCALES else NULL, w.ema_share,
            w.zero_grads,
        )
    elif what == SCALES and r.wide == 8:
        lamb_first(r, <const double*> r.p, at, n, h, w.sums)
    elif what == SCALES:
        lamb_first(r, <const float*> r.p, at, n, h, w.sums)
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


cdef inline void run(
    Work* w, Py_ssize_t first, Py_ssize_t last, int what, int threads
) noexcept nogil:
    """The units first..last."""
    cdef Py_ssize_t k, units = last - first
    if threads == 1:
        walk(w, first, last, what)
    else:
        for k in prange(
            (units + CHUNK - 1) // CHUNK, num_threads=threads, schedule="dynamic", chunksize=1
        ):
            walk(w, first + k * CHUNK, min(last, first + (k + 1) * CHUNK), what)


cdef inline double total_of(Work* w, Row* r, int which) noexcept nogil:
    """A row's sums over its units, in order."""
    cdef double total = 0.0
    cdef Py_ssize_t u
    for u in range(r.unit, r.unit + (r.n + UNIT - 1) // UNIT):
        total = total + w.sums[2 * u + which]
    return total


cdef inline void scale_step(Work* w, Row* r) noexcept nogil:
    """What the norms of p and u say: LAMB's |p| / |u|, 1 where either is zero (You et al. 2020,
    algorithm 2); Adafactor's max(eps2, rms p) rho / max(1, rms u / d) (Shazeer and Stern 2018,
    algorithm 4)."""
    cdef double p = sqrt(total_of(w, r, 0)), u = sqrt(total_of(w, r, 1)), n = sqrt(<double> r.n)
    cdef const double* h = w.slots + r.slot * SCALARS
    if r.rule == LAMB:
        r.trust = 1.0 if p == 0 or u == 0 else p / u
    else:  # a norm that is not a number loses, as in torch
        p, u = p / n, u / (n * h[7])
        r.trust = (p if p > h[5] else h[5]) * h[6] / (u if u > 1.0 else 1.0)


cdef inline double norm_of(Work* w, int threads) noexcept nogil:
    """The Euclidean norm of all gradients together."""
    cdef Py_ssize_t i
    cdef double total = 0.0
    run(w, 0, w.units, NORM, threads)
    for i in range(w.n_rows):
        if w.rows[i].g != NULL:
            total = total + total_of(w, &w.rows[i], 0)
    return sqrt(total)


cdef inline void step_all(Work* w, bint scaled, int threads) noexcept nogil:
    """``scaled``: the rules need norms first; arrays of about a cache together make the passes."""
    cdef Py_ssize_t i, first = 0, last, lo, hi
    if not scaled:
        run(w, 0, w.units, STEP, threads)
        return
    while first < w.n_rows:
        lo, last = w.rows[first].unit, first + 1
        while last < w.n_rows and w.rows[last].unit < lo + CACHED:
            last = last + 1
        hi = w.rows[last].unit if last < w.n_rows else w.units
        if w.factors != NULL:
            factor_all(w.factors, w.rows, w.n_rows, w.slots, first, last, threads)
        run(w, lo, hi, SCALES, threads)
        for i in range(first, last):
            if w.rows[i].g != NULL:
                scale_step(w, &w.rows[i])
        run(w, lo, hi, STEP, threads)
        first = last
