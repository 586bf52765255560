"""Plain SGD on sparse rows that touches only the columns of a batch, and how its workers meet.

Three things that would touch all columns wait. The L2 decay is one scale for the whole vector,
w = s v, s <- s (1 - lr l2) (Bottou, "Stochastic gradient descent tricks", 2012). The L1 soft
thresholds of the steps since a column was last seen add up, in units of v, to one (Langford, Li &
Zhang, JMLR 10, 2009; the cumulative penalty of Tsuruoka et al., ACL 2009, without its clipping).
The sum of the iterates is A v - u with A the sum of the scales and u that of each step's move
times the A before it (Xu, arXiv:1107.2490, 2011).
"""

from libc.stdint cimport int64_t

from fastopt._kernels.linear.csr cimport Rows, Sums, Tile, ask_at, collect, slopes, spread
from fastopt._kernels.linear.loss cimport CHUNK
from fastopt._kernels.linear.step cimport AVERAGE, N_SLABS, Rule, real

cdef enum:
    WIDE = 524288  # bytes of weights from which those of the next row are asked for


cdef inline real shrunk(real v, real threshold) noexcept nogil:
    """soft() without a branch: the sign of a weight is not to be foretold."""
    cdef real part = v if v < threshold else threshold
    return v - (part if part > -threshold else -threshold)


cdef inline void settle(
    const Rows* f, const Tile* tile, real* v, double* seen, double sum_l1
) noexcept nogil:
    """The soft thresholds that the columns of the tile's rows have missed."""
    cdef Py_ssize_t c
    cdef int64_t q, j
    cdef int i
    for c in range(f.k):
        for i in range(tile.rows):
            for q in range(f.start[tile.id[i]], f.start[tile.id[i] + 1]):
                j = c * f.pad + f.column[q << f.two]
                v[j] = shrunk(v[j], <real> (sum_l1 - seen[j]))
                seen[j] = sum_l1


cdef inline void fold(
    real* mean, const real* w, Py_ssize_t n, double own, double part, double scale
) noexcept nogil:
    """mean <- scale (own mean + part w)."""
    cdef real a = <real> own, b = <real> part, c = <real> scale
    cdef Py_ssize_t j
    for j in range(n):
        mean[j] = (mean[j] * a + w[j] * b) * c


cdef inline void finish(
    real* v, Py_ssize_t n, double scale, double* seen, double sum_l1, bint l1
) noexcept nogil:
    """v becomes w: every threshold that waits, then the scale."""
    cdef real part = <real> scale
    cdef Py_ssize_t j
    if l1:
        for j in range(n):
            v[j] = shrunk(v[j], <real> (sum_l1 - seen[j]))
            seen[j] = 0
    for j in range(n):
        v[j] *= part


cdef inline void walk_lazily(
    const Rows* f, const int64_t* order, Py_ssize_t entries, Py_ssize_t size, const double* lr,
    Py_ssize_t first, Py_ssize_t last, real* w, Py_ssize_t length, const Rule* rule,
    int64_t* steps, char* scratch, Sums* total,
) noexcept nogil:
    """A worker's batches first..last-1; scratch is what L1 has seen, then a batch's tiles."""
    cdef Py_ssize_t coef = f.k * f.pad, b, start, count, n, done
    cdef bint l1 = rule.l1 > 0, wide = f.pad * sizeof(real) > WIDE
    cdef int64_t i, q
    cdef double* seen = <double*> scratch
    cdef real* e = <real*> (scratch + (coef * sizeof(double) if l1 else 0))
    cdef double scale = 1, sum_l1 = 0, past = 0, after
    cdef real* mean = w + AVERAGE * length
    cdef Tile tile
    if rule.average:
        fold(mean, w, coef + f.k, steps[1], 0, 1)
    for b in range(first, last):
        start, n, done = b * size, 0, 0
        count = min(size, entries - start)
        tile.entry = tile.inner = 0
        while tile.entry < count:
            collect(f, order + start, count, entries - start, &tile, sizeof(real))
            if wide and start + tile.entry < entries:
                i = order[start + tile.entry] * f.group + tile.inner
                q = f.start[i]
                ask_at(f.column + (q << f.two), f.two, f.start[i + 1] - q, w, sizeof(real))
                if l1:
                    ask_at(f.column + (q << f.two), f.two, f.start[i + 1] - q, seen, 8)
            if l1:
                settle(f, &tile, w, seen, sum_l1)
            slopes(f, &tile, w, scale, e + done, total)
            n += tile.rows
            done += f.k * CHUNK
        steps[0] += 1
        after = scale * (1 - lr[b] * rule.l2)
        if not (after > 1e-6 or after < -1e-6):  # v has grown: multiply the scale out
            if rule.average:
                fold(mean, w, coef, 1, past, 1)
            finish(w, coef, after, seen, sum_l1, l1)
            after, sum_l1, past = 1, 0, 0
        scale = after
        if n > CHUNK:
            tile.entry = tile.inner = 0
        done = 0
        while done * CHUNK < n:
            if n > CHUNK:
                collect(f, order + start, count, 0, &tile, sizeof(real))
            spread(f, &tile, e + done * f.k * CHUNK, -lr[b] / (n * scale), w,
                   -min(lr[b], f.cap) / n)
            if past != 0:
                spread(f, &tile, e + done * f.k * CHUNK, past * lr[b] / (n * scale), mean, 0)
            done += 1
        if rule.average:
            steps[1] += 1
            past += scale
            fold(mean + coef, w + coef, f.k, 1, 1, 1)
        if l1:
            sum_l1 += lr[b] * rule.l1 / (scale if scale > 0 else -scale)
    if rule.average and steps[1] > 0:
        fold(mean, w, coef, 1, past, 1.0 / steps[1])
        fold(mean + coef, w, f.k, 1.0 / steps[1], 0, 1)
    finish(w, coef, scale, seen, sum_l1, l1)


cdef inline void mix(
    real* slab, Py_ssize_t n_workers, Py_ssize_t length, const real* stiff, Py_ssize_t n,
    double rates, real* before,
) noexcept nogil:
    """Add the workers' moves up, less where they went the same way.

    A worker moves a weight of curvature h towards its optimum by the share 1 - exp(-a), a = h
    times its steps' sum; P workers one behind the other would by 1 - exp(-P a). So the sum of
    their moves counts 1/P + (1 - 1/P) / (1 + P a / 2), which has that ratio's slope at 0 and its
    limit: rare columns move as far as one worker would take them, common ones to the mean.
    """
    cdef Py_ssize_t p, j
    cdef real moved, part = <real> (1.0 / n_workers), a = <real> (0.5 * n_workers * rates)
    for j in range(length):
        moved = 0
        for p in range(n_workers):
            moved += slab[p * N_SLABS * length + j] - before[j]
        if j < n:
            moved *= part + (1 - part) / (1 + a * stiff[j])
        else:
            moved *= part
        before[j] += moved
    for p in range(n_workers):
        for j in range(length):
            slab[p * N_SLABS * length + j] = before[j]
