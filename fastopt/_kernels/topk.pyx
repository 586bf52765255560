"""The k best rows of a matrix of codes for each query: integer dot products, Hamming distances.

    dot:      score[q, i] = sum_j query[q, j] * code[i, j],  int8 query; code int8 or uint8
    hamming:  score[q, i] = -(bits in which row i and query q differ)

The order is total: the higher score first, of equals the lower row. Scores are exact integers, so
the answer is the same for every level and thread count. A row is read once for all queries of a
block; only the k best are kept, in a heap whose root is the worst of them.
"""

from fastopt._kernels cimport _numpy as cnp
from cpython.exc cimport PyErr_CheckSignals
from cython.parallel cimport prange
from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t

from fastopt._kernels._args cimport data_of

cnp.import_array()

cdef extern from "topk.h":
    int32_t fo_dot_s8s8(int8_t* a, int8_t* b, Py_ssize_t n) noexcept nogil
    int32_t fo_dot_s8u8(int8_t* a, uint8_t* b, Py_ssize_t n) noexcept nogil
    int32_t fo_hamming(uint8_t* a, uint8_t* b, Py_ssize_t n) noexcept nogil

DEF BLOCK = 1024  # rows that stay in L2 while all queries meet them; signals are looked at between

ctypedef enum Kind:
    SIGNED
    UNSIGNED
    BITS


cdef inline bint worse(int32_t score, int64_t row, int32_t than, int64_t other) noexcept nogil:
    return score < than or (score == than and row > other)


cdef void sift(int32_t* score, int64_t* row, Py_ssize_t at, Py_ssize_t k) noexcept nogil:
    """Restore the heap (root worst) below ``at``."""
    cdef Py_ssize_t child
    cdef int32_t s = score[at]
    cdef int64_t r = row[at]
    while True:
        child = 2 * at + 1
        if child >= k:
            break
        if child + 1 < k and worse(score[child + 1], row[child + 1], score[child], row[child]):
            child += 1
        if not worse(score[child], row[child], s, r):
            break
        score[at] = score[child]
        row[at] = row[child]
        at = child
    score[at] = s
    row[at] = r


cdef void search_block(int32_t* score, int64_t* row, uint8_t* query, uint8_t* codes,
                       Py_ssize_t d, Py_ssize_t k, Py_ssize_t first, Py_ssize_t last,
                       Kind kind) noexcept nogil:
    """Rows [first, last) against one query; entries not yet filled have row = 2^62."""
    cdef Py_ssize_t i
    cdef int32_t s
    for i in range(first, last):
        if kind == SIGNED:
            s = fo_dot_s8s8(<int8_t*> query, <int8_t*> codes + i * d, d)
        elif kind == UNSIGNED:
            s = fo_dot_s8u8(<int8_t*> query, codes + i * d, d)
        else:
            s = -fo_hamming(query, codes + i * d, d)
        if worse(score[0], row[0], s, i):
            score[0] = s
            row[0] = i
            sift(score, row, 0, k)


cdef void sort_heap(int32_t* score, int64_t* row, Py_ssize_t k) noexcept nogil:
    """Best first: the worst goes to the end, again and again."""
    cdef Py_ssize_t end
    cdef int32_t s
    cdef int64_t r
    for end in range(k - 1, 0, -1):
        s = score[0]
        r = row[0]
        score[0] = score[end]
        row[0] = row[end]
        score[end] = s
        row[end] = r
        sift(score, row, 0, end)


cdef search(cnp.ndarray score, cnp.ndarray row, cnp.ndarray query, cnp.ndarray codes,
            Py_ssize_t queries, Py_ssize_t n, Py_ssize_t d, Py_ssize_t k, Kind kind,
            int code_type, int query_type, int threads):
    cdef int32_t* s = <int32_t*> data_of(score, cnp.NPY_INT32, queries * k, True, "score")
    cdef int64_t* r = <int64_t*> data_of(row, cnp.NPY_INT64, queries * k, True, "row")
    cdef uint8_t* x = <uint8_t*> data_of(query, query_type, queries * d, False, "query")
    cdef uint8_t* c = <uint8_t*> data_of(codes, code_type, n * d, False, "codes")
    cdef Py_ssize_t q, i, first, last
    if not 0 <= k <= n:
        raise IndexError("k")
    if k == 0:
        return
    for i in range(queries * k):
        s[i] = -2147483648
        r[i] = <int64_t> 1 << 62
    for first in range(0, n, BLOCK):
        last = min(n, first + BLOCK)
        with nogil:
            if threads == 1:
                for q in range(queries):
                    search_block(s + q * k, r + q * k, x + q * d, c, d, k, first, last, kind)
            else:
                for q in prange(queries, num_threads=threads, schedule="dynamic"):
                    search_block(s + q * k, r + q * k, x + q * d, c, d, k, first, last, kind)
        PyErr_CheckSignals()
    with nogil:
        for q in range(queries):
            sort_heap(s + q * k, r + q * k, k)


def dot(cnp.ndarray score not None, cnp.ndarray row not None, cnp.ndarray query not None,
        cnp.ndarray codes not None, Py_ssize_t queries, Py_ssize_t n, Py_ssize_t d, Py_ssize_t k,
        int threads):
    """score (queries, k) int32 and row int64, best first; query int8, codes int8 or uint8."""
    if not 0 <= d <= 65536:
        raise OverflowError("d: more than 65536 products of 8 bits do not fit int32")
    if cnp.PyArray_TYPE(codes) == cnp.NPY_UINT8:
        search(score, row, query, codes, queries, n, d, k, UNSIGNED, cnp.NPY_UINT8, cnp.NPY_INT8,
               threads)
    else:
        search(score, row, query, codes, queries, n, d, k, SIGNED, cnp.NPY_INT8, cnp.NPY_INT8,
               threads)


def hamming(cnp.ndarray score not None, cnp.ndarray row not None, cnp.ndarray query not None,
            cnp.ndarray codes not None, Py_ssize_t queries, Py_ssize_t n, Py_ssize_t d,
            Py_ssize_t k, int threads):
    """score (queries, k) = minus the distance, and row, best first; rows of d packed bytes."""
    search(score, row, query, codes, queries, n, d, k, BITS, cnp.NPY_UINT8, cnp.NPY_UINT8, threads)
