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
from libc.math cimport rintf
from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from fastopt._kernels.calibrate.ranges cimport Rule, clip_range, rule_of, scale_of
from fastopt._kernels.shared.arguments cimport data_of
from fastopt._kernels.shared.pool cimport mark, marked, run_polled
from fastopt._kernels.shared.vector cimport BYTES, floats

cnp.import_array()

cdef extern from "calibrate/gptq.h" nogil:
    enum:
        ROWS "FO_ROWS"  # of a tile
        WIDE "FO_COLS"  # columns of a panel
        VECTORS "FO_PER_ROW"  # of the rows of a tile
        BLOCK "FO_COLS * FO_ROWS"
    # t[c][r] += sum over i in [first, last) of panel[i][c] * e[i][r]
    void add_feedback "fo_feedback" (
        float* t, const float* e, const float* panel, Py_ssize_t first, Py_ssize_t last
    ) noexcept

COLS = WIDE


cdef inline void set_targets(
    float* t, const float* w, const float* e, const float* panel, Py_ssize_t first,
    Py_ssize_t last, Py_ssize_t k0, Py_ssize_t k1,
) noexcept nogil:
    """Columns [k0, k1), of one panel: t = w + the feedback of the errors of columns
    [first, last)."""
    cdef float[BLOCK] block
    cdef float* part = block + k0 % WIDE * ROWS
    memset(block, 0, sizeof(block))
    memcpy(part, w + k0 * ROWS, (k1 - k0) * ROWS * sizeof(float))
    add_feedback(block, e, panel, first, last)
    memcpy(t + k0 * ROWS, part, (k1 - k0) * ROWS * sizeof(float))


cdef inline void round_columns(
    int32_t* code, float* e, const float* w, const float* panel, const float* scale,
    const float* zero, const int64_t* order, Py_ssize_t live, Py_ssize_t n, Py_ssize_t size,
    Py_ssize_t k0, Py_ssize_t k1, float qmin, float qmax,
) noexcept nogil:
    """Columns [k0, k1) of a tile from their targets, which e holds on entry and the errors on
    return; code is row-major, column k at order[k], and has ``live`` rows."""
    cdef Py_ssize_t k, i, r, pair
    cdef float[ROWS] q, error, t
    cdef const float* s
    cdef const float* z
    cdef const floats* row
    cdef floats a, b
    cdef float c
    for k in range(k0, k1):
        s = scale + order[k] // size * ROWS
        z = zero + order[k] // size * ROWS
        for pair in range(2 * ROWS // BYTES):
            row = <const floats*> e + 2 * pair
            a = row[k * VECTORS]
            b = row[k * VECTORS + 1]
            for i in range(k0, k):
                a += panel[i * WIDE + k % WIDE] * row[i * VECTORS]
                b += panel[i * WIDE + k % WIDE] * row[i * VECTORS + 1]
            (<floats*> t)[2 * pair] = a
            (<floats*> t)[2 * pair + 1] = b
        for r in range(ROWS):
            c = rintf(t[r] / s[r]) + z[r]
            c = c if c > qmin else qmin
            c = c if c < qmax else qmax
            q[r] = c
            error[r] = w[k * ROWS + r] - s[r] * (c - z[r])
        memcpy(e + k * ROWS, error, sizeof(error))
        for r in range(live):
            code[r * n + order[k]] = <int32_t> q[r]


cdef inline void choose(
    float* scale, float* zero, const float* x, const float* cost, Py_ssize_t n, const Rule* rule
) noexcept nogil:
    """Scale and zero point of a run of n weights or targets."""
    cdef double low = 0, high = 0
    cdef Py_ssize_t k
    for k in range(n):
        low = x[k] if x[k] < low else low
        high = x[k] if x[k] > high else high
    clip_range(&low, &high, x, cost, n, rule)
    scale_of(scale, zero, <float> low, <float> high, rule)


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


cdef inline Py_ssize_t room_of(Py_ssize_t n, Py_ssize_t groups) noexcept nogil:
    """What a tile needs, in floats."""
    return 2 * (n + groups) * ROWS + n


cdef void round_tile(const Work* k, Py_ssize_t top, float* room) noexcept nogil:
    """The rows from ``top`` on. Scales come from the weights if ``early``, else from the targets
    when their group's turn comes."""
    cdef Py_ssize_t live = min(k.rows - top, <Py_ssize_t> ROWS), n = k.n, size = k.size
    cdef Py_ssize_t step = n if k.early else size, g, r, j, k0 = 0, k1, a, b
    cdef float* weight = room
    cdef float* e = weight + n * ROWS
    cdef float* s = e + n * ROWS
    cdef float* z = s + k.groups * ROWS
    cdef float* row = z + k.groups * ROWS
    cdef const float* w = k.w + top * n
    cdef const float* panel
    cdef int turn
    for j in range(n):
        for r in range(ROWS):
            weight[j * ROWS + r] = w[r * n + k.order[j]] if r < live else 0
    for g in range(k.groups):
        for r in range(ROWS):
            s[g * ROWS + r] = 1
            z[g * ROWS + r] = 0
            if k.early and r < live:
                choose(
                    s + g * ROWS + r, z + g * ROWS + r, w + r * n + g * size, k.cost + g * size,
                    min(n - g * size, size), k.rule,
                )
    while k0 < n:
        k1 = min(n, k0 + step)
        for turn in range(2):
            a = k0
            while a < k1:  # as far as a panel goes
                b = min((a // WIDE + 1) * WIDE, k1)
                panel = k.panels + a // WIDE * n * WIDE
                if turn == 0:
                    set_targets(e, weight, e, panel, 0, k0, a, b)
                else:
                    set_targets(e, e, e, panel, k0, a, a, b)
                    round_columns(
                        k.code + top * n, e, weight, panel, s, z, k.order, live, n, size, a, b,
                        k.rule.qmin, k.rule.qmax,
                    )
                a = b
            if k.early or turn == 1:
                continue
            g = k0 // size * ROWS
            for r in range(live):
                for j in range(k0, k1):
                    row[j - k0] = e[j * ROWS + r]
                choose(s + g + r, z + g + r, row, k.cost + k0, k1 - k0, k.rule)
        k0 = k1
    for g in range(k.groups):
        for r in range(live):
            k.scale[(top + r) * k.groups + g] = s[g * ROWS + r]
            k.zero[(top + r) * k.groups + g] = z[g * ROWS + r]


cdef void tile(void* context, Py_ssize_t i, int worker) noexcept nogil:
    cdef Work* k = <Work*> context
    cdef float* room = <float*> malloc(room_of(k.n, k.groups) * sizeof(float))
    if room == NULL:
        mark(&k.failed)
        return
    round_tile(k, i * ROWS, room)
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
            panels, cnp.NPY_FLOAT32, (n + WIDE - 1) // WIDE * n * WIDE, False, "panels"
        ),
        <const int64_t*> data_of(order, cnp.NPY_INT64, n, False, "order"),
        <const float*> data_of(cost, cnp.NPY_FLOAT32, n, False, "cost"),
        rows, n, size, groups, early, &rule, 0,
    )
    for i in range(n):
        if not 0 <= k.order[i] < n or (not early and k.order[i] // size != i // size):
            raise IndexError("order")
    with nogil:
        run_polled(tile, &k, (rows + ROWS - 1) // ROWS, threads)
    if marked(&k.failed):
        raise MemoryError("gptq: no room for a tile")
