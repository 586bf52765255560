"""Exact products of integer matrices: C = (A - za) (B - zb), sums in int32, and what follows them.

With row sums and column sums of the codes, C[m, n] = S - za[m] colsum[n] - zb[n] (rowsum[m] - K
za[m]), S = sum_k A[m, k] B[k, n], so the inner loop never sees a zero point (Jacob et al., CVPR
2018, eq. 7). All of it is arithmetic modulo 2^32: exact wherever the true result fits in int32,
which for 8-bit codes is always so up to K = 33,025 (255 * 255 * K < 2^31).

B is cut into panels of NR columns, packed once (job.pxd) or on the fly; A into panels of up to
MR rows, packed in every call. A task is a chunk of rows times a few panels; each slice of K of a
panel stays in L1 while all row panels of the chunk meet it, and a tile's result is finished while
it is in L1. In ``linear`` K is cut into groups, each with its own scales: the exact sum of a group
is turned into float32, scaled and added, groups in ascending order; the same operations in the
same order on every level and thread.
"""

from libc.stdint cimport int8_t, int32_t, uint8_t, uint16_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc

from fastopt._kernels.shared cimport numpy as cnp
from fastopt._kernels.shared.arguments cimport data_of
from fastopt._kernels.shared.pool cimport mark, marked, run, run_polled
from fastopt._kernels.matmul.job cimport *
from fastopt._kernels.matmul.task cimport pack_panel, run_task, transpose_block

cnp.import_array()

cdef enum:
    CLIP_FROM = 16  # rows of A from which clipping B pays; fewer are multiplied as int16

CLIPS = bool(FO_CLIPS)  # this level multiplies a B that is not narrow with its excess apart


cdef void slice_k(Job* j, Py_ssize_t most) noexcept nogil:
    """Slices of K of at most ``most``: whole groups, or equal parts of one."""
    cdef Py_ssize_t parts
    if j.group <= most:
        parts = (j.groups + most // j.group - 1) // (most // j.group)
        j.quads_a_slice = (j.groups + parts - 1) // parts * j.group // 4
    else:
        parts = (j.group + most - 1) // most
        j.quads_a_slice = ((j.group + parts - 1) // parts + 7) // 8 * 2


cdef void pack_rows(void* context, Py_ssize_t panel, int worker) noexcept nogil:
    cdef Job* j = <Job*> context
    if pack_panel(j, panel, j.scratch + worker * j.scratch_bytes):
        mark(&j.bad)


cdef void transpose_rows(void* context, Py_ssize_t block, int worker) noexcept nogil:
    transpose_block(<Job*> context, block)


cdef void task(void* context, Py_ssize_t index, int worker) noexcept nogil:
    run_task(<Job*> context, index, worker)


cdef int multiply(Job* j, int threads) except -1:
    """Cut the job into tasks, pack A, run the tasks. Returns 1, with nothing written, if a row of
    floats is not finite."""
    cdef Py_ssize_t chunks, units, units_a_task, block_bytes
    cdef Py_ssize_t depth = max(<Py_ssize_t> 8, j.kp), size = 2 if j.wide else 1
    cdef Py_ssize_t a_bytes = (j.m * j.kp * size + 63) // 64 * 64
    cdef uint8_t* memory
    j.row_panels = (j.m + FO_MR - 1) // FO_MR
    # A single row takes B from memory, several panels at a time. Otherwise a slice of B stays in
    # L1 as the inner loop reads it.
    if j.m == 1 and j.layout == PACKED and (j.bits == 8 or not j.wide):
        j.abreast = FO_ABREAST
        slice_k(j, j.groups * j.group)
    else:
        j.abreast = 1
        slice_k(j, FO_SLICE // (FO_NR * (2 if j.wide else 1)) // 8 * 8)
    # A's chunk: its slices stream from L2 or L3, so it is long, to read B seldom: 512 rows, 2 MiB;
    # all of A while B is packed on the fly, so that this happens once.
    chunks = max(<Py_ssize_t> 4, min(<Py_ssize_t> 512, (1 << 21) // (depth * size)) // FO_MR)
    chunks = 1 if j.layout != PACKED else (j.row_panels + chunks - 1) // chunks
    j.panels_a_chunk = (j.row_panels + chunks - 1) // chunks
    chunks = (j.row_panels + j.panels_a_chunk - 1) // j.panels_a_chunk
    j.scratch_rows = max(min(j.m, j.panels_a_chunk * FO_MR), j.abreast)
    j.blocks_a_chunk = (j.scratch_rows + FO_BLOCK - 1) // FO_BLOCK if j.clipped else 0
    j.scratch_rows = max(j.scratch_rows, j.blocks_a_chunk * FO_BLOCK)
    block_bytes = chunks * j.blocks_a_chunk * FO_BLOCK * j.kp
    # A task: at least 256 Ki multiply-adds, but at least four tasks a thread where possible.
    units = (j.col_panels + j.abreast - 1) // j.abreast
    units_a_task = max(<Py_ssize_t> 1, min((1 << 18) // (j.scratch_rows * FO_NR * depth),
                                           units * chunks // (4 * threads)))
    j.col_tasks = (units + units_a_task - 1) // units_a_task
    # A thread's scratch: a slice of B as bytes and as int16, sums, floats; or a row of codes.
    j.scratch_bytes = 2 * FO_SLICE + (2 * j.scratch_rows + 1) * FO_NR * 4
    j.scratch_bytes = (max(j.scratch_bytes, 2 * j.kp) + 63) // 64 * 64
    memory = <uint8_t*> malloc(64 + a_bytes + block_bytes + threads * j.scratch_bytes
                               + j.m * 4 * (j.groups + 2))
    if memory == NULL:
        raise MemoryError("matmul: no memory for the packed operands")
    j.packed_a = <uint8_t*> ((<uintptr_t> memory + 63) // 64 * 64)
    j.blocks = j.packed_a + a_bytes
    j.scratch = j.blocks + block_bytes
    j.ra = <int32_t*> (j.scratch + threads * j.scratch_bytes)
    if j.x != NULL:
        j.za = j.ra + j.m * j.groups
        j.sa = <float*> (j.za + j.m)
    j.bad = 0
    try:
        with nogil:
            run(pack_rows, j, j.row_panels, threads if j.m * j.k >= 1 << 16 else 1)
            if not marked(&j.bad):
                run(transpose_rows, j, chunks * j.blocks_a_chunk, threads)
                run_polled(task, j, chunks * j.col_tasks, threads)
    finally:
        free(memory)
    return marked(&j.bad)


def packed_size(Py_ssize_t n, Py_ssize_t k, Py_ssize_t group, int bits, bint heads):
    """Bytes that ``pack`` writes for a (k, n) matrix of 8- or 4-bit codes."""
    cdef Job j
    cut(&j, 0, n, k, group, bits, heads)
    return vectors(n) * FO_LANES * column_bytes(&j)


cdef bint pack_columns(Job* j, int32_t* colsum, const float* scale, uint8_t* scratch,
                       Py_ssize_t panel) noexcept nogil:
    """A column panel, a group at a time; true if all its codes are narrow."""
    cdef int32_t sums[128]
    cdef Py_ssize_t n0 = panel * FO_NR, quads = j.kp // 4, g, s0, s1, i, cols = columns(j, panel)
    cdef int nv = vectors(cols), width = nv * FO_LANES, narrow = 1
    cdef const uint8_t* from_b = j.b
    cdef uint8_t* head
    cdef uint8_t* to
    for g in range(j.groups):
        s0, s1 = g * j.group // 4, min((g + 1) * j.group // 4, quads)
        head = j.packed_a + (head_of(j, panel, width, g) - j.b)
        to = head + width * j.head if j.bits == 8 else scratch
        if j.layout == ROWS_K:
            fo_pack_kn(s0, s1, <int> cols, width, j.k, j.n, j.flip_b, from_b + n0, to)
        else:
            fo_pack_nk(s0, s1, <int> cols, width, j.k, j.k, j.flip_b, from_b + n0 * j.k, to)
        narrow &= fo_is_narrow((s1 - s0) * 4 * width, to)
        fo_column_sums(s1 - s0, nv, to, sums, 1)
        if j.head:
            fo_pack_head(width, <int> cols, j.head == 8, scale + g * j.n + n0,
                         j.zb + g * j.n + n0, sums, head)
        else:
            for i in range(cols):
                colsum[n0 + i] = sums[i]
        if j.bits == 4:
            fo_pack_nibbles(s1 - s0, width, scratch, head + width * j.head)
    return narrow


cdef struct Packing:
    Job job
    int32_t* colsum
    const float* scale
    uint8_t* scratch
    Py_ssize_t room  # bytes of scratch per thread
    int wide  # some code is not narrow


cdef void pack_panels(void* context, Py_ssize_t panel, int worker) noexcept nogil:
    cdef Packing* p = <Packing*> context
    if not pack_columns(&p.job, p.colsum, p.scale, p.scratch + worker * p.room, panel):
        mark(&p.wide)


cdef const uint8_t* codes_of(
    cnp.ndarray a, Py_ssize_t size, str name, bint* is_signed
) except NULL:
    """Data of an int8 or uint8 array."""
    is_signed[0] = cnp.PyArray_TYPE(a) == cnp.NPY_INT8
    return <const uint8_t*> data_of(
        a, cnp.NPY_INT8 if is_signed[0] else cnp.NPY_UINT8, size, False, name
    )


def pack(cnp.ndarray packed not None, cnp.ndarray colsum, cnp.ndarray scale, cnp.ndarray zero,
         cnp.ndarray b not None, Py_ssize_t n, Py_ssize_t k, Py_ssize_t group, int bits,
         bint transposed, int threads):
    """B as panels of quads (unsigned codes moved by -128); true if all codes are in [-64, 63],
    which is what ``narrow`` means elsewhere.

    packed : (packed_size(...),) uint8, best aligned to 64; colsum : (n,) int32, overwritten with
    the sums of the columns; or None: then the sums of each group go into its head, with
    scale and zero, (groups, n) float32 and int32; b : (k, n) int8 or uint8, or (n, k) if
    ``transposed``; for 4 bits codes in -8..7; group : a multiple of 8, or 0 for one group.
    """
    cdef Packing p
    cdef Job* j = &p.job
    cdef bint is_signed
    p.colsum, p.scale, p.scratch, p.wide = NULL, NULL, NULL, 0
    cut(j, 0, n, k, group, bits, colsum is None)
    if colsum is None:
        p.scale = <const float*> data_of(scale, cnp.NPY_FLOAT32, j.groups * n, False, "scale")
        j.zb = <const int32_t*> data_of(zero, cnp.NPY_INT32, j.groups * n, False, "zero")
    else:
        p.colsum = <int32_t*> data_of(colsum, cnp.NPY_INT32, n, True, "colsum")
    j.packed_a = <uint8_t*> data_of(packed, cnp.NPY_UINT8, vectors(n) * FO_LANES * column_bytes(j),
                                    True, "packed")
    j.b = codes_of(b, n * k, "b", &is_signed)
    j.flip_b = 0 if is_signed else 0x80
    j.layout = ROWS_N if transposed else ROWS_K
    p.room = j.group * FO_NR
    if bits == 4:
        p.scratch = <uint8_t*> malloc(threads * p.room)
        if p.scratch == NULL:
            raise MemoryError("matmul: no memory to pack")
    with nogil:
        run(pack_panels, &p, j.col_panels, threads)
    free(p.scratch)
    return not marked(&p.wide)


cdef struct Excess:
    Job job
    int32_t* count
    const int32_t* start
    uint16_t* row
    int8_t* value


cdef void excess_of_panel(void* context, Py_ssize_t panel, int worker) noexcept nogil:
    cdef Excess* e = <Excess*> context
    cdef Py_ssize_t cols = columns(&e.job, panel), column, n, t, at, width
    cdef const int8_t* pair
    cdef int i, d, part
    width = vectors(cols) * FO_LANES
    for n in range(cols):
        column = panel * FO_NR + n
        e.count[column] = 0
        at = 4 * e.start[column] if e.start != NULL else 0
        for t in range(e.job.kp // 4):
            for i in range(0, 4, 2):
                pair = <const int8_t*> codes_at(&e.job, panel, <int> width, t) + 4 * n + i
                d = fo_excess(pair[0], pair[1])
                while d:  # in parts of at most 64
                    part = min(max(d, -64), 64)
                    if e.start != NULL:
                        e.row[at + e.count[column]] = <uint16_t> (4 * t + i + 1)
                        e.value[at + e.count[column]] = <int8_t> part
                    e.count[column] += 1
                    d -= part
        if e.start != NULL:
            for at in range(at + e.count[column], 4 * e.start[column + 1]):
                e.row[at] = 0
                e.value[at] = 0


def unpack(cnp.ndarray out not None, cnp.ndarray packed not None, Py_ssize_t n, Py_ssize_t k,
           Py_ssize_t group, int bits, bint heads):
    """The (n, k) int8 codes out of their panels."""
    cdef Job j
    cdef Py_ssize_t q, cols, s0, s1
    cdef int nv
    cdef const uint8_t* codes
    cdef uint8_t* to = <uint8_t*> data_of(out, cnp.NPY_INT8, n * k, True, "out")
    cut(&j, 0, n, k, group, bits, heads)
    j.b = <const uint8_t*> data_of(packed, cnp.NPY_UINT8, vectors(n) * FO_LANES * column_bytes(&j),
                                   False, "packed")
    cdef uint8_t* scratch = <uint8_t*> malloc(FO_SLICE)
    if scratch == NULL:
        raise MemoryError("matmul: no memory to unpack")
    with nogil:
        for q in range(j.col_panels):
            cols = columns(&j, q)
            nv = vectors(cols)
            for s0 in range(0, j.kp // 4, 2):
                s1 = s0 + 2
                codes = codes_at(&j, q, nv * FO_LANES, s0)
                if bits == 4:
                    fo_unpack_nibbles(2, nv, codes, scratch)
                    codes = scratch
                fo_unpack_nk(s0, s1, <int> cols, nv * FO_LANES, k, k, codes, to + q * FO_NR * k)
    free(scratch)


def excess(cnp.ndarray count not None, cnp.ndarray start, cnp.ndarray row, cnp.ndarray value,
           cnp.ndarray packed not None, Py_ssize_t n, Py_ssize_t k, bint heads, int threads):
    """What clipping takes off an 8-bit packed B of one group (clip.h), column by column.

    Without ``start``: count (n,) int32 = the entries of each column. With start (n + 1,) int32,
    the columns' first quads: row (4 start[n],) uint16 and value (4 start[n],) int8 are overwritten
    with the entries, rows ascending, zeros behind a column's last.
    """
    cdef Excess e
    cdef Job* j = &e.job
    cut(j, 0, n, k, 0, 8, heads)
    j.b = <const uint8_t*> data_of(packed, cnp.NPY_UINT8, vectors(n) * FO_LANES * column_bytes(j),
                                   False, "packed")
    e.count = <int32_t*> data_of(count, cnp.NPY_INT32, n, True, "count")
    e.start = NULL
    if start is not None:
        e.start = <const int32_t*> data_of(start, cnp.NPY_INT32, n + 1, False, "start")
        e.row = <uint16_t*> data_of(row, cnp.NPY_UINT16, 4 * e.start[n], True, "row")
        e.value = <int8_t*> data_of(value, cnp.NPY_INT8, 4 * e.start[n], True, "value")
    if k > 1 << 16:
        raise OverflowError("k: more than 65,536 rows do not fit uint16")
    with nogil:
        run(excess_of_panel, &e, j.col_panels, threads)


cdef int use_excess(Job* j, excess) except -1:
    """Clip B where that is faster; ``excess`` is (start, row, value) or None."""
    j.clipped = False
    if excess is None or not j.wide or not FO_CLIPS or j.m < CLIP_FROM or j.groups > 1:
        return 0
    start, row, value = excess
    j.excess_start = <const int32_t*> data_of(
        <cnp.ndarray?> start, cnp.NPY_INT32, j.n + 1, False, "start")
    quads = j.excess_start[j.n]
    j.excess_row = <const uint16_t*> data_of(
        <cnp.ndarray?> row, cnp.NPY_UINT16, 4 * quads, False, "row")
    j.excess = <const int8_t*> data_of(
        <cnp.ndarray?> value, cnp.NPY_INT8, 4 * quads, False, "value"
    )
    j.clipped, j.wide = True, False
    return 0


cdef int operands(Job* j, cnp.ndarray a, cnp.ndarray b, int layout, cnp.ndarray colsum,
                  bint narrow, cnp.ndarray za, cnp.ndarray zb, Py_ssize_t m, Py_ssize_t n,
                  Py_ssize_t k) except -1:
    """Fill the inputs of an integer job."""
    cdef bint is_signed
    cut(j, m, n, k, 0, 8, False)
    j.layout = layout
    j.wide = FO_WIDE_A8 and not narrow
    j.x = NULL
    j.joint = False
    j.a = codes_of(a, m * k, "a", &is_signed)
    j.flip_a = 0x80 if is_signed else 0
    j.flip_b = 0
    if layout == PACKED:
        j.b = <const uint8_t*> data_of(b, cnp.NPY_UINT8, vectors(n) * FO_LANES * j.kp, False, "b")
        j.colsum = <const int32_t*> data_of(colsum, cnp.NPY_INT32, n, False, "colsum")
    else:
        j.b = codes_of(b, n * k, "b", &is_signed)
        j.flip_b = 0 if is_signed else 0x80
    j.za = <int32_t*> data_of(za, cnp.NPY_INT32, m, False, "za")
    j.zb = <const int32_t*> data_of(zb, cnp.NPY_INT32, n, False, "zb")
    return 0


def micro_kernel(Py_ssize_t repeat, int bits=8, bint narrow=False):
    """Multiply-adds of ``repeat`` runs of the bare inner loop on operands that stay in the L1
    cache: the ceiling of a product of 8-bit rows at this level, for benchmarks."""
    cdef bint wide = FO_WIDE_A8 and bits == 8 and not narrow
    cdef Py_ssize_t _i, size = 2 if wide else 1, quads = FO_SLICE // (8 * FO_NR * size)
    cdef uint8_t* memory = <uint8_t*> calloc(1, 64 + FO_SLICE + FO_MR * (quads * 8 + FO_NR * 4))
    if memory == NULL:
        raise MemoryError("matmul: no memory for the inner loop's operands")
    cdef uint8_t* b = <uint8_t*> ((<uintptr_t> memory + 63) // 64 * 64)
    cdef uint8_t* a = b + FO_SLICE
    cdef int32_t* c = <int32_t*> (a + FO_MR * quads * 4 * size)
    cdef Tile tile = fo_s16 if wide else fo_u8s8 if bits == 8 else fo_u8b4
    with nogil:
        for _i in range(repeat):
            tile(FO_MR, FO_NR // FO_LANES, quads, a, b, c, 0, b)
    free(memory)
    return repeat * FO_MR * FO_NR * quads * 4


def multiply_i32(cnp.ndarray out not None, cnp.ndarray a not None, cnp.ndarray b not None,
                 int layout, cnp.ndarray colsum, bint narrow, cnp.ndarray za not None,
                 cnp.ndarray zb not None, Py_ssize_t m, Py_ssize_t n, Py_ssize_t k, int threads,
                 excess=None):
    """out[m, n] = sum_k (a[m, k] - za[m]) (b[k, n] - zb[n]) modulo 2^32.

    out : (m, n) int32; a : (m, k) int8 or uint8; b : packed (layout 0, with its colsum), (k, n)
    (layout 1) or (n, k) (layout 2) int8 or uint8; narrow : b's codes are as ``pack`` told;
    za : (m,) int32, + 128 where a is int8; zb : (n,) int32, - 128 where b is uint8; excess : None,
    or (start, row, value) of a packed b.
    """
    cdef Job j
    j.out = <uint8_t*> data_of(out, cnp.NPY_INT32, m * n, True, "out")
    j.out_size = 4
    j.mode = TO_I32
    operands(&j, a, b, layout, colsum, narrow, za, zb, m, n, k)
    use_excess(&j, excess if layout == PACKED else None)
    if m and n:
        multiply(&j, threads)


def multiply_q8(cnp.ndarray out not None, cnp.ndarray a not None, cnp.ndarray b not None,
                int layout, cnp.ndarray colsum, bint narrow, cnp.ndarray za not None,
                cnp.ndarray zb not None, cnp.ndarray scale not None, int zero_point,
                Py_ssize_t m, Py_ssize_t n, Py_ssize_t k, int threads, excess=None):
    """out = saturate(round_half_even(C scale) + zero_point), C as in ``multiply_i32``.

    out : (m, n) int8 or uint8; scale : (n,) or (m, n) float64.
    """
    cdef Job j
    cdef bint is_signed = cnp.PyArray_TYPE(out) == cnp.NPY_INT8
    j.out = <uint8_t*> data_of(out, cnp.NPY_INT8 if is_signed else cnp.NPY_UINT8, m * n, True,
                               "out")
    j.out_size = 1
    j.mode = TO_Q8
    j.zy = zero_point
    j.low, j.high = (-128.0, 127.0) if is_signed else (0.0, 255.0)
    j.scale_stride = 0 if cnp.PyArray_SIZE(scale) == n else n
    j.scale = <const double*> data_of(scale, cnp.NPY_FLOAT64, m * n if j.scale_stride else n,
                                      False, "scale")
    operands(&j, a, b, layout, colsum, narrow, za, zb, m, n, k)
    use_excess(&j, excess if layout == PACKED else None)
    if m and n:
        multiply(&j, threads)


def linear(cnp.ndarray out not None, cnp.ndarray x not None, cnp.ndarray packed not None,
           bint narrow, cnp.ndarray bias not None, int activation, Py_ssize_t m, Py_ssize_t n,
           Py_ssize_t k, Py_ssize_t group, int bits, int bits_a, int threads, excess=None):
    """out = act(sa[m] * sum_g (float) (exact sum of group g of (codes - za)(b - zb)) * scale[g, n]
    + bias[n]); False, with nothing written, if x holds NaN or infinity.

    out : (m, n) float32; x : (m, k) float32, quantised row by row to ``bits_a`` = 7, 8 or 16 bits
    (activations.h); packed, narrow : by ``pack`` with heads and the same ``group`` and
    ``bits``; bias : (n,) float32; activation : 0 none, 1 ReLU, 2 GELU. Group sums must fit in
    int32.
    """
    cdef Job j
    cut(&j, m, n, k, group, bits, True)
    j.layout = PACKED
    j.flip_a = j.flip_b = 0
    j.bits_a = bits_a
    j.wide = bits_a == 16 or (FO_WIDE_A8 and bits == 8 and bits_a == 8 and not narrow)
    j.joint = j.head == 8 and bits_a != 16 and j.group <= 128  # 255 * 128 < 2^15
    use_excess(&j, excess if bits == 8 and bits_a == 8 else None)
    j.mode = TO_F32
    j.activation = activation
    j.out = <uint8_t*> data_of(out, cnp.NPY_FLOAT32, m * n, True, "out")
    j.out_size = 4
    j.x = <const float*> data_of(x, cnp.NPY_FLOAT32, m * k, False, "x")
    j.b = <const uint8_t*> data_of(packed, cnp.NPY_UINT8, vectors(n) * FO_LANES * column_bytes(&j),
                                   False, "packed")
    j.colsum = NULL
    j.bias = <const float*> data_of(bias, cnp.NPY_FLOAT32, n, False, "bias")
    if m and n:
        return multiply(&j, threads) == 0
    return True
