"""The k best rows of a matrix of codes for each query: integer dot products, Hamming distances.

    dot:      score[q, i] = sum_j query[q, j] * code[i, j],  int8 query; code int8, uint8 or 4 bits
    hamming:  score[q, i] = -(bits in which row i and query q differ)

The order is total: the higher score first, of equals the lower row. Scores are exact integers, so
the answer is the same for every level and thread count. A row is read once for all queries; only
the k best are kept, in a heap a query and thread whose root is the worst of them. A tile of scores
is looked at where one of them is above the root of its query. A thread meets the rows in order,
so an equal score always belongs to a later row and loses.
"""

from fastopt._kernels.shared cimport numpy as cnp
from libc.stdint cimport INT32_MAX, INT32_MIN, int32_t, int64_t, uint8_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from fastopt._kernels.shared.arguments cimport data_of
from fastopt._kernels.shared.pool cimport next_of, run_polled

cnp.import_array()

cdef extern from "matmul/topk.h":
    enum:
        FO_SIGNED, FO_UNSIGNED, FO_NIBBLES, FO_BITS
        FO_ELEM, FO_TILE_ROWS, FO_NQ, FO_LINE
    void fo_prepare(int kind, uint8_t* out, Py_ssize_t stride, const uint8_t* codes,
                    Py_ssize_t bytes, Py_ssize_t rows) noexcept nogil
    int32_t fo_prepare_query(int kind, uint8_t* out, const uint8_t* query,
                             Py_ssize_t bytes) noexcept nogil
    int fo_tile_dot(Py_ssize_t words, const uint8_t* row, Py_ssize_t stride, const uint8_t* panel,
                    const int32_t* start, const int32_t* worst, int32_t* sums,
                    const uint8_t* next, int ahead) noexcept nogil
    int fo_tile_bits(Py_ssize_t words, const uint8_t* row, Py_ssize_t stride, const uint8_t* panel,
                     const int32_t* start, const int32_t* worst, int32_t* sums,
                     const uint8_t* next, int ahead) noexcept nogil
    int32_t fo_line(Py_ssize_t bytes, const uint8_t* row, const uint8_t* query) noexcept nogil
    int32_t fo_line_bits(Py_ssize_t bytes, const uint8_t* a, const uint8_t* b) noexcept nogil
    void fo_touch(const uint8_t* next, Py_ssize_t bytes) noexcept nogil

cdef enum:
    L1 = 16384  # bytes of prepared rows that all queries meet
    CHUNK = 16  # such blocks a task
    CACHE = 64  # bytes of a line

cdef struct Worker:
    int32_t* score  # (queries, k), heaps
    int64_t* row
    int32_t* worst  # the roots' scores; INT32_MAX past the last query
    uint8_t* rows
    int32_t* sums

cdef struct Job:
    int kind
    const uint8_t* codes  # rows of `bytes` bytes
    Py_ssize_t bytes, n, k, queries
    Py_ssize_t words, stride  # of a prepared row: words of 4 bytes, bytes
    Py_ssize_t panels, block  # panels of FO_NQ queries (the others are met alone), rows at once
    uint8_t* query
    int32_t* start
    Worker* worker
    Py_ssize_t chunk, next  # rows a task, the next task


cdef inline bint worse(int32_t score, int64_t row, int32_t than, int64_t other) noexcept nogil:
    return score < than or (score == than and row > other)


cdef void sift(int32_t* score, int64_t* row, Py_ssize_t k, int32_t s, int64_t r) noexcept nogil:
    """Put (s, r) in the place of the root and restore the heap (root worst)."""
    cdef Py_ssize_t at = 0, child
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


cdef inline void offer(Job* j, Worker* w, Py_ssize_t q, int32_t s, int64_t i) noexcept nogil:
    if s > w.worst[q]:
        sift(w.score + q * j.k, w.row + q * j.k, j.k, s, i)
        w.worst[q] = w.score[q * j.k]


cdef void scan(Job* j, Worker* w, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """Rows [first, last) against all queries."""
    cdef Py_ssize_t at, m, t, r, p, q, c, tiles
    cdef uint8_t* panel
    cdef const uint8_t* next
    cdef bint bits = j.kind == FO_BITS
    cdef int ahead = <int> (j.bytes * FO_TILE_ROWS // max(j.words, <Py_ssize_t> 1) + 1), hit
    at = first
    while at < last:
        m = min(j.block, last - at)
        next = j.codes + at * j.bytes
        if j.panels > 0 or not bits:
            fo_prepare(j.kind, w.rows, j.stride, next, j.bytes, m)
        tiles = (m + FO_TILE_ROWS - 1) // FO_TILE_ROWS
        for p in range(j.panels * tiles):
            q = p // tiles * FO_NQ
            t = p % tiles * FO_TILE_ROWS
            panel = j.query + q * j.stride
            next = j.codes + (at + j.block + t) * j.bytes
            if bits:
                hit = fo_tile_bits(j.words, w.rows + t * j.stride, j.stride, panel,
                                   j.start + q, w.worst + q, w.sums, next, ahead)
            else:
                hit = fo_tile_dot(j.words, w.rows + t * j.stride, j.stride, panel,
                                  j.start + q, w.worst + q, w.sums, next, ahead)
            if hit:
                for r in range(min(<Py_ssize_t> FO_TILE_ROWS, m - t)):
                    for c in range(FO_NQ):
                        offer(j, w, q + c, w.sums[r * FO_NQ + c], at + t + r)
        for q in range(j.panels * FO_NQ, j.queries):
            panel = j.query + q * j.stride
            next = j.codes + at * j.bytes
            for r in range(m):
                if bits:
                    hit = fo_line_bits(j.bytes, next, panel)
                else:
                    hit = fo_line(j.stride, w.rows + r * j.stride, panel)
                if q == 0:
                    fo_touch(next + j.block * j.bytes, j.bytes)
                offer(j, w, q, j.start[q] + hit, at + r)
                next += j.bytes
        at += j.block


cdef void scan_next(void* context, Py_ssize_t index, int worker) noexcept nogil:
    """The next task in turn, so that every thread meets the rows in order."""
    cdef Job* j = <Job*> context
    cdef Py_ssize_t first = next_of(&j.next) * j.chunk
    scan(j, j.worker + worker, first, min(j.n, first + j.chunk))


cdef void lay_out(Job* j, const uint8_t* query, Py_ssize_t bytes, uint8_t* row) noexcept nogil:
    """Queries of ``bytes`` bytes as panels and lines; ``row`` is room for one."""
    cdef Py_ssize_t q, w
    cdef uint8_t* panel
    for q in range(j.queries):
        if q >= j.panels * FO_NQ and j.kind == FO_BITS:
            j.start[q] = 0
            memcpy(j.query + q * j.stride, query + q * bytes, bytes)
            continue
        if q >= j.panels * FO_NQ:
            j.start[q] = fo_prepare_query(j.kind, j.query + q * j.stride, query + q * bytes, bytes)
            continue
        j.start[q] = fo_prepare_query(j.kind, row, query + q * bytes, bytes)
        panel = j.query + q // FO_NQ * FO_NQ * j.stride + 4 * (q % FO_NQ)
        for w in range(j.words):
            memcpy(panel + 4 * FO_NQ * w, row + 4 * w, 4)


cdef inline Py_ssize_t lines(Py_ssize_t size) noexcept nogil:
    return (size + CACHE - 1) // CACHE * CACHE


cdef void begin(Job* j, Worker* w, Py_ssize_t lanes) noexcept nogil:
    """Heaps of entries that every row is better than."""
    cdef Py_ssize_t i
    for i in range(j.queries * j.k):
        w.score[i] = INT32_MIN
        w.row[i] = <int64_t> 1 << 62
    for i in range(lanes):
        w.worst[i] = INT32_MIN if i < j.queries else INT32_MAX


cdef void finish(Job* j, Worker* w, int workers) noexcept nogil:
    """All heaps into those of the first worker, these sorted best first."""
    cdef Py_ssize_t q, i, end, t
    cdef int32_t* score
    cdef int64_t* row
    cdef int32_t s
    cdef int64_t r
    for q in range(j.queries):
        score = w.score + q * j.k
        row = w.row + q * j.k
        for t in range(1, workers):
            for i in range(q * j.k, (q + 1) * j.k):
                if worse(score[0], row[0], w[t].score[i], w[t].row[i]):
                    sift(score, row, j.k, w[t].score[i], w[t].row[i])
        for end in range(j.k - 1, 0, -1):
            s = score[0]
            r = row[0]
            sift(score, row, end, score[end], row[end])
            score[end] = s
            row[end] = r


def search(cnp.ndarray score not None, cnp.ndarray row not None, cnp.ndarray query not None,
           cnp.ndarray codes not None, Py_ssize_t queries, Py_ssize_t n, Py_ssize_t d,
           Py_ssize_t k, int kind, int threads):
    """score (queries, k) int32 and row (queries, k) int64, best first, for n rows.

    kind 0, 1, 2: query int8 (queries, d); codes (n, d) int8, uint8 or, two to a byte with the
    first in the low half, uint8 (n, (d + 1) / 2). kind 3: query and codes rows of d packed bytes.
    """
    cdef Job j
    cdef Worker* w
    cdef uint8_t* slab
    cdef uint8_t* at
    cdef Py_ssize_t lanes, heap, own, width, c
    cdef int code_type = cnp.NPY_INT8 if kind == FO_SIGNED else cnp.NPY_UINT8
    cdef int query_type = cnp.NPY_UINT8 if kind == FO_BITS else cnp.NPY_INT8
    cdef int32_t* s = <int32_t*> data_of(score, cnp.NPY_INT32, queries * k, True, "score")
    cdef int64_t* r = <int64_t*> data_of(row, cnp.NPY_INT64, queries * k, True, "row")
    cdef uint8_t* x = <uint8_t*> data_of(query, query_type, queries * d, False, "query")
    j.kind, j.n, j.k, j.queries = kind, n, k, queries
    j.bytes = (d + 1) // 2 if kind == FO_NIBBLES else d
    j.codes = <uint8_t*> data_of(codes, code_type, n * j.bytes, False, "codes")
    if not 0 <= k <= n:
        raise IndexError("k")
    if kind != FO_BITS and d > 65536:
        raise OverflowError("d: more than 65536 products of 8 bits do not fit int32")
    if k == 0 or queries == 0:
        return
    width = 2 * d if kind == FO_BITS else FO_ELEM * d
    j.words = (width + 3) // 4
    j.stride = (width + FO_LINE - 1) // FO_LINE * FO_LINE
    # a panel costs as much as a quarter of its queries one by one
    j.panels = (queries + FO_NQ - 1 - FO_NQ // 4) // FO_NQ
    j.block = max(<Py_ssize_t> FO_TILE_ROWS,
                  min(<Py_ssize_t> 256, L1 // max(j.stride, <Py_ssize_t> CACHE))
                  // FO_TILE_ROWS * FO_TILE_ROWS)
    lanes = max(queries, j.panels * FO_NQ)
    heap = lines(queries * k * sizeof(int64_t)) + lines(queries * k * sizeof(int32_t))
    own = (lines(lanes * sizeof(int32_t)) + lines(j.block * j.stride)
           + FO_TILE_ROWS * FO_NQ * sizeof(int32_t))
    slab = <uint8_t*> calloc(1, CACHE + threads * (lines(sizeof(Worker)) + own)
                             + (threads - 1) * heap + lines((lanes + 1) * j.stride)
                             + lanes * sizeof(int32_t))
    if slab == NULL:
        raise MemoryError
    at = slab + (CACHE - <Py_ssize_t> slab % CACHE)
    w = <Worker*> at
    at += threads * lines(sizeof(Worker))
    for c in range(threads):
        w[c].worst = <int32_t*> at
        w[c].rows = at + lines(lanes * sizeof(int32_t))
        w[c].sums = <int32_t*> (w[c].rows + lines(j.block * j.stride))
        at += own
        w[c].score, w[c].row = s, r
        if c > 0:
            w[c].row = <int64_t*> at
            w[c].score = <int32_t*> (at + lines(queries * k * sizeof(int64_t)))
            at += heap
        begin(&j, w + c, lanes)
    j.query = at
    j.start = <int32_t*> (at + lines((lanes + 1) * j.stride))
    lay_out(&j, x, d, at + lanes * j.stride)
    j.worker, j.chunk, j.next = w, CHUNK * j.block, 0
    try:
        with nogil:
            run_polled(scan_next, &j, (n + j.chunk - 1) // j.chunk, threads)
            finish(&j, w, threads)
    finally:
        free(slab)
