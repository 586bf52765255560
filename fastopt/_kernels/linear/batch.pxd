"""A mini-batch of dense rows: margins, losses and gradient while its rows lie in the L1 cache."""

from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memcpy, memset

from fastopt._kernels.linear.loss cimport CHUNK, DIRECT, SOFTMAX, TWO, slope, softmax
from fastopt._kernels.linear.step cimport real
from fastopt._kernels.shared.stream cimport prefetch

cdef extern from "linear/linear.h" nogil:
    void fo_margins_f32(
        const float*, int, Py_ssize_t, const float*, float, float*, const float*
    ) noexcept
    void fo_margins_f64(
        const double*, int, Py_ssize_t, const double*, double, double*, const double*
    ) noexcept
    void fo_axpys_f32(
        const float*, int, Py_ssize_t, const float*, float*, const float*
    ) noexcept
    void fo_axpys_f64(
        const double*, int, Py_ssize_t, const double*, double*, const double*
    ) noexcept
    float fo_sum_f32(const float*, int) noexcept
    double fo_sum_f64(const double*, int) noexcept

cdef struct Rows:  # what a pass over them needs to know
    const void* x  # (n, d)
    const void* y  # (n,) class numbers, or (n, wide) targets
    const void* s  # (n,) sample weights, or NULL
    const void* ones  # CHUNK of them, then zeros: the weights of a chunk without any
    Py_ssize_t n, d, k  # rows, columns, outputs
    Py_ssize_t pad  # d rounded up to whole lanes: the stride of w and g
    Py_ssize_t wide  # targets a row: 1, or k
    Py_ssize_t group  # consecutive rows that one entry of the order stands for
    int loss, targets, intercept
    bint coded  # y is uint8, else as x
    double epsilon

cdef struct Sums:  # what one pass adds up besides the gradient
    double[16] loss
    double[16] weight
    double[16] odd  # 0 while every margin and target is finite, else NaN


cdef inline void margins(
    const real* x, int n, Py_ssize_t d, const real* w, real b, real* z, const real* ahead
) noexcept nogil:
    if real is float:
        fo_margins_f32(x, n, d, w, b, z, ahead)
    else:
        fo_margins_f64(x, n, d, w, b, z, ahead)


cdef inline void axpys(
    const real* x, int n, Py_ssize_t d, const real* e, real* g, const real* ahead
) noexcept nogil:
    if real is float:
        fo_axpys_f32(x, n, d, e, g, ahead)
    else:
        fo_axpys_f64(x, n, d, e, g, ahead)


cdef inline real sum_of(const real* a, int n) noexcept nogil:
    if real is float:
        return fo_sum_f32(a, n)
    else:
        return fo_sum_f64(a, n)


cdef inline void look(real* odd, const real* a, int n) noexcept nogil:
    """Note whether n values, a multiple of 16, are finite."""
    cdef int i = 0, lane
    while i < n:
        for lane in range(16):
            odd[lane] += a[i + lane] - a[i + lane]
        i += 16


cdef inline void result(const Sums* sums, double* total) noexcept nogil:
    """Add (loss, weight, odd) to total."""
    cdef int lane
    for lane in range(16):
        total[0] += sums.loss[lane]
        total[1] += sums.weight[lane]
        if sums.odd[lane] != 0:
            total[2] = 1


cdef inline Py_ssize_t tile_of(const Rows* f, int size) noexcept nogil:
    """Rows of elements of so many bytes taken at once: about half of the first-level cache."""
    cdef Py_ssize_t rows = (16384 // (f.d * size + 1)) & ~<Py_ssize_t> 15
    return 16 if rows < 16 else min(rows, <Py_ssize_t> CHUNK)


cdef inline Py_ssize_t room_of(const Rows* f, int size) noexcept nogil:
    """Bytes of scratch a worker needs, zero at first: sums; margins; rows, targets, weights
    gathered."""
    return <Py_ssize_t> sizeof(Sums) + tile_of(f, size) * (f.k + f.d + f.wide + 1) * size


cdef inline void chunk_of(
    const Rows* f, const real* x, const void* y, bint coded, const real* s, int rows,
    const real* w, real* g, real* z, Sums* sums, const real* ahead,
) noexcept nogil:
    """Up to CHUNK rows, one behind the other, with their targets (coded as told of f.y) and
    weights (NULL for ones): their loss into sums, their gradient into g. w and g are k rows of
    pad elements, then the k intercepts; z is scratch of k times the rows, rounded up to 16; ahead
    the rows that come next."""
    cdef Py_ssize_t k = f.k, pad = f.pad, wide = f.wide, c
    cdef int n = (rows + 15) & ~15, i, lane
    cdef bint joint = f.loss == SOFTMAX, plain = f.targets == DIRECT and not joint
    cdef real[CHUNK] number
    cdef real[CHUNK] target
    cdef real[CHUNK] share
    cdef real[CHUNK] v
    cdef real[16] odd
    cdef uint8_t[CHUNK] code
    cdef real one
    cdef real* zc
    cdef const real* t = <const real*> y
    memset(&odd[0], 0, sizeof(odd))
    if s == NULL:
        sums.weight[0] += rows
        s = <const real*> f.ones + (CHUNK - rows)
    else:
        for i in range(rows):
            sums.weight[i % 16] += s[i]
        if rows < n:
            memset(&share[0], 0, sizeof(share))
            memcpy(&share[0], s, rows * sizeof(real))
            s = &share[0]
    for c in range(k):
        zc = z + n * c
        margins(x, rows, f.d, w + c * pad, w[k * pad + c], zc, x if c else ahead)
        for i in range(rows, n):
            zc[i] = 0
        look(odd, zc, n)
    for c in range(1 if joint else k):
        if coded and c == 0:
            memset(&code[0], 0, sizeof(code))
            memcpy(&code[0], y, rows)
            for i in range(n & ~15):
                number[i] = code[i]
            t = &number[0]
        elif not coded and (rows < n or wide > 1):
            for i in range(rows):
                number[i] = (<const real*> y)[i * wide + (c if wide > 1 else 0)]
            for i in range(rows, n):
                number[i] = 0
            t = &number[0]
        if plain:
            look(odd, t, n)
        elif not joint:
            one = <real> 1 if f.targets == TWO else <real> c
            for i in range(n & ~15):
                target[i] = <real> 1 if t[i] == one else <real> -1
        if joint:
            softmax(k, n, z, t, s, v)
        else:
            slope(f.loss, f.epsilon, n, z + n * c, t if plain else target, s, v)
        i = 0
        while i < n:
            for lane in range(16):
                sums.loss[lane] += v[i + lane]
            i += 16
    for lane in range(16):
        sums.odd[lane] += odd[lane]
    for c in range(k):
        axpys(x, rows, f.d, z + n * c, g + c * pad, x if c else ahead)
        if f.intercept:
            g[k * pad + c] += sum_of(z + n * c, n)


cdef inline Py_ssize_t batch(
    const Rows* f, const int64_t* order, Py_ssize_t entries, Py_ssize_t known, const real* w,
    real* g, void* scratch,
) noexcept nogil:
    """The rows of ``entries`` entries of the order (``known`` of them may be looked at ahead).
    Adds to g and to the sums at the head of scratch. Returns the number of rows."""
    cdef Sums* sums = <Sums*> scratch
    cdef const real* x = <const real*> f.x
    cdef const real* s = <const real*> f.s
    cdef const char* y = <const char*> f.y
    cdef Py_ssize_t d = f.d, wide = f.wide, tile = tile_of(f, sizeof(real)), group = f.group
    cdef Py_ssize_t each = 1 if f.coded else wide * <Py_ssize_t> sizeof(real)  # bytes of y per row
    cdef real* z = <real*> (sums + 1)
    cdef real* tx = z + f.k * tile
    cdef real* ty = tx + d * tile
    cdef real* ts = ty + wide * tile
    cdef const real* rows_x
    cdef const real* rows_s = NULL
    cdef const real* later_x
    cdef const char* rows_y
    cdef bint coded = f.coded, gathered = group == 1 and entries > 1
    cdef Py_ssize_t total = 0, held = 0, q, first, length, i, at, rows, later, b
    if gathered:
        coded = False
    for q in range(entries):
        first = order[q] * group
        length = min(f.n - first, group)
        total += length
        i = 0
        while i < length:
            if gathered:
                memcpy(tx + held * d, x + first * d, d * sizeof(real))
                if f.coded:
                    ty[held] = (<const uint8_t*> y)[first]
                else:
                    memcpy(ty + held * wide, y + first * each, each)
                ts[held] = 1 if s == NULL else s[first]
                held += 1
                i += 1
                if held < tile and q + 1 < entries:
                    break
                rows_x, rows_y, later_x, rows = tx, <char*> ty, tx, held
                if s != NULL:
                    rows_s = ts
                held = 0
            else:
                at, rows = first + i, min(length - i, tile)
                i += rows
                later = at
                if i < length:
                    later = at + rows
                elif q + 1 < known:
                    later = order[q + 1] * group
                for b in range(0, rows * each, 64):
                    prefetch(y + later * each + b)
                if s != NULL:
                    rows_s = s + at
                    for b in range(0, rows * <Py_ssize_t> sizeof(real), 64):
                        prefetch(<const char*> (s + later) + b)
                rows_x, rows_y, later_x = x + at * d, y + at * each, x + later * d
            chunk_of(f, rows_x, rows_y, coded, rows_s, <int> rows, w, g, z, sums, later_x)
    return total
