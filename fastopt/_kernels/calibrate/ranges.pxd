"""The search for the best part of a range, as clip.pyx and gptq.pyx both use it."""

from fastopt._kernels.shared cimport numpy as cnp

from fastopt._kernels.shared.arguments cimport data_of

cdef extern from "calibrate/clip.h":
    ctypedef struct Rule "fo_clip_rule":
        const double* wide
        const double* near_
        Py_ssize_t n_wide
        Py_ssize_t n_near
        bint symmetric
        float steps
        float zero
        float qmin
        float qmax
    void clip_range "fo_clip_range" (
        double* low, double* high, const float* x, const float* weight, Py_ssize_t n,
        const Rule* rule,
    ) noexcept nogil


cdef inline Rule rule_of(
    cnp.ndarray wide, cnp.ndarray near, bint symmetric, float steps, float zero, float qmin,
    float qmax,
) except *:
    """The rule that tries these parts (float64) of a range."""
    return Rule(
        <const double*> data_of(wide, cnp.NPY_FLOAT64, -1, False, "wide"),
        <const double*> data_of(near, cnp.NPY_FLOAT64, -1, False, "near"),
        cnp.PyArray_SIZE(wide), cnp.PyArray_SIZE(near), symmetric, steps, zero, qmin, qmax,
    )
