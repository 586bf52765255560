"""The scalars of a step, before it; and the step's count taken back."""

from fastopt._kernels.update.arrays cimport *
from fastopt._kernels.update.entry cimport Options, round_scalars, scalars_of


cdef inline void count_step(Work* w, const Options* options, double scale) noexcept:
    """Count the step and compute its scalars, once for arrays that share them; ``options`` of
    each group, ``scale`` of the gradients."""
    cdef Py_ssize_t i, k = -1
    cdef int group = -1
    cdef long long t = -1
    cdef double product = -1.0
    cdef Array* r
    for i in range(w.n_arrays):
        r = &w.arrays[i]
        if r.g == NULL:
            continue
        r.step += 1
        r.old_product = r.product
        if r.group != group or r.step != t or r.old_product != product:
            group, t, product = r.group, r.step, r.old_product
            k += 1
            w.scalars[k].product = product
            scalars_of(&w.scalars[k], r.rule, &options[group], scale, <double> t)
            round_scalars(&w.scalars32[k], &w.scalars[k])
        r.scalars, r.scalars32 = &w.scalars[k], &w.scalars32[k]
        r.product = r.scalars.product


cdef inline void take_back(Work* w) noexcept:
    """A step that has been counted is not taken."""
    cdef Py_ssize_t i
    for i in range(w.n_arrays):
        if w.arrays[i].g != NULL:
            w.arrays[i].step -= 1
            w.arrays[i].product = w.arrays[i].old_product
