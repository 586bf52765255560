"""Codes rounded with feedback: GPTQ.

Each column takes in the errors of the columns before it,
    t[k] = w[k] + sum_{i < k} a[i, k] * e[i],  code[k] = clamp(rint(t[k] / s) + z),
    e[k] = w[k] - s * (code[k] - z)
With H = R R^T, R upper triangular and a[i, k] = R[i, k] / R[k, k], this is GPTQ (Frantar et al.,
2022, arXiv:2210.17323) in the form of LDLQ (Chee et al., 2023, arXiv:2307.13304, theorem 6): the
same codes without inverting H. Rows of the weight are independent; they are the vector lanes. The
scales of a group of columns come from t as of its first column, or from w: the range of the least
error (clip.pyx), weighted by cost, what is left of a column's error once later columns have
compensated for it.
"""

from fastopt._kernels.shared cimport numpy as cnp
from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport free, malloc

from fastopt._kernels.calibrate.ranges cimport Rule, rule_of
from fastopt._kernels.shared.arguments cimport data_of
from fastopt._kernels.shared.pool cimport mark, marked, run_polled

cnp.import_array()

cdef extern from "calibrate/gptq.h":
    enum: FO_ROWS
    enum: FO_COLS
    Py_ssize_t room_of "fo_gptq_room" (Py_ssize_t n, Py_ssize_t groups) noexcept nogil
    void round_tile "fo_gptq_tile" (
        int32_t* code, float* scale, float* zero, const float* w, const float* panels,
        const int64_t* order, const float* cost, Py_ssize_t rows, Py_ssize_t n, Py_ssize_t size,
        bint early, float* room, const Rule* rule,
    ) noexcept nogil

COLS = FO_COLS


cdef struct Work:
    int32_t* code
    float* scale
    float* zero
    const float* w
    const float* panels
    const int64_t* order
    const float* cost
    Py_ssize_t rows
    Py_ssize_t n
    Py_ssize_t size
    Py_ssize_t groups
    bint early
    const Rule* rule
    int failed  # no room for a tile


cdef void tile(void* context, Py_ssize_t i, int worker) noexcept nogil:
    cdef Work* k = <Work*> context
    cdef Py_ssize_t row = i * FO_ROWS
    cdef float* room = <float*> malloc(room_of(k.n, k.groups) * sizeof(float))
    if room == NULL:
        mark(&k.failed)
        return
    round_tile(
        k.code + row * k.n, k.scale + row * k.groups, k.zero + row * k.groups, k.w + row * k.n,
        k.panels, k.order, k.cost, min(k.rows - row, <Py_ssize_t> FO_ROWS), k.n, k.size,
        k.early, room, k.rule,
    )
    free(room)


def feedback(
    cnp.ndarray code not None, cnp.ndarray scale not None, cnp.ndarray zero not None,
    cnp.ndarray w not None, cnp.ndarray panels not None, cnp.ndarray order not None,
    cnp.ndarray cost not None, Py_ssize_t rows, Py_ssize_t n, Py_ssize_t size, bint early,
    cnp.ndarray wide not None, cnp.ndarray near not None, bint symmetric, float steps,
    float middle, float qmin, float qmax, int threads,
):
    """code (rows, n) int32, scale and zero (rows, ceil(n / size)) float32 of w (rows, n) float32.

    Column order[k] is the k-th in turn, of group order[k] // size; cost (n,) float32 is in w's
    order. Scales come from w if ``early``; if not, groups must take their turns one by one.
    panels is a in (ceil(n / 8), n, 8), read above
    the diagonal only; wide, near, symmetric, steps, middle: as for best_range."""
    cdef Py_ssize_t groups, i
    cdef Rule rule = rule_of(wide, near, symmetric, steps, middle, qmin, qmax)
    cdef Work k
    if size < 1:
        raise IndexError("size")
    groups = max(<Py_ssize_t> 1, (n + size - 1) // size)
    k = Work(
        <int32_t*> data_of(code, cnp.NPY_INT32, rows * n, True, "code"),
        <float*> data_of(scale, cnp.NPY_FLOAT32, rows * groups, True, "scale"),
        <float*> data_of(zero, cnp.NPY_FLOAT32, rows * groups, True, "zero"),
        <const float*> data_of(w, cnp.NPY_FLOAT32, rows * n, False, "w"),
        <const float*> data_of(
            panels, cnp.NPY_FLOAT32, (n + FO_COLS - 1) // FO_COLS * n * FO_COLS, False, "panels"
        ),
        <const int64_t*> data_of(order, cnp.NPY_INT64, n, False, "order"),
        <const float*> data_of(cost, cnp.NPY_FLOAT32, n, False, "cost"),
        rows, n, size, groups, early, &rule, 0,
    )
    for i in range(n):
        if not 0 <= k.order[i] < n or (not early and k.order[i] // size != i // size):
            raise IndexError("order")
    with nogil:
        run_polled(tile, &k, (rows + FO_ROWS - 1) // FO_ROWS, threads)
    if marked(&k.failed):
        raise MemoryError("gptq: no room for a tile")
