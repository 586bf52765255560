"""What data chooses: the best part of a range, codes rounded with feedback, weights that leave.

Range: the first part p of [low, high] with the least weighted squared error,
    error(p) = sum_i weight_i (x_i - s (q_i - z))^2,  q_i = clamp(rint(x_i / s) + z, qmin, qmax)
with the scale s and the zero point z of the range p [low, high]. An affine range is then shrunk at
its high end alone and at its low end alone. 1 / s is rounded once and multiplied by: this
searches, it does not quantise, so a tie that falls the other way is of no account. The weight of a
column is the second moment of what it meets (the diagonal of the Gram), of a bin its count.

Feedback: each column takes in the errors of the columns before it,
    t[k] = w[k] + sum_{i < k} a[i, k] * e[i],  code[k] = clamp(rint(t[k] / s) + z),
    e[k] = w[k] - s * (code[k] - z)
With H = R R^T, R upper triangular and a[i, k] = R[i, k] / R[k, k], this is GPTQ (Frantar et al.,
2022, arXiv:2210.17323) in the form of LDLQ (Chee et al., 2023, arXiv:2307.13304, theorem 6): the
same codes without inverting H. Rows of the weight are independent; they are the vector lanes. The
scales of a group of columns come from t as of its first column, or from w: the range of the least
error, weighed by cost, what is left of a column's error once later columns have made up for it.

Elimination: Optimal Brain Surgeon, one weight at a time, for every output of a layer on its own.
For each row w with the same H = S^-1: the weight of least w_i^2 / H_ii leaves, w -= H_:i w_i / H_ii
and H -= H_:i H_i: / H_ii (Hassibi and Stork, 1993; row by row as in Frantar and Alistarh, "Optimal
Brain Compression", 2022). n^3 / 6 multiply-adds a row, float64.
"""

from fastopt._kernels.shared cimport numpy as cnp
from cpython.exc cimport PyErr_CheckSignals
from cython.parallel cimport prange
from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from fastopt._kernels.shared.arguments cimport data_of
from fastopt._kernels.shared.openmp cimport thread_index

cnp.import_array()

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

cdef extern from "calibrate/gptq.h":
    enum: FO_ROWS
    enum: FO_COLS
    Py_ssize_t room_of "fo_gptq_room" (Py_ssize_t n, Py_ssize_t groups) noexcept nogil
    void round_tile "fo_gptq_tile" (
        int32_t* code, float* scale, float* zero, const float* w, const float* panels,
        const int64_t* order, const float* cost, Py_ssize_t rows, Py_ssize_t n, Py_ssize_t size,
        bint early, float* room, const Rule* rule,
    ) noexcept nogil

cdef extern from "calibrate/eliminate.h":
    void fo_eliminate(
        int64_t*, double*, double*, double*, double*, int64_t*, Py_ssize_t
    ) noexcept nogil

cdef enum:
    STEP = 1 << 26  # evaluations between two looks at the signals: about 50 ms
cdef double SLICE = 1e9  # multiply-adds between two: about 50 ms

COLS = FO_COLS


cdef Rule rule_of(
    cnp.ndarray wide, cnp.ndarray near, bint symmetric, float steps, float zero, float qmin,
    float qmax,
) except *:
    """The rule that tries these parts (float64) of a range."""
    return Rule(
        <const double*> data_of(wide, cnp.NPY_FLOAT64, -1, False, "wide"),
        <const double*> data_of(near, cnp.NPY_FLOAT64, -1, False, "near"),
        cnp.PyArray_SIZE(wide), cnp.PyArray_SIZE(near), symmetric, steps, zero, qmin, qmax,
    )


cdef inline const float* at(const float* weight, Py_ssize_t row, Py_ssize_t n) noexcept nogil:
    if weight == NULL:
        return NULL
    return weight + row * n


def best_range(
    cnp.ndarray low not None, cnp.ndarray high not None, cnp.ndarray x not None,
    cnp.ndarray weight, Py_ssize_t rows, Py_ssize_t n, Py_ssize_t weight_rows,
    cnp.ndarray wide not None, cnp.ndarray near not None, bint symmetric, float steps, float zero,
    float qmin, float qmax, int threads,
):
    """low, high (rows,) float64: the full ranges, overwritten with the best; x (rows, n) float32;
    weight is None (ones) or (weight_rows, n) float32, row r using weight row r % weight_rows;
    wide, near float64: the parts tried of both ends, of one."""
    cdef Py_ssize_t r, first, last, step, shared = 1
    cdef double* lo = <double*> data_of(low, cnp.NPY_FLOAT64, rows, True, "low")
    cdef double* hi = <double*> data_of(high, cnp.NPY_FLOAT64, rows, True, "high")
    cdef const float* v = <const float*> data_of(x, cnp.NPY_FLOAT32, rows * n, False, "x")
    cdef const float* w = NULL
    cdef Rule rule = rule_of(wide, near, symmetric, steps, zero, qmin, qmax)
    if weight is not None:
        shared = weight_rows
        w = <const float*> data_of(weight, cnp.NPY_FLOAT32, shared * n, False, "weight")
    step = max(<Py_ssize_t> 1, STEP // max(<Py_ssize_t> 1, n * (rule.n_wide + 2 * rule.n_near)))
    for first in range(0, rows, step):
        last = min(rows, first + step)
        with nogil:
            if threads == 1:
                for r in range(first, last):
                    clip_range(lo + r, hi + r, v + r * n, at(w, r % shared, n), n, &rule)
            else:
                for r in prange(
                    first, last, num_threads=threads, schedule="dynamic", chunksize=4
                ):
                    clip_range(lo + r, hi + r, v + r * n, at(w, r % shared, n), n, &rule)
        PyErr_CheckSignals()


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


cdef bint tile(Py_ssize_t i, const Work* k, const Rule* rule) noexcept nogil:
    """Tile i; False where its room cannot be had."""
    cdef Py_ssize_t row = i * FO_ROWS
    cdef float* room = <float*> malloc(room_of(k.n, k.groups) * sizeof(float))
    if room == NULL:
        return False
    round_tile(
        k.code + row * k.n, k.scale + row * k.groups, k.zero + row * k.groups, k.w + row * k.n,
        k.panels, k.order, k.cost, min(k.rows - row, <Py_ssize_t> FO_ROWS), k.n, k.size,
        k.early, room, rule,
    )
    free(room)
    return True


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
    cdef Py_ssize_t groups, i, first, last, step, tiles
    cdef Rule rule = rule_of(wide, near, symmetric, steps, middle, qmin, qmax)
    cdef bint done = True
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
        rows, n, size, groups, early,
    )
    for i in range(n):
        if not 0 <= k.order[i] < n or (not early and k.order[i] // size != i // size):
            raise IndexError("order")
    tiles = (rows + FO_ROWS - 1) // FO_ROWS
    step = <Py_ssize_t> max(1.0, SLICE / (<double> (n + 1) * (n + 99) * FO_ROWS))
    for first in range(0, tiles, step):
        last = min(tiles, first + step)
        with nogil:
            if threads == 1:
                for i in range(first, last):
                    done &= tile(i, &k, &rule)
            else:
                for i in prange(first, last, num_threads=threads, schedule="dynamic"):
                    done &= tile(i, &k, &rule)
        if not done:
            raise MemoryError("gptq: no room for a tile")
        PyErr_CheckSignals()


cdef void _row(
    int64_t* order, double* loss, const double* hinv, const double* weight, Py_ssize_t n,
    double* work,
) noexcept nogil:
    """One row with its own copies of H and w; work holds n^2 + 3 n doubles."""
    memcpy(work, hinv, n * n * sizeof(double))
    memcpy(work + n * n, weight, n * sizeof(double))
    fo_eliminate(
        order, loss, work, work + n * n, work + n * n + n, <int64_t*> (work + n * n + 2 * n), n
    )


cdef bint _rows_block(
    int64_t* order, double* loss, const double* hinv, const double* weight, Py_ssize_t rows,
    Py_ssize_t n, int threads,
) noexcept nogil:
    """False when the work space cannot be had."""
    cdef Py_ssize_t r, room = n * n + 3 * n
    cdef double* work = <double*> malloc(threads * room * sizeof(double))
    if work == NULL:
        return False
    if threads == 1:
        for r in range(rows):
            _row(order + r * n, loss + r * n, hinv, weight + r * n, n, work)
    else:
        for r in prange(rows, num_threads=threads, schedule="dynamic", chunksize=1):
            _row(
                order + r * n, loss + r * n, hinv, weight + r * n, n,
                work + thread_index() * room,
            )
    free(work)
    return True


def eliminate(
    cnp.ndarray order not None, cnp.ndarray loss not None, cnp.ndarray hinv not None,
    cnp.ndarray weight not None, int threads,
):
    """order[r, t] = the index that leaves row r of weight at step t, loss[r, t] = its cost.

    order (rows, n) int64; loss, weight (rows, n) float64; hinv (n, n) float64, symmetric,
    positive definite.
    """
    cdef Py_ssize_t size = cnp.PyArray_SIZE(weight), n = cnp.PyArray_DIM(hinv, 0)
    cdef double* ph = <double*> data_of(hinv, cnp.NPY_FLOAT64, n * n, False, "hinv")
    cdef double* pw = <double*> data_of(weight, cnp.NPY_FLOAT64, size, False, "weight")
    cdef double* pl = <double*> data_of(loss, cnp.NPY_FLOAT64, size, True, "loss")
    cdef int64_t* po = <int64_t*> data_of(order, cnp.NPY_INT64, size, True, "order")
    cdef bint done = True
    threads = max(threads, 1)
    if size and size % n == 0:
        with nogil:
            done = _rows_block(po, pl, ph, pw, size // n, n, threads)
    if not done:
        raise MemoryError(f"eliminate: no room for {threads} work spaces of {8 * n * n} bytes")
