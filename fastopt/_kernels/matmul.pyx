"""Exact products of integer matrices: C = (A - za) (B - zb), sums in int32, and what follows them.

With row sums and column sums of the codes, C[m, n] = S - za[m] colsum[n] - zb[n] (rowsum[m] - K za[m]),
S = sum_k A[m, k] B[k, n], so the inner loop never sees a zero point (Jacob et al., CVPR 2018,
eq. 7). All of it is arithmetic modulo 2^32: exact wherever the true result fits in int32, which for
8-bit codes is always so up to K = 33,025 (255 * 255 * K < 2^31).

B is cut into panels of NR columns, packed once (``pack``) or on the fly; A into panels of up to MR
rows, packed in every call. A task is a chunk of rows (which stays in the L2 cache) times a few
panels; for each slice of K (which stays in L1) all row panels of the chunk are multiplied.
In ``linear`` K is cut into groups, each with its own scales: the exact sum of a group is turned into
float32, scaled and added, groups in ascending order; the same operations in the same order on
every level and thread.
"""

from cpython.exc cimport PyErr_CheckSignals
from cython.parallel cimport prange
from libc.stdint cimport int16_t, int32_t, uint8_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc

cimport numpy as cnp
from fastopt._kernels._args cimport data_of
from fastopt._kernels._openmp cimport thread_index

cnp.import_array()


cdef extern from "dot_int8.h" nogil:
    const int FO_MR, FO_NR, FO_LANES, FO_KC
    const int FO_WIDE_A8  # this level multiplies 8-bit A as int16
    ctypedef void (*Tile "fo_tile_fn")(int mr, int nv, Py_ssize_t steps, const uint8_t* a,
                                       const uint8_t* b, int32_t* c, int first) noexcept nogil
    void fo_u8s8(int, int, Py_ssize_t, const uint8_t*, const uint8_t*, int32_t*, int) noexcept
    void fo_u8s4(int, int, Py_ssize_t, const uint8_t*, const uint8_t*, int32_t*, int) noexcept
    void fo_s16(int, int, Py_ssize_t, const uint8_t*, const uint8_t*, int32_t*, int) noexcept
    void fo_s16s8(int, int, Py_ssize_t, const uint8_t*, const uint8_t*, int32_t*, int) noexcept
    void fo_s16s4(int, int, Py_ssize_t, const uint8_t*, const uint8_t*, int32_t*, int) noexcept
    void fo_widen(Py_ssize_t steps, int nv, const uint8_t* b, uint8_t* out)

cdef extern from "pack_int8.h" nogil:
    void fo_pack_row(int mr, int r, Py_ssize_t k, Py_ssize_t kp, int wide, uint8_t flip,
                     const uint8_t* x, uint8_t* out)
    void fo_pack_row16(int mr, int r, Py_ssize_t k, Py_ssize_t kp, const int16_t* x, uint8_t* out)
    int32_t fo_row_sum(Py_ssize_t k, uint8_t flip, const uint8_t* x)
    void fo_pack_kn(Py_ssize_t s0, Py_ssize_t s1, int cols, int width, Py_ssize_t k,
                    Py_ssize_t stride, uint8_t flip, const uint8_t* b, uint8_t* out)
    void fo_pack_nk(Py_ssize_t s0, Py_ssize_t s1, int cols, int width, Py_ssize_t k,
                    Py_ssize_t stride, uint8_t flip, const uint8_t* b, uint8_t* out)
    void fo_unpack_nk(Py_ssize_t s0, Py_ssize_t s1, int cols, int width, Py_ssize_t k,
                      Py_ssize_t stride, const uint8_t* b, uint8_t* out)
    void fo_pack_nibbles(Py_ssize_t steps, int width, const uint8_t* b, uint8_t* out)
    void fo_unpack_nibbles(Py_ssize_t steps, int nv, const uint8_t* b, uint8_t* out)
    void fo_column_sums(Py_ssize_t steps, int nv, const uint8_t* b, int32_t* sums, int first)

cdef extern from "epilogue_int8.h" nogil:
    void fo_finish_i32(Py_ssize_t cols, const int32_t* c, int32_t za, int32_t ra,
                       const int32_t* colsum, const int32_t* zb, int32_t* out)
    void fo_finish_q8(Py_ssize_t cols, const int32_t* c, int32_t za, int32_t ra,
                      const int32_t* colsum, const int32_t* zb, const double* scale, double zy,
                      double low, double high, uint8_t* out)
    void fo_group(Py_ssize_t cols, const int32_t* c, int32_t za, int32_t ra, const int32_t* colsum,
                  const int32_t* zb, const int32_t* pairs, Py_ssize_t at, const float* scale,
                  int first, float* acc)
    void fo_finish_f32(Py_ssize_t cols, const float* acc, float scale, const float* bias,
                       int activation, float* out)

cdef extern from "activations_int8.h" nogil:
    int fo_quantize_row(Py_ssize_t k, const float* x, int wide_codes, void* codes, float* scale,
                        int32_t* zero)
    void fo_sums_u8(Py_ssize_t k, Py_ssize_t group, const uint8_t* x, int32_t za, int32_t* out)
    void fo_sums_s16(Py_ssize_t k, Py_ssize_t group, const int16_t* x, int32_t* out)


cdef enum:
    PACKED = 0  # how B lies: by pack()
    ROWS_K = 1  # (K, N)
    ROWS_N = 2  # (N, K)
    TO_I32 = 0  # what becomes of the sums
    TO_Q8 = 1
    TO_F32 = 2

cdef double BATCH = 2e9  # multiply-adds between two looks at Ctrl-C


ctypedef struct Job:
    Py_ssize_t m, n, k, kp  # kp: k rounded up to 8
    Py_ssize_t row_panels, col_panels, panels_a_chunk, panels_a_task, col_tasks
    Py_ssize_t group  # k of a group, a multiple of 8; kp (or 8 if there is no k) where there is one
    Py_ssize_t groups
    int wide  # A is packed as int16
    int bits  # of B: 8 or 4
    int layout
    uint8_t flip_a, flip_b
    const uint8_t* a  # 8-bit codes, or
    const float* x  # floats that are quantised row by row
    int bits_a
    const uint8_t* b
    uint8_t* packed_a
    int32_t* za  # (m,)
    int32_t* ra  # (m, groups): rowsum - k za
    float* sa  # (m,) scale of a row
    const int32_t* zb  # (groups, n)
    const int32_t* colsum  # (groups, n)
    const int32_t* pairs  # (groups, n): colsum and zb as int16, or NULL
    int mode
    int32_t* out32
    uint8_t* out8
    float* out
    const double* scale
    Py_ssize_t scale_stride
    double zy, low, high
    const float* sb  # (groups, n)
    const float* bias
    int activation
    uint8_t* scratch
    Py_ssize_t scratch_bytes, scratch_rows  # a thread


cdef inline Py_ssize_t first_row(const Job* j, Py_ssize_t panel) noexcept nogil:
    """Row panels differ by at most one row: first row of ``panel`` (m for the one past the end)."""
    cdef Py_ssize_t base = j.m // j.row_panels
    return panel * base + min(panel, j.m - base * j.row_panels)


cdef int pack_panel(const Job* j, Py_ssize_t panel, uint8_t* codes) noexcept nogil:
    """One row panel of A and its row sums; 1 if a row of floats is not finite."""
    cdef Py_ssize_t row0 = first_row(j, panel), row
    cdef int r, mr = <int> (first_row(j, panel + 1) - row0)
    cdef uint8_t* out = j.packed_a + row0 * j.kp * (2 if j.wide else 1)
    for r in range(mr):
        row = row0 + r
        if j.x == NULL:
            fo_pack_row(mr, r, j.k, j.kp, j.wide, j.flip_a, j.a + row * j.k, out)
            j.ra[row] = fo_row_sum(j.k, j.flip_a, j.a + row * j.k) - <int32_t> j.k * j.za[row]
            continue
        if not fo_quantize_row(j.k, j.x + row * j.k, j.bits_a == 16, codes, &j.sa[row], &j.za[row]):
            return 1
        if j.bits_a == 16:
            fo_pack_row16(mr, r, j.k, j.kp, <int16_t*> codes, out)
            fo_sums_s16(j.k, j.group, <int16_t*> codes, j.ra + row * j.groups)
        else:
            fo_pack_row(mr, r, j.k, j.kp, j.wide, 0, codes, out)
            fo_sums_u8(j.k, j.group, codes, j.za[row], j.ra + row * j.groups)
    return 0


cdef void finish(const Job* j, Py_ssize_t row, Py_ssize_t n0, Py_ssize_t cols, int32_t* c,
                 float* acc, const int32_t* colsum) noexcept nogil:
    """A row of sums to its place in the result."""
    cdef Py_ssize_t at = row * j.n + n0
    if j.mode == TO_I32:
        fo_finish_i32(cols, c, j.za[row], j.ra[row], colsum, j.zb + n0, j.out32 + at)
    elif j.mode == TO_Q8:
        fo_finish_q8(cols, c, j.za[row], j.ra[row], colsum, j.zb + n0,
                     j.scale + row * j.scale_stride + n0, j.zy, j.low, j.high, j.out8 + at)
    else:
        fo_finish_f32(cols, acc, j.sa[row], j.bias + n0, j.activation, j.out + at)


cdef const uint8_t* slice_of_b(const Job* j, Py_ssize_t n0, Py_ssize_t cols, int nv, Py_ssize_t s0,
                               Py_ssize_t s1, int few, Tile* tile, int* bits, uint8_t* packed,
                               uint8_t* widened, int32_t* sums) noexcept nogil:
    """Quads s0..s1 of a column panel in the form that the tile reads, which is chosen here.
    few: there is one row panel, so unpacking inside the tile is cheaper than before it."""
    cdef int width = nv * FO_LANES
    cdef const uint8_t* b = packed
    bits[0] = 8
    if j.layout == ROWS_K:
        fo_pack_kn(s0, s1, <int> cols, width, j.k, j.n, j.flip_b, j.b + n0, packed)
    elif j.layout == ROWS_N:
        fo_pack_nk(s0, s1, <int> cols, width, j.k, j.k, j.flip_b, j.b + n0 * j.k, packed)
    else:
        b = j.b + (n0 * j.kp + s0 * 4 * width) * j.bits // 8
        bits[0] = j.bits
    if j.layout != PACKED:
        fo_column_sums(s1 - s0, nv, packed, sums, s0 == 0)
    if bits[0] == 4 and few:
        tile[0] = fo_s16s4 if j.wide else fo_u8s4
        return b
    if bits[0] == 4:
        fo_unpack_nibbles(s1 - s0, nv, b, packed)
        b = packed
        bits[0] = 8
    tile[0] = fo_s16s8 if j.wide else fo_u8s8
    if j.wide and not few:
        fo_widen(s1 - s0, nv, b, widened)
        b = widened
        bits[0] = 16
        tile[0] = fo_s16
    return b


cdef void run_task(const Job* j, Py_ssize_t task, int thread) noexcept nogil:
    """A chunk of row panels times a few column panels."""
    cdef Py_ssize_t p0 = task // j.col_tasks * j.panels_a_chunk
    cdef Py_ssize_t p1 = min(p0 + j.panels_a_chunk, j.row_panels)
    cdef Py_ssize_t q0 = task % j.col_tasks * j.panels_a_task
    cdef Py_ssize_t q1 = min(q0 + j.panels_a_task, j.col_panels)
    cdef Py_ssize_t top = first_row(j, p0), bottom = first_row(j, p1)
    cdef Py_ssize_t n0, s0, s1, t, t1, g, cols, p, q, row, row0, at
    cdef Py_ssize_t quads = j.kp // 4, group = j.group // 4
    cdef int nv, mr, r, bits, size = 2 if j.wide else 1
    cdef Tile tile
    cdef const uint8_t* b
    cdef const uint8_t* a
    cdef uint8_t* packed = j.scratch + thread * j.scratch_bytes
    cdef uint8_t* widened = packed + FO_KC * FO_NR
    cdef int32_t* sums = <int32_t*> (widened + 2 * FO_KC * FO_NR)
    cdef int32_t* c = sums + FO_NR
    cdef float* acc = <float*> (c + j.scratch_rows * FO_NR)
    for q in range(q0, q1):
        n0 = q * FO_NR
        cols = min(j.n - n0, <Py_ssize_t> FO_NR)
        nv = <int> ((cols + FO_LANES - 1) // FO_LANES)
        s0 = 0
        while True:  # once with no steps when k = 0
            s1 = min(s0 + FO_KC // 4, quads)
            b = slice_of_b(j, n0, cols, nv, s0, s1, p1 - p0 == 1, &tile, &bits, packed, widened,
                           sums)
            for p in range(p0, p1):
                row0 = first_row(j, p)
                mr = <int> (first_row(j, p + 1) - row0)
                a = j.packed_a + row0 * j.kp * size
                at = (row0 - top) * FO_NR
                t = s0
                while True:  # the groups that meet this slice
                    g = t // group
                    t1 = min((g + 1) * group, s1)
                    tile(mr, nv, t1 - t, a + t * 4 * mr * size,
                         b + (t - s0) * nv * FO_LANES * bits // 2, c + at, t == g * group)
                    if j.mode == TO_F32 and (t1 == (g + 1) * group or t1 == quads):
                        for r in range(mr):
                            fo_group(cols, c + at + r * FO_NR, j.za[row0 + r],
                                     j.ra[(row0 + r) * j.groups + g], j.colsum + g * j.n + n0,
                                     j.zb + g * j.n + n0,
                                     j.pairs, g * j.n + n0,
                                     j.sb + g * j.n + n0, g == 0, acc + at + r * FO_NR)
                    t = t1
                    if t >= s1:
                        break
            s0 = s1
            if s0 >= quads:
                break
        for row in range(top, bottom):
            finish(j, row, n0, cols, c + (row - top) * FO_NR, acc + (row - top) * FO_NR,
                   j.colsum + n0 if j.layout == PACKED else sums)


cdef int run(Job* j, int threads) except -1:
    """Cut the job into tasks, pack A, run the tasks; looks at Ctrl-C between batches. Returns 1,
    with nothing written, if a row of floats is not finite."""
    cdef Py_ssize_t i, start, stop, tasks, batch, chunks
    cdef Py_ssize_t depth = max(<Py_ssize_t> 8, j.kp), size = 2 if j.wide else 1
    cdef Py_ssize_t a_bytes = (j.m * j.kp * size + 63) // 64 * 64
    cdef double task_work
    cdef int bad = 0
    cdef uint8_t* memory
    j.row_panels = (j.m + FO_MR - 1) // FO_MR
    j.col_panels = (j.n + FO_NR - 1) // FO_NR
    # A's chunk: at most half a MiB (L2) and 256 rows (their sums: 48 KiB); all of A while B is
    # packed on the fly, so that this happens once.
    chunks = max(<Py_ssize_t> 4, min(<Py_ssize_t> 256, (1 << 19) // (depth * size)) // FO_MR)
    chunks = 1 if j.layout != PACKED else (j.row_panels + chunks - 1) // chunks
    j.panels_a_chunk = (j.row_panels + chunks - 1) // chunks
    chunks = (j.row_panels + j.panels_a_chunk - 1) // j.panels_a_chunk
    j.scratch_rows = min(j.m, j.panels_a_chunk * FO_MR)
    # A task: at least 256 Ki multiply-adds, but at least four tasks a thread where possible.
    j.panels_a_task = max(<Py_ssize_t> 1, min((1 << 18) // (j.scratch_rows * FO_NR * depth),
                                              j.col_panels * chunks // (4 * threads)))
    j.col_tasks = (j.col_panels + j.panels_a_task - 1) // j.panels_a_task
    tasks = chunks * j.col_tasks
    task_work = <double> j.scratch_rows * FO_NR * depth * j.panels_a_task
    batch = max(<Py_ssize_t> threads, <Py_ssize_t> (BATCH / task_work))
    # A thread's scratch: a slice of B packed and widened, sums, floats, a row of codes.
    j.scratch_bytes = 3 * FO_KC * FO_NR + (2 * j.scratch_rows + 1) * FO_NR * 4
    j.scratch_bytes = (max(j.scratch_bytes, 2 * j.kp) + 63) // 64 * 64
    memory = <uint8_t*> malloc(64 + a_bytes + threads * j.scratch_bytes
                               + j.m * 4 * (j.groups + 2))
    if memory == NULL:
        raise MemoryError("matmul: no memory for the packed operands")
    j.packed_a = <uint8_t*> ((<uintptr_t> memory + 63) // 64 * 64)
    j.scratch = j.packed_a + a_bytes
    j.ra = <int32_t*> (j.scratch + threads * j.scratch_bytes)
    if j.x != NULL:
        j.za = j.ra + j.m * j.groups
        j.sa = <float*> (j.za + j.m)
    try:
        with nogil:
            if threads == 1 or j.m * j.k < 1 << 16:
                for i in range(j.row_panels):
                    bad |= pack_panel(j, i, j.scratch)
            else:
                for i in prange(j.row_panels, num_threads=threads, schedule="dynamic"):
                    bad |= pack_panel(j, i, j.scratch + thread_index() * j.scratch_bytes)
        start = tasks if bad else 0
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
    return bad


def packed_size(Py_ssize_t n, Py_ssize_t k, int bits=8):
    """Bytes that ``pack`` writes for a (k, n) matrix of 8- or 4-bit codes."""
    return (n + FO_LANES - 1) // FO_LANES * FO_LANES * ((k + 7) // 8 * 8) * bits // 8


cdef void pack_columns(Job* j, uint8_t* out, int32_t* colsum, uint8_t* scratch,
                       Py_ssize_t q) noexcept nogil:
    """A column panel, a group at a time."""
    cdef int32_t sums[128]
    cdef Py_ssize_t n0 = q * FO_NR, quads = j.kp // 4, g, s0, s1, i
    cdef Py_ssize_t cols = min(j.n - n0, <Py_ssize_t> FO_NR)
    cdef int nv = <int> ((cols + FO_LANES - 1) // FO_LANES), width = nv * FO_LANES
    cdef uint8_t* to
    out = out + n0 * j.kp * j.bits // 8
    for g in range(j.groups):
        s0, s1 = g * j.group // 4, min((g + 1) * j.group // 4, quads)
        to = out + s0 * 4 * width if j.bits == 8 else scratch
        if j.layout == ROWS_K:
            fo_pack_kn(s0, s1, <int> cols, width, j.k, j.n, j.flip_b, j.b + n0, to)
        else:
            fo_pack_nk(s0, s1, <int> cols, width, j.k, j.k, j.flip_b, j.b + n0 * j.k, to)
        fo_column_sums(s1 - s0, nv, to, sums, 1)
        for i in range(cols):
            colsum[g * j.n + n0 + i] = sums[i]
        if j.bits == 4:
            fo_pack_nibbles(s1 - s0, width, scratch, out + s0 * 2 * width)


cdef void cut(Job* j, Py_ssize_t m, Py_ssize_t n, Py_ssize_t k, Py_ssize_t group) noexcept:
    """Sizes of a job; group 0: one group."""
    j.m, j.n, j.k, j.kp = m, n, k, (k + 7) // 8 * 8
    j.group = group if 0 < group < j.kp else max(j.kp, <Py_ssize_t> 8)
    j.groups = max(<Py_ssize_t> 1, (j.kp + j.group - 1) // j.group)
    j.bits = 8


cdef const uint8_t* codes_of(cnp.ndarray a, Py_ssize_t size, str name, bint* is_signed) except NULL:
    """Data of an int8 or uint8 array."""
    is_signed[0] = cnp.PyArray_TYPE(a) == cnp.NPY_INT8
    return <const uint8_t*> data_of(
        a, cnp.NPY_INT8 if is_signed[0] else cnp.NPY_UINT8, size, False, name
    )


def pack(cnp.ndarray packed not None, cnp.ndarray colsum not None, cnp.ndarray b not None,
         Py_ssize_t n, Py_ssize_t k, Py_ssize_t group, int bits, bint transposed, int threads):
    """B as panels of quads (unsigned codes moved by -128), and the sums of its columns by group.

    packed : (packed_size(n, k, bits),) uint8, best aligned to 64; colsum : (groups, n) int32;
    b : (k, n) int8 or uint8, or (n, k) if ``transposed``; for 4 bits codes in -8..7;
    group : a multiple of 8, or 0 for one group.
    """
    cdef Job j
    cdef bint is_signed
    cdef Py_ssize_t q, panels = (n + FO_NR - 1) // FO_NR, size
    cut(&j, 0, n, k, group)
    j.bits = bits
    cdef uint8_t* to = <uint8_t*> data_of(packed, cnp.NPY_UINT8, packed_size(n, k, bits), True,
                                          "packed")
    cdef int32_t* sums = <int32_t*> data_of(colsum, cnp.NPY_INT32, j.groups * n, True, "colsum")
    cdef uint8_t* scratch = NULL
    j.b = codes_of(b, n * k, "b", &is_signed)
    j.flip_b = 0 if is_signed else 0x80
    j.layout = ROWS_N if transposed else ROWS_K
    size = j.group * FO_NR
    if bits == 4:
        scratch = <uint8_t*> malloc(threads * size)
        if scratch == NULL:
            raise MemoryError("matmul: no memory to pack")
    with nogil:
        if threads == 1:
            for q in range(panels):
                pack_columns(&j, to, sums, scratch, q)
        else:
            for q in prange(panels, num_threads=threads, schedule="dynamic"):
                pack_columns(&j, to, sums, scratch + thread_index() * size, q)
    free(scratch)


def unpack(cnp.ndarray out not None, cnp.ndarray packed not None, Py_ssize_t n, Py_ssize_t k,
           int bits):
    """The (n, k) int8 codes out of their panels."""
    cdef Job j
    cdef Py_ssize_t q, n0, cols, s0, s1
    cdef int nv
    cdef const uint8_t* codes
    cdef uint8_t* to = <uint8_t*> data_of(out, cnp.NPY_INT8, n * k, True, "out")
    cdef const uint8_t* b = <const uint8_t*> data_of(packed, cnp.NPY_UINT8,
                                                     packed_size(n, k, bits), False, "packed")
    cdef uint8_t* scratch = <uint8_t*> malloc(FO_KC * FO_NR)
    if scratch == NULL:
        raise MemoryError("matmul: no memory to unpack")
    cut(&j, 0, n, k, 0)
    with nogil:
        for q in range((n + FO_NR - 1) // FO_NR):
            n0 = q * FO_NR
            cols = min(n - n0, <Py_ssize_t> FO_NR)
            nv = <int> ((cols + FO_LANES - 1) // FO_LANES)
            s0 = 0
            while s0 < j.kp // 4:
                s1 = min(s0 + FO_KC // 4, j.kp // 4)
                codes = b + (n0 * j.kp + s0 * 4 * nv * FO_LANES) * bits // 8
                if bits == 4:
                    fo_unpack_nibbles(s1 - s0, nv, codes, scratch)
                    codes = scratch
                fo_unpack_nk(s0, s1, <int> cols, nv * FO_LANES, k, k, codes, to + n0 * k)
                s0 = s1
    free(scratch)


cdef int operands(Job* j, cnp.ndarray a, cnp.ndarray b, int layout, cnp.ndarray colsum,
                  cnp.ndarray za, cnp.ndarray zb, Py_ssize_t m, Py_ssize_t n,
                  Py_ssize_t k) except -1:
    """Fill the inputs of an integer job."""
    cdef bint is_signed
    cut(j, m, n, k, 0)
    j.layout = layout
    j.wide = FO_WIDE_A8
    j.x = NULL
    j.a = codes_of(a, m * k, "a", &is_signed)
    j.flip_a = 0x80 if is_signed else 0
    j.flip_b = 0
    if layout == PACKED:
        j.b = <const uint8_t*> data_of(b, cnp.NPY_UINT8, packed_size(n, k), False, "b")
        j.colsum = <const int32_t*> data_of(colsum, cnp.NPY_INT32, n, False, "colsum")
    else:
        j.b = codes_of(b, n * k, "b", &is_signed)
        j.flip_b = 0 if is_signed else 0x80
    j.za = <int32_t*> data_of(za, cnp.NPY_INT32, m, False, "za")
    j.zb = <const int32_t*> data_of(zb, cnp.NPY_INT32, n, False, "zb")
    return 0


def micro_kernel(Py_ssize_t repeat):
    """Multiply-adds of ``repeat`` runs of the bare inner loop on operands that stay in the L1 cache:
    the ceiling of an 8-bit product at this level, for benchmarks."""
    cdef Py_ssize_t i, quads = FO_KC // 4
    cdef uint8_t* memory = <uint8_t*> calloc(1, 64 + FO_KC * (2 * FO_MR + 2 * FO_NR)
                                             + FO_MR * FO_NR * 4)
    if memory == NULL:
        raise MemoryError("matmul: no memory for the inner loop's operands")
    cdef uint8_t* b = <uint8_t*> ((<uintptr_t> memory + 63) // 64 * 64)
    cdef uint8_t* a = b + 2 * FO_KC * FO_NR
    cdef int32_t* c = <int32_t*> (a + 2 * FO_KC * FO_MR)
    cdef Tile tile = fo_s16 if FO_WIDE_A8 else fo_u8s8
    with nogil:
        for i in range(repeat):
            tile(FO_MR, FO_NR // FO_LANES, quads, a, b, c, 0)
    free(memory)
    return repeat * FO_MR * FO_NR * FO_KC


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


def linear(cnp.ndarray out not None, cnp.ndarray x not None, cnp.ndarray packed not None,
           cnp.ndarray colsum not None, cnp.ndarray zb not None, cnp.ndarray pairs,
           cnp.ndarray scale not None, cnp.ndarray bias not None, int activation, Py_ssize_t m, Py_ssize_t n, Py_ssize_t k,
           Py_ssize_t group, int bits, int bits_a, int threads):
    """out = act(sa[m] * sum_g (float) (exact sum of group g of (codes - za)(b - zb)) * scale[g, n]
    + bias[n]); False, with nothing written, if x holds NaN or infinity.

    out : (m, n) float32; x : (m, k) float32, quantised row by row to ``bits_a`` = 8 or 16 bits
    (activations_int8.h); packed, colsum : by ``pack`` with the same ``group`` and ``bits``;
    pairs : colsum + 65536 zb, (groups, n) int32, where all of them fit in int16, else None;
    zb, scale : (groups, n) int32 and float32; bias : (n,) float32; activation : 0 none, 1 ReLU,
    2 GELU. Group sums must fit in int32.
    """
    cdef Job j
    cut(&j, m, n, k, group)
    j.bits = bits
    j.layout = PACKED
    j.flip_a = j.flip_b = 0
    j.bits_a = bits_a
    j.wide = FO_WIDE_A8 or bits_a == 16
    j.mode = TO_F32
    j.activation = activation
    j.out = <float*> data_of(out, cnp.NPY_FLOAT32, m * n, True, "out")
    j.x = <const float*> data_of(x, cnp.NPY_FLOAT32, m * k, False, "x")
    j.b = <const uint8_t*> data_of(packed, cnp.NPY_UINT8, packed_size(n, k, bits), False, "packed")
    j.colsum = <const int32_t*> data_of(colsum, cnp.NPY_INT32, j.groups * n, False, "colsum")
    j.zb = <const int32_t*> data_of(zb, cnp.NPY_INT32, j.groups * n, False, "zb")
    j.pairs = NULL
    if pairs is not None:
        j.pairs = <const int32_t*> data_of(pairs, cnp.NPY_INT32, j.groups * n, False, "pairs")
    j.sb = <const float*> data_of(scale, cnp.NPY_FLOAT32, j.groups * n, False, "scale")
    j.bias = <const float*> data_of(bias, cnp.NPY_FLOAT32, n, False, "bias")
    if m and n:
        return run(&j, threads) == 0
    return True
