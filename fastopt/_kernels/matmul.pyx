"""Exact products of 8-bit integer matrices: C = (A - za) (B - zb), int32 sums.

With row sums and column sums of the codes, C[m, n] = S - za[m] colsum[n] - zb[n] (rowsum[m] - K za[m]),
S = sum_k A[m, k] B[k, n], so the inner loop never sees a zero point (Jacob et al., CVPR 2018,
eq. 7). All of it is arithmetic modulo 2^32: exact wherever the true result fits in int32, which is
always so for K <= 33,025 (255 * 255 * K < 2^31).

B is cut into panels of NR columns, packed once (``pack``) or on the fly; A into panels of up to MR
rows, packed in every call. A task is a chunk of rows (which stays in the L2 cache) times a few
panels; for each slice of K (which stays in L1) all row panels of the chunk are multiplied.
"""

from cpython.exc cimport PyErr_CheckSignals
from cython.parallel cimport prange
from libc.stdint cimport int32_t, uint8_t, uintptr_t
from libc.stdlib cimport free, malloc

cimport numpy as cnp
from fastopt._kernels._args cimport data_of
from fastopt._kernels._openmp cimport thread_index

cnp.import_array()


cdef extern from "pack_int8.h" nogil:
    const int FO_MR, FO_NR, FO_LANES, FO_KC
    const int FO_WIDE_A8  # this level multiplies 8-bit A as int16
    void fo_u8s8(int mr, int nv, Py_ssize_t steps, const uint8_t* a, const uint8_t* b, int32_t* c,
                 int first)
    void fo_s16(int mr, int nv, Py_ssize_t steps, const uint8_t* a, const uint8_t* b, int32_t* c,
                int first)
    void fo_s16s8(int mr, int nv, Py_ssize_t steps, const uint8_t* a, const uint8_t* b, int32_t* c,
                  int first)
    void fo_widen(Py_ssize_t steps, int nv, const uint8_t* b, uint8_t* out)
    int32_t fo_pack_row(int mr, int r, Py_ssize_t k, Py_ssize_t kp, int wide, uint8_t flip,
                        const uint8_t* x, uint8_t* out)
    void fo_pack_kn(Py_ssize_t s0, Py_ssize_t s1, int cols, int width, Py_ssize_t k,
                    Py_ssize_t stride, uint8_t flip, const uint8_t* b, uint8_t* out)
    void fo_pack_nk(Py_ssize_t s0, Py_ssize_t s1, int cols, int width, Py_ssize_t k,
                    Py_ssize_t stride, uint8_t flip, const uint8_t* b, uint8_t* out)
    void fo_column_sums(Py_ssize_t steps, int nv, const uint8_t* b, int32_t* sums, int first)


cdef extern from "epilogue_int8.h" nogil:
    void fo_finish_i32(Py_ssize_t cols, const int32_t* c, int32_t za, int32_t ra,
                       const int32_t* colsum, const int32_t* zb, int32_t* out)
    void fo_finish_q8(Py_ssize_t cols, const int32_t* c, int32_t za, int32_t ra,
                      const int32_t* colsum, const int32_t* zb, const double* scale, double zy,
                      double low, double high, uint8_t* out)


cdef enum:
    PACKED = 0  # how B lies: by pack()
    ROWS_K = 1  # (K, N)
    ROWS_N = 2  # (N, K)
    TO_I32 = 0  # what becomes of the sums
    TO_Q8 = 1

cdef double BATCH = 2e9  # multiply-adds between two looks at Ctrl-C


ctypedef struct Job:
    Py_ssize_t m, n, k, kp  # kp: k rounded up to 8
    Py_ssize_t row_panels, col_panels, panels_a_chunk, panels_a_task, col_tasks
    int wide, layout, sums_wanted
    uint8_t flip_a, flip_b
    const uint8_t* a
    const uint8_t* b
    uint8_t* packed_a
    int32_t* ra
    const int32_t* za
    const int32_t* zb
    const int32_t* colsum
    int mode
    int32_t* out32
    uint8_t* out8
    const double* scale
    Py_ssize_t scale_stride
    double zy, low, high
    uint8_t* scratch
    Py_ssize_t scratch_bytes  # a thread


cdef inline Py_ssize_t first_row(const Job* j, Py_ssize_t panel) noexcept nogil:
    """Row panels differ by at most one row: first row of ``panel`` (m for the one past the end)."""
    cdef Py_ssize_t base = j.m // j.row_panels
    return panel * base + min(panel, j.m - base * j.row_panels)


cdef void pack_panel(const Job* j, Py_ssize_t panel) noexcept nogil:
    """One row panel of A, and rowsum - K za of its rows."""
    cdef Py_ssize_t row0 = first_row(j, panel), row, mr = first_row(j, panel + 1) - row0
    cdef uint8_t* out = j.packed_a + row0 * j.kp * (2 if j.wide else 1)
    for row in range(row0, row0 + mr):
        j.ra[row] = fo_pack_row(<int> mr, <int> (row - row0), j.k, j.kp, j.wide, j.flip_a,
                                j.a + row * j.k, out)
        j.ra[row] -= <int32_t> j.k * j.za[row]


cdef void finish(const Job* j, Py_ssize_t row, Py_ssize_t n0, Py_ssize_t cols, const int32_t* c,
                 const int32_t* colsum) noexcept nogil:
    cdef Py_ssize_t at = row * j.n + n0
    if j.mode == TO_I32:
        fo_finish_i32(cols, c, j.za[row], j.ra[row], colsum, j.zb + n0, j.out32 + at)
    else:
        fo_finish_q8(cols, c, j.za[row], j.ra[row], colsum, j.zb + n0,
                     j.scale + row * j.scale_stride + n0, j.zy, j.low, j.high, j.out8 + at)


cdef void run_task(const Job* j, Py_ssize_t task, int thread) noexcept nogil:
    """A chunk of row panels times a few column panels."""
    cdef Py_ssize_t p0 = task // j.col_tasks * j.panels_a_chunk
    cdef Py_ssize_t p1 = min(p0 + j.panels_a_chunk, j.row_panels)
    cdef Py_ssize_t q0 = task % j.col_tasks * j.panels_a_task
    cdef Py_ssize_t q1 = min(q0 + j.panels_a_task, j.col_panels)
    cdef Py_ssize_t top = first_row(j, p0), bottom = first_row(j, p1)
    cdef Py_ssize_t n0, s0, s1, quads = j.kp // 4, cols, p, q, row, row0
    cdef int width, nv, mr, size = 2 if j.wide else 1
    cdef const uint8_t* slice_b
    cdef const uint8_t* panel_a
    cdef uint8_t* packed = j.scratch + thread * j.scratch_bytes
    cdef uint8_t* widened = packed + FO_KC * FO_NR
    cdef int32_t* sums = <int32_t*> (widened + 2 * FO_KC * FO_NR)
    cdef int32_t* c = sums + FO_NR
    for q in range(q0, q1):
        n0 = q * FO_NR
        cols = min(j.n - n0, <Py_ssize_t> FO_NR)
        nv = <int> ((cols + FO_LANES - 1) // FO_LANES)
        width = nv * FO_LANES
        s0 = 0
        while True:  # once with no steps when k = 0
            s1 = min(s0 + FO_KC // 4, quads)
            if j.layout == PACKED:
                slice_b = j.b + n0 * j.kp + s0 * 4 * width
            else:
                if j.layout == ROWS_K:
                    fo_pack_kn(s0, s1, <int> cols, width, j.k, j.n, j.flip_b, j.b + n0, packed)
                else:
                    fo_pack_nk(s0, s1, <int> cols, width, j.k, j.k, j.flip_b, j.b + n0 * j.k,
                               packed)
                slice_b = packed
                if j.sums_wanted:
                    fo_column_sums(s1 - s0, nv, packed, sums, s0 == 0)
            if j.wide and p1 - p0 > 1:
                fo_widen(s1 - s0, nv, slice_b, widened)
                slice_b = widened
            for p in range(p0, p1):
                row0 = first_row(j, p)
                mr = <int> (first_row(j, p + 1) - row0)
                panel_a = j.packed_a + (row0 * j.kp + s0 * 4 * mr) * size
                if not j.wide:
                    fo_u8s8(mr, nv, s1 - s0, panel_a, slice_b, c + (row0 - top) * FO_NR, s0 == 0)
                elif p1 - p0 > 1:
                    fo_s16(mr, nv, s1 - s0, panel_a, slice_b, c + (row0 - top) * FO_NR, s0 == 0)
                else:
                    fo_s16s8(mr, nv, s1 - s0, panel_a, slice_b, c, s0 == 0)
            s0 = s1
            if s0 >= quads:
                break
        for row in range(top, bottom):
            finish(j, row, n0, cols, c + (row - top) * FO_NR,
                   j.colsum + n0 if j.layout == PACKED else sums)


cdef int run(Job* j, int threads) except -1:
    """Cut the job into tasks, pack A, run the tasks; looks at Ctrl-C between batches."""
    cdef Py_ssize_t i, start, stop, tasks, rows, batch, chunks
    cdef Py_ssize_t a_bytes = (j.m * j.kp * (2 if j.wide else 1) + 63) // 64 * 64
    cdef Py_ssize_t depth = max(<Py_ssize_t> 1, j.kp)
    cdef void* memory
    j.row_panels = (j.m + FO_MR - 1) // FO_MR
    j.col_panels = (j.n + FO_NR - 1) // FO_NR
    # A's chunk: at most half a MiB (L2) and 256 rows (its sums: 48 KiB); all of A while B is packed
    # on the fly, so that this happens once.
    rows = max(4, min(256, (1 << 19) // (depth * (2 if j.wide else 1))) // FO_MR)
    chunks = 1 if j.layout != PACKED else (j.row_panels + rows - 1) // rows
    j.panels_a_chunk = (j.row_panels + chunks - 1) // chunks
    chunks = (j.row_panels + j.panels_a_chunk - 1) // j.panels_a_chunk
    # A task: at least 256 Ki multiply-adds, but at least four tasks a thread where possible.
    rows = min(j.m, j.panels_a_chunk * FO_MR)
    j.panels_a_task = max(1, min((1 << 18) // (rows * FO_NR * depth),
                                 j.col_panels * chunks // (4 * threads)))
    j.col_tasks = (j.col_panels + j.panels_a_task - 1) // j.panels_a_task
    tasks = chunks * j.col_tasks
    batch = max(threads, <Py_ssize_t> (BATCH / (<double> rows * FO_NR * depth * j.panels_a_task)))
    j.scratch_bytes = 3 * FO_KC * FO_NR + (rows + 1) * FO_NR * 4 + 64
    j.scratch_bytes = j.scratch_bytes // 64 * 64
    memory = malloc(64 + a_bytes + threads * j.scratch_bytes + j.m * 4)
    if memory == NULL:
        raise MemoryError("matmul: no memory for the packed operands")
    j.packed_a = <uint8_t*> ((<uintptr_t> memory + 63) // 64 * 64)
    j.scratch = j.packed_a + a_bytes
    j.ra = <int32_t*> (j.scratch + threads * j.scratch_bytes)
    try:
        with nogil:
            if threads == 1 or j.m * j.k < 1 << 16:
                for i in range(j.row_panels):
                    pack_panel(j, i)
            else:
                for i in prange(j.row_panels, num_threads=threads, schedule="dynamic"):
                    pack_panel(j, i)
        start = 0
        while start < tasks:
            stop = min(start + batch, tasks)
            with nogil:
                if threads == 1:
                    for i in range(start, stop):
                        run_task(j, i, 0)
                else:
                    for i in prange(start, stop, num_threads=threads, schedule="dynamic"):
                        run_task(j, i, thread_index())
            PyErr_CheckSignals()
            start = stop
    finally:
        free(memory)
    return 0


def packed_size(Py_ssize_t n, Py_ssize_t k):
    """Bytes that ``pack`` writes for a (k, n) matrix."""
    return (n + FO_LANES - 1) // FO_LANES * FO_LANES * ((k + 7) // 8 * 8)


cdef void pack_columns(Job* j, uint8_t* out, int32_t* colsum, Py_ssize_t q) noexcept nogil:
    cdef int32_t sums[128]
    cdef Py_ssize_t n0 = q * FO_NR, quads = j.kp // 4, i
    cdef Py_ssize_t cols = min(j.n - n0, <Py_ssize_t> FO_NR)
    cdef int nv = <int> ((cols + FO_LANES - 1) // FO_LANES), width = nv * FO_LANES
    out = out + n0 * j.kp
    if j.layout == ROWS_K:
        fo_pack_kn(0, quads, <int> cols, width, j.k, j.n, j.flip_b, j.b + n0, out)
    else:
        fo_pack_nk(0, quads, <int> cols, width, j.k, j.k, j.flip_b, j.b + n0 * j.k, out)
    fo_column_sums(quads, nv, out, sums, 1)
    for i in range(cols):
        colsum[n0 + i] = sums[i]


cdef const uint8_t* codes_of(cnp.ndarray a, Py_ssize_t size, str name, bint* is_signed) except NULL:
    """Data of an int8 or uint8 array."""
    is_signed[0] = cnp.PyArray_TYPE(a) == cnp.NPY_INT8
    return <const uint8_t*> data_of(
        a, cnp.NPY_INT8 if is_signed[0] else cnp.NPY_UINT8, size, False, name
    )


def pack(cnp.ndarray packed not None, cnp.ndarray colsum not None, cnp.ndarray b not None,
         Py_ssize_t n, Py_ssize_t k, bint transposed, int threads):
    """B as panels of int8 quads (unsigned codes moved by -128), and the sums of its columns.

    packed : (packed_size(n, k),) uint8, best aligned to 64; colsum : (n,) int32; b : (k, n) int8 or
    uint8, or (n, k) if ``transposed``.
    """
    cdef Job j
    cdef bint is_signed
    cdef uint8_t* to = <uint8_t*> data_of(packed, cnp.NPY_UINT8, packed_size(n, k), True, "packed")
    cdef int32_t* sums = <int32_t*> data_of(colsum, cnp.NPY_INT32, n, True, "colsum")
    cdef Py_ssize_t q, panels = (n + FO_NR - 1) // FO_NR
    j.b = codes_of(b, n * k, "b", &is_signed)
    j.flip_b = 0 if is_signed else 0x80
    j.layout = ROWS_N if transposed else ROWS_K
    j.n = n
    j.k = k
    j.kp = (k + 7) // 8 * 8
    with nogil:
        if threads == 1:
            for q in range(panels):
                pack_columns(&j, to, sums, q)
        else:
            for q in prange(panels, num_threads=threads, schedule="dynamic"):
                pack_columns(&j, to, sums, q)


cdef int operands(Job* j, cnp.ndarray a, cnp.ndarray b, int layout, cnp.ndarray colsum,
                  cnp.ndarray za, cnp.ndarray zb, Py_ssize_t m, Py_ssize_t n,
                  Py_ssize_t k) except -1:
    """Fill the inputs of a job. za, zb: zero points of the codes as packed (moved by 128)."""
    cdef bint is_signed
    cdef Py_ssize_t i
    j.m, j.n, j.k, j.kp = m, n, k, (k + 7) // 8 * 8
    j.layout = layout
    j.wide = FO_WIDE_A8
    j.a = codes_of(a, m * k, "a", &is_signed)
    j.flip_a = 0x80 if is_signed else 0
    j.flip_b = 0
    if layout == PACKED:
        j.b = <const uint8_t*> data_of(b, cnp.NPY_UINT8, packed_size(n, k), False, "b")
        j.colsum = <const int32_t*> data_of(colsum, cnp.NPY_INT32, n, False, "colsum")
    else:
        j.b = codes_of(b, n * k, "b", &is_signed)
        j.flip_b = 0 if is_signed else 0x80
    j.za = <const int32_t*> data_of(za, cnp.NPY_INT32, m, False, "za")
    j.zb = <const int32_t*> data_of(zb, cnp.NPY_INT32, n, False, "zb")
    j.sums_wanted = 1
    return 0


def multiply_i32(cnp.ndarray out not None, cnp.ndarray a not None, cnp.ndarray b not None,
                 int layout, cnp.ndarray colsum, cnp.ndarray za not None,
                 cnp.ndarray zb not None, Py_ssize_t m, Py_ssize_t n, Py_ssize_t k, int threads):
    """out[m, n] = sum_k (a[m, k] - za[m]) (b[k, n] - zb[n]) modulo 2^32.

    out : (m, n) int32; a : (m, k) int8 or uint8; b : packed (layout 0, with its colsum), (k, n)
    (layout 1) or (n, k) (layout 2) int8 or uint8; za : (m,) int32, + 128 where a is int8;
    zb : (n,) int32, - 128 where b is uint8.
    """
    cdef Job j
    j.out32 = <int32_t*> data_of(out, cnp.NPY_INT32, m * n, True, "out")
    j.mode = TO_I32
    operands(&j, a, b, layout, colsum, za, zb, m, n, k)
    if m and n:
        run(&j, threads)


def multiply_q8(cnp.ndarray out not None, cnp.ndarray a not None, cnp.ndarray b not None,
                int layout, cnp.ndarray colsum, cnp.ndarray za not None,
                cnp.ndarray zb not None, cnp.ndarray scale not None, int zero_point,
                Py_ssize_t m, Py_ssize_t n, Py_ssize_t k, int threads):
    """out = saturate(round_half_even(C scale) + zero_point), C as in ``multiply_i32``.

    out : (m, n) int8 or uint8; scale : (n,) or (m, n) float64.
    """
    cdef Job j
    cdef bint is_signed = cnp.PyArray_TYPE(out) == cnp.NPY_INT8
    j.out8 = <uint8_t*> data_of(out, cnp.NPY_INT8 if is_signed else cnp.NPY_UINT8, m * n, True,
                                "out")
    j.mode = TO_Q8
    j.zy = zero_point
    j.low, j.high = (-128.0, 127.0) if is_signed else (0.0, 255.0)
    j.scale_stride = 0 if cnp.PyArray_SIZE(scale) == n else n
    j.scale = <const double*> data_of(scale, cnp.NPY_FLOAT64, m * n if j.scale_stride else n,
                                      False, "scale")
    operands(&j, a, b, layout, colsum, za, zb, m, n, k)
    if m and n:
        run(&j, threads)
