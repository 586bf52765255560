"""What a thread does: a row panel of A is packed; a task, a chunk of row panels times a few column
panels, is multiplied, slice by slice of K."""

from libc.stdint cimport int16_t, int32_t, uint8_t
from libc.string cimport memset

from fastopt._kernels.matmul.job cimport *


cdef inline int pack_panel(const Job* j, Py_ssize_t panel, uint8_t* codes) noexcept nogil:
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
        if not fo_quantize_row(j.k, j.x + row * j.k, j.bits_a, codes, &j.sa[row], &j.za[row]):
            return 1
        if j.bits_a == 16:
            fo_pack_row16(mr, r, j.k, j.kp, <int16_t*> codes, out)
            fo_sums_s16(j.k, j.group, <int16_t*> codes, j.ra + row * j.groups)
        else:
            fo_pack_row(mr, r, j.k, j.kp, j.wide, 0, codes, out)
            fo_sums_u8(j.k, j.group, codes, j.za[row], j.ra + row * j.groups)
            if j.joint:
                fo_join(j.groups, j.za[row], j.ra + row * j.groups)
    return 0


cdef inline void finish(
    const Job* j, Py_ssize_t row0, int mr, Py_ssize_t n0, Py_ssize_t cols, int32_t* c,
    float* acc, const int32_t* colsum,
) noexcept nogil:
    """The rows of a tile to their place in the result."""
    cdef Py_ssize_t row, at
    cdef int r
    for r in range(mr):
        row = row0 + r
        at = row * j.n + n0
        if j.mode == TO_I32:
            fo_finish_i32(cols, c + r * FO_NR, j.za[row], j.ra[row], colsum, j.zb + n0,
                          <int32_t*> j.out + at)
        elif j.mode == TO_Q8:
            fo_finish_q8(cols, c + r * FO_NR, j.za[row], j.ra[row], colsum, j.zb + n0,
                         j.scale + row * j.scale_stride + n0, j.zy, j.low, j.high, j.out + at)
        else:
            fo_finish_f32(cols, acc + r * FO_NR, j.sa[row], j.bias + n0, j.activation,
                          <float*> j.out + at)


cdef inline Tile tile_of(const Job* j, bint few, bint* ready) noexcept nogil:
    """The inner loop, and whether it reads B as it is packed. few: there is one row panel, so that
    converting inside the tile is cheaper than before it."""
    cdef bint as_is = j.bits == 8 if few or not j.wide else False
    ready[0] = j.layout == PACKED and not j.clipped and as_is
    if j.bits == 4 and not j.wide:
        ready[0] = few
        return fo_u8s4 if few else fo_u8b4
    if not j.wide:
        return fo_u8s8
    return fo_s16s8 if ready[0] else fo_s16


cdef inline void slice_of_b(
    const Job* j, Py_ssize_t panel, Py_ssize_t s0, Py_ssize_t s1, uint8_t* codes,
    uint8_t* widened, int32_t* sums,
) noexcept nogil:
    """Quads s0..s1 of a column panel as bytes and, for a wide A, as int16."""
    cdef Py_ssize_t n0 = panel * FO_NR, cols = columns(j, panel), t = s0, t1, group = j.group // 4
    cdef int nv = vectors(cols), width = nv * FO_LANES
    cdef const uint8_t* b
    if j.layout == ROWS_K:
        fo_pack_kn(s0, s1, <int> cols, width, j.k, j.n, j.flip_b, j.b + n0, codes)
    elif j.layout == ROWS_N:
        fo_pack_nk(s0, s1, <int> cols, width, j.k, j.k, j.flip_b, j.b + n0 * j.k, codes)
    if j.layout != PACKED:
        fo_column_sums(s1 - s0, nv, codes, sums, s0 == 0)
        if j.wide:
            fo_widen(s1 - s0, nv, codes, widened)
        return
    while t < s1:
        t1 = min((t // group + 1) * group, s1)
        b = codes_at(j, panel, width, t)
        if j.bits == 4:
            fo_unpack_nibbles(t1 - t, nv, b, codes + (t - s0) * 4 * width)
            b = codes + (t - s0) * 4 * width
        if j.clipped:
            fo_clip((t1 - t) * 4 * width, b, codes + (t - s0) * 4 * width)
        if j.wide:
            fo_widen(t1 - t, nv, b, widened + (t - s0) * 8 * width)
        t = t1


ctypedef struct Task:
    Py_ssize_t p0, p1  # row panels
    Tile tile
    Row row
    bint ready  # the tile reads B as it is packed
    bint ends  # groups end inside the tile
    int kind  # how B lies for it
    uint8_t* codes  # a slice of B as bytes
    uint8_t* widened  # and as int16
    int32_t* sums  # of its columns
    int32_t* c
    float* acc


cdef inline void transpose_block(const Job* j, Py_ssize_t block) noexcept nogil:
    """A block of FO_BLOCK rows of a chunk of A, zeros behind the last."""
    cdef const uint8_t* nothing = b"\0\0\0\0"
    cdef const uint8_t* row[32]
    cdef Py_ssize_t stride[32]
    cdef Py_ssize_t p = block // j.blocks_a_chunk * j.panels_a_chunk, r, i, s, mr
    cdef Py_ssize_t end = first_row(j, min(p + j.panels_a_chunk, j.row_panels))
    cdef Py_ssize_t r0 = first_row(j, p) + block % j.blocks_a_chunk * FO_BLOCK
    cdef uint8_t* out = j.blocks + block * j.kp * FO_BLOCK
    for i in range(FO_BLOCK):
        r = r0 + i
        row[i], stride[i] = nothing, 0
        if r < end:
            while first_row(j, p + 1) <= r:
                p += 1
            mr = first_row(j, p + 1) - first_row(j, p)
            row[i] = j.packed_a + first_row(j, p) * j.kp + (r - first_row(j, p)) * 4
            stride[i] = 4 * mr
    for s in range(j.kp // 4):
        fo_transpose(row, out + s * 4 * FO_BLOCK)
        for i in range(FO_BLOCK):
            row[i] += stride[i]


cdef inline void start_sums(const Job* j, const Task* w, Py_ssize_t q) noexcept nogil:
    """The sums of a column panel and all rows of the task start as the products of its excess."""
    cdef Py_ssize_t rows = first_row(j, w.p1) - first_row(j, w.p0), b
    cdef Py_ssize_t first = w.p0 // j.panels_a_chunk * j.blocks_a_chunk
    for b in range((rows + FO_BLOCK - 1) // FO_BLOCK):
        fo_correct(<int> columns(j, q), j.excess_start + q * FO_NR, j.excess_row, j.excess,
                   j.blocks + (first + b) * j.kp * FO_BLOCK, w.c + b * FO_BLOCK * FO_NR)


cdef inline void run_slice(const Job* j, const Task* w, Py_ssize_t q, Py_ssize_t s0,
                           Py_ssize_t s1) noexcept nogil:
    """Quads s0..s1 of a column panel meet all row panels of the task."""
    cdef Py_ssize_t n0 = q * FO_NR, cols = columns(j, q), quads = j.kp // 4, group = j.group // 4
    cdef Py_ssize_t t, t1, g, p, row0, at, at_c, share = 0, top = first_row(j, w.p0)
    cdef int nv = vectors(cols), width = nv * FO_LANES, mr, size = 2 if j.wide else 1
    cdef const uint8_t* converted = w.widened if j.wide else w.codes
    cdef const uint8_t* ahead = w.codes
    cdef const uint8_t *b
    cdef const uint8_t *a
    if not w.ready:
        slice_of_b(j, q, s0, s1, w.codes, w.widened, w.sums)
    if j.clipped and s0 == 0:
        start_sums(j, w, q)
    # The next slice comes into L2 meanwhile, each row panel sees to a part of it.
    if j.layout == PACKED:
        ahead = codes_at(j, q, width, s1)
        share = (s1 - s0) * width * j.bits // 128 // (w.p1 - w.p0) * 64
    for p in range(w.p0, w.p1):
        row0 = first_row(j, p)
        mr = <int> (first_row(j, p + 1) - row0)
        a = j.packed_a + row0 * j.kp * size
        at = (row0 - top) * FO_NR if quads > j.quads_a_slice else 0
        at_c = (row0 - top) * FO_NR if j.clipped else at if group > j.quads_a_slice else 0
        if s1 >= quads:
            fo_expect(mr, j.out + (row0 * j.n + n0) * j.out_size, j.n * j.out_size,
                      cols * j.out_size)
        t = s0
        while True:  # the groups that meet this slice
            g = t // group
            t1 = min((g + 1) * group, s1)
            b = codes_at(j, q, width, t) if w.ready else converted + (t - s0) * 4 * width * size
            if t == 0 and j.mode == TO_F32:
                memset(w.acc + at, 0, mr * FO_NR * 4)
            if w.ends and nv * FO_LANES == FO_NR:
                fo_group_tile(mr, w.kind, t1 - t, a + t * 4 * mr, b, w.c,
                              ahead + (p - w.p0) * share + (t - s0) * 64,
                              head_of(j, q, width, g), j.ra + row0 * j.groups + g, j.groups,
                              w.acc + at)
            else:
                w.tile(mr, nv, t1 - t, a + t * 4 * mr * size, b, w.c + at_c,
                       t == g * group and not j.clipped,
                       ahead + (p - w.p0) * share + (t - s0) * 64)
                if j.mode == TO_F32 and (t1 == (g + 1) * group or t1 == quads):
                    fo_group(mr, width, w.c + at_c, head_of(j, q, width, g), j.head == 8, j.joint,
                             j.za + row0, j.ra + row0 * j.groups + g, j.groups, w.acc + at)
            t = t1
            if t >= s1:
                break
        if s1 >= quads:
            finish(j, row0, mr, n0, cols, w.c + at_c, w.acc + at,
                   j.colsum + n0 if j.layout == PACKED else w.sums)


cdef inline void run_row(const Job* j, const Task* w, Py_ssize_t q) noexcept nogil:
    """The only row of A meets FO_ABREAST full column panels."""
    cdef Py_ssize_t t = 0, t1, g = 0, i, quads = j.kp // 4, stride = FO_NR * column_bytes(j)
    cdef int size = 2 if j.wide else 1
    cdef const uint8_t* head
    if j.mode == TO_F32:
        memset(w.acc, 0, FO_ABREAST * FO_NR * 4)
    for g in range(j.groups):
        head = head_of(j, q, FO_NR, g)
        t1 = min(t + j.group // 4, quads)
        if w.ends:
            fo_group_row_panels(w.kind, t1 - t, j.packed_a + t * 4, codes_at(j, q, FO_NR, t),
                                stride, w.c, head, j.ra + g, w.acc)
        else:
            w.row(t1 - t, j.packed_a + t * 4 * size, codes_at(j, q, FO_NR, t), stride, w.c)
            for i in range(FO_ABREAST if j.mode == TO_F32 else 0):
                fo_group(1, FO_NR, w.c + i * FO_NR, head + i * stride, j.head == 8, j.joint, j.za,
                         j.ra + g, j.groups, w.acc + i * FO_NR)
        t = t1
    for i in range(FO_ABREAST):
        finish(j, 0, 1, (q + i) * FO_NR, FO_NR, w.c + i * FO_NR, w.acc + i * FO_NR,
               j.colsum + (q + i) * FO_NR)


cdef inline void run_task(const Job* j, Py_ssize_t task, int thread) noexcept nogil:
    """A chunk of row panels times a few column panels."""
    cdef Py_ssize_t chunk = task // j.col_tasks, part = task % j.col_tasks
    cdef Py_ssize_t units = (j.col_panels + j.abreast - 1) // j.abreast
    cdef Py_ssize_t q = part * units // j.col_tasks * j.abreast
    cdef Py_ssize_t end = min((part + 1) * units // j.col_tasks * j.abreast, j.col_panels)
    cdef Py_ssize_t s0, s1, quads = j.kp // 4, group = j.group // 4
    cdef Task w
    w.p0 = chunk * j.panels_a_chunk
    w.p1 = min(w.p0 + j.panels_a_chunk, j.row_panels)
    w.tile = tile_of(j, w.p1 - w.p0 == 1, &w.ready)
    w.row = fo_row_u8s4 if j.bits == 4 else fo_row_s16s8 if j.wide else fo_row_u8s8
    w.kind = FO_S8 if j.bits == 8 else FO_S4 if w.ready else FO_B4
    w.ends = (FO_END_IN_TILE and j.joint and not j.wide and not j.clipped
              and group <= j.quads_a_slice)
    w.codes = j.scratch + thread * j.scratch_bytes
    w.widened = w.codes + FO_SLICE
    w.sums = <int32_t*> (w.widened + FO_SLICE)
    w.c = w.sums + FO_NR
    w.acc = <float*> (w.c + j.scratch_rows * FO_NR)
    while q < end:
        if j.abreast > 1 and (q + FO_ABREAST) * FO_NR <= min(j.n, end * FO_NR):
            run_row(j, &w, q)
            q += FO_ABREAST
            continue
        s0 = 0
        while True:  # once with no steps when k = 0
            s1 = min(s0 + j.quads_a_slice, quads)
            if group > j.quads_a_slice:
                s1 = min(s1, (s0 // group + 1) * group)
            run_slice(j, &w, q, s0, s1)
            s0 = s1
            if s0 >= quads:
                break
        q += 1
