"""Sums of decision trees over rows of codes.

A row goes left at a node where code[feature] <= cut, or where its code is that of NaN and the
node says so; the code of a value is the number of the feature's cuts below it. Nodes are in
preorder, so the left child of a node is the next one. A leaf's cut is above every code and keeps
the row where it is, so sixteen rows walk side by side without a branch. Each row's leaves are
added up in the order of the trees: the result does not depend on threads or level.
"""

from libc.stdint cimport int32_t, uint32_t

from fastopt._kernels.shared cimport numpy as cnp
from fastopt._kernels.shared.arguments cimport data_of
from fastopt._kernels.shared.pool cimport run_polled

cnp.import_array()

cdef enum:
    NAN_LEFT = 0x8000  # in a feature: NaN goes left
    NAN_CODE = 0xFFFF
    ROWS = 16  # rows that walk side by side
    LOOK = 4  # levels between two looks whether all have arrived

cdef struct Forest:
    double* out  # (rows, n_outputs)
    const int32_t* code  # (rows, n_features)
    const int32_t* test  # feature, with NAN_LEFT, + cut << 16
    const int32_t* right  # child, or -1 - (row of value) at a leaf
    const int32_t* root
    const int32_t* column
    const double* value  # (n_values, width)
    Py_ssize_t rows
    Py_ssize_t n_outputs
    Py_ssize_t n_features
    Py_ssize_t trees
    Py_ssize_t width


cdef inline void descend(const Forest* f, int32_t* at, const int32_t* row) noexcept nogil:
    """Every row one level down; a row at a leaf stays."""
    cdef int r
    cdef int32_t test, right, code, left, near
    for r in range(ROWS):
        test = f.test[at[r]]
        right = f.right[at[r]]
        code = f.code[row[r] + (test & (NAN_LEFT - 1))]
        left = (code <= <int32_t> (<uint32_t> test >> 16)) | (
            (code == NAN_CODE) & ((test >> 15) & 1)
        )
        near = at[r] + 1 + (right >> 31)  # a leaf's right is negative
        at[r] = right ^ ((right ^ near) & -left)  # a select without a branch


cdef inline bint arrived(const int32_t* right, const int32_t* at) noexcept nogil:
    cdef int r
    cdef int32_t all_leaves = -1
    for r in range(ROWS):
        all_leaves &= right[at[r]]
    return all_leaves < 0


cdef void add_rows(void* context, Py_ssize_t index, int worker) noexcept nogil:
    """All trees over one block of rows; a block that is cut off walks its last row again."""
    cdef Forest f = (<const Forest*> context)[0]
    cdef Py_ssize_t tree, j, first = index * ROWS, count = min(<Py_ssize_t> ROWS, f.rows - first)
    cdef int32_t at[ROWS]
    cdef int32_t row[ROWS]
    cdef const double* value
    cdef double* out
    cdef int r, _level
    f.code += first * f.n_features
    for r in range(ROWS):
        row[r] = <int32_t> (min(<Py_ssize_t> r, count - 1) * f.n_features)
    for tree in range(f.trees):
        for r in range(ROWS):
            at[r] = f.root[tree]
        while not arrived(f.right, at):
            for _level in range(LOOK):
                descend(&f, at, row)
        for r in range(count):
            value = f.value + f.width * (-1 - f.right[at[r]])
            out = f.out + (first + r) * f.n_outputs + f.column[tree]
            for j in range(f.width):
                out[j] += value[j]


cdef struct Coding:
    int32_t* code
    const double* x
    const int32_t* feature
    const int32_t* start  # of each feature's cuts, and the end of the last
    const double* cut
    Py_ssize_t rows
    Py_ssize_t columns
    Py_ssize_t used


cdef inline int32_t code_of(double x, const double* cut, Py_ssize_t n) noexcept nogil:
    """How many of the n ascending cuts lie below x."""
    cdef Py_ssize_t below = 0, half
    if x != x:
        return NAN_CODE
    while n > 0:  # no branch on the data: the halves are chosen by arithmetic
        half = (n + 1) // 2
        below += half * (cut[below + half - 1] < x)
        n -= half
    return <int32_t> below


cdef void code_rows(void* context, Py_ssize_t index, int worker) noexcept nogil:
    cdef const Coding* c = <const Coding*> context
    cdef Py_ssize_t row, k
    for row in range(index * ROWS, min(c.rows, (index + 1) * ROWS)):
        for k in range(c.used):
            c.code[row * c.used + k] = code_of(
                c.x[row * c.columns + c.feature[k]], c.cut + c.start[k],
                c.start[k + 1] - c.start[k],
            )


def encode(
    cnp.ndarray code not None, cnp.ndarray x not None, cnp.ndarray feature not None,
    cnp.ndarray start not None, cnp.ndarray cut not None, int threads,
):
    """code[r, k] = how many cuts of column feature[k] lie below x[r, feature[k]]; 0xFFFF for NaN.

    code (rows, used) int32, x (rows, columns) float64, feature (used,) and start (used + 1,)
    int32, cut[start[k]:start[k + 1]] float64 ascending, fewer than 0xFFFF. The caller has checked
    that every index is in range.
    """
    cdef Coding c
    c.rows = cnp.PyArray_DIM(x, 0)
    c.columns = cnp.PyArray_DIM(x, 1)
    c.used = cnp.PyArray_SIZE(feature)
    c.code = <int32_t*> data_of(code, cnp.NPY_INT32, c.rows * c.used, True, "code")
    c.x = <const double*> data_of(x, cnp.NPY_FLOAT64, -1, False, "x")
    c.feature = <const int32_t*> data_of(feature, cnp.NPY_INT32, c.used, False, "feature")
    c.start = <const int32_t*> data_of(start, cnp.NPY_INT32, c.used + 1, False, "start")
    c.cut = <const double*> data_of(cut, cnp.NPY_FLOAT64, -1, False, "cut")
    with nogil:
        run_polled(code_rows, &c, (c.rows + ROWS - 1) // ROWS, threads)


def add(
    cnp.ndarray out not None, cnp.ndarray code not None, cnp.ndarray test not None,
    cnp.ndarray right not None, cnp.ndarray root not None, cnp.ndarray column not None,
    cnp.ndarray value not None, int threads,
):
    """out[r, column[t] + j] += value[leaf of row r in tree t, j], for every tree t in order.

    out (rows, n_outputs) and value (n_values, width) float64; int32: code (rows, n_features >= 1),
    test (feature + 0x8000 where NaN goes left + cut << 16) and right of each node, root and column
    of each tree. A leaf's cut is 0xFFFF. The caller has checked that every index is in range.
    """
    cdef Forest f
    f.rows = cnp.PyArray_DIM(out, 0)
    f.n_outputs = cnp.PyArray_DIM(out, 1)
    f.n_features = cnp.PyArray_DIM(code, 1)
    f.trees = cnp.PyArray_SIZE(root)
    f.width = cnp.PyArray_DIM(value, 1)
    f.out = <double*> data_of(out, cnp.NPY_FLOAT64, -1, True, "out")
    f.code = <const int32_t*> data_of(code, cnp.NPY_INT32, f.rows * f.n_features, False, "code")
    f.test = <const int32_t*> data_of(test, cnp.NPY_INT32, -1, False, "test")
    f.right = <const int32_t*> data_of(
        right, cnp.NPY_INT32, cnp.PyArray_SIZE(test), False, "right"
    )
    f.root = <const int32_t*> data_of(root, cnp.NPY_INT32, f.trees, False, "root")
    f.column = <const int32_t*> data_of(column, cnp.NPY_INT32, f.trees, False, "column")
    f.value = <const double*> data_of(value, cnp.NPY_FLOAT64, -1, False, "value")
    with nogil:
        run_polled(add_rows, &f, (f.rows + ROWS - 1) // ROWS, threads)
