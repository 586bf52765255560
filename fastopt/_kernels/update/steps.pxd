"""A rule over a stretch of one array: tails that are no whole line, and tile by tile where
gradients are narrow or more is done with the new weights while they are in L1."""

from libc.stdint cimport uint16_t
from libc.string cimport memcpy, memmove, memset

from fastopt._kernels.update.arrays cimport *
from fastopt._kernels.update.moments cimport lamb_direction, moments
from fastopt._kernels.update.narrow cimport load_state, narrow, widen
from fastopt._kernels.update.sums cimport sum_of_squares

cdef enum:
    TILE = 1024  # elements that are widened, updated and narrowed while they are in L1


cdef inline int state_item(const Array* r) noexcept nogil:
    """Bytes of an element of state."""
    return 2 if r.storage == BFLOAT else 1 if r.storage == CODES else r.item


cdef inline Stretch stretch_of(
    const Array* r, const void* g, Py_ssize_t at, Py_ssize_t n, bint far
) noexcept nogil:
    cdef Stretch a
    cdef int k
    memset(&a, 0, sizeof(a))
    a.g, a.n, a.first, a.key, a.turn, a.storage, a.far = g, n, at, r.key, r.step, r.storage, far
    for k in range(r.n_states):
        a.state[k] = r.state[k] + at * state_item(r)
        a.scales[k] = r.scales[k] + at // UNIT if r.storage == CODES else NULL
    return a


cdef inline void call(const Array* r, real* p, const Stretch* a, const scalars* s) noexcept nogil:
    if scalars is Scalars32 and real is float:
        r.rule.step32(p, a, s)
    elif scalars is Scalars64 and real is double:
        r.rule.step64(p, a, s)


cdef inline void padded_step(
    const Array* r, real* p, const Stretch* a, Py_ssize_t size, const scalars* s
) noexcept nogil:
    """A stretch of less than ``size`` elements, by way of one of ``size``."""
    cdef real room[(2 + STATES) * UNIT]  # weights, gradients, state
    cdef Stretch whole = a[0]
    cdef real* w = room
    cdef real* g = room + size
    cdef real* state
    cdef int k, item = state_item(r)
    cdef Py_ssize_t i
    memset(room, 0, (2 + r.n_states) * size * sizeof(real))
    for i in range(a.n):
        w[i] = p[i]
        g[i] = (<const real*> a.g)[i]
    whole.g, whole.n, whole.far = g, size, False
    for k in range(r.n_states):
        whole.state[k] = state = room + (2 + k) * size
        if a.storage == SAME:
            for i in range(a.n):
                state[i] = (<const real*> a.state[k])[i]
        else:
            memcpy(state, a.state[k], a.n * item)
    call(r, w, &whole, s)
    for i in range(a.n):
        p[i] = w[i]
    for k in range(r.n_states):
        if a.storage == SAME:
            for i in range(a.n):
                (<real*> a.state[k])[i] = (<const real*> whole.state[k])[i]
        else:
            memcpy(a.state[k], whole.state[k], a.n * item)


cdef inline void element_steps(
    const Array* r, real* p, Stretch a, const scalars* s
) noexcept nogil:
    """The rule over any number of elements; 8-bit state begins a unit."""
    cdef Py_ssize_t size = UNIT if a.storage == CODES else LINE, rest = a.n % size
    cdef int k
    a.n -= rest
    if a.n > 0:
        call(r, p, &a, s)
    if rest > 0:
        p += a.n
        a.g = <const real*> a.g + a.n
        a.first += a.n
        for k in range(r.n_states):
            a.state[k] = <char*> a.state[k] + a.n * state_item(r)
            if a.storage == CODES:
                a.scales[k] += a.n // UNIT
        a.n = rest
        padded_step(r, p, &a, size, s)


cdef inline void blend(real* ema, const real* p, Py_ssize_t n, double share) noexcept nogil:
    """ema <- ema + share (p - ema)."""
    cdef real w = <real> share
    cdef Py_ssize_t i
    for i in range(n):
        ema[i] = ema[i] + w * (p[i] - ema[i])


cdef inline void after(
    const Array* r, real* p, Py_ssize_t at, Py_ssize_t n, const Work* w
) noexcept nogil:
    """What follows the update of a stretch: average, narrow copy, gradients back to zero."""
    cdef int size = sizeof(real)
    if r.ema != NULL:
        blend(<real*> r.ema + at, <const real*> p, n, w.ema_share)
    if real is float:
        if r.copy_storage != SAME:
            narrow(<uint16_t*> r.copy + at, <f32> p, n, r.copy_storage)
    if w.zero_grads:
        if r.grad_storage != SAME:
            size = 2
        memset(r.g + at * size, 0, n * size)


cdef inline const real* gradient(
    const Array* r, real* room, Py_ssize_t at, Py_ssize_t n
) noexcept nogil:
    """Elements at..at+n of the gradient: where they lie or, if narrow, widened into ``room``."""
    if real is float:
        if r.grad_storage != SAME:
            widen(<f32> room, <const uint16_t*> r.g + at, n, r.grad_storage)
            return room
    return <const real*> r.g + at


cdef inline void steps(
    const Array* r, real* p, Py_ssize_t at, Py_ssize_t n, const scalars* s, const Work* w
) noexcept nogil:
    """Elements at..at+n of one array, whose weights begin at ``p``."""
    cdef real room[TILE]
    cdef Py_ssize_t end = at + n, m, tile = TILE
    cdef const real* g
    if r.ema == NULL and r.copy_storage == SAME and not w.zero_grads and r.grad_storage == SAME:
        tile = n
    while at < end:
        m = min(tile, end - at)
        g = gradient(r, room, at, m)
        element_steps(r, p + at, stretch_of(r, g, at, m, w.far), s)
        after(r, p + at, at, m, w)
        at += m


cdef inline const real* wide_state(
    const Array* r, int k, real* room, Py_ssize_t at, Py_ssize_t n
) noexcept nogil:
    """At most a unit of state k: where it lies or, if narrow, widened into ``room``."""
    cdef Stretch a = stretch_of(r, NULL, at, n, False)
    if real is float:
        if r.storage != SAME:
            load_state(room, &a, k, r.signs[k], n)
            return room
    return <const real*> a.state[k]


cdef inline void lamb_norms(
    const Array* r, const real* p, Py_ssize_t at, Py_ssize_t n, const scalars* s, double* sums
) noexcept nogil:
    """LAMB's first pass, which only reads: for each unit sum p^2 and sum u^2 of the raw update."""
    cdef real room[UNIT]
    cdef real wide[2][UNIT]
    cdef real u[UNIT]
    cdef real m, v
    cdef const real* g
    cdef const real* first
    cdef const real* second
    cdef double* two
    cdef Py_ssize_t end = at + n, count, i
    while at < end:
        count = min(UNIT, end - at)
        g = gradient(r, room, at, count)
        first = wide_state(r, 0, wide[0], at, count)
        second = wide_state(r, 1, wide[1], at, count)
        for i in range(count):
            m, v = first[i], second[i]
            moments(&m, &v, s.scale * g[i], s)
            u[i] = lamb_direction(p[at + i], m, v, s)
        two = sums + 2 * (r.unit + at // UNIT)
        two[0] = sum_of_squares(p + at, count)
        two[1] = sum_of_squares(<const real*> u, count)
        at += count


cdef inline bint within(const real* x, Py_ssize_t n, double most) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        if not -most <= x[i] <= most:
            return False
    return True


cdef inline void same_state_steps(
    const Array* r, real* p, Stretch a, const scalars* s
) noexcept nogil:
    cdef Array wide = r[0]
    wide.storage = SAME
    element_steps(&wide, p, a, s)


cdef inline void foresee(
    const Array* r, const real* p, Py_ssize_t at, Py_ssize_t n, const scalars* s, double* sums
) noexcept nogil:
    """Whether a step would leave weights or state that are not finite, tried on copies: 1 or 0 for
    each unit."""
    cdef real w[UNIT]
    cdef real room[UNIT]
    cdef real state[STATES][UNIT]
    cdef Stretch a
    cdef bint fine
    cdef double most = 1.7976931348623157e308 if real is double else 3.4028234663852886e38
    cdef Py_ssize_t end = at + n, count
    cdef int k
    if r.storage == BFLOAT:
        most = 3.3895313892515355e38
    while at < end:
        count = min(UNIT, end - at)
        a.g = gradient(r, room, at, count)
        a.n, a.first, a.storage, a.far, a.key, a.turn = count, at, SAME, False, 0, 0
        memcpy(w, p + at, count * sizeof(real))
        for k in range(r.n_states):
            memmove(state[k], wide_state(r, k, state[k], at, count), count * sizeof(real))
            a.state[k], a.scales[k] = state[k], NULL
        same_state_steps(r, w, a, s)
        fine = within(<const real*> w, count, most)
        for k in range(r.n_states):
            fine = fine and within(<const real*> state[k], count, most)
        sums[2 * (r.unit + at // UNIT)] = 0.0 if fine else 1.0
        at += count
