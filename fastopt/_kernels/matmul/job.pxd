"""An integer matrix product as a job: its operands, how they are cut, how B lies in memory.

A packed B is its column panels one after another, FO_NR columns each (the last one fewer: whole
vectors); a panel is its groups of k one after another, a group its head (scales and sums,
epilogue.h; none where the sums are kept apart) and its codes in quads (dot.h). So a
product reads one ascending stream.
"""

from libc.stdint cimport int8_t, int16_t, int32_t, uint8_t, uint16_t

cdef extern from "matmul/dot.h" nogil:
    const int FO_MR, FO_NR, FO_LANES, FO_SLICE
    const int FO_WIDE_A8  # this level multiplies 8-bit A as int16, unless B is narrow
    const int FO_S8, FO_S4, FO_B4
    ctypedef void (*Tile "fo_tile_fn")(
        int mr, int nv, Py_ssize_t steps, const uint8_t* a, const uint8_t* b, int32_t* c,
        int first, const uint8_t* next) noexcept nogil
    void fo_u8s8(int, int, Py_ssize_t, const uint8_t*, const uint8_t*, int32_t*, int,
                 const uint8_t*) noexcept
    void fo_u8s4(int, int, Py_ssize_t, const uint8_t*, const uint8_t*, int32_t*, int,
                 const uint8_t*) noexcept
    void fo_u8b4(int, int, Py_ssize_t, const uint8_t*, const uint8_t*, int32_t*, int,
                 const uint8_t*) noexcept
    void fo_s16(int, int, Py_ssize_t, const uint8_t*, const uint8_t*, int32_t*, int,
                const uint8_t*) noexcept
    void fo_s16s8(int, int, Py_ssize_t, const uint8_t*, const uint8_t*, int32_t*, int,
                  const uint8_t*) noexcept
    const int FO_END_IN_TILE
    void fo_group_tile(int mr, int kind, Py_ssize_t steps, const uint8_t* a, const uint8_t* b,
                       int32_t* c, const uint8_t* next, const uint8_t* head, const int32_t* rows,
                       Py_ssize_t stride, float* acc)
    void fo_widen(Py_ssize_t steps, int nv, const uint8_t* b, uint8_t* out)

cdef extern from "matmul/row.h" nogil:
    const int FO_ABREAST
    ctypedef void (*Row "fo_row_fn")(Py_ssize_t steps, const uint8_t* a, const uint8_t* b,
                                     Py_ssize_t stride, int32_t* c) noexcept nogil
    void fo_row_u8s8(Py_ssize_t, const uint8_t*, const uint8_t*, Py_ssize_t, int32_t*) noexcept
    void fo_row_u8s4(Py_ssize_t, const uint8_t*, const uint8_t*, Py_ssize_t, int32_t*) noexcept
    void fo_row_s16s8(Py_ssize_t, const uint8_t*, const uint8_t*, Py_ssize_t, int32_t*) noexcept
    void fo_group_row_panels(int kind, Py_ssize_t steps, const uint8_t* a, const uint8_t* b,
                             Py_ssize_t stride, int32_t* c, const uint8_t* head,
                             const int32_t* rows, float* acc)

cdef extern from "matmul/panels.h" nogil:
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
    int fo_is_narrow(Py_ssize_t bytes, const uint8_t* b)

cdef extern from "matmul/epilogue.h" nogil:
    Py_ssize_t fo_head(int bits, Py_ssize_t group)
    void fo_pack_head(int width, int cols, int pairs, const float* scale, const int32_t* zb,
                      const int32_t* colsum, uint8_t* out)
    void fo_group(int mr, int width, const int32_t* c, const uint8_t* head, int pairs, int joint,
                  const int32_t* za, const int32_t* ra, Py_ssize_t groups, float* acc)
    void fo_join(Py_ssize_t groups, int32_t za, int32_t* ra)
    void fo_finish_i32(Py_ssize_t cols, const int32_t* c, int32_t za, int32_t ra,
                       const int32_t* colsum, const int32_t* zb, int32_t* out)
    void fo_finish_q8(Py_ssize_t cols, const int32_t* c, int32_t za, int32_t ra,
                      const int32_t* colsum, const int32_t* zb, const double* scale, double zy,
                      double low, double high, uint8_t* out)
    void fo_finish_f32(Py_ssize_t cols, const float* acc, float scale, const float* bias,
                       int activation, float* out)
    void fo_expect(int mr, const uint8_t* out, Py_ssize_t stride, Py_ssize_t bytes)

cdef extern from "matmul/clip.h" nogil:
    const int FO_CLIPS, FO_BLOCK
    int fo_excess(int first, int second)
    void fo_clip(Py_ssize_t bytes, const uint8_t* b, uint8_t* out)
    void fo_transpose(const uint8_t** rows, uint8_t* out)
    void fo_correct(int cols, const int32_t* start, const uint16_t* index, const int8_t* value,
                    const uint8_t* block, int32_t* c)

cdef extern from "matmul/activations.h" nogil:
    int fo_quantize_row(Py_ssize_t k, const float* x, int bits, void* codes, float* scale,
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


ctypedef struct Job:
    Py_ssize_t m, n, k, kp  # kp: k rounded up to 8
    Py_ssize_t row_panels, col_panels, panels_a_chunk, col_tasks
    Py_ssize_t abreast  # column panels that a single row meets at once, or 1
    Py_ssize_t group  # k of a group, a multiple of 8; kp (or 8 without k) where there is one
    Py_ssize_t groups
    Py_ssize_t head  # bytes of a group's head, a column
    Py_ssize_t quads_a_slice
    int wide  # A is packed as int16
    int bits  # of B: 8 or 4
    int layout
    uint8_t flip_a, flip_b
    const uint8_t* a  # 8-bit codes, or
    const float* x  # floats that are quantised row by row
    int bits_a
    int bad  # a row of floats is not finite
    const uint8_t* b
    bint clipped  # B is clipped as it is read (clip.h), and what was taken off is
    const int32_t* excess_start  # the first quad of each column, (n + 1,)
    const uint16_t* excess_row
    const int8_t* excess
    uint8_t* blocks  # of A, transposed
    Py_ssize_t blocks_a_chunk
    uint8_t* packed_a
    int32_t* za  # (m,)
    int32_t* ra  # (m, groups): rowsum - k za, or
    bint joint  # -za and its negative as two int16
    float* sa  # (m,) scale of a row
    const int32_t* zb  # (n,) where there are no heads
    const int32_t* colsum
    int mode
    uint8_t* out
    int out_size  # bytes of an element
    const double* scale
    Py_ssize_t scale_stride
    double zy, low, high
    const float* bias
    int activation
    uint8_t* scratch
    Py_ssize_t scratch_bytes, scratch_rows  # per thread


cdef inline void cut(Job* j, Py_ssize_t m, Py_ssize_t n, Py_ssize_t k, Py_ssize_t group, int bits,
                     bint heads) noexcept nogil:
    """Sizes of a job; group 0: one group."""
    j.m, j.n, j.k, j.kp = m, n, k, (k + 7) // 8 * 8
    j.group = group if 0 < group < j.kp else max(j.kp, <Py_ssize_t> 8)
    j.groups = max(<Py_ssize_t> 1, (j.kp + j.group - 1) // j.group)
    j.bits = bits
    j.head = fo_head(bits, j.group) if heads else 0
    j.col_panels = (n + FO_NR - 1) // FO_NR


cdef inline Py_ssize_t column_bytes(const Job* j) noexcept nogil:
    """Of a column of the packed B."""
    return j.kp * j.bits // 8 + j.groups * j.head


cdef inline Py_ssize_t columns(const Job* j, Py_ssize_t panel) noexcept nogil:
    return min(j.n - panel * FO_NR, <Py_ssize_t> FO_NR)


cdef inline int vectors(Py_ssize_t cols) noexcept nogil:
    return <int> ((cols + FO_LANES - 1) // FO_LANES)


cdef inline const uint8_t* head_of(const Job* j, Py_ssize_t panel, int width,
                                   Py_ssize_t g) noexcept nogil:
    """Head of group g of a column panel; its codes follow."""
    return j.b + panel * FO_NR * column_bytes(j) + g * width * (j.group * j.bits // 8 + j.head)


cdef inline const uint8_t* codes_at(const Job* j, Py_ssize_t panel, int width,
                                    Py_ssize_t t) noexcept nogil:
    """Quad t of a column panel."""
    cdef Py_ssize_t g = t // (j.group // 4)
    return head_of(j, panel, width, g) + width * (
        j.head + (t - g * j.group // 4) * j.bits // 2)


cdef inline Py_ssize_t first_row(const Job* j, Py_ssize_t panel) noexcept nogil:
    """Row panels differ by at most one row: first row of ``panel`` (m for the one past the
    end)."""
    cdef Py_ssize_t base = j.m // j.row_panels
    return panel * base + min(panel, j.m - base * j.row_panels)
